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
from ..stats import StateChange
from ..wire import (
    HISTORY,
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
    GetHistory,
    GetList,
    GetMetrics,
    GetStats,
    Goodbye,
    Granted,
    Hello,
    HistoryOf,
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
from .acks import Acks
from .leases import Leases
from .limits import MAX_CIRCUITS, MAX_CLIENTS
from .sessions import DATA, Peer, SavedSession, Session
from .unsaved import Changes, Saved, Unsaved

LEASE: Final = 1.0  # seconds that a session's leases hold after the last report it was answered
EVENTS_KEPT: Final = 1024  # for a subscriber that missed some
SPARED: Final = 0.1  # seconds without events for one that does not read; each costs much
TELL_AGAIN: Final = 1.0  # seconds until it is told the last event, if none comes before
ABSENCE: Final = 3600.0  # seconds that a predecessor's client may take to come back, as one that
# was stopped may; the reports of one that comes later would be counted again


class Send(NamedTuple):
    """A message to be sent."""

    peer: Peer
    message: Message


class _Held(NamedTuple):
    """A permit that is out."""

    session: Session
    circuit: Circuit
    permit: Permit
    request: int
    told_again: bool = False  # it was asked for twice, so it may be known whatever gets lost


class Actor:
    """Owns the circuits, the permits that are out, the sessions and the subscribers.

    Args:
        epoch: This life of the manager; never the same twice on one host.
        pid: The manager's process, told to who asks.
        utc_offset: What to add to `now` to get seconds of Unix time; may be corrected later.
        max_clients: Sessions there may be; another one is refused.
        max_circuits: The same of circuits.
    """

    def __init__(
        self,
        epoch: int,
        pid: int = 0,
        utc_offset: float = 0.0,
        *,
        max_clients: int = MAX_CLIENTS,
        max_circuits: int = MAX_CIRCUITS,
    ) -> None:
        self.epoch = epoch
        self.origin = epoch
        self.pid = pid
        self.utc_offset = utc_offset
        self.max_clients = max_clients
        self.max_circuits = max_circuits
        self.stopping = False
        self._heard_at = -math.inf
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
        self._acks: Acks[Peer] = Acks()
        self._unsaved = Unsaved()
        self._absent: dict[bytes, None] = {}  # a predecessor's sessions that have not greeted us
        self._absent_until = math.inf
        self._subscribers: dict[Peer, float] = {}  # in order of arrival; until when to spare each
        self._asking: dict[bytes, Peer] = {}  # where clients greeted us at control, by token
        self._behind: dict[Peer, float] = {}  # those that missed some, and when to tell them so
        self._events: deque[Event] = deque(maxlen=EVENTS_KEPT)  # in a row, up to the last
        self._histories: dict[str, deque[Event]] = {}  # of each circuit that has one
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
            GetHistory: self._get_history,
            GetList: self._get_list,
            Reset: self._reset,
            Subscribe: self._subscribe,
            Shutdown: self._shutdown,
        }

    # -- what the shell calls ----------------------------------------------------------------------

    def restore(self, saved: Saved, now: float) -> None:
        """Go on where a predecessor stood, as the next in its line. Comes before all else.

        Args:
            saved: What it has left; its instants are on our clock.
            now: Seconds.
        """
        following = saved.epoch + 1
        if saved.origin is None:
            # Others may have begun from it too, of whom it says nothing. The time of day may have
            # been set back since, but our clock never is.
            following += int(now * 1e6)
        self.epoch = max(self.epoch, following)
        self.origin = self.epoch if saved.origin is None else saved.origin
        for name, (standing, counts) in saved.circuits.items():
            self._circuits[name] = Circuit.restore(name, standing, counts)
            self._arm(self._circuits[name])
        self._names = sorted(self._circuits)
        self._sessions = {session.token: Session(session) for session in saved.sessions}
        self._absent = dict.fromkeys(self._sessions)
        self._absent_until = now + ABSENCE if self._absent else math.inf
        for event in saved.events:
            if event.version != self._version + 1:
                self._events.clear()
            self._version = event.version
            self._remember(event)

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do at the latest, or `save` has, or None."""
        first = min(self._absent_until, next(iter(self._behind.values()), math.inf))
        if self._timers:
            first = min(first, self._timers[0][0])
        save_by = self.save_by
        if save_by is not None:
            first = min(first, save_by)
        return None if first == math.inf else first

    @property
    def idle_since(self) -> float | None:
        """When anybody was last heard, or died; None: there are sessions, so it is in use."""
        in_use = len(self._sessions) > len(self._absent)
        return None if in_use else self._heard_at

    def tick(self, now: float) -> list[Send]:
        """Let time pass for every circuit whose deadline has come."""
        sends: list[Send] = []
        while self._timers and self._timers[0][0] <= now:
            deadline, name = heapq.heappop(self._timers)
            if self._armed.get(name) != deadline:
                continue
            del self._armed[name]
            circuit = self._circuits[name]
            circuit.tick(now)
            self._unsaved.counted(circuit, now)
            sends += self._follow(circuit, self._next_operation())
        if self._absent_until <= now:
            self._forget_absent(now)
        if self._behind:
            sends += self._tell_again(now)
        return sends

    def _forget_absent(self, now: float) -> None:
        for token in self._absent:
            del self._sessions[token]
            self._unsaved.ended(token, now)
        self._absent.clear()
        self._absent_until = math.inf

    # -- what must survive -------------------------------------------------------------------------

    @property
    def news(self) -> bool:
        """Something has changed that must be saved before anything is sent: see `take_news`."""
        return self._unsaved.news

    def take_news(self) -> Changes:
        """What a successor must know before anybody is told anything."""
        return self._unsaved.take_news()

    @property
    def save_by(self) -> float | None:
        """When `save` is due; 0 while somebody waits for what comes of it."""
        due, save_by = self._acks.due, self._unsaved.save_by
        if due is None or save_by is None:
            return save_by if due is None else due
        return min(due, save_by)

    def save(self) -> Changes:
        """What a successor must know before reports are acknowledged; then call `saved`."""
        return self._unsaved.take_all()

    def saved(self, now: float) -> list[Send]:
        """All that `save` returned is safe: acknowledge what is due."""
        return [Send(*ack) for ack in self._acks.take_due(now)]

    def everything(self) -> Changes:
        """All that a successor must know, whether saved before or not."""
        self._unsaved.take_all()
        circuits = self._circuits
        return Changes(
            [(name, circuit.standing()) for name, circuit in circuits.items()],
            sorted(event for history in self._histories.values() for event in history),
            [(name, circuit.counts()) for name, circuit in circuits.items()],
            [session.saved() for session in self._sessions.values()],
            [],
        )

    def receive(self, peer: Peer, message: Message, now: float) -> list[Send]:
        """Take one message that was decoded from what the peer's socket allows."""
        self._heard_at = now
        return self._handlers[type(message)](message, peer, now)

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
        elif send.peer in self._subscribers:
            self._subscribers[send.peer] = now + SPARED
            self._behind.pop(send.peer, None)
            self._behind[send.peer] = now + TELL_AGAIN
        if isinstance(send.message, Granted):
            held = self._permits.get(send.message.operation)
            if held is not None and not held.told_again:
                return self._give_back(held, now)
        return []

    def session_of(self, peer: Peer) -> Session | None:
        """Whose connection it is; None: nobody has greeted there, or it has taken leave."""
        return self._connected.get(peer)

    def session(self, token: bytes) -> Session | None:
        """The session of a token; None: there is none, or it has taken leave."""
        return self._sessions.get(token)

    @property
    def full(self) -> bool:
        """There is no place for another session."""
        return len(self._sessions) - len(self._absent) >= self.max_clients

    def silent(self, since: float) -> list[Session]:
        """The sessions that hold nothing, and were not heard of after then; no predecessor's."""
        sessions = [one for token, one in self._sessions.items() if token not in self._absent]
        return [one for one in sessions if one.heard_at <= since and not one.granted]

    def died(self, session: Session, now: float) -> list[Send]:
        """A session's process has ended without a word: what it held is lost."""
        self._stop_telling(session.token)
        return self.give_up(session, now)

    def give_up(self, session: Session, now: float) -> list[Send]:
        """As `died`, but its process may live: its events still come, or it would miss them."""
        self._heard_at = now
        del self._sessions[session.token]
        self._unsaved.ended(session.token, now)
        if session.peer is not None:
            self._disconnect(session.peer)
        sends: list[Send] = []
        for held in self._held_by(session).values():
            self._take_back(held)
            held.circuit.abandon(held.permit, now)
            self._unsaved.counted(held.circuit, now)
            sends += self._follow(held.circuit, self._next_operation())
        return sends

    def last_words(self) -> list[Send]:
        """What is still held back, for a manager that has saved all and is about to end."""
        return [Send(*ack) for ack in self._acks.take_all()]

    def check(self) -> None:
        """Assert what is true between any two calls. For tests."""
        assert self._names == sorted(self._circuits)
        assert self._permits == {
            number: held
            for session in self._sessions.values()
            for number, held in self._held_by(session).items()
        }
        assert list(self._behind.values()) == sorted(self._behind.values())
        for peer, session in self._connected.items():
            assert session.peer == peer
        for name in self._names:
            assert set(self._leases.holders(name)) <= set(self._connected)
        self._leases.check()
        self._acks.check()
        assert self._absent.keys() <= self._sessions.keys()
        assert len(self._asking) <= 2 * self.max_clients
        for circuit in self._circuits.values():
            circuit.check()
            deadline = circuit.next_deadline
            assert deadline is None or self._armed[circuit.name] <= deadline

    # -- sessions ----------------------------------------------------------------------------------

    def _hello(self, message: Hello, peer: Peer, now: float) -> list[Send]:
        if not message.lowest <= PROTOCOL <= message.highest:
            text = f"this manager speaks protocol {PROTOCOL} only"
            return self._refuse(peer, message, ErrorCode.WRONG_PROTOCOL, text)
        clock, lease = to_micros(now), to_micros(LEASE)
        welcome = Welcome(message.request, PROTOCOL, self.epoch, self.origin, clock, 0, lease)
        if peer.socket == DATA:
            session = self._sessions.get(message.session)
            if session is None:
                if self.full:
                    text = f"all {self.max_clients} places for clients are taken"
                    return self._refuse(peer, message, ErrorCode.TOO_MANY_CLIENTS, text)
                greeted = SavedSession(message.session, message.pid, message.started)
                session = self._sessions[message.session] = Session(greeted)
            session.heard_at = now
            self._absent.pop(message.session, None)
            for stale in (peer, session.peer):
                if stale is not None:
                    self._disconnect(stale)
            session.peer = peer
            self._connected[peer] = session
            welcome = welcome._replace(reports=session.reports)
            if self._unsaved.has_reports_of(session):  # which this acknowledges
                self._acks.add_last(peer, welcome, now)
                return []
        else:
            self._note_asking(message.session, peer)
        return [Send(peer, welcome)]

    def _note_asking(self, token: bytes, peer: Peer) -> None:
        if self._asking.get(token) != peer:  # or its subscription would go, and it lives
            self._stop_telling(token)
        self._asking[token] = peer
        if len(self._asking) > 2 * self.max_clients:
            # Who asks and has no session, as a command does, is never known to have gone.
            del self._asking[next(iter(self._asking))]

    def _stop_telling(self, token: bytes) -> None:
        """Send a client's connection that is gone no events: it is known to be only by sending."""
        peer = self._asking.pop(token, None)
        if peer is not None:
            self._subscribers.pop(peer, None)
            self._behind.pop(peer, None)

    def _disconnect(self, peer: Peer) -> None:
        session = self._connected.pop(peer, None)
        if session is not None:
            session.peer = None
            self._fall_silent(peer)

    def _fall_silent(self, peer: Peer) -> None:
        self._acks.drop(peer)
        self._leases.drop(peer)

    def _goodbye(self, message: Goodbye, peer: Peer, now: float) -> list[Send]:
        session = self._connected.get(peer)
        if session is None:
            return self._no_session(peer, message)
        self._disconnect(peer)
        self._stop_telling(session.token)
        del self._sessions[session.token]
        self._unsaved.ended(session.token, now)
        sends: list[Send] = []
        for held in self._held_by(session).values():
            sends += self._give_back(held, now)
        return sends

    # -- permits and outcomes ----------------------------------------------------------------------

    def _declare(self, message: Declare, peer: Peer, now: float) -> list[Send]:
        if peer not in self._connected:
            return self._no_session(peer, message)
        circuit = self._circuits.get(message.name)
        if circuit is None and len(self._circuits) >= self.max_circuits:
            text = f"all {self.max_circuits} places for circuits are taken"
            return self._refuse(peer, message, ErrorCode.TOO_MANY_CIRCUITS, text)
        operation = self._next_operation()
        events: list[Send] = []
        if circuit is None:
            circuit = Circuit(message.name, message.config or CircuitConfig(), now)
            self._circuits[message.name] = circuit
            bisect.insort(self._names, message.name)
            self._unsaved.stands(circuit)
        elif message.config is not None and circuit.configure(message.config):
            state, generation = circuit.state, circuit.generation
            change = Transition(state, state, "config", generation, now)
            events = self._publish(circuit, change, operation)
            if message.config.consistency == "strict":
                events += self._tell_holders(circuit)
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
            number = granted.operation
            self._permits[number] = self._permits[number]._replace(told_again=True)
            return [Send(peer, granted)]
        if to_seconds(message.deadline) < now:
            text = "the caller's deadline had passed"
            return self._refuse(peer, message, ErrorCode.DEADLINE_PASSED, text)
        if message.request <= session.requests:
            text = f"request {message.request} was answered, or a later one was"
            return self._refuse(peer, message, ErrorCode.DUPLICATE_REQUEST, text)
        session.requests = message.request
        session.heard_at = now
        operation = self._next_operation()
        permit = circuit.acquire(operation, now)
        leased = self._leases.grant(peer, circuit)
        leases = [] if leased is None else [Send(peer, leased)]
        if isinstance(permit, Rejection):
            self._unsaved.counted(circuit, now)
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
            return self._wrong_number(session, peer, message, now)
        session.reports = message.number
        session.heard_at = now
        self._unsaved.reported(session, now)
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
            return self._behind_acks(
                self._refuse(peer, message, ErrorCode.UNKNOWN_PERMIT, text), now
            )
        if held.session is not session:
            text = f"permit {message.permit} was issued to process {held.session.pid}"
            return self._behind_acks(
                self._refuse(peer, message, ErrorCode.FOREIGN_PERMIT, text), now
            )
        self._take_back(held)
        self._unsaved.counted(held.circuit, now)
        operation = self._next_operation()
        duration = to_seconds(message.duration)
        verdict = held.circuit.report(held.permit, message.outcome, now, duration, message.error)
        self._acknowledge(message, peer, operation, verdict, now)
        if held.permit.deadline is None and not held.circuit.changed:
            return []  # as mostly
        return self._follow(held.circuit, operation)

    def _report_leased(self, message: Report, peer: Peer, now: float) -> list[Send]:
        """Take the outcome of a call that needs no permit: it ran under a lease.

        Or a predecessor admitted it, which is the same; its probes are stale.
        """
        circuit = self._circuits.get(message.name)
        if circuit is None:
            return self._behind_acks(self._unknown_circuit(peer, message, message.name), now)
        self._unsaved.counted(circuit, now)
        operation = self._next_operation()
        generation = self._generation(message)
        duration = to_seconds(message.duration)
        verdict = circuit.report_leased(generation, message.outcome, now, duration, message.error)
        self._acknowledge(message, peer, operation, verdict, now)
        return self._follow(circuit, operation)

    def _acknowledge(
        self, report: Report, peer: Peer, operation: int, verdict: Verdict, now: float
    ) -> None:
        # A failure has suspended its process's lease, and is answered as soon as it is saved.
        answer = Reported(report.number, operation, verdict)
        self._acks.add(peer, answer, now, urgent=report.outcome is Outcome.FAILURE)

    def _batch(self, message: Batch, peer: Peer, now: float) -> list[Send]:
        generation = self._generation(message)
        successes, neutral, rejected = message.successes, message.neutral, message.rejected
        totals = Totals(successes, 0, neutral, rejected, _seconds(message.durations), None)
        return self._report_totals(message, totals, generation, peer, now)

    def _missed(self, message: Missed, peer: Peer, now: float) -> list[Send]:
        _, _, successes, failures, neutral, rejected, micros, last_error = message
        totals = Totals(successes, failures, neutral, rejected, _seconds(micros), last_error)
        return self._report_totals(message, totals, None, peer, now)

    def _generation(self, message: Report | Batch) -> int | None:
        """What a report says of it; None where generations have been counted anew since."""
        return message.generation if self.origin <= message.epoch <= self.epoch else None

    def _report_totals(
        self,
        message: Batch | Missed,
        totals: Totals,
        generation: int | None,
        peer: Peer,
        now: float,
    ) -> list[Send]:
        circuit = self._circuits.get(message.name)
        if circuit is None:
            return self._behind_acks(self._unknown_circuit(peer, message, message.name), now)
        self._unsaved.counted(circuit, now)
        verdict = circuit.report_totals(totals, now, generation)
        answer = Reported(message.number, self._next_operation(), verdict)
        self._acks.add(peer, answer, now, batch=type(message) is Batch, urgent=False)
        return []

    def _behind_acks(self, refusal: list[Send], now: float) -> list[Send]:
        """Hold back the refusal of a report that took its number: it acknowledges those before."""
        for peer, message in refusal:
            self._acks.add_last(peer, message, now)
        return []

    def _sync(self, message: Sync, peer: Peer, now: float) -> list[Send]:
        if peer not in self._connected:
            return self._no_session(peer, message)
        synced = Synced(message.request, self._next_operation())
        if peer not in self._acks:
            return [Send(peer, synced)]
        self._acks.add_last(peer, synced, now)
        return []

    def _wrong_number(
        self, session: Session, peer: Peer, message: Report | Batch | Missed, now: float
    ) -> list[Send]:
        if message.number <= session.reports:
            text = f"report {message.number} was taken in before"
            return self._behind_acks(
                self._refuse(peer, message, ErrorCode.DUPLICATE_REPORT, text), now
            )
        text = f"report {message.number} came where {session.reports + 1} was expected"
        return self._refuse(peer, message, ErrorCode.OUT_OF_ORDER, text)

    def _give_back(self, held: _Held, now: float) -> list[Send]:
        self._take_back(held)
        held.circuit.report(held.permit, Outcome.NEUTRAL, now)
        self._unsaved.counted(held.circuit, now)
        return self._follow(held.circuit, self._next_operation())

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

    def _get_history(self, message: GetHistory, peer: Peer, now: float) -> list[Send]:
        if message.name not in self._circuits:
            return self._unknown_circuit(peer, message, message.name)
        changes = tuple(_change(event) for event in self._histories.get(message.name, ()))
        return [Send(peer, HistoryOf(message.request, self._next_operation(), changes))]

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
        return [done, *self._follow(circuit, operation)]

    def _subscribe(self, message: Subscribe, peer: Peer, now: float) -> list[Send]:
        self._subscribers[peer] = 0.0
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

    def _follow(self, circuit: Circuit, operation: int) -> list[Send]:
        """Tell holders of leases and subscribers of the circuit's transitions; set its timer."""
        self._arm(circuit)
        transitions = circuit.take_transitions()
        if not transitions:
            return []
        sends = self._tell_holders(circuit)  # first: they go on calling until they hear it
        for transition in transitions:
            sends += self._publish(circuit, transition, operation)
        return sends

    def _tell_holders(self, circuit: Circuit) -> list[Send]:
        holders, message = self._leases.follow(circuit)
        return [] if message is None else [Send(holder, message) for holder in holders]

    def _publish(self, circuit: Circuit, change: Transition, operation: int) -> list[Send]:
        self._version += 1
        old, new, cause, generation, at = change
        when = datetime.fromtimestamp(at + self.utc_offset, timezone.utc)
        event = Event(self._version, operation, circuit.name, old, new, cause, generation, when)
        self._remember(event)
        self._unsaved.stands(circuit, event)
        return [Send(peer, event) for peer, spared in self._subscribers.items() if spared <= at]

    def _tell_again(self, now: float) -> list[Send]:
        """Show subscribers that have missed events the last one: they ask for what is between."""
        sends: list[Send] = []
        for peer, tell_at in list(self._behind.items()):
            if tell_at > now:
                break
            del self._behind[peer]
            if peer in self._subscribers and self._events:
                sends.append(Send(peer, self._events[-1]))
        return sends

    def _remember(self, event: Event) -> None:
        self._events.append(event)
        history = self._histories.get(event.name)
        if history is None:
            history = self._histories[event.name] = deque(maxlen=HISTORY)
        history.append(event)

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


def _change(event: Event) -> StateChange:
    version, _, _, old, new, cause, generation, at = event
    return StateChange(version=version, old=old, new=new, cause=cause, generation=generation, at=at)


def _seconds(durations: tuple[int, ...]) -> list[float]:
    # As to_seconds(), and without a call for each of up to a hundred.
    return [micros / 1e6 for micros in durations]
