"""What a process decides without asking, and when that ends: sessions against the actor, in memory.

The times are sums of powers of two, so both sides of a boundary are what they look like.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest
from harness import FROM, How, Pair

from switchgear.circuit import Totals
from switchgear.client.lease import NO_LEASE, Gate, Lease, Settled, Term
from switchgear.client.leases import Leases
from switchgear.client.reports import Whole
from switchgear.client.session import UNREPORTED, Grant
from switchgear.config import CircuitConfig
from switchgear.errors import CircuitOpenError
from switchgear.manager.actor import LEASE, Send
from switchgear.manager.sessions import CONTROL, DATA, Peer
from switchgear.states import Outcome, State, Verdict
from switchgear.stats import CircuitStats
from switchgear.wire import (
    Acquire,
    Batch,
    GetStats,
    Leased,
    Message,
    Rejected,
    Report,
    Reported,
    Reset,
    Revoked,
    StatsOf,
    decode,
)

CONFIG: Final = CircuitConfig(failure_threshold=3, success_threshold=1, open_timeout=32.0)
T0: Final = 1_000.0  # when every test begins
FAILURE: Final = Outcome.FAILURE
EPSILON: Final = 2.0**-10


def declared(clients: int = 1, *, skew: float = 0.0, config: CircuitConfig = CONFIG) -> Pair:
    """So many clients that know the circuits "a" and "b"."""
    pair = Pair(clients, skew=skew)
    for client in pair.clients:
        for name in ("a", "b"):
            client.session.declare(name, config)
    pair.run()
    return pair


def leased(clients: int = 1, *, skew: float = 0.0, config: CircuitConfig = CONFIG) -> Pair:
    """All of them have a lease on "a", asked for at T0, and owe nothing."""
    pair = declared(clients, skew=skew, config=config)
    for client in pair.clients:
        assert pair.call(client=client.number) is How.GRANTED
        pair.flush(client.number)
    pair.run()
    return pair


@pytest.fixture
def pair() -> Pair:
    return leased()


def up(pair: Pair, client: int = 0) -> None:
    """Bring the manager all that this client has sent on the data connection."""
    while pair.deliver_up(client):
        pass


def down(pair: Pair, *until: type[Message], client: int = 0, connection: int = DATA) -> None:
    """Bring the client what is on its way: all, or what comes before the first of a kind."""
    frames = pair.clients[client].wires[connection].down
    while frames and type(decode(frames[0], FROM[connection])) not in until:
        pair.deliver_down(client, connection)


def waiting(pair: Pair, client: int = 0) -> list[str]:
    """What is on its way to the client on the data connection."""
    frames = pair.clients[client].wires[DATA].down
    return [type(decode(frame, FROM[DATA])).__name__ for frame in frames]


def stats(pair: Pair, name: str = "a") -> CircuitStats:
    sends = pair.actor.receive(Peer(CONTROL, b"x"), GetStats(1, name), pair.now + pair.skew)
    assert isinstance(sends[0].message, StatsOf)
    return sends[0].message.stats


def reset_by_somebody(pair: Pair, name: str = "a") -> None:
    """What follows from it is on its way."""
    operator = Peer(CONTROL, b"somebody else")
    sends = pair.actor.receive(operator, Reset(1, name), pair.now + pair.skew)
    pair._route([send for send in sends if send.peer != operator])


def trip(pair: Pair, client: int) -> None:
    """Open the circuit with failures of one client; what others hear of it is on its way."""
    for _ in range(CONFIG.failure_threshold):
        assert pair.call(FAILURE, client=client) in (How.LEASED, How.GRANTED)
        up(pair, client)
        down(pair, client=client)
    assert stats(pair).state is State.OPEN


def hows(pair: Pair, *times: float, client: int = 0) -> list[How]:
    """What would become of calls at these times."""
    before, found = pair.now, []
    for pair.now in times:
        found.append(pair.how(client=client))
    pair.now = before
    return found


# -- granted ---------------------------------------------------------------------------------------


def test_the_first_call_asks_and_those_after_it_do_not() -> None:
    pair = declared()
    before = len(pair.sent(Acquire))
    assert [pair.call() for _ in range(4)] == [How.GRANTED, *[How.LEASED] * 3]
    assert len(pair.sent(Acquire)) == before + 1
    assert pair.call(name="b") is How.GRANTED  # another circuit is another lease


def test_each_client_asks_for_itself() -> None:
    pair = leased(2)
    assert [pair.how(client=client) for client in (0, 1)] == [How.LEASED, How.LEASED]
    assert len(pair.sent(Acquire, client=1)) == 1


def test_every_call_of_a_strict_circuit_asks() -> None:
    pair = declared(config=replace(CONFIG, consistency="strict"))
    assert [pair.call() for _ in range(3)] == [How.GRANTED] * 3


def test_every_call_of_a_half_open_circuit_asks() -> None:
    pair = leased(2)
    trip(pair, 1)
    pair.run()
    pair.advance(32.0)
    probe = pair.acquire()
    pair.run()
    assert isinstance(probe.answer, Grant)
    assert pair.call() is How.REJECTED  # by the manager: the only permit is out
    assert pair.how() is How.ASKED


def test_a_lease_comes_back_when_the_circuit_is_closed_again() -> None:
    pair = leased(2)
    trip(pair, 1)
    pair.run()
    pair.advance(32.0)
    assert [pair.call() for _ in range(3)] == [How.GRANTED, How.GRANTED, How.LEASED]
    assert stats(pair).state is State.CLOSED


def test_a_lease_on_a_circuit_that_nobody_looks_at_is_no_harm() -> None:
    pair = declared()
    pair.session.received(DATA, Leased("nobody", 1, State.CLOSED, None, None), pair.now)
    pair.check()
    assert "nobody" not in pair.clients[0].gates


def test_revoked_makes_calls_ask_again(pair: Pair) -> None:
    pair.session.declare("a", replace(CONFIG, consistency="strict"))
    pair.collect()
    up(pair)
    assert pair.how() is How.LEASED
    down(pair)
    assert [pair.call() for _ in range(2)] == [How.GRANTED, How.GRANTED]


def test_leased_again_after_it_was_strict(pair: Pair) -> None:
    for config in (replace(CONFIG, consistency="strict"), CONFIG):
        pair.session.declare("a", config)
        pair.run()
    assert [pair.call() for _ in range(2)] == [How.GRANTED, How.LEASED]


# -- how long it holds: G8 -------------------------------------------------------------------------


def test_a_lease_lapses_after_its_length_and_not_before_and_is_had_again_by_asking() -> None:
    pair = leased()
    end = T0 + LEASE
    assert hows(pair, T0, end - EPSILON, end, end + 100) == [
        How.LEASED,
        How.LEASED,
        How.ASKED,
        How.ASKED,
    ]
    pair.now = end
    before = len([said for said in pair.said if isinstance(said.message, Leased)])
    assert pair.call() is How.GRANTED
    assert hows(pair, end + LEASE - EPSILON, end + LEASE) == [How.LEASED, How.ASKED]
    # It never ended for the manager, which has not said anything again.
    assert len([said for said in pair.said if isinstance(said.message, Leased)]) == before


@pytest.mark.parametrize("rejected", [False, True])
def test_the_answer_to_a_request_renews_from_when_it_was_sent(rejected: bool) -> None:
    pair = leased()
    if rejected:
        pair.session.declare("b", replace(CONFIG, failure_threshold=1, consistency="strict"))
        pair.run()
        pair.call(FAILURE, "b")
        pair.run()
    pair.now = T0 + 0.5
    waiter = pair.acquire("b", timeout=10.0)
    pair.now = T0 + 0.75
    up(pair)
    assert hows(pair, T0 + LEASE) == [How.ASKED]  # it has not arrived
    pair.now = T0 + 0.875
    down(pair)
    assert isinstance(waiter.answer, Rejected if rejected else Grant)
    assert hows(pair, T0 + 0.5 + LEASE - EPSILON, T0 + 0.5 + LEASE) == [How.LEASED, How.ASKED]


@pytest.mark.parametrize("outcome", [Outcome.SUCCESS, Outcome.NEUTRAL, Outcome.FAILURE])
def test_an_acknowledgement_renews_from_when_the_report_was_sent(outcome: Outcome) -> None:
    pair = leased()
    pair.now = T0 + 0.25
    pair.call(outcome)
    pair.now = T0 + 0.5  # a failure was sent at once, the others are now
    sent_at = T0 + 0.25 if outcome is FAILURE else pair.now
    pair.collect_leases()
    pair.now = T0 + 0.625
    up(pair)
    pair.now = T0 + 0.75
    pair._tick()
    pair.now = T0 + 0.875
    assert waiting(pair) == ["Reported"]
    down(pair)
    assert hows(pair, sent_at + LEASE - EPSILON, sent_at + LEASE) == [How.LEASED, How.ASKED]


def test_all_leases_of_a_session_are_renewed_together() -> None:
    pair = leased()
    pair.now = T0 + 0.75
    assert pair.call(name="b") is How.GRANTED
    assert hows(pair, T0 + 0.75 + LEASE - EPSILON) == [How.LEASED]  # on "a"


def test_an_older_answer_does_not_shorten_a_lease() -> None:
    pair = leased()
    pair.acquire("b", timeout=10.0)
    older = pair.clients[0].wires[DATA].up.pop()
    pair.now = T0 + 0.5
    pair.acquire("b", timeout=10.0)
    pair.clients[0].wires[DATA].up.appendleft(older)
    pair.run()
    assert hows(pair, T0 + 0.5 + LEASE - EPSILON) == [How.LEASED]
    pair.session._leases.renew(T0)
    assert hows(pair, T0 + 0.5 + LEASE - EPSILON) == [How.LEASED]


def test_a_lease_in_use_is_renewed_for_ever_and_one_that_is_not_sends_nothing() -> None:
    pair = leased()
    for _ in range(40):
        assert pair.call() is How.LEASED
        pair.collect_leases()
        pair.run()
        pair.advance(0.25)
    pair.run()
    sent = len(pair.said)
    pair.advance(100.0)
    assert len(pair.said) == sent


def test_a_client_that_hears_nothing_stops_after_the_length_of_its_lease() -> None:
    pair = leased(2)
    pair.now = T0 + 0.5
    trip(pair, 1)  # and what client 0 hears of it never arrives
    pair.clients[0].wires[DATA].down.clear()
    end = T0 + LEASE
    assert hows(pair, end - EPSILON, end, end + 1) == [How.LEASED, How.ASKED, How.ASKED]


def test_calls_that_are_reported_and_not_acknowledged_renew_nothing() -> None:
    pair = leased()
    for _ in range(3):
        pair.now += 0.25
        pair.call()
        pair.collect_leases()
    assert hows(pair, T0 + LEASE - EPSILON, T0 + LEASE) == [How.LEASED, How.ASKED]


# -- failures: G7 ----------------------------------------------------------------------------------


def test_after_a_failure_calls_ask_until_it_is_answered(pair: Pair) -> None:
    assert pair.call(FAILURE) is How.LEASED
    assert pair.how() is How.ASKED
    up(pair)
    assert stats(pair).total_failures == 1
    assert pair.how() is How.ASKED
    down(pair)
    assert pair.how() is How.LEASED


def test_a_failure_suspends_its_own_circuit_only(pair: Pair) -> None:
    pair.call(name="b")
    pair.call(FAILURE)
    assert (pair.how("a"), pair.how("b")) == (How.ASKED, How.LEASED)


@pytest.mark.parametrize("count", [2, 3])
def test_calls_ask_until_the_last_of_several_failures_is_answered(count: int) -> None:
    pair = leased(config=replace(CONFIG, failure_threshold=9))
    running = [pair.admit() for _ in range(count)]
    for lease in running:
        assert isinstance(lease, Lease)
        pair.end(lease, FAILURE)
    for _ in range(count):
        assert pair.how() is How.ASKED
        pair.deliver_up()
        assert waiting(pair) == ["Reported"]
        down(pair)
    assert pair.how() is How.LEASED


def test_a_failure_before_the_last_one_is_answered_suspends_again(pair: Pair) -> None:
    first, second = pair.admit(), pair.admit()
    assert isinstance(first, Lease)
    assert isinstance(second, Lease)
    pair.end(first, FAILURE)
    up(pair)
    pair.end(second, FAILURE)  # the answer to the first is on its way
    down(pair)
    assert pair.how() is How.ASKED
    pair.run()
    assert pair.how() is How.LEASED


def test_a_failure_under_a_permit_suspends_the_lease_too(pair: Pair) -> None:
    waiter = pair.acquire()
    pair.run()
    assert isinstance(waiter.answer, Grant)
    assert pair.how() is How.LEASED
    pair.clients[0].report("a", waiter.answer, FAILURE)
    assert pair.how() is How.ASKED
    pair.collect()
    up(pair)
    assert pair.how() is How.ASKED
    down(pair)
    assert pair.how() is How.LEASED


def test_a_success_or_a_neutral_outcome_suspends_nothing(pair: Pair) -> None:
    for outcome in (Outcome.SUCCESS, Outcome.NEUTRAL):
        assert pair.call(outcome) is How.LEASED
        assert pair.how() is How.LEASED


@pytest.mark.parametrize("threshold", [1, 3])
def test_a_lease_that_comes_while_a_failure_is_out_waits_for_its_answer(threshold: int) -> None:
    # A call fails that ran under an earlier lease, and another thread has just asked for a new one.
    pair = leased(config=replace(CONFIG, failure_threshold=threshold))
    lease = pair.admit()
    assert isinstance(lease, Lease)
    pair.session.resume(pair.now)
    pair.run()  # Welcome: the lease has ended
    pair.acquire()
    pair.end(lease, FAILURE)
    up(pair)
    assert waiting(pair) == ["Granted", *["Leased"] * (2 if threshold == 1 else 1), "Reported"]
    while waiting(pair):
        assert pair.how() is not How.LEASED
        pair.deliver_down()
    assert pair.how() is (How.LEASED if threshold == 3 else How.REJECTED_HERE)


@pytest.mark.parametrize("reset", [False, True])
def test_a_failure_under_a_lease_that_has_ended_suspends_the_one_there_is(reset: bool) -> None:
    pair = leased()
    lease = pair.admit()
    assert isinstance(lease, Lease)
    if reset:
        reset_by_somebody(pair)
    else:
        pair.session.resume(pair.now)
    pair.run()
    pair.call()
    pair.run()
    assert pair.how() is How.LEASED
    pair.end(lease, FAILURE)
    assert pair.how() is How.ASKED
    up(pair)
    assert pair.how() is How.ASKED
    down(pair)
    assert pair.how() is How.LEASED
    assert stats(pair).consecutive_failures == (0 if reset else 1)


def test_several_failures_of_an_earlier_lease_suspend_a_new_one_until_the_last_is_answered() -> (
    None
):
    pair = leased()
    running = [pair.admit(), pair.admit()]
    pair.session.resume(pair.now)
    pair.run()
    pair.acquire()
    for lease in running:
        assert isinstance(lease, Lease)
        pair.end(lease, FAILURE)
    up(pair)
    assert waiting(pair) == ["Granted", "Leased", "Reported", "Reported"]
    for _ in range(4):
        assert pair.how() is How.ASKED
        pair.deliver_down()
    assert pair.how() is How.LEASED


def test_a_failure_on_another_circuit_does_not_suspend_a_new_lease(pair: Pair) -> None:
    pair.call(name="b")
    lease = pair.admit("b")
    assert isinstance(lease, Lease)
    pair.session.resume(pair.now)
    pair.run()
    pair.acquire("a")
    pair.end(lease, FAILURE)
    up(pair)
    down(pair, Reported)
    assert pair.how("a") is How.LEASED


@pytest.mark.parametrize("told", [False, True])
def test_a_late_failure_makes_no_calls_run_on_an_open_circuit(told: bool) -> None:
    pair = leased(2)
    waiter = pair.acquire()
    pair.run()
    assert isinstance(waiter.answer, Grant)
    trip(pair, 1)
    if told:
        down(pair)
    pair.clients[0].report("a", waiter.answer, FAILURE)
    pair.run()
    assert stats(pair).state is State.OPEN
    assert hows(pair, T0, T0 + 32.0 - EPSILON, T0 + 32.0) == [
        How.REJECTED_HERE,
        How.REJECTED_HERE,
        How.ASKED,
    ]


def test_the_news_that_a_failure_makes_come_before_its_answer() -> None:
    pair = leased(config=replace(CONFIG, failure_threshold=1))
    pair.call(FAILURE)
    up(pair)
    assert waiting(pair) == ["Leased", "Reported"]
    down(pair)
    assert pair.how() is How.REJECTED_HERE


def test_successes_before_a_failure_go_ahead_of_it_and_those_after_it_behind() -> None:
    pair = leased()
    before = len(pair.sent(Batch, Report))
    for outcome in (*[Outcome.SUCCESS] * 3, FAILURE):
        pair.call(outcome)
    first, second = pair.sent(Batch, Report)[before:]
    assert isinstance(first, Batch)
    assert isinstance(second, Report)
    assert (first.successes, second.outcome, second.permit) == (3, FAILURE, None)
    assert (second.generation, second.epoch, second.error) == (1, 1, "OSError: down")
    pair.run()
    pair.call()
    pair.collect_leases()
    pair.run()
    assert (stats(pair).consecutive_successes, stats(pair).consecutive_failures) == (1, 0)


@pytest.mark.parametrize("under", ["the lease", "an ended lease", "a permit"])
def test_what_waits_for_a_connection_is_parted_by_a_failure_too(under: str) -> None:
    pair = leased()
    lease = pair.admit()
    waiter = pair.acquire()
    pair.run()
    assert isinstance(lease, Lease)
    assert isinstance(waiter.answer, Grant)
    if under == "an ended lease":
        pair.session.received(DATA, Revoked("a", 1), pair.now)
    pair.cut()
    for number in range(2):
        pair.end(lease)
        pair.collect_leases()
        if number == 0 and under == "a permit":
            pair.clients[0].report("a", waiter.answer, FAILURE)
        elif number == 0:
            pair.end(lease, FAILURE)
    before = len(pair.sent(Batch, Report))
    pair.connect()
    pair.run()
    assert [type(message) for message in pair.sent(Batch, Report)[before:]] == [
        Batch,
        Report,
        Batch,
    ]
    assert (stats(pair).consecutive_successes, stats(pair).total_failures) == (1, 1)


def test_a_failure_that_is_refused_is_answered_too(pair: Pair) -> None:
    pair.clients[0].report("a", Grant(pair.epoch, 99_999, 1), FAILURE)
    pair.collect()
    assert pair.how() is How.ASKED
    pair.run()
    assert pair.how() is How.LEASED


def test_a_verdict_is_told_to_the_one_it_is_about(pair: Pair) -> None:
    verdicts: list[list[Verdict]] = [[], []]
    for settled in verdicts:
        lease = pair.admit()
        assert isinstance(lease, Lease)
        lease.report(Outcome.NEUTRAL, 0.25, None, settled.append)
        pair.collect_leases()
    up(pair)
    pair.now += 0.125
    pair._tick()
    assert waiting(pair) == ["Reported"]  # it speaks for both
    down(pair)
    assert verdicts == [[Verdict.COUNTED], [Verdict.COUNTED]]


def test_used_from_one_process_it_opens_at_the_threshold_and_not_later() -> None:
    pair = leased()
    outcomes = [FAILURE, FAILURE, Outcome.SUCCESS, FAILURE, FAILURE, FAILURE]
    for outcome in outcomes:
        assert pair.call(outcome) is How.LEASED
        pair.run()
    assert pair.how() is How.REJECTED_HERE


# -- open circuits ---------------------------------------------------------------------------------


def test_the_push_ends_a_lease_and_calls_are_rejected_here_until_the_deadline() -> None:
    pair = leased(2)
    pair.now = T0 + 0.5
    trip(pair, 1)
    assert pair.how() is How.LEASED  # it cannot know yet
    down(pair)
    half_open = T0 + 0.5 + 32.0
    assert hows(pair, pair.now, half_open - EPSILON, half_open) == [
        How.REJECTED_HERE,
        How.REJECTED_HERE,
        How.ASKED,
    ]
    pair.advance(32.0)
    assert pair.call() is How.GRANTED  # the probe


def test_a_call_that_began_under_a_lease_is_late_when_the_circuit_has_opened() -> None:
    pair = leased(2)
    lease = pair.admit()
    assert isinstance(lease, Lease)
    trip(pair, 1)
    pair.run()
    verdicts: list[Verdict] = []
    lease.report(Outcome.FAILURE, 0.25, None, verdicts.append)
    pair.run()
    assert verdicts == [Verdict.STALE]
    assert pair.how() is How.REJECTED_HERE


def test_who_asks_while_the_circuit_is_open_rejects_from_then_on() -> None:
    pair = leased(2)
    trip(pair, 1)
    pair.run()
    pair.cut()
    pair.connect()
    pair.run()
    assert pair.how() is How.ASKED
    assert [pair.call() for _ in range(2)] == [How.REJECTED, How.REJECTED_HERE]
    assert hows(pair, T0 + 32.0 - EPSILON, T0 + 32.0) == [How.REJECTED_HERE, How.ASKED]
    assert pair.clients[0].gates["a"].lease.last_error == "OSError: down"


def test_rejections_reach_the_totals_and_are_no_outcomes() -> None:
    pair = leased(2)
    trip(pair, 1)
    pair.run()
    before = stats(pair)
    assert [pair.call() for _ in range(5)] == [How.REJECTED_HERE] * 5
    assert stats(pair).total_rejected == before.total_rejected
    pair.collect_leases()
    pair.run()
    after = stats(pair)
    assert after.total_rejected == before.total_rejected + 5
    assert after.total_requests == before.total_requests + 5
    assert after.total_successes == before.total_successes


def test_a_reset_elsewhere_ends_the_rejections() -> None:
    pair = leased(2)
    trip(pair, 1)
    pair.run()
    reset_by_somebody(pair)
    assert pair.how() is How.REJECTED_HERE
    pair.run()
    assert pair.how() is How.LEASED


@pytest.mark.parametrize("skew", [-500.0, 0.0, 4_096.5, 1e6])
def test_a_deadline_of_another_clock_is_translated(skew: float) -> None:
    pair = leased(2, skew=skew)
    pair.now = T0 + 0.5
    trip(pair, 1)
    pair.now = T0 + 0.75
    pair.run()
    half_open = T0 + 0.5 + 32.0
    assert hows(pair, half_open - EPSILON, half_open + EPSILON) == [How.REJECTED_HERE, How.ASKED]


# -- news on the control connection ----------------------------------------------------------------


def ask_stats(pair: Pair) -> None:
    reset_by_somebody(pair)
    pair.ask(lambda number: GetStats(number, "a"), "a")


def ask_reset(pair: Pair) -> None:
    pair.ask(lambda number: Reset(number, "a"), "a")


def be_subscribed(pair: Pair) -> None:
    pair.subscribe()
    pair.run()
    reset_by_somebody(pair)


@pytest.mark.parametrize("hear", [ask_stats, ask_reset, be_subscribed])
def test_news_of_a_later_generation_end_a_lease_whichever_way_they_come(
    pair: Pair, hear: Callable[[Pair], None]
) -> None:
    hear(pair)
    while pair.deliver_up(0, CONTROL):
        pass
    assert pair.how() is How.LEASED
    down(pair, connection=CONTROL)
    assert waiting(pair) == ["Leased"]  # it has not arrived
    assert pair.how() is How.ASKED
    older = Leased("a", 1, State.CLOSED, None, None)
    pair.session.received(DATA, older, pair.now)
    assert pair.how() is How.ASKED
    down(pair)
    assert pair.how() is How.LEASED
    assert pair.clients[0].gates["a"].lease.generation == 2


def test_news_of_the_same_generation_end_nothing(pair: Pair) -> None:
    waiter = pair.ask(lambda number: GetStats(number, "a"), "a")
    pair.run()
    assert isinstance(waiter.answer, StatsOf)
    assert pair.how() is How.LEASED


def test_news_of_another_circuit_end_nothing(pair: Pair) -> None:
    reset_by_somebody(pair, "b")
    pair.ask(lambda number: GetStats(number, "b"), "b")
    pair.run()
    assert pair.how() is How.LEASED


def test_what_an_earlier_manager_said_of_its_generations_keeps_no_lease_away(pair: Pair) -> None:
    for _ in range(5):
        reset_by_somebody(pair)
    pair.ask(lambda number: GetStats(number, "a"), "a")
    while pair.deliver_up(0, CONTROL):
        pass
    late = pair.clients[0].wires[CONTROL].down.pop()
    pair.replace_manager()
    pair.connect(0, DATA)
    pair.run()
    pair.session.received(CONTROL, decode(late, FROM[CONTROL]), pair.now)
    assert [pair.call() for _ in range(2)] == [How.GRANTED, How.LEASED]


# -- how leases end --------------------------------------------------------------------------------


def test_a_welcome_ends_every_lease_and_asking_brings_it_back(pair: Pair) -> None:
    pair.call(name="b")
    pair.run()
    pair.session.resume(pair.now)
    pair.collect()
    up(pair)
    assert (pair.how("a"), pair.how("b")) == (How.LEASED, How.LEASED)
    down(pair)
    assert (pair.how("a"), pair.how("b")) == (How.ASKED, How.ASKED)
    assert [pair.call() for _ in range(2)] == [How.GRANTED, How.LEASED]


def test_a_lease_from_before_a_welcome_is_renewed_by_nothing_after_it(pair: Pair) -> None:
    lease = pair.admit()
    assert isinstance(lease, Lease)
    term = lease.term
    pair.cut()
    pair.connect()
    pair.run()
    assert pair.call() is How.GRANTED
    assert pair.clients[0].gates["a"].lease is not lease
    assert pair.now >= lease.term.until
    assert pair.now >= term.until  # for who has looked at it, and not yet at the clock


def test_the_leases_of_another_manager_begin_anew_and_what_ran_under_the_first_is_late() -> None:
    pair = leased(2)
    trip(pair, 1)
    pair.run()
    reset_by_somebody(pair)
    pair.run()
    lease = pair.admit()
    assert isinstance(lease, Lease)
    assert lease.generation == 3
    pair.replace_manager()
    assert pair.how() is How.LEASED  # what it knows is still good for the rest of its term
    assert hows(pair, T0 + LEASE) == [How.ASKED]
    pair.connect_all()
    pair.run()
    assert pair.how() is How.ASKED
    assert [pair.call() for _ in range(2)] == [How.GRANTED, How.LEASED]
    pair.end(lease)
    pair.end(lease, FAILURE)
    pair.collect_leases()
    pair.flush()
    pair.run()
    found = stats(pair)
    assert (found.total_successes, found.total_failures) == (3, 1)
    assert (found.consecutive_failures, found.generation) == (0, 1)


def test_hanging_up_ends_every_lease(pair: Pair) -> None:
    lease = pair.admit()
    pair.session.hang_up()
    assert pair.how() is How.ASKED
    assert isinstance(lease, Lease)
    assert pair.now >= lease.term.until
    assert pair.clients[0].gates["a"].lease is NO_LEASE


def test_a_session_whose_push_was_dropped_greets_before_it_goes_on() -> None:
    pair = leased(2)
    wire = pair.clients[0].wires[DATA]
    assert wire.peer is not None
    trip(pair, 1)
    (frame,) = wire.down  # the manager finds that client 0 does not read
    push = decode(frame, FROM[DATA])
    wire.down.clear()
    peer = wire.peer
    pair.actor.undelivered(Send(peer, push), T0, gone=False)
    pair.call()
    pair.collect_leases()
    pair.run()
    assert pair.how() is How.ASKED
    assert pair.call() is How.REJECTED


def test_outcomes_of_an_ended_lease_are_counted_all_the_same(pair: Pair) -> None:
    lease = pair.admit()
    assert isinstance(lease, Lease)
    before = stats(pair).total_successes
    pair.cut()
    pair.connect()
    pair.run()
    pair.end(lease)
    pair.end(lease)
    pair.collect_leases()
    pair.flush()
    pair.run()
    assert stats(pair).total_successes == before + 2


def test_what_is_asked_comes_after_every_outcome_that_was_collected(pair: Pair) -> None:
    before = stats(pair).total_successes
    for _ in range(5):
        assert pair.call() is How.LEASED
    pair.collect_leases()
    waiter = pair.ask(lambda number: GetStats(number, "a"), "a")
    pair.run()
    assert isinstance(waiter.answer, StatsOf)
    assert waiter.answer.stats.total_successes == before + 5


# -- a lease by itself -----------------------------------------------------------------------------


class Outlet:
    """Takes down what leases hand on."""

    def __init__(self) -> None:
        self.roused: list[Lease] = []
        self.failed: list[tuple[Lease, float, str | None]] = []

    def rouse(self, lease: Lease) -> None:
        self.roused.append(lease)

    def fail(
        self, lease: Lease, duration: float, error: str | None, settled: Settled | None
    ) -> None:
        self.failed.append((lease, duration, error))


def lease_of(outlet: Outlet) -> tuple[Lease, Leases]:
    gates = {"a": Gate()}
    leases = Leases(gates, outlet)
    leases.length = LEASE
    leases.renew(T0)
    leases.grant(Leased("a", 1, State.CLOSED, None, None), 1, 0.0)
    return gates["a"].lease, leases


def test_a_lease_rouses_its_outlet_once_until_it_was_collected() -> None:
    outlet = Outlet()
    lease, _ = lease_of(outlet)
    lease.report(Outcome.SUCCESS)
    lease.report(Outcome.NEUTRAL)
    lease.reject(T0)
    assert outlet.roused == [lease]
    lease.noted = []
    lease.reject(T0)
    assert outlet.roused == [lease, lease]
    assert outlet.failed == []


class Meddler(Outlet):
    """Lets something come in between, once."""

    def __init__(self, meddle: Callable[[Lease], None]) -> None:
        super().__init__()
        self._meddle: Callable[[Lease], None] | None = meddle

    def rouse(self, lease: Lease) -> None:
        super().rouse(lease)
        meddle, self._meddle = self._meddle, None
        if meddle is not None:
            meddle(lease)


def test_a_lease_whose_rousing_a_signal_handler_interrupts_is_roused_by_the_next_outcome() -> None:
    def handle(lease: Lease) -> None:
        raise KeyboardInterrupt

    outlet = Meddler(handle)
    lease, _ = lease_of(outlet)
    with pytest.raises(KeyboardInterrupt):
        lease.report(Outcome.SUCCESS)
    lease.report(Outcome.SUCCESS)
    assert outlet.roused == [lease, lease]


def test_a_lease_that_is_collected_while_it_is_roused_is_roused_by_the_next_outcome() -> None:
    def collect(lease: Lease) -> None:
        lease.noted = []

    outlet = Meddler(collect)
    lease, _ = lease_of(outlet)
    lease.report(Outcome.SUCCESS)
    lease.report(Outcome.SUCCESS)
    lease.report(Outcome.SUCCESS)
    assert outlet.roused == [lease, lease]


def test_a_failure_goes_to_the_outlet_at_once() -> None:
    outlet = Outlet()
    lease, _ = lease_of(outlet)
    lease.report(FAILURE, 0.5, "E: m")
    assert outlet.failed == [(lease, 0.5, "E: m")]
    assert outlet.roused == []


def test_a_gate_lets_no_call_run_until_so_many_failures_are_answered() -> None:
    gates = {"a": Gate()}
    leases = Leases(gates, Outlet())
    leases.length = LEASE
    leases.renew(T0)
    leases.grant(Leased("a", 1, State.CLOSED, None, None), 1, 0.0)
    lease = gates["a"].lease
    for until in (T0 + LEASE, T0 + 2 * LEASE):
        assert lease.term.until == until
        gates["a"].suspend(T0)
        gates["a"].suspend(T0)
        leases.renew(until)
        assert lease.term.until < T0
        leases.answered("a")
        assert lease.term.until < T0
        leases.answered("a")


def test_a_failure_before_there_is_a_lease_suspends_the_one_that_comes() -> None:
    gates = {"a": Gate()}
    gates["a"].suspend(T0)
    leases = Leases(gates, Outlet())
    leases.length = LEASE
    leases.renew(T0)
    leases.grant(Leased("a", 1, State.CLOSED, None, None), 1, 0.0)
    assert gates["a"].lease.term.until < T0
    leases.answered("a")
    assert gates["a"].lease.term.until == T0 + LEASE


def test_a_failure_that_was_never_reported_suspends_for_a_while_and_not_for_ever() -> None:
    pair = leased()
    gate = pair.clients[0].gates["a"]
    gate.suspend(pair.now)  # and a signal handler raised before it was reported
    failed_at = pair.now
    for after in (0.0, UNREPORTED):
        pair.now = failed_at + after
        assert pair.call() is How.GRANTED
    pair.now = failed_at + UNREPORTED + 0.001
    assert pair.call() is How.GRANTED
    assert pair.call() is How.LEASED


def test_a_failure_that_is_only_not_answered_is_waited_for_as_long_as_it_takes() -> None:
    pair = leased()
    assert pair.call(FAILURE) is How.LEASED
    pair.clients[0].wires[DATA].up.clear()  # the manager does not hear of it
    for _ in range(3):
        pair.now += 10 * UNREPORTED
        assert pair.call() is How.GRANTED


def test_a_gate_that_was_closed_owes_no_answer() -> None:
    gate = Gate()
    gate.lease = Lease(Outlet(), "a", 1, 1)
    gate.suspend(T0)
    gate.close()
    assert gate.lease is NO_LEASE
    gate.lease = Lease(Outlet(), "a", 1, 1)
    gate.lease.runs = True
    gate.resume(Term(1e9))
    assert gate.lease.term.until == 1e9


def test_nobody_runs_or_rejects_anything_without_a_lease() -> None:
    assert Gate().lease is NO_LEASE
    assert NO_LEASE.term.until < -1e300
    assert NO_LEASE.rejects_until < -1e300


def test_a_lease_that_never_ran_calls_is_not_made_to_by_resuming_it() -> None:
    gate = Gate()
    gate.lease = lease = Lease(Outlet(), "a", 1, 1)
    gate.resume(Term(1e9))
    assert lease.term.until < T0
    lease.runs = True
    gate.resume(Term(1e9))
    assert lease.term.until == 1e9


def test_a_failure_in_the_very_moment_of_resuming_suspends_the_lease() -> None:
    gate = Gate()
    gate.lease = lease = Lease(Outlet(), "a", 1, 1)
    lease.runs = True

    class Eventful(list[float]):
        """While its length is being looked at, a call fails in another thread."""

        failed = False

        def __len__(self) -> int:
            found = super().__len__()
            if not self.failed:
                self.failed = True
                gate.suspend(T0)
            return found

    gate.failing = Eventful()
    gate.resume(Term(1e9))
    assert lease.term.until < T0
    gate.answered()
    gate.resume(Term(1e9))
    assert lease.term.until == 1e9


def test_what_is_heard_of_a_circuit_that_no_breaker_looks_at_opens_no_gate() -> None:
    gates: dict[str, Gate] = {}
    leases = Leases(gates, Outlet())
    leases.grant(Leased("a", 1, State.CLOSED, None, None), 1, 0.0)
    leases.declared("a", CONFIG)
    leases.rejected("a", Rejected(1, 2, State.OPEN, 3.0, None), T0)
    leases.granted("a", T0, probe=False)
    leases.granted("a", T0, probe=True)
    leases.reported("a", T0)
    leases.answered("a")
    leases.check()
    assert not gates
    assert not leases
    assert not leases.suspended("a")


def test_a_session_is_leasing_from_its_first_lease_to_the_end_of_its_last() -> None:
    pair = declared()
    assert not pair.session.leasing
    pair.call()
    assert pair.session.leasing
    reset_by_somebody(pair)  # another lease, in the place of the first
    pair.run()
    assert pair.session.leasing
    pair.session.received(DATA, Revoked("a", 2), pair.now)
    assert not pair.session.leasing


@pytest.mark.parametrize("how", ["revoked", "leased", "welcome", "heard", "hung up"])
def test_a_lease_that_ended_lets_nobody_run_who_still_has_it_in_hand(pair: Pair, how: str) -> None:
    lease = pair.admit()
    assert isinstance(lease, Lease)
    match how:
        case "revoked":
            pair.session.received(DATA, Revoked("a", 1), pair.now)
        case "leased":
            pair.session.received(DATA, Leased("a", 2, State.OPEN, None, None), pair.now)
        case "heard":
            ask_stats(pair)
            while pair.deliver_up(0, CONTROL):
                pass
            down(pair, connection=CONTROL)
        case "welcome":
            pair.session.resume(pair.now)
            pair.run()
        case "hung up":
            pair.session.hang_up()
    assert lease.term.until < T0


def test_revoked_tells_the_generation(pair: Pair) -> None:
    pair.session.received(DATA, Revoked("a", 7), pair.now)
    assert pair.how() is How.ASKED
    pair.session.received(DATA, Leased("a", 6, State.CLOSED, None, None), pair.now)
    assert pair.how() is How.ASKED
    pair.session.received(DATA, Leased("a", 7, State.CLOSED, None, None), pair.now)
    assert pair.how() is How.LEASED


def test_no_lease_takes_nothing_in() -> None:
    with pytest.raises(AttributeError):
        NO_LEASE.reject(0.0)
    with pytest.raises(AttributeError):
        NO_LEASE.report(Outcome.SUCCESS)


def test_a_rejection_under_a_lease_says_what_the_manager_would_and_is_counted() -> None:
    lease = Lease(Outlet(), "a", 1, 2)
    lease.rejects_until, lease.last_error = T0 + 5.0, "OSError: down"
    error = lease.reject(T0 + 2.0)
    assert type(error) is CircuitOpenError
    assert (error.name, error.state, error.last_error) == ("a", State.OPEN, "OSError: down")
    assert error.retry_after == 3.0
    assert len(lease.rejected) == 1


def test_a_gate_knows_nothing_before_the_manager_has_said_something() -> None:
    gate = Gate()
    assert (gate.config, gate.open_until, gate.last_error) == (None, -math.inf, None)
    gate.heard_open(T0, "OSError: down")
    assert (gate.open_until, gate.last_error) == (T0, "OSError: down")
    gate.heard_closed()
    assert (gate.open_until, gate.last_error) == (-math.inf, None)


def test_failures_that_came_before_are_forgotten_and_no_later_ones() -> None:
    gate = Gate()
    for failed_at in (1.0, 2.0, 4.0):
        gate.suspend(failed_at)
    gate.forget(1.5)
    assert gate.failing == [2.0, 4.0]
    gate.forget(2.0)
    assert gate.failing == [2.0, 4.0]
    gate.forget(3.0)
    assert gate.failing == [4.0]


def test_the_gate_keeps_what_was_heard_of_the_circuit_on_any_way() -> None:
    gate = Gate()
    leases = Leases({"a": gate}, Outlet())
    assert leases.length == 0.0  # before a manager has said more
    leases.declared("a", CONFIG)
    assert gate.config is CONFIG
    leases.rejected("a", Rejected(1, 2, State.OPEN, 3.0, "OSError: down"), T0)
    assert (gate.open_until, gate.last_error) == (T0 + 3.0, "OSError: down")
    leases.granted("a", T0 + 3.5, probe=True)
    assert (gate.open_until, gate.last_error) == (T0 + 3.5, "OSError: down")
    leases.granted("a", T0 + 4.0, probe=False)
    assert (gate.open_until, gate.last_error) == (-math.inf, None)
    leases.grant(Leased("a", 1, State.OPEN, 8_000_000, "OSError: down"), 1, 2.0)
    assert (gate.open_until, gate.last_error) == (6.0, "OSError: down")
    leases.rejected("a", Rejected(2, 3, State.HALF_OPEN, None, "too many"), T0)
    assert (gate.open_until, gate.last_error) == (T0, "too many")
    leases.grant(Leased("a", 2, State.CLOSED, None, None), 1, 2.0)
    assert (gate.open_until, gate.last_error) == (-math.inf, None)


def test_a_circuit_is_suspended_while_a_failure_on_it_is_not_answered() -> None:
    gate = Gate()
    leases = Leases({"a": gate}, Outlet())
    assert not leases.suspended("a")
    gate.suspend(T0)
    assert leases.suspended("a")
    leases.answered("a")
    assert not leases.suspended("a")


def test_a_lease_of_any_generation_is_taken_that_is_not_earlier_than_what_was_heard() -> None:
    gates = {"a": Gate(), "b": Gate()}
    leases = Leases(gates, Outlet())
    leases.grant(Leased("a", 0, State.CLOSED, None, None), 1, 0.0)
    assert gates["a"].lease is not NO_LEASE
    leases.heard("b", 1)
    leases.grant(Leased("b", 0, State.CLOSED, None, None), 1, 0.0)
    assert gates["b"].lease is NO_LEASE
    leases.grant(Leased("b", 1, State.CLOSED, None, None), 1, 0.0)
    assert gates["b"].lease is not NO_LEASE


def test_who_hangs_up_owes_no_answer_to_a_failure(pair: Pair) -> None:
    gate = pair.clients[0].gates["a"]
    gate.suspend(pair.now)
    pair.session.hang_up()
    assert gate.failing == []


@pytest.mark.parametrize("by", ["report", "totals"])
def test_the_answer_to_any_report_renews_leases_from_when_it_was_sent(pair: Pair, by: str) -> None:
    pair.now += 0.5
    if by == "report":
        grant = Grant(pair.epoch, 10**6)  # of nobody: it is answered with an error, and no renewal
        pair.session.report("b", grant, Outcome.NEUTRAL, now=pair.now)
    pair.session.report_totals(Whole("a", Totals(1, 0, 0, 0, (), None)), now=pair.now)
    pair.collect()
    up(pair)
    pair.now += 0.125
    pair.flush()
    pair.run()
    times = (T0 + 0.5 + LEASE - EPSILON, T0 + 0.5 + LEASE)
    assert hows(pair, *times) == [How.LEASED, How.ASKED]


def test_a_lease_begins_with_nothing_to_run_nothing_to_reject_and_nothing_to_tell() -> None:
    outlet = Outlet()
    lease = Lease(outlet, "a", 7, 2)
    assert (lease.name, lease.epoch, lease.generation) == ("a", 7, 2)
    assert (lease.runs, lease.noted, lease.empty, lease.last_error) == (False, [], True, None)
    lease.report(Outcome.NEUTRAL)
    assert lease.told == [(Outcome.NEUTRAL, 0.0, None)]
    assert outlet.roused == [lease]
    assert lease.noted
    assert not lease.empty
