"""A client's process: the real session, leases, breakers and standby, and what its threads do.

`Link` does with events what the real one does with a thread and sockets; everything that decides is
the package's own code. Breakers are the real ones, on a client of which they see as much as they
use. They read the clock themselves, so `virtual` gives them one.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final
from unittest import mock

from switchgear.circuit import Totals
from switchgear.client import breaker, permit
from switchgear.client.breaker import Breaker
from switchgear.client.claim import Claim, Hold
from switchgear.client.lease import Gate, Lease, Settled
from switchgear.client.link import FLUSH_INTERVAL
from switchgear.client.permit import Permit
from switchgear.client.reports import One, Whole
from switchgear.client.session import Answer, Grant, Session
from switchgear.client.standby import Standby, StandbyPermit
from switchgear.config import CircuitConfig
from switchgear.errors import CallNotPermittedError
from switchgear.manager.sessions import CONTROL, DATA
from switchgear.states import Outcome
from switchgear.wire import FROM_CONTROL, FROM_DATA, Message, decode

from .world import IDLE, World

if TYPE_CHECKING:
    from .network import Connection, Network
    from .oracle import Oracle

ACQUIRE_TIMEOUT: Final = 0.05  # seconds


class Down(Exception):
    """What a call fails with."""


class Waiter(Claim):
    """A task that waits for its permit."""

    __slots__ = ("call", "overdue")

    def __init__(self, link: Link, name: str | None) -> None:
        super().__init__(link, name)  # type: ignore[arg-type]  # it reports there, and no more
        self.overdue = False
        self.call: Call | None = None  # that is resumed; None: it has not begun to wait

    def complete(self, answer: Answer) -> None:
        """See `session.Waiter`."""
        if not self.answered:
            self.hold.answer = answer
            self.answered = True
            if self.call is not None and not self.overdue:
                self.call.resume_soon()

    def expire(self) -> object:
        """It has waited as long as it wanted to."""
        if self.answered or self.overdue:
            return IDLE
        self.overdue = True
        return None if self.call is None else self.call.resume()

    def __await__(self) -> Generator[Waiter, None, None]:
        if not (self.answered or self.overdue):
            yield self


class Asker:
    """Somebody who has asked on the control connection, or for a flush."""

    __slots__ = ("answer", "answered")

    def __init__(self) -> None:
        self.answer: Answer = None
        self.answered = False

    def complete(self, answer: Answer) -> None:
        """See `session.Waiter`."""
        assert not self.answered, "one request was answered twice"
        self.answer, self.answered = answer, True


class Call:
    """One call that asks for its permit: begun, perhaps waiting, running, ended."""

    __slots__ = ("_coroutine", "_floor", "_waiter", "name", "permit", "process")

    def __init__(self, process: Process, name: str) -> None:
        self.process = process
        self.name = name
        self.permit: Permit | None = None
        self._floor = process.oracle.asks(process, name)
        self._waiter: Waiter | None = None
        self._coroutine = process.breakers[name].acquire_async()
        self.resume()

    def resume_soon(self) -> None:
        """Its answer is there; until it has the processor it takes a little."""
        self.process.world.after(0.0001 * self.process.world.chance(), self.resume)

    def resume(self) -> object:
        """Go on until it has to wait, is rejected, or runs."""
        process = self.process
        if process.defer(self.resume):
            return IDLE
        try:
            self._waiter = self._coroutine.send(None)
        except StopIteration as ended:
            self.permit = ended.value
            process.runs(self, self._floor)
        except CallNotPermittedError:
            answer = None if self._waiter is None else self._waiter.answer
            process.oracle.rejected(process, self.name, answer, self._floor)
        else:
            self._waiter.call = self
        return None


class Link:
    """As the real one: a session and its two connections. See the module."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.session = Session(process.token, process.number, process.gates, self)
        self._world = process.world
        self._lines: dict[int, Connection | None] = {}  # None: there is none yet
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._dirty: deque[Lease] = deque()
        self._collect_at = -math.inf
        self._wakes_at = math.inf
        self._lost = False
        self._turning = False

    # -- what breakers and leases call -------------------------------------------------------------

    def acquire_async(self, name: str, timeout: float) -> Awaitable[Waiter | None]:
        """See the real one."""
        return self._acquire(name, timeout)

    async def _acquire(self, name: str, timeout: float) -> Waiter | None:
        world = self._world
        deadline = world.now + timeout
        waiter = Waiter(self, name)
        self.post(self.session.acquire, waiter, name, deadline, world.now)
        if not waiter.answered:
            world.at(deadline, waiter.expire)
            await waiter
        if waiter.answered:
            return waiter
        self.post(self._abandon, waiter, True)
        return None

    def _abandon(self, waiter: Waiter, timed_out: bool) -> None:
        if not waiter.answered:
            self.session.abandon(waiter, timed_out=timed_out)
        else:
            self._report(waiter.hold, Outcome.NEUTRAL)

    def report(
        self,
        hold: Hold,
        outcome: Outcome,
        duration: float = 0.0,
        error: str | None = None,
        settled: Settled | None = None,
    ) -> None:
        """See the real one."""
        if self.process.dead:
            return
        assert hold.name is not None
        gate = self.process.gates[hold.name]
        if outcome is Outcome.FAILURE:
            gate.suspend(self._world.now)
        args = (hold, outcome, duration, error, settled)
        probe = not isinstance(hold.answer, Grant) or hold.answer.probe
        if outcome is Outcome.SUCCESS and not probe and not gate.lease.runs:
            self._inbox.append((self._report, args))
            self._wake_by(self._world.now + 0.0002)
        else:
            self.post(self._report, *args)

    def _report(
        self,
        hold: Hold,
        outcome: Outcome,
        duration: float = 0.0,
        error: str | None = None,
        settled: Settled | None = None,
    ) -> None:
        if not hold.reported and isinstance(hold.answer, Grant):
            assert hold.name is not None
            now = self._world.now
            rest = (outcome, duration, error, settled)
            self.session.report(hold.name, hold.answer, *rest, now=now, owed=hold)

    def rouse(self, lease: Lease) -> None:
        """See `Outlet`."""
        if not self.process.dead:
            self._dirty.append(lease)
            self._wake_by(max(self._world.now, self._collect_at))

    def fail(
        self, lease: Lease, duration: float, error: str | None, settled: Settled | None
    ) -> None:
        """See `Outlet`."""
        if not self.process.dead:
            now = self._world.now
            self.process.gates[lease.name].suspend(now)
            grant = (lease.epoch, None, lease.generation)
            failure = One(lease.name, grant, Outcome.FAILURE, duration, error, settled)
            self.post(lambda: self.session.report_failure(failure, lease, now=now))

    def report_totals(self, name: str, totals: Totals) -> None:
        """See the real one."""
        self.post(lambda: self.session.report_totals(Whole(name, totals), now=self._world.now))

    def ask(
        self, build: Callable[[int], Message], circuits: tuple[str, ...] = (), *, within: float
    ) -> Asker:
        """Ask on the control connection, and wait that many seconds."""
        asker = Asker()

        def ask() -> None:
            self._collect()
            self.session.ask(asker, build, circuits)

        self.process.tell()
        self.post(ask)
        self._world.after(within, self._give_up, asker)
        return asker

    def flush(self) -> Asker:
        """Have everything taken in that was reported."""
        asker = Asker()

        def flush() -> None:
            self._collect()
            self.session.flush(asker)

        self.process.tell()
        self.post(flush)
        return asker

    def subscribe(self) -> None:
        """Have events collected."""
        self.post(self.session.subscribe, Asker())

    def _give_up(self, asker: Asker) -> object:
        if asker.answered or self.process.defer(self._give_up, asker):
            return IDLE
        self.post(lambda: self.session.abandon(asker, timed_out=True))
        return None

    # -- what the network does ---------------------------------------------------------------------

    def connected(self, connection: Connection) -> None:
        """A manager can be written to."""
        self._lines[connection.socket] = connection
        self.session.connected(connection.socket, self._world.now)
        self._turn()

    def disconnected(self, connection: Connection) -> object:
        """It can no longer."""
        if self.process.defer(self.disconnected, connection):
            return IDLE
        if self._lines.get(connection.socket) is not connection:
            return IDLE
        self._world.note(str(self.process), f"is disconnected from {connection.socket}")
        del self._lines[connection.socket]
        self.session.disconnected(connection.socket)
        self._turn()
        return None

    def arrive(self, connection: Connection, frame: bytes) -> None:
        """A message has come."""
        socket = connection.socket
        if self._lines.get(socket) is not connection:
            return
        self._world.witness(frame)
        message = decode(frame, FROM_DATA if socket == DATA else FROM_CONTROL)
        if self._world.tracing:
            self._world.note(f"> {self.process}", message)
        self.process.oracle.hears(self.process, socket, message)
        self.session.received(socket, message, self._world.now)
        self._turn()

    # -- turns -------------------------------------------------------------------------------------

    def post(self, command: Callable[..., None], *args: object) -> None:
        """Have a command done in a turn."""
        self._inbox.append((command, args))
        self._turn()

    def _turn(self) -> None:
        if self._turning:
            return  # whoever is at it comes to what was posted
        self._turning = True
        session = self.session
        while True:
            while self._inbox:
                command, args = self._inbox.popleft()
                command(*args)
            if self._world.now >= session.knock_at:
                session.knock(self._world.now)
            if self._dirty and self._world.now >= self._collect_at:
                self._collect()
            if len(session.wanted) > len(self._lines):
                self._connect()
            outbox, session.outbox = session.outbox, []
            for socket, message in outbox:
                connection = self._lines.get(socket)
                if connection is not None:
                    connection.send_up(message)
            self._hand_over()
            if not (self._inbox or session.outbox or session.answers or session.events):
                break
        self._turning = False
        self._plan()

    def _hand_over(self) -> None:
        session = self.session
        answers, session.answers = session.answers, []
        for waiter, answer in answers:
            waiter.complete(answer)
        events, session.events = session.events, []
        if events:
            self.process.oracle.learns(self.process, events)
        if session.lost is not self._lost:
            self._lost = session.lost
            if not self._lost:
                self.process.standby.end()

    def _connect(self) -> None:
        for socket in (DATA, CONTROL):
            if socket in self.session.wanted and socket not in self._lines:
                self._lines[socket] = None
                self.process.network.want(self.process, socket)

    def _collect(self) -> None:
        now = self._world.now
        while self._dirty:
            lease = self._dirty.popleft()
            lease.idle = True
            self.session.collect(lease, now=now)
        self._collect_at = now + FLUSH_INTERVAL

    def _plan(self) -> None:
        """Wake up when there is something to do."""
        self._wake_by(min(self.session.knock_at, self._collect_at if self._dirty else math.inf))

    def _wake_by(self, when: float) -> None:
        if when < self._wakes_at:
            self._wakes_at = when
            self._world.at(when, self._wake, when)

    def _wake(self, due: float) -> object:
        if due != self._wakes_at or self.process.defer(self._wake, due):
            return IDLE
        self._wakes_at = math.inf
        now = self._world.now
        idle = not self._inbox and now < self.session.knock_at
        if idle and not (self._dirty and now >= self._collect_at):
            self._plan()
            return IDLE  # what it was to do was done meanwhile
        self._turn()
        return None


class Process:
    """One process: as much of a `Client` as breakers see, and the calls that run.

    Args:
        number: Its own, of all there ever are.
        world: Where it is.
        network: How it reaches managers.
        oracle: Who watches it.
        configs: The circuits that it declares.
    """

    def __init__(
        self,
        number: int,
        world: World,
        network: Network,
        oracle: Oracle,
        configs: dict[str, CircuitConfig],
    ) -> None:
        self.number = number
        self.world = world
        self.network = network
        self.oracle = oracle
        self.token = b"%016d" % number
        self.dead = False
        self.stopped = False
        self.running: list[Call] = []
        self.leased: list[tuple[str, Lease]] = []  # calls that run under a lease, and take time
        self.gates: dict[str, Gate] = {name: Gate() for name in configs}
        self.configs = configs
        self.standby = Standby(self._hand_over, clock=lambda: world.now)
        self.settings = SimpleNamespace(acquire_timeout=ACQUIRE_TIMEOUT, manager_loss="local")
        self.address = "the manager"
        self.link = Link(self)
        self.breakers = {
            name: Breaker(_Seen(self), name, config)  # type: ignore[arg-type]  # as much as it uses
            for name, config in configs.items()
        }
        for name, config in configs.items():
            self.link.session.declare(name, config)
        self._deferred: list[tuple[Callable[..., object], tuple[object, ...]]] = []
        oracle.process_begins(self)

    def __str__(self) -> str:
        return f"process {self.number}"

    # -- being stopped, going on, dying, forking ---------------------------------------------------

    def defer(self, action: Callable[..., object], *args: object) -> bool:
        """Whether it cannot do this: it is stopped, and will when it goes on, or it is dead."""
        if self.stopped and not self.dead:
            self._deferred.append((action, args))
        return self.stopped or self.dead

    def go_on(self) -> object:
        """It was stopped, and runs again: all that has come happens now, in order."""
        if self.dead or not self.stopped:
            return IDLE
        self.stopped = False
        deferred, self._deferred = self._deferred, []
        for action, args in deferred:
            self.world.after(0.0, action, *args)
        return None

    def die(self) -> None:
        """It is killed."""
        self.dead = True
        for call in self.running:
            assert call.permit is not None
            call.permit._ended = True  # there is nobody left to give it back
        self.oracle.process_dies(self)
        for connection in self.network.of(self):
            self.world.after(self.world.between(0.0, 0.002), self.network.cut, connection)

    def forget(self) -> None:
        """Be what a fork leaves of its parent's client in the child: gates that are closed."""
        for gate in self.gates.values():
            gate.close()

    def tell(self) -> None:
        """As `Client._told_link`."""
        if self.standby.active:
            self.standby.tell()

    def _hand_over(self, name: str, totals: Totals) -> None:
        if not self.dead:
            self.link.report_totals(name, totals)

    # -- calls -------------------------------------------------------------------------------------

    def begin(self, name: str, seconds: float) -> None:
        """Begin a call, as `execute` does."""
        lease, now = self.gates[name].lease, self.world.now
        if now < lease.term.until:
            self._begin_leased(name, lease, seconds)
        elif now < lease.rejects_until:
            with contextlib.suppress(CallNotPermittedError):
                self.oracle.rejects_unasked(self, name, lease)
                self.breakers[name].execute(_never)
        else:
            Call(self, name)

    def _begin_leased(self, name: str, lease: Lease, seconds: float) -> None:
        self.oracle.runs_leased(self, name, lease)
        if seconds == 0.0:
            self._execute(name)
        else:
            # What execute() does between the two ends of a call is to wait for the function.
            self.leased.append((name, lease))
            self.world.after(seconds, self._end_leased, name, lease)

    def _execute(self, name: str) -> None:
        outcome, text = self.oracle.outcome(self, name)

        def function() -> None:
            if outcome is Outcome.FAILURE:
                raise Down(text)
            if outcome is Outcome.NEUTRAL:
                raise KeyboardInterrupt

        with contextlib.suppress(Down, KeyboardInterrupt):
            self.breakers[name].execute(function)

    def _end_leased(self, name: str, lease: Lease) -> object:
        if self.defer(self._end_leased, name, lease):
            return IDLE
        self.leased.remove((name, lease))
        outcome, text = self.oracle.outcome(self, name)
        if outcome is Outcome.SUCCESS:
            lease.successes.append(0.001)
            if lease.idle:
                lease.rouse()
        else:
            lease.report(outcome, 0.001, text)
        return None

    def runs(self, call: Call, floor: int) -> None:
        """A call has its permit."""
        self.running.append(call)
        self.oracle.runs(self, call, floor)
        self.world.after(self.oracle.life.seconds(), self.end, call)

    def end(self, call: Call) -> object:
        """A call that asked for its permit ends."""
        if self.defer(self.end, call) or call not in self.running:
            return IDLE
        self.running.remove(call)
        assert call.permit is not None
        alone = isinstance(call.permit._owed, StandbyPermit)
        outcome, text = self.oracle.outcome(self, call.name, alone=alone)
        self.oracle.ends(call)
        if outcome is Outcome.SUCCESS:
            call.permit.success()
        elif outcome is Outcome.FAILURE:
            call.permit.failure(text)
        else:
            call.permit.release()
        return None


class _Seen:
    """What a breaker sees of its client."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.settings = process.settings
        self.standby = process.standby
        self.address = process.address

    def gate(self, name: str) -> Gate:
        return self._process.gates[name]

    def link(self) -> Link:
        return self._process.link

    def config_of(self, name: str) -> CircuitConfig:
        return self._process.gates[name].config or self._process.configs[name]

    def note_no_room(self, name: str) -> None:
        raise AssertionError(f"there is room for {name}")


def _never() -> None:
    raise AssertionError("a call ran that was rejected")


@contextlib.contextmanager
def virtual(world: World) -> Iterator[None]:
    """Give breakers and permits this world's time."""

    def clock() -> float:
        return world.now

    with (
        mock.patch.object(breaker, "monotonic", clock),
        mock.patch.object(permit, "time", SimpleNamespace(perf_counter=clock)),
    ):
        yield
