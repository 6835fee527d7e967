"""A circuit that goes on from what was saved of it is the one it was, but for the permits."""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from switchgear.circuit import Circuit, Permit, Rejection, Totals, Transition
from switchgear.config import CircuitConfig
from switchgear.states import Outcome, State
from switchgear.stats import CircuitStats, MetricsSnapshot

T0: Final = 1000.0
TIMES: Final = [0.25, 0.5, 1.0, 2.0, 5.0]
CONFIGS: Final[SearchStrategy[CircuitConfig]] = st.builds(
    CircuitConfig,
    failure_threshold=st.integers(1, 3),
    success_threshold=st.integers(1, 3),
    open_timeout=st.sampled_from(TIMES),
    max_concurrent_requests=st.integers(1, 2),
    permit_timeout=st.sampled_from(TIMES),
    lost_permit=st.sampled_from(["failure", "ignore"]),
)
BEGINNINGS: Final = st.sampled_from(list(State))
OUTCOMES: Final = [Outcome.FAILURE, Outcome.FAILURE, Outcome.SUCCESS, Outcome.NEUTRAL]


class Step(NamedTuple):
    """One thing that is done to a circuit."""

    what: str
    outcome: Outcome
    seconds: float
    age: int
    config: CircuitConfig


STEPS: Final = st.lists(
    st.builds(
        Step,
        st.sampled_from(
            ["call"] * 6 + ["hold", "give back", "lose", "leased", "batch", "missed"]
            + ["wait"] * 4 + ["reset", "configure"]
        ),
        st.sampled_from(OUTCOMES),
        st.sampled_from(TIMES),
        st.sampled_from([0, 0, 1, 1_000]),
        CONFIGS,
    ),
    min_size=1,
    max_size=25,
)  # fmt: skip


class Bench:
    """A circuit, the permits that are out, and all that was heard of it."""

    def __init__(self, circuit: Circuit, now: float = T0, number: int = 0) -> None:
        self.circuit = circuit
        self.now = now
        self.number = number
        self.held: list[Permit] = []
        self.heard: list[object] = []

    def do(self, step: Step) -> None:
        circuit, now = self.circuit, self.now
        generation = max(0, circuit.generation - step.age)
        answer: object = None
        match step.what:
            case "call" | "hold":
                self.number += 1
                answer = circuit.acquire(self.number, now)
                if isinstance(answer, Permit):
                    self.held.append(answer)
                    if step.what == "call":
                        answer = self.report(self.held.pop(), step)
            case "give back" if self.held:
                answer = self.report(self.held.pop(0), step)
            case "lose" if self.held:
                circuit.abandon(self.held.pop(0), now)
            case "leased":
                answer = circuit.report_leased(generation, step.outcome, now, step.seconds, "late")
            case "batch":
                totals = Totals(3, 0, 1, 2, [step.seconds], None)
                answer = circuit.report_totals(totals, now, generation)
            case "missed":
                totals = Totals(1, 2, 3, 4, [step.seconds] * 3, "missed")
                answer = circuit.report_totals(totals, now)
            case "wait":
                self.now += step.seconds
                circuit.tick(self.now)
            case "reset":
                circuit.reset(now)
            case "configure":
                answer = circuit.configure(step.config)
        circuit.check()
        self.heard += [answer, circuit.take_transitions(), circuit.next_deadline, self.look()]

    def report(self, permit: Permit, step: Step) -> object:
        return self.circuit.report(permit, step.outcome, self.now, step.seconds, "down")

    def look(self) -> tuple[CircuitStats, MetricsSnapshot]:
        return self.circuit.stats(self.now, 0.0), self.circuit.metrics()


SEEN: Final[Counter[State]] = Counter()


def saved_and_restored(bench: Bench) -> Bench:
    circuit = bench.circuit
    standing, counts = circuit.standing(), circuit.counts()
    restored = Circuit.restore(circuit.name, standing, counts)
    restored.check()
    SEEN[restored.state] += 1
    return Bench(restored, bench.now, bench.number)


def forget_permits(bench: Bench) -> Bench:
    bench.held.clear()
    bench.heard.clear()
    bench.circuit._probes.clear()
    bench.circuit._in_flight = bench.circuit._silent = 0
    return bench


def lived(config: CircuitConfig, begin: State, steps: list[Step]) -> Bench:
    circuit = Circuit("payments", config, T0)
    bench = Bench(circuit)
    if begin is not State.CLOSED:
        for _ in range(config.failure_threshold):
            circuit.report_leased(1, Outcome.FAILURE, T0, 0.5, "OSError: down")
    if begin is State.HALF_OPEN:
        bench.now += config.open_timeout
        circuit.tick(bench.now)
    for step in steps:
        bench.do(step)
    return bench


LIVES: Final = given(config=CONFIGS, begin=BEGINNINGS, before=STEPS, after=STEPS)
EXAMPLES: Final = settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow]
)


@EXAMPLES
@LIVES
def test_whatever_comes_then_a_restored_circuit_does_what_the_first_would_have_done(
    config: CircuitConfig, begin: State, before: list[Step], after: list[Step]
) -> None:
    go_on(config, begin, before, after)


def go_on(config: CircuitConfig, begin: State, before: list[Step], after: list[Step]) -> None:
    bench = lived(config, begin, before)
    restored, original = saved_and_restored(bench), forget_permits(bench)
    assert restored.look() == original.look()
    for step in after:
        restored.do(step)
        original.do(step)
    assert restored.heard == original.heard


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(config=CONFIGS, begin=BEGINNINGS, before=STEPS, between=STEPS)
def test_with_older_counts_it_stands_where_it_stood_and_what_is_counted_again_moves_nothing(
    config: CircuitConfig, begin: State, before: list[Step], between: list[Step]
) -> None:
    bench = lived(config, begin, before)
    counts = bench.circuit.counts()
    for step in between:
        bench.do(step)
    circuit = bench.circuit
    restored = Circuit.restore("payments", circuit.standing(), counts)
    restored.check()
    assert restored.standing() == circuit.standing()
    assert restored.totals() == counts.totals
    same = counts.generation == circuit.generation
    in_a_row = counts.consecutive_successes, counts.consecutive_failures
    found = restored.consecutive_successes, restored.consecutive_failures
    assert found == (in_a_row if same else (0, 0))
    for step in between:  # what is sent again, of whatever generation has passed
        if step.what == "leased":
            restored.report_leased(0, step.outcome, bench.now)
    assert restored.standing() == circuit.standing()


def test_the_examples_are_of_every_state() -> None:
    """Of the ones that are the same every time: what comes by chance may be of one state."""
    SEEN.clear()
    settings(EXAMPLES, derandomize=True)(LIVES(go_on))()
    assert min(SEEN[state] for state in State) > 20


def tripped() -> Circuit:
    config = CircuitConfig(failure_threshold=1, open_timeout=30.0)
    circuit = Circuit("payments", config, T0)
    circuit.report_leased(1, Outcome.FAILURE, T0, 0.5, "OSError: down")
    return circuit


def test_g11_an_open_circuit_keeps_the_rest_of_its_time_and_not_more() -> None:
    circuit = tripped()
    restored = Circuit.restore("payments", circuit.standing(), circuit.counts())
    assert restored.retry_after(T0 + 10.0) == 20.0
    rejection = restored.acquire(1, T0 + 29.999)
    assert rejection == Rejection(State.OPEN, pytest.approx(0.001), "OSError: down")
    restored.tick(T0 + 30.0)
    expected = Transition(State.OPEN, State.HALF_OPEN, "timeout", 3, T0 + 30.0)
    assert restored.take_transitions() == [expected]


@pytest.mark.parametrize("open_timeout", [0.001, 30.0, 1e6])
def test_g11_a_configuration_that_came_while_it_was_open_does_not_move_its_deadline(
    open_timeout: float,
) -> None:
    circuit = tripped()
    circuit.configure(CircuitConfig(open_timeout=open_timeout))
    restored = Circuit.restore("payments", circuit.standing(), circuit.counts())
    assert restored.next_deadline == circuit.next_deadline == T0 + 30.0


def test_without_counts_it_begins_to_count() -> None:
    circuit = tripped()
    restored = Circuit.restore("payments", circuit.standing(), None)
    restored.check()
    assert (restored.state, restored.generation) == (State.OPEN, 2)
    assert restored.totals() == Circuit("x", CircuitConfig(), T0).totals()


def test_a_restored_circuit_tells_all_that_the_first_one_did() -> None:
    circuit = Circuit("payments", CircuitConfig(failure_threshold=1, open_timeout=8.0), T0)
    for number in (1, 2):
        held = circuit.acquire(number, T0 + number)
        assert isinstance(held, Permit)
        circuit.reset(T0 + number)
        circuit.report(held, Outcome.FAILURE, T0 + number, 0.25 * number, f"OSError: {number}")
    lost = circuit.acquire(3, T0 + 3.0)
    assert isinstance(lost, Permit)
    circuit.abandon(lost, T0 + 3.0)
    failed = circuit.acquire(4, T0 + 4.0)
    assert isinstance(failed, Permit)
    circuit.report(failed, Outcome.FAILURE, T0 + 4.0, 1.0, "OSError: 4")
    assert isinstance(circuit.acquire(5, T0 + 5.0), Rejection)
    metrics = circuit.metrics()
    assert (metrics.stale_reports, metrics.permits_lost, metrics.max_latency) == (2, 1, 1.0)
    assert metrics.transitions[State.OPEN] == 1
    restored = Circuit.restore("payments", circuit.standing(), circuit.counts())
    assert restored.metrics() == metrics
    with pytest.raises(ValueError, match="shorter"):
        Circuit.restore("payments", circuit.standing()._replace(entries=(1, 2)), None)
