"""The client's session against the manager's actor, in memory, whatever breaks in between."""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Final
from unittest import mock

import pytest
from harness import Pair, Waiter

from switchgear.circuit import Totals
from switchgear.client import reports
from switchgear.client.lease import Lease
from switchgear.client.reports import WINDOW, Whole
from switchgear.client.session import GREETING_INTERVAL, PATIENCE, RETRY_MAX, Grant
from switchgear.config import CircuitConfig
from switchgear.manager.acks import ACKS_TOGETHER
from switchgear.manager.actor import EVENTS_KEPT, LEASE, Send
from switchgear.manager.sessions import CONTROL, DATA, Peer
from switchgear.states import Outcome, State, Verdict
from switchgear.stats import CircuitStats
from switchgear.wire import (
    FROM_DATA,
    KINDS,
    MAX_ERROR_CHARACTERS,
    MAX_INTEGER,
    PROTOCOL,
    TO_DATA,
    Acquire,
    Batch,
    Declare,
    Error,
    ErrorCode,
    GetHistory,
    GetList,
    GetMetrics,
    GetStats,
    Goodbye,
    Granted,
    Hello,
    Leased,
    Malformed,
    Message,
    Missed,
    Ping,
    Pong,
    Rejected,
    Report,
    Reported,
    Reset,
    Revoked,
    Shutdown,
    StatsOf,
    Subscribe,
    Sync,
    Synced,
    Welcome,
    decode,
    encode,
)

EVERYTHING_CLOSED: Final = CircuitConfig(failure_threshold=1_000_000)


@pytest.fixture
def pair() -> Pair:
    """One client, connected and greeted, with the circuit "a" declared."""
    pair = Pair()
    pair.session.declare("a", EVERYTHING_CLOSED)
    pair.run()
    return pair


def granted(pair: Pair, *, client: int = 0, name: str = "a") -> Grant:
    """A permit."""
    waiter = pair.acquire(name, client=client)
    pair.run()
    assert isinstance(waiter.answer, Grant)
    return waiter.answer


def report(
    pair: Pair,
    grant: Grant,
    outcome: Outcome = Outcome.SUCCESS,
    *,
    verdicts: list[Verdict] | None = None,
    error: str | None = None,
) -> None:
    """Hand a report to the session; it is on its way, if there is one."""
    settled = None if verdicts is None else verdicts.append
    pair.session.report("a", grant, outcome, 0.001, error, settled, now=pair.now)
    pair.collect()


def stats(pair: Pair, name: str = "a") -> CircuitStats:
    """What the manager says, without any client's doing."""
    peer = Peer(CONTROL, b"somebody else")
    (send,) = pair.actor.receive(peer, GetStats(1, name), pair.now)
    assert isinstance(send.message, StatsOf)
    return send.message.stats


def kinds(messages: Sequence[object]) -> list[str]:
    return [type(message).__name__ for message in messages]


# -- what is owed and does not come ----------------------------------------------------------------


def lose_what_was_said(pair: Pair, connection: int = DATA) -> None:
    """As a manager does whose client does not read: what it says is dropped, and so is a session.

    The connection itself holds.
    """
    wire = pair.clients[0].wires[connection]
    while pair.deliver_up(0, connection):
        pass
    wire.down.clear()
    assert wire.peer is not None
    lost = Send(wire.peer, Synced(1, 1))
    pair.actor.undelivered(lost, pair.now, gone=False)


def knock(pair: Pair) -> None:
    """Let the time come at which the session is to knock, as the I/O thread does."""
    pair.now = max(pair.now, pair.session.knock_at)
    pair.session.knock(pair.now)
    pair.run()


def test_nothing_is_owed_to_who_has_asked_for_nothing(pair: Pair) -> None:
    assert pair.session.knock_at == math.inf
    report(pair, granted(pair))
    pair.run()
    pair.advance(1.0)
    assert pair.session.knock_at == math.inf
    pair.cut()
    assert pair.session.knock_at == math.inf


def test_acknowledgements_that_do_not_come_are_asked_for_after_a_while(pair: Pair) -> None:
    grant = granted(pair)
    pair.now += 10.0
    report(pair, grant)
    assert pair.session.knock_at == pair.now + PATIENCE
    waiter = pair.flush()
    lose_what_was_said(pair)
    pair.run()
    assert not waiter.answered
    knock(pair)
    assert waiter.answered
    assert stats(pair).total_successes == 1
    assert pair.session.knock_at == math.inf


@pytest.mark.parametrize("owed", ["a flush", "an answer", "a permit"])
def test_a_greeting_that_is_not_answered_is_said_again(owed: str) -> None:
    pair = Pair(connected=False)
    pair.session.declare("a", None)
    pair.connect_all()
    grant = Grant(1, 1)
    match owed:
        case "a flush":
            report(pair, grant)
            waiter = pair.flush()
        case "an answer":
            waiter = pair.ask(Ping)
        case _:
            waiter = pair.acquire()
    for connection in (DATA, CONTROL):
        lose_what_was_said(pair, connection)
    pair.run()
    assert not waiter.answered
    assert pair.session.knock_at == pair.now + PATIENCE
    knock(pair)
    assert waiter.answered


def subscribed() -> Pair:
    """A client that has nothing to wait for but events."""
    pair = Pair()
    pair.subscribe()
    pair.run()
    return pair


def test_who_hears_that_its_connection_is_a_new_one_greets_and_subscribes_again() -> None:
    pair = subscribed()
    pair.actor._subscribers.clear()
    pair.said.clear()
    pair.session.received(CONTROL, Error(0, 0, ErrorCode.NO_SESSION, "say Hello"), pair.now)
    pair.run()
    asked = [type(one.message) for one in pair.said if one.by_client]
    assert asked == [Hello, Subscribe]
    assert len(pair.actor._subscribers) == 1


def test_who_greets_on_a_new_connection_already_does_not_greet_twice() -> None:
    pair = Pair(connected=False)
    pair.session.subscribe(Waiter("subscribe"))
    pair.connect(0, CONTROL)
    pair.session.received(CONTROL, Error(0, 0, ErrorCode.NO_SESSION, "say Hello"), pair.now)
    pair.run()
    assert kinds(pair.sent()) == ["Hello", "Subscribe"]


def test_a_subscriber_whose_greeting_is_not_answered_says_it_again() -> None:
    pair = subscribed()
    pair.cut(0, CONTROL)
    pair.connect(0, CONTROL)
    lose_what_was_said(pair, CONTROL)
    assert pair.session.knock_at == pair.now + PATIENCE
    before = list(pair.actor._subscribers)  # its old connection, which nobody has noticed is gone
    knock(pair)
    assert len(pair.actor._subscribers) == 1
    assert list(pair.actor._subscribers) != before
    assert pair.session.knock_at == math.inf


def test_who_only_asks_greets_again_where_it_asks_and_only_while_it_is_not_let_in() -> None:
    pair = Pair(connected=False)
    waiter = pair.ask(Ping)
    assert pair.session.knock_at == math.inf  # nobody is there
    pair.connect(0, CONTROL)
    begin = pair.now
    assert pair.session.knock_at == begin + PATIENCE
    pair.now += 0.25
    pair.connect(0, DATA)
    assert pair.session.knock_at == begin + PATIENCE  # where it waits longest
    pair.cut(0, DATA)
    pair.deliver_up(0, CONTROL)
    pair.deliver_down(0, CONTROL)
    assert not waiter.answered
    assert pair.session.knock_at == math.inf  # it is let in, and who asks waits as long as it likes
    pair.run()
    pair.session.resume(pair.now)
    pair.collect()
    assert pair.session.knock_at == math.inf  # it greets, and nobody waits for that


def test_the_first_of_several_that_are_not_acknowledged_says_when_to_knock(pair: Pair) -> None:
    grants = [granted(pair) for _ in range(2)]
    pair.now += 10.0
    report(pair, grants[0])
    begin = pair.now
    pair.now += 0.25
    report(pair, grants[1])
    assert pair.session.knock_at == begin + PATIENCE


def test_who_knocks_in_vain_knocks_less_and_less_often_and_begins_anew_when_heard(
    pair: Pair,
) -> None:
    report(pair, granted(pair))
    pauses = []
    for _ in range(7):
        pauses.append(pair.session.knock_at - pair.now)
        pair.now = pair.session.knock_at
        pair.session.knock(pair.now)
        pair.collect()
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, RETRY_MAX, RETRY_MAX]
    pair.run()
    report(pair, granted(pair))
    assert pair.session.knock_at == pair.now + PATIENCE


# -- asking after reporting ------------------------------------------------------------------------


def test_what_is_asked_comes_after_everything_reported_before(pair: Pair) -> None:
    for _ in range(3):
        report(pair, granted(pair), Outcome.FAILURE)
    waiter = pair.ask(lambda number: GetStats(number, "a"), "a")
    assert not pair.sent(GetStats)  # held, even though the connection is there
    pair.run()
    assert isinstance(waiter.answer, StatsOf)
    assert waiter.answer.stats.total_failures == 3
    assert pair.now == 1_000.0  # and nobody had to wait for the acknowledgements


def test_what_is_asked_waits_for_no_report_that_came_after_it(pair: Pair) -> None:
    grants = [granted(pair) for _ in range(2)]
    report(pair, grants[0])
    waiter = pair.ask(lambda number: GetStats(number, "a"), "a")
    report(pair, grants[1])
    while not pair.sent(GetStats):
        assert pair.deliver_up() or pair.deliver_down()
    pair.run()
    assert isinstance(waiter.answer, StatsOf)


def test_questions_are_answered_in_the_order_they_were_asked(pair: Pair) -> None:
    report(pair, granted(pair))
    waiters = [pair.ask(Ping) for _ in range(3)]
    pair.run()
    numbers = [w.answer.request for w in waiters if isinstance(w.answer, Pong)]
    assert len(numbers) == 3
    assert numbers == sorted(numbers)


def test_flush_is_answered_when_all_was_taken_in_and_not_before(pair: Pair) -> None:
    idle = pair.flush()
    assert idle.answered
    for grant in [granted(pair) for _ in range(3)]:
        report(pair, grant)
    waiter = pair.flush()
    while pair.deliver_up():
        assert not waiter.answered  # taken in, but we do not know it yet
    pair.run()
    assert waiter.answered
    assert stats(pair).total_successes == 3


def test_each_flush_is_answered_in_its_time(pair: Pair) -> None:
    first, second = granted(pair), granted(pair)
    report(pair, first)
    early, given_up = pair.flush(), pair.flush()
    report(pair, second)
    late = pair.flush()
    pair.session.abandon(given_up, timed_out=False)
    for number, answered in (1, (True, False)), (2, (True, True)):
        pair.session.received(DATA, Reported(number, 99, Verdict.COUNTED), pair.now)
        pair.collect()
        assert (early.answered, late.answered) == answered
    assert not given_up.answered


def test_a_flush_and_a_question_do_not_wait_for_each_other(pair: Pair) -> None:
    report(pair, granted(pair))
    pair.session.declare("b", None)
    question = pair.ask(lambda number: GetStats(number, "b"), "b")
    flush = pair.flush()
    pair.session.received(DATA, Reported(1, 99, Verdict.COUNTED), pair.now)
    pair.collect()
    assert (flush.answered, question.answered) == (True, False)  # its declaration is on its way


def test_flush_waits_for_a_manager_as_long_as_it_takes(pair: Pair) -> None:
    grant = granted(pair)
    pair.cut()
    report(pair, grant)
    waiter = pair.flush()
    pair.advance(100.0)
    assert not waiter.answered
    pair.connect()
    pair.run()
    assert waiter.answered
    assert stats(pair).total_successes == 1


@pytest.mark.parametrize("connected_first", [True, False])
def test_what_was_counted_of_a_circuit_the_manager_never_heard_of_is_taken_in(
    connected_first: bool,
) -> None:
    pair = Pair(connected=False)
    pair.session.declare("b", CircuitConfig(failure_threshold=7))
    if connected_first:
        pair.connect()
        pair.run()
    pair.session.report_totals(Whole("b", Totals(3, 1, 0, 0, [0.25], "Down")), now=pair.now)
    if not connected_first:
        pair.connect()
    pair.run()
    found = stats(pair, "b")
    assert (found.total_successes, found.total_failures) == (3, 1)
    assert found.config.failure_threshold == 7


def test_one_sync_is_out_at_a_time(pair: Pair) -> None:
    grants = [granted(pair) for _ in range(4)]
    for grant in grants:
        report(pair, grant)
        pair.flush()
    assert len(pair.sent(Sync)) == 1


def test_synced_without_the_acknowledgements_ends_in_a_greeting_and_not_in_a_circle(
    pair: Pair,
) -> None:
    report(pair, granted(pair))
    pair.clients[0].wires[DATA].up.clear()  # it never arrives
    waiter = pair.flush()
    pair.run()
    assert waiter.answered
    assert stats(pair).total_successes == 1


def test_every_verdict_goes_to_the_one_who_reported(pair: Pair) -> None:
    first, second = granted(pair), granted(pair)
    pair.ask(lambda number: Reset(number, "a"))
    pair.run()
    counted = granted(pair)
    verdicts: list[list[Verdict]] = [[], [], []]
    for grant, settled in zip((first, counted, second), verdicts, strict=True):
        report(pair, grant, verdicts=settled)
    pair.flush()
    pair.run()
    assert verdicts == [[Verdict.STALE], [Verdict.COUNTED], [Verdict.STALE]]


# -- declaring -------------------------------------------------------------------------------------


def test_a_circuit_is_declared_before_it_is_acquired() -> None:
    pair = Pair(connected=False)
    pair.session.declare("a", None)
    waiter = pair.acquire()
    assert not pair.sent()
    pair.connect()
    pair.run()
    assert kinds(pair.sent()) == ["Hello", "Declare", "Acquire"]
    assert isinstance(waiter.answer, Grant)


def test_a_circuit_is_declared_before_it_is_asked_about() -> None:
    pair = Pair(connected=False)
    pair.session.declare("a", None)
    waiter = pair.ask(lambda number: GetStats(number, "a"), "a")
    pair.connect(0, CONTROL)
    pair.run()
    assert not waiter.answered  # it could be declared on the data connection only
    pair.connect(0, DATA)
    pair.run()
    assert isinstance(waiter.answer, StatsOf)
    assert pair.session.wanted == {DATA, CONTROL}


def test_a_new_manager_is_told_every_circuit_before_the_reports_on_it(pair: Pair) -> None:
    grant = granted(pair)
    pair.replace_manager()
    report(pair, grant, Outcome.FAILURE)
    before = len(pair.sent())
    pair.connect_all()
    pair.run()
    assert kinds(pair.sent()[before:]) == ["Hello", "Hello", "Declare", "Report"]
    assert stats(pair).config == EVERYTHING_CLOSED
    assert stats(pair).total_failures == 1
    assert stats(pair).in_flight == 0


def test_the_same_manager_is_not_told_again_what_it_has_answered(pair: Pair) -> None:
    pair.cut()
    pair.connect()
    pair.run()
    assert len(pair.sent(Declare)) == 1


def test_a_declaration_that_was_lost_is_sent_again(pair: Pair) -> None:
    pair.session.declare("b", CircuitConfig(failure_threshold=7))
    pair.collect()
    pair.cut()
    pair.connect()
    pair.run()
    assert stats(pair, "b").config.failure_threshold == 7


def test_a_config_that_changed_while_nobody_listened_reaches_the_same_manager(pair: Pair) -> None:
    pair.cut()
    pair.session.declare("a", CircuitConfig(failure_threshold=7))
    pair.collect()
    pair.connect()
    pair.run()
    assert stats(pair).config.failure_threshold == 7


@pytest.mark.parametrize(
    ("clock", "waits", "deadline"), [(0, -9.0, 0), (MAX_INTEGER, 9.0, MAX_INTEGER)]
)
def test_a_deadline_is_an_instant_whatever_clock_the_manager_tells(
    clock: int, waits: float, deadline: int
) -> None:
    pair = Pair(connected=False)
    session, now = pair.session, pair.now
    session.declare("a", None)
    session.acquire(Waiter("a"), "a", now + waits, now)
    session.connected(DATA, now)
    ((_, hello),) = session.outbox
    session.received(DATA, Welcome(hello[0], PROTOCOL, 1, 1, clock, 0, 1), now)
    (acquire,) = [message for _, message in session.outbox if isinstance(message, Acquire)]
    assert acquire.deadline == deadline
    assert decode(encode(acquire), TO_DATA) == acquire


def test_a_subscription_that_is_refused_hears_why_whatever_that_is(pair: Pair) -> None:
    subscription = pair.subscribe()
    (asked,) = pair.sent(Subscribe)
    refusal = Error(KINDS[Subscribe], asked[0], ErrorCode.UNKNOWN_CIRCUIT, "no such circuit")
    pair.session.received(CONTROL, refusal, pair.now)
    pair.collect()
    assert subscription.answer == refusal


def test_a_declaration_that_is_refused_does_not_hold_up_what_is_asked() -> None:
    pair = Pair()
    pair.session.declare("a\n", None)  # nobody checks names here
    waiter = pair.ask(lambda number: GetStats(number, "b"), "a\n")
    pair.run()
    assert isinstance(waiter.answer, Error)
    assert waiter.answer.code is ErrorCode.UNKNOWN_CIRCUIT


def test_configs_that_changed_while_nobody_listened_all_reach_the_same_manager(pair: Pair) -> None:
    pair.session.declare("b", EVERYTHING_CLOSED)
    pair.run()
    pair.cut()
    for name in "ab":
        pair.session.declare(name, CircuitConfig(failure_threshold=7))
    pair.connect()
    pair.run()
    assert [stats(pair, name).config.failure_threshold for name in "ab"] == [7, 7]


# -- permits that nobody waits for any more --------------------------------------------------------


@pytest.mark.parametrize("granted_before", [False, True])
def test_a_permit_that_comes_too_late_goes_back(pair: Pair, granted_before: bool) -> None:
    waiter = pair.acquire()
    if granted_before:
        pair.deliver_up()
    pair.session.abandon(waiter, timed_out=False)
    pair.run()
    assert not waiter.answered
    assert (stats(pair).in_flight, stats(pair).total_neutral) == (0, 1)


def test_a_request_that_was_given_up_before_it_was_sent_is_never_sent(pair: Pair) -> None:
    pair.cut()
    waiter = pair.acquire()
    pair.session.abandon(waiter, timed_out=False)
    pair.connect()
    pair.run()
    assert not pair.sent(Acquire)


def test_abandoning_after_the_grant_leaves_the_permit_to_its_holder(pair: Pair) -> None:
    waiter = pair.acquire()
    pair.run()
    pair.session.abandon(waiter, timed_out=False)
    pair.run()
    assert isinstance(waiter.answer, Grant)
    assert stats(pair).in_flight == 1


@pytest.mark.parametrize("arrived", [False, True])
def test_a_permit_whose_grant_was_lost_goes_back_after_the_next_greeting(
    pair: Pair, arrived: bool
) -> None:
    waiter = pair.acquire()
    if arrived:
        pair.deliver_up()
    assert stats(pair).in_flight == int(arrived)
    pair.session.abandon(waiter, timed_out=True)
    pair.cut()
    pair.connect()
    pair.run()
    pair.flush()
    pair.run()
    assert (stats(pair).in_flight, stats(pair).total_requests) == (0, int(arrived))
    assert not waiter.answered


def test_a_permit_asked_for_of_a_manager_that_is_no_more_is_forgotten(pair: Pair) -> None:
    waiter = pair.acquire()
    pair.session.abandon(waiter, timed_out=False)
    pair.replace_manager()
    pair.connect_all()
    pair.run()
    assert len(pair.sent(Acquire)) == 1
    assert stats(pair).total_requests == 0


def test_a_question_that_was_abandoned_is_neither_sent_nor_answered(pair: Pair) -> None:
    report(pair, granted(pair))
    held, asked = pair.ask(Ping), pair.flush()
    pair.session.abandon(held, timed_out=True)
    pair.session.abandon(asked, timed_out=True)
    pair.run()
    assert not pair.sent(Ping)
    assert not held.answered
    assert not asked.answered
    assert not pair.session.lost  # only a permit says that the manager is gone


def test_to_abandon_a_question_that_is_held_leaves_the_others(pair: Pair) -> None:
    report(pair, granted(pair))
    waiters = [pair.ask(Ping) for _ in range(3)]
    pair.session.abandon(waiters[1], timed_out=False)
    pair.run()
    assert [waiter.answered for waiter in waiters] == [True, False, True]


def test_a_question_that_was_abandoned_after_it_was_sent_is_not_answered(pair: Pair) -> None:
    asked, other = pair.ask(Ping), pair.ask(Ping)
    pair.session.abandon(asked, timed_out=True)
    assert pair.session.waiting  # for the other
    pair.run()
    assert len(pair.sent(Ping)) == 2
    assert not asked.answered
    assert isinstance(other.answer, Pong)
    assert not pair.session.waiting
    assert not pair.session.lost  # only a permit says that the manager is gone


def test_an_acquire_whose_answer_was_lost_is_asked_again_and_gets_one_permit(pair: Pair) -> None:
    waiter = pair.acquire()
    pair.deliver_up()
    pair.cut()
    pair.connect()
    pair.run()
    assert isinstance(waiter.answer, Grant)
    assert stats(pair).in_flight == 1
    assert len(pair.sent(Acquire)) == 2


def test_a_request_that_arrives_twice_gets_no_permit_that_nobody_waits_for(pair: Pair) -> None:
    pair.session.declare("a", CircuitConfig(failure_threshold=1, open_timeout=1.0))
    pair.run()
    report(pair, granted(pair), Outcome.FAILURE)
    pair.run()
    rejected = pair.acquire()
    up = pair.clients[0].wires[DATA].up
    up.append(up[0])
    pair.deliver_up()
    pair.now += 1.0  # half-open: now it would be granted
    pair.run()
    assert isinstance(rejected.answer, Rejected)
    assert stats(pair).state is State.HALF_OPEN
    assert stats(pair).in_flight == 0


def test_a_request_whose_rejection_came_too_late_twice_is_answered_with_nothing() -> None:
    pair = Pair()
    pair.session.declare("a", CircuitConfig(failure_threshold=1, consistency="strict"))
    report(pair, granted(pair), Outcome.FAILURE)
    pair.run()
    waiter = pair.acquire(timeout=0.05)
    assert pair.deliver_up()
    pair.cut()  # and the rejection with it
    pair.connect()
    assert pair.deliver_up()
    assert pair.deliver_down()
    assert pair.deliver_up()  # asked again in time, and refused
    pair.now += 0.06  # as in a process that was stopped
    pair.run()
    assert (waiter.answered, waiter.answer) == (True, None)


def test_a_request_whose_rejection_was_lost_is_asked_anew_and_answered(pair: Pair) -> None:
    pair.session.declare("a", CircuitConfig(failure_threshold=1))
    pair.run()
    report(pair, granted(pair), Outcome.FAILURE)
    pair.run()
    waiter = pair.acquire(timeout=10.0)
    pair.deliver_up()
    pair.cut()
    pair.connect()
    pair.run()
    assert isinstance(waiter.answer, Rejected)
    first, second, third = [m.request for m in pair.sent(Acquire)[1:] if isinstance(m, Acquire)]
    assert first == second < third


def test_a_permit_for_who_asked_for_something_else_is_no_answer(pair: Pair) -> None:
    waiter = pair.ask(Ping)
    ping = pair.sent(Ping)[-1]
    pair.session.received(DATA, Granted(ping[0], 1, 1, None), pair.now)
    pair.run()
    assert isinstance(waiter.answer, Pong)


def test_a_rejection_of_who_asked_for_something_else_raises_nothing(pair: Pair) -> None:
    waiter = pair.ask(Ping)
    refusal = Rejected(pair.sent(Ping)[-1][0], 1, State.OPEN, 1.0, None)
    pair.session.received(DATA, refusal, pair.now)
    pair.collect()
    assert waiter.answer == refusal


@pytest.mark.parametrize("confused", ["acknowledges", "refuses"])
def test_what_was_never_sent_is_still_owed_whatever_the_manager_says_of_it(
    pair: Pair, confused: str
) -> None:
    pair.call()
    pair.advance(0.5)
    lease = pair.admit()
    assert isinstance(lease, Lease)
    pair.end(lease)
    pair.cut()
    pair.collect_leases()  # into a report that cannot be sent
    number = pair.session._reports.sent + 1
    answers: dict[str, Message] = {
        "acknowledges": Reported(number, 1, Verdict.COUNTED),
        "refuses": Error(KINDS[Batch], number, ErrorCode.DUPLICATE_REPORT, ""),
    }
    pair.session.received(DATA, answers[confused], pair.now)
    pair.end(lease)
    pair.collect_leases()
    pair.connect()
    pair.run()
    assert stats(pair).total_successes == 3


def test_a_rejection_answers_with_itself(pair: Pair) -> None:
    pair.session.declare("a", CircuitConfig(failure_threshold=1))
    pair.run()
    report(pair, granted(pair), Outcome.FAILURE, error="OSError: down")
    waiter = pair.acquire()
    pair.run()
    assert isinstance(waiter.answer, Rejected)
    assert (waiter.answer.state, waiter.answer.last_error) == (State.OPEN, "OSError: down")


def test_an_acquire_that_arrives_after_its_deadline_is_answered_with_the_error(pair: Pair) -> None:
    waiter = pair.acquire(timeout=0.05)
    pair.now += 0.06
    pair.run()
    assert isinstance(waiter.answer, Error)
    assert waiter.answer.code is ErrorCode.DEADLINE_PASSED


# -- a window that is full -------------------------------------------------------------------------


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Pair:
    """A failure on "b" has no room in the window, because the manager acknowledges nothing."""
    monkeypatch.setattr(reports, "WINDOW", 3)
    pair = Pair()
    for name in ("a", "b"):
        pair.session.declare(name, CircuitConfig(failure_threshold=1, consistency="strict"))
    grants = [granted(pair) for _ in range(3)]
    failed = granted(pair, name="b")
    pair.saves = False
    for grant in grants:
        report(pair, grant)
    pair.session.report("b", failed, Outcome.FAILURE, 0.001, "OSError: down", now=pair.now)
    pair.collect()
    pair.run()
    assert len(pair.sent(Report)) == 3
    return pair


def acknowledge_all(pair: Pair) -> None:
    pair.saves = True
    pair.now += 1.0
    pair.save()
    pair.run()


def test_g7_a_call_waits_for_the_failure_before_it_that_has_no_room_in_the_window(
    full: Pair,
) -> None:
    call, other = full.acquire("b", timeout=5.0), full.acquire("a")
    full.run()
    assert not call.answered
    assert isinstance(other.answer, Grant)
    acknowledge_all(full)
    assert isinstance(call.answer, Rejected)
    assert call.answer.state is State.OPEN


def test_who_stopped_waiting_for_the_window_is_not_asked_for(full: Pair) -> None:
    call = full.acquire("b")
    full.session.abandon(call, timed_out=False)
    before = len(full.sent(Acquire))
    acknowledge_all(full)
    assert len(full.sent(Acquire)) == before
    assert not full.session._abandoned


def test_a_permit_nobody_waits_for_goes_back_when_there_is_room_in_the_window(full: Pair) -> None:
    call = full.acquire("a", timeout=5.0)
    full.deliver_up()  # it is granted, and the answer gets lost
    full.cut()
    full.connect()
    full.saves = True  # and the Welcome comes
    with mock.patch.object(reports.Reports, "delayed", return_value=True):
        full.deliver_up()
        full.deliver_down()
        assert list(full.session._delayed) == list(full.session._asked)
        full.session.abandon(call, timed_out=False)
    acknowledge_all(full)
    assert stats(full).in_flight == 0
    assert not full.session._abandoned


def test_after_a_welcome_what_waits_for_the_window_is_sent_in_its_time_and_once(full: Pair) -> None:
    call = full.acquire("b", timeout=5.0)
    full.cut()
    full.connect()
    full.run()
    acknowledge_all(full)
    assert isinstance(call.answer, Rejected)
    assert stats(full, "b").total_rejected == 1


def test_what_a_welcome_makes_room_for_is_asked_for_once(full: Pair) -> None:
    call = full.acquire("b", timeout=5.0)
    full.cut()
    full.saves = True
    full.now += 1.0
    full.save()
    before = len(full.sent(Acquire))
    full.connect()
    full.run()
    assert isinstance(call.answer, Rejected)
    assert len(full.sent(Acquire)) == before + 1


# -- reports across breaks -------------------------------------------------------------------------


@pytest.mark.parametrize("taken_in", range(6))
@pytest.mark.parametrize("acknowledged", [False, True])
def test_after_a_break_exactly_what_was_not_taken_in_is_sent_again(
    pair: Pair, taken_in: int, acknowledged: bool
) -> None:
    for grant in [granted(pair) for _ in range(5)]:
        report(pair, grant)
    for _ in range(taken_in):
        pair.deliver_up()
    if acknowledged:
        pair.now += 1.0
        pair.actor.tick(pair.now)
        while pair.deliver_down():
            pass
    pair.cut()
    before = len(pair.sent(Report))
    pair.connect()
    pair.run()
    again = pair.sent(Report)[before:]
    assert [message.number for message in again if isinstance(message, Report)] == list(
        range(taken_in + 1, 6)
    )
    waiter = pair.flush()
    pair.run()
    assert waiter.answered
    assert (stats(pair).total_successes, stats(pair).in_flight) == (5, 0)


def test_reports_that_come_twice_are_counted_once(pair: Pair) -> None:
    for grant in [granted(pair) for _ in range(3)]:
        report(pair, grant)
    up = pair.clients[0].wires[DATA].up
    up.extend(list(up))
    waiter = pair.flush()
    pair.run()
    assert waiter.answered
    assert stats(pair).total_successes == 3


@pytest.mark.parametrize("lost", range(3))
def test_a_report_that_was_lost_on_the_way_is_sent_again_with_those_behind_it(
    pair: Pair, lost: int
) -> None:
    for grant in [granted(pair) for _ in range(3)]:
        report(pair, grant)
    del pair.clients[0].wires[DATA].up[lost]
    waiter = pair.flush()
    pair.run()
    assert waiter.answered
    assert stats(pair).total_successes == 3


@pytest.mark.parametrize("bad", [{0}, {1}, {2}, {0, 1}, {0, 2}, {1, 2}, {0, 1, 2}])
def test_malformed_reports_do_not_block_nor_displace_the_others(pair: Pair, bad: set[int]) -> None:
    verdicts: list[list[Verdict]] = [[], [], [], []]
    for number, grant in enumerate([granted(pair) for _ in range(4)]):
        error = "x" * (MAX_ERROR_CHARACTERS + 1) if number in bad else None
        report(pair, grant, Outcome.FAILURE, verdicts=verdicts[number], error=error)
    waiter = pair.flush()
    pair.run()
    assert waiter.answered
    assert (stats(pair).total_failures, stats(pair).in_flight) == (4 - len(bad), len(bad))
    assert not any(verdicts[number] for number in bad)
    assert not pair.session.waiting


def test_a_malformed_report_takes_no_verdict_from_the_one_before_it(
    pair: Pair,
) -> None:
    verdicts: list[Verdict] = []
    good, bad = granted(pair), granted(pair)
    report(pair, good, Outcome.FAILURE, verdicts=verdicts)
    report(pair, bad, Outcome.FAILURE, error="x" * (MAX_ERROR_CHARACTERS + 1), verdicts=verdicts)
    pair.run()
    pair.flush()
    pair.run()
    assert stats(pair).total_failures == 1
    assert len(verdicts) <= 1  # the first's may be lost with the greeting; the second has none


def test_a_report_with_a_permit_of_nobody_settles_without_a_verdict(pair: Pair) -> None:
    verdicts: list[Verdict] = []
    report(pair, Grant(pair.epoch, 99_999), verdicts=verdicts)
    report(pair, granted(pair), verdicts=verdicts)
    waiter = pair.flush()
    pair.run()
    assert waiter.answered
    assert verdicts == [Verdict.COUNTED]


def test_more_reports_than_are_acknowledged_together_are_all_counted(pair: Pair) -> None:
    count = 3 * ACKS_TOGETHER + 1
    for grant in [granted(pair) for _ in range(count)]:
        report(pair, grant)
    pair.run()
    pair.advance(1.0)
    assert pair.flush().answered
    assert stats(pair).total_successes == count


def test_reports_go_to_the_next_manager_when_theirs_is_gone(pair: Pair) -> None:
    verdicts: list[Verdict] = []
    grants = [granted(pair) for _ in range(3)]
    report(pair, grants[0])
    pair.flush()
    pair.run()
    pair.replace_manager()
    report(pair, grants[1], Outcome.FAILURE, verdicts=verdicts)
    report(pair, grants[2], verdicts=verdicts)
    pair.connect_all()
    pair.run()
    pair.flush()
    pair.run()
    assert verdicts == [Verdict.STALE, Verdict.STALE]
    assert (stats(pair).total_successes, stats(pair).total_failures) == (1, 1)


def test_after_goodbye_nothing_is_held_at_the_manager(pair: Pair) -> None:
    granted(pair)
    pair.session.goodbye()
    pair.run()
    assert stats(pair).in_flight == 0
    assert kinds(pair.sent())[-1] == "Goodbye"


def test_goodbye_without_a_connection_is_not_said(pair: Pair) -> None:
    pair.cut()
    pair.session.goodbye()
    pair.collect()
    assert not pair.sent(Goodbye)


# -- a manager that does not answer ----------------------------------------------------------------


def lost_in_vain(pair: Pair) -> None:
    """Ask for a permit, get no answer, give up."""
    waiter = pair.acquire()
    assert not waiter.answered
    pair.now += 0.05
    pair.session.abandon(waiter, timed_out=True)
    pair.collect()


def test_only_the_first_acquire_of_an_outage_waits(pair: Pair) -> None:
    pair.cut()
    lost_in_vain(pair)
    assert pair.session.lost
    for _ in range(3):
        waiter = pair.acquire()
        assert waiter.answered
        assert waiter.answer is None


def test_a_caller_that_gave_up_for_its_own_reasons_says_nothing_of_the_manager(pair: Pair) -> None:
    waiter = pair.acquire()
    pair.session.abandon(waiter, timed_out=False)
    assert not pair.session.lost


def test_anything_heard_on_the_data_connection_ends_the_outage(pair: Pair) -> None:
    pair.cut()
    lost_in_vain(pair)
    pair.connect()
    assert pair.session.lost  # knocked, not heard
    pair.run()
    assert not pair.session.lost
    assert granted(pair).epoch == pair.epoch


def test_a_manager_that_is_stopped_is_greeted_every_so_often_and_not_more(pair: Pair) -> None:
    lost_in_vain(pair)  # nothing is delivered: the manager is stopped
    pair.now += GREETING_INTERVAL
    before = len(pair.sent(Hello))
    for _ in range(5):
        pair.acquire()
    assert len(pair.sent(Hello)) == before + 1
    pair.now += GREETING_INTERVAL - 0.001
    pair.acquire()
    assert len(pair.sent(Hello)) == before + 1
    pair.now += 0.002
    pair.acquire()
    assert len(pair.sent(Hello)) == before + 2
    pair.run()  # it goes on
    assert not pair.session.lost
    pair.flush()
    pair.run()
    assert stats(pair).in_flight == 0


def test_without_a_connection_nobody_is_greeted(pair: Pair) -> None:
    pair.cut()
    before = len(pair.sent(Hello))
    lost_in_vain(pair)
    pair.now += 10 * GREETING_INTERVAL
    pair.acquire()
    assert len(pair.sent(Hello)) == before


def test_what_is_heard_on_the_control_connection_does_not_end_an_outage_of_permits(
    pair: Pair,
) -> None:
    pair.cut()
    lost_in_vain(pair)
    pair.ask(Ping)
    pair.run()
    assert pair.session.lost


# -- versions --------------------------------------------------------------------------------------


def refuse(pair: Pair, connection: int) -> None:
    error = Error(KINDS[Hello], PROTOCOL, ErrorCode.WRONG_PROTOCOL, "another protocol")
    pair.clients[0].wires[connection].down.append(encode(error))
    pair.deliver_down(0, connection)


def test_a_refused_greeting_answers_everybody_who_waits_and_whoever_asks_later() -> None:
    pair = Pair(connected=False)
    pair.session.declare("a", None)
    waiters = [pair.acquire(), pair.acquire(), pair.ask(Ping)]
    pair.connect_all()
    for connection in (DATA, CONTROL):
        pair.clients[0].wires[connection].up.clear()
        refuse(pair, connection)
    waiters += [pair.acquire(), pair.ask(Ping)]
    for waiter in waiters:
        assert isinstance(waiter.answer, Error)
        assert waiter.answer.code is ErrorCode.WRONG_PROTOCOL
    assert kinds(pair.sent()) == ["Hello", "Hello"]


def test_after_a_refusal_another_manager_is_welcome() -> None:
    pair = Pair(connected=False)
    pair.session.declare("a", None)
    pair.connect_all()
    for connection in (DATA, CONTROL):
        pair.clients[0].wires[connection].up.clear()
        refuse(pair, connection)
    pair.replace_manager()
    pair.connect_all()
    pair.run()
    assert isinstance(granted(pair), Grant)


# -- events ----------------------------------------------------------------------------------------


def resets(pair: Pair, count: int) -> None:
    """So many events."""
    for _ in range(count):
        peer = Peer(CONTROL, b"somebody else")
        sends = pair.actor.receive(peer, Reset(1, "a"), pair.now)
        pair._route([send for send in sends if send.peer != peer])


def versions(pair: Pair) -> list[int]:
    return [event.version for event in pair.clients[0].events]


def test_events_come_in_order_and_once(pair: Pair) -> None:
    resets(pair, 2)
    waiter = pair.subscribe()
    pair.run()
    assert waiter.answered
    resets(pair, 3)
    pair.run()
    assert versions(pair) == [3, 4, 5]


@pytest.mark.parametrize("lost", [{0}, {1}, {0, 1}, {1, 2}, {0, 3}])
def test_events_that_were_lost_are_asked_for_and_come_in_order_and_once(
    pair: Pair, lost: set[int]
) -> None:
    pair.subscribe()
    pair.run()
    resets(pair, 5)
    down = pair.clients[0].wires[CONTROL].down
    kept = [frame for number, frame in enumerate(down) if number not in lost]
    down.clear()
    down.extend(kept)
    pair.run()
    assert versions(pair) == [1, 2, 3, 4, 5]
    since = [message.since for message in pair.sent(Subscribe) if isinstance(message, Subscribe)]
    assert since[1:] == [min(lost)] * (len(since) - 1)
    assert len(since) > 1


def test_events_that_come_twice_are_told_once(pair: Pair) -> None:
    pair.subscribe()
    pair.run()
    resets(pair, 3)
    down = pair.clients[0].wires[CONTROL].down
    down.extend(list(down))
    pair.run()
    assert versions(pair) == [1, 2, 3]


def test_events_during_a_break_come_after_it(pair: Pair) -> None:
    pair.subscribe()
    pair.run()
    resets(pair, 2)
    pair.run()
    pair.cut(0, CONTROL)
    resets(pair, 3)
    pair.connect(0, CONTROL)
    pair.run()
    resets(pair, 1)
    pair.run()
    assert versions(pair) == [1, 2, 3, 4, 5, 6]


def test_events_that_nobody_has_any_more_are_skipped(pair: Pair) -> None:
    pair.subscribe()
    pair.run()
    resets(pair, 1)
    pair.run()
    pair.cut(0, CONTROL)
    resets(pair, EVENTS_KEPT + 5)
    pair.connect(0, CONTROL)
    pair.run()
    assert versions(pair) == [1, *range(7, EVENTS_KEPT + 7)]


def test_a_new_manager_begins_its_versions_anew(pair: Pair) -> None:
    pair.subscribe()
    pair.run()
    resets(pair, 3)
    pair.run()
    pair.replace_manager()
    pair.connect_all()
    pair.run()
    resets(pair, 2)
    pair.run()
    assert versions(pair) == [1, 2, 3, 1, 2]


# -- clocks ----------------------------------------------------------------------------------------


def deadlines(pair: Pair) -> list[float]:
    return [m.deadline / 1e6 for m in pair.sent(Acquire) if isinstance(m, Acquire)]


def test_one_clock_is_believed_to_be_one_however_long_the_greeting_took() -> None:
    pair = Pair(connected=False)
    pair.session.declare("a", None)
    pair.connect_all()
    pair.now += 3.0
    pair.deliver_up()
    pair.now += 1.0
    pair.run()
    pair.acquire(timeout=0.05)
    assert deadlines(pair) == pytest.approx([pair.now + 0.05], abs=2e-6)


@pytest.mark.parametrize("skew", [-500.0, 12_345.678, 1e6])
def test_another_clock_is_reckoned_with(skew: float) -> None:
    pair = Pair(skew=skew, connected=False)
    pair.session.declare("a", None)
    pair.connect_all()
    pair.now += 0.001
    pair.deliver_up()
    pair.now += 0.001
    pair.run()
    waiter = pair.acquire(timeout=0.05)
    assert deadlines(pair) == pytest.approx([pair.now + skew + 0.05], abs=2e-6)
    pair.run()
    assert isinstance(waiter.answer, Grant)


def test_the_deadline_of_an_acquire_sent_again_is_still_the_callers() -> None:
    pair = Pair()
    pair.session.declare("a", None)
    pair.run()
    pair.cut()
    pair.acquire(timeout=5.0)
    asked = pair.now
    pair.now += 3.0
    pair.connect()
    pair.run()
    assert deadlines(pair) == pytest.approx([asked + 5.0], abs=2e-6)


# -- small things ----------------------------------------------------------------------------------


def test_resume_greets_and_nothing_happens_twice(pair: Pair) -> None:
    report(pair, granted(pair))
    waiter = pair.acquire()
    pair.session.resume(pair.now)
    pair.run()
    assert isinstance(waiter.answer, Grant)
    pair.flush()
    pair.run()
    assert (stats(pair).total_successes, stats(pair).in_flight) == (1, 1)


def test_after_several_greetings_everything_is_sent_again_once_and_the_clock_is_right(
    pair: Pair,
) -> None:
    patient = pair.acquire(timeout=10.0)
    lost_in_vain(pair)
    for _ in range(3):
        pair.now += GREETING_INTERVAL
        pair.acquire()
    up = pair.clients[0].wires[DATA].up
    up.popleft()  # the patient one's was lost
    pair.deliver_up()
    pair.deliver_up()  # the first Hello, answered before the clients went on
    pair.now += 0.001
    pair.run()
    assert isinstance(patient.answer, Grant)
    first, _, *again = deadlines(pair)
    assert [deadline for deadline in again if deadline > 0.0] == [first]


def test_a_welcome_that_is_older_than_the_last_greeting_does_not_move_the_clock(
    pair: Pair,
) -> None:
    lost_in_vain(pair)
    pair.now += GREETING_INTERVAL
    pair.acquire()
    while pair.deliver_up():
        pass  # the manager has answered, and the client has not read it
    pair.now += GREETING_INTERVAL
    pair.acquire()
    while pair.session.lost:
        pair.deliver_down()
    while pair.deliver_down():
        pass  # Welcome to the first Hello, not yet to the second
    pair.run()
    pair.acquire(timeout=0.05)
    assert deadlines(pair)[-1] == pytest.approx(pair.now + 0.05, abs=2e-6)


def test_a_clock_that_was_told_wrong_is_compared_again_and_the_caller_still_gets_its_permit(
    pair: Pair,
) -> None:
    pair.skew = -60.0  # the manager was stopped in a turn, and goes on with the time of before
    pair.session.resume(pair.now)
    pair.run()
    pair.skew = 0.0
    waiter = pair.acquire(timeout=0.05)
    pair.run()
    assert isinstance(waiter.answer, Grant)
    assert deadlines(pair)[-1] == pytest.approx(pair.now + 0.05, abs=2e-6)


def test_a_session_the_manager_has_forgotten_greets_again(pair: Pair) -> None:
    wire = pair.clients[0].wires[DATA]
    assert wire.peer is not None
    wire.peer = Peer(DATA, b"unknown")  # the manager knows this connection no more
    waiter = pair.acquire()
    pair.run()
    assert isinstance(waiter.answer, Grant)


def test_a_message_that_goes_the_other_way_changes_nothing(pair: Pair) -> None:
    waiter = pair.acquire()
    pair.session.received(CONTROL, Ping(1), pair.now)
    pair.collect()
    assert not pair.sent(Ping)
    assert not waiter.answered
    pair.run()
    assert isinstance(waiter.answer, Grant)


def test_answers_to_nobody_are_ignored(pair: Pair) -> None:
    down = pair.clients[0].wires[DATA].down
    for message in (
        Granted(9_999, 1, 1, None),
        Rejected(9_999, 1, State.OPEN, None, None),
        Error(0, 0, ErrorCode.MALFORMED, ""),
        Error(KINDS[Report], 1, ErrorCode.MALFORMED, ""),
        Welcome(9_999, PROTOCOL, pair.epoch, pair.epoch, round(pair.now * 1e6), 0, 0),
    ):
        down.append(encode(message))
    pair.run()
    assert isinstance(granted(pair), Grant)
    assert not pair.session.waiting


# -- a random walk ---------------------------------------------------------------------------------

CONFIG: Final = CircuitConfig(
    failure_threshold=3,
    success_threshold=2,
    open_timeout=0.5,
    max_concurrent_requests=2,
    permit_timeout=1_000.0,  # no probe is lost, so each one that was granted comes back
)


def is_news_of_a_lease(frame: bytes) -> bool:
    try:
        return isinstance(decode(frame, FROM_DATA), Leased | Revoked)
    except Malformed:  # it goes another way
        return False


STEPS: Final = 500


class Walk:
    """Three clients do as they please over connections that lose, repeat and break.

    What is never lost on a connection that holds is the news of a lease: where the manager cannot
    deliver these, the connection has to be greeted again. Whoever did not hear of a trip, and whose
    reports go on being answered, would renew its lease for ever.

    Args:
        seed: Of everything that is random here.
        replacing: Managers are killed and replaced, too.
    """

    def __init__(self, seed: int, *, replacing: bool) -> None:
        self.random = random.Random(seed)
        self.replacing = replacing
        self.pair = Pair(3)
        self.waiters: list[tuple[int, Waiter]] = []
        self.grants: list[tuple[int, Grant]] = []
        self.settled: list[Verdict] = []
        self.reported: Counter[Outcome] = Counter()
        self.states: set[State] = set()
        self.most_probes = 0
        self.running: list[tuple[int, Lease]] = []
        self.failures: list[set[str]] = [set() for _ in self.pair.clients]  # handed over
        self.seen: Counter[str] = Counter()
        for client in self.pair.clients:
            client.session.declare("a", CONFIG)
            self.pair.subscribe(client.number)
        self.pair.run()

    def step(self) -> None:
        chances = [
            (6, self.acquire),
            (20, self.call),
            (12, self.report),
            (16, self.end_call),
            (5, self.flush),
            (3, self.abandon),
            (2, self.ask),
            (90, self.deliver),
            (2, self.lose),
            (3, self.repeat),
            (1, self.cut),
            (6, self.connect),
            (4, self.wait),
            (1, self.resume),
            (int(self.replacing), self.replace),
        ]
        (action,) = self.random.choices([a for _, a in chances], [w for w, _ in chances])
        action()
        self.pair.collect()
        self.collect()
        probes = len(self.probes())
        assert probes <= CONFIG.max_concurrent_requests
        self.most_probes = max(self.most_probes, probes)

    def probes(self) -> list[int]:
        """The permits of half-open times that are out, as the manager has them."""
        held = self.pair.actor._permits
        return [number for number, one in held.items() if one.permit.deadline is not None]

    def any_client(self) -> int:
        return self.random.randrange(len(self.pair.clients))

    def collect(self) -> None:
        for client, waiter in self.waiters:
            if isinstance(waiter.answer, Grant):
                self.grants.append((client, waiter.answer))
        self.waiters = [(c, waiter) for c, waiter in self.waiters if not waiter.answered]
        if "a" in self.pair.actor._circuits:
            self.states.add(self.pair.actor._circuits["a"].state)

    def acquire(self) -> None:
        client = self.any_client()
        timeout = self.random.choice([0.01, 0.05, 10.0])
        self.waiters.append((client, self.pair.acquire(client=client, timeout=timeout)))

    def abandon(self) -> None:
        if self.waiters:
            client, waiter = self.waiters.pop(self.random.randrange(len(self.waiters)))
            timed_out = self.random.random() < 0.5
            self.pair.clients[client].session.abandon(waiter, timed_out=timed_out)

    def report(self) -> None:
        if self.grants:
            client, grant = self.grants.pop(self.random.randrange(len(self.grants)))
            (outcome,) = self.random.choices(list(Outcome), [5, 4, 1])
            self.reported[outcome] += 1
            self.seen["permits reported"] += 1
            error = self.failure_of(client, outcome)
            self.pair.clients[client].report("a", grant, outcome, error, self.settled.append)

    def failure_of(self, client: int, outcome: Outcome) -> str | None:
        """The text of a failure that is about to be reported, unlike any other's."""
        if outcome is not Outcome.FAILURE:
            return None
        text = f"Error: {self.reported[outcome]}"
        self.failures[client].add(text)
        return text

    # -- leases

    def call(self) -> None:
        client = self.any_client()
        admitted = self.pair.admit(client=client)
        if isinstance(admitted, Waiter):
            self.waiters.append((client, admitted))
        elif admitted is None:
            self.seen["rejected here"] += 1
            self.check_news(client, self.pair.clients[client].gates["a"].lease, State.OPEN)
        else:
            self.seen["leased"] += 1
            self.running.append((client, admitted))
            self.check_lease(client, admitted)

    def check_lease(self, client: int, lease: Lease) -> None:
        """It has just let a call run."""
        taken_in = {report.error for report in self.pair.taken_in}
        assert self.failures[client] <= taken_in  # G7
        assert self.pair.now < self.pair.answered[client] + LEASE  # G8
        self.check_news(client, lease, State.CLOSED)

    def check_news(self, client: int, lease: Lease, state: State) -> None:
        """G8: who has heard all there is to hear does what the manager would."""
        wire, circuit = self.pair.clients[client].wires[DATA], self.pair.actor._circuits.get("a")
        if circuit is None or wire.peer not in self.pair.actor._leases.holders("a"):
            self.seen["not a holder"] += 1
        elif wire.down:
            self.seen["news on the way"] += circuit.generation != lease.generation
        else:
            assert (circuit.generation, circuit.state) == (lease.generation, state)

    def end_call(self) -> None:
        if self.running:
            client, lease = self.running.pop(self.random.randrange(len(self.running)))
            (outcome,) = self.random.choices(list(Outcome), [5, 4, 1])
            self.reported[outcome] += 1
            error = self.failure_of(client, outcome)
            if outcome is Outcome.SUCCESS and self.random.random() < 0.5:
                lease.successes.append(0.001)
                if not lease.noted:
                    lease.rouse()
            else:
                lease.report(outcome, 0.001, error, self.settled.append)

    def flush(self) -> None:
        self.pair.clients[self.any_client()].flush()

    def ask(self) -> None:
        client = self.any_client()
        actions: list[Callable[[], object]] = [
            lambda: self.pair.ask(Ping, "a", client=client),
            lambda: self.pair.flush(client),
            lambda: self.pair.clients[client].session.declare("a", CONFIG),
        ]
        self.random.choice(actions)()

    def deliver(self) -> None:
        client, connection = self.any_client(), self.random.choice([DATA, DATA, CONTROL])
        step = self.random.choice([self.pair.deliver_up, self.pair.deliver_down])
        for _ in range(self.random.randrange(1, 6)):
            step(client, connection)

    def queue(self) -> deque[bytes]:
        wire = self.pair.clients[self.any_client()].wires[self.random.choice([DATA, CONTROL])]
        return self.random.choice([wire.up, wire.down])

    def lose(self) -> None:
        queue = self.queue()
        if queue:
            place = self.random.randrange(len(queue))
            if not is_news_of_a_lease(queue[place]):
                del queue[place]

    def repeat(self) -> None:
        queue = self.queue()
        if queue:
            place = self.random.randrange(len(queue))
            queue.insert(place, queue[place])

    def cut(self) -> None:
        self.pair.cut(self.any_client(), self.random.choice([DATA, CONTROL]))

    def connect(self) -> None:
        self.pair.connect(self.any_client(), self.random.choice([DATA, CONTROL]))

    def wait(self) -> None:
        self.pair.now += self.random.choice([0.001, 0.006, 0.1, 0.6])
        self.pair._tick()

    def resume(self) -> None:
        self.pair.clients[self.any_client()].session.resume(self.pair.now)

    def replace(self) -> None:
        if self.random.random() < 0.3:
            self.pair.replace_manager()

    def end(self) -> None:
        """Everybody stops waiting, every break is mended, everything held is reported."""
        for number, waiter in self.waiters:
            self.pair.clients[number].session.abandon(waiter, timed_out=False)
        self.waiters.clear()
        for _ in range(3):  # a message that was lost is noticed as a break, at the latest
            for client in self.pair.clients:
                self.pair.cut(client.number, DATA)
                self.pair.cut(client.number, CONTROL)
            self.pair.connect_all()
            self.pair.run()
            self.collect()
            while self.grants:
                self.report()
            while self.running:
                self.end_call()
            self.pair.collect_leases()
            self.pair.run()
            waiters = [self.pair.flush(client.number) for client in self.pair.clients]
            self.pair.run()
            assert all(waiter.answered for waiter in waiters)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_breaks_each_report_is_counted_once_and_every_permit_comes_back(
    seed: int,
) -> None:
    walk = Walk(seed, replacing=False)
    for _ in range(STEPS):
        walk.step()
    walk.end()
    found = stats(walk.pair)
    decided = [said.message for said in walk.pair.said] + walk.pair.undelivered
    granted = {message.operation for message in decided if isinstance(message, Granted)}
    rejected = {message.operation for message in decided if isinstance(message, Rejected)}
    # Permits that nobody waited for went back as neutral.
    unwanted = len(granted) - walk.seen["permits reported"]
    assert found.total_successes == walk.reported[Outcome.SUCCESS]
    assert found.total_failures == walk.reported[Outcome.FAILURE]
    assert found.total_neutral == walk.reported[Outcome.NEUTRAL] + unwanted
    assert found.total_rejected == walk.seen["rejected here"] + len(rejected)
    assert found.total_requests == (
        len(granted) + len(rejected) + walk.seen["leased"] + walk.seen["rejected here"]
    )
    assert found.in_flight == 0
    assert not walk.probes()
    for client in walk.pair.clients:
        seen = [event.version for event in client.events]
        assert seen == list(range(1, len(seen) + 1))
        assert not client.session.waiting


@pytest.mark.parametrize("seed", range(100, 130))
def test_whoever_is_replaced_nothing_is_left_behind(seed: int) -> None:
    walk = Walk(seed, replacing=True)
    for _ in range(STEPS):
        walk.step()
    walk.end()
    found = stats(walk.pair)
    assert found.in_flight == 0
    assert found.total_successes <= walk.reported[Outcome.SUCCESS]
    assert found.total_failures <= walk.reported[Outcome.FAILURE]
    assert not walk.probes()
    assert not any(client.session.waiting for client in walk.pair.clients)


def test_the_walk_reaches_every_state_and_a_full_half_open_circuit() -> None:
    states: set[State] = set()
    most_probes = 0
    seen: Counter[str] = Counter()
    for seed in range(10):
        walk = Walk(seed, replacing=False)
        for _ in range(STEPS):
            walk.step()
        states |= walk.states
        seen += walk.seen
        most_probes = max(most_probes, walk.most_probes)
    assert states == set(State)
    assert most_probes == CONFIG.max_concurrent_requests
    assert seen["leased"] > 50
    assert seen["rejected here"] > 20
    assert seen["news on the way"] > 0
    assert seen["not a holder"] > 0


def test_a_successor_is_not_told_again_what_its_predecessor_has_answered() -> None:
    pair = Pair(2)
    for client, threshold in ((1, 5), (0, 10)):
        session = pair.clients[client].session
        session.declare("a", CircuitConfig(failure_threshold=threshold))
        pair.run()
    pair.clients[0].session.declare("b", None)
    pair.collect()
    pair.kill_manager()  # before it has answered that
    pair.connect_all()
    pair.run()
    circuits = pair.actor._circuits
    assert (circuits["a"].config.failure_threshold, pair.actor._version) == (10, 1)
    assert "b" in circuits


# -- which connections there should be -------------------------------------------------------------


def test_a_session_begins_in_touch_and_with_nothing_to_say() -> None:
    session = Pair(connected=False).session
    assert (session.lost, session.away, session.refusal, session.retry_at) == (
        False,
        False,
        None,
        0.0,
    )
    assert not session.outbox
    assert session.needed(0.0) == set()
    assert not session.waiting


@pytest.mark.parametrize("what", ["permit", "report", "totals", "batch", "question", "events"])
def test_who_needs_a_connection_gets_one_and_no_other(what: str) -> None:
    pair = Pair(connected=False)
    session = pair.session
    match what:
        case "permit":
            session.acquire(Waiter(), "a", pair.now + 1.0, pair.now)
        case "report":
            session.report("a", Grant(1, 1), Outcome.SUCCESS, now=pair.now)
        case "totals":
            session.report_totals(Whole("a", Totals(1, 0, 0, 0, (), None)), now=pair.now)
        case "batch":
            session.collect(Lease(pair.clients[0], "a", 1, 1), now=pair.now)
        case "question":
            session.ask(Waiter(), Ping)
        case "events":
            session.subscribe(Waiter())
    expected = {CONTROL} if what in ("question", "events") else {DATA}
    assert session.needed(pair.now) == expected


def test_what_is_owed_is_reported_once_however_often_it_is_tried(pair: Pair) -> None:
    class Debt:
        reported = False

    debt, grant = Debt(), granted(pair)
    for _ in range(2):
        pair.session.report("a", grant, Outcome.SUCCESS, now=pair.now, owed=debt)
        assert debt.reported
    pair.run()
    assert stats(pair).total_successes == 1
    assert len(pair.sent(Report)) == 1


# -- what is left behind ---------------------------------------------------------------------------


def test_to_abandon_what_was_never_asked_forgets_nothing() -> None:
    pair = Pair(connected=False)
    pair.session.declare("a", None)
    waiter = pair.acquire()  # the very first request
    pair.session.abandon(Waiter(), timed_out=True)
    assert not pair.session.lost
    pair.connect()
    pair.run()
    assert isinstance(waiter.answer, Grant)


def test_who_gives_up_for_its_own_reasons_does_not_end_an_outage(pair: Pair) -> None:
    first, second = pair.acquire(), pair.acquire()
    pair.session.abandon(first, timed_out=True)
    pair.session.abandon(second, timed_out=False)
    assert pair.session.lost


def test_a_permit_that_arrives_twice_after_it_was_abandoned_goes_back_once(pair: Pair) -> None:
    waiter = pair.acquire()
    pair.session.abandon(waiter, timed_out=False)
    pair.deliver_up()
    frames = pair.clients[0].wires[DATA].down
    grants = [frame for frame in frames if isinstance(decode(frame, FROM_DATA), Granted)]
    frames.extend(grants)
    pair.run()
    assert len(pair.sent(Report)) == len(grants) == 1


def test_a_request_that_was_abandoned_and_rejected_is_not_asked_again(pair: Pair) -> None:
    pair.session.declare("strict", STRICT)
    report_on(pair, "strict", Outcome.FAILURE)
    waiter = pair.acquire("strict")
    pair.session.abandon(waiter, timed_out=False)
    pair.run()
    before = len(pair.sent(Acquire))
    pair.cut()
    pair.connect()
    pair.run()
    assert len(pair.sent(Acquire)) == before


def test_who_hangs_up_has_answered_everybody_and_has_nothing_left(pair: Pair) -> None:
    report(pair, granted(pair))
    earlier, asked = Waiter("earlier"), Waiter("asked")
    held, flush = Waiter("held"), Waiter("flush")
    pair.session.answers.append((earlier, None))
    pair.session.acquire(asked, "a", pair.now + 1.0, pair.now)
    pair.session.ask(held, Ping)
    pair.session.flush(flush)
    assert pair.session.outbox
    pair.session.hang_up()
    assert [waiter for waiter, _ in pair.session.answers] == [earlier, asked, held, flush]
    assert all(answer is None for _, answer in pair.session.answers)
    assert not pair.session.outbox
    assert not pair.session.waiting
    pair.session.abandon(asked, timed_out=True)
    pair.session.check()
    idle = Waiter("idle")
    pair.session.answers.clear()
    pair.session.flush(idle)
    assert pair.session.answers == [(idle, None)]  # as nothing is in the queue


# -- answers ---------------------------------------------------------------------------------------


STRICT: Final = CircuitConfig(failure_threshold=1, open_timeout=8.0, consistency="strict")


def report_on(pair: Pair, name: str, outcome: Outcome) -> None:
    grant = granted(pair, name=name)
    pair.session.report(name, grant, outcome, 0.001, "OSError: down", now=pair.now)
    pair.collect()
    pair.run()


def test_a_grant_says_whether_somebody_may_wait_for_it_to_come_back(pair: Pair) -> None:
    pair.session.declare("strict", STRICT)
    assert not granted(pair, name="strict").probe
    report_on(pair, "strict", Outcome.FAILURE)
    pair.advance(8.0)
    assert granted(pair, name="strict").probe


def test_the_gate_hears_of_a_strict_circuit_by_its_answers(pair: Pair) -> None:
    pair.session.declare("strict", STRICT)
    gate = pair.clients[0].gate("strict")
    report_on(pair, "strict", Outcome.FAILURE)
    assert gate.config == STRICT
    pair.acquire("strict")
    pair.run()
    assert (gate.open_until, gate.last_error) == (pair.now + 8.0, "OSError: down")
    pair.advance(8.0)
    probe = granted(pair, name="strict")
    assert (gate.open_until, gate.last_error) == (pair.now, "OSError: down")  # half-open since now
    pair.advance(1.0)
    pair.acquire("strict")
    pair.run()
    assert gate.open_until == pair.now  # and was rejected, so it still is
    pair.session.report("strict", probe, Outcome.SUCCESS, 0.001, now=pair.now)
    report_on(pair, "strict", Outcome.SUCCESS)
    granted(pair, name="strict")
    assert gate.open_until < 0.0


def test_every_question_is_answered_with_its_own_answer(pair: Pair) -> None:
    asked = [
        pair.subscribe(),
        pair.ask(lambda number: GetStats(number, "a"), "a"),
        pair.ask(lambda number: GetMetrics(number, "a"), "a"),
        pair.ask(lambda number: GetHistory(number, "a"), "a"),
        pair.ask(lambda number: GetList(number, "")),
        pair.ask(lambda number: Reset(number, "a"), "a"),
        pair.ask(Ping),
        pair.ask(Shutdown),
    ]
    pair.run()
    assert kinds([waiter.answer for waiter in asked]) == [
        "Subscribed",
        "StatsOf",
        "MetricsOf",
        "HistoryOf",
        "ListOf",
        "ResetDone",
        "Pong",
        "Stopping",
    ]


def test_what_is_asked_later_does_not_overtake_what_must_wait_for_a_declaration() -> None:
    pair = Pair(connected=False)
    pair.connect(connection=CONTROL)
    first, second = pair.ask(lambda number: GetStats(number, "b"), "b"), pair.ask(Ping)
    pair.run()
    assert not pair.sent(GetStats, Ping)
    pair.connect()
    pair.run()
    assert kinds(pair.sent(GetStats, Ping)) == ["GetStats", "Ping"]
    assert isinstance(first.answer, StatsOf)
    assert isinstance(second.answer, Pong)


def test_a_refused_greeting_answers_nobody_on_the_other_connection() -> None:
    pair = Pair(connected=False)
    pair.session.declare("a", None)
    permit, asked = pair.acquire(), pair.ask(Ping)
    pair.connect_all()
    pair.clients[0].wires[CONTROL].up.clear()
    refuse(pair, CONTROL)
    assert isinstance(asked.answer, Error)
    assert not permit.answered
    pair.run()
    assert isinstance(permit.answer, Grant)


def test_a_request_is_wanted_until_its_deadline_and_not_at_it(pair: Pair) -> None:
    for late, expected in ((-0.5, 2), (0.0, 1)):
        before = len(pair.sent(Hello))
        pair.acquire(timeout=4.0)
        (*_, acquire) = pair.sent(Acquire)
        pair.clients[0].wires[DATA].up.clear()
        passed = Error(KINDS[Acquire], acquire[0], ErrorCode.DEADLINE_PASSED, "too late")
        pair.now += 4.0 + late
        pair.session.received(DATA, passed, pair.now)
        pair.collect()
        assert len(pair.sent(Hello)) - before == expected - 1
        pair.run()


# -- times -----------------------------------------------------------------------------------------


def test_two_greetings_are_an_interval_apart_and_no_more() -> None:
    session = Pair(connected=False).session
    session.connected(DATA, 0.0)
    session.lost = True
    hellos = []
    for now in (GREETING_INTERVAL / 2, GREETING_INTERVAL):
        session.acquire(Waiter(), "a", 9.0, now)
        hellos.append(kinds([message for _, message in session.outbox]))
    assert hellos == [["Hello"], ["Hello", "Hello"]]


@pytest.mark.parametrize("answered_at", [0.0, 1.0, 2.0])
def test_a_clock_that_shows_a_time_of_the_greeting_is_ours_on_both_ends(answered_at: float) -> None:
    pair = Pair(connected=False)
    pair.session.declare("a", None)
    pair.connect()
    pair.now += answered_at
    pair.deliver_up()
    pair.now += 2.0 - answered_at
    pair.run()
    pair.acquire(timeout=0.5)
    assert deadlines(pair) == [pair.now + 0.5]


def test_a_report_is_sent_when_there_is_room_for_it_and_that_is_when_it_was_sent() -> None:
    pair = Pair(connected=False)
    pair.session.declare("a", None)
    for _ in range(WINDOW + 1):
        pair.session.report("a", Grant(0, None), Outcome.SUCCESS, now=pair.now)
    reports = pair.session._reports
    pair.now += 1.0
    pair.connect()
    pair.deliver_up()
    pair.deliver_down()
    assert [reports.sent_at(number) for number in (1, WINDOW)] == [pair.now] * 2
    assert reports.sent == WINDOW
    pair.now += 1.0
    pair.session.received(DATA, Reported(1, 1, Verdict.COUNTED), pair.now)
    pair.collect()
    assert reports.sent_at(WINDOW + 1) == pair.now


def test_a_malformed_report_leaves_the_queue_without_anybody_asking(pair: Pair) -> None:
    grants = [granted(pair) for _ in range(2)]
    report(pair, grants[0])
    report(pair, grants[1], Outcome.NEUTRAL, error="x" * (MAX_ERROR_CHARACTERS + 1))
    pair.run()
    pair.advance(1.0)
    assert len(pair.session._reports) == 0


def test_a_report_was_sent_when_it_was_reported(pair: Pair) -> None:
    grant = granted(pair)
    pair.now += 0.5
    report(pair, grant)
    assert pair.session._reports.sent_at(1) == pair.now


def test_who_asks_later_is_hurried_for_as_well(pair: Pair) -> None:
    grants = [granted(pair) for _ in range(2)]
    report(pair, grants[0])
    first = pair.flush()
    report(pair, grants[1])
    second = pair.flush()
    before = pair.now
    pair.run()
    assert (first.answered, second.answered, pair.now) == (True, True, before)


def test_an_event_that_was_lost_alone_is_asked_for_under_a_number_of_its_own(pair: Pair) -> None:
    pair.subscribe()
    pair.run()
    resets(pair, 1)
    pair.clients[0].wires[CONTROL].down.clear()
    resets(pair, 1)
    permit = pair.acquire()
    pair.run()
    assert versions(pair) == [1, 2]
    assert isinstance(permit.answer, Grant)


def test_what_a_process_does_not_say_of_itself_and_its_calls_is_nothing() -> None:
    pair = Pair()
    (hello, *_) = pair.sent(Hello)
    assert isinstance(hello, Hello)
    assert hello.started == 0
    pair.session.declare("a", None)
    grant = granted(pair)
    pair.session.report("a", grant, Outcome.SUCCESS, now=pair.now)
    pair.collect()
    (told,) = pair.sent(Report)
    assert isinstance(told, Report)
    assert told.duration == 0
    assert Grant(1, 2) == (1, 2, 0, False)


def test_what_was_counted_meanwhile_and_is_refused_is_not_said_again(pair: Pair) -> None:
    pair.session.report_totals(Whole("a", Totals(1, 0, 0, 0, (0.1,), None)), now=pair.now)
    number = pair.session._reports.sent
    refusal = Error(KINDS[Missed], number, ErrorCode.UNKNOWN_CIRCUIT, "no such circuit")
    pair.session.received(DATA, refusal, pair.now)
    assert len(pair.session._reports) == 0


def test_a_report_that_is_refused_for_something_else_speaks_for_none_before_it(pair: Pair) -> None:
    for grant in (granted(pair), granted(pair)):
        pair.session.report("a", grant, Outcome.SUCCESS, now=pair.now)
    refusal = Error(KINDS[Report], 2, ErrorCode.BAD_CONFIG, "no")
    pair.session.received(DATA, refusal, pair.now)
    assert len(pair.session._reports) >= 1
