"""The manager's actor: messages and the time go in, messages come out. No sockets."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any, Final, TypeVar

import pytest

from switchgear.circuit import Circuit
from switchgear.config import CircuitConfig
from switchgear.manager.acks import ACK_DELAY, ACKS_TOGETHER
from switchgear.manager.actor import ABSENCE, EVENTS_KEPT, SPARED, TELL_AGAIN, Actor, Send
from switchgear.manager.leases import Leases
from switchgear.manager.sessions import CONTROL, DATA, Peer, SavedSession, Session
from switchgear.manager.unsaved import SAVE_INTERVAL, Saved
from switchgear.states import Outcome, State, Verdict
from switchgear.stats import CircuitStats, StateChange
from switchgear.wire import (
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
    Leased,
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
    Revoked,
    Shutdown,
    StatsOf,
    Stopping,
    Subscribe,
    Subscribed,
    Sync,
    Synced,
    Welcome,
)

EPOCH: Final = 77
OFFSET: Final = 1_000_000.0  # of Unix time to the actor's clock
LATER: Final = 10**12  # a deadline that does not pass
# Asked for each call: what follows from leases has its own tests, in test_leases.py.
TRIPS_AT_ONCE: Final = CircuitConfig(
    failure_threshold=1,
    success_threshold=1,
    open_timeout=30.0,
    permit_timeout=10.0,
    consistency="strict",
)
M = TypeVar("M")


class Desk:
    """An actor, the time, and everything it said; checked after every step."""

    def __init__(self) -> None:
        self.actor = Actor(EPOCH, pid=4242, utc_offset=OFFSET)
        self.now = 100.0
        self.said: list[Send] = []  # ever

    def at(self, now: float) -> list[Send]:
        """Let the time come."""
        assert now >= self.now
        self.now = now
        return self._note(self.actor.tick(now))

    def hand_in(self, peer: Peer, message: Message) -> list[Send]:
        """All that a message causes, wherever it goes."""
        return self._note(self.actor.receive(peer, message, self.now))

    def tell(self, peer: Peer, message: Message) -> list[Message]:
        """What the sender hears."""
        return [send.message for send in self.hand_in(peer, message) if send.peer == peer]

    def ask(self, peer: Peer, message: Message, kind: type[M]) -> M:
        """The one answer of its kind."""
        (answer,) = [m for m in self.tell(peer, message) if isinstance(m, kind)]
        return answer

    def lose(self, send: Send, *, gone: bool) -> list[Send]:
        return self._note(self.actor.undelivered(send, self.now, gone=gone))

    def die(self, peer: Peer) -> list[Send]:
        """Have the process of a connection die."""
        session = self.actor.session_of(peer)
        assert session is not None
        return self.end(session)

    def end(self, session: Session) -> list[Send]:
        return self._note(self.actor.died(session, self.now))

    def _note(self, sends: list[Send]) -> list[Send]:
        if self.actor.save_by is not None and self.actor.save_by <= self.now:
            self.actor.save()
            sends = [*sends, *self.actor.saved(self.now)]
        self.actor.check()
        self.said += sends
        return sends

    # -- shorthands --------------------------------------------------------------------------------

    def client(self, number: int, connection: int = 0) -> Peer:
        """A data connection that has been welcomed."""
        peer = Peer(DATA, b"%d.%d" % (number, connection))
        self.ask(peer, hello(number), Welcome)
        return peer

    def acquire(self, peer: Peer, request: int, name: str = "a", deadline: int = LATER) -> Message:
        answers = self.tell(peer, Acquire(request, name, deadline))
        return next(m for m in reversed(answers) if not isinstance(m, Leased))

    def permit(self, peer: Peer, request: int, name: str = "a") -> int:
        granted = self.acquire(peer, request, name)
        assert isinstance(granted, Granted)
        return granted.operation

    def trip(self, peer: Peer, number: int = 1) -> None:
        """Open a TRIPS_AT_ONCE circuit with this session's next report."""
        permit = self.permit(peer, number)
        self.hand_in(peer, report(number, permit, Outcome.FAILURE))
        assert self.stats(peer).state is State.OPEN

    def stats(self, peer: Peer, name: str = "a") -> CircuitStats:
        control = Peer(CONTROL, b"stats")
        return self.ask(control, GetStats(1, name), StatsOf).stats


def hello(number: int) -> Hello:
    return Hello(7, PROTOCOL, PROTOCOL, bytes([number]) * 16, 1_000 + number, 5)


def report(
    number: int,
    permit: int | None,
    outcome: Outcome = Outcome.SUCCESS,
    name: str = "a",
    epoch: int = EPOCH,
    error: str | None = None,
    generation: int = 1,
) -> Report:
    return Report(number, name, epoch, permit, generation, outcome, 1_000, error)


def code_of(messages: list[Message]) -> ErrorCode:
    (error,) = [message for message in messages if isinstance(message, Error)]
    return error.code


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def peer(desk: Desk) -> Peer:
    """Client 1, with the circuit "a" declared as TRIPS_AT_ONCE."""
    peer = desk.client(1)
    desk.tell(peer, Declare(1, "a", TRIPS_AT_ONCE))
    return peer


@pytest.fixture
def watcher(desk: Desk) -> Peer:
    watcher = Peer(CONTROL, b"watcher")
    desk.ask(watcher, Subscribe(1, None), Subscribed)
    return watcher


# -- greeting --------------------------------------------------------------------------------------


def test_hello_is_welcomed_with_its_number_version_epoch_clock_and_reports(desk: Desk) -> None:
    peer = Peer(DATA, b"x")
    assert desk.tell(peer, hello(1)) == [
        Welcome(7, PROTOCOL, EPOCH, EPOCH, 100_000_000, 0, 1_000_000)
    ]


@pytest.mark.parametrize(
    ("lowest", "highest", "welcome"),
    [(1, 1, True), (0, 1, True), (1, 9, True), (2, 9, False), (0, 0, False), (9, 0, False)],
)
@pytest.mark.parametrize("socket", [DATA, CONTROL])
def test_hello_is_refused_without_a_version_in_common(
    desk: Desk, lowest: int, highest: int, welcome: bool, socket: int
) -> None:
    peer = Peer(socket, b"x")
    (answer,) = desk.tell(peer, hello(1)._replace(lowest=lowest, highest=highest))
    if welcome:
        assert isinstance(answer, Welcome)
        assert answer.protocol == PROTOCOL
    else:
        assert isinstance(answer, Error)
        assert (answer.kind, answer.code) == (KINDS[Hello], ErrorCode.WRONG_PROTOCOL)


@pytest.mark.parametrize(
    ("message", "ref"),
    [
        (Declare(5, "a", None), 5),
        (Acquire(6, "a", LATER), 6),
        (report(7, 1), 7),
        (Batch(9, "a", EPOCH, 1, 1, 0, 0, ()), 9),
        (Sync(8), 8),
        (Goodbye(), 0),
    ],
)
def test_without_a_session_data_messages_are_refused(
    desk: Desk, message: Message, ref: int
) -> None:
    (error,) = desk.tell(Peer(DATA, b"stranger"), message)
    assert isinstance(error, Error)
    assert (error.kind, error.ref) == (KINDS[type(message)], ref)
    assert error.code is ErrorCode.NO_SESSION


def test_a_refused_hello_opens_no_session(desk: Desk) -> None:
    peer = Peer(DATA, b"x")
    desk.tell(peer, hello(1)._replace(lowest=2, highest=3))
    assert code_of(desk.tell(peer, Declare(1, "a", None))) is ErrorCode.NO_SESSION


def test_a_session_that_comes_back_finds_its_reports_and_its_permits(
    desk: Desk, peer: Peer
) -> None:
    first, second = desk.permit(peer, 2), desk.permit(peer, 3)
    desk.hand_in(peer, report(1, first))
    again = Peer(DATA, b"another connection")
    assert desk.ask(again, hello(1), Welcome).reports == 1
    assert code_of(desk.tell(peer, report(2, second))) is ErrorCode.NO_SESSION
    desk.hand_in(again, report(2, second))
    assert desk.tell(again, Sync(4))[0] == Reported(2, second + 2, Verdict.COUNTED)


def test_another_session_on_the_same_connection_takes_its_place(desk: Desk, peer: Peer) -> None:
    permit = desk.permit(peer, 2)
    assert desk.ask(peer, hello(2), Welcome).reports == 0
    assert code_of(desk.tell(peer, report(1, permit))) is ErrorCode.FOREIGN_PERMIT


# -- declaring -------------------------------------------------------------------------------------


def test_a_new_circuit_gets_its_config_or_the_defaults_and_causes_no_event(
    desk: Desk, peer: Peer, watcher: Peer
) -> None:
    assert desk.ask(peer, Declare(2, "b", TRIPS_AT_ONCE), Declared).config == TRIPS_AT_ONCE
    assert desk.ask(peer, Declare(3, "c", None), Declared).config == CircuitConfig()
    assert not [send for send in desk.said if isinstance(send.message, Event)]


def test_only_another_config_causes_an_event_and_none_keeps_the_one_in_force(
    desk: Desk, peer: Peer, watcher: Peer
) -> None:
    for same in (TRIPS_AT_ONCE, None):
        (sent,) = desk.hand_in(peer, Declare(2, "a", same))
        assert isinstance(sent.message, Declared)
        assert sent.message.config == TRIPS_AT_ONCE
    other = CircuitConfig(failure_threshold=9)
    declared, sent = desk.hand_in(peer, Declare(3, "a", other))
    assert isinstance(declared.message, Declared)
    assert declared.message.config == other
    assert sent.peer == watcher
    operation = declared.message.operation
    at = datetime.fromtimestamp(OFFSET + desk.now, timezone.utc)
    assert sent.message == Event(1, operation, "a", State.CLOSED, State.CLOSED, "config", 1, at)


def test_another_config_moves_neither_state_nor_counts(desk: Desk, peer: Peer) -> None:
    desk.trip(peer)
    before = desk.stats(peer)
    desk.tell(peer, Declare(3, "a", CircuitConfig()))
    after = desk.stats(peer)
    assert (after.state, after.generation) == (before.state, before.generation)
    assert after.total_failures == before.total_failures == 1
    assert after.retry_after == before.retry_after == 30.0


# -- permits ---------------------------------------------------------------------------------------


def test_closed_grants_without_a_deadline(desk: Desk, peer: Peer) -> None:
    granted = desk.acquire(peer, 2)
    assert isinstance(granted, Granted)
    assert (granted.request, granted.generation, granted.deadline) == (2, 1, None)


def test_open_rejects_with_the_time_left_and_the_last_error(desk: Desk, peer: Peer) -> None:
    permit = desk.permit(peer, 2)
    desk.hand_in(peer, report(1, permit, Outcome.FAILURE, error="OSError: down"))
    desk.at(110.0)
    rejected = desk.acquire(peer, 3)
    assert isinstance(rejected, Rejected)
    assert (rejected.state, rejected.retry_after) == (State.OPEN, 20.0)
    assert rejected.last_error == "OSError: down"


def test_half_open_grants_one_probe_with_a_deadline_and_rejects_the_next(
    desk: Desk, peer: Peer
) -> None:
    desk.trip(peer)
    desk.at(130.0)
    other = desk.client(2)
    probe, rejected = desk.acquire(peer, 3), desk.acquire(other, 3)
    assert isinstance(probe, Granted)
    assert probe.deadline == 140_000_000
    assert isinstance(rejected, Rejected)
    assert (rejected.state, rejected.retry_after) == (State.HALF_OPEN, None)


def test_acquire_of_an_unknown_circuit_is_refused(desk: Desk, peer: Peer) -> None:
    assert code_of(desk.tell(peer, Acquire(2, "nobody", LATER))) is ErrorCode.UNKNOWN_CIRCUIT


def test_acquire_sent_again_gets_the_same_permit_while_it_is_out_and_no_longer(
    desk: Desk, peer: Peer
) -> None:
    granted = desk.acquire(peer, 2)
    assert isinstance(granted, Granted)
    assert desk.acquire(peer, 2, deadline=0) == granted
    moved = Peer(DATA, b"another connection")
    desk.tell(moved, hello(1))
    assert desk.acquire(moved, 2) == granted
    assert desk.stats(peer).in_flight == 1
    desk.hand_in(moved, report(1, granted.operation))
    assert desk.acquire(moved, 2) != granted


def test_two_sessions_with_the_same_request_number_get_two_permits(desk: Desk, peer: Peer) -> None:
    assert desk.permit(peer, 2) != desk.permit(desk.client(2), 2)
    assert desk.stats(peer).in_flight == 2


def test_acquire_after_its_deadline_takes_no_permit_and_at_it_does(desk: Desk, peer: Peer) -> None:
    late = desk.acquire(peer, 2, deadline=99_999_999)
    assert isinstance(late, Error)
    assert (late.code, late.ref) == (ErrorCode.DEADLINE_PASSED, 2)
    assert desk.stats(peer).total_requests == 0
    assert isinstance(desk.acquire(peer, 3, deadline=100_000_000), Granted)


@pytest.mark.parametrize("gone", [False, True])
def test_undelivered_permit_goes_back_and_a_peer_that_is_there_must_greet_again(
    desk: Desk, peer: Peer, gone: bool
) -> None:
    (sent,) = desk.hand_in(peer, Acquire(2, "a", LATER))
    assert desk.stats(peer).in_flight == 1
    assert desk.lose(sent, gone=gone) == []
    assert desk.stats(peer).in_flight == 0
    assert desk.lose(sent, gone=gone) == []  # twice is once
    if not gone:
        assert code_of(desk.tell(peer, Declare(9, "a", None))) is ErrorCode.NO_SESSION
    desk.ask(peer, hello(1), Welcome)
    assert isinstance(desk.acquire(peer, 3), Granted)


def test_undelivered_probe_makes_room_for_the_next_at_once(desk: Desk, peer: Peer) -> None:
    desk.trip(peer)
    desk.at(130.0)
    (sent,) = desk.hand_in(peer, Acquire(2, "a", LATER))
    assert isinstance(desk.acquire(desk.client(2), 3), Rejected)
    desk.lose(sent, gone=False)
    assert isinstance(desk.acquire(desk.client(2), 4), Granted)


def test_a_permit_that_was_told_before_stays_out_if_it_cannot_be_told_again(
    desk: Desk, peer: Peer
) -> None:
    (told,) = desk.hand_in(peer, Acquire(2, "a", LATER))
    (again,) = desk.hand_in(peer, Acquire(2, "a", LATER))
    assert desk.lose(again, gone=False) == []
    assert desk.stats(peer).in_flight == 1
    desk.ask(peer, hello(1), Welcome)
    assert isinstance(told.message, Granted)
    desk.hand_in(peer, report(1, told.message.operation))
    assert desk.stats(peer).total_successes == 1


def test_undelivered_answer_that_is_no_permit_takes_nothing_back(desk: Desk, peer: Peer) -> None:
    permit = desk.permit(peer, 2)
    assert desk.lose(Send(peer, Reported(1, permit, Verdict.COUNTED)), gone=True) == []
    assert desk.stats(peer).in_flight == 1


def test_goodbye_gives_everything_back_and_forgets_the_session(desk: Desk, peer: Peer) -> None:
    desk.hand_in(peer, report(1, desk.permit(peer, 2)))
    desk.permit(peer, 3)
    desk.permit(peer, 4)
    others = desk.permit(desk.client(2), 2)
    assert desk.hand_in(peer, Goodbye()) == []
    stats = desk.stats(peer)
    assert (stats.in_flight, stats.total_neutral, stats.total_successes) == (1, 2, 1)
    assert code_of(desk.tell(peer, Acquire(5, "a", LATER))) is ErrorCode.NO_SESSION
    assert desk.ask(peer, hello(1), Welcome).reports == 0
    assert desk.acquire(desk.client(2), 2) == Granted(2, others, 1, None)


# -- the dead: G5 ----------------------------------------------------------------------------------


def lost(desk: Desk, name: str = "a") -> int:
    control = Peer(CONTROL, b"metrics")
    return desk.ask(control, GetMetrics(1, name), MetricsOf).metrics.permits_lost


def test_what_the_dead_held_of_every_circuit_is_lost_and_nothing_of_others(
    desk: Desk, peer: Peer
) -> None:
    desk.tell(peer, Declare(2, "b", TRIPS_AT_ONCE))
    other = desk.client(2)
    kept = desk.permit(other, 1)
    for number, name in enumerate(("a", "a", "b"), start=3):
        desk.permit(peer, number, name)
    desk.hand_in(peer, report(1, desk.permit(peer, 6)))
    assert desk.die(peer) == []
    a, b = desk.stats(peer), desk.stats(peer, "b")
    assert (a.in_flight, a.total_requests, a.total_neutral, lost(desk)) == (1, 4, 0, 2)
    assert (b.in_flight, b.total_requests, lost(desk, "b")) == (0, 1, 1)
    assert desk.acquire(other, 1) == Granted(1, kept, 1, None)


@pytest.mark.parametrize(
    ("lost_permit", "causes", "state"),
    [("failure", ["lost_permit"], State.OPEN), ("ignore", [], State.HALF_OPEN)],
)
def test_a_dead_holder_of_a_probe_loses_it_at_once_and_holders_and_watchers_hear_of_it(
    desk: Desk, watcher: Peer, lost_permit: Any, causes: list[str], state: State
) -> None:
    peer, other = desk.client(1), desk.client(2)
    desk.tell(peer, Declare(1, "a", replace(TRIPS_AT_ONCE, lost_permit=lost_permit)))
    desk.trip(peer)
    desk.at(130.0)
    probe = desk.permit(peer, 2)
    assert isinstance(desk.acquire(other, 1), Rejected)
    sent = desk.die(peer)
    events = [send.message for send in sent if isinstance(send.message, Event)]
    assert [event.cause for event in events] == causes
    assert all(event.operation > probe for event in events)
    assert (desk.stats(other).state, desk.stats(other).in_flight, lost(desk)) == (state, 0, 1)
    if lost_permit == "failure":
        desk.at(159.9)
        assert desk.stats(other).state is State.OPEN
        desk.at(160.0)
    desk.permit(other, 2)


def test_several_probes_of_the_dead_open_the_circuit_once(desk: Desk, watcher: Peer) -> None:
    peer = desk.client(1)
    desk.tell(peer, Declare(1, "a", replace(TRIPS_AT_ONCE, max_concurrent_requests=3)))
    desk.trip(peer)
    desk.at(130.0)
    for request in (2, 3, 4):
        desk.permit(peer, request)
    assert heard(desk.die(peer)) == [(watcher, "Event")]
    assert (desk.stats(peer).in_flight, lost(desk)) == (0, 3)


def test_a_probe_lost_by_its_deadline_is_not_lost_again_when_its_holder_dies(
    desk: Desk, peer: Peer
) -> None:
    desk.trip(peer)
    desk.at(130.0)
    desk.permit(peer, 2)
    desk.at(140.0)
    generation = desk.stats(peer).generation
    assert desk.die(peer) == []
    assert (desk.stats(peer).generation, lost(desk)) == (generation, 1)


def test_leases_and_acknowledgements_of_the_dead_are_dropped(desk: Desk, holder: Peer) -> None:
    desk.hand_in(holder, batch(1, successes=1))  # its answer is held back
    desk.die(holder)
    assert heard(desk.hand_in(OPERATOR, Reset(1, "a"))) == [(OPERATOR, "ResetDone")]
    assert desk.at(desk.now + 2 * ACK_DELAY) == []
    assert desk.actor.last_words() == []


def test_the_dead_are_forgotten_and_who_comes_with_their_token_begins_anew(
    desk: Desk, peer: Peer
) -> None:
    desk.hand_in(peer, report(1, desk.permit(peer, 2)))
    permit = desk.permit(peer, 3)
    session = desk.actor.session_of(peer)
    assert session is not None
    assert desk.actor.session(session.token) is session
    desk.die(peer)
    assert desk.actor.session_of(peer) is None
    assert desk.actor.session(session.token) is None
    for message in (Acquire(4, "a", LATER), report(2, permit), Sync(5), Goodbye()):
        assert code_of(desk.tell(peer, message)) is ErrorCode.NO_SESSION
    assert desk.ask(peer, hello(1), Welcome).reports == 0
    assert code_of(desk.tell(peer, report(1, permit))) is ErrorCode.UNKNOWN_PERMIT
    desk.permit(peer, 2)  # a number that was used before


def test_the_dead_may_have_been_cut_off_before(desk: Desk, peer: Peer) -> None:
    permit = desk.permit(peer, 2)
    session = desk.actor.session_of(peer)
    assert session is not None
    desk.lose(Send(peer, Synced(1, permit)), gone=False)
    assert desk.actor.session_of(peer) is None
    desk.end(session)
    assert (desk.stats(peer).in_flight, lost(desk)) == (0, 1)


# -- reports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_report_is_counted_as_its_outcome(desk: Desk, peer: Peer, outcome: Outcome) -> None:
    desk.hand_in(peer, report(1, desk.permit(peer, 2), outcome))
    stats = desk.stats(peer)
    totals = (stats.total_successes, stats.total_failures, stats.total_neutral)
    assert totals == tuple(int(outcome is one) for one in Outcome)
    assert stats.in_flight == 0


def test_verdicts_are_counted_stale_and_expired(desk: Desk, peer: Peer) -> None:
    early, late = desk.permit(peer, 2), desk.permit(peer, 3)
    desk.hand_in(peer, report(1, early, Outcome.FAILURE))
    desk.hand_in(peer, report(2, late))
    desk.at(130.0)
    probe = desk.permit(peer, 4)
    desk.at(140.0)  # its permit_timeout
    desk.hand_in(peer, report(3, probe))
    verdicts = [s.message.verdict for s in desk.said if isinstance(s.message, Reported)]
    held = [m.verdict for m in desk.tell(peer, Sync(5)) if isinstance(m, Reported)]
    assert [*verdicts, *held] == [Verdict.COUNTED, Verdict.STALE, Verdict.EXPIRED]


def test_a_report_taken_in_before_is_refused_and_not_counted_again(desk: Desk, peer: Peer) -> None:
    first = report(1, desk.permit(peer, 2), Outcome.FAILURE)
    desk.tell(peer, Declare(3, "a", CircuitConfig()))
    desk.hand_in(peer, first)
    answers = desk.tell(peer, first)
    assert [type(answer) for answer in answers] == [Error]
    assert code_of(answers) is ErrorCode.DUPLICATE_REPORT
    assert desk.stats(peer).total_failures == 1


def test_a_report_that_overtook_another_is_refused_until_the_other_came(
    desk: Desk, peer: Peer
) -> None:
    first, second = desk.permit(peer, 2), desk.permit(peer, 3)
    (error,) = desk.tell(peer, report(2, second))
    assert isinstance(error, Error)
    assert (error.kind, error.ref) == (KINDS[Report], 2)
    assert error.code is ErrorCode.OUT_OF_ORDER
    assert desk.stats(peer).in_flight == 2
    for number, permit in ((1, first), (2, second)):
        desk.hand_in(peer, report(number, permit))
    assert desk.stats(peer).total_successes == 2


def test_a_report_without_its_permit_uses_its_number_up_and_counts_nowhere(
    desk: Desk, peer: Peer
) -> None:
    permit = desk.permit(peer, 2)
    desk.tell(peer, Declare(3, "b", None))
    others = desk.permit(desk.client(2), 2)
    wrong = [
        (report(1, 999), ErrorCode.UNKNOWN_PERMIT),
        (report(2, permit, name="b"), ErrorCode.UNKNOWN_PERMIT),
        (report(3, others), ErrorCode.FOREIGN_PERMIT),
    ]
    for message, code in wrong:
        assert code_of(desk.tell(peer, message)) is code
    desk.hand_in(peer, report(4, permit))
    assert code_of(desk.tell(peer, report(5, permit))) is ErrorCode.UNKNOWN_PERMIT
    stats = desk.stats(peer)
    assert (stats.total_successes, stats.in_flight) == (1, 1)
    assert desk.ask(peer, hello(1), Welcome).reports == 5


def test_a_report_of_an_earlier_epoch_is_counted_and_moves_nothing(desk: Desk, peer: Peer) -> None:
    permit = desk.permit(peer, 2)
    # Its permit has the number of one that is out here, which must stay out.
    orphan = report(1, permit, Outcome.FAILURE, epoch=EPOCH - 1, error="OSError")
    answer = desk.ask(peer, orphan, Reported)
    assert answer.verdict is Verdict.STALE
    stats = desk.stats(peer)
    assert (stats.state, stats.total_failures, stats.in_flight) == (State.CLOSED, 1, 1)
    assert stats.last_error == "OSError"
    unknown = report(2, 1, name="nobody", epoch=EPOCH - 1)
    assert code_of(desk.tell(peer, unknown)) is ErrorCode.UNKNOWN_CIRCUIT
    assert desk.ask(peer, hello(1), Welcome).reports == 2


# -- acknowledgements ------------------------------------------------------------------------------


def test_an_acknowledgement_waits_for_ack_delay_and_no_longer(desk: Desk, peer: Peer) -> None:
    assert desk.actor.next_deadline is None
    desk.at(100.0)
    first, second = desk.permit(peer, 2), desk.permit(peer, 3)
    assert desk.hand_in(peer, report(1, first)) == []
    assert desk.actor.next_deadline == 100.0 + ACK_DELAY
    assert desk.at(100.0 + ACK_DELAY / 2) == []
    assert desk.hand_in(peer, report(2, second)) == []  # does not put off the first
    assert desk.actor.next_deadline == 100.0 + ACK_DELAY
    sent = desk.at(100.0 + ACK_DELAY)
    assert [s.message.number for s in sent if isinstance(s.message, Reported)] == [1, 2]
    assert desk.actor.next_deadline is None


def test_who_asks_for_acknowledgements_gets_them_first(desk: Desk, peer: Peer) -> None:
    first, second = desk.permit(peer, 2), desk.permit(peer, 3)
    desk.hand_in(peer, report(1, first))
    answers = desk.tell(peer, Acquire(4, "a", LATER))
    assert [type(answer) for answer in answers] == [Granted]
    desk.hand_in(peer, report(2, second))
    assert [type(m) for m in desk.tell(peer, Sync(5))] == [Reported, Reported, Synced]
    assert [type(answer) for answer in desk.tell(peer, Sync(6))] == [Synced]


def test_batches_in_a_row_are_acknowledged_as_one_where_their_verdict_is_one(
    desk: Desk, peer: Peer
) -> None:
    permits = [desk.permit(peer, request) for request in (2, 3)]
    for number, generation in enumerate((1, 1, 9, 9, 1), start=1):
        assert desk.tell(peer, batch(number, 1, generation=generation)) == []
    for number, permit in enumerate(permits, start=6):
        desk.tell(peer, report(number, permit))
    assert desk.tell(peer, batch(8, 1)) == []
    answers = desk.tell(peer, Sync(3))[:-1]
    verdicts = [(m.number, m.verdict) for m in answers if isinstance(m, Reported)]
    counted, stale = Verdict.COUNTED, Verdict.STALE
    assert verdicts == [
        (2, counted),
        (4, stale),
        (5, counted),
        (6, counted),
        (7, counted),
        (8, counted),
    ]


def test_another_clients_answer_leaves_them_held_back(desk: Desk, peer: Peer) -> None:
    other = desk.client(2)
    desk.hand_in(peer, report(1, desk.permit(peer, 2)))
    assert [send.peer for send in desk.hand_in(other, Acquire(2, "a", LATER))] == [other]
    assert [send.peer for send in desk.at(101.0)] == [peer]


def test_so_many_acknowledgements_go_at_once_and_not_one_fewer(desk: Desk, peer: Peer) -> None:
    permits = [desk.permit(peer, request) for request in range(2, 2 + ACKS_TOGETHER)]
    answers = [desk.tell(peer, report(n, permit)) for n, permit in enumerate(permits, 1)]
    assert [len(answer) for answer in answers] == [0] * (ACKS_TOGETHER - 1) + [ACKS_TOGETHER]
    numbers = [message.number for message in answers[-1] if isinstance(message, Reported)]
    assert numbers == list(range(1, ACKS_TOGETHER + 1))


def test_a_failure_is_acknowledged_at_once_behind_the_news_and_what_was_held_back(
    desk: Desk, peer: Peer, watcher: Peer
) -> None:
    first, second, third = (desk.permit(peer, request) for request in (2, 3, 4))
    assert desk.hand_in(peer, report(1, first)) == []
    assert desk.hand_in(peer, report(2, second, Outcome.NEUTRAL)) == []
    sent = desk.hand_in(peer, report(3, third, Outcome.FAILURE))
    assert [type(send.message) for send in sent] == [Event, Reported, Reported, Reported]
    numbers = [s.message.number for s in sent if isinstance(s.message, Reported)]
    assert numbers == [1, 2, 3]
    assert desk.at(desk.now + ACK_DELAY) == []


def test_a_new_greeting_drops_what_was_held_back_because_welcome_says_it(
    desk: Desk, peer: Peer
) -> None:
    desk.hand_in(peer, report(1, desk.permit(peer, 2)))
    assert desk.tell(peer, hello(1)) == [
        Welcome(7, PROTOCOL, EPOCH, EPOCH, 100_000_000, 1, 1_000_000)
    ]
    assert desk.at(200.0) == []


def test_a_request_is_decided_once_and_not_after_a_later_one(desk: Desk, peer: Peer) -> None:
    granted = desk.acquire(peer, 5)
    assert desk.acquire(peer, 5) == granted  # as long as it holds the permit
    assert isinstance(granted, Granted)
    desk.hand_in(peer, report(1, granted.operation))
    assert code_of(desk.tell(peer, Acquire(5, "a", LATER))) is ErrorCode.DUPLICATE_REQUEST
    assert code_of(desk.tell(peer, Acquire(4, "a", LATER))) is ErrorCode.DUPLICATE_REQUEST
    assert isinstance(desk.acquire(peer, 6), Granted)
    assert desk.stats(peer).total_requests == 2


# -- operations ------------------------------------------------------------------------------------


def test_operations_rise_over_everything_that_is_decided_for_anybody(
    desk: Desk, peer: Peer, watcher: Peer
) -> None:
    other, control = desk.client(2), Peer(CONTROL, b"c")
    desk.tell(other, Declare(1, "b", TRIPS_AT_ONCE))
    first, second = desk.permit(peer, 2), desk.permit(other, 2)
    desk.hand_in(other, report(1, second))
    desk.tell(other, Sync(3))
    desk.hand_in(peer, report(1, first, Outcome.FAILURE))
    desk.tell(peer, Acquire(4, "a", LATER))
    desk.at(130.0)
    for message in (
        Ping(1),
        GetStats(2, "a"),
        GetMetrics(3, "a"),
        GetList(4, ""),
        Reset(5, "a"),
        Subscribe(6, None),
        Shutdown(7),
    ):
        desk.tell(control, message)
    operations: dict[int, list[Message]] = {}
    for _, answer in desk.said:
        operation = getattr(answer, "operation", None)
        if operation is not None:
            operations.setdefault(operation, []).append(answer)
    # One number is one decision: its answer and the events that it caused.
    for messages in operations.values():
        assert sum(not isinstance(message, Event) for message in messages) <= 1
    reported = {s.message.operation for s in desk.said if isinstance(s.message, Reported)}
    at_once = [number for number in operations if number not in reported]
    assert at_once == sorted(at_once)
    assert sorted(operations) == list(range(1, max(operations) + 1))


def test_an_event_has_the_operation_of_the_report_that_caused_it(
    desk: Desk, peer: Peer, watcher: Peer
) -> None:
    event, reported = desk.hand_in(peer, report(1, desk.permit(peer, 2), Outcome.FAILURE))
    assert isinstance(event.message, Event)
    assert isinstance(reported.message, Reported)
    assert (event.peer, reported.peer) == (watcher, peer)
    assert reported.message.operation == event.message.operation


# -- time ------------------------------------------------------------------------------------------


def test_open_turns_half_open_at_open_timeout_without_traffic_and_not_before(
    desk: Desk, peer: Peer, watcher: Peer
) -> None:
    desk.trip(peer)
    desk.at(101.0)  # the acknowledgement is out of the way
    assert desk.actor.next_deadline == 130.0
    assert desk.at(129.999_999) == []
    (sent,) = desk.at(130.0)
    assert isinstance(sent.message, Event)
    assert (sent.message.old, sent.message.new) == (State.OPEN, State.HALF_OPEN)
    assert (sent.message.cause, sent.message.version) == ("timeout", 2)
    desk.at(131.0)  # and saved is what it changed
    assert desk.actor.next_deadline is None


@pytest.mark.parametrize(
    ("lost_permit", "events", "state"),
    [("failure", ["lost_permit"], State.OPEN), ("ignore", [], State.HALF_OPEN)],
)
def test_a_probe_is_lost_at_permit_timeout_and_not_before(
    desk: Desk, watcher: Peer, lost_permit: str, events: list[str], state: State
) -> None:
    peer = desk.client(1)
    config = CircuitConfig(
        failure_threshold=1,
        permit_timeout=10.0,
        lost_permit="ignore" if lost_permit == "ignore" else "failure",
        consistency="strict",
    )
    desk.tell(peer, Declare(1, "a", config))
    desk.trip(peer)
    desk.at(130.0)
    desk.permit(peer, 3)
    desk.at(131.0)
    assert desk.actor.next_deadline == 140.0
    assert desk.at(139.999_999) == []
    sent = [send.message for send in desk.at(140.0)]
    assert [message.cause for message in sent if isinstance(message, Event)] == events
    assert (desk.stats(peer).state, desk.stats(peer).in_flight) == (state, 0)
    metrics = desk.ask(Peer(CONTROL, b"c"), GetMetrics(1, "a"), MetricsOf).metrics
    assert metrics.permits_lost == 1


def test_an_earlier_deadline_comes_first_and_an_obsolete_one_does_nothing(
    desk: Desk, peer: Peer, watcher: Peer
) -> None:
    sooner = replace(TRIPS_AT_ONCE, open_timeout=5.0)
    desk.trip(peer)
    desk.tell(peer, Declare(3, "b", sooner))
    desk.hand_in(peer, report(2, desk.permit(peer, 4, "b"), Outcome.FAILURE, name="b"))
    desk.at(101.0)
    assert desk.actor.next_deadline == 105.0
    desk.hand_in(Peer(CONTROL, b"c"), Reset(1, "b"))
    assert desk.at(105.0) == desk.at(106.0) == []
    assert desk.actor.next_deadline == 130.0
    desk.hand_in(Peer(CONTROL, b"c"), Reset(2, "a"))
    assert desk.at(130.0) == []
    # Opened again after the reset, it stays open for its whole time.
    desk.hand_in(peer, report(3, desk.permit(peer, 5), Outcome.FAILURE))
    desk.at(159.0)
    assert desk.stats(peer).state is State.OPEN
    desk.at(160.0)
    assert desk.stats(peer).state is State.HALF_OPEN


def test_a_trip_before_an_armed_timer_that_became_obsolete_still_ends_in_time(
    desk: Desk, peer: Peer
) -> None:
    desk.trip(peer)
    desk.at(110.0)
    desk.hand_in(Peer(CONTROL, b"c"), Reset(1, "a"))
    desk.hand_in(peer, report(2, desk.permit(peer, 2), Outcome.FAILURE))
    for now, state in ((130.0, State.OPEN), (139.9, State.OPEN), (140.0, State.HALF_OPEN)):
        desk.at(now)
        assert desk.stats(peer).state is state


# -- events ----------------------------------------------------------------------------------------


def test_every_subscriber_gets_every_event_in_order_and_once(desk: Desk, peer: Peer) -> None:
    watchers = [Peer(CONTROL, b"w%d" % number) for number in range(3)]
    for watcher in watchers:
        desk.tell(watcher, Subscribe(1, None))
        desk.tell(watcher, Subscribe(2, None))  # twice is once
    control = Peer(CONTROL, b"c")
    for request in range(5):
        desk.hand_in(control, Reset(request, "a"))
    for watcher in watchers:
        events = [s.message for s in desk.said if s.peer == watcher]
        assert [e.version for e in events if isinstance(e, Event)] == [1, 2, 3, 4, 5]
    assert not [s for s in desk.said if s.peer == control and isinstance(s.message, Event)]


def test_versions_rise_by_one_over_all_circuits(desk: Desk, peer: Peer, watcher: Peer) -> None:
    desk.tell(peer, Declare(2, "b", None))
    for request, name in enumerate("abba"):
        desk.hand_in(Peer(CONTROL, b"c"), Reset(request, name))
    events = [s.message for s in desk.said if isinstance(s.message, Event)]
    assert [(event.version, event.name) for event in events] == [
        (1, "a"),
        (2, "b"),
        (3, "b"),
        (4, "a"),
    ]


def test_subscribing_since_a_version_brings_what_came_after_it(desk: Desk, peer: Peer) -> None:
    watcher = Peer(CONTROL, b"w")
    for request in range(5):
        desk.hand_in(Peer(CONTROL, b"c"), Reset(request, "a"))
    for since, version, missed in (
        (None, 5, []),
        (5, 5, []),
        (3, 3, [4, 5]),
        (0, 0, [1, 2, 3, 4, 5]),
        (9, 5, []),
    ):
        subscribed, *events = desk.tell(watcher, Subscribe(1, since))
        assert isinstance(subscribed, Subscribed)
        assert subscribed.version == version
        assert [e.version for e in events if isinstance(e, Event)] == missed


def test_events_beyond_those_kept_are_gone_and_subscribed_says_so(desk: Desk, peer: Peer) -> None:
    control = Peer(CONTROL, b"c")
    for request in range(EVENTS_KEPT + 3):
        desk.hand_in(control, Reset(request, "a"))
    for since, version in ((0, 3), (3, 3), (4, 4)):
        subscribed, *events = desk.tell(Peer(CONTROL, b"w"), Subscribe(1, since))
        assert isinstance(subscribed, Subscribed)
        assert subscribed.version == version
        assert len(events) == EVENTS_KEPT + 3 - version


def test_a_subscriber_that_is_gone_is_sent_nothing_more_and_a_slow_one_is(
    desk: Desk, peer: Peer, watcher: Peer
) -> None:
    control = Peer(CONTROL, b"c")
    _, event = desk.hand_in(control, Reset(1, "a"))
    desk.lose(event, gone=False)
    desk.at(desk.now + SPARED)
    assert len(desk.hand_in(control, Reset(2, "a"))) == 2
    desk.lose(event, gone=True)
    assert len(desk.hand_in(control, Reset(3, "a"))) == 1


@pytest.mark.parametrize("how", ["Goodbye", "death", "a newer Hello"])
def test_the_events_of_a_client_that_has_gone_are_sent_to_nobody(desk: Desk, how: str) -> None:
    peer, watching = desk.client(1), Peer(CONTROL, b"1")
    desk.tell(peer, Declare(1, "a", TRIPS_AT_ONCE))
    desk.tell(watching, hello(1))
    desk.tell(watching, Subscribe(1, None))
    _, event = desk.hand_in(OPERATOR, Reset(1, "a"))
    desk.lose(event, gone=False)  # so that it is to be told again
    if how == "Goodbye":
        desk.hand_in(peer, Goodbye())
    elif how == "death":
        desk.die(peer)
    else:
        desk.tell(Peer(CONTROL, b"2"), hello(1))
    assert (desk.actor._subscribers, desk.actor._behind) == ({}, {})
    assert heard(desk.hand_in(OPERATOR, Reset(2, "a"))) == [(OPERATOR, "ResetDone")]


def test_who_greets_again_where_it_has_subscribed_goes_on_hearing_of_events(desk: Desk) -> None:
    peer, watching = desk.client(1), Peer(CONTROL, b"1")
    desk.tell(peer, Declare(1, "a", TRIPS_AT_ONCE))
    desk.tell(watching, hello(1))
    desk.tell(watching, Subscribe(1, None))
    desk.tell(watching, hello(1))
    assert (watching, "Event") in heard(desk.hand_in(OPERATOR, Reset(1, "a")))


def test_who_is_given_up_but_may_live_goes_on_hearing_of_events(desk: Desk) -> None:
    peer, watching = desk.client(1), Peer(CONTROL, b"1")
    desk.tell(peer, Declare(1, "a", TRIPS_AT_ONCE))
    desk.tell(watching, hello(1))
    desk.tell(watching, Subscribe(1, None))
    session = desk.actor.session_of(peer)
    assert session is not None
    assert desk.actor.give_up(session, desk.now) == []
    assert desk.actor.session_of(peer) is None
    assert (watching, "Event") in heard(desk.hand_in(OPERATOR, Reset(1, "a")))


def test_however_many_ask_without_a_session_only_so_many_are_kept_in_mind() -> None:
    desk = Desk()
    desk.actor.max_clients = 2
    for number in range(20):
        desk.tell(Peer(CONTROL, b"%d" % number), hello(number))  # which checks the actor
    assert len(desk.actor._asking) == 4


def test_who_missed_the_last_event_is_told_of_it_again_until_it_is_taken(
    desk: Desk, peer: Peer, watcher: Peer
) -> None:
    assert desk.actor.next_deadline is None
    events = [desk.hand_in(Peer(CONTROL, b"c"), Reset(number, "a"))[-1] for number in (1, 2, 3)]
    for event in events:  # the second time within the time that it is spared
        desk.lose(event, gone=False)
    for _ in range(3):
        due = desk.now + TELL_AGAIN
        assert desk.actor.next_deadline == due
        assert desk.at(due - 0.001) == []
        assert desk.at(due) == [events[-1]]
        desk.lose(events[-1], gone=False)
    desk.at(desk.now + TELL_AGAIN)
    assert desk.actor.next_deadline is None  # it has taken it


def test_who_missed_an_event_again_is_told_after_who_missed_one_meanwhile(
    desk: Desk, peer: Peer, watcher: Peer
) -> None:
    other = Peer(CONTROL, b"other")
    desk.tell(other, Subscribe(1, None))
    first, second = desk.hand_in(Peer(CONTROL, b"c"), Reset(1, "a"))[-2:]
    begin = desk.now
    desk.lose(first, gone=False)
    desk.at(begin + 0.25)
    desk.lose(second, gone=False)
    desk.at(begin + 0.5)
    desk.lose(first, gone=False)
    assert desk.actor.next_deadline == begin + 0.25 + TELL_AGAIN
    assert desk.at(begin + 0.25 + TELL_AGAIN) == [second]
    assert desk.at(begin + 0.5 + TELL_AGAIN) == [first]


def test_who_is_told_again_is_told_beside_what_happens_then(
    desk: Desk, peer: Peer, watcher: Peer
) -> None:
    desk.trip(peer)
    desk.at(desk.now + 30.0 - TELL_AGAIN)
    missed = next(send for send in desk.said if isinstance(send.message, Event))
    desk.lose(missed, gone=False)
    told = [send.message for send in desk.at(desk.now + TELL_AGAIN)]
    assert [(event.version, event.new) for event in told if isinstance(event, Event)] == [
        (2, State.HALF_OPEN),
        (2, State.HALF_OPEN),
    ]


def test_who_is_gone_is_not_told_again(desk: Desk, peer: Peer, watcher: Peer) -> None:
    _, event = desk.hand_in(Peer(CONTROL, b"c"), Reset(1, "a"))
    desk.lose(event, gone=False)
    desk.lose(event, gone=True)
    assert desk.at(desk.now + TELL_AGAIN) == []


def test_who_did_not_read_an_answer_and_subscribes_to_nothing_is_sent_no_events(
    desk: Desk, peer: Peer
) -> None:
    control = Peer(CONTROL, b"c")
    (pong,) = desk.hand_in(control, Ping(1))
    assert desk.lose(pong, gone=False) == []
    assert [type(send.message) for send in desk.hand_in(control, Reset(2, "a"))] == [ResetDone]


# -- what programs and people ask ------------------------------------------------------------------


def test_ping_needs_no_greeting_and_tells_pid_and_circuits(desk: Desk, peer: Peer) -> None:
    pong = desk.ask(Peer(CONTROL, b"c"), Ping(9), Pong)
    assert (pong.request, pong.pid, pong.circuits) == (9, 4242, 1)


@pytest.mark.parametrize("ask", [GetStats, GetMetrics, GetHistory, Reset])
def test_an_unknown_circuit_has_no_answer_but_an_error(
    desk: Desk,
    peer: Peer,
    ask: type[GetStats] | type[GetMetrics] | type[GetHistory] | type[Reset],
) -> None:
    (error,) = desk.tell(Peer(CONTROL, b"c"), ask(8, "nobody"))
    assert isinstance(error, Error)
    assert (error.kind, error.ref) == (KINDS[ask], 8)
    assert error.code is ErrorCode.UNKNOWN_CIRCUIT


def test_a_history_is_the_changes_of_that_circuit_oldest_first_and_no_more_than_are_kept(
    desk: Desk, peer: Peer
) -> None:
    control = Peer(CONTROL, b"c")
    desk.tell(peer, Declare(2, "b", None))
    assert desk.ask(control, GetHistory(3, "a"), HistoryOf).changes == ()
    desk.trip(peer)
    desk.tell(control, Reset(4, "b"))
    desk.at(130.0)
    history = desk.ask(control, GetHistory(5, "a"), HistoryOf)
    at = [datetime.fromtimestamp(OFFSET + seconds, timezone.utc) for seconds in (100.0, 130.0)]
    assert history.request == 5
    assert history.changes == (
        StateChange(
            version=1, old=State.CLOSED, new=State.OPEN, cause="failures", generation=2, at=at[0]
        ),
        StateChange(
            version=3, old=State.OPEN, new=State.HALF_OPEN, cause="timeout", generation=3, at=at[1]
        ),
    )
    for number in range(HISTORY):
        desk.tell(control, Reset(6 + number, "a"))
    changes = desk.ask(control, GetHistory(5, "a"), HistoryOf).changes
    assert [change.version for change in changes] == list(range(4, 4 + HISTORY))


def test_reading_moves_nothing(desk: Desk, peer: Peer, watcher: Peer) -> None:
    desk.trip(peer)
    control = Peer(CONTROL, b"c")
    before = desk.stats(peer)
    for message in (Ping(1), GetStats(2, "a"), GetMetrics(3, "a"), GetList(4, ""), hello(3)):
        assert all(send.peer == control for send in desk.hand_in(control, message))
    assert desk.stats(peer) == before


def test_lists_are_sorted_pages_and_say_whether_there_is_more(desk: Desk, peer: Peer) -> None:
    names = sorted(f"circuit {number}" for number in range(2 * PAGE))
    for name in reversed(names):
        desk.tell(peer, Declare(1, name, None))
    names = ["a", *names]
    after, pages = "", []
    while True:
        page = desk.ask(Peer(CONTROL, b"c"), GetList(1, after), ListOf)
        pages.append([stats.name for stats in page.circuits])
        if not page.more:
            break
        after = pages[-1][-1]
    assert [len(page) for page in pages] == [PAGE, PAGE, 1]
    assert [name for page in pages for name in page] == names


def test_a_list_of_exactly_one_page_has_no_more(desk: Desk, peer: Peer) -> None:
    for number in range(PAGE - 1):
        desk.tell(peer, Declare(1, f"c{number}", None))
    control = Peer(CONTROL, b"c")
    page = desk.ask(control, GetList(1, ""), ListOf)
    assert (len(page.circuits), page.more) == (PAGE, False)
    between = desk.ask(control, GetList(2, "b"), ListOf)  # a name that is not there
    assert (len(between.circuits), between.more) == (PAGE - 1, False)


def test_reset_closes_from_anywhere_keeps_totals_and_bumps_the_generation(
    desk: Desk, peer: Peer, watcher: Peer
) -> None:
    desk.trip(peer)
    done, event = desk.hand_in(Peer(CONTROL, b"c"), Reset(7, "a"))
    assert isinstance(done.message, ResetDone)
    assert isinstance(event.message, Event)
    assert (done.message.request, done.message.generation) == (7, 3)
    assert done.message.operation == event.message.operation
    assert (event.message.old, event.message.new) == (State.OPEN, State.CLOSED)
    assert (event.message.cause, event.message.generation) == ("reset", 3)
    stats = desk.stats(peer)
    assert (stats.state, stats.total_failures, stats.generation) == (State.CLOSED, 1, 3)


def test_an_outcome_from_before_a_reset_is_stale(desk: Desk, peer: Peer) -> None:
    permit = desk.permit(peer, 2)
    desk.hand_in(Peer(CONTROL, b"c"), Reset(1, "a"))
    reported = desk.ask(peer, report(1, permit, Outcome.FAILURE), Reported)
    assert reported.verdict is Verdict.STALE
    assert desk.stats(peer).state is State.CLOSED


def test_times_of_day_follow_the_utc_offset(desk: Desk, peer: Peer) -> None:
    desk.trip(peer)
    stats = desk.stats(peer)
    assert stats.state_changed_at == datetime.fromtimestamp(OFFSET + 100.0, timezone.utc)
    assert stats.last_error_at == stats.state_changed_at


def test_shutdown_is_answered_and_the_actor_wants_to_stop(desk: Desk) -> None:
    assert not desk.actor.stopping
    assert desk.ask(Peer(CONTROL, b"c"), Shutdown(3), Stopping).request == 3
    assert desk.actor.stopping


# -- leases ----------------------------------------------------------------------------------------

LEASED: Final = replace(TRIPS_AT_ONCE, consistency="leased")
OPERATOR: Final = Peer(CONTROL, b"operator")


@pytest.fixture
def holder(desk: Desk) -> Peer:
    """Client 1, with the circuit "a" declared as LEASED, and a lease on it."""
    holder = desk.client(1)
    desk.tell(holder, Declare(1, "a", LEASED))
    desk.permit(holder, 2)
    return holder


def batch(
    number: int,
    successes: int = 0,
    neutral: int = 0,
    rejected: int = 0,
    *,
    name: str = "a",
    epoch: int = EPOCH,
    generation: int = 1,
) -> Batch:
    durations = tuple(range(1_000, 1_000 + 500 * min(successes, 100), 500))
    return Batch(number, name, epoch, generation, successes, neutral, rejected, durations)


def heard(sends: list[Send]) -> list[tuple[Peer, str]]:
    return [(send.peer, type(send.message).__name__) for send in sends]


def verdict_of(desk: Desk, peer: Peer, message: Report | Batch) -> Verdict:
    answers = [*desk.tell(peer, message), *desk.tell(peer, Sync(1))]
    (verdict,) = [m.verdict for m in answers if isinstance(m, Reported)]
    return verdict


def test_granted_is_followed_by_a_lease_once_for_each_connection_and_generation(
    desk: Desk, holder: Peer
) -> None:
    lease = Leased("a", 1, State.CLOSED, None, None)
    assert [send.message for send in desk.said].count(lease) == 1
    assert desk.said[-1] == (holder, lease)
    assert heard(desk.hand_in(holder, Acquire(3, "a", LATER))) == [(holder, "Granted")]
    other = desk.client(2)
    assert desk.tell(other, Acquire(2, "a", LATER))[1:] == [lease]
    desk.hand_in(OPERATOR, Reset(1, "a"))  # both are told of the next generation, and have that
    for peer in (holder, other):
        assert heard(desk.hand_in(peer, Acquire(4, "a", LATER))) == [(peer, "Granted")]


def test_an_acquire_sent_again_is_answered_without_another_lease(desk: Desk, holder: Peer) -> None:
    assert heard(desk.hand_in(holder, Acquire(2, "a", LATER))) == [(holder, "Granted")]


def test_rejected_is_followed_by_a_lease_until_the_circuit_turns_half_open(
    desk: Desk, holder: Peer
) -> None:
    desk.hand_in(holder, report(1, None, Outcome.FAILURE, error="OSError: down"))
    desk.at(110.0)
    late = desk.client(2)
    rejected, lease = desk.tell(late, Acquire(1, "a", LATER))
    assert isinstance(rejected, Rejected)
    assert lease == Leased("a", 2, State.OPEN, 130_000_000, "OSError: down")
    assert heard(desk.hand_in(late, Acquire(2, "a", LATER))) == [(late, "Rejected")]


def test_a_strict_circuit_is_never_leased(desk: Desk, peer: Peer) -> None:
    assert heard(desk.hand_in(peer, Acquire(2, "a", LATER))) == [(peer, "Granted")]
    permit = desk.permit(peer, 3)
    desk.hand_in(peer, report(1, permit, Outcome.FAILURE))
    assert heard(desk.hand_in(peer, Acquire(4, "a", LATER))) == [(peer, "Rejected")]
    assert not [send for send in desk.said if isinstance(send.message, Leased)]


def test_a_half_open_circuit_is_leased_to_nobody(desk: Desk, holder: Peer) -> None:
    desk.hand_in(holder, report(1, None, Outcome.FAILURE))
    desk.at(130.0)
    assert heard(desk.hand_in(holder, Acquire(3, "a", LATER))) == [(holder, "Granted")]
    assert heard(desk.hand_in(holder, Acquire(4, "a", LATER))) == [(holder, "Rejected")]


def test_of_a_trip_holders_hear_first_then_subscribers_and_last_who_reported_the_failure(
    desk: Desk, holder: Peer, watcher: Peer
) -> None:
    other = desk.client(2)
    desk.permit(other, 1)
    assert desk.hand_in(holder, batch(1, 3)) == []
    sent = desk.hand_in(holder, report(2, None, Outcome.FAILURE, error="OSError: down"))
    assert heard(sent) == [
        (holder, "Leased"),
        (other, "Leased"),
        (watcher, "Event"),
        (holder, "Reported"),
        (holder, "Reported"),
    ]
    assert sent[0].message == Leased("a", 2, State.OPEN, 130_000_000, "OSError: down")
    assert sent[1].message == sent[0].message
    assert [send.message[0] for send in sent[-2:]] == [1, 2]


def test_holders_hear_of_a_trip_by_a_permit_too(desk: Desk, holder: Peer) -> None:
    other = desk.client(2)
    permit = desk.permit(other, 1)
    sent = desk.hand_in(other, report(1, permit, Outcome.FAILURE))
    assert heard(sent) == [(holder, "Leased"), (other, "Leased"), (other, "Reported")]


def test_a_failure_that_trips_nothing_is_told_to_nobody_else(desk: Desk, holder: Peer) -> None:
    desk.tell(holder, Declare(3, "a", replace(LEASED, failure_threshold=2)))
    sent = desk.hand_in(holder, report(1, None, Outcome.FAILURE))
    assert heard(sent) == [(holder, "Reported")]
    sent = desk.hand_in(holder, report(2, None, Outcome.FAILURE))
    assert heard(sent) == [(holder, "Leased"), (holder, "Reported")]


class OneByOne(dict[str, Any]):
    """May be asked for one thing, and not for all."""

    def values(self) -> Any:
        raise AssertionError("looked through all")

    items = keys = __iter__ = values


def test_who_goes_is_looked_for_in_what_it_has_leased_and_not_in_every_circuit() -> None:
    leases: Leases[str] = Leases()
    for number in range(100):
        leases.grant("one", Circuit(f"c{number}", CircuitConfig(), 0.0))
    leases.grant("other", Circuit("c7", CircuitConfig(), 0.0))
    leases._holders = OneByOne(leases._holders)
    leases.drop("other")
    assert leases.holders("c7") == ["one"]


def test_a_circuit_that_nobody_leases_any_more_takes_no_place(desk: Desk, holder: Peer) -> None:
    assert list(desk.actor._leases._holders) == ["a"]
    desk.die(holder)
    assert desk.actor._leases._holders == {}


def test_a_reset_leases_the_closed_circuit_of_the_next_generation(
    desk: Desk, holder: Peer, watcher: Peer
) -> None:
    for generation, trip in ((2, False), (4, True)):
        if trip:
            desk.hand_in(holder, report(1, None, Outcome.FAILURE, generation=2))
        sent = desk.hand_in(OPERATOR, Reset(1, "a"))
        assert heard(sent) == [(OPERATOR, "ResetDone"), (holder, "Leased"), (watcher, "Event")]
        lease = sent[1].message
        assert isinstance(lease, Leased)
        assert lease[:4] == ("a", generation, State.CLOSED, None)


def test_half_open_is_told_to_no_holder_and_ends_every_lease(
    desk: Desk, holder: Peer, watcher: Peer
) -> None:
    desk.hand_in(holder, report(1, None, Outcome.FAILURE))
    assert heard(desk.at(130.0)) == [(watcher, "Event")]
    probe = desk.permit(holder, 3)
    assert heard(desk.hand_in(holder, report(2, probe))) == [(watcher, "Event")]
    assert desk.stats(holder).state is State.CLOSED
    *_, lease = desk.tell(holder, Acquire(4, "a", LATER))
    assert lease == Leased("a", 4, State.CLOSED, None, None)


def test_a_config_that_becomes_strict_revokes_and_any_other_leaves_leases_alone(
    desk: Desk, holder: Peer
) -> None:
    other = desk.client(2)
    desk.permit(other, 1)
    looser = replace(LEASED, failure_threshold=9)
    assert heard(desk.hand_in(other, Declare(2, "a", looser))) == [(other, "Declared")]
    sent = desk.hand_in(other, Declare(3, "a", replace(looser, consistency="strict")))
    assert heard(sent) == [(other, "Declared"), (holder, "Revoked"), (other, "Revoked")]
    assert sent[1].message == Revoked("a", 1)
    assert heard(desk.hand_in(holder, Acquire(3, "a", LATER))) == [(holder, "Granted")]
    assert heard(desk.hand_in(OPERATOR, Reset(1, "a"))) == [(OPERATOR, "ResetDone")]
    desk.hand_in(other, Declare(4, "a", looser))  # and back
    assert [kind for _, kind in heard(desk.hand_in(holder, Acquire(4, "a", LATER)))] == [
        "Granted",
        "Leased",
    ]


@pytest.mark.parametrize("how", ["goodbye", "hello", "moved", "undelivered", "gone"])
def test_leases_end_with_the_connection_that_had_them(desk: Desk, holder: Peer, how: str) -> None:
    other = desk.client(2)
    desk.permit(other, 1)
    match how:
        case "goodbye":
            desk.hand_in(holder, Goodbye())
        case "hello":
            desk.hand_in(holder, hello(1))
        case "moved":
            desk.hand_in(Peer(DATA, b"another connection"), hello(1))
        case "undelivered" | "gone":
            push = Send(holder, Leased("a", 1, State.CLOSED, None, None))
            desk.lose(push, gone=how == "gone")
    sent = desk.hand_in(OPERATOR, Reset(1, "a"))
    assert heard(sent) == [(OPERATOR, "ResetDone"), (other, "Leased")]
    desk.hand_in(holder, hello(1))
    assert [kind for _, kind in heard(desk.hand_in(holder, Acquire(9, "a", LATER)))] == [
        "Granted",
        "Leased",
    ]


def test_who_missed_a_lease_cannot_renew_the_one_before_it(desk: Desk, holder: Peer) -> None:
    _, push = desk.hand_in(OPERATOR, Reset(1, "a"))
    assert heard([push]) == [(holder, "Leased")]
    desk.lose(push, gone=False)
    for message in (batch(1, 1), report(1, None), Acquire(3, "a", LATER), Sync(4)):
        assert code_of(desk.tell(holder, message)) is ErrorCode.NO_SESSION
    assert desk.at(desk.now + ACK_DELAY) == []
    assert desk.ask(holder, hello(1), Welcome).reports == 0


def test_who_is_gone_is_told_nothing_more_but_what_it_had_said_before_is_taken_in(
    desk: Desk, holder: Peer
) -> None:
    granted = desk.permit(holder, 3)
    desk.hand_in(holder, batch(1, successes=1))
    (answer,) = [s for s in desk.hand_in(holder, Sync(4)) if isinstance(s.message, Synced)]
    desk.hand_in(holder, batch(2, successes=1))
    desk.lose(answer, gone=True)
    assert desk.at(desk.now + ACK_DELAY) == []
    assert heard(desk.hand_in(OPERATOR, Reset(1, "a"))) == [(OPERATOR, "ResetDone")]
    desk.hand_in(holder, batch(3, successes=1))
    desk.hand_in(holder, report(4, granted))
    assert desk.stats(holder).total_successes == 4
    assert desk.stats(holder).in_flight == 1  # what the fixture holds
    again = Peer(DATA, b"another connection")
    assert desk.ask(again, hello(1), Welcome).reports == 4
    assert code_of(desk.tell(holder, batch(5, successes=1))) is ErrorCode.NO_SESSION


def test_an_event_that_was_not_delivered_ends_no_lease(
    desk: Desk, holder: Peer, watcher: Peer
) -> None:
    *_, event = desk.hand_in(OPERATOR, Reset(1, "a"))
    desk.lose(event, gone=True)
    assert (holder, "Leased") in heard(desk.hand_in(OPERATOR, Reset(2, "a")))


def test_a_batch_is_counted_call_by_call(desk: Desk, holder: Peer) -> None:
    before = desk.stats(holder)
    assert verdict_of(desk, holder, batch(1, 4, 2, 3)) is Verdict.COUNTED
    after = desk.stats(holder)
    assert after.total_requests == before.total_requests + 9
    assert (after.total_successes, after.total_neutral, after.total_rejected) == (4, 2, 3)
    assert (after.consecutive_successes, after.in_flight) == (4, 1)
    metrics = desk.ask(OPERATOR, GetMetrics(1, "a"), MetricsOf).metrics
    assert (metrics.requests_total, metrics.requests_rejected) == (4, 3)
    assert (metrics.min_latency, metrics.max_latency) == (0.001, 0.0025)
    assert metrics.stale_reports == 0


@pytest.mark.parametrize(("successes", "state"), [(0, State.OPEN), (1, State.CLOSED)])
def test_successes_in_a_batch_end_a_run_of_failures_and_nothing_else_in_it_does(
    desk: Desk, holder: Peer, successes: int, state: State
) -> None:
    desk.tell(holder, Declare(3, "a", replace(LEASED, failure_threshold=2)))
    desk.hand_in(holder, report(1, None, Outcome.FAILURE))
    desk.hand_in(holder, batch(2, successes, neutral=2, rejected=2))
    desk.hand_in(holder, report(3, None, Outcome.FAILURE))
    assert desk.stats(holder).state is state


@pytest.mark.parametrize(
    ("generation", "epoch", "verdict"),
    [
        (1, EPOCH, Verdict.STALE),
        (2, EPOCH, Verdict.COUNTED),
        (3, EPOCH, Verdict.STALE),
        (0, EPOCH, Verdict.STALE),
        (2, EPOCH - 1, Verdict.STALE),
    ],
)
def test_an_outcome_under_a_lease_is_counted_if_it_is_the_current_one_and_else_stale(
    desk: Desk, holder: Peer, generation: int, epoch: int, verdict: Verdict
) -> None:
    desk.hand_in(OPERATOR, Reset(1, "a"))
    many = batch(1, 4, 2, 3, generation=generation, epoch=epoch)
    assert verdict_of(desk, holder, many) is verdict
    counted = verdict is Verdict.COUNTED
    assert desk.stats(holder).consecutive_successes == (4 if counted else 0)
    one = report(2, None, Outcome.FAILURE, generation=generation, epoch=epoch)
    assert desk.ask(holder, one, Reported).verdict is verdict
    stats = desk.stats(holder)
    assert stats.state is (State.OPEN if counted else State.CLOSED)
    totals = stats.total_successes, stats.total_failures, stats.total_neutral, stats.total_rejected
    assert totals == (4, 1, 2, 3)
    metrics = desk.ask(OPERATOR, GetMetrics(1, "a"), MetricsOf).metrics
    assert metrics.stale_reports == (0 if counted else 7)  # a rejection was not late for anything


def test_nothing_under_a_lease_passes_for_a_probe(desk: Desk, holder: Peer) -> None:
    desk.hand_in(holder, report(1, None, Outcome.FAILURE))
    desk.at(130.0)
    generation = desk.stats(holder).generation
    for message in (
        batch(2, 5, generation=generation),
        report(3, None, Outcome.SUCCESS, generation=generation),
        report(4, None, Outcome.FAILURE, generation=generation),
    ):
        assert verdict_of(desk, holder, message) is Verdict.STALE
        stats = desk.stats(holder)
        assert (stats.state, stats.generation) == (State.HALF_OPEN, generation)
        assert stats.consecutive_successes == 0


def test_batches_and_reports_share_one_sequence_of_numbers(desk: Desk, holder: Peer) -> None:
    for wrong, code in (
        (batch(2, 1), ErrorCode.OUT_OF_ORDER),
        (batch(0, 1), ErrorCode.DUPLICATE_REPORT),
    ):
        (error,) = desk.tell(holder, wrong)
        assert isinstance(error, Error)
        assert (error.kind, error.ref, error.code) == (KINDS[Batch], wrong.number, code)
    desk.hand_in(holder, batch(1, 1))
    for again in (batch(1, 1), report(1, None)):
        assert code_of(desk.tell(holder, again)) is ErrorCode.DUPLICATE_REPORT
    desk.hand_in(holder, report(2, None))
    desk.hand_in(holder, batch(3, 1))
    assert desk.stats(holder).total_successes == 3
    assert desk.ask(holder, hello(1), Welcome).reports == 3


def test_a_batch_on_an_unknown_circuit_uses_its_number_up(desk: Desk, holder: Peer) -> None:
    assert code_of(desk.tell(holder, batch(1, 1, name="nobody"))) is ErrorCode.UNKNOWN_CIRCUIT
    assert desk.ask(holder, hello(1), Welcome).reports == 1


def test_a_batch_is_acknowledged_after_ack_delay_and_not_before(desk: Desk, holder: Peer) -> None:
    assert desk.hand_in(holder, batch(1, 1)) == []
    assert desk.at(100.0 + ACK_DELAY / 2) == []
    assert heard(desk.at(100.0 + ACK_DELAY)) == [(holder, "Reported")]


# -- when nobody uses it ---------------------------------------------------------------------------


def test_it_is_in_use_as_long_as_there_is_a_session_and_idle_since_the_last_went(
    desk: Desk,
) -> None:
    one, two = desk.client(1), desk.client(2)
    assert desk.actor.idle_since is None
    desk.at(110.0)
    desk.hand_in(one, Goodbye())
    assert desk.actor.idle_since is None
    desk.at(120.0)
    desk.die(two)
    desk.at(130.0)
    assert desk.actor.idle_since == 120.0


def test_a_session_that_is_cut_off_and_lives_is_in_use(desk: Desk, peer: Peer) -> None:
    desk.lose(Send(peer, Synced(1, 1)), gone=False)
    assert desk.actor.session_of(peer) is None
    assert desk.actor.idle_since is None


def test_who_only_asks_has_used_it_then_and_not_for_ever(desk: Desk) -> None:
    assert desk.actor.idle_since == -math.inf, "it was never used"
    control = Peer(CONTROL, b"c")
    desk.ask(control, Ping(1), Pong)
    desk.at(150.0)
    assert desk.actor.idle_since == 100.0


# -- what survives ---------------------------------------------------------------------------------


def successor(desk: Desk, *, epoch: int = 1, later: float = 0.0, behind: bool = False) -> Desk:
    """The manager of a desk is killed when it has saved everything; this is the next one's."""
    changes = desk.actor.everything()
    counts = dict(changes.counts)
    circuits = {name: (standing, counts[name]) for name, standing in changes.standings}
    origin = None if behind else desk.actor.origin
    saved = Saved(desk.actor.epoch, origin, circuits, changes.sessions, changes.events)
    other = Desk()
    other.now = desk.now + later
    other.actor = Actor(epoch, pid=4242, utc_offset=OFFSET)
    other.actor.restore(saved, other.now)
    other.actor.check()
    return other


@pytest.mark.parametrize(("theirs", "epoch"), [(1, EPOCH + 1), (EPOCH, EPOCH + 1), (99, 99)])
def test_the_epoch_of_a_successor_is_higher_whatever_the_time_of_day_and_its_origin_is_the_firsts(
    desk: Desk, peer: Peer, theirs: int, epoch: int
) -> None:
    second = successor(desk, epoch=theirs)
    third = successor(second, epoch=theirs)
    assert (second.actor.epoch, second.actor.origin) == (epoch, EPOCH)
    assert (third.actor.epoch, third.actor.origin) == (epoch + 1, EPOCH)
    welcome = third.ask(Peer(DATA, b"x"), hello(9), Welcome)
    assert (welcome.epoch, welcome.origin) == (epoch + 1, EPOCH)


def test_no_epoch_comes_twice_of_those_that_begin_from_a_journal_that_is_behind(
    desk: Desk, peer: Peer
) -> None:
    first = successor(desk, later=0.5, behind=True)  # that it was there, it cannot write down
    second = successor(desk, later=0.75, behind=True)
    assert desk.now == 100.0
    assert first.actor.epoch == EPOCH + 1 + 100_500_000
    assert second.actor.epoch == EPOCH + 1 + 100_750_000
    assert (first.actor.origin, second.actor.origin) == (first.actor.epoch, second.actor.epoch)
    assert successor(desk, epoch=10**15, behind=True).actor.epoch == 10**15


def test_a_successor_knows_how_far_each_session_has_come(desk: Desk, peer: Peer) -> None:
    for number in (1, 2, 3):
        desk.hand_in(peer, report(number, None))
    other = successor(desk)
    again = Peer(DATA, b"again")
    assert other.ask(again, hello(1), Welcome).reports == 3
    assert other.ask(Peer(DATA, b"new"), hello(2), Welcome).reports == 0
    assert code_of(other.tell(again, report(3, None))) is ErrorCode.DUPLICATE_REPORT
    other.hand_in(again, report(4, None))
    assert other.stats(again).total_successes == 4


@pytest.mark.parametrize("how", ["goodbye", "died"])
def test_a_successor_does_not_know_sessions_that_had_ended(
    desk: Desk, peer: Peer, how: str
) -> None:
    desk.hand_in(peer, report(1, None))
    if how == "goodbye":
        desk.hand_in(peer, Goodbye())
    else:
        desk.die(peer)
    assert desk.actor.save().ended == [b"\x01" * 16]
    assert successor(desk).ask(Peer(DATA, b"x"), hello(1), Welcome).reports == 0


def test_who_begins_another_line_as_more_was_told_than_saved_still_knows_the_sessions() -> None:
    other = Desk()
    saved = Saved(EPOCH, None, {}, [SavedSession(b"\x01" * 16, 1_001, 5, 41)], [])
    other.actor.restore(saved, other.now)
    welcome = other.ask(Peer(DATA, b"x"), hello(1), Welcome)
    assert welcome.origin == welcome.epoch > EPOCH
    assert welcome.reports == 41


def test_a_predecessors_session_is_forgotten_after_an_hour_and_not_before_and_only_if_it_is_absent(
    desk: Desk, peer: Peer
) -> None:
    desk.hand_in(desk.client(2), report(1, None))
    desk.hand_in(peer, report(1, None))
    other = successor(desk)
    other.ask(Peer(DATA, b"back"), hello(2), Welcome)
    assert other.actor.next_deadline == other.now + ABSENCE
    other.at(other.now + ABSENCE - 1)
    assert len(other.actor.everything().sessions) == 2
    other.at(other.now + 1)
    assert [session.token for session in other.actor.everything().sessions] == [b"\x02" * 16]
    assert other.actor.session(b"\x01" * 16) is None
    assert other.actor.next_deadline is None
    other.at(other.now + 1)  # and nothing more comes of it


def test_a_predecessors_session_is_not_taken_for_one_that_has_fallen_silent(
    desk: Desk, peer: Peer
) -> None:
    desk.hand_in(peer, report(1, None))
    other = successor(desk)
    other.at(other.now + 100.0)
    assert other.actor.silent(other.now) == []
    other.ask(Peer(DATA, b"back"), hello(1), Welcome)
    assert [session.pid for session in other.actor.silent(other.now)] == [1_001]


def test_the_end_of_an_absent_session_is_saved(desk: Desk, peer: Peer) -> None:
    desk.hand_in(peer, report(1, None))
    other = successor(desk)
    other.actor.tick(other.now + ABSENCE)
    assert other.actor.save().ended == [b"\x01" * 16]


def test_versions_go_on_and_what_was_missed_is_told(desk: Desk, peer: Peer) -> None:
    desk.trip(peer)
    control = Peer(CONTROL, b"c")
    desk.ask(control, Reset(1, "a"), ResetDone)
    other = successor(desk)
    heard = other.tell(control, Subscribe(1, 1))
    assert [m.version for m in heard if isinstance(m, Subscribed | Event)] == [1, 2]
    heard = other.tell(control, Reset(2, "a"))
    assert [m.version for m in heard if isinstance(m, Event)] == [3]


def test_of_events_only_those_in_a_row_up_to_the_last_are_told(desk: Desk, peer: Peer) -> None:
    desk.tell(peer, Declare(2, "b", TRIPS_AT_ONCE))
    control = Peer(CONTROL, b"c")
    desk.ask(control, Reset(1, "b"), ResetDone)
    for number in range(HISTORY + 1):
        desk.ask(control, Reset(2 + number, "a"), ResetDone)
    other = successor(desk)  # to which version 2 is unknown
    heard = other.tell(control, Subscribe(1, 0))
    versions = [m.version for m in heard if isinstance(m, Subscribed | Event)]
    assert versions == [2, *range(3, HISTORY + 3)]


def test_timers_go_on(desk: Desk, peer: Peer) -> None:
    desk.trip(peer)
    other = successor(desk, later=20.0)
    assert other.actor.next_deadline == desk.now + 30.0
    other.at(desk.now + 29.999)
    assert other.stats(peer).state is State.OPEN
    other.at(desk.now + 30.0)
    assert other.stats(peer).state is State.HALF_OPEN


def test_an_open_time_that_ended_meanwhile_ends_with_the_first_tick(desk: Desk, peer: Peer) -> None:
    desk.trip(peer)
    other = successor(desk, later=1_000.0)
    assert [type(send.message) for send in other.at(other.now)] == []
    assert other.stats(peer).state is State.HALF_OPEN
    assert other.actor.everything().events[-1].cause == "timeout"


def test_a_report_of_any_epoch_of_the_line_has_its_generation_and_of_no_other(
    desk: Desk, peer: Peer
) -> None:
    third = successor(successor(desk))
    client = third.client(1)
    verdicts = {}
    for number, epoch in enumerate((EPOCH - 1, EPOCH, EPOCH + 1, EPOCH + 2, EPOCH + 3), start=1):
        third.hand_in(client, report(number, None, epoch=epoch))
        third.hand_in(client, Sync(number))
        (verdicts[epoch - EPOCH],) = [
            send.message.verdict
            for send in third.said
            if isinstance(send.message, Reported) and send.message.number == number
        ]
    stale, counted = Verdict.STALE, Verdict.COUNTED
    assert verdicts == {-1: stale, 0: counted, 1: counted, 2: counted, 3: stale}


def test_a_probe_of_a_predecessor_moves_nothing_and_takes_no_room(desk: Desk, peer: Peer) -> None:
    desk.trip(peer)
    desk.at(desk.now + 30.0)
    permit = desk.permit(peer, 2)
    other = successor(desk)
    client = other.client(1)
    generation = other.stats(client).generation
    assert (other.stats(client).state, other.stats(client).in_flight) == (State.HALF_OPEN, 0)
    other.permit(client, 1)
    other.hand_in(client, report(2, permit, generation=generation))
    stats = other.stats(client)
    assert (stats.state, stats.total_successes, stats.in_flight) == (State.HALF_OPEN, 1, 1)


def test_what_is_acknowledged_was_saved_and_welcome_waits_for_it_too(
    desk: Desk, peer: Peer
) -> None:
    actor = desk.actor
    actor.save()
    assert actor.receive(peer, report(1, None, Outcome.FAILURE), desk.now) == []
    assert actor.save_by == 0.0
    again = Peer(DATA, b"again")
    assert actor.receive(again, hello(1), desk.now) == []
    changes = actor.save()
    assert [session.reports for session in changes.sessions] == [1]
    assert [counts.totals.failures for _, counts in changes.counts] == [1]
    (send,) = actor.saved(desk.now)
    assert send.peer == again
    assert isinstance(send.message, Welcome)
    assert send.message.reports == 1
    # Now that it is saved, there is nothing to wait for.
    assert [type(send.message) for send in actor.receive(again, hello(1), desk.now)] == [Welcome]


@pytest.mark.parametrize(
    "message",
    [
        Report(1, "a", EPOCH, None, 1, Outcome.SUCCESS, 0, None),  # a duplicate
        Report(2, "nobody's", EPOCH, None, 1, Outcome.SUCCESS, 0, None),
        Report(2, "a", EPOCH, 4711, 1, Outcome.SUCCESS, 0, None),  # no permit of that number
        Sync(7),
    ],
)
def test_no_refusal_and_no_answer_tells_of_a_report_before_it_is_saved(
    desk: Desk, peer: Peer, message: Message
) -> None:
    actor = desk.actor
    actor.save()
    assert actor.receive(peer, report(1, None), desk.now) == []
    assert actor.receive(peer, message, desk.now) == []
    assert actor.save_by == 0.0
    actor.save()
    told = [send.message for send in actor.saved(desk.now)]
    assert isinstance(told[0], Reported)
    assert len(told) == 2


@pytest.mark.parametrize("what", ["declare", "configure", "trip", "reset", "timeout", "lost"])
def test_whatever_changes_where_a_circuit_stands_is_news(desk: Desk, what: str) -> None:
    actor, peer = desk.actor, desk.client(1)
    if what != "declare":
        desk.tell(peer, Declare(1, "a", TRIPS_AT_ONCE))
    if what in ("timeout", "lost"):
        desk.trip(peer)
    if what == "lost":
        desk.at(desk.now + 30.0)
        desk.permit(peer, 2)
    actor.save()
    match what:
        case "declare":
            actor.receive(peer, Declare(1, "a", TRIPS_AT_ONCE), desk.now)
        case "configure":
            actor.receive(peer, Declare(2, "a", CircuitConfig()), desk.now)
        case "trip":
            actor.receive(peer, report(1, None, Outcome.FAILURE), desk.now)
        case "reset":
            actor.receive(Peer(CONTROL, b"c"), Reset(1, "a"), desk.now)
        case "timeout":
            actor.tick(desk.now + 30.0)
        case "lost":
            actor.tick(desk.now + 10.0)
    assert actor.news
    changes = actor.take_news()
    assert [name for name, _ in changes.standings] == ["a"]
    assert len(changes.events) == (what != "declare")
    assert not actor.news


def test_what_has_changed_is_saved_in_time_whether_anybody_waits_for_it_or_not(
    desk: Desk, peer: Peer
) -> None:
    desk.trip(peer)
    desk.actor.save()
    assert desk.actor.save_by is None
    desk.actor.receive(peer, Acquire(2, "a", LATER), desk.now)  # rejected
    assert desk.actor.save_by == desk.now + SAVE_INTERVAL
    assert desk.actor.next_deadline == desk.now + SAVE_INTERVAL
    ((_, counts),) = desk.actor.save().counts
    assert counts.totals.rejected == 1


@pytest.mark.parametrize("how", ["by its deadline", "with its holder"])
def test_a_permit_that_is_lost_is_counted_for_the_successor_too(
    desk: Desk, peer: Peer, how: str
) -> None:
    desk.tell(peer, Declare(2, "a", replace(TRIPS_AT_ONCE, lost_permit="ignore")))
    desk.trip(peer)
    desk.at(desk.now + 30.0)
    desk.permit(peer, 2)
    desk.actor.save()
    if how == "by its deadline":
        desk.actor.tick(desk.now + 10.0)
    else:
        session = desk.actor.session_of(peer)
        assert session is not None
        desk.actor.died(session, desk.now)
    assert desk.actor.save_by is not None
    ((_, counts),) = desk.actor.save().counts
    assert counts.permits_lost == 1


def test_last_words_are_all_that_is_held_back(desk: Desk, peer: Peer) -> None:
    other = desk.client(2)
    for holder in (peer, other):
        assert desk.actor.receive(holder, report(1, None), desk.now) == []
    desk.actor.save()
    assert [send.peer for send in desk.actor.last_words()] == [peer, other]
    assert desk.actor.last_words() == []


def test_after_a_predecessor_that_could_not_save_all_it_told_a_new_line_begins(
    desk: Desk, peer: Peer
) -> None:
    desk.hand_in(peer, report(1, None))
    changes = desk.actor.everything()
    circuits = {name: (standing, None) for name, standing in changes.standings}
    other = Desk()
    other.actor = Actor(10**15, utc_offset=OFFSET)
    saved = Saved(EPOCH, None, circuits, changes.sessions, changes.events)
    other.actor.restore(saved, other.now)
    client = Peer(DATA, b"again")
    welcome = other.ask(client, hello(1), Welcome)
    assert (welcome.epoch, welcome.origin, welcome.reports) == (10**15, 10**15, 1)
    other.hand_in(client, report(2, None, Outcome.FAILURE))  # which would open it
    assert other.stats(client).state is State.CLOSED
    assert other.stats(client).total_failures == 1


# -- what is said to whom --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        Acquire(2, "nobody", LATER),
        report(1, None, name="nobody"),
        Batch(1, "nobody", EPOCH, 1, 1, 0, 0, ()),
        Missed(1, "nobody", 1, 0, 0, 0, (), None),
        GetStats(2, "nobody"),
        GetMetrics(2, "nobody"),
        GetHistory(2, "nobody"),
        Reset(2, "nobody"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_who_names_a_circuit_that_nobody_declared_hears_its_name(
    desk: Desk, peer: Peer, message: Message
) -> None:
    (error,) = desk.tell(peer, message)
    assert isinstance(error, Error)
    assert error.code is ErrorCode.UNKNOWN_CIRCUIT
    assert "'nobody'" in error.text


def test_a_refusal_names_what_the_other_side_needs_to_know(desk: Desk, peer: Peer) -> None:
    def text_of(asking: Peer, message: Message) -> str:
        (error,) = desk.tell(asking, message)
        assert isinstance(error, Error)
        return error.text

    newer = hello(3)._replace(lowest=PROTOCOL + 1, highest=PROTOCOL + 1)
    assert str(PROTOCOL) in text_of(peer, newer)
    permit = desk.permit(desk.client(2), 2)
    assert "1002" in text_of(peer, report(1, permit))  # whose it is
    assert "2 was expected" in text_of(peer, report(4, None))
    assert text_of(peer, Acquire(9, "a", 0))


@pytest.mark.parametrize(
    ("message", "kind"), [(GetMetrics(31, "a"), MetricsOf), (Shutdown(31), Stopping)]
)
def test_an_answer_has_its_requests_number_and_an_operation_of_its_own(
    desk: Desk, peer: Peer, message: Message, kind: type[MetricsOf] | type[Stopping]
) -> None:
    control = Peer(CONTROL, b"c")
    before = desk.ask(control, Ping(1), Pong).operation
    answer = desk.ask(control, message, kind)
    assert (answer.request, answer.operation) == (31, before + 1)


def test_on_the_control_socket_a_welcome_acknowledges_nothing(desk: Desk, peer: Peer) -> None:
    desk.hand_in(peer, report(1, None))
    assert desk.ask(Peer(CONTROL, b"c"), hello(1), Welcome).reports == 0


def test_two_timers_of_one_moment_are_both_told(desk: Desk, peer: Peer, watcher: Peer) -> None:
    desk.tell(peer, Declare(2, "b", TRIPS_AT_ONCE))
    for number, name in ((1, "a"), (2, "b")):
        permit = desk.permit(peer, number, name)
        desk.hand_in(peer, report(number, permit, Outcome.FAILURE, name=name))
    told = [send.message for send in desk.at(130.0) if send.peer == watcher]
    assert [event.name for event in told if isinstance(event, Event)] == ["a", "b"]


def test_an_event_of_the_first_second_is_told(desk: Desk) -> None:
    actor, watcher, peer = Actor(1), Peer(CONTROL, b"w"), Peer(DATA, b"p")
    actor.receive(watcher, Subscribe(1, None), 0.0)
    actor.receive(peer, hello(1), 0.0)
    actor.receive(peer, Declare(1, "a", None), 0.0)
    sends = actor.receive(watcher, Reset(2, "a"), 0.5)
    assert [type(send.message) for send in sends] == [ResetDone, Event]


def test_a_config_that_becomes_strict_is_told_to_holders_and_to_subscribers(
    desk: Desk, holder: Peer, watcher: Peer
) -> None:
    sends = desk.hand_in(holder, Declare(3, "a", replace(LEASED, consistency="strict")))
    assert [(send.peer, type(send.message)) for send in sends] == [
        (holder, Declared),
        (watcher, Event),
        (holder, Revoked),
    ]
    assert desk.actor._leases.holders("a") == []


def test_who_has_a_lease_on_a_circuit_is_known(desk: Desk, holder: Peer) -> None:
    assert desk.actor._leases.holders("a") == [holder]
    assert desk.actor._leases.holders("b") == []


# -- sessions, and what is saved of them -----------------------------------------------------------


def test_a_session_is_saved_as_it_introduced_itself(desk: Desk, peer: Peer) -> None:
    desk.hand_in(peer, report(1, None))
    (saved,) = desk.actor.everything().sessions
    assert saved == (b"\x01" * 16, 1_001, 5, 1)
    assert desk.actor.everything().ended == []


def test_who_greets_or_asks_is_not_silent(desk: Desk, peer: Peer) -> None:
    desk.trip(peer)  # so that it holds nothing afterwards
    desk.at(105.0)
    desk.ask(Peer(DATA, b"again"), hello(1), Welcome)
    assert desk.actor.silent(104.0) == []
    desk.at(110.0)
    assert isinstance(desk.acquire(Peer(DATA, b"again"), 5), Rejected)
    assert desk.actor.silent(109.0) == []
    assert len(desk.actor.silent(110.0)) == 1


def test_the_death_of_who_had_a_connection_before_leaves_it_to_who_has_it_now(
    desk: Desk, peer: Peer
) -> None:
    first = desk.actor.session_of(peer)
    assert first is not None
    desk.ask(peer, hello(2), Welcome)
    desk.end(first)
    assert isinstance(desk.acquire(peer, 2), Granted)


def test_a_predecessors_sessions_take_no_place_before_they_are_back(desk: Desk, peer: Peer) -> None:
    desk.hand_in(peer, report(1, None))
    other = successor(desk)
    other.actor.max_clients = 1
    assert not other.actor.full
    other.ask(Peer(DATA, b"new"), hello(2), Welcome)
    assert other.actor.full


def test_a_permit_that_went_back_is_saved_as_neutral(desk: Desk, peer: Peer) -> None:
    (sent,) = desk.hand_in(peer, Acquire(2, "a", LATER))
    desk.actor.save()
    desk.lose(sent, gone=True)
    ((name, counts),) = desk.actor.save().counts
    assert (name, counts.totals.neutral) == ("a", 1)


def test_what_a_client_counted_alone_is_answered_and_counted_and_moves_nothing(
    desk: Desk,
) -> None:
    peer = desk.client(1)
    desk.tell(peer, Declare(1, "a", CircuitConfig(failure_threshold=2)))
    desk.hand_in(peer, report(1, None, Outcome.FAILURE))
    desk.at(101.0)
    assert desk.tell(peer, Missed(2, "a", 3, 4, 1, 5, (250_000,), "OSError: missed")) == []
    (answer,) = desk.at(101.0 + ACK_DELAY)
    assert answer.peer == peer
    assert isinstance(answer.message, Reported)
    assert (answer.message.number, answer.message.verdict) == (2, Verdict.STALE)
    stats = desk.stats(peer)
    assert stats.state is State.CLOSED
    assert (stats.total_successes, stats.total_failures) == (3, 5)
    assert (stats.consecutive_successes, stats.consecutive_failures) == (0, 1)
    assert stats.last_error == "OSError: missed"
    assert stats.last_error_at == datetime.fromtimestamp(OFFSET + 101.0, timezone.utc)


def test_an_obsolete_timer_holds_up_no_other_of_that_moment(desk: Desk, peer: Peer) -> None:
    desk.trip(peer, 1)
    desk.tell(Peer(CONTROL, b"c"), Reset(1, "a"))
    desk.tell(peer, Declare(2, "a", replace(TRIPS_AT_ONCE, open_timeout=20.0)))
    desk.trip(peer, 2)  # so that it turns half-open at 120, and its timer for 130 is obsolete
    desk.tell(peer, Declare(3, "b", TRIPS_AT_ONCE))
    desk.hand_in(peer, report(3, desk.permit(peer, 3, "b"), Outcome.FAILURE, name="b"))
    desk.at(120.0)
    desk.at(130.0)
    assert [desk.stats(peer, name).state for name in "ab"] == [State.HALF_OPEN] * 2


def test_an_actor_that_is_told_nothing_else_has_no_process_and_the_clock_of_the_day() -> None:
    actor = Actor(EPOCH)
    assert (actor.epoch, actor.origin, actor.pid, actor.utc_offset) == (EPOCH, EPOCH, 0, 0.0)


def test_a_page_after_the_last_name_is_empty_and_the_last(desk: Desk, peer: Peer) -> None:
    desk.tell(peer, Declare(2, "a", None))
    for after in ("a", "z"):
        page = desk.ask(OPERATOR, GetList(1, after), ListOf)
        assert (page.circuits, page.more) == ((), False)


def test_request_number_0_is_never_new(desk: Desk, peer: Peer) -> None:
    desk.tell(peer, Declare(2, "a", None))
    assert code_of(desk.tell(peer, Acquire(0, "a", LATER))) is ErrorCode.DUPLICATE_REQUEST


def test_it_is_idle_as_long_as_no_client_of_its_predecessor_has_come_back() -> None:
    actor = Actor(2)
    actor.restore(Saved(1, 1, {}, [SavedSession(b"x" * 16, 1, 0, 3)], []), 50.0)
    assert actor.idle_since is not None
