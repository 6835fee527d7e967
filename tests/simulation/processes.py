"""A client's process: the real session, leases, breakers and standby, and what its threads do.

`Link` is the real one but for its thread, its sockets and how callers wait, which here are actions
of the world; everything that decides is the package's own code. Breakers are the real ones, on a
client of which they see as much as they use. All read the clock themselves, so `virtual` gives them
one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Generator, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Final
from unittest import mock

from switchgear.circuit import Totals
from switchgear.client import breaker, link, permit
from switchgear.client.breaker import Breaker
from switchgear.client.claim import Claim, ThreadWaiter
from switchgear.client.lease import Gate, Lease
from switchgear.client.permit import Permit
from switchgear.client.session import Answer, Grant, Session
from switchgear.client.standby import Standby
from switchgear.config import CircuitConfig
from switchgear.errors import CallNotPermittedError
from switchgear.manager.sessions import DATA
from switchgear.states import Outcome, Verdict
from switchgear.wire import FROM_CONTROL, FROM_DATA, Message, decode

from .world import IDLE, World

if TYPE_CHECKING:
    from .books import Place
    from .network import Connection, Network
    from .oracle import Oracle

ACQUIRE_TIMEOUT: Final = 0.05  # seconds
CONTROL_TIMEOUT: Final = 2.0


class Down(Exception):
    """What a call fails with."""


class Waiter(Claim):
    """A task that waits for its permit."""

    __slots__ = ("call", "overdue")

    def __init__(self, link: Link, name: str | None) -> None:
        super().__init__(link, name)
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

    def cancel(self) -> object:
        """The task is cancelled that waits."""
        if self.answered or self.overdue or self.call is None:
            return IDLE
        if self.call.process.defer(self.cancel):
            return IDLE
        self.overdue = True
        return self.call.cancel()

    def __await__(self) -> Generator[Waiter, None, None]:
        if not (self.answered or self.overdue):
            yield self


class Asker(ThreadWaiter):
    """Somebody who has asked on the control connection, or for a flush."""

    __slots__ = ()

    def complete(self, answer: Answer) -> None:
        """See `ThreadWaiter`."""
        assert not self.answered, "one request was answered twice"
        super().complete(answer)


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

    @property
    def grant(self) -> Grant | None:
        """With what a manager has let it through; None: nobody has answered."""
        assert self.permit is not None
        answer = getattr(self.permit._owed, "answer", None)
        return answer if isinstance(answer, Grant) else None

    def cancel(self) -> None:
        """It is not waited for any more."""
        self.process.oracle.life.seen["calls cancelled"] += 1
        with contextlib.suppress(CancelledError):
            self._coroutine.throw(CancelledError())

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


class Link(link.Link):
    """The real one, but for its sockets, its thread, and how callers wait. See the module.

    Attributes:
        lines: Its connections; None: there is none yet.
        waiter: Who has asked last, on the control connection or for a flush.
    """

    waiter: ThreadWaiter

    def __init__(self, process: Process) -> None:
        self.process = process
        self.pid = os.getpid()
        self.lines: dict[int, Connection | None] = {}
        self._world = process.world
        self._address = process.address  # type: ignore[assignment]  # it is only told
        self._gates = process.gates
        self._session = Session(process.token, process.number, process.gates, self)
        self.watches = {}
        self.dropped = deque()
        self._inbox = deque()
        self._dirty = deque()
        self._collect_at = -math.inf
        self._knock_at = self._dozes_until = math.inf
        self._asleep = True
        self._wake = SimpleNamespace(set=self._plan)  # type: ignore[assignment]  # as used here
        self._driver = threading.RLock()
        self._turning = self._watching = None
        self._interrupted = self._closed = self._outage = self._away = False
        self._outage_level = logging.WARNING
        self._on_events = lambda events: process.oracle.learns(process, events)
        self._on_return = process.standby.end
        self._unnoticed: set[int] = set()  # sockets that have lost their connection

    # -- waiting -----------------------------------------------------------------------------------

    async def acquire_async(self, name: str, timeout: float) -> Waiter | None:
        """See the real one."""
        world = self._world
        deadline = world.now + timeout
        waiter = Waiter(self, name)
        self._post(self._session.acquire, waiter, name, deadline, world.now)
        if not waiter.answered:
            world.at(deadline, waiter.expire)
            if world.chance() < self.process.oracle.life.impatience:
                world.after(world.between(0.0, 0.002), waiter.cancel)
            try:
                await waiter
            except BaseException:  # as the real one
                self._stop_waiting(waiter, name, timed_out=False)
                raise
        if waiter.answered:
            return waiter
        self._stop_waiting(waiter, name, timed_out=True)
        return None

    def _stop_waiting(self, waiter: Waiter, name: str, *, timed_out: bool) -> None:
        self.process.oracle.gives_up(self.process, name)
        self._post(self._abandon, waiter, timed_out)

    def _wait_for(
        self, waiter: ThreadWaiter, deadline: float, command: Callable[..., None], *args: object
    ) -> bool:
        """Whoever asks does something else meanwhile."""
        self.waiter = waiter
        self._post(command, *args)
        self._world.at(deadline, self._give_up, waiter)
        return waiter.answered

    def _give_up(self, waiter: ThreadWaiter) -> object:
        if waiter.answered or self.process.defer(self._give_up, waiter):
            return IDLE
        self._post(self._abandon, waiter, True)
        return None

    # -- what the network does ---------------------------------------------------------------------

    def connected(self, connection: Connection) -> None:
        """A manager can be written to."""
        self.lines[connection.socket] = connection
        if connection.socket in self._unnoticed:
            self._unnoticed.remove(connection.socket)
            return
        self._session.connected(connection.socket, self._world.now)
        self._drive()

    def disconnected(self, connection: Connection) -> object:
        """It can no longer."""
        if self.process.defer(self.disconnected, connection):
            return IDLE
        if self.lines.get(connection.socket) is not connection:
            return IDLE
        self._world.note(str(self.process), f"is disconnected from {connection.socket}")
        life = self.process.oracle.life
        if self._world.chance() < life.unnoticed:
            # It does not run just then, and when it does there is another connection.
            life.seen["ends of connections that nobody noticed"] += 1
            self._unnoticed.add(connection.socket)
            self.lines[connection.socket] = None
            self.process.network.want(self.process, connection.socket)
            return None
        del self.lines[connection.socket]
        self._session.disconnected(connection.socket)
        self._drive()
        return None

    def arrive(self, connection: Connection, frame: bytes) -> None:
        """A message has come."""
        socket, world = connection.socket, self._world
        if self.lines.get(socket) is not connection:
            return
        world.witness(frame)
        message = decode(frame, FROM_DATA if socket == DATA else FROM_CONTROL)
        if world.tracing:
            world.note(f"> {self.process}", message)
        self.process.oracle.hears(self.process, socket, message)
        self._session.received(socket, message, world.now)
        self._drive()

    # -- turns -------------------------------------------------------------------------------------

    def _exchange(self, now: float) -> None:
        """Connect, and send; what has arrived was handed in."""
        session = self._session
        if len(session.wanted) > len(self.lines):
            for socket in sorted(session.wanted - self.lines.keys()):
                self.lines[socket] = None
                self.process.network.want(self.process, socket)
        if session.outbox:
            outbox, session.outbox = session.outbox, []
            noticed: set[int] = set()
            for socket, message in outbox:
                connection = self.lines[socket]
                if connection is not None:
                    connection.send_up(message)
                elif socket in self._unnoticed:  # until now
                    self._unnoticed.remove(socket)
                    session.disconnected(socket)
                    noticed.add(socket)
                else:
                    assert socket in noticed, "said to nobody"

    def _plan(self) -> None:
        """Have a turn when there is something to do."""
        due = self._knock_at
        if self._inbox:
            due = min(due, self._world.now + 0.0002)
        if self._dirty:
            due = min(due, max(self._world.now, self._collect_at))
        if due < self._dozes_until:
            self._dozes_until = due
            self._world.at(due, self._run_once, due)

    def _run_once(self, due: float) -> object:
        if due != self._dozes_until or self.process.defer(self._run_once, due):
            return IDLE
        self._dozes_until = math.inf
        if self._inbox or self._due(self._world.now):
            self._drive()
            done = None
        else:
            done = IDLE  # it was done meanwhile
        self._plan()
        return done


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
        self.standby = _Standby(self)
        self.subscribed = False
        self.went_on_at = 0.0
        self._reported: list[tuple[Grant, Permit]] = []  # of managers
        self.settings = SimpleNamespace(acquire_timeout=ACQUIRE_TIMEOUT, manager_loss="local")
        self.address = "the manager"
        self.link = Link(self)
        self.breakers = {
            name: Breaker(_Seen(self), name, config)  # type: ignore[arg-type]  # as much as it uses
            for name, config in configs.items()
        }
        for name, config in configs.items():
            self.link.declare(name, config)
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
        self.went_on_at = self.world.now
        deferred, self._deferred = self._deferred, []
        for action, args in deferred:
            self.world.after(0.0, action, *args)
        return None

    def die(self) -> None:
        """It is killed."""
        self.dead = True
        self.link.pid = 0  # what finalizers report goes nowhere, as in a forked child
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

    def ask(self, build: Callable[[int], Message], name: str) -> None:
        """As `Client._ask`, and go on without the answer."""

        question = self.oracle.wonders(self, name)

        def numbered(number: int) -> Message:  # it may be built again, for another manager
            self.oracle.asked(self, number, question)
            return build(number)

        self._told_link().ask(numbered, CONTROL_TIMEOUT, (name,))

    def subscribe(self) -> None:
        """Ask for events, as a client with callbacks does."""
        self.subscribed = True
        self.link.subscribe(math.inf)

    @property
    def verdicts(self) -> list[tuple[Grant, Verdict | None]]:
        """What it has heard became of each call that it had asked for."""
        return [(grant, permit.verdict) for grant, permit in self._reported]

    def flush(self) -> ThreadWaiter:
        """As `Client.flush`, for as long as it takes; it is answered when all was taken in."""
        link = self._told_link()
        link.flush(math.inf)
        return link.waiter

    def _told_link(self) -> Link:
        if self.standby.active:
            self.standby.tell()
        return self.link

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
            self._execute(name, lease)
        else:
            # What execute() does between the two ends of a call is to wait for the function.
            self.leased.append((name, lease))
            place = self.oracle.place_of(lease)
            self.world.after(seconds, self._end_leased, name, lease, place)

    def _execute(self, name: str, lease: Lease) -> None:
        outcome, text = self.oracle.outcome(self, name, self.oracle.place_of(lease), leased=True)

        def function() -> None:
            if outcome is Outcome.FAILURE:
                raise Down(text)
            if outcome is Outcome.NEUTRAL:
                raise KeyboardInterrupt

        with contextlib.suppress(Down, KeyboardInterrupt):
            self.breakers[name].execute(function)

    def _end_leased(self, name: str, lease: Lease, place: Place) -> object:
        if self.defer(self._end_leased, name, lease, place):
            return IDLE
        self.leased.remove((name, lease))
        outcome, text = self.oracle.outcome(self, name, place, leased=True)
        if outcome is Outcome.SUCCESS:
            lease.successes.append(0.001)
            if not lease.noted:
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
        outcome, text = self.oracle.outcome(self, call.name, self.oracle.place_granted(call))
        self.oracle.ends(call, outcome, text)
        if call.grant is not None:
            self._reported.append((call.grant, call.permit))
        if outcome is Outcome.SUCCESS:
            call.permit.success()
        elif outcome is Outcome.FAILURE:
            call.permit.failure(text)
        else:
            call.permit.release()
        return None


class _Standby(Standby):
    """The real one, which says when it ends."""

    def __init__(self, process: Process) -> None:
        super().__init__(process._hand_over, clock=lambda: process.world.now)
        self._process = process

    def end(self, name: str | None = None) -> None:
        super().end(name)
        self._process.oracle.is_back(self._process)


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
    """Give breakers, permits and links this world's time."""

    def clock() -> float:
        return world.now

    with (
        mock.patch.object(breaker, "monotonic", clock),
        mock.patch.object(link, "time", SimpleNamespace(monotonic=clock)),
        mock.patch.object(link, "ThreadWaiter", Asker),
        mock.patch.object(permit, "time", SimpleNamespace(perf_counter=clock)),
    ):
        yield
