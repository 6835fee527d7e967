"""The owner of every circuit: a message and the time go in, messages come out.

The actor's order is the order in which things happen; nobody locks anything. It numbers its
decisions (`operation`), so that a history taken from many processes can be checked against that
order. It knows peers only as opaque addresses; it owns no socket, no clock, no thread.

Whoever runs it calls `tick` with the time of a turn before it hands in the turn's messages.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections import deque
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple

from ..circuit import Circuit, Permit, Rejection, Totals, Transition
from ..config import CircuitConfig
from ..states import Outcome, Verdict
from ..wire import (
    KINDS,
    PAGE,
    PROTOCOL,
    Acquire,
    Batch,
    Declare,
    Declared,
    Error,
    ErrorCode,
    Event,
    GetList,
    GetMetrics,
    GetStats,
    Goodbye,
    Granted,
    Hello,
    ListOf,
    Message,
    MetricsOf,
    Missed,
    Ping,
    Pong,
    Rejected,
    Report,
    Reported,
    Reset,
    ResetDone,
    Shutdown,
    StatsOf,
    Stopping,
    Subscribe,
    Subscribed,
    Sync,
    Synced,
    Welcome,
    to_micros,
    to_seconds,
)
from .leases import Leases

DATA: Final = 0  # the two sockets, as a Peer names them
CONTROL: Final = 1

LEASE: Final = 1.0  # seconds that a session's leases hold after the last report it was answered
ACK_DELAY: Final = 0.1  # seconds a report's answer may be held back; well below LEASE
ACKS_TOGETHER: Final = 256  # and how many at most
EVENTS_KEPT: Final = 1024  # for a subscriber that missed some


class Peer(NamedTuple):
    """Where a message came from and an answer goes: a socket of the manager's, and an address."""

    socket: int
    address: bytes


class Send(NamedTuple):
    """A message to be sent."""

    peer: Peer
    message: Message


class Session:
    """One client, as long as its process lives: it may come back on another connection."""

    __slots__ = ("granted", "peer", "pid", "reports", "requests", "started", "token")

    def __init__(self, hello: Hello) -> None:
        self.token = hello.session
        self.pid = hello.pid  # as it says
        self.started = hello.started
        self.peer: Peer | None = None  # where it was heard last
        self.reports = 0  # the number of the last one taken in
        self.requests = 0  # the highest number of a request for a permit that was decided
        self.granted: dict[int, Granted] = {}  # what is out, by the request that asked for it


class _Held(NamedTuple):
    """A permit that is out."""

    session: Session
    circuit: Circuit
    permit: Permit
    request: int


class _Acks:
    """What a peer's reports are answered with, once it is due."""

    __slots__ = ("due", "messages", "reports", "speaks_for_batches")

    def __init__(self, due: float) -> None:
        self.due = due
        self.messages: list[Reported] = []
        self.reports = 0  # that are answered by these
        self.speaks_for_batches = False  # the last one answers a Batch

    def add(self, message: Reported, *, batch: bool) -> None:
        """Answer one more report; batches in a row that came to the same are answered as one."""
        if batch and self.speaks_for_batches and self.messages[-1].verdict is message.verdict:
            self.messages[-1] = message
        else:
            self.messages.append(message)
        self.reports += 1
        self.speaks_for_batches = batch


class Actor:
    """Owns the circuits, the permits that are out, the sessions and the subscribers.

    Args:
        epoch: This life of the manager; never the same twice on one host.
        pid: The manager's process, told to who asks.
        utc_offset: What to add to `now` to get seconds of Unix time; may be corrected later.
    """

    def __init__(self, epoch: int, pid: int = 0, utc_offset: float = 0.0) -> None:
        self.epoch = epoch
        self.pid = pid
        self.utc_offset = utc_offset
        self.stopping = False
        self._operation = 0
        self._version = 0
        self._circuits: dict[str, Circuit] = {}
        self._names: list[str] = []  # sorted
        self._timers: list[tuple[float, str]] = []  # a heap; only what is in _armed still counts
        self._armed: dict[str, float] = {}
        self._sessions: dict[bytes, Session] = {}  # by token
        self._connected: dict[Peer, Session] = {}
        self._permits: dict[int, _Held] = {}
        self._leases: Leases[Peer] = Leases()
        self._acks: dict[Peer, _Acks] = {}  # oldest first
        self._subscribers: dict[Peer, None] = {}  # in order of arrival
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._handlers: dict[type[Message], Callable[[Any, Peer, float], list[Send]]] = {
            Hello: self._hello,
            Declare: self._declare,
            Acquire: self._acquire,
            Report: self._take_in,
            Batch: self._take_in,
            Missed: self._take_in,
            Sync: self._sync,
            Goodbye: self._goodbye,
            Ping: self._ping,
            GetStats: self._get_stats,
            GetMetrics: self._get_metrics,
            GetList: self._get_list,
            Reset: self._reset,
            Subscribe: self._subscribe,
            Shutdown: self._shutdown,
        }

    # -- what the shell calls ----------------------------------------------------------------------

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do at the latest, or None."""
        timer = self._timers[0][0] if self._timers else None
        if not self._acks:
            return timer
        acks = next(iter(self._acks.values())).due
        return acks if timer is None else min(timer, acks)

    def tick(self, now: float) -> list[Send]:
        """Let time pass for every circuit whose deadline has come, and for acknowledgements."""
        sends: list[Send] = []
        while self._acks and (first := next(iter(self._acks.items())))[1].due <= now:
            sends += self._take_acks(first[0])
        while self._timers and self._timers[0][0] <= now:
            deadline, name = heapq.heappop(self._timers)
            if self._armed.get(name) != deadline:
                continue
            del self._armed[name]
            circuit = self._circuits[name]
            circuit.tick(now)
            sends += self._follow(circuit, self._next_operation(), now)
        return sends

    def receive(self, peer: Peer, message: Message, now: float) -> list[Send]:
        """Take one message that was decoded from what the peer's socket allows."""
        sends = self._handlers[type(message)](message, peer, now)
        if peer in self._acks and sends and sends[0].peer == peer:
            return [*self._take_acks(peer), *sends]
        return sends

    def undelivered(self, send: Send, now: float, *, gone: bool) -> list[Send]:
        """Take back what could not be sent: nobody was told, so it did not happen for anybody.

        Args:
            send: What `tick`, `receive` or this method returned.
            now: Seconds.
            gone: The peer is no longer connected, and not merely slow to read.
        """
        if gone:
            # It hears nothing more, but what it had said before is still to be taken in.
            self._subscribers.pop(send.peer, None)
            self._fall_silent(send.peer)
        elif send.peer.socket == DATA:
            self._disconnect(send.peer)  # what it has missed may be the end of a lease
        if isinstance(send.message, Granted):
            held = self._permits.get(send.message.operation)
            if held is not None:
                return self._give_back(held, now)
        return []

    def session_of(self, peer: Peer) -> Session | None:
        """Whose connection it is; None: nobody has greeted there, or it has taken leave."""
        return self._connected.get(peer)

    def session(self, token: bytes) -> Session | None:
        """The session of a token; None: there is none, or it has taken leave."""
        return self._sessions.get(token)

    def died(self, session: Session, now: float) -> list[Send]:
        """A session's process has ended without a word: what it held is lost."""
        del self._sessions[session.token]
        if session.peer is not None:
            self._disconnect(session.peer)
        sends: list[Send] = []
        for held in self._held_by(session).values():
            self._take_back(held)
            held.circuit.abandon(held.permit, now)
            sends += self._follow(held.circuit, self._next_operation(), now)
        return sends

    def last_words(self) -> list[Send]:
        """The acknowledgements still held back, for a manager that is about to end."""
        return [send for peer in list(self._acks) for send in self._take_acks(peer)]

    def check(self) -> None:
        """Assert what is true between any two calls. For tests."""
        assert self._names == sorted(self._circuits)
        assert self._permits == {
            number: held
            for session in self._sessions.values()
            for number, held in self._held_by(session).items()
        }
        for peer, session in self._connected.items():
            assert session.peer == peer
        for name in self._names:
            assert set(self._leases.holders(name)) <= set(self._connected)
        for circuit in self._circuits.values():
            circuit.check()
            deadline = circuit.next_deadline
            assert deadline is None or self._armed[circuit.name] <= deadline

    # -- sessions ----------------------------------------------------------------------------------

    def _hello(self, message: Hello, peer: Peer, now: float) -> list[Send]:
        if not message.lowest <= PROTOCOL <= message.highest:
            text = f"this manager speaks protocol {PROTOCOL} only"
            return self._refuse(peer, message, ErrorCode.WRONG_PROTOCOL, text)
        reports = 0
        if peer.socket == DATA:
            session = self._sessions.get(message.session)
            if session is None:
                session = self._sessions[message.session] = Session(message)
            for stale in (peer, session.peer):
                if stale is not None:
                    self._disconnect(stale)
            session.peer = peer
            self._connected[peer] = session
            reports = session.reports
        clock, lease = to_micros(now), to_micros(LEASE)
        welcome = Welcome(message.request, PROTOCOL, self.epoch, clock, reports, lease)
        return [Send(peer, welcome)]

    def _disconnect(self, peer: Peer) -> None:
        session = self._connected.pop(peer, None)
        if session is not None:
            session.peer = None
            self._fall_silent(peer)

    def _fall_silent(self, peer: Peer) -> None:
        self._acks.pop(peer, None)
        self._leases.drop(peer)

    def _goodbye(self, message: Goodbye, peer: Peer, now: float) -> list[Send]:
        session = self._connected.get(peer)
        if session is None:
            return self._no_session(peer, message)
        self._disconnect(peer)
        del self._sessions[session.token]
        sends: list[Send] = []
        for held in self._held_by(session).values():
            sends += self._give_back(held, now)
        return sends

    # -- permits and outcomes ----------------------------------------------------------------------

    def _declare(self, message: Declare, peer: Peer, now: float) -> list[Send]:
        if peer not in self._connected:
            return self._no_session(peer, message)
        operation = self._next_operation()
        circuit = self._circuits.get(message.name)
        events: list[Send] = []
        if circuit is None:
            circuit = Circuit(message.name, message.config or CircuitConfig(), now)
            self._circuits[message.name] = circuit
            bisect.insort(self._names, message.name)
        elif message.config is not None and circuit.configure(message.config):
            state, generation = circuit.state, circuit.generation
            change = Transition(state, state, "config", generation, now)
            events = self._publish(circuit, change, operation)
            if message.config.consistency == "strict":
                events += self._tell_holders(circuit, now)
        return [Send(peer, Declared(message.request, operation, circuit.config)), *events]

    def _acquire(self, message: Acquire, peer: Peer, now: float) -> list[Send]:
        session = self._connected.get(peer)
        if session is None:
            return self._no_session(peer, message)
        circuit = self._circuits.get(message.name)
        if circuit is None:
            return self._unknown_circuit(peer, message, message.name)
        granted = session.granted.get(message.request)
        if granted is not None:  # asked again, because the answer may have been lost
            return [Send(peer, granted)]
        if to_seconds(message.deadline) < now:
            text = "the caller's deadline had passed"
            return self._refuse(peer, message, ErrorCode.DEADLINE_PASSED, text)
        if message.request <= session.requests:
            text = f"request {message.request} was answered, or a later one was"
            return self._refuse(peer, message, ErrorCode.DUPLICATE_REQUEST, text)
        session.requests = message.request
        operation = self._next_operation()
        permit = circuit.acquire(operation, now)
        leased = self._leases.grant(peer, circuit, now)
        leases = [] if leased is None else [Send(peer, leased)]
        if isinstance(permit, Rejection):
            return [Send(peer, Rejected(message.request, operation, *permit)), *leases]
        deadline = None
        if permit.deadline is not None:
            deadline = to_micros(permit.deadline)
            self._arm(circuit)
        granted = Granted(message.request, operation, permit.generation, deadline)
        self._permits[operation] = _Held(session, circuit, permit, message.request)
        session.granted[message.request] = granted
        return [Send(peer, granted), *leases]

    def _take_in(self, message: Report | Batch | Missed, peer: Peer, now: float) -> list[Send]:
        """Take a session's next report, of whatever kind, and no other."""
        session = self._connected.get(peer)
        if session is None:
            return self._no_session(peer, message)
        if message.number != session.reports + 1:
            return self._wrong_number(session, peer, message)
        session.reports = message.number
        match message:
            case Report():
                return self._report(message, session, peer, now)
            case Batch():
                return self._batch(message, peer, now)
            case Missed():
                return self._missed(message, peer, now)

    def _report(self, message: Report, session: Session, peer: Peer, now: float) -> list[Send]:
        if message.permit is None or message.epoch != self.epoch:
            return self._report_leased(message, peer, now)
        held = self._permits.get(message.permit)
        if held is None or held.circuit.name != message.name:
            text = f"permit {message.permit} of {message.name!r} is not out"
            return self._refuse(peer, message, ErrorCode.UNKNOWN_PERMIT, text)
        if held.session is not session:
            text = f"permit {message.permit} was issued to process {held.session.pid}"
            return self._refuse(peer, message, ErrorCode.FOREIGN_PERMIT, text)
        self._take_back(held)
        operation = self._next_operation()
        duration = to_seconds(message.duration)
        verdict = held.circuit.report(held.permit, message.outcome, now, duration, message.error)
        changes: list[Send] = []
        if held.permit.deadline is not None or held.circuit.changed:  # mostly neither
            changes = self._follow(held.circuit, operation, now)
        return self._answer(message, peer, operation, verdict, changes, now)

    def _report_leased(self, message: Report, peer: Peer, now: float) -> list[Send]:
        """Take the outcome of a call that needs no permit, because it ran under a lease.

        Or one that an earlier manager admitted: to us it is the same, only of no generation.
        """
        circuit = self._circuits.get(message.name)
        if circuit is None:
            return self._unknown_circuit(peer, message, message.name)
        operation = self._next_operation()
        generation = message.generation if message.epoch == self.epoch else 0
        duration = to_seconds(message.duration)
        verdict = circuit.report_leased(generation, message.outcome, now, duration, message.error)
        changes = self._follow(circuit, operation, now)
        return self._answer(message, peer, operation, verdict, changes, now)

    def _answer(
        self,
        report: Report,
        peer: Peer,
        operation: int,
        verdict: Verdict,
        changes: list[Send],
        now: float,
    ) -> list[Send]:
        acks = self._acknowledge(peer, Reported(report.number, operation, verdict), now)
        if report.outcome is not Outcome.FAILURE:
            return [*acks, *changes]
        # A failure has suspended the lease. It is answered at once, and not before the news.
        *before, last = acks or self._take_acks(peer)
        return [*before, *changes, last]

    def _batch(self, message: Batch, peer: Peer, now: float) -> list[Send]:
        generation = message.generation if message.epoch == self.epoch else 0
        successes, neutral, rejected = message.successes, message.neutral, message.rejected
        totals = Totals(successes, 0, neutral, rejected, _seconds(message.durations), None)
        return self._report_totals(message, totals, generation, peer, now)

    def _missed(self, message: Missed, peer: Peer, now: float) -> list[Send]:
        _, _, successes, failures, neutral, rejected, micros, last_error = message
        totals = Totals(successes, failures, neutral, rejected, _seconds(micros), last_error)
        return self._report_totals(message, totals, 0, peer, now)

    def _report_totals(
        self, message: Batch | Missed, totals: Totals, generation: int, peer: Peer, now: float
    ) -> list[Send]:
        circuit = self._circuits.get(message.name)
        if circuit is None:
            return self._unknown_circuit(peer, message, message.name)
        verdict = circuit.report_totals(totals, now, generation)
        answer = Reported(message.number, self._next_operation(), verdict)
        return self._acknowledge(peer, answer, now, batch=type(message) is Batch)

    def _acknowledge(
        self, peer: Peer, answer: Reported, now: float, *, batch: bool = False
    ) -> list[Send]:
        """Answer a report, but not at once: it can mostly go with the next call's Granted."""
        acks = self._acks.get(peer)
        if acks is None:
            acks = self._acks[peer] = _Acks(now + ACK_DELAY)
        acks.add(answer, batch=batch)
        return self._take_acks(peer) if acks.reports >= ACKS_TOGETHER else []

    def _take_acks(self, peer: Peer) -> list[Send]:
        acks = self._acks.pop(peer, None)
        return [] if acks is None else [Send(peer, message) for message in acks.messages]

    def _sync(self, message: Sync, peer: Peer, now: float) -> list[Send]:
        if peer not in self._connected:
            return self._no_session(peer, message)
        return [Send(peer, Synced(message.request, self._next_operation()))]

    def _wrong_number(
        self, session: Session, peer: Peer, message: Report | Batch | Missed
    ) -> list[Send]:
        expected = session.reports + 1
        if message.number < expected:
            text = f"report {message.number} was taken in before"
            return self._refuse(peer, message, ErrorCode.DUPLICATE_REPORT, text)
        text = f"report {message.number} came where {expected} was expected"
        return self._refuse(peer, message, ErrorCode.OUT_OF_ORDER, text)

    def _give_back(self, held: _Held, now: float) -> list[Send]:
        self._take_back(held)
        held.circuit.report(held.permit, Outcome.NEUTRAL, now)
        return self._follow(held.circuit, self._next_operation(), now)

    def _held_by(self, session: Session) -> dict[int, _Held]:
        numbers = [granted.operation for granted in session.granted.values()]
        return {number: self._permits[number] for number in numbers}

    def _take_back(self, held: _Held) -> None:
        del self._permits[held.permit.id]
        del held.session.granted[held.request]

    # -- what programs and people ask --------------------------------------------------------------

    def _ping(self, message: Ping, peer: Peer, now: float) -> list[Send]:
        count = len(self._circuits)
        return [Send(peer, Pong(message.request, self._next_operation(), self.pid, count))]

    def _get_stats(self, message: GetStats, peer: Peer, now: float) -> list[Send]:
        circuit = self._circuits.get(message.name)
        if circuit is None:
            return self._unknown_circuit(peer, message, message.name)
        stats = circuit.stats(now, self.utc_offset)
        return [Send(peer, StatsOf(message.request, self._next_operation(), stats))]

    def _get_metrics(self, message: GetMetrics, peer: Peer, now: float) -> list[Send]:
        circuit = self._circuits.get(message.name)
        if circuit is None:
            return self._unknown_circuit(peer, message, message.name)
        metrics = circuit.metrics()
        return [Send(peer, MetricsOf(message.request, self._next_operation(), metrics))]

    def _get_list(self, message: GetList, peer: Peer, now: float) -> list[Send]:
        first = bisect.bisect_right(self._names, message.after)
        page = self._names[first : first + PAGE]
        stats = tuple(self._circuits[name].stats(now, self.utc_offset) for name in page)
        more = first + PAGE < len(self._names)
        return [Send(peer, ListOf(message.request, self._next_operation(), stats, more))]

    def _reset(self, message: Reset, peer: Peer, now: float) -> list[Send]:
        circuit = self._circuits.get(message.name)
        if circuit is None:
            return self._unknown_circuit(peer, message, message.name)
        operation = self._next_operation()
        circuit.reset(now)
        done = Send(peer, ResetDone(message.request, operation, circuit.name, circuit.generation))
        return [done, *self._follow(circuit, operation, now)]

    def _subscribe(self, message: Subscribe, peer: Peer, now: float) -> list[Send]:
        self._subscribers[peer] = None
        missed: list[Event] = []
        if message.since is not None:
            missed = [event for event in self._events if event.version > message.since]
        begin = missed[0].version - 1 if missed else self._version
        subscribed = Subscribed(message.request, self._next_operation(), begin)
        return [Send(peer, subscribed), *(Send(peer, event) for event in missed)]

    def _shutdown(self, message: Shutdown, peer: Peer, now: float) -> list[Send]:
        self.stopping = True
        return [Send(peer, Stopping(message.request, self._next_operation()))]

    # -- what follows from a decision --------------------------------------------------------------

    def _next_operation(self) -> int:
        self._operation += 1
        return self._operation

    def _follow(self, circuit: Circuit, operation: int, now: float) -> list[Send]:
        """Tell holders of leases and subscribers of the circuit's transitions; set its timer."""
        self._arm(circuit)
        transitions = circuit.take_transitions()
        if not transitions:
            return []
        sends = self._tell_holders(circuit, now)  # first: they go on calling until they hear it
        for transition in transitions:
            sends += self._publish(circuit, transition, operation)
        return sends

    def _tell_holders(self, circuit: Circuit, now: float) -> list[Send]:
        holders, message = self._leases.follow(circuit, now)
        return [] if message is None else [Send(holder, message) for holder in holders]

    def _publish(self, circuit: Circuit, change: Transition, operation: int) -> list[Send]:
        self._version += 1
        old, new, cause, generation, at = change
        when = datetime.fromtimestamp(at + self.utc_offset, timezone.utc)
        event = Event(self._version, operation, circuit.name, old, new, cause, generation, when)
        self._events.append(event)
        return [Send(peer, event) for peer in self._subscribers]

    def _arm(self, circuit: Circuit) -> None:
        deadline = circuit.next_deadline
        if deadline is not None and deadline < self._armed.get(circuit.name, math.inf):
            self._armed[circuit.name] = deadline
            heapq.heappush(self._timers, (deadline, circuit.name))

    def _no_session(self, peer: Peer, message: Message) -> list[Send]:
        return self._refuse(peer, message, ErrorCode.NO_SESSION, "say Hello first")

    def _unknown_circuit(self, peer: Peer, message: Message, name: str) -> list[Send]:
        return self._refuse(peer, message, ErrorCode.UNKNOWN_CIRCUIT, f"no circuit {name!r}")

    def _refuse(self, peer: Peer, message: Message, code: ErrorCode, text: str) -> list[Send]:
        ref = message[0] if message and isinstance(message[0], int) else 0
        return [Send(peer, Error(KINDS[type(message)], ref, code, text))]


def _seconds(durations: tuple[int, ...]) -> list[float]:
    # As to_seconds(), and without a call for each of up to a hundred.
    return [micros / 1e6 for micros in durations]
