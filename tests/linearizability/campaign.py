"""Runs real processes against a real manager, from a seed, and has every run checked."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any, Final, NamedTuple

import switchgear as sg
from switchgear.config import CircuitConfig, Consistency, LostPermit
from switchgear.wire import Event, Pong, Welcome

from . import checker, history, survival
from .history import History
from .recorder import Recorder
from .worker import PATIENCE, Step, work

WORKERS: Final = 4
CIRCUITS: Final = 3  # in one run, at most
STEPS: Final = 60  # of one worker in one run
KILL_SHARE: Final = 0.15  # of the runs, a worker is killed in the middle
SLOW_SHARE: Final = 0.15  # of the runs, timers take so long that it shows if they fire early
BACK_WITHIN: Final = 5.0  # seconds after which a permit that is still out is lost for ever
OUTLASTS: Final = 1.0  # seconds; longer than it takes to replace a manager
FRESH_SHARE: Final = 0.1  # of the new workers, those that are spawned and not forked

_idle: Final = threading.Event()


# -- what a run is made of -------------------------------------------------------------------------


class Plan(NamedTuple):
    """What one run does; all of it follows from its seed.

    Attributes:
        seed: It.
        circuits: Their names and first configurations.
        scripts: What each worker does.
        kill: Which worker is killed, and how many seconds after the start; None: none is.
        longest: Seconds that a timer of any of the configurations takes at most.
        loss: How many seconds after the start the manager is killed and replaced; None: never.
        listeners: The workers that are told of every change.
    """

    seed: int
    circuits: dict[str, CircuitConfig]
    scripts: list[list[Step]]
    kill: tuple[int, float] | None
    longest: float
    loss: float | None = None
    listeners: Sequence[int] = ()


def plan(seed: int, workers: int = WORKERS, steps: int = STEPS, kills: float = KILL_SHARE) -> Plan:
    """Make one up.

    Args:
        seed: What it follows from.
        workers: How many there are.
        steps: Of each.
        kills: The share of plans in which a worker is killed.
    """
    random = Random(seed)
    names = [f"{seed}.{number}" for number in range(random.randint(1, CIRCUITS))]
    slow = random.random() < SLOW_SHARE
    circuits = {name: _config(random, slow) for name in names}
    configs = list(circuits.values())
    failing = random.choice((0.1, 0.3, 0.6))
    scripts = []
    for _ in range(workers):
        script = [Step("declare", name, random.choice((None, circuits[name]))) for name in names]
        for _ in range(steps):
            script.append(_step(random, names, failing, slow))
            if script[-1].what == "declare":
                configs.append(script[-1].argument)
        scripts.append(script)
    kill = None
    if random.random() < kills:
        kill = random.randrange(workers), random.uniform(0.001, 0.03)
    longest = max(max(config.open_timeout, config.permit_timeout) for config in configs)
    listeners = _listeners(random, workers)
    return Plan(seed, circuits, scripts, kill, longest, listeners=listeners)


def _listeners(random: Random, workers: int) -> list[int]:
    """Nobody, two, or all."""
    return random.sample(range(workers), random.choice((0, min(2, workers), workers)))


def small_plan(seed: int, workers: int) -> Plan:
    """One circuit, a few steps, and no permit is lost: small enough to search all its orders."""
    random = Random(seed)
    name = f"{seed}.small"
    config = replace(_config(random), permit_timeout=60.0)
    scripts = []
    for _ in range(workers):
        steps = [_step(random, [name], 0.4) for _ in range(10)]
        script = [step for step in steps if step.what not in ("declare", "history")]
        scripts.append([Step("declare", name), *script])
    return Plan(seed, {name: config}, scripts, None, config.open_timeout)


def loss_plan(seed: int, workers: int = WORKERS, steps: int = STEPS) -> Plan:
    """The manager is killed in the middle. Nobody asks it for anything but permits meanwhile."""
    random = Random(seed)
    names = [f"{seed}.{number}" for number in range(random.randint(1, 2))]
    circuits = {name: _config(random) for name in names}
    if random.random() < SLOW_SHARE:  # one that opens is still open when the next manager begins
        circuits[names[0]] = replace(circuits[names[0]], open_timeout=OUTLASTS)
    scripts = []
    for _ in range(workers):
        script = [_step(random, names, 0.3) for _ in range(steps)]
        script = [step for step in script if step.what in ("call", "acquire", "end", "pause")]
        scripts.append([*(Step("declare", name) for name in names), *script])
    longest = max(max(each.open_timeout, each.permit_timeout) for each in circuits.values())
    loss = random.uniform(0.002, 0.06)
    return Plan(seed, circuits, scripts, None, longest, loss, _listeners(random, workers))


def _config(random: Random, slow: bool = False) -> CircuitConfig:
    """One whose timers fire many times in a run; `slow`: one whose fire once or never."""
    lost: LostPermit = random.choice(("failure", "ignore"))
    consistency: Consistency = random.choice(("strict", "leased"))
    return CircuitConfig(
        failure_threshold=random.randint(1, 4),
        success_threshold=random.randint(1, 3),
        open_timeout=random.choice((0.06, 0.1) if slow else (0.001, 0.003, 0.008)),
        max_concurrent_requests=random.randint(1, 3),
        permit_timeout=random.choice((0.06, 0.1) if slow else (0.004, 0.015, 0.03)),
        lost_permit=lost,
        consistency=consistency,
    )


def _step(random: Random, names: Sequence[str], failing: float, slow: bool = False) -> Step:
    name = random.choice(names)
    outcome = random.choices(("success", "failure", "neutral"), (1 - failing, failing, 0.05))[0]
    dice = random.random()
    if dice < 0.52:
        return Step("call", name, outcome)
    if dice < 0.68:
        return Step("acquire", name)
    if dice < 0.84:
        return Step("end", "", outcome)
    if dice < 0.90:
        return Step("pause", "", random.choice((0.0005, 0.001, 0.003)))
    if dice < 0.92:
        return Step("declare", name, _config(random, slow))
    return Step(random.choice(("stats", "stats", "metrics", "history", "reset", "flush")), name)


# -- processes -------------------------------------------------------------------------------------


class Worker:
    """A worker process of ours, and what it records."""

    def __init__(
        self, number: int, method: str, address: str, directory: Path, defect: str | None = None
    ) -> None:
        self.number = number
        path = directory / f"{number}.records"
        context: Any = multiprocessing.get_context(method)
        if method == "forkserver":
            # The second is not found by every Python before 3.13, which forgets our search path.
            context.set_forkserver_preload(["switchgear", "linearizability.worker"])
        self.orders: Connection
        self.orders, theirs = context.Pipe()
        self._process = context.Process(
            target=work, args=(theirs, number, address, str(path), defect), daemon=True
        )
        self._process.start()
        theirs.close()
        path.touch()
        self._records = path.open("rb")
        self._rest = b""

    def take_records(self) -> list[list[Any]]:
        """What it has recorded since the last time."""
        records, self._rest = history.unpack(self._rest + self._records.read())
        return records

    def kill(self) -> None:
        """End it without a word, and wait for that."""
        self._process.kill()
        self._process.join(PATIENCE)

    def end(self) -> None:
        """End it in good order, or by force."""
        with contextlib.suppress(OSError):
            self.orders.send(None)
        self._process.join(PATIENCE)
        if self._process.is_alive():
            self.kill()
        self._records.close()


def check(run: History) -> checker.Result:
    """Check a run of whatever kind.

    Raises:
        UndecidedError: See `checker.check`.
    """
    return checker.check(run) if run.lost is None else survival.check(run, run.lost)


def _count_changes(records: list[list[Any]]) -> Counter[str]:
    """How many changes the observer was told of, by circuit."""
    counts: Counter[str] = Counter()
    for kind, *_, frame in records:
        if kind == history.RECEIVED:
            message = history.read(frame)
            if isinstance(message, Event) and message.old is not message.new:
                counts[message.name] += 1
    return counts


def start_manager(address: str, program: Sequence[str]) -> subprocess.Popen[bytes]:
    """A manager of its own; returns once it answers."""
    read, write = os.pipe()
    command = [sys.executable, *program, "--log-level", "ERROR", "--address", address]
    command += ["--ready-fd", str(write), "--parent", str(os.getpid())]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(command, pass_fds=(write,), env=environment)
    os.close(write)
    ready, _, _ = select.select([read], [], [], PATIENCE)
    said = os.read(read, 100) if ready else b""
    os.close(read)
    if said != b"ready":
        process.kill()
        process.wait()
        raise RuntimeError(f"the manager did not start: {said!r}")
    return process


# -- the campaign ----------------------------------------------------------------------------------


@dataclass
class Tally:
    """What many runs came to.

    Attributes:
        histories: How many were checked.
        processes: How many workers there were, the killed ones included.
        killed: How many of them were killed.
        lost: How many managers were.
        operations, calls, kinds, changes: See `checker.Result`.
        wrong: By seed, what was wrong first.
        undecided: The seeds of those that the checker gave up on.
    """

    histories: int = 0
    processes: int = 0
    killed: int = 0
    lost: int = 0
    operations: int = 0
    calls: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)
    wrong: dict[int, str] = field(default_factory=dict)
    undecided: list[int] = field(default_factory=list)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.histories + other.histories,
            self.processes + other.processes,
            self.killed + other.killed,
            self.lost + other.lost,
            self.operations + other.operations,
            self.calls + other.calls,
            self.kinds + other.kinds,
            self.changes + other.changes,
            self.wrong | other.wrong,
            self.undecided + other.undecided,
        )

    def __str__(self) -> str:
        return (
            f"histories: {self.histories}, processes: {self.processes}, killed: {self.killed}, "
            f"managers killed: {self.lost}, operations checked: {self.operations}, "
            f"calls: {self.calls}, wrong: {len(self.wrong)}, undecided: {len(self.undecided)}"
        )


class Campaign:
    """A manager, its workers, and an observer: this process. Use it as a context manager.

    Args:
        directory: Where wrong histories are kept; None: nowhere.
        workers: How many there are at a time.
        program: What Python runs as the manager.
        defect: What is wrong with the workers' clients, see `client_mutants`; None: nothing.
    """

    def __init__(
        self,
        directory: Path | None = None,
        workers: int = WORKERS,
        program: Sequence[str] = ("-m", "switchgear.manager"),
        defect: str | None = None,
    ) -> None:
        self.tally = Tally()
        self._kept = directory
        self._program = program
        self._defect = defect
        self._workers: list[Worker] = []
        self._size = workers
        self._numbers = 0
        self._records: list[bytes] = []
        self._stack = contextlib.ExitStack()
        self._unchecked: tuple[dict[str, Any], list[list[Any]]] | None = None

    def __enter__(self) -> Campaign:
        with contextlib.ExitStack() as stack:
            place = tempfile.mkdtemp(prefix="sg-lin-")
            stack.callback(shutil.rmtree, place, ignore_errors=True)
            self._directory = Path(place)
            self._address = f"ipc://{place}/m"
            self._manager = start_manager(self._address, self._program)
            stack.callback(self._end_manager)
            recorder = Recorder(history.OBSERVER, self._records.append)
            stack.enter_context(recorder.attached())
            self._client = sg.connect(
                self._address, manager_loss="reject", acquire_timeout=PATIENCE
            )
            stack.callback(self._client.close)
            self._client.on_state_change("nobody's", lambda *change: None)
            self._epoch = self._epoch_of_records()
            stack.callback(self._end_workers)
            while len(self._workers) < self._size:
                self._workers.append(self._start_worker())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _epoch_of_records(self) -> int:
        records, _ = history.unpack(b"".join(self._records))
        frames = [record[-1] for record in records]
        return max(m.epoch for m in map(history.read, frames) if isinstance(m, Welcome))

    def _start_worker(self) -> Worker:
        self._numbers += 1
        self.tally.processes += 1
        fresh = Random(self._numbers).random() < FRESH_SHARE
        method = "spawn" if fresh else "forkserver"
        return Worker(self._numbers, method, self._address, self._directory, self._defect)

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.end()

    def _end_manager(self) -> None:
        self._manager.send_signal(signal.SIGTERM)
        try:
            self._manager.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._manager.kill()
            self._manager.wait()

    # -- one run -----------------------------------------------------------------------------------

    def run(self, one: Plan) -> None:
        """Do what the plan says. It is checked with the next one, or by `finish`."""
        self._records.clear()
        first = self._ping()
        for name, config in one.circuits.items():
            self._client.breaker(name, config).stats()
        listeners = [self._workers[place] for place in one.listeners]
        self._order(one, listeners, [Step("listen", name) for name in one.circuits])
        workers = {worker.orders: worker for worker in self._workers}
        for worker, script in zip(self._workers, one.scripts, strict=True):
            worker.orders.send(script)
        lost = None if one.loss is None else self._lose_manager(one.loss)
        killed = self._wait_for(workers, one)
        self._await_returns(one)
        quiet = time.monotonic() + one.longest
        self._check()  # the run before this one, while the timers of this one run out
        while (remaining := quiet - time.monotonic()) > 0:
            _idle.wait(remaining)
        self._ping()  # a turn of the manager's that comes after this instant begins with timers
        for name in one.circuits:
            self._client.stats(name)
            self._client.metrics(name)
        self._ping()
        records, _ = history.unpack(b"".join(self._records))
        changes = _count_changes(records)
        living = [worker for worker in listeners if worker.number not in killed]
        self._order(one, living, [Step("hear", name, changes[name]) for name in one.circuits])
        last = self._ping()
        records, _ = history.unpack(b"".join(self._records))
        for worker in self._workers:
            records += worker.take_records()
        header = {
            "seed": one.seed,
            "epoch": self._epoch,
            "first": first,
            "last": last,
            "names": list(one.circuits),
            "killed": list(killed.items()),
            "lost": lost,
            "listeners": [worker.number for worker in listeners],
        }
        self._unchecked = header, records
        if lost is not None:
            self._epoch = self._epoch_of_records()
        self._replace(killed)

    def _ping(self) -> int:
        answer: Pong = self._client.ping()
        return answer.operation

    def _lose_manager(self, after: float) -> float:
        """Kill it, and have another one take its place; say when."""
        _idle.wait(after)
        at = time.time()
        self._manager.kill()
        self._manager.wait()
        self._manager = start_manager(self._address, self._program)
        self.tally.lost += 1
        return at

    def _wait_for(self, workers: dict[Connection, Worker], one: Plan) -> dict[int, float]:
        """Until all have done what they should; who was killed, and when."""
        killed: dict[int, float] = {}
        if one.kill is not None:
            victim, after = one.kill
            _idle.wait(after)
            killed[self._workers[victim].number] = time.monotonic()
            self._workers[victim].kill()
            del workers[self._workers[victim].orders]
        self._await_all(list(workers), one)
        return killed

    def _order(self, one: Plan, workers: Sequence[Worker], script: list[Step]) -> None:
        """Have some of the workers do the same, and wait for that."""
        for worker in workers:
            worker.orders.send(script)
        self._await_all([worker.orders for worker in workers], one)

    def _await_all(self, waiting: list[Any], one: Plan) -> None:
        deadline = time.monotonic() + PATIENCE
        while waiting:
            ready = wait(waiting, 0.5)
            if self._manager.poll() is not None:
                raise RuntimeError(f"run {one.seed}: the manager has ended")
            if time.monotonic() > deadline:
                raise RuntimeError(f"run {one.seed}: a worker did not come to an end")
            for connection in ready:
                assert isinstance(connection, Connection)
                connection.recv()
                waiting.remove(connection)

    def _await_returns(self, one: Plan) -> None:
        """Until no permit is out: those of a killed worker come back, and soon, or it is wrong."""
        deadline = time.monotonic() + BACK_WITHIN
        for name in one.circuits:
            while self._client.stats(name).in_flight and time.monotonic() < deadline:
                _idle.wait(0.002)

    def _replace(self, killed: dict[int, float]) -> None:
        for place, worker in enumerate(self._workers):
            if worker.number in killed:
                self.tally.killed += 1
                worker.end()
                self._workers[place] = self._start_worker()

    def _check(self) -> None:
        if self._unchecked is None:
            return
        header, records = self._unchecked
        self._unchecked = None
        self._judge(header, records)

    def _judge(self, header: dict[str, Any], records: list[list[Any]]) -> None:
        seed, tally = header["seed"], self.tally
        tally.histories += 1
        try:
            result = check(history.build(header, records))
        except checker.UndecidedError:
            tally.undecided.append(seed)
            self._keep(header, records)
            return
        tally.operations += result.operations
        tally.calls += result.calls
        tally.kinds.update(result.kinds)
        tally.changes.update(result.changes)
        if result.wrong:
            tally.wrong[seed] = result.wrong[0]
            self._keep(header, records)

    def _keep(self, header: dict[str, Any], records: list[list[Any]]) -> None:
        if self._kept is not None:
            self._kept.mkdir(parents=True, exist_ok=True)
            history.write(self._kept / f"{header['seed']}.history", header, records)

    def history(self) -> History:
        """The last run, which is not checked yet."""
        assert self._unchecked is not None
        return history.build(*self._unchecked)

    def finish(self) -> Tally:
        """Check the last run too."""
        self._check()
        return self.tally


def run(
    seeds: Sequence[int],
    directory: Path | None = None,
    *,
    steps: int = STEPS,
    workers: int = WORKERS,
    kills: float = KILL_SHARE,
    losses: bool = False,
    program: Sequence[str] = ("-m", "switchgear.manager"),
    defect: str | None = None,
    progress: Callable[[Tally], None] = lambda tally: None,
    enough: Callable[[Tally], bool] = lambda tally: False,
) -> Tally:
    """Run a plan for each seed, and check them.

    Args:
        seeds: Of the plans.
        directory: Where wrong histories are kept.
        steps: Of each worker.
        workers: How many there are.
        kills: The share of the plans in which a worker is killed.
        losses: In every plan the manager is killed instead.
        program: What Python runs as the manager.
        defect: What is wrong with the workers' clients; None: nothing.
        progress: Told after each run.
        enough: Whether to stop.
    """
    with Campaign(directory, workers, program, defect) as campaign:
        for seed in seeds:
            if losses:
                campaign.run(loss_plan(seed, workers, steps))
            else:
                campaign.run(plan(seed, workers, steps, kills))
            progress(campaign.tally)
            if enough(campaign.tally):
                break
        return campaign.finish()
