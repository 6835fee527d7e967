"""The queue of reports: what was sent stays as it was, what waits does not grow with the calls."""

from __future__ import annotations

from typing import Final

import pytest
from harness import How, Pair

from switchgear.circuit import Totals
from switchgear.client.lease import Lease, Settled
from switchgear.client.reports import WINDOW, Many, One, Reports, Whole
from switchgear.config import MAX_COUNT, CircuitConfig
from switchgear.states import Outcome, Verdict
from switchgear.stats import LATENCY_WINDOW
from switchgear.wire import TO_DATA, Batch, Message, Missed, Report, decode, encode

SUCCESS: Final = Outcome.SUCCESS
FAILURE: Final = Outcome.FAILURE
NEUTRAL: Final = Outcome.NEUTRAL


class Outlet:
    """For leases that are collected by hand."""

    def rouse(self, lease: Lease) -> None: ...

    def fail(
        self, lease: Lease, duration: float, error: str | None, settled: Settled | None
    ) -> None:
        raise AssertionError("failures are added by hand")


def lease_on(name: str = "a", generation: int = 1) -> Lease:
    return Lease(Outlet(), name, 77, generation)


def one(outcome: Outcome = SUCCESS, *, settled: Settled | None = None) -> One:
    return One("a", (77, None, 1), outcome, 0.25, None, settled)


def add(reports: Reports, lease: Lease, *durations: float) -> None:
    """Calls under the lease returned, and are collected."""
    lease.successes += durations
    reports.collect(lease)
    reports.check()


def send_all(reports: Reports, now: float = 0.0) -> list[Report | Batch]:
    """All that may be sent."""
    sent = []
    while (message := reports.next_to_send(now)) is not None:
        reports.check()
        sent.append(message)
    return sent


def settle_all(reports: Reports) -> list[One | Many]:
    """Everything is sent and taken in."""
    found = []
    send_all(reports)
    while reports:
        found.append(reports.acknowledge())
        reports.check()
    return found


def anew(message: Report | Batch, number: int) -> Message:
    return message._replace(number=number)


# -- order and numbers -----------------------------------------------------------------------------


def test_reports_are_sent_in_the_order_they_came_and_numbered_without_a_gap() -> None:
    reports, lease = Reports(), lease_on()
    reports.add(one(SUCCESS))
    add(reports, lease, 1.0)
    reports.add(one(FAILURE))
    add(reports, lease, 2.0)
    sent = send_all(reports)
    assert [type(message) for message in sent] == [Report, Batch, Report, Batch]
    assert [message.number for message in sent] == [1, 2, 3, 4]
    assert reports.handed_over == 4


@pytest.mark.parametrize("acknowledged", [0, 1, 500])
def test_at_most_a_window_of_reports_is_sent_and_not_acknowledged(acknowledged: int) -> None:
    reports = Reports()
    for _ in range(WINDOW + 600):
        reports.add(one())
    assert len(send_all(reports)) == WINDOW
    for _ in range(acknowledged):
        reports.acknowledge()
    assert [message.number for message in send_all(reports)] == list(
        range(WINDOW + 1, WINDOW + 1 + acknowledged)
    )


def test_the_window_is_4096() -> None:
    assert WINDOW == 4096


def test_what_was_sent_is_known_with_its_time_until_it_is_acknowledged() -> None:
    reports = Reports()
    for _ in range(3):
        reports.add(one())
    reports.next_to_send(5.0)
    reports.next_to_send(6.0)
    assert [reports.sent_at(number) for number in range(5)] == [None, 5.0, 6.0, 0.0, None]
    reports.acknowledge()
    assert [reports.sent_at(number) for number in (1, 2)] == [None, 6.0]


def test_a_report_that_is_sent_again_was_sent_then() -> None:
    reports = Reports()
    reports.add(one())
    reports.next_to_send(5.0)
    reports.restart(0)
    reports.next_to_send(9.0)
    assert reports.sent_at(1) == 9.0


def test_what_was_taken_in_before_it_was_sent_again_is_not_sent_again() -> None:
    reports = Reports()
    for _ in range(3):
        reports.add(one())
    send_all(reports)
    reports.restart(0)
    reports.next_to_send(5.0)
    reports.acknowledge()
    reports.acknowledge()  # it was taken in when it was sent the first time
    assert reports.sent == reports.acknowledged == 2
    assert [message.number for message in send_all(reports)] == [3]


def test_one_that_is_owed_no_more_is_not_added_again() -> None:
    reports, report = Reports(), one(FAILURE)
    for _ in range(2):  # the turn that added it was interrupted, and is done again
        reports.add(report)
    assert len(reports) == 1
    settle_all(reports)
    reports.add(report)
    assert len(reports) == 0


def test_several_reports_of_one_debt_are_one() -> None:
    class Debt:
        reported = False

    reports, debt = Reports(), Debt()
    for outcome in (FAILURE, NEUTRAL):
        reports.add(One("a", (77, 5, 1), outcome, 0.0, None, None, debt))
    (message,) = send_all(reports)
    assert isinstance(message, Report)
    assert (message.outcome, message.permit) == (FAILURE, 5)


# -- what was sent never changes -------------------------------------------------------------------


def test_a_batch_that_was_sent_takes_up_nothing_more() -> None:
    reports, lease = Reports(), lease_on()
    add(reports, lease, 1.0, 2.0)
    (first,) = send_all(reports)
    lease.rejected += [None] * 3
    add(reports, lease, 3.0)
    reports.restart(0)
    again, second = send_all(reports)
    assert again == first
    assert isinstance(second, Batch)
    assert (second.successes, second.rejected, second.durations) == (1, 3, (3_000_000,))


@pytest.mark.parametrize("taken_in", range(5))
def test_after_a_restart_the_rest_is_sent_again_with_the_same_contents(taken_in: int) -> None:
    reports, lease = Reports(), lease_on()
    for number in range(2):
        add(reports, lease, float(number))
        reports.add(one(FAILURE))
    first = send_all(reports)
    add(reports, lease, 9.0)
    for _ in range(taken_in):
        reports.acknowledge()
    reports.restart(taken_in)
    again = send_all(reports)
    assert again[:-1] == first[taken_in:]
    assert [message.number for message in again] == list(range(taken_in + 1, 6))


def test_another_manager_counts_from_one_and_gets_the_same_contents() -> None:
    reports, lease = Reports(), lease_on()
    for number in range(3):
        add(reports, lease, float(number))
        reports.add(one(FAILURE))
    first = send_all(reports)
    for _ in range(2):
        reports.acknowledge()
    reports.restart(0)
    again = send_all(reports)
    assert again == [anew(message, number) for number, message in enumerate(first[2:], 1)]


def test_a_report_that_never_will_be_taken_in_leaves_its_number_to_the_next() -> None:
    reports, lease = Reports(), lease_on()
    reports.add(one(FAILURE))
    add(reports, lease, 1.0)
    first, second = send_all(reports)
    reports.discard()
    reports.check()
    assert send_all(reports) == [anew(second, first.number)]
    assert (reports.settled, reports.handed_over) == (1, 2)


def test_what_is_left_over_at_the_end_is_forgotten() -> None:
    reports, lease = Reports(), lease_on()
    add(reports, lease, 1.0)
    reports.clear()
    reports.check()
    assert send_all(reports) == []
    add(reports, lease, 2.0)
    assert len(send_all(reports)) == 1


# -- many to a report ------------------------------------------------------------------------------


def test_what_waits_takes_up_what_comes_after_it() -> None:
    reports, lease = Reports(), lease_on()
    for number in range(10):
        lease.told.append((NEUTRAL, 0.0, None))
        lease.rejected.append(None)
        add(reports, lease, float(number))
    (batch,) = send_all(reports)
    assert isinstance(batch, Batch)
    assert (batch.successes, batch.neutral, batch.rejected) == (10, 10, 10)
    assert batch.durations == tuple(number * 1_000_000 for number in range(10))
    assert lease.empty


def test_every_lease_has_a_batch_of_its_own() -> None:
    reports = Reports()
    leases = [lease_on("a", 1), lease_on("a", 2), lease_on("b", 1)]
    for _ in range(3):
        for lease in leases:
            add(reports, lease, 1.0)
    sent = [message for message in send_all(reports) if isinstance(message, Batch)]
    assert [(batch.name, batch.generation, batch.successes) for batch in sent] == [
        ("a", 1, 3),
        ("a", 2, 3),
        ("b", 1, 3),
    ]


def test_nothing_is_reported_of_a_lease_that_has_nothing() -> None:
    reports = Reports()
    reports.collect(lease_on())
    assert len(reports) == 0


def test_what_ends_after_a_failure_is_not_counted_before_it() -> None:
    reports, lease = Reports(), lease_on()
    add(reports, lease, 1.0)
    reports.add(one(FAILURE))
    add(reports, lease, 2.0, 3.0)
    add(reports, lease, 4.0)
    before, failure, after = send_all(reports)
    assert isinstance(before, Batch)
    assert isinstance(failure, Report)
    assert isinstance(after, Batch)
    assert (before.successes, after.successes) == (1, 3)


def test_a_failure_parts_what_came_of_every_lease_on_its_circuit_and_of_no_other() -> None:
    reports = Reports()
    leases = [lease_on(), lease_on("a", 2), lease_on("b")]
    for _ in range(2):
        for lease in leases:
            add(reports, lease, 1.0)
        if len(reports) == 3:
            reports.add(one(FAILURE))
    sent = send_all(reports)
    assert [type(message) for message in sent] == [Batch] * 3 + [Report] + [Batch] * 2
    assert [m.successes for m in sent if isinstance(m, Batch)] == [1, 1, 2, 1, 1]


def test_a_batch_tells_the_durations_of_the_last_hundred_successes_and_counts_all() -> None:
    for count in (LATENCY_WINDOW - 1, LATENCY_WINDOW, LATENCY_WINDOW + 1, 7 * LATENCY_WINDOW):
        reports, lease = Reports(), lease_on()
        for number in range(count):
            add(reports, lease, number / 1e6)
        (batch,) = send_all(reports)
        assert isinstance(batch, Batch)
        assert batch.successes == count
        assert batch.durations == tuple(range(max(0, count - LATENCY_WINDOW), count))
        assert decode(encode(batch), TO_DATA) == batch


def test_a_call_under_which_the_clock_was_set_back_took_no_time() -> None:
    reports, lease = Reports(), lease_on()
    add(reports, lease, -100.0, -0.5, -1e-7, 0.0, 4e-7, 5e-7, 0.25)
    (batch,) = send_all(reports)
    assert isinstance(batch, Batch)
    assert batch.durations == (0, 0, 0, 0, 0, 1, 250_000)
    assert decode(encode(batch), TO_DATA) == batch


def test_successes_that_are_told_are_successes_and_neutral_ones_take_no_time() -> None:
    reports, lease = Reports(), lease_on()
    lease.told += [(SUCCESS, 2e-6, None), (NEUTRAL, 9.0, None)] * (LATENCY_WINDOW - 1)
    add(reports, lease, 1e-6, 1e-6)
    (batch,) = send_all(reports)
    assert isinstance(batch, Batch)
    assert (batch.successes, batch.neutral) == (LATENCY_WINDOW + 1, LATENCY_WINDOW - 1)
    assert batch.durations == (1, *[2] * (LATENCY_WINDOW - 1))


def test_the_verdict_goes_to_everybody_who_wants_to_know() -> None:
    verdicts: list[tuple[str, Verdict]] = []

    def to(name: str) -> Settled:
        return lambda verdict: verdicts.append((name, verdict))

    reports, lease = Reports(), lease_on()
    lease.told += [(SUCCESS, 0.0, to("one")), (NEUTRAL, 0.0, None), (NEUTRAL, 0.0, to("two"))]
    add(reports, lease, 1.0)
    reports.add(one(FAILURE, settled=to("three")))
    reports.add(one())
    verdict = iter((Verdict.STALE, Verdict.COUNTED, Verdict.EXPIRED))
    for report in settle_all(reports):
        report.settle(next(verdict))
    assert verdicts == [
        ("one", Verdict.STALE),
        ("two", Verdict.STALE),
        ("three", Verdict.COUNTED),
    ]


def test_a_million_calls_that_nobody_takes_in_wait_in_a_queue_of_a_window_and_are_all_counted() -> (
    None
):
    reports, leases = Reports(), [lease_on("a"), lease_on("b"), lease_on("a", 2)]
    count, chunk = 1_000_000, 200
    sent: list[Report | Batch] = []
    for number in range(count // chunk):
        leases[number % 3].successes += [1e-6] * chunk
        reports.collect(leases[number % 3])
        sent += send_all(reports)
        assert len(reports) <= WINDOW + 3
        waiting = reports._queue[-1]
        assert isinstance(waiting, Many)
        assert len(waiting._durations) <= LATENCY_WINDOW
    assert len(sent) == WINDOW
    assert len(reports) == WINDOW + 3
    found = 0
    for message in sent:
        assert isinstance(message, Batch)
        found += message.successes
    while reports:
        reports.acknowledge()
        for message in send_all(reports):
            assert isinstance(message, Batch)
            assert len(message.durations) == LATENCY_WINDOW
            found += message.successes
    assert found == count


# -- with a manager --------------------------------------------------------------------------------


def test_a_manager_that_was_stopped_gets_everything_in_the_end() -> None:
    pair = Pair()
    pair.session.declare("a", CircuitConfig(failure_threshold=1_000_000))
    pair.run()
    pair.call()
    pair.run()
    lease = pair.admit()
    assert isinstance(lease, Lease)
    failures = 0
    for number in range(3 * WINDOW):
        pair.end(lease)
        if number % 100 == 0:
            pair.end(lease, FAILURE)
            failures += 1
        pair.clients[0].flush()
    reports = pair.session._reports
    assert len(reports) <= WINDOW + 2 * failures
    pair.advance(1.0)
    pair.flush()
    pair.run()
    circuit = pair.actor._circuits["a"].stats(pair.now, 0.0)
    assert (circuit.total_successes, circuit.total_failures) == (3 * WINDOW + 1, failures)
    assert len(reports) == 0
    assert pair.call() in (How.LEASED, How.GRANTED)


def test_a_batch_that_arrives_twice_or_not_at_all_is_counted_once() -> None:
    pair = Pair()
    pair.session.declare("a", CircuitConfig())
    pair.run()
    pair.call()
    up = pair.clients[0].wires[0].up
    for lose in (False, True):
        for _ in range(3):
            pair.call()
        pair.collect_leases()
        if lose:
            up.clear()
        else:
            up.extend(list(up))
        pair.flush()
        pair.run()
        if lose:
            pair.call()  # Welcome has ended the lease
            pair.flush()
            pair.run()
    circuit = pair.actor._circuits["a"].stats(pair.now, 0.0)
    assert circuit.total_successes == 1 + 3 + 3 + 1


def test_nothing_in_the_queue_was_sent_before_it_was() -> None:
    reports, lease = Reports(), lease_on()
    reports.add(one())
    add(reports, lease, 1.0)
    reports.add(Whole("a", Totals(1, 0, 0, 0, (), None)))
    assert [reports.sent_at(number) for number in (1, 2, 3)] == [0.0, 0.0, 0.0]
    send_all(reports, 5.0)
    assert [reports.sent_at(number) for number in (1, 2, 3)] == [5.0, 5.0, 5.0]


def test_each_report_leaves_the_queue_once_however_it_does() -> None:
    reports = Reports()
    three = [one(), one(FAILURE), one()]
    for report in three:
        reports.add(report)
    send_all(reports)
    assert reports.acknowledge() is three[0]
    assert (reports.settled, reports.handed_over) == (1, 3)
    assert reports.discard() is three[1]
    assert (reports.settled, reports.handed_over) == (2, 3)
    assert [message.number for message in send_all(reports)] == [2]
    reports.clear()
    reports.check()
    assert reports.sent == reports.acknowledged == 1


def test_a_circuit_is_failing_while_a_failure_on_it_is_in_the_queue_whatever_else_is() -> None:
    reports, lease = Reports(), lease_on()
    add(reports, lease, 1.0)
    reports.add(one(SUCCESS))
    assert not reports.failing("a")
    reports.add(one(FAILURE))
    assert reports.failing("a")
    assert not reports.failing("b")


@pytest.mark.parametrize("what", ["_more", "_rejected"])
def test_a_batch_takes_more_up_to_half_of_what_it_can_say_and_then_another_begins(
    what: str,
) -> None:
    reports, lease = Reports(), lease_on()
    add(reports, lease, 1.0)
    (batch,) = reports._queue
    setattr(batch, what, MAX_COUNT // 2)  # nobody waits for so many calls
    add(reports, lease, 2.0)
    assert len(reports) == 1
    setattr(batch, what, MAX_COUNT // 2 + 1)
    add(reports, lease, 3.0)
    assert len(reports) == 2


def test_totals_are_of_their_circuit_and_owed_until_they_are_in_the_queue() -> None:
    reports, totals = Reports(), Whole("a", Totals(1, 2, 3, 4, (0.5,), "OSError: down"))
    assert totals.name == "a"
    assert totals.reported is False
    for _ in range(2):
        reports.add(totals)
    assert totals.reported is True
    assert send_all(reports) == [Missed(1, "a", 1, 2, 3, 4, (500_000,), "OSError: down")]


def whole(name: str = "a", *, failures: int = 0, rejected: int = 0, seconds: float = 1.0) -> Whole:
    error = f"E: {failures}" if failures else None
    return Whole(name, Totals(1, failures, 0, rejected, [seconds] * (1 + failures), error))


def test_totals_that_wait_take_up_those_of_their_circuit_that_come_after_them() -> None:
    reports = Reports()
    for totals in (whole(failures=2), whole("b"), whole(rejected=3, seconds=2.0)):
        reports.add(totals)
        reports.add(totals)  # tried again
        reports.check()
        assert totals.reported is True
    first, other = send_all(reports)
    assert first == Missed(1, "a", 2, 2, 0, 3, (1_000_000,) * 3 + (2_000_000,), "E: 2")
    assert other == Missed(2, "b", 1, 0, 0, 0, (1_000_000,), None)


def test_totals_that_wait_count_all_kinds_of_outcomes_together() -> None:
    reports = Reports()
    for counts in ((1, 10, 100, 1_000), (2, 20, 200, 2_000)):
        reports.add(Whole("a", Totals(*counts, [], None)))
    assert send_all(reports) == [Missed(1, "a", 3, 30, 300, 3_000, (), None)]


def test_totals_that_were_sent_stay_as_they_were() -> None:
    reports = Reports()
    reports.add(whole(failures=1))
    (sent,) = send_all(reports)
    reports.restart(0)
    reports.add(whole(failures=2))
    reports.check()
    assert send_all(reports)[0] == sent
    assert len(reports) == 2


def test_totals_keep_the_last_hundred_durations_and_the_last_error() -> None:
    reports = Reports()
    for failures in (60, 70):
        reports.add(whole(failures=failures, seconds=float(failures)))
    (missed,) = send_all(reports)
    assert isinstance(missed, Missed)
    assert missed.durations == (60_000_000,) * 29 + (70_000_000,) * 71
    assert missed.last_error == "E: 70"


@pytest.mark.parametrize("kind", range(4))
def test_totals_take_more_up_to_half_of_what_they_can_say_and_then_others_begin(kind: int) -> None:
    reports = Reports()
    for count, waiting in ((MAX_COUNT // 2, 1), (1, 1), (1, 2), (1, 2)):
        counts = [count if place == kind else 0 for place in range(4)]
        reports.add(Whole("a", Totals(*counts, [], None)))
        reports.check()
        assert len(reports) == waiting


def test_after_the_end_totals_are_not_taken_up_by_what_is_forgotten() -> None:
    reports = Reports()
    reports.add(whole())
    reports.clear()
    reports.check()
    reports.add(whole())
    assert len(reports) == 1


def test_a_failure_is_delayed_while_it_waits_for_room_in_the_window() -> None:
    reports = Reports()
    for _ in range(WINDOW):
        reports.add(one())
    assert not reports.delayed("a")
    send_all(reports)
    reports.add(one())
    assert not reports.delayed("a")  # it is a success
    for _ in range(2):
        reports.add(one(FAILURE))
    assert reports.delayed("a")
    assert not reports.delayed("b")
    reports.acknowledge()
    reports.acknowledge()
    send_all(reports)
    assert reports.delayed("a")  # the second one
    reports.acknowledge()
    reports.add(one())
    send_all(reports)
    assert not reports.delayed("a")  # both are sent, and a success is not
