"""How does it scale: with worker processes, with circuits, in memory?"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle, islice, repeat
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

from crew import Crew, crew, orders
from measure import PATIENCE, Candidate, Figure, Settings, cpu_seconds, in_turns, ratio, resident
from peers import (
    Leased,
    Peer,
    PyBreaker,
    PyBreakerRedis,
    Strict,
    Thresholds,
    candidates,
    client_of,
    manager,
    unique,
)
from report import Chart, Goal, Section, Table, number, spread

import switchgear as sg

WORKERS: Final = (1, 2, 4, 8, 16, 64)
CIRCUITS: Final = (1, 100, 10_000)
WINDOW: Final = 101  # calls of a circuit until its window of latencies is full, and one more
FULL: Final = 10_000  # circuits whose windows are filled, if the time is enough for that
KIB: Final = 1024.0


def empty() -> None:
    """The function that is called."""


# -- worker processes ------------------------------------------------------------------------------


class Load(NamedTuple):
    """An order: call for so long, in a closed circuit."""

    peer: Peer
    circuit: str
    seconds: float


def worker(number: int, pipe: Connection) -> None:
    """Make the calls of each order; first get ready, then wait for the word."""
    for load in orders(pipe):
        circuit = load.peer.make(load.circuit, Thresholds())
        assert circuit is not None
        through = circuit.direct
        assert through is not None
        for _ in range(50):
            through(empty)
        pipe.send("ready")
        began = pipe.recv()
        time.sleep(max(0.0, began - time.monotonic()))
        calls, used, step = 0, time.process_time(), 4
        while (now := time.monotonic()) < began + load.seconds:
            for _ in repeat(None, step):
                through(empty)
            calls += step
            if time.monotonic() - now < 0.001:  # look at the clock rarely
                step *= 2
        circuit.settle()
        pipe.send((calls, time.monotonic(), time.process_time() - used))
        circuit.close()


class Sample(NamedTuple):
    """What some workers did in one go."""

    rate: float  # calls a second, all workers
    worker_cpu: float  # seconds a call
    server_cpu: float  # seconds a call: of the manager, or of Redis


def drive(workers: Crew, count: int, peer: Peer, server: int | None, seconds: float) -> Sample:
    """Have so many workers call for so long."""
    ready = workers.ask(Load(peer, unique("scale"), seconds), count)
    assert ready == ["ready"] * count
    before = cpu_seconds(server) if server else 0.0
    began = time.monotonic() + 0.02 + 0.001 * count  # by then all of them know
    results = workers.ask(began, count)
    after = cpu_seconds(server) if server else 0.0
    calls = sum(calls for calls, _, _ in results)
    return Sample(
        calls / (max(ended for _, ended, _ in results) - began),
        sum(used for _, _, used in results) / calls,
        (after - before) / calls,
    )


Throughput = dict[str, dict[int, list[Sample]]]


def measure_workers(
    settings: Settings, ours: sg.Manager, redis_pid: int | None
) -> tuple[Throughput, float]:
    """Calls a second by candidate and number of workers; and what a client costs the manager."""
    peers = candidates(settings, ours.address, Leased, Strict, PyBreaker, PyBreakerRedis)
    counts = settings.pick(WORKERS, (1, 2))
    seconds = settings.pick(0.4, 0.02)
    found: Throughput = {peer.label: {count: [] for count in counts} for peer in peers}
    assert ours.pid is not None
    with crew(max(counts), worker) as workers:
        before = resident(ours.pid)
        drive(workers, max(counts), peers[0], ours.pid, seconds / 4)
        client = (resident(ours.pid) - before) / max(counts)
        for number in range(settings.pick(7, 1)):
            for count in counts:
                if count > 2 and number >= 3:
                    continue  # the goal is about two workers: more rounds for those
                for peer in peers:
                    server = {"manager": ours.pid, "redis": redis_pid}.get(peer.storage)
                    sample = drive(workers, count, peer, server, seconds)
                    found[peer.label][count].append(sample)
    return found, client


# -- circuits --------------------------------------------------------------------------------------


def call_all(
    through: Sequence[Callable[..., Any]], settle: Callable[[], object], calls: int
) -> float:
    """One call on each circuit, and again from the first; the seconds till all is done."""
    began = time.perf_counter()
    for call in islice(cycle(through), calls):
        call(empty)
    settle()
    return time.perf_counter() - began


def measure_circuits(settings: Settings, ours: sg.Manager) -> dict[str, list[float]]:
    """The cost of a call with few and with many circuits, leased and strict."""
    samples: dict[str, list[float]] = {}
    for peer in candidates(settings, ours.address, Leased, Strict):
        listed = []
        breakers: list[Any] = []
        for count in settings.pick(CIRCUITS, (1, 10)):
            while len(breakers) < count:
                circuit = peer.make(unique("many"), Thresholds())
                assert circuit is not None
                breakers.append(circuit.direct)
            run = partial(call_all, breakers[:count], circuit.settle)
            run(count)
            # What was not used for a while may have to be asked for anew: once for each circuit,
            # and so before the sample and not in it.
            use_all = partial(run, count) if type(peer) is Leased else circuit.settle
            listed.append(Candidate(f"{peer.label}, {count:,}", run, use_all))
        # Outcomes under a lease are gathered for up to half a second: long samples, so that the
        # last gathering of each, which is counted in full, is not most of it.
        seconds = 2.0 if type(peer) is Leased else 0.25
        samples |= in_turns(listed, settings.pick(5, 1), settings.pick(seconds, 0.01))
    return samples


# -- memory ----------------------------------------------------------------------------------------


class Memory(NamedTuple):
    """Bytes."""

    manager: float  # when it has just started
    declared: float  # in the manager, a circuit that has had one call
    full: float  # in the manager, a circuit with a full window of latencies
    full_circuits: int  # of how many that was taken
    client: float  # in a process, a client that is open and has one circuit
    client_circuit: float  # in a process, each circuit more


def fill(number: int, pipe: Connection) -> None:
    """A worker that calls each circuit of an order so many times."""
    for address, names, calls in orders(pipe):
        client = client_of(address)
        breakers = [client.breaker(name) for name in names]
        began = time.perf_counter()
        for breaker in breakers:
            for _ in repeat(None, calls):
                breaker.execute(empty)
        took = time.perf_counter() - began
        client.flush(PATIENCE)
        pipe.send(took)


def measure_memory(settings: Settings) -> Memory:
    """What circuits and clients take up, in a manager of their own."""
    budget = settings.pick(18.0, 0.3)  # seconds for filling windows
    fillers = 2
    with manager() as ours, crew(fillers, fill) as workers:
        assert ours.pid is not None
        started = resident(ours.pid)
        # The traffic itself grows buffers once; that is no circuit's share.
        calls = settings.pick(10_000, 500)
        took = max(workers.ask((ours.address, [unique("warm")], calls)))
        each = took / calls / fillers

        many = settings.pick(FULL, 100)
        before = resident(ours.pid)
        halves = _shares([unique("one") for _ in range(many)], fillers)
        _fill(workers, ours.address, halves, 1)
        declared = (resident(ours.pid) - before) / many

        most = max(20, min(many, int(budget / (each * WINDOW))))
        before = resident(ours.pid)
        _fill(
            workers,
            ours.address,
            _shares([unique("full") for _ in range(most)], fillers),
            WINDOW,
        )
        full = (resident(ours.pid) - before) / most
    client, client_circuit = _client(settings.pick(3, 1), settings.pick(1000, 50))
    return Memory(started, declared, full, most, client, client_circuit)


def _shares(names: list[str], parts: int) -> list[list[str]]:
    return [names[part::parts] for part in range(parts)]


def _fill(workers: Crew, address: str, shares: list[list[str]], calls: int) -> None:
    workers.tell_each([(address, share, calls) for share in shares])
    workers.hear()


CLIENT: Final = """
import sys
sys.path.insert(0, sys.argv[3])
import switchgear as sg
from measure import resident
def empty(): pass
with sg.connect(sys.argv[1], acquire_timeout=10.0) as client:
    before = resident("self")
    breaker = client.breaker("client")
    circuits = int(sys.argv[2])
    for _ in range(circuits):
        breaker.execute(empty)
    client.flush(10.0)
    one = resident("self")
    more = [client.breaker(f"client-{n}") for n in range(circuits)]
    for breaker in more:
        breaker.execute(empty)
    client.flush(10.0)
    print(one - before, (resident("self") - one) / circuits)
"""


def _client(rounds: int, circuits: int) -> tuple[float, float]:
    found = []
    here = str(Path(__file__).parent)
    with manager() as ours:
        for _ in range(rounds):
            command = [sys.executable, "-c", CLIENT, ours.address, str(circuits), here]
            said = subprocess.run(command, capture_output=True, text=True, timeout=60)
            if said.returncode:
                raise RuntimeError(said.stderr)
            found.append([float(word) for word in said.stdout.split()])
    one, each = (Figure.of(column).middle for column in zip(*found, strict=True))
    return one, each


# -- all of it -------------------------------------------------------------------------------------


def run(settings: Settings) -> Section:
    """Measure everything."""
    redis_pid = _pid_of_redis(settings)
    with manager() as ours:
        throughput, session = measure_workers(settings, ours, redis_pid)
    with manager() as ours:
        circuits = measure_circuits(settings, ours)
    memory = measure_memory(settings)
    return Section(
        "How it scales",
        "scale",
        tables=[
            _throughput_table(throughput),
            _cpu_table(throughput),
            _circuits_table(circuits, settings),
            _memory_table(memory, session),
        ],
        charts=[
            Chart(
                "scale",
                "Calls a second by number of worker processes",
                lambda: _draw(throughput),
            )
        ],
        goals=_goals(throughput, circuits, memory, settings),
        notes=_notes(memory),
    )


def _pid_of_redis(settings: Settings) -> int | None:
    if settings.redis is None or not settings.peers:
        return None
    import redis

    with redis.Redis(unix_socket_path=settings.redis) as client:
        return int(client.info("server")["process_id"])


def _notes(memory: Memory) -> list[str]:
    notes = [
        "The function does nothing, in a circuit that stays closed and that all workers share, "
        "where the candidate can share one. All workers call at once, as fast as they can.",
        "Processor time is that of all threads of the processes, from the kernel's own count.",
        "*Many circuits*: one process calls each circuit in turn, so that none is in a cache "
        "because it was called just before. Before a leased sample it has called each once.",
        "Memory is resident memory, as the kernel counts it, after less before. A circuit's window "
        "holds the latencies of its last 100 calls. A client is what a process has more after it "
        "has opened a connection and made calls than after the import.",
    ]
    if memory.full_circuits < FULL:
        notes.append(
            f"The windows of {memory.full_circuits:,} circuits were filled, and not of {FULL:,}: "
            f"there was no time for more calls."
        )
    return notes


# -- showing ---------------------------------------------------------------------------------------


def _rates(samples: Sequence[Sample]) -> Figure:
    return Figure.of(sample.rate for sample in samples)


def _throughput_table(found: Throughput) -> Table:
    counts = list(next(iter(found.values())))
    rows = [
        [label, *(f"{_rates(samples).middle:,.0f}" for samples in by_count.values())]
        for label, by_count in found.items()
    ]
    head = ["calls a second", *(f"{n} worker{'s' if n > 1 else ''}" for n in counts)]
    return Table("Throughput, all workers together", head, rows)


def _cpu_table(found: Throughput) -> Table:
    rows = []
    for label, by_count in found.items():
        for count, samples in by_count.items():
            server = Figure.of(sample.server_cpu for sample in samples).middle
            workers = Figure.of(sample.worker_cpu for sample in samples).middle
            if server:
                cells = [f"{label}, {count}", number(server * 1e6), number(workers * 1e6)]
                rows.append([*cells, f"{server / workers * 100:.1f} %"])
    head = ["seconds of processor time for a million calls", "manager or Redis", "workers", "share"]
    return Table("Processor time", head, rows)


def _circuits_table(samples: dict[str, list[float]], settings: Settings) -> Table:
    rows = []
    counts = settings.pick(CIRCUITS, (1, 10))
    for kind in (Leased, Strict):
        for count in counts:
            label = f"{kind.label}, {count:,}"
            times = ratio(samples, label, f"{kind.label}, {counts[0]:,}")
            rows.append([label, spread(Figure.of(samples[label]), 1e6), spread(times)])
    return Table("Many circuits", ["circuits", "us a call", "times that of one"], rows)


def _memory_table(memory: Memory, session: float) -> Table:
    rows = [
        ["the manager when it has started", f"{memory.manager / KIB / KIB:.1f} MiB"],
        ["in the manager, a circuit that was called once", f"{memory.declared / KIB:.2f} KiB"],
        [
            f"in the manager, a circuit with a full window ({memory.full_circuits:,} of them)",
            f"{memory.full / KIB:.2f} KiB",
        ],
        ["in the manager, a client process", f"{session / KIB:.1f} KiB"],
        ["in a process, a client with one circuit", f"{memory.client / KIB:.0f} KiB"],
        ["in a process, each circuit more", f"{memory.client_circuit / KIB:.2f} KiB"],
    ]
    return Table("Memory", ["what", "resident"], rows)


def _draw(found: Throughput) -> Any:
    import charts

    series = {
        label: {count: _rates(samples).middle for count, samples in by_count.items()}
        for label, by_count in found.items()
    }
    return charts.lines(
        series, "Calls of an empty function, all workers together", "worker processes",
        "calls a second",
    )  # fmt: skip


def _goals(
    throughput: Throughput, circuits: dict[str, list[float]], memory: Memory, settings: Settings
) -> list[Goal]:
    ours = throughput[Leased.label]
    gains = Figure.of(two.rate / one.rate for one, two in zip(ours[1], ours[2], strict=True))
    shares = Figure.of(sample.server_cpu / sample.worker_cpu for sample in ours[2])
    counts = settings.pick(CIRCUITS, (1, 10))
    goals = [
        Goal(
            "two workers make at least 1.8 x the calls of one, on two cores",
            f"{spread(gains)} x",
            gains.middle >= 1.8,
        ),
        Goal(
            "the manager uses at most 5 % of the processor time of two workers that call",
            f"{spread(shares, 100)} %",
            shares.middle <= 0.05,
        ),
    ]
    for kind, what in ((Leased, "a leased call"), (Strict, "a strict call")):
        times = ratio(circuits, f"{kind.label}, {counts[-1]:,}", f"{kind.label}, {counts[0]:,}")
        goals.append(
            Goal(
                f"with 10,000 circuits {what} costs at most 1.2 x what it costs with one",
                f"{spread(times)} x"
                + ("" if counts[-1] == 10_000 else f" with {counts[-1]:,} circuits"),
                times.middle <= 1.2 if counts[-1] == 10_000 else None,
            )
        )
    goals.append(
        Goal(
            "a circuit takes at most 3 KiB of the manager's memory",
            f"{memory.full / KIB:.2f} KiB with {memory.full_circuits:,} circuits",
            memory.full <= 3 * KIB,
        )
    )
    return goals
