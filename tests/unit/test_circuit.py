"""One circuit: every row of its table of transitions, and every promise of its docstrings.

The clock starts at 1000 so that no test passes because a time happens to be 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Literal

import pytest

from switchgear.circuit import (
    CAUSES,
    TRANSITIONS,
    Circuit,
    Permit,
    Rejection,
    Totals,
    Transition,
)
from switchgear.config import CircuitConfig
from switchgear.states import Outcome, State, Verdict

T0 = 1000.0
CLOSED, OPEN, HALF_OPEN = State.CLOSED, State.OPEN, State.HALF_OPEN
SUCCESS, FAILURE, NEUTRAL = Outcome.SUCCESS, Outcome.FAILURE, Outcome.NEUTRAL
COUNTED, STALE, EXPIRED = Verdict.COUNTED, Verdict.STALE, Verdict.EXPIRED


def just_before(instant: float) -> float:
    return math.nextafter(instant, -math.inf)


class Bench:
    """A circuit on the bench: its owner's duties are done, and every step is checked.

    The owner gives out permit ids, calls `tick` at every deadline that has come, and before any
    other call at a later time.
    """

    def __init__(self, config: CircuitConfig | None = None) -> None:
        self.circuit = Circuit("payments", config or CircuitConfig(), T0)
        self.now = T0
        self.ids = 0
        self.circuit.check()

    def at(self, now: float) -> Bench:
        """Let time pass, from deadline to deadline."""
        assert now >= self.now
        while (due := self.circuit.next_deadline) is not None and due <= now:
            self.circuit.tick(due)
            self.circuit.check()
            assert self.circuit.next_deadline != due  # or its owner would never get past it
        self.circuit.tick(now)
        self.circuit.check()
        self.now = now
        return self

    def ask(self) -> Permit | Rejection:
        self.ids += 1
        answer = self.circuit.acquire(self.ids, self.now)
        self.circuit.check()
        return answer

    def permit(self) -> Permit:
        answer = self.ask()
        assert isinstance(answer, Permit)
        return answer

    def permits(self, count: int) -> list[Permit]:
        return [self.permit() for _ in range(count)]

    def rejection(self) -> Rejection:
        answer = self.ask()
        assert isinstance(answer, Rejection)
        return answer

    def report(
        self, permit: Permit, outcome: Outcome, duration: float = 0.0, error: str | None = None
    ) -> Verdict:
        verdict = self.circuit.report(permit, outcome, self.now, duration, error)
        self.circuit.check()
        return verdict

    def abandon(self, *permits: Permit) -> None:
        for permit in permits:
            self.circuit.abandon(permit, self.now)
            self.circuit.check()

    def run(self, *outcomes: Outcome) -> Bench:
        """Call after call, each admitted and then counted."""
        for outcome in outcomes:
            assert self.report(self.permit(), outcome) is COUNTED
        return self

    def reset(self) -> None:
        self.circuit.reset(self.now)
        self.circuit.check()

    def configure(self, config: CircuitConfig) -> bool:
        changed = self.circuit.configure(config)
        self.circuit.check()
        return changed

    @property
    def state(self) -> State:
        return self.circuit.state

    @property
    def in_a_row(self) -> tuple[int, int]:
        return self.circuit.consecutive_successes, self.circuit.consecutive_failures

    @property
    def in_flight(self) -> int:
        return self.circuit.stats(self.now, 0.0).in_flight

    @property
    def totals(self) -> tuple[int, int, int]:
        stats = self.circuit.stats(self.now, 0.0)
        return stats.total_successes, stats.total_failures, stats.total_neutral


def closed(
    *,
    failure_threshold: int = 5,
    success_threshold: int = 2,
    open_timeout: float = 30.0,
    max_concurrent_requests: int = 1,
    permit_timeout: float = 60.0,
    lost_permit: Literal["failure", "ignore"] = "failure",
) -> Bench:
    return Bench(
        CircuitConfig(
            failure_threshold=failure_threshold,
            success_threshold=success_threshold,
            open_timeout=open_timeout,
            max_concurrent_requests=max_concurrent_requests,
            permit_timeout=permit_timeout,
            lost_permit=lost_permit,
        )
    )


def opened(
    *,
    success_threshold: int = 2,
    open_timeout: float = 30.0,
    max_concurrent_requests: int = 1,
    permit_timeout: float = 60.0,
    lost_permit: Literal["failure", "ignore"] = "failure",
) -> Bench:
    """Open since T0, at the first failure."""
    bench = closed(
        failure_threshold=1,
        success_threshold=success_threshold,
        open_timeout=open_timeout,
        max_concurrent_requests=max_concurrent_requests,
        permit_timeout=permit_timeout,
        lost_permit=lost_permit,
    ).run(FAILURE)
    assert bench.state is OPEN
    bench.circuit.take_transitions()
    return bench


def half_opened(
    *,
    success_threshold: int = 2,
    open_timeout: float = 30.0,
    max_concurrent_requests: int = 1,
    permit_timeout: float = 60.0,
    lost_permit: Literal["failure", "ignore"] = "failure",
) -> Bench:
    """Half-open since T0 + open_timeout."""
    bench = opened(
        success_threshold=success_threshold,
        open_timeout=open_timeout,
        max_concurrent_requests=max_concurrent_requests,
        permit_timeout=permit_timeout,
        lost_permit=lost_permit,
    ).at(T0 + open_timeout)
    assert bench.state is HALF_OPEN
    bench.circuit.take_transitions()
    return bench


def in_each_state() -> Iterator[Bench]:
    yield closed(failure_threshold=1)
    yield opened()
    yield half_opened()


# -- a new circuit -----------------------------------------------------------------------------


def test_a_new_circuit_is_closed_in_generation_one_and_has_counted_nothing() -> None:
    circuit = Bench().circuit
    stats = circuit.stats(T0, utc_offset=0.0)
    assert (stats.name, stats.state, stats.generation) == ("payments", CLOSED, 1)
    assert stats.config == CircuitConfig()
    assert (stats.total_requests, stats.in_flight, stats.total_rejected) == (0, 0, 0)
    assert (stats.total_successes, stats.total_failures, stats.total_neutral) == (0, 0, 0)
    assert (stats.consecutive_successes, stats.consecutive_failures) == (0, 0)
    assert (stats.last_error, stats.last_error_at, stats.retry_after) == (None, None, None)
    assert circuit.next_deadline is None
    assert circuit.take_transitions() == []


def test_two_circuits_share_nothing() -> None:
    one, other = closed(failure_threshold=1), closed(failure_threshold=1)
    one.run(FAILURE)
    assert (one.state, other.state) == (OPEN, CLOSED)
    assert other.totals == (0, 0, 0)
    assert other.circuit.metrics().transitions[OPEN] == 0
    assert other.circuit.take_transitions() == []


# -- closed to open: G2 ------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [1, 2, 5, 17])
def test_g2_a_closed_circuit_opens_at_the_threshold_th_failure_and_not_before(
    threshold: int,
) -> None:
    bench = closed(failure_threshold=threshold)
    states = [bench.run(FAILURE).state for _ in range(threshold)]
    assert states == [CLOSED] * (threshold - 1) + [OPEN]


def test_g2_a_success_in_between_starts_the_failures_anew() -> None:
    bench = closed(failure_threshold=3).run(FAILURE, FAILURE, SUCCESS, FAILURE, FAILURE)
    assert (bench.state, bench.in_a_row) == (CLOSED, (0, 2))
    assert bench.run(FAILURE).state is OPEN


def test_g2_a_neutral_outcome_neither_counts_as_a_failure_nor_breaks_a_run_of_them() -> None:
    bench = closed(failure_threshold=3).run(FAILURE, FAILURE, NEUTRAL, NEUTRAL)
    assert (bench.state, bench.in_a_row) == (CLOSED, (0, 2))
    assert bench.run(FAILURE).state is OPEN


def test_g2_the_order_is_that_of_the_reports_and_not_that_of_the_permits() -> None:
    bench = closed(failure_threshold=2)
    first, second, third = bench.permits(3)
    bench.report(third, FAILURE)
    bench.report(first, SUCCESS)
    bench.report(second, FAILURE)
    assert (bench.state, bench.in_a_row) == (CLOSED, (0, 1))


def test_a_closed_circuit_admits_without_limit_and_its_permits_have_no_deadline() -> None:
    bench = closed(max_concurrent_requests=1)
    permits = bench.permits(50)
    assert {permit.deadline for permit in permits} == {None}
    assert {permit.generation for permit in permits} == {1}
    assert [permit.id for permit in permits] == list(range(1, 51))
    assert bench.in_flight == 50
    assert bench.circuit.next_deadline is None


def test_a_permit_of_a_closed_circuit_may_take_as_long_as_it_likes() -> None:
    bench = closed(permit_timeout=1.0)
    permit = bench.permit()
    bench.at(T0 + 1e6)
    assert bench.in_flight == 1
    assert bench.report(permit, SUCCESS) is COUNTED
    assert bench.circuit.metrics().permits_lost == 0


def test_successes_of_a_closed_circuit_are_counted_in_a_row_until_a_failure() -> None:
    bench = closed(success_threshold=2).run(SUCCESS, SUCCESS, SUCCESS)
    assert (bench.state, bench.in_a_row) == (CLOSED, (3, 0))
    assert bench.run(NEUTRAL).in_a_row == (3, 0)
    assert bench.run(FAILURE).in_a_row == (0, 1)
    assert bench.run(SUCCESS).in_a_row == (1, 0)
    assert bench.circuit.generation == 1


# -- open --------------------------------------------------------------------------------------


def test_an_open_circuit_turns_half_open_at_open_timeout_and_not_before() -> None:
    bench = opened(open_timeout=30.0)
    due = T0 + 30.0
    states = [bench.at(now).state for now in (T0, just_before(due), due)]
    assert states == [OPEN, OPEN, HALF_OPEN]


def test_an_open_circuit_turns_half_open_by_the_timer_alone() -> None:
    circuit = opened(open_timeout=30.0).circuit
    circuit.tick(just_before(T0 + 30.0))
    assert circuit.state is OPEN
    circuit.tick(T0 + 30.0)
    assert circuit.state is HALF_OPEN


def test_an_open_circuit_that_is_looked_at_late_turns_half_open_then() -> None:
    circuit = opened(open_timeout=30.0).circuit
    circuit.tick(T0 + 500.0)
    assert circuit.take_transitions() == [Transition(OPEN, HALF_OPEN, "timeout", 3, T0 + 500.0)]


def test_an_open_circuit_rejects_all_of_its_time_and_traffic_does_not_prolong_it() -> None:
    bench = opened(open_timeout=30.0)
    for second in range(30):
        assert bench.at(T0 + second).rejection().retry_after == 30.0 - second
    assert bench.at(T0 + 30.0).state is HALF_OPEN


def test_a_rejection_carries_state_wait_and_last_error() -> None:
    bench = closed(failure_threshold=1, open_timeout=30.0)
    bench.report(bench.permit(), FAILURE, error="TimeoutError: no answer")
    bench.at(T0 + 12.0)
    assert bench.rejection() == Rejection(OPEN, 18.0, "TimeoutError: no answer")


def test_the_wait_never_becomes_negative_and_is_known_only_while_open() -> None:
    circuit = opened(open_timeout=30.0).circuit
    waits = [circuit.retry_after(T0 + passed) for passed in (0.0, 29.5, 30.0, 31.0)]
    assert waits == [30.0, 0.5, 0.0, 0.0]
    circuit.tick(T0 + 31.0)
    assert circuit.retry_after(T0 + 31.0) is None
    assert closed().circuit.retry_after(T0) is None


def test_the_second_time_open_lasts_a_full_open_timeout_from_the_second_trip() -> None:
    bench = half_opened(open_timeout=30.0).at(T0 + 35.0).run(FAILURE)
    assert bench.circuit.retry_after(T0 + 35.0) == 30.0
    assert bench.at(just_before(T0 + 65.0)).state is OPEN
    assert bench.at(T0 + 65.0).state is HALF_OPEN


# -- half-open: admission, G3 ------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_g3_a_half_open_circuit_admits_up_to_the_limit_in_flight_and_not_one_more(
    limit: int,
) -> None:
    bench = half_opened(max_concurrent_requests=limit)
    answers = [type(bench.ask()) for _ in range(limit + 2)]
    assert answers == [Permit] * limit + [Rejection] * 2
    assert bench.in_flight == limit


def test_g3_the_limit_is_on_calls_in_flight_and_not_on_calls_in_total() -> None:
    bench = half_opened(max_concurrent_requests=1, success_threshold=4)
    for _ in range(3):
        probe = bench.permit()
        bench.rejection()
        assert bench.report(probe, SUCCESS) is COUNTED
    assert bench.run(SUCCESS).state is CLOSED


def test_a_rejection_of_a_half_open_circuit_knows_no_wait() -> None:
    bench = half_opened(max_concurrent_requests=1)
    bench.permit()
    assert bench.rejection() == Rejection(HALF_OPEN, None, None)


@pytest.mark.parametrize("outcome", [SUCCESS, NEUTRAL])
def test_g3_a_probe_that_is_reported_makes_room_for_exactly_one_other(outcome: Outcome) -> None:
    bench = half_opened(max_concurrent_requests=2, success_threshold=9)
    first, _second = bench.permits(2)
    bench.rejection()
    bench.report(first, outcome)
    bench.permit()
    bench.rejection()


def test_g3_calls_of_the_closed_circuit_that_still_run_take_no_room_from_probes() -> None:
    bench = closed(failure_threshold=1, max_concurrent_requests=2)
    bench.permits(10)
    bench.run(FAILURE).at(T0 + 30.0)
    answers = [type(bench.ask()) for _ in range(3)]
    assert answers == [Permit, Permit, Rejection]
    assert bench.in_flight == 12


def test_g3_probes_of_earlier_generations_that_still_hang_count_in_the_limit() -> None:
    bench = half_opened(max_concurrent_requests=2, open_timeout=5.0, permit_timeout=60.0)
    hanging, failing = bench.permits(2)
    bench.report(failing, FAILURE)
    bench.at(T0 + 10.0)
    assert bench.state is HALF_OPEN
    probe = bench.permit()
    assert probe.generation > hanging.generation
    bench.rejection()
    bench.report(hanging, SUCCESS)
    assert bench.state is HALF_OPEN
    bench.permit()
    bench.rejection()


def test_g3_probes_of_earlier_generations_alone_can_fill_the_limit() -> None:
    bench = half_opened(max_concurrent_requests=2, open_timeout=5.0, permit_timeout=60.0)
    hanging, failing = bench.permits(2)
    bench.report(failing, FAILURE)
    bench.configure(CircuitConfig(failure_threshold=1, max_concurrent_requests=1))
    bench.at(T0 + 10.0)
    assert bench.state is HALF_OPEN
    bench.rejection()
    bench.report(hanging, NEUTRAL)
    bench.permit()


def test_g3_probes_survive_a_reset_and_count_in_the_limit_of_the_next_half_open_time() -> None:
    bench = half_opened(max_concurrent_requests=1, open_timeout=5.0, permit_timeout=60.0)
    hanging = bench.permit()
    bench.reset()
    bench.run(FAILURE).at(T0 + 10.0)
    assert bench.state is HALF_OPEN
    bench.rejection()
    assert bench.report(hanging, FAILURE) is STALE
    bench.permit()


def test_a_probe_has_the_generation_and_a_deadline_from_its_own_admission() -> None:
    bench = half_opened(permit_timeout=60.0, max_concurrent_requests=2)
    first = bench.permit()
    second = bench.at(T0 + 40.0).permit()
    assert first == Permit(2, 3, T0 + 90.0)
    assert second == Permit(3, 3, T0 + 100.0)


# -- half-open: the way out --------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [1, 2, 5])
def test_a_half_open_circuit_closes_at_the_threshold_th_success_and_not_before(
    threshold: int,
) -> None:
    bench = half_opened(success_threshold=threshold)
    states = [bench.run(SUCCESS).state for _ in range(threshold)]
    assert states == [HALF_OPEN] * (threshold - 1) + [CLOSED]
    assert bench.circuit.retry_after(bench.now) is None
    assert bench.circuit.next_deadline is None


@pytest.mark.parametrize("successes", [0, 1, 4])
def test_a_half_open_circuit_opens_at_the_first_failure_however_many_it_takes_when_closed(
    successes: int,
) -> None:
    bench = Bench(CircuitConfig(failure_threshold=3, success_threshold=5, open_timeout=30.0))
    bench.run(FAILURE, FAILURE, FAILURE).at(T0 + 30.0).run(*[SUCCESS] * successes)
    assert bench.state is HALF_OPEN
    assert bench.run(FAILURE).state is OPEN
    assert bench.circuit.retry_after(bench.now) == 30.0


def test_a_neutral_probe_neither_closes_nor_opens_nor_breaks_a_run_of_successes() -> None:
    bench = half_opened(success_threshold=2).run(SUCCESS, NEUTRAL, NEUTRAL, NEUTRAL)
    assert (bench.state, bench.in_a_row) == (HALF_OPEN, (1, 0))
    assert bench.run(SUCCESS).state is CLOSED


def test_the_successes_of_one_half_open_time_do_not_count_in_the_next() -> None:
    bench = half_opened(success_threshold=3, open_timeout=30.0).run(SUCCESS, SUCCESS, FAILURE)
    bench.at(T0 + 60.0)
    assert (bench.state, bench.in_a_row) == (HALF_OPEN, (0, 0))
    assert bench.run(SUCCESS, SUCCESS).state is HALF_OPEN
    assert bench.run(SUCCESS).state is CLOSED


def test_a_circuit_that_has_closed_again_takes_its_whole_failure_threshold_to_open() -> None:
    bench = Bench(CircuitConfig(failure_threshold=2, success_threshold=1))
    bench.run(FAILURE, FAILURE).at(T0 + 30.0).run(SUCCESS)
    assert (bench.state, bench.in_a_row) == (CLOSED, (0, 0))
    assert bench.run(FAILURE).state is CLOSED
    assert bench.run(FAILURE).state is OPEN


def test_a_half_open_circuit_without_traffic_stays_half_open() -> None:
    bench = half_opened()
    assert bench.circuit.next_deadline is None
    assert bench.at(T0 + 1e6).state is HALF_OPEN


# -- lost permits: G4 --------------------------------------------------------------------------


def test_a_probe_is_lost_at_permit_timeout_and_not_before() -> None:
    bench = half_opened(permit_timeout=60.0)
    due = bench.permit().deadline
    assert due == T0 + 90.0
    found = []
    for now in (just_before(due), due):
        bench.at(now)
        found.append((bench.state, bench.in_flight, bench.circuit.metrics().permits_lost))
    assert found == [(HALF_OPEN, 1, 0), (OPEN, 0, 1)]


def test_a_probe_reported_just_before_its_deadline_counts_and_one_at_its_deadline_does_not() -> (
    None
):
    verdicts = []
    for offset in (just_before(T0 + 90.0), T0 + 90.0):
        bench = half_opened(permit_timeout=60.0, lost_permit="ignore")
        probe = bench.permit()
        verdicts.append(bench.at(offset).report(probe, SUCCESS))
    assert verdicts == [COUNTED, EXPIRED]


def test_a_lost_permit_re_opens_the_circuit_for_a_full_open_timeout() -> None:
    bench = half_opened(permit_timeout=60.0, open_timeout=30.0, lost_permit="failure")
    bench.run(SUCCESS)
    bench.permit()
    bench.at(T0 + 90.0)
    assert (bench.state, bench.in_a_row) == (OPEN, (0, 0))
    assert bench.circuit.take_transitions() == [
        Transition(HALF_OPEN, OPEN, "lost_permit", 4, T0 + 90.0)
    ]
    assert bench.at(just_before(T0 + 120.0)).state is OPEN
    assert bench.at(T0 + 120.0).state is HALF_OPEN
    bench.permit()


def test_a_lost_permit_that_is_ignored_only_makes_room() -> None:
    bench = half_opened(permit_timeout=60.0, success_threshold=2, lost_permit="ignore")
    bench.run(SUCCESS)
    bench.permit()
    bench.rejection()
    bench.at(T0 + 90.0)
    assert (bench.state, bench.in_a_row, bench.circuit.generation) == (HALF_OPEN, (1, 0), 3)
    assert bench.circuit.take_transitions() == []
    assert bench.run(SUCCESS).state is CLOSED


@pytest.mark.parametrize("lost_permit", ["failure", "ignore"])
def test_a_lost_permit_is_no_outcome_and_no_error(
    lost_permit: Literal["failure", "ignore"],
) -> None:
    bench = half_opened(lost_permit=lost_permit)
    bench.permit()
    bench.at(T0 + 90.0)
    assert bench.totals == (0, 1, 0)  # the failure that opened it
    metrics = bench.circuit.metrics()
    assert (metrics.permits_lost, metrics.stale_reports, metrics.requests_total) == (1, 0, 1)
    assert bench.circuit.stats(bench.now, 0.0).last_error_at == datetime.fromtimestamp(
        T0, timezone.utc
    )


def test_of_several_probes_lost_at_once_only_the_first_opens_the_circuit() -> None:
    bench = half_opened(max_concurrent_requests=3, permit_timeout=60.0)
    bench.permits(3)
    bench.at(T0 + 90.0)
    assert bench.circuit.metrics().permits_lost == 3
    assert bench.in_flight == 0
    assert [(t.cause, t.generation) for t in bench.circuit.take_transitions()] == [
        ("lost_permit", 4)
    ]


def test_of_probes_with_different_deadlines_only_those_that_are_due_are_lost() -> None:
    bench = half_opened(max_concurrent_requests=2, permit_timeout=60.0, lost_permit="ignore")
    early = bench.permit()
    late = bench.at(T0 + 40.0).permit()
    bench.at(T0 + 90.0)
    assert bench.in_flight == 1
    assert bench.report(late, SUCCESS) is COUNTED
    assert bench.report(early, SUCCESS) is EXPIRED


@pytest.mark.parametrize("now_in", [OPEN, HALF_OPEN, CLOSED])
def test_a_probe_of_an_earlier_generation_that_is_lost_moves_nothing(now_in: State) -> None:
    bench = half_opened(max_concurrent_requests=2, open_timeout=30.0, permit_timeout=20.0)
    _hanging, other = bench.permits(2)  # lost at T0 + 50
    if now_in is CLOSED:
        bench.report(other, NEUTRAL)
        bench.run(SUCCESS, SUCCESS)
    else:
        bench.report(other, FAILURE)  # open until T0 + 60
    if now_in is HALF_OPEN:
        bench.reset()
        bench.configure(CircuitConfig(failure_threshold=1, open_timeout=1.0))
        bench.run(FAILURE).at(T0 + 31.0)
    assert bench.state is now_in
    generation, wait_until = bench.circuit.generation, bench.circuit.retry_after(0.0)
    bench.circuit.take_transitions()

    bench.at(T0 + 50.0)

    assert bench.circuit.metrics().permits_lost == 1
    assert bench.in_flight == 0
    assert (bench.state, bench.circuit.generation) == (now_in, generation)
    assert bench.circuit.retry_after(0.0) == wait_until
    assert bench.circuit.take_transitions() == []


def test_a_late_look_turns_an_open_circuit_half_open_and_loses_the_old_probes_in_one_go() -> None:
    bench = half_opened(max_concurrent_requests=2, open_timeout=5.0, permit_timeout=60.0)
    _hanging, failing = bench.permits(2)
    bench.report(failing, FAILURE)
    bench.circuit.take_transitions()
    bench.circuit.tick(T0 + 500.0)
    bench.circuit.check()
    assert [t.cause for t in bench.circuit.take_transitions()] == ["timeout"]
    assert bench.circuit.metrics().permits_lost == 1
    bench.now = T0 + 500.0
    answers = [type(bench.ask()) for _ in range(3)]
    assert answers == [Permit, Permit, Rejection]


@pytest.mark.parametrize("lost_permit", ["failure", "ignore"])
def test_g4_a_half_open_circuit_whose_probes_all_vanish_admits_again(
    lost_permit: Literal["failure", "ignore"],
) -> None:
    bench = half_opened(
        max_concurrent_requests=2, permit_timeout=60.0, open_timeout=30.0, lost_permit=lost_permit
    )
    bench.permits(2)
    bench.rejection()
    bench.at(bench.now + 60.0)
    assert bench.in_flight == 0
    bench.at(bench.now + 30.0)
    assert [type(bench.ask()) for _ in range(3)] == [Permit, Permit, Rejection]


# -- permits whose holder died: G5 -------------------------------------------------------------


@pytest.mark.parametrize("lost_permit", ["failure", "ignore"])
def test_an_abandoned_permit_of_a_closed_circuit_is_lost_and_says_nothing_of_the_service(
    lost_permit: Literal["failure", "ignore"],
) -> None:
    bench = closed(failure_threshold=2, lost_permit=lost_permit).run(FAILURE)
    mine, other = bench.permits(2)
    bench.abandon(mine)
    stats, metrics = bench.circuit.stats(bench.now, 0.0), bench.circuit.metrics()
    assert (stats.state, stats.generation, stats.consecutive_failures) == (CLOSED, 1, 1)
    assert (stats.in_flight, stats.total_requests, metrics.permits_lost) == (1, 3, 1)
    assert (bench.totals, metrics.requests_total) == ((0, 1, 0), 1)
    assert bench.circuit.take_transitions() == []
    assert bench.report(other, FAILURE) is COUNTED
    assert bench.state is OPEN


@pytest.mark.parametrize("now_in", [OPEN, HALF_OPEN])
def test_an_abandoned_permit_of_a_circuit_that_was_closed_moves_nothing_later(
    now_in: State,
) -> None:
    bench = closed(failure_threshold=1, open_timeout=30.0)
    permit = bench.permit()
    bench.run(FAILURE)
    if now_in is HALF_OPEN:
        bench.at(T0 + 30.0)
    generation = bench.circuit.generation
    bench.abandon(permit)
    assert (bench.state, bench.circuit.generation) == (now_in, generation)
    assert (bench.in_flight, bench.circuit.metrics().permits_lost) == (0, 1)


def test_an_abandoned_probe_re_opens_the_circuit_at_once_for_a_full_open_timeout() -> None:
    bench = half_opened(open_timeout=30.0, lost_permit="failure")
    bench.abandon(bench.at(T0 + 31.0).permit())
    assert bench.circuit.take_transitions() == [
        Transition(HALF_OPEN, OPEN, "lost_permit", 4, T0 + 31.0)
    ]
    assert (bench.in_flight, bench.circuit.metrics().permits_lost) == (0, 1)
    assert bench.circuit.next_deadline == T0 + 61.0
    assert bench.totals == (0, 1, 0)  # the failure that opened it


def test_an_abandoned_probe_that_is_ignored_only_makes_room_at_once() -> None:
    bench = half_opened(success_threshold=2, lost_permit="ignore").run(SUCCESS)
    probe = bench.permit()
    bench.rejection()
    bench.abandon(probe)
    assert (bench.state, bench.in_a_row, bench.circuit.generation) == (HALF_OPEN, (1, 0), 3)
    assert bench.circuit.metrics().permits_lost == 1
    assert bench.circuit.next_deadline is None
    assert bench.run(SUCCESS).state is CLOSED


def test_of_several_abandoned_probes_only_the_first_opens_the_circuit() -> None:
    bench = half_opened(max_concurrent_requests=3)
    bench.abandon(*bench.permits(3))
    assert (bench.in_flight, bench.circuit.metrics().permits_lost) == (0, 3)
    assert [(t.cause, t.generation) for t in bench.circuit.take_transitions()] == [
        ("lost_permit", 4)
    ]


@pytest.mark.parametrize("now_in", [CLOSED, OPEN, HALF_OPEN])
def test_an_abandoned_probe_of_an_earlier_generation_moves_nothing(now_in: State) -> None:
    bench = half_opened(max_concurrent_requests=2, open_timeout=30.0, permit_timeout=600.0)
    probe = bench.permit()
    if now_in is CLOSED:
        bench.reset()
    else:
        bench.run(FAILURE)
    if now_in is HALF_OPEN:
        bench.at(T0 + 60.0)
    before = bench.circuit.generation
    bench.abandon(probe)
    assert (bench.state, bench.circuit.generation) == (now_in, before)
    assert (bench.in_flight, bench.circuit.metrics().permits_lost) == (0, 1)


def test_a_probe_that_was_lost_by_its_deadline_is_not_lost_again() -> None:
    bench = half_opened(permit_timeout=60.0, lost_permit="ignore")
    probe = bench.permit()
    bench.at(T0 + 90.0).abandon(probe)
    assert (bench.in_flight, bench.circuit.metrics().permits_lost) == (0, 1)
    assert (bench.state, bench.circuit.generation) == (HALF_OPEN, 3)
    assert bench.circuit.stats(bench.now, 0.0).total_requests == 2


# -- late reports: G6 --------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", Outcome)
def test_g6_a_report_from_before_the_trip_never_touches_an_open_circuit(outcome: Outcome) -> None:
    bench = closed(failure_threshold=1, success_threshold=1, open_timeout=30.0)
    late = bench.permit()
    bench.run(FAILURE).at(T0 + 20.0)
    assert bench.report(late, outcome) is STALE
    assert (bench.state, bench.in_a_row, bench.circuit.generation) == (OPEN, (0, 0), 2)
    assert bench.circuit.retry_after(T0 + 20.0) == 10.0
    assert bench.at(T0 + 30.0).state is HALF_OPEN


@pytest.mark.parametrize("outcome", Outcome)
def test_g6_a_report_from_before_the_trip_never_touches_a_half_open_circuit(
    outcome: Outcome,
) -> None:
    bench = closed(failure_threshold=1, success_threshold=2, open_timeout=30.0)
    late = bench.permits(3)
    bench.run(FAILURE).at(T0 + 30.0).run(SUCCESS)
    assert [bench.report(permit, outcome) for permit in late] == [STALE] * 3
    assert (bench.state, bench.in_a_row, bench.circuit.generation) == (HALF_OPEN, (1, 0), 3)
    assert bench.run(SUCCESS).state is CLOSED


@pytest.mark.parametrize("outcome", Outcome)
def test_g6_a_report_from_before_the_trip_never_touches_a_circuit_that_closed_again(
    outcome: Outcome,
) -> None:
    bench = Bench(CircuitConfig(failure_threshold=2, success_threshold=1, open_timeout=30.0))
    late = bench.permits(3)
    bench.run(FAILURE, FAILURE).at(T0 + 30.0).run(SUCCESS, FAILURE)
    assert (bench.state, bench.in_a_row) == (CLOSED, (0, 1))
    assert [bench.report(permit, outcome) for permit in late] == [STALE] * 3
    assert (bench.state, bench.in_a_row) == (CLOSED, (0, 1))
    assert bench.run(FAILURE).state is OPEN


@pytest.mark.parametrize("outcome", Outcome)
def test_g6_a_probe_from_an_earlier_half_open_time_is_stale_and_gives_its_room_back(
    outcome: Outcome,
) -> None:
    bench = half_opened(max_concurrent_requests=2, open_timeout=5.0, success_threshold=1)
    late, failing = bench.permits(2)
    bench.report(failing, FAILURE)
    bench.at(T0 + 10.0)
    assert bench.report(late, outcome) is STALE
    assert (bench.state, bench.in_flight) == (HALF_OPEN, 0)
    assert [type(bench.ask()) for _ in range(3)] == [Permit, Permit, Rejection]
    assert bench.at(T0 + 70.0).circuit.metrics().permits_lost == 2  # the stale one never is


@pytest.mark.parametrize("outcome", Outcome)
def test_g6_an_expired_report_moves_nothing_even_in_its_own_generation(outcome: Outcome) -> None:
    bench = half_opened(permit_timeout=60.0, success_threshold=2, lost_permit="ignore")
    late = bench.permit()
    bench.at(T0 + 90.0).run(SUCCESS)
    assert late.generation == bench.circuit.generation
    assert bench.report(late, outcome) is EXPIRED
    assert (bench.state, bench.in_a_row, bench.circuit.generation) == (HALF_OPEN, (1, 0), 3)


def test_g6_an_expired_failure_never_prolongs_the_open_time_its_loss_began() -> None:
    bench = half_opened(permit_timeout=60.0, open_timeout=30.0, lost_permit="failure")
    late = bench.permit()
    bench.at(T0 + 110.0)
    assert bench.report(late, FAILURE) is EXPIRED
    assert bench.circuit.retry_after(T0 + 110.0) == 10.0
    assert bench.at(T0 + 120.0).state is HALF_OPEN


def test_a_probe_that_is_both_late_and_of_an_earlier_generation_is_expired() -> None:
    bench = half_opened(permit_timeout=60.0, lost_permit="failure")
    late = bench.permit()
    bench.at(T0 + 90.0)
    assert late.generation < bench.circuit.generation
    assert bench.report(late, SUCCESS) is EXPIRED


@pytest.mark.parametrize(
    ("outcome", "totals"), [(SUCCESS, (1, 1, 0)), (FAILURE, (0, 2, 0)), (NEUTRAL, (0, 1, 1))]
)
def test_a_stale_report_counts_in_the_totals(
    outcome: Outcome, totals: tuple[int, int, int]
) -> None:
    bench = closed(failure_threshold=1)
    late = bench.permit()
    bench.run(FAILURE)
    assert bench.report(late, outcome) is STALE
    assert bench.totals == totals
    assert (bench.in_flight, bench.circuit.metrics().stale_reports) == (0, 1)


@pytest.mark.parametrize(
    ("outcome", "totals"), [(SUCCESS, (1, 1, 0)), (FAILURE, (0, 2, 0)), (NEUTRAL, (0, 1, 1))]
)
def test_an_expired_report_counts_in_the_totals(
    outcome: Outcome, totals: tuple[int, int, int]
) -> None:
    bench = half_opened()
    late = bench.permit()
    bench.at(T0 + 90.0)
    assert bench.report(late, outcome) is EXPIRED
    assert bench.totals == totals
    metrics = bench.circuit.metrics()
    assert (bench.in_flight, metrics.stale_reports, metrics.permits_lost) == (0, 1, 1)


@pytest.mark.parametrize(
    ("outcome", "totals"), [(SUCCESS, (1, 0, 0)), (FAILURE, (0, 1, 0)), (NEUTRAL, (0, 0, 1))]
)
def test_an_orphan_of_an_earlier_manager_is_stale_and_counts_in_the_totals_only(
    outcome: Outcome, totals: tuple[int, int, int]
) -> None:
    bench = closed(failure_threshold=1)
    running = bench.permit()
    assert bench.circuit.report_leased(0, outcome, T0, 0.5, "E: m") is STALE
    bench.circuit.check()
    assert (bench.state, bench.in_a_row, bench.circuit.generation) == (CLOSED, (0, 0), 1)
    assert bench.totals == totals
    assert (bench.in_flight, bench.circuit.metrics().stale_reports) == (1, 1)
    assert bench.circuit.stats(T0, 0.0).total_requests == 2
    assert bench.report(running, SUCCESS) is COUNTED


@pytest.mark.parametrize(("failures", "state"), [(2, CLOSED), (3, OPEN)])
def test_leased_failures_open_at_the_threshold_and_not_before(failures: int, state: State) -> None:
    bench = closed(failure_threshold=3)
    for _ in range(failures):
        assert bench.circuit.report_leased(1, FAILURE, T0, 0.5, "E: m") is COUNTED
    bench.circuit.check()
    assert bench.state is state
    assert bench.circuit.stats(T0, 0.0).total_requests == failures
    assert bench.in_flight == 0


def tally(successes: int, neutral: int, rejected: int, *durations: float) -> Totals:
    """What calls under a lease came to."""
    return Totals(successes, 0, neutral, rejected, durations, None)


@pytest.mark.parametrize(("successes", "state"), [(0, OPEN), (1, CLOSED)])
def test_a_tally_ends_a_run_of_failures_if_it_has_a_success(successes: int, state: State) -> None:
    bench = closed(failure_threshold=2)
    bench.circuit.report_leased(1, FAILURE, T0)
    assert bench.circuit.report_totals(tally(successes, 2, 3), T0, 1) is COUNTED
    bench.circuit.report_leased(1, FAILURE, T0)
    assert bench.state is state


@pytest.mark.parametrize(("generation", "verdict"), [(0, STALE), (1, STALE), (2, COUNTED)])
def test_a_leased_outcome_of_another_generation_moves_nothing(
    generation: int, verdict: Verdict
) -> None:
    bench = closed(failure_threshold=1)
    bench.reset()
    assert bench.circuit.report_totals(tally(5, 1, 2, 0.25), T0, generation) is verdict
    assert bench.in_a_row == ((5, 0) if verdict is COUNTED else (0, 0))
    assert bench.circuit.report_leased(generation, FAILURE, T0, 0.5, "E: m") is verdict
    assert bench.state is (OPEN if verdict is COUNTED else CLOSED)
    assert bench.totals == (5, 1, 1)
    metrics = bench.circuit.metrics()
    assert metrics.stale_reports == (0 if verdict is COUNTED else 7)
    assert (metrics.requests_rejected, metrics.min_latency, metrics.max_latency) == (2, 0.25, 0.5)


def test_no_leased_outcome_has_a_say_in_an_open_or_half_open_circuit() -> None:
    for bench in (opened(), half_opened(success_threshold=1)):
        before = (bench.state, bench.circuit.generation, bench.in_a_row)
        for outcome in Outcome:
            assert bench.circuit.report_leased(bench.circuit.generation, outcome, bench.now) is (
                STALE
            )
        generation = bench.circuit.generation
        assert bench.circuit.report_totals(tally(9, 9, 9), bench.now, generation) is STALE
        assert (bench.state, bench.circuit.generation, bench.in_a_row) == before
        bench.circuit.check()


def test_late_reports_leave_their_latency_and_their_error() -> None:
    bench = half_opened(permit_timeout=60.0)
    expired = bench.permit()
    bench.at(T0 + 95.0)
    bench.report(expired, FAILURE, duration=65.0, error="TimeoutError: at last")
    metrics = bench.circuit.metrics()
    assert metrics.max_latency == 65.0
    stats = bench.circuit.stats(bench.now, 0.0)
    assert stats.last_error == "TimeoutError: at last"
    assert stats.last_error_at == datetime.fromtimestamp(T0 + 95.0, timezone.utc)
    assert bench.rejection().last_error == "TimeoutError: at last"


def test_a_counted_report_is_not_among_the_stale() -> None:
    bench = half_opened().run(SUCCESS, NEUTRAL, SUCCESS, SUCCESS, FAILURE)
    assert bench.circuit.metrics().stale_reports == 0


# -- reset -------------------------------------------------------------------------------------


def test_reset_closes_from_every_state_and_begins_a_new_generation() -> None:
    for bench in in_each_state():
        before = bench.circuit.generation
        bench.reset()
        assert (bench.state, bench.circuit.generation) == (CLOSED, before + 1)
        assert bench.circuit.retry_after(bench.now) is None
        assert bench.circuit.next_deadline is None
        bench.at(bench.now + 1e4)
        assert (bench.state, bench.circuit.generation) == (CLOSED, before + 1)


def test_reset_zeroes_the_counts_in_a_row_and_keeps_the_totals() -> None:
    bench = closed(failure_threshold=3).run(SUCCESS, NEUTRAL, FAILURE, FAILURE)
    bench.reset()
    assert bench.in_a_row == (0, 0)
    assert bench.totals == (1, 2, 1)
    assert bench.run(FAILURE, FAILURE).state is CLOSED
    assert bench.run(FAILURE).state is OPEN
    bench = closed().run(SUCCESS, SUCCESS)
    bench.reset()
    assert bench.in_a_row == (0, 0)


def test_reset_keeps_rejections_latencies_and_the_last_error() -> None:
    bench = closed(failure_threshold=1)
    bench.report(bench.permit(), FAILURE, duration=1.5, error="E: m")
    bench.rejection()
    bench.reset()
    stats, metrics = bench.circuit.stats(bench.now, 0.0), bench.circuit.metrics()
    assert (stats.total_rejected, stats.total_requests, stats.last_error) == (1, 2, "E: m")
    assert (metrics.requests_total, metrics.max_latency) == (1, 1.5)


def test_reset_of_a_closed_circuit_fences_what_is_in_flight() -> None:
    bench = closed(failure_threshold=1)
    late = bench.permit()
    bench.reset()
    assert bench.report(late, FAILURE) is STALE
    assert bench.state is CLOSED
    assert bench.run(FAILURE).state is OPEN


def test_a_probe_that_outlives_a_reset_is_still_lost_at_its_deadline() -> None:
    bench = half_opened(permit_timeout=60.0)
    late = bench.permit()
    bench.reset()
    assert bench.circuit.next_deadline == T0 + 90.0
    bench.at(T0 + 90.0)
    assert (bench.state, bench.in_flight) == (CLOSED, 0)
    assert bench.circuit.metrics().permits_lost == 1
    assert bench.report(late, FAILURE) is EXPIRED


def test_reset_of_a_closed_circuit_is_a_transition_but_no_entry_and_no_change_of_state() -> None:
    bench = closed()
    bench.at(T0 + 7.0).reset()
    assert bench.circuit.take_transitions() == [Transition(CLOSED, CLOSED, "reset", 2, T0 + 7.0)]
    assert dict(bench.circuit.metrics().transitions) == {CLOSED: 0, OPEN: 0, HALF_OPEN: 0}
    changed_at = bench.circuit.stats(bench.now, 0.0).state_changed_at
    assert changed_at == datetime.fromtimestamp(T0, timezone.utc)


def test_reset_of_an_open_circuit_is_an_entry_into_closed_at_its_time() -> None:
    bench = opened().at(T0 + 7.0)
    bench.reset()
    assert bench.circuit.take_transitions() == [Transition(OPEN, CLOSED, "reset", 3, T0 + 7.0)]
    assert bench.circuit.metrics().transitions[CLOSED] == 1
    changed_at = bench.circuit.stats(bench.now, 0.0).state_changed_at
    assert changed_at == datetime.fromtimestamp(T0 + 7.0, timezone.utc)


# -- configure ---------------------------------------------------------------------------------


def test_configure_says_whether_the_config_is_another_one() -> None:
    bench = Bench(CircuitConfig(failure_threshold=3))
    assert bench.configure(CircuitConfig(failure_threshold=3)) is False
    assert bench.configure(CircuitConfig(failure_threshold=4)) is True
    assert bench.configure(CircuitConfig(failure_threshold=4, open_timeout=1.0)) is True
    assert bench.configure(CircuitConfig(failure_threshold=4, open_timeout=1.0)) is False
    assert bench.circuit.config == CircuitConfig(failure_threshold=4, open_timeout=1.0)


def test_configure_keeps_state_counts_generation_and_deadlines_in_every_state() -> None:
    other = CircuitConfig(
        failure_threshold=1,
        success_threshold=1,
        open_timeout=0.5,
        max_concurrent_requests=9,
        permit_timeout=0.5,
        lost_permit="ignore",
        consistency="strict",
    )
    benches = [
        closed(failure_threshold=5).run(SUCCESS, FAILURE, FAILURE),
        opened(),
        half_opened(success_threshold=3).run(SUCCESS),
    ]
    for bench in benches:
        bench.ask()
        bench.circuit.take_transitions()
        before = bench.circuit.stats(bench.now, 0.0)
        metrics, due = bench.circuit.metrics(), bench.circuit.next_deadline
        assert bench.configure(other) is True
        after = bench.circuit.stats(bench.now, 0.0)
        assert [
            name for name in before.__slots__ if getattr(before, name) != getattr(after, name)
        ] == ["config"]
        assert bench.circuit.metrics() == metrics
        assert bench.circuit.next_deadline == due
        assert bench.circuit.take_transitions() == []


def test_a_lowered_failure_threshold_acts_at_the_next_failure_and_not_before() -> None:
    bench = closed(failure_threshold=10).run(*[FAILURE] * 5)
    bench.configure(CircuitConfig(failure_threshold=2))
    assert bench.at(T0 + 1.0).state is CLOSED
    assert bench.run(NEUTRAL).state is CLOSED
    assert bench.run(FAILURE).state is OPEN


def test_a_lowered_failure_threshold_does_not_open_at_a_success() -> None:
    bench = closed(failure_threshold=10).run(*[FAILURE] * 5)
    bench.configure(CircuitConfig(failure_threshold=2))
    assert (bench.run(SUCCESS).state, bench.in_a_row) == (CLOSED, (1, 0))


def test_a_raised_failure_threshold_counts_what_was_counted() -> None:
    bench = closed(failure_threshold=2).run(FAILURE)
    bench.configure(CircuitConfig(failure_threshold=3))
    assert bench.run(FAILURE).state is CLOSED
    assert bench.run(FAILURE).state is OPEN


def test_a_lowered_success_threshold_acts_at_the_next_success_and_not_before() -> None:
    bench = half_opened(success_threshold=10).run(*[SUCCESS] * 5)
    bench.configure(CircuitConfig(success_threshold=2))
    assert bench.at(bench.now + 1.0).state is HALF_OPEN
    assert bench.run(NEUTRAL).state is HALF_OPEN
    assert bench.run(SUCCESS).state is CLOSED


def test_a_new_open_timeout_acts_at_the_next_trip_and_not_on_the_running_one() -> None:
    bench = opened(open_timeout=30.0)
    bench.configure(CircuitConfig(open_timeout=5.0))
    assert bench.at(just_before(T0 + 30.0)).state is OPEN
    assert bench.at(T0 + 30.0).state is HALF_OPEN
    bench.run(FAILURE)
    assert bench.circuit.retry_after(bench.now) == 5.0


def test_a_new_permit_timeout_acts_on_the_next_probe_and_not_on_the_running_one() -> None:
    bench = half_opened(permit_timeout=60.0, max_concurrent_requests=2)
    assert bench.permit().deadline == T0 + 90.0
    bench.configure(CircuitConfig(permit_timeout=5.0, max_concurrent_requests=2))
    assert bench.circuit.next_deadline == T0 + 90.0
    assert bench.permit().deadline == T0 + 35.0


def test_a_new_limit_acts_on_the_next_admission() -> None:
    bench = half_opened(max_concurrent_requests=3, success_threshold=9)
    first, second, third = bench.permits(3)
    bench.configure(CircuitConfig(max_concurrent_requests=1, success_threshold=9))
    assert bench.in_flight == 3
    for probe in (first, second):
        bench.rejection()
        bench.report(probe, SUCCESS)
    bench.rejection()
    bench.report(third, SUCCESS)
    bench.permit()
    bench.configure(CircuitConfig(max_concurrent_requests=2, success_threshold=9))
    bench.permit()
    bench.rejection()


def test_what_a_lost_permit_does_is_decided_when_it_is_lost() -> None:
    bench = half_opened(lost_permit="failure")
    bench.permit()
    bench.configure(CircuitConfig(lost_permit="ignore"))
    assert bench.at(T0 + 90.0).state is HALF_OPEN
    bench = half_opened(lost_permit="ignore")
    bench.permit()
    bench.configure(CircuitConfig(lost_permit="failure"))
    assert bench.at(T0 + 90.0).state is OPEN


# -- when the owner must come back -------------------------------------------------------------


def test_the_next_deadline_of_an_open_circuit_is_the_end_of_its_time() -> None:
    bench = opened(open_timeout=30.0)
    assert bench.circuit.next_deadline == T0 + 30.0
    assert bench.at(T0 + 30.0).circuit.next_deadline is None


def test_the_next_deadline_of_a_half_open_circuit_is_that_of_its_oldest_probe() -> None:
    bench = half_opened(max_concurrent_requests=3, permit_timeout=60.0, success_threshold=9)
    oldest = bench.permit()
    middle = bench.at(T0 + 40.0).permit()
    bench.at(T0 + 50.0).permit()
    assert bench.circuit.next_deadline == T0 + 90.0
    bench.report(oldest, SUCCESS)
    assert bench.circuit.next_deadline == T0 + 100.0
    bench.report(middle, NEUTRAL)
    assert bench.circuit.next_deadline == T0 + 110.0


def test_the_next_deadline_is_the_nearest_of_the_open_time_and_the_probes_that_hang() -> None:
    found = []
    for permit_timeout in (10.0, 60.0):
        bench = half_opened(
            max_concurrent_requests=2, open_timeout=30.0, permit_timeout=permit_timeout
        )
        _hanging, failing = bench.permits(2)
        bench.report(failing, FAILURE)
        found.append(bench.circuit.next_deadline)
    assert found == [T0 + 40.0, T0 + 60.0]


def test_a_deadline_that_was_attended_to_does_not_come_back() -> None:
    bench = half_opened(max_concurrent_requests=2, lost_permit="ignore")
    bench.permits(2)
    due = bench.circuit.next_deadline
    assert due is not None
    bench.circuit.tick(due)
    assert bench.circuit.next_deadline is None


def test_a_tick_before_any_deadline_moves_nothing() -> None:
    for bench in in_each_state():
        bench.ask()
        before, metrics = bench.circuit.stats(bench.now, 0.0), bench.circuit.metrics()
        bench.circuit.tick(bench.now)
        bench.circuit.tick(bench.now + 1.0)
        assert bench.circuit.stats(bench.now, 0.0) == before
        assert bench.circuit.metrics() == metrics
        assert bench.circuit.take_transitions() == []


# -- the numbers -------------------------------------------------------------------------------


def test_total_requests_counts_every_attempt_once_from_admission_on() -> None:
    """Each line: what happens, and by how much it moves the total of attempts."""
    bench = closed(failure_threshold=1, permit_timeout=60.0)
    seen = [0]

    def moved() -> int:
        stats = bench.circuit.stats(bench.now, 0.0)
        lost_and_silent = stats.total_requests - (
            stats.total_successes
            + stats.total_failures
            + stats.total_neutral
            + stats.total_rejected
            + stats.in_flight
        )
        assert lost_and_silent >= 0
        seen.append(stats.total_requests)
        return seen[-1] - seen[-2]

    stale, neutral = bench.permits(2)
    assert moved() == 2
    bench.report(neutral, NEUTRAL)
    assert moved() == 0
    failing = bench.permit()
    assert moved() == 1
    bench.report(failing, FAILURE)
    assert (bench.state, moved()) == (OPEN, 0)
    bench.rejection()
    assert moved() == 1
    bench.report(stale, SUCCESS)
    assert moved() == 0
    bench.at(T0 + 30.0)
    assert (bench.state, moved()) == (HALF_OPEN, 0)
    lost = bench.permit()
    assert moved() == 1
    bench.rejection()
    assert moved() == 1
    bench.at(T0 + 90.0)
    assert (bench.circuit.metrics().permits_lost, bench.in_flight, moved()) == (1, 0, 0)
    bench.report(lost, FAILURE)
    assert moved() == 0
    bench.reset()
    assert moved() == 0
    assert seen[-1] == 6


def test_a_lost_permit_is_in_no_total_until_it_reports_after_all() -> None:
    bench = half_opened()
    lost = bench.permit()
    bench.at(T0 + 90.0)
    stats = bench.circuit.stats(bench.now, 0.0)
    assert (stats.total_requests, stats.total_failures, stats.in_flight) == (2, 1, 0)
    bench.report(lost, SUCCESS)
    stats = bench.circuit.stats(bench.now, 0.0)
    assert (stats.total_requests, stats.total_failures, stats.total_successes) == (2, 1, 1)


def test_metrics_count_executed_calls_without_neutral_and_rejected_ones() -> None:
    bench = closed(failure_threshold=2).run(SUCCESS, SUCCESS, SUCCESS, NEUTRAL, FAILURE, FAILURE)
    bench.rejection()
    metrics = bench.circuit.metrics()
    assert metrics.requests_total == 5
    assert (metrics.requests_successful, metrics.requests_failed) == (3, 2)
    assert metrics.requests_rejected == 1


def test_latencies_are_those_of_successes_and_failures_and_not_of_neutral_calls() -> None:
    bench = closed()
    for outcome, duration in ((SUCCESS, 1.0), (FAILURE, 3.0), (NEUTRAL, 50.0)):
        bench.report(bench.permit(), outcome, duration)
    metrics = bench.circuit.metrics()
    assert (metrics.min_latency, metrics.avg_latency, metrics.max_latency) == (1.0, 2.0, 3.0)
    assert (metrics.p50_latency, metrics.p95_latency, metrics.p99_latency) == (1.0, 3.0, 3.0)


def test_latencies_are_none_as_long_as_nothing_was_executed() -> None:
    bench = closed().run(NEUTRAL)
    metrics = bench.circuit.metrics()
    assert (metrics.min_latency, metrics.avg_latency, metrics.max_latency) == (None, None, None)
    assert (metrics.p50_latency, metrics.p95_latency, metrics.p99_latency) == (None, None, None)


def test_latencies_are_over_the_last_hundred_executed_calls() -> None:
    bench = closed()
    bench.report(bench.permit(), SUCCESS, 9.0)
    for _ in range(99):
        bench.report(bench.permit(), SUCCESS, 1.0)
    assert bench.circuit.metrics().max_latency == 9.0
    bench.report(bench.permit(), SUCCESS, 1.0)
    metrics = bench.circuit.metrics()
    assert (metrics.max_latency, metrics.requests_total) == (1.0, 101)


def test_the_last_error_is_the_latest_failures_and_no_other_outcomes() -> None:
    bench = closed()
    bench.report(bench.permit(), FAILURE, error="E: first")
    bench.at(T0 + 1.0)
    bench.report(bench.permit(), FAILURE, error="E: second")
    bench.at(T0 + 2.0)
    bench.report(bench.permit(), SUCCESS, error="E: of a success")
    bench.report(bench.permit(), NEUTRAL, error="E: of a neutral outcome")
    stats = bench.circuit.stats(bench.now, 0.0)
    assert stats.last_error == "E: second"
    assert stats.last_error_at == datetime.fromtimestamp(T0 + 1.0, timezone.utc)


def test_times_are_utc_and_moved_by_the_offset_of_the_clock() -> None:
    bench = opened()
    unix = datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone.utc)
    stats = bench.circuit.stats(bench.now, utc_offset=unix.timestamp() - T0)
    assert (stats.state_changed_at, stats.last_error_at) == (unix, unix)
    assert stats.state_changed_at.tzinfo is timezone.utc


def test_state_changed_at_is_the_time_of_the_last_change_of_state() -> None:
    bench = Bench(CircuitConfig(failure_threshold=1, success_threshold=1, open_timeout=30.0))
    found = [bench.circuit.stats(bench.now, 0.0).state_changed_at.timestamp()]
    bench.at(T0 + 5.0).run(SUCCESS)
    found.append(bench.circuit.stats(bench.now, 0.0).state_changed_at.timestamp())
    bench.at(T0 + 6.0).run(FAILURE).at(T0 + 7.0)
    found.append(bench.circuit.stats(bench.now, 0.0).state_changed_at.timestamp())
    bench.at(T0 + 40.0)
    found.append(bench.circuit.stats(bench.now, 0.0).state_changed_at.timestamp())
    assert found == [T0, T0, T0 + 6.0, T0 + 36.0]


def test_the_stats_tell_state_wait_generation_and_counts_of_this_very_instant() -> None:
    bench = opened(open_timeout=30.0).at(T0 + 10.0)
    stats = bench.circuit.stats(T0 + 10.0, 0.0)
    assert (stats.state, stats.retry_after, stats.generation) == (OPEN, 20.0, 2)
    bench = half_opened(success_threshold=3).run(SUCCESS, SUCCESS)
    stats = bench.circuit.stats(bench.now, 0.0)
    assert (stats.state, stats.retry_after, stats.generation) == (HALF_OPEN, None, 3)
    assert (stats.consecutive_successes, stats.consecutive_failures) == (2, 0)
    bench = closed(failure_threshold=9).run(FAILURE, FAILURE, FAILURE)
    stats = bench.circuit.stats(bench.now, 0.0)
    assert (stats.consecutive_successes, stats.consecutive_failures) == (0, 3)


# -- reading moves nothing ---------------------------------------------------------------------


def test_reading_moves_nothing_even_when_a_deadline_has_passed() -> None:
    benches = [closed(), opened(), half_opened()]
    benches[2].permit()
    for bench in benches:
        circuit = bench.circuit
        late = bench.now + 1e6
        before, metrics = circuit.stats(bench.now, 0.0), circuit.metrics()
        due = circuit.next_deadline
        for _ in range(2):
            circuit.stats(late, 0.0)
            circuit.metrics()
            circuit.retry_after(late)
            assert circuit.next_deadline == due
        assert circuit.stats(bench.now, 0.0) == before
        assert circuit.metrics() == metrics
        assert circuit.take_transitions() == []


def test_a_snapshot_does_not_change_when_the_circuit_does() -> None:
    bench = closed(failure_threshold=1)
    stats, metrics = bench.circuit.stats(bench.now, 0.0), bench.circuit.metrics()
    bench.run(FAILURE)
    assert (stats.state, stats.total_failures) == (CLOSED, 0)
    assert (metrics.transitions[OPEN], metrics.requests_failed) == (0, 0)


# -- transitions -------------------------------------------------------------------------------


def test_one_life_of_a_circuit_is_a_list_of_transitions_without_a_gap() -> None:
    bench = Bench(CircuitConfig(failure_threshold=2, success_threshold=2, open_timeout=30.0))
    bench.run(FAILURE, FAILURE)
    bench.at(T0 + 30.0).run(FAILURE)
    bench.at(T0 + 60.0).run(SUCCESS, SUCCESS)
    bench.at(T0 + 61.0).run(FAILURE, FAILURE)
    bench.at(T0 + 91.0).permit()
    bench.at(T0 + 151.0)
    bench.at(T0 + 181.0).reset()
    assert bench.circuit.take_transitions() == [
        Transition(CLOSED, OPEN, "failures", 2, T0),
        Transition(OPEN, HALF_OPEN, "timeout", 3, T0 + 30.0),
        Transition(HALF_OPEN, OPEN, "failures", 4, T0 + 30.0),
        Transition(OPEN, HALF_OPEN, "timeout", 5, T0 + 60.0),
        Transition(HALF_OPEN, CLOSED, "successes", 6, T0 + 60.0),
        Transition(CLOSED, OPEN, "failures", 7, T0 + 61.0),
        Transition(OPEN, HALF_OPEN, "timeout", 8, T0 + 91.0),
        Transition(HALF_OPEN, OPEN, "lost_permit", 9, T0 + 151.0),
        Transition(OPEN, HALF_OPEN, "timeout", 10, T0 + 181.0),
        Transition(HALF_OPEN, CLOSED, "reset", 11, T0 + 181.0),
    ]
    assert dict(bench.circuit.metrics().transitions) == {CLOSED: 2, OPEN: 4, HALF_OPEN: 4}


def test_transitions_are_handed_over_once() -> None:
    bench = closed(failure_threshold=1).run(FAILURE)
    assert len(bench.circuit.take_transitions()) == 1
    assert bench.circuit.take_transitions() == []
    bench.at(T0 + 30.0)
    assert [t.cause for t in bench.circuit.take_transitions()] == ["timeout"]


def test_outcomes_below_a_threshold_are_no_transitions_and_keep_the_generation() -> None:
    bench = closed(failure_threshold=3).run(SUCCESS, FAILURE, FAILURE, NEUTRAL)
    assert bench.circuit.take_transitions() == []
    assert bench.circuit.generation == 1
    bench = half_opened(success_threshold=3).run(SUCCESS, SUCCESS, NEUTRAL)
    assert bench.circuit.take_transitions() == []
    assert bench.circuit.generation == 3


def test_the_table_of_transitions_is_the_contracts() -> None:
    assert dict(TRANSITIONS) == {
        (CLOSED, "failures"): OPEN,
        (OPEN, "timeout"): HALF_OPEN,
        (HALF_OPEN, "successes"): CLOSED,
        (HALF_OPEN, "failures"): OPEN,
        (HALF_OPEN, "lost_permit"): OPEN,
        (CLOSED, "reset"): CLOSED,
        (OPEN, "reset"): CLOSED,
        (HALF_OPEN, "reset"): CLOSED,
    }


def test_what_was_handed_over_is_not_handed_over_again() -> None:
    bench = opened()
    bench.rejection()
    assert bench.circuit.take_totals()[:4] == (0, 1, 0, 1)
    again = bench.circuit.take_totals()
    assert again[:4] == (0, 0, 0, 0)
    assert list(again.durations) == []


def test_every_stale_outcome_is_counted_as_one() -> None:
    bench = closed()
    permits = bench.permits(2)
    bench.reset()
    for permit in permits:
        bench.report(permit, SUCCESS)
    for _ in range(2):
        assert bench.circuit.report_leased(1, SUCCESS, bench.now) is STALE
        assert bench.circuit.report_totals(tally(1, 2, 3), bench.now, 1) is STALE
    assert bench.circuit.metrics().stale_reports == 2 + 2 * (1 + 3)


def test_probes_that_expired_are_stale_each() -> None:
    bench = half_opened(max_concurrent_requests=2, lost_permit="ignore", permit_timeout=10.0)
    permits = bench.permits(2)
    bench.at(bench.now + 10.0)
    assert [bench.report(permit, SUCCESS) for permit in permits] == [EXPIRED, EXPIRED]
    assert bench.circuit.metrics().stale_reports == 2


@pytest.mark.parametrize("how", ["leased", "totals"])
def test_the_last_error_was_when_it_was_told_and_not_before(how: str) -> None:
    bench = closed()
    if how == "leased":
        bench.circuit.report_leased(1, FAILURE, T0 + 7.0, 0.5, "E: m")
    else:
        bench.circuit.report_totals(Totals(0, 1, 0, 0, (0.5,), "E: m"), T0 + 7.0, 1)
    at = bench.circuit.stats(T0 + 9.0, 0.0).last_error_at
    assert at is not None
    assert at.timestamp() == T0 + 7.0


def test_successes_of_several_batches_are_in_a_row() -> None:
    bench = closed()
    for _ in range(2):
        bench.circuit.report_totals(tally(3, 0, 0), T0, 1)
    assert bench.in_a_row == (6, 0)


def test_times_of_day_are_the_circuits_clock_plus_the_offset() -> None:
    stats = closed().circuit.stats(T0, 5_000.0)
    assert stats.state_changed_at.timestamp() == T0 + 5_000.0


def test_what_is_left_unsaid_of_an_outcome_is_that_it_took_no_time_and_had_no_lease() -> None:
    bench = closed()
    bench.circuit.report(bench.permit(), SUCCESS, T0)
    bench.circuit.report_leased(1, SUCCESS, T0)
    assert bench.circuit.metrics().max_latency == 0.0
    assert bench.circuit.report_totals(tally(1, 0, 0), T0) is STALE


def test_what_can_change_a_circuit_has_six_names() -> None:
    assert {"failures", "timeout", "successes", "lost_permit", "reset", "config"} == CAUSES


def test_the_last_failure_is_the_last_though_it_said_nothing() -> None:
    circuit = Circuit("a", CircuitConfig(), 0.0)
    circuit.report_leased(1, Outcome.FAILURE, 0.0, 0.1, "old")
    circuit.report_totals(Totals(0, 1, 0, 0, (), None), 1.0)
    assert circuit.last_error is None


def test_rejections_still_name_the_failure_when_all_that_was_counted_is_handed_over() -> None:
    circuit = Circuit("a", CircuitConfig(failure_threshold=1), 0.0)
    circuit.report_leased(1, Outcome.FAILURE, 0.0, 0.1, "down")
    circuit.take_totals()
    rejection = circuit.acquire(1, 1.0)
    assert isinstance(rejection, Rejection)
    assert rejection.last_error == "down"
