"""Running out of places: who asks too much is refused, does without, and is let in later."""

from __future__ import annotations

from itertools import pairwise

import pytest
from harness import How, Pair, Waiter

from switchgear.client.session import RETRY, RETRY_MAX, Grant, Session
from switchgear.config import CircuitConfig
from switchgear.manager.actor import SPARED, Actor
from switchgear.manager.limits import MAX_CIRCUITS, MAX_CLIENTS, Limits
from switchgear.manager.sessions import CONTROL, DATA, Peer
from switchgear.states import Outcome
from switchgear.wire import (
    KINDS,
    Acquire,
    Declare,
    Declared,
    Error,
    ErrorCode,
    Event,
    GetList,
    GetStats,
    Granted,
    Hello,
    ListOf,
    Missed,
    Ping,
    Pong,
    StatsOf,
    Subscribe,
    Subscribed,
    Welcome,
)

HERE = Peer(DATA, b"here")
THERE = Peer(DATA, b"there")


def hello(number: int) -> Hello:
    return Hello(number, 1, 1, bytes([number]) * 16, number, 0)


# -- how much a manager takes on -------------------------------------------------------------------


@pytest.mark.parametrize("descriptors", [1, 40, 256, 1_024, 8_192, 20_000, 1_048_576])
def test_what_fits_into_the_descriptors_leaves_a_third_for_a_crowd(descriptors: int) -> None:
    limits = Limits.of(descriptors)
    assert 1 <= limits.clients <= MAX_CLIENTS
    assert limits.circuits == MAX_CIRCUITS
    assert limits.connections <= descriptors - descriptors // 3
    assert limits.connections <= limits.questions <= descriptors - descriptors // 4
    assert 1 <= limits.backlog <= 256
    if descriptors >= 256:
        # Two connections and a pidfd each, and some for those who are told that there is no room.
        assert 3 * limits.clients + 50 <= limits.connections


def test_the_limits_of_a_process_with_few_descriptors_and_of_one_with_the_usual_number() -> None:
    assert Limits.of(1) == (1, MAX_CIRCUITS, 1, 1, 1)
    # A third of 1,024 is reserved; of the rest, 56 are the manager's own and for the refused.
    assert Limits.of(1_024) == (209, MAX_CIRCUITS, 683, 683 + 85, 85)


@pytest.mark.parametrize(("wanted", "there_are"), [(1, 1), (38, 38), (39, 38), (10_000, 38)])
def test_who_wants_more_clients_than_fit_gets_as_many_as_fit(wanted: int, there_are: int) -> None:
    assert Limits.of(256, wanted).clients == there_are
    assert Limits.of(256, circuits=7).circuits == 7


# -- the manager -----------------------------------------------------------------------------------


def test_the_manager_takes_as_many_clients_as_it_may_and_refuses_the_next() -> None:
    actor = Actor(1, max_clients=2)
    assert not actor.full
    for number, peer in ((1, HERE), (2, THERE)):
        ((_, welcome),) = actor.receive(peer, hello(number), 0.0)
        assert isinstance(welcome, Welcome)
    assert actor.full
    third = Peer(DATA, b"third")
    ((to, refusal),) = actor.receive(third, hello(3), 0.0)
    assert to == third
    assert isinstance(refusal, Error)
    assert refusal[:3] == (KINDS[Hello], 3, ErrorCode.TOO_MANY_CLIENTS)
    assert actor.session_of(third) is None
    # Who is inside comes and goes on as it likes, and who asks on the control socket is no client.
    assert isinstance(actor.receive(Peer(DATA, b"again"), hello(2), 0.0)[0].message, Welcome)
    assert isinstance(actor.receive(Peer(CONTROL, b"ask"), hello(3), 0.0)[0].message, Welcome)
    actor.check()
    gone = actor.session_of(HERE)
    assert gone is not None
    actor.died(gone, 0.0)
    assert isinstance(actor.receive(third, hello(3), 0.0)[0].message, Welcome)


def test_the_manager_takes_as_many_circuits_as_it_may_and_refuses_the_next() -> None:
    actor = Actor(1, max_circuits=2)
    actor.receive(HERE, hello(1), 0.0)
    for number, name in enumerate("ab"):
        assert isinstance(
            actor.receive(HERE, Declare(number, name, None), 0.0)[0].message, Declared
        )
    for number in (7, 8):
        ((_, refusal),) = actor.receive(HERE, Declare(number, "c", None), 0.0)
        assert isinstance(refusal, Error)
        assert refusal[:3] == (KINDS[Declare], number, ErrorCode.TOO_MANY_CIRCUITS)
    assert isinstance(actor.receive(HERE, Declare(9, "a", None), 0.0)[0].message, Declared)
    ((_, pong),) = actor.receive(Peer(CONTROL, b"ask"), Ping(1), 0.0)
    assert isinstance(pong, Pong)
    assert pong.circuits == 2


def test_silent_is_who_holds_nothing_and_was_not_heard_of() -> None:
    actor = Actor(1)
    for number, peer in ((1, HERE), (2, THERE), (3, Peer(DATA, b"third"))):
        actor.receive(peer, hello(number), 0.0)
        actor.receive(peer, Declare(1, "a", None), 0.0)
    actor.receive(HERE, Acquire(2, "a", 10**9), 5.0)
    actor.receive(THERE, Missed(1, "a", 1, 0, 0, 0, (), None), 6.0)
    assert [session.pid for session in actor.silent(4.999)] == [3]
    assert [session.pid for session in actor.silent(6.0)] == [2, 3]  # the first one holds a permit


def test_a_subscriber_that_does_not_read_is_spared_events_for_a_moment() -> None:
    actor = Actor(1)
    slow, healthy = Peer(CONTROL, b"slow"), Peer(CONTROL, b"healthy")
    for peer in (slow, healthy):
        actor.receive(peer, Subscribe(1, None), 0.0)
    actor.receive(HERE, hello(1), 0.0)
    actor.receive(HERE, Declare(1, "a", None), 0.0)

    def told(now: float) -> list[Peer]:
        sends = actor.receive(HERE, Declare(2, "a", CircuitConfig(open_timeout=now)), now)
        events = [send for send in sends if isinstance(send.message, Event)]
        for send in events:
            if send.peer == slow and now < 2.0:
                assert actor.undelivered(send, now, gone=False) == []
        return [send.peer for send in events]

    moments = (1.0, 1.0 + SPARED - 0.001, 1.0 + SPARED, 1.0 + 1.5 * SPARED, 2.0, 2.001)
    assert [told(now) for now in moments] == [
        [slow, healthy],
        [healthy],
        [slow, healthy],
        [healthy],
        [slow, healthy],
        [slow, healthy],
    ]


# -- a client there is no room for -----------------------------------------------------------------


class Crowd(Pair):
    """A manager with one place, which the first client has; the second has just been refused."""

    def __init__(self) -> None:
        super().__init__(clients=2, connected=False)
        self.actor.max_clients = 1
        self.connect(0)
        self.run()
        self.clients[1].session.declare("a", None)
        self.waiter = self.acquire(client=1)  # for a permit, before it was refused
        self.connect(1)
        self.run()


@pytest.fixture
def crowd() -> Crowd:
    return Crowd()


def turned_away(pair: Pair) -> bool:
    """The second client does without, and wants no connection."""
    session = pair.clients[1].session
    return session.away and not session.needed(pair.now)


def leave(pair: Pair) -> None:
    """Do what the shell does for a session that wants no connection."""
    for connection in (DATA, CONTROL):
        pair.cut(1, connection)


def is_refused(waiter: Waiter, code: ErrorCode = ErrorCode.TOO_MANY_CLIENTS) -> bool:
    return isinstance(waiter.answer, Error) and waiter.answer.code is code


def test_who_is_refused_hears_why_and_gives_the_connections_back(crowd: Crowd) -> None:
    assert is_refused(crowd.waiter)
    assert turned_away(crowd)


def test_while_there_is_no_room_everything_is_answered_at_once(crowd: Crowd) -> None:
    leave(crowd)
    said = len(crowd.said)
    stats = crowd.ask(lambda number: GetStats(number, "a"), "a", client=1)
    for waiter in (crowd.acquire(client=1), stats, crowd.subscribe(client=1)):
        assert is_refused(waiter)
    assert len(crowd.said) == said


def test_who_waits_for_reports_to_be_taken_in_is_not_told_that_they_were(crowd: Crowd) -> None:
    leave(crowd)
    session = crowd.clients[1].session
    session.report("a", Grant(1, 1), Outcome.SUCCESS, now=crowd.now)
    flush = crowd.flush(client=1)
    crowd.now = session.retry_at
    crowd.connect(1)
    crowd.run()
    assert turned_away(crowd)
    assert not flush.answered
    leave(crowd)
    crowd.actor.max_clients = 2
    crowd.now = session.retry_at
    crowd.connect(1)
    crowd.run()
    assert flush.answered


def test_it_knocks_again_after_a_while_then_after_twice_that_and_so_on(crowd: Crowd) -> None:
    session = crowd.clients[1].session
    pauses = []
    for _ in range(9):
        leave(crowd)
        pauses.append(session.retry_at - crowd.now)
        crowd.now = session.retry_at - 0.001
        assert turned_away(crowd)
        crowd.now = session.retry_at
        assert session.needed(crowd.now) == {DATA}
        crowd.connect(1)
        crowd.run()
    assert 0.75 * RETRY <= pauses[0] <= 1.25 * RETRY
    for before, after in pairwise(pauses):
        assert after == pytest.approx(min(2 * before, pauses[-1]), rel=0.3)
    assert 0.75 * RETRY_MAX <= pauses[-1] <= 1.25 * RETRY_MAX


def test_two_that_were_refused_together_do_not_knock_together() -> None:
    pair = Pair(clients=3, connected=False)
    pair.actor.max_clients = 0
    for number in range(3):
        pair.connect(number)
    pair.run()
    assert len({client.session.retry_at for client in pair.clients}) == 3


def test_when_there_is_room_it_is_let_in_and_all_is_as_ever(crowd: Crowd) -> None:
    leave(crowd)
    session = crowd.clients[1].session
    subscription = crowd.subscribe(client=1)
    crowd.actor.max_clients = 2
    crowd.now = session.retry_at
    crowd.connect(1)
    # Until it is let in nobody waits for that.
    assert is_refused(crowd.acquire(client=1))
    crowd.run()
    assert session.needed(crowd.now) == {DATA, CONTROL}
    crowd.connect(1, CONTROL)
    crowd.run()
    assert crowd.call(client=1) is How.GRANTED
    assert crowd.call(client=1) is How.LEASED
    assert is_refused(subscription)  # it was, and yet the events come
    assert any(isinstance(said.message, Subscribed) for said in crowd.said if said.client == 1)
    # And the next time it begins with the short pause again.
    crowd.replace_manager()
    crowd.actor.max_clients = 0
    crowd.connect(1)
    crowd.run()
    assert session.retry_at - crowd.now <= 1.25 * RETRY


def test_nobody_inside_notices_that_another_one_is_refused(crowd: Crowd) -> None:
    crowd.clients[0].session.declare("a", None)
    assert crowd.call(client=0) is How.GRANTED
    assert crowd.call(client=0) is How.LEASED


def test_who_cannot_connect_at_all_is_answered_that_nobody_is_there() -> None:
    pair = Pair(connected=False)
    waiter, asked = pair.acquire(), pair.ask(Ping)
    pair.session.cannot_connect(DATA, pair.now)
    pair.collect()
    assert (waiter.answered, waiter.answer) == (True, None)
    assert (asked.answered, asked.answer) == (True, None)
    assert pair.session.needed(pair.now) == set()
    pair.now = pair.session.retry_at
    assert pair.session.needed(pair.now) == {DATA}


def test_who_cannot_connect_to_control_keeps_its_permits_and_leases() -> None:
    pair = Pair(connected=False)
    pair.connect()
    pair.run()
    pair.session.declare("a", None)
    assert pair.call() is How.GRANTED
    asked, held = pair.ask(Ping), pair.ask(lambda number: GetStats(number, "b"), "b")
    pair.session.cannot_connect(CONTROL, pair.now)
    pair.collect()
    assert (asked.answered, asked.answer, held.answered, held.answer) == (True, None, True, None)
    assert pair.session.needed(pair.now) == {DATA}
    assert pair.how() is How.LEASED
    again = pair.ask(Ping)
    assert pair.session.needed(pair.now) == {DATA, CONTROL}
    pair.connect(connection=CONTROL)
    pair.run()
    assert isinstance(again.answer, Pong)


def test_who_has_asked_on_control_and_loses_it_is_answered_that_nobody_is_there() -> None:
    pair = Pair()
    pair.session.declare("a", None)
    pair.run()
    asked, permit = pair.ask(Ping), pair.acquire()
    pair.cut(connection=CONTROL)
    pair.session.cannot_connect(CONTROL, pair.now)
    pair.collect()
    assert (asked.answered, asked.answer) == (True, None)
    assert not permit.answered
    pair.run()
    assert isinstance(permit.answer, Grant)


def test_who_cannot_connect_answers_those_whose_turn_had_come_and_those_who_were_held() -> None:
    pair = Pair()
    pair.session.declare("a", None)
    pair.run()
    asked, held = pair.ask(Ping), pair.ask(lambda number: GetStats(number, "b"), "b")
    pair.session.cannot_connect(CONTROL, pair.now)
    pair.collect()
    assert (asked.answered, held.answered) == (True, True)
    pair.run()  # and neither is answered again


def test_who_stays_away_answers_also_those_who_were_answered_just_before() -> None:
    pair = Pair(connected=False)
    session = pair.session
    session.lost = True
    first, second, held = Waiter("first"), Waiter("second"), Waiter("held")
    session.acquire(first, "a", pair.now + 1.0, pair.now)
    session.lost = False
    session.acquire(second, "a", pair.now + 1.0, pair.now)
    session.ask(held, lambda number: GetStats(number, "a"), ("a",))
    session.cannot_connect(DATA, pair.now)
    pair.collect()
    assert [waiter.answered for waiter in (first, second, held)] == [True, True, True]
    pair.now = session.retry_at
    pair.connect_all()
    pair.run()  # and nobody is answered again
    assert session.needed(pair.now) == {DATA, CONTROL}  # as was wanted before


def test_who_stays_away_says_nothing_on_the_connections_that_it_had() -> None:
    pair = Pair()
    pair.session.declare("a", None)
    pair.run()
    pair.session.cannot_connect(DATA, pair.now)
    pair.session.report("a", Grant(1, 1), Outcome.SUCCESS, now=pair.now)
    pair.session.goodbye()
    assert not pair.session.outbox


def test_what_is_asked_while_there_is_no_room_is_not_asked_later(crowd: Crowd) -> None:
    leave(crowd)
    session = crowd.clients[1].session
    crowd.ask(Ping, client=1)
    crowd.actor.max_clients = 2
    crowd.now = session.retry_at
    crowd.connect(1)
    crowd.run()
    assert session.needed(crowd.now) == {DATA}


@pytest.mark.parametrize(("first", "pause"), [(0, 0.75), (128, 1.0), (255, 0.75 + 255 / 512)])
def test_the_first_byte_of_the_token_spreads_those_who_knock(first: int, pause: float) -> None:
    session = Session(bytes([first]) + bytes(range(1, 16)), 1, {}, Pair().clients[0])
    session.cannot_connect(DATA, 100.0)
    assert session.retry_at == 100.0 + pause * RETRY


def test_who_was_let_in_and_hears_that_there_is_no_room_stays() -> None:
    pair = Pair()
    pair.session.declare("a", None)
    pair.run()
    error = Error(KINDS[Hello], 1, ErrorCode.TOO_MANY_CLIENTS, "full")  # to an earlier greeting
    pair.session.received(DATA, error, pair.now)
    assert not pair.session.away
    assert pair.call() is How.GRANTED


# -- a circuit there is no room for ----------------------------------------------------------------


@pytest.fixture
def pair() -> Pair:
    """A manager with one place for a circuit, which "a" has."""
    pair = Pair()
    pair.actor.max_circuits = 1
    for name in "ab":
        pair.session.declare(name, None)
    pair.run()
    return pair


def test_a_call_through_a_circuit_that_was_refused_hears_why_and_asks_nobody(pair: Pair) -> None:
    said = len(pair.said)
    assert is_refused(pair.acquire("b"), ErrorCode.TOO_MANY_CIRCUITS)
    assert len(pair.said) == said
    assert pair.call("a") is not How.REJECTED


def test_another_manager_may_have_room_and_is_waited_for(pair: Pair) -> None:
    pair.replace_manager()
    pair.connect()
    pair.deliver_up()
    pair.deliver_down()  # it is welcome, and "b" is declared and not answered yet
    waiter = pair.acquire("b")
    assert not waiter.answered
    pair.run()
    assert isinstance(waiter.answer, Grant)


def test_calls_that_were_under_way_when_it_was_refused_hear_why(pair: Pair) -> None:
    pair.session.declare("c", None)
    waiter = pair.acquire("c")
    assert not waiter.answered
    pair.run()
    assert is_refused(waiter, ErrorCode.TOO_MANY_CIRCUITS)


def test_what_is_asked_of_a_circuit_that_was_refused_hears_why_and_the_list_has_the_others(
    pair: Pair,
) -> None:
    stats = pair.ask(lambda number: GetStats(number, "b"), "b")
    others = pair.ask(lambda number: GetStats(number, "a"), "a")
    listed = pair.ask(lambda number: GetList(number, ""), "a", "b")
    unknown = pair.ask(lambda number: GetStats(number, "z"))
    pair.run()
    assert is_refused(stats, ErrorCode.TOO_MANY_CIRCUITS)
    assert isinstance(others.answer, StatsOf)
    assert isinstance(listed.answer, ListOf)
    assert [stats.name for stats in listed.answer.circuits] == ["a"]
    assert is_refused(unknown, ErrorCode.UNKNOWN_CIRCUIT)


def test_only_that_it_is_unknown_is_explained_by_that_it_was_refused(pair: Pair) -> None:
    pair.connect(connection=CONTROL)
    pair.run()
    stats = pair.ask(lambda number: GetStats(number, "b"), "b")
    (asked,) = pair.sent(GetStats)
    malformed = Error(KINDS[GetStats], asked[0], ErrorCode.MALFORMED, "no")
    nobodys = Error(KINDS[GetStats], 99, ErrorCode.UNKNOWN_CIRCUIT, "nobody has asked")
    for refusal in (nobodys, malformed):
        pair.session.received(CONTROL, refusal, pair.now)
    pair.collect()
    assert stats.answer == malformed


def test_it_is_declared_again_with_the_next_connection_and_to_the_next_manager(pair: Pair) -> None:
    pair.actor.max_circuits = 2
    assert is_refused(pair.acquire("b"), ErrorCode.TOO_MANY_CIRCUITS)
    pair.cut()
    pair.connect()
    pair.run()
    waiter = pair.acquire("b")
    pair.run()
    assert isinstance(waiter.answer, Grant)
    pair.replace_manager()
    pair.actor.max_circuits = 1
    pair.connect_all()
    pair.run()
    codes = [is_refused(pair.acquire(name), ErrorCode.TOO_MANY_CIRCUITS) for name in "ab"]
    assert sorted(codes) == [False, True]


def test_a_caller_who_declares_it_anew_is_heard_at_once(pair: Pair) -> None:
    pair.actor.max_circuits = 2
    pair.session.declare("b", None)
    pair.run()
    waiter = pair.acquire("b")
    pair.run()
    assert isinstance(waiter.answer, Grant)
    assert any(isinstance(said.message, Granted) for said in pair.said)


def test_without_a_limit_of_descriptors_there_are_as_many_as_the_documents_say() -> None:
    assert Limits() == (10_000, 100_000, 2**31, 2**31, 256)
    assert Limits.of(1_027).clients == 209  # one fewer for ourselves, and there were 210
    assert Limits.of(1_048_576).backlog == 256
