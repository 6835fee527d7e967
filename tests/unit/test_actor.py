"""The manager's actor: messages and the time go in, messages come out. No sockets."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Final, TypeVar

import pytest

from switchgear.config import CircuitConfig
from switchgear.manager.actor import (
    ACK_DELAY,
    ACKS_TOGETHER,
    CONTROL,
    DATA,
    EVENTS_KEPT,
    Actor,
    Peer,
    Send,
)
from switchgear.states import Outcome, State, Verdict
from switchgear.stats import CircuitStats
from switchgear.wire import (
    KINDS,
    PAGE,
    PROTOCOL,
    Acquire,
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
)

EPOCH: Final = 77
OFFSET: Final = 1_000_000.0  # of Unix time to the actor's clock
LATER: Final = 10**12  # a deadline that does not pass
TRIPS_AT_ONCE: Final = CircuitConfig(
    failure_threshold=1, success_threshold=1, open_timeout=30.0, permit_timeout=10.0
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

    def _note(self, sends: list[Send]) -> list[Send]:
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
        return self.tell(peer, Acquire(request, name, deadline))[-1]

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
    return Hello(7, PROTOCOL, PROTOCOL, bytes([number]) * 16, 1_000 + number)


def report(
    number: int,
    permit: int,
    outcome: Outcome = Outcome.SUCCESS,
    name: str = "a",
    epoch: int = EPOCH,
    error: str | None = None,
) -> Report:
    return Report(number, name, epoch, permit, outcome, 1_000, error)


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
    assert desk.tell(peer, hello(1)) == [Welcome(7, PROTOCOL, EPOCH, 100_000_000, 0)]


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


def test_undelivered_permit_goes_back_and_a_peer_that_is_gone_must_greet_again(
    desk: Desk, peer: Peer
) -> None:
    for request, gone in ((2, False), (3, True)):
        (sent,) = desk.hand_in(peer, Acquire(request, "a", LATER))
        assert desk.stats(peer).in_flight == 1
        assert desk.lose(sent, gone=gone) == []
        assert desk.stats(peer).in_flight == 0
        assert desk.lose(sent, gone=gone) == []  # twice is once
        answers = desk.tell(peer, Declare(9, "a", None))
        assert isinstance(answers[0], Error) == gone


def test_undelivered_probe_makes_room_for_the_next_at_once(desk: Desk, peer: Peer) -> None:
    desk.trip(peer)
    desk.at(130.0)
    (sent,) = desk.hand_in(peer, Acquire(2, "a", LATER))
    assert isinstance(desk.acquire(desk.client(2), 3), Rejected)
    desk.lose(sent, gone=False)
    assert isinstance(desk.acquire(desk.client(2), 4), Granted)


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
    assert [type(answer) for answer in answers] == [Reported, Error]
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
    desk.hand_in(peer, report(1, permit, Outcome.FAILURE, epoch=EPOCH - 1, error="OSError"))
    (answer, _) = desk.tell(peer, Sync(3))
    assert isinstance(answer, Reported)
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


def test_acknowledgements_go_with_the_next_answer_and_before_it(desk: Desk, peer: Peer) -> None:
    first, second = desk.permit(peer, 2), desk.permit(peer, 3)
    desk.hand_in(peer, report(1, first))
    answers = desk.tell(peer, Acquire(4, "a", LATER))
    assert [type(answer) for answer in answers] == [Reported, Granted]
    desk.hand_in(peer, report(2, second))
    assert [type(answer) for answer in desk.tell(peer, Sync(5))] == [Reported, Synced]
    assert [type(answer) for answer in desk.tell(peer, Sync(6))] == [Synced]


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


def test_a_new_greeting_drops_what_was_held_back_because_welcome_says_it(
    desk: Desk, peer: Peer
) -> None:
    desk.hand_in(peer, report(1, desk.permit(peer, 2)))
    assert desk.tell(peer, hello(1)) == [Welcome(7, PROTOCOL, EPOCH, 100_000_000, 1)]
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
    (sent,) = desk.hand_in(peer, report(1, desk.permit(peer, 2), Outcome.FAILURE))
    assert isinstance(sent.message, Event)
    (reported, _) = desk.tell(peer, Sync(3))
    assert isinstance(reported, Reported)
    assert reported.operation == sent.message.operation


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
    )
    desk.tell(peer, Declare(1, "a", config))
    desk.trip(peer)
    desk.at(130.0)
    desk.permit(peer, 3)
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
    sooner = CircuitConfig(failure_threshold=1, open_timeout=5.0)
    desk.trip(peer)
    desk.tell(peer, Declare(3, "b", sooner))
    desk.hand_in(peer, report(2, desk.permit(peer, 4, "b"), Outcome.FAILURE, name="b"))
    desk.at(101.0)
    assert desk.actor.next_deadline == 105.0
    desk.hand_in(Peer(CONTROL, b"c"), Reset(1, "b"))
    assert desk.at(105.0) == []
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
    assert len(desk.hand_in(control, Reset(2, "a"))) == 2
    desk.lose(event, gone=True)
    assert len(desk.hand_in(control, Reset(3, "a"))) == 1


# -- what programs and people ask ------------------------------------------------------------------


def test_ping_needs_no_greeting_and_tells_pid_and_circuits(desk: Desk, peer: Peer) -> None:
    pong = desk.ask(Peer(CONTROL, b"c"), Ping(9), Pong)
    assert (pong.request, pong.pid, pong.circuits) == (9, 4242, 1)


@pytest.mark.parametrize("ask", [GetStats, GetMetrics, Reset])
def test_an_unknown_circuit_has_no_answer_but_an_error(
    desk: Desk, peer: Peer, ask: type[GetStats] | type[GetMetrics] | type[Reset]
) -> None:
    (error,) = desk.tell(Peer(CONTROL, b"c"), ask(8, "nobody"))
    assert isinstance(error, Error)
    assert (error.kind, error.ref) == (KINDS[ask], 8)
    assert error.code is ErrorCode.UNKNOWN_CIRCUIT


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
    desk.hand_in(peer, report(1, permit, Outcome.FAILURE))
    assert desk.stats(peer).state is State.CLOSED
    (reported, _) = desk.tell(peer, Sync(3))
    assert isinstance(reported, Reported)
    assert reported.verdict is Verdict.STALE


def test_times_of_day_follow_the_utc_offset(desk: Desk, peer: Peer) -> None:
    desk.trip(peer)
    stats = desk.stats(peer)
    assert stats.state_changed_at == datetime.fromtimestamp(OFFSET + 100.0, timezone.utc)
    assert stats.last_error_at == stats.state_changed_at


def test_shutdown_is_answered_and_the_actor_wants_to_stop(desk: Desk) -> None:
    assert not desk.actor.stopping
    assert desk.ask(Peer(CONTROL, b"c"), Shutdown(3), Stopping).request == 3
    assert desk.actor.stopping
