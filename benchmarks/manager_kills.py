"""What becomes of counts, states and calls when the manager is killed again and again?"""

from __future__ import annotations

import random
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

import managers
from crew import crew, orders
from measure import PATIENCE, Settings, percentile
from report import Goal, Section, Table, number

import switchgear as sg

KILLS: Final = 200
WORKERS: Final = 8
ACQUIRE_TIMEOUT: Final = 0.05  # seconds, as by default
TOLERANCE: Final = 0.005  # and the goal's
LIFE: Final = (0.05, 0.4)  # seconds that a manager serves
PAUSE: Final = 0.001  # seconds between two calls of a worker, so that there is a processor for each

# Circuits as a service might have them, and how often their calls fail.
CIRCUITS: Final = {
    "steady": (sg.CircuitConfig(failure_threshold=50), 0.02),
    "strict": (sg.CircuitConfig(failure_threshold=50, consistency="strict"), 0.02),
    "flapping": (sg.CircuitConfig(failure_threshold=3, open_timeout=0.02), 0.3),
    "flapping strictly": (
        sg.CircuitConfig(failure_threshold=3, open_timeout=0.02, consistency="strict"),
        0.3,
    ),
}


class Count(NamedTuple):
    """What one worker saw of one circuit."""

    successes: int
    failures: int
    rejected: int


# -- the load --------------------------------------------------------------------------------------


def fail() -> None:
    """What a call does that fails."""
    raise ConnectionError("down")


def work(number_: int, pipe: Connection, address: str) -> None:
    """Say that it is ready; call, count, until told to stop; have all taken in, tell the counts."""
    with sg.connect(address, acquire_timeout=ACQUIRE_TIMEOUT) as client:
        breakers = [
            (client.breaker(name, config), rate) for name, (config, rate) in CIRCUITS.items()
        ]
        chance = random.Random(number_)
        pipe.send("ready")
        for _ in orders(pipe):
            counts, waits = _call_until_told(pipe, breakers, chance)
            client.flush(PATIENCE)
            pipe.send((counts, waits))


def _call_until_told(
    pipe: Connection, breakers: list[tuple[sg.Breaker, float]], chance: random.Random
) -> tuple[dict[str, Count], list[float]]:
    counted: Counter[tuple[str, str]] = Counter()
    waits = []
    while not pipe.poll():
        breaker, rate = chance.choice(breakers)
        fails = chance.random() < rate
        began = time.perf_counter()
        try:
            breaker.execute(fail if fails else int)
            outcome = "success"
        except ConnectionError:
            outcome = "failure"
        except sg.CallNotPermittedError:
            outcome = "rejected"
        waits.append(time.perf_counter() - began)
        counted[breaker.name, outcome] += 1
        time.sleep(PAUSE)
    pipe.recv()
    kinds = ("success", "failure", "rejected")
    counts = {name: Count(*(counted[name, kind] for kind in kinds)) for name in CIRCUITS}
    return counts, sorted(waits)


# -- the kills -------------------------------------------------------------------------------------


class Line:
    """The managers at one address, one after the other; ends the last one with the block."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._process = managers.start(address)

    def replace(self) -> None:
        """Kill the one that runs, wait until it is no more, and start the next."""
        self._kill()
        self._process = managers.start(self._address)

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait(PATIENCE)

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *error: object) -> None:
        self._kill()


class Round(NamedTuple):
    """One kill."""

    back: float  # seconds from the successor's first answer possible to our client's first
    honoured: bool  # a probe that the dead one had granted moved the circuit of the successor


def kill_once(line: Line, late: sg.Breaker, chance: random.Random) -> Round:
    """Hold a probe over the death of the manager that granted it, and report it to the next."""
    permit = late.acquire()
    time.sleep(chance.uniform(*LIFE))
    line.replace()
    began = time.perf_counter()
    stats = answered(late)
    back = time.perf_counter() - began
    permit.success()
    honoured = stats.state is not sg.State.HALF_OPEN or late.state is not sg.State.HALF_OPEN
    return Round(back, honoured or permit.verdict is sg.Verdict.COUNTED)


def answered(breaker: sg.Breaker) -> sg.CircuitStats:
    """Ask until the successor answers; a question waits a second, too little on a busy machine."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return breaker.stats()
        except sg.ManagerUnavailableError:
            if time.monotonic() > deadline:
                raise


def half_open(breaker: sg.Breaker) -> None:
    """Open a circuit and wait until it is half-open."""
    with breaker.acquire() as permit:
        permit.failure("down")
    while breaker.state is not sg.State.HALF_OPEN:
        time.sleep(0.001)


def run(settings: Settings) -> Section:
    """The same load twice: left alone, and with the manager killed all the time."""
    kills = settings.pick(KILLS, 3)
    chance = random.Random(4711)
    with tempfile.TemporaryDirectory(prefix="switchgear-bench-") as directory:
        address = f"{directory}/m"
        with (
            Line(address) as line,
            sg.connect(address, manager_loss="reject", acquire_timeout=PATIENCE) as client,
            crew(WORKERS, work, address) as workers,
        ):
            late = client.breaker(
                "late", failure_threshold=1, success_threshold=1, open_timeout=0.001
            )
            half_open(late)
            workers.hear()  # or some would begin in the middle of it
            workers.tell("call")
            time.sleep(settings.pick(20.0, 0.5))
            alone = workers.ask("stop")
            workers.tell("call")
            rounds = [kill_once(line, late, chance) for _ in range(kills)]
            killed = workers.ask("stop")
            stats = client.breakers()
    return _section(rounds, alone, killed, stats)


Heard = list[tuple[dict[str, Count], list[float]]]


def _section(
    rounds: list[Round], alone: Heard, killed: Heard, stats: dict[str, sg.CircuitStats]
) -> Section:
    rows, wrong = [], 0
    for name in CIRCUITS:
        own = [sum(row) for row in zip(*(c[name] for c, _ in alone + killed), strict=True)]
        found = stats[name]
        theirs = [found.total_successes, found.total_failures, found.total_rejected]
        wrong += sum(abs(a - b) for a, b in zip(own[:2], theirs[:2], strict=True))
        rows.append([name, *(f"{a:,} / {b:,}" for a, b in zip(own, theirs, strict=True))])
    limit = ACQUIRE_TIMEOUT + TOLERANCE
    late = {}
    waits = []
    for label, heard in (("left alone", alone), ("killed", killed)):
        every = [wait for _, waited in heard for wait in waited]
        late[label] = sum(wait > limit for wait in every)
        figures = [percentile(every, 0.5), percentile(every, 0.999), max(every)]
        cells = [number(wait * 1e3) for wait in figures]
        waits.append([label, f"{len(every):,}", *cells, str(late[label])])
    backs = [each.back for each in rounds]
    honoured = sum(each.honoured for each in rounds)
    calls = sum(len(waited) for _, waited in killed)
    return Section(
        "Killed managers",
        "manager_kills",
        tables=[
            Table(
                f"Calls as {WORKERS} workers counted them / as the last manager tells them",
                ("the circuit", "successes", "failures", "rejected"),
                rows,
            ),
            Table(
                "How long a call waited, ms",
                ("the manager", "calls", "p50", "p99.9", "longest", f"over {limit * 1e3:.0f}"),
                waits,
            ),
        ],
        goals=[
            Goal(
                "the totals are what the workers executed, over 200 SIGKILLs of the manager",
                f"{wrong} outcomes too many or too few of {calls:,} calls, {len(rounds)} kills",
                not wrong,
            ),
            Goal(
                "no call waits longer than acquire_timeout + 5 ms because of it",
                f"{late['killed']} of {calls:,} calls; left alone, {late['left alone']} of "
                f"{sum(len(waited) for _, waited in alone):,}",
                not late["killed"],
            ),
            Goal(
                "no probe that a dead manager had granted moves its successor's circuit",
                f"{honoured} of {len(rounds)}",
                not honoured,
            ),
            Goal(
                "clients are back within 100 ms",
                f"p99 {percentile(backs, 0.99) * 1e3:.1f} ms, longest {max(backs) * 1e3:.1f} ms",
                max(backs) < 0.1,
            ),
        ],
        notes=[
            "SIGKILL, and the next manager is started at once; it serves for "
            f"{LIFE[0] * 1e3:.0f} to {LIFE[1] * 1e3:.0f} ms. Meanwhile the workers decide for "
            'themselves (`manager_loss="local"`) and hand over what they counted. Rejections '
            "that a manager has answered within its last tenth of a second may die with it, so "
            "they are shown and not compared."
        ],
    )
