"""What a process decides by itself while no manager answers, and what the manager hears of it."""

from __future__ import annotations

from array import array

import pytest

from switchgear.circuit import Circuit, Rejection, Totals
from switchgear.client.lease import Gate
from switchgear.client.standby import Standby, StandbyPermit
from switchgear.config import CircuitConfig
from switchgear.states import Outcome, State, Verdict

CONFIG = CircuitConfig(failure_threshold=2, success_threshold=1, open_timeout=30.0)


class Outage:
    """A standby, the time, and what it has handed over."""

    def __init__(self) -> None:
        self.now = 100.0
        self.handed_over: list[tuple[str, Totals]] = []
        self.standby = Standby(self.hand_over, lambda: self.now)
        self.gate = Gate()

    def hand_over(self, name: str, totals: Totals) -> None:
        self.handed_over.append((name, totals))

    def acquire(self, name: str = "a") -> StandbyPermit | Rejection:
        return self.standby.acquire(name, CONFIG, self.gate)

    def permit(self, name: str = "a") -> StandbyPermit:
        permit = self.acquire(name)
        assert isinstance(permit, StandbyPermit)
        return permit

    def call(self, outcome: Outcome, error: str | None = None) -> None:
        self.permit().report(outcome, 0.5, error)

    def end(self) -> list[tuple[str, Totals]]:
        self.standby.end("another")
        return self.handed_over


@pytest.fixture
def outage() -> Outage:
    return Outage()


def test_it_opens_at_the_threshold_and_turns_half_open_at_the_timeout(outage: Outage) -> None:
    outage.call(Outcome.FAILURE, "E: 1")
    outage.call(Outcome.FAILURE, "E: 2")
    assert outage.acquire() == Rejection(State.OPEN, 30.0, "E: 2")
    outage.now += 29.999
    assert isinstance(outage.acquire(), Rejection)
    outage.now += 0.001
    probe = outage.permit()
    assert outage.acquire() == Rejection(State.HALF_OPEN, None, "E: 2")
    probe.report(Outcome.SUCCESS)
    outage.permit()
    outage.permit()


def test_a_circuit_that_was_open_stays_open_for_the_rest_of_its_time(outage: Outage) -> None:
    outage.gate.heard_open(107.0, "E: before")
    assert outage.acquire() == Rejection(State.OPEN, 7.0, "E: before")
    outage.now = 107.0
    outage.permit().report(Outcome.FAILURE, 0.5, "E: still")
    assert outage.acquire() == Rejection(State.OPEN, 30.0, "E: still")


@pytest.mark.parametrize("until", [99.0, 100.0])
def test_one_whose_time_is_over_is_half_open(outage: Outage, until: float) -> None:
    outage.gate.heard_open(until, "E: before")
    probe = outage.permit()
    assert outage.acquire() == Rejection(State.HALF_OPEN, None, "E: before")
    probe.report(Outcome.FAILURE, 0.5, "E: still")
    assert outage.acquire() == Rejection(State.OPEN, 30.0, "E: still")


def test_one_that_was_closed_again_is_closed(outage: Outage) -> None:
    outage.gate.heard_open(99.0, None)
    outage.gate.heard_closed()
    for _ in range(3):
        outage.permit()


def test_circuits_are_each_their_own(outage: Outage) -> None:
    outage.call(Outcome.FAILURE)
    outage.call(Outcome.FAILURE)
    assert isinstance(outage.acquire("a"), Rejection)
    outage.permit("b")


def test_it_is_active_from_the_first_call_to_the_end(outage: Outage) -> None:
    assert not outage.standby.active
    outage.permit()
    assert outage.standby.active
    outage.end()
    assert not outage.standby.active


def test_the_end_hands_over_what_was_counted_once(outage: Outage) -> None:
    outage.call(Outcome.SUCCESS)
    outage.call(Outcome.NEUTRAL)
    outage.call(Outcome.FAILURE, "E: 1")
    outage.call(Outcome.FAILURE, "E: 2")
    for _ in range(3):
        assert isinstance(outage.acquire(), Rejection)
    totals = Totals(1, 2, 1, 3, array("d", [0.5, 0.5, 0.5]), "E: 2")
    assert outage.end() == [("a", totals)]
    assert outage.end() == [("a", totals)]


def test_a_call_that_ends_after_the_end_is_handed_over_by_itself(outage: Outage) -> None:
    before, after, neutral = outage.permit(), outage.permit(), outage.permit()
    verdicts: list[Verdict] = []
    before.report(Outcome.SUCCESS, 0.25, None, verdicts.append)
    outage.end()
    outage.permit()  # another outage, another circuit of the name
    after.report(Outcome.FAILURE, 0.5, "E: m", verdicts.append)
    neutral.report(Outcome.NEUTRAL, 0.5, None, verdicts.append)
    assert verdicts == [Verdict.COUNTED, Verdict.STALE, Verdict.STALE]
    assert outage.handed_over == [
        ("a", Totals(1, 0, 0, 0, array("d", [0.25]), None)),
        ("a", Totals(0, 1, 0, 0, (0.5,), "E: m")),
        ("a", Totals(0, 0, 1, 0, (), None)),
    ]


def test_what_is_handed_over_is_in_the_totals_and_moves_nothing() -> None:
    circuit = Circuit("a", CONFIG, 100.0)
    circuit.report_totals(Totals(3, 5, 1, 7, [0.5], "E: m"), 101.0)
    stats, metrics = circuit.stats(101.0, 0.0), circuit.metrics()
    assert (stats.state, stats.consecutive_failures, stats.consecutive_successes) == (
        State.CLOSED,
        0,
        0,
    )
    assert (stats.total_successes, stats.total_failures, stats.total_neutral) == (3, 5, 1)
    assert (stats.total_rejected, stats.total_requests) == (7, 16)
    assert (metrics.stale_reports, metrics.max_latency) == (9, 0.5)
    assert stats.last_error == "E: m"
    circuit.report_totals(Totals(1, 0, 0, 0, [], None), 102.0)
    assert circuit.last_error == "E: m"
    circuit.check()


# -- circuits the manager has no room for ----------------------------------------------------------


def alone(outage: Outage, outcome: Outcome) -> None:
    permit = outage.standby.acquire("full", CONFIG, outage.gate, alone=True)
    assert isinstance(permit, StandbyPermit)
    permit.report(outcome, 0.5, "E: down")


def test_a_circuit_the_manager_has_no_room_for_goes_on_when_others_are_answered(
    outage: Outage,
) -> None:
    alone(outage, Outcome.FAILURE)
    assert (outage.standby.active, list(outage.standby.alone)) == (False, ["full"])
    outage.call(Outcome.SUCCESS)
    assert outage.standby.active
    assert [name for name, _ in outage.end()] == ["a"]
    alone(outage, Outcome.FAILURE)
    refused = outage.standby.acquire("full", CONFIG, outage.gate, alone=True)
    assert refused == Rejection(State.OPEN, 30.0, "E: down")
    # Nor does it begin anew when the manager is gone.
    assert isinstance(outage.standby.acquire("full", CONFIG, outage.gate), Rejection)
    assert not outage.standby.active


def test_when_there_is_room_for_it_the_manager_is_told_what_it_came_to(outage: Outage) -> None:
    alone(outage, Outcome.FAILURE)
    alone(outage, Outcome.FAILURE)
    outage.standby.end("full")
    ((name, totals),) = outage.handed_over
    assert (name, totals.failures) == ("full", 2)
    assert not outage.standby.alone


def test_a_circuit_that_was_here_in_an_outage_may_turn_out_to_have_no_room(outage: Outage) -> None:
    permit = outage.standby.acquire("full", CONFIG, outage.gate)
    assert isinstance(permit, StandbyPermit)
    permit.report(Outcome.FAILURE, 0.5, "E: 1")
    late = outage.standby.acquire("full", CONFIG, outage.gate)
    assert isinstance(late, StandbyPermit)
    alone(outage, Outcome.SUCCESS)
    assert outage.end() == []
    assert late.report(Outcome.FAILURE) is None
    assert isinstance(
        outage.standby.acquire("full", CONFIG, outage.gate, alone=True), StandbyPermit
    )
    outage.standby.end("full")
    ((_, totals),) = outage.handed_over
    assert (totals.successes, totals.failures) == (1, 2)


def test_what_was_only_rejected_is_handed_over_too(outage: Outage) -> None:
    outage.gate.heard_open(107.0, "E: before")
    assert isinstance(outage.acquire(), Rejection)
    ((name, totals),) = outage.end()
    assert (name, totals[:4]) == ("a", (0, 0, 0, 1))


def test_what_was_counted_is_told_and_the_circuit_goes_on(outage: Outage) -> None:
    outage.call(Outcome.FAILURE, "E: 1")
    outage.standby.tell()
    outage.call(Outcome.FAILURE, "E: 2")
    assert isinstance(outage.acquire(), Rejection)
    assert [totals[:4] for _, totals in outage.end()] == [(0, 1, 0, 0), (0, 1, 0, 1)]


def test_a_probe_that_is_held_too_long_is_lost_here_too_and_its_outcome_expired() -> None:
    outage, verdicts = Outage(), []
    config = CircuitConfig(
        failure_threshold=1, open_timeout=8.0, permit_timeout=4.0, max_concurrent_requests=2
    )

    def permit() -> StandbyPermit:
        found = outage.standby.acquire("a", config, outage.gate)
        assert isinstance(found, StandbyPermit)
        return found

    permit().report(Outcome.FAILURE, 0.5, "E: 1")
    outage.now += 8.0
    probes = [permit(), permit()]
    assert isinstance(outage.standby.acquire("a", config, outage.gate), Rejection)
    probes[0].report(Outcome.SUCCESS, 0.5, settled=verdicts.append)
    outage.now += 4.0
    probes[1].report(Outcome.SUCCESS, 0.5, settled=verdicts.append)
    assert verdicts == [Verdict.COUNTED, Verdict.EXPIRED]
    assert outage.standby._circuits["a"].take_transitions() == []  # nobody is to be told of them


def test_what_changed_is_not_kept_for_nobody(outage: Outage) -> None:
    outage.call(Outcome.FAILURE)
    outage.call(Outcome.FAILURE)
    (circuit,) = outage.standby._circuits.values()
    for _ in range(3):  # a probe that is lost opens it again, without any report
        outage.now += 1_000.0
        outage.acquire()
        assert circuit.take_transitions() == []
