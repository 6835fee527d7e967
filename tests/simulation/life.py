"""One simulated life: processes that call, what befalls them, and whether all was as promised.

A seed decides everything: how many processes and circuits there are, how they are configured, what
kinds of misfortune there are at all, and when each strikes. In the end all misfortune stops: then
nothing may be stuck, and all that ended must have been counted, once.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple
from unittest import mock

from switchgear.client import reports
from switchgear.client.claim import ThreadWaiter
from switchgear.config import CircuitConfig
from switchgear.manager import acks
from switchgear.states import Outcome, State
from switchgear.wire import GetHistory, GetMetrics, GetStats, Reset

from .journals import Filed, Remembered
from .managers import Journal, Killed, Manager
from .network import Network, Weather
from .oracle import Oracle
from .processes import Process, virtual
from .world import IDLE, START, Violation, World

NAMES: Final = ("a", "b", "c")
PATIENCE: Final = 8  # calls; answers may be slower than callers wait
QUESTIONS: Final = (GetStats, GetMetrics, GetHistory)
CALLS: Final = 260  # that a life begins, about; what comes of them is twice as many events
EASY: Final = 200  # messages that may wait to be read, and never do
FILED: Final = 25  # one life in so many has a real file for its journal


class Fate(NamedTuple):
    """How often each thing befalls a life: at so many moments of it, on average."""

    cuts: float
    process_deaths: float
    departures: float
    forks: float
    process_stops: float
    manager_deaths: float
    deaths_over_the_journal: float
    manager_stops: float
    orderly_ends: float
    journals_lost: float
    resets: float
    configurations: float
    suspensions: float
    times_of_day: float


# Most lives know some kinds of misfortune and are spared others; together they hide each other.
WORST: Final = Fate(
    cuts=6,
    process_deaths=2,
    departures=1,
    forks=1,
    process_stops=4,
    manager_deaths=2,
    deaths_over_the_journal=2,
    manager_stops=1,
    orderly_ends=0.5,
    journals_lost=0.3,
    resets=2,
    configurations=2,
    suspensions=0.5,
    times_of_day=1,
)


@contextlib.contextmanager
def limits(*, cramped: bool) -> Iterator[None]:
    """Have limits of which the few calls of a life are aware, or those that there are."""
    with contextlib.ExitStack() as stack:
        if cramped:
            stack.enter_context(mock.patch.object(reports, "LATENCY_WINDOW", 3))
            stack.enter_context(mock.patch.object(acks, "ACKS_TOGETHER", 2))
        yield


class Life:
    """See the module.

    Args:
        seed: Of everything.
        tracing: Keep a line for each thing that happens.
    """

    def __init__(self, seed: int, *, tracing: bool = False) -> None:
        self.seed = seed
        self.world = world = World(seed, tracing=tracing)
        chance = world.chance
        self.seen: Counter[str] = Counter()  # how often each kind of thing happened
        self._skew = world.between(-900.0, 5_000.0) if chance() < 0.1 else 0.0
        self._utc_offset = 1.6e9
        self._stillborn = world.random.choice([0.0, 0.0, 0.3])  # the share of managers
        self._busy = world.random.choice([0.0, 0.0, 0.1, 0.5])
        self._fate = Fate(*(mean * 2 * chance() if chance() < 0.5 else 0.0 for mean in WORST))
        slow = world.random.choice([0.0, 0.01, 0.05])
        twice = world.random.choice([0.0, 0.0, 0.02, 0.2])
        unread = world.random.choice([1, 4, 20, EASY])
        weather = Weather(slow, world.random.choice([0.02, 0.3]), twice, unread)
        self.network = Network(world, weather)
        self.oracle = Oracle(world, skewed=self._skew != 0.0)
        self.oracle.life = self
        self._configs = {name: self._config() for name in NAMES[: 1 + int(chance() * 3)]}
        self._most_probes = {n: c.max_concurrent_requests for n, c in self._configs.items()}
        self._health = dict.fromkeys(self._configs, 1.0)  # the share of calls that succeed
        self._pace = world.random.choice([0.001, 0.005, 0.02])  # seconds between a process's calls
        self.impatience = world.random.choice([0.0, 0.0, 0.3])  # of callers: that are cancelled
        self._cramped = chance() < 0.25
        self.unnoticed = world.random.choice([0.0, 0.0, 0.0, 0.3])  # ends of connections
        # Drawn apart, so that what is rare in the lives without is where it was.
        self._full_disks = random.Random(f"disks of {seed}").choice([0, 0, 0, 1, 2])
        self._resting = False  # nothing new is begun
        self._filed = Filed(tempfile.mkdtemp()) if seed % FILED == 0 else None
        self._journal: Journal = self._filed or Remembered()
        self._manager: Manager | None = None
        self.processes: list[Process] = []
        self._everybody: list[Process] = []

    # -- what others ask ---------------------------------------------------------------------------

    @property
    def manager_clock(self) -> float:
        """Seconds on the manager's clock."""
        return self.world.now + self._skew

    def most_probes(self, name: str) -> int:
        """How many may run at once, in whatever configuration there has been."""
        return self._most_probes[name]

    def outcome(self, name: str) -> Outcome:
        """How a call of a circuit ends, as healthy as the service is now."""
        drawn = self.world.chance()
        if drawn < 0.03:
            return Outcome.NEUTRAL
        return Outcome.SUCCESS if self.world.chance() < self._health[name] else Outcome.FAILURE

    def seconds(self) -> float:
        """How long a call takes: mostly not long, and sometimes much too long."""
        drawn = self.world.chance()
        if drawn < 0.4:
            return 0.0
        return self.world.between(0.0, 0.004 if drawn < 0.85 else 0.1 if drawn < 0.97 else 2.0)

    # -- from the beginning to the end -------------------------------------------------------------

    def run(self) -> None:
        """Live. Raises Violation."""
        try:
            with virtual(self.world), limits(cramped=self._cramped):
                self._begin_manager()
                for _ in range(2 + int(self.world.chance() * 6)):
                    self._begin_process()
                seconds = CALLS * self._pace / len(self.processes)
                self._plan_misfortunes(seconds)
                self.world.run(START + seconds)
                self._come_to_rest()
        finally:
            for process in self._everybody:
                process.die()  # where something was broken, calls still run
            if self._filed is not None:
                self._filed.close()

    def _config(self) -> CircuitConfig:
        choice = self.world.random.choice
        return CircuitConfig(
            failure_threshold=choice([1, 2, 3, 5]),
            success_threshold=choice([1, 2, 3]),
            open_timeout=choice([0.005, 0.03, 0.2, 1.0]),
            max_concurrent_requests=choice([1, 1, 2, 3]),
            permit_timeout=choice([0.02, 0.5, 3.0]),
            lost_permit=choice(["failure", "failure", "ignore"]),
            consistency=choice(["leased", "leased", "strict"]),
        )

    # -- managers ----------------------------------------------------------------------------------

    def _begin_manager(self) -> object:
        if self._manager is not None:
            return IDLE
        # As the server takes it from the time of day, which may have been set back.
        epoch = int((self.world.now + self._utc_offset) * 1e6)
        self.world.note("a manager", f"begins: {epoch}")
        if self.world.chance() < self._stillborn and not self._resting:
            self._journal.doom(self.world.chance())
        parts = self.world, self.network, self.oracle, self._journal
        try:
            self._manager = Manager(epoch, *parts, self._skew, self._utc_offset, self._busy)
        except Killed:
            self.world.note("the manager", "died as it began")
            self.seen["managers that died as they began"] += 1
            self._journal.spare()
            self.world.after(self._absence(), self._begin_manager)
            return None
        self.network.listen(self._manager)
        return None

    def manager_died(self, how: str) -> None:
        """It is no more; somebody will start another one."""
        manager = self._manager
        assert manager is not None
        self.world.note("the manager", f"died {how}")
        self.seen[f"managers that died {how}".rstrip()] += 1
        manager.dead = True
        self._manager = None
        self._journal.spare()
        self.network.manager_died()
        self.world.after(self._absence(), self._begin_manager)

    def _absence(self) -> float:
        return self.world.between(0.002, 0.06 if self.world.chance() < 0.85 else 1.5)

    def _kill_manager(self) -> object:
        if self._manager is None:
            return IDLE
        return self.manager_died("")

    def _doom_manager(self) -> object:
        if self._manager is None:
            return IDLE
        return self._journal.doom(self.world.chance())

    def _stop_manager(self) -> object:
        manager = self._manager
        if manager is None or manager.stopped:
            return IDLE
        self.world.note("the manager", "is stopped")
        self.seen["managers stopped"] += 1
        manager.stopped = True
        self.world.after(self._absence(), manager.go_on)
        return None

    def _end_manager(self) -> object:
        manager = self._manager
        if manager is None or manager.stopped:
            return IDLE
        try:
            manager.end()
        except Killed:  # over its journal
            self.world.note("the manager", "was killed as it ended")
        self.manager_died("in good order")
        return None

    def _lose_journal(self) -> object:
        if self._manager is None or self._filed is not None:
            return IDLE
        self.manager_died("and its journal is lost")
        self._journal = Remembered()
        self.oracle.loses_journal()
        return None

    def _fill_disk(self) -> None:
        self.world.note("the disk", "is full")
        self.seen["disks that were full"] += 1
        self._journal.fill(self.world.chance())
        self.world.after(self.world.between(0.0, 1.0), self._clear_disk, self._journal)

    def _clear_disk(self, journal: Journal) -> None:
        self.world.note("the disk", "has room")
        journal.clear()

    # -- processes ---------------------------------------------------------------------------------

    def _begin_process(self) -> Process:
        number = len(self._everybody) + 1
        process = Process(number, self.world, self.network, self.oracle, dict(self._configs))
        self._everybody.append(process)
        self.processes.append(process)
        if self.world.chance() < 0.6:
            process.subscribe()
        self._plan_call(process)
        return process

    def _plan_call(self, process: Process) -> None:
        self.world.after(self.world.between(0.0, 2 * self._pace), self._call, process)

    def _call(self, process: Process) -> object:
        if self._resting or process not in self.processes or process.defer(self._call, process):
            return IDLE  # a process that is not among them takes leave
        drawn = self.world.chance()
        name = NAMES[int(drawn * len(self._configs))]
        process.begin(name, self.seconds())
        if drawn < 0.02:
            self._ask(process, name)
        self._plan_call(process)
        return None

    def _ask(self, process: Process, name: str) -> None:
        if self.world.chance() < 0.5:
            process.flush()
        else:
            question = self.world.random.choice(QUESTIONS)
            process.ask(lambda number: question(number, name), name)

    def _any(self) -> Process | None:
        living = [process for process in self.processes if not process.dead]
        return self.world.random.choice(living) if living else None

    def _kill_process(self) -> object:
        process = self._any()
        if process is None:
            return IDLE
        self.world.note(str(process), "is killed")
        self.seen["processes killed"] += 1
        process.die()
        self.processes.remove(process)
        # Most systems tell of the end of a process, and those that do not have to wait.
        if self.world.chance() < 0.8 and self._manager is not None:
            self.world.after(self.world.between(0.002, 0.005), self._manager.bury, process)
        self._begin_process()
        return None

    def _end_process(self) -> object:
        process = self._any()
        if process is None or process.stopped:
            return IDLE
        self.world.note(str(process), "takes leave")
        self.seen["processes that took leave"] += 1
        self.processes.remove(process)
        self._begin_process()
        ended = self.oracle.ended(process)
        self.world.after(0.05, self._leave, process, process.flush(), ended)
        return None

    def _leave(self, process: Process, flush: ThreadWaiter, ended: int) -> object:
        if process.defer(self._leave, process, flush, ended):
            return IDLE
        if flush.answered and self.oracle.ended(process) == ended:
            self.oracle.settled(process)
        process.link._post(process.link._session.goodbye)
        return process.die()

    def _fork(self) -> object:
        parent = self._any()
        if parent is None or len(self.processes) > 10:
            return IDLE
        self.world.note(str(parent), "forks")
        self.seen["forks"] += 1
        child = self._begin_process()
        for name, gate in parent.gates.items():
            child.gates[name].lease = gate.lease
            child.gates[name].failing = list(gate.failing)
        child.forget()
        return None

    def _stop_process(self) -> object:
        process = self._any()
        if process is None or process.stopped:
            return IDLE
        self.world.note(str(process), "is stopped")
        self.seen["processes stopped"] += 1
        process.stopped = True
        self.world.after(self._absence(), process.go_on)
        return None

    # -- everything else that may befall them ------------------------------------------------------

    def _plan_misfortunes(self, seconds: float) -> None:
        misfortunes: list[Callable[[], object]] = [
            *(self._cut, self._kill_process, self._end_process, self._fork, self._stop_process),
            *(self._kill_manager, self._doom_manager, self._stop_manager, self._end_manager),
            *(self._lose_journal, self._reset, self._configure, self._suspend, self._set_clock),
        ]
        for misfortune, mean in zip(misfortunes, self._fate, strict=True):
            times = int(mean) + (self.world.chance() < mean % 1)
            for _ in range(times):
                self.world.after(seconds * self.world.chance(), misfortune)
        for name in self._configs:
            for _ in range(1 + int(6 * self.world.chance())):
                self.world.after(seconds * self.world.chance(), self._change_health, name)
        for _ in range(self._full_disks):
            self.world.after(seconds * self.world.chance(), self._fill_disk)

    def _change_health(self, name: str) -> None:
        self._health[name] = self.world.random.choice([0.0, 0.0, 0.5, 0.9, 1.0, 1.0])
        self.world.note(name, f"succeeds {self._health[name]:.0%}")

    def _cut(self) -> object:
        connections = self.network.connections()
        if not connections:
            return IDLE
        connection = self.world.random.choice(connections)
        self.seen["connections cut"] += 1
        self.world.note(str(connection.process), f"is cut off from {connection.socket}")
        return self.network.cut(connection)

    def _reset(self) -> object:
        process, name = self._any(), self.world.random.choice(list(self._configs))
        if process is None or process.stopped:
            return IDLE
        process.ask(lambda number: Reset(number, name), name)
        return None

    def _configure(self) -> object:
        process, name = self._any(), self.world.random.choice(list(self._configs))
        if process is None or process.stopped:
            return IDLE
        config = self._config()
        self._most_probes[name] = max(self._most_probes[name], config.max_concurrent_requests)
        process.link.declare(name, config)
        return None

    def _suspend(self) -> None:
        self.world.note("the machine", "is suspended")
        self.seen["machines suspended"] += 1
        self.world.jump(self.world.between(0.01, 5.0))

    def _set_clock(self) -> object:
        self._utc_offset = self.world.between(1.5e9, 1.7e9)
        if self._manager is None:
            return IDLE
        self._manager.set_time_of_day(self._utc_offset)
        return None

    # -- the end -----------------------------------------------------------------------------------

    def _come_to_rest(self) -> None:
        """No more misfortune: is anything stuck, and has everything been counted?"""
        self._resting = True
        self.impatience = 0.0
        if self.world.chance() < 0.5:
            self._fall_silent()
        # Where one message that waits is too many, the answers to a burst of questions never fit.
        self.network.weather = self.network.weather._replace(most_unread=EASY)
        self._wake_all()
        self._pass(3.0)  # every call ends, and who is still cut off notices
        self._wake_all()
        self._pass(1.5)
        for process in self.processes:
            for name in self._configs:
                process.begin(name, 0.0)  # before anything else tells it that a manager is there
        self._pass(1.0)
        self._settle()
        self._admit_again()
        self._decide_again()

    def _pass(self, seconds: float) -> None:
        self.world.run(self.world.now + seconds)

    def _wake_all(self) -> None:
        if self._manager is not None:
            self._manager.go_on()
        for process in self.processes:
            process.go_on()

    def _fall_silent(self) -> None:
        """G4: every process is stopped, for ever as far as a manager can tell."""
        self.world.note("everybody", "falls silent")
        for process in self.processes:
            process.stopped = True
        if self._manager is not None:
            self._manager.go_on()
        self._pass(2.0)  # who was to go on by then has
        for process in self.processes:
            process.stopped = True
        self._pass(5.0)
        for name, circuit in self.oracle.reference.circuits.items():
            if circuit.probes or circuit.state is State.OPEN:
                raise Violation(f"G4: {name} is {circuit.state}, waiting for {circuit.probes}")

    def _settle(self) -> None:
        flushes = [(process, process.flush()) for process in self.processes]
        self._pass(3.0)
        for process, flush in flushes:
            if not flush.answered:
                raise Violation(f"G10: {process} cannot hand over what it has")
            process.link._session.check()
            self.oracle.settled(process)
            self.oracle.saw_all(process)
            self.oracle.heard_verdicts(process)
        assert self._manager is not None
        self._manager.actor.check()
        self.oracle.nothing_is_out(self.processes)
        for process in self.processes:
            for name in self._configs:
                for question in QUESTIONS:
                    process.ask(lambda number, q=question, of=name: q(number, of), name)
        self._pass(2.5)

    def _admit_again(self) -> None:
        """G4: somebody new is let through, everywhere, and what it says is heard."""
        self._health = dict.fromkeys(self._configs, 1.0)
        self._resting = False
        process = self._begin_process()
        self._resting = True
        for name in self._configs:
            process.begin(name, 0.0)
            self._pass(6.0)
            self.oracle.was_let_through(process, name)

    def _decide_again(self) -> None:
        """G1, G3: nobody goes on alone when there is a manager."""
        for process in self.processes:
            for name in self._configs:
                before = self.oracle.decided(process, name)
                for _ in range(PATIENCE):
                    process.begin(name, 0.0)
                    self._pass(1.0)
                    if self.oracle.decided(process, name) > before:
                        break
                else:
                    raise Violation(f"G1, G3: {process} decides {name} alone, and nobody is gone")
