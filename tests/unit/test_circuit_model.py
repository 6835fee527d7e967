"""Circuit against a model of it that forgets nothing, under orders of events nobody thought of."""

from __future__ import annotations

import copy
import math
from collections import Counter
from datetime import datetime

import pytest
from circuit_model import Asked, Configured, Event, History, Life, Looked, Reported, Reset
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import SearchStrategy

from switchgear.circuit import TRANSITIONS, Circuit, Permit, Transition
from switchgear.config import CircuitConfig
from switchgear.states import Outcome, State, Verdict

T0 = 1000.0

# Few and round times, so that deadlines often fall on the same instant.
TIMES = st.sampled_from([0.25, 0.5, 1.0, 2.0, 5.0])
# Neutral ones are the rarest, as in life.
OUTCOMES = st.sampled_from([*Outcome, Outcome.FAILURE, Outcome.SUCCESS])
CONFIGS: SearchStrategy[CircuitConfig] = st.builds(
    CircuitConfig,
    failure_threshold=st.integers(1, 4),
    success_threshold=st.integers(1, 4),
    open_timeout=TIMES,
    max_concurrent_requests=st.integers(1, 3),
    permit_timeout=TIMES,
    lost_permit=st.sampled_from(["failure", "ignore"]),
    consistency=st.sampled_from(["leased", "strict"]),
)

# What the walks have seen, over all examples: the last test asks for it.
SEEN: Counter[object] = Counter()


class CircuitMachine(RuleBasedStateMachine):
    """Does the same to a circuit and to its history, and compares after every step."""

    permits: Bundle[Permit] = Bundle("permits")

    @initialize(config=CONFIGS, begin=st.sampled_from(State))
    def declare(self, config: CircuitConfig, begin: State) -> None:
        self.now = T0
        self.circuit = Circuit("payments", config, T0)
        self.history = History(Configured(T0, config))
        self.probes: dict[int, float] = {}  # not reported; by id, the deadline it was given
        self.configs = [config]
        self.transitions: list[Transition] = []
        self.ids = 0
        # Most walks are short, so many of them begin where it gets interesting.
        if begin is not State.CLOSED:
            self.trip()
        if begin is State.HALF_OPEN:
            self.advance_to_the_next_deadline()

    def teardown(self) -> None:
        SEEN["examples"] += 1
        if any(transition.new is State.HALF_OPEN for transition in self.transitions):
            SEEN["examples that reach half-open"] += 1

    @property
    def life(self) -> Life:
        return self.history.life

    # -- calls

    @rule(target=permits)
    def acquire(self) -> Permit | MultipleResults[Permit]:
        self.ids += 1
        admits, wait, last = self.life.admits, self.life.retry_after(self.now), self.last_error
        running = sum(1 for deadline in self.probes.values() if deadline > self.now)

        answer = self.circuit.acquire(self.ids, self.now)

        life = self.history.add(Asked(self.now, self.ids))
        assert isinstance(answer, Permit) == admits
        if not isinstance(answer, Permit):
            SEEN["rejected", life.state] += 1
            assert answer == (life.state, wait, last)
            return multiple()
        call = life.admitted[self.ids]
        assert answer == (self.ids, call.generation, call.due)
        if life.state is State.HALF_OPEN:  # G3: counted here once more, without the model
            assert running < self.circuit.config.max_concurrent_requests
            assert answer.deadline == self.now + self.circuit.config.permit_timeout
            self.probes[answer.id] = answer.deadline
        return answer

    @rule(permit=consumes(permits), outcome=OUTCOMES, duration=TIMES)
    def report(self, permit: Permit, outcome: Outcome, duration: float) -> None:
        error = f"Error: {permit.id}" if outcome is Outcome.FAILURE else None
        state, generation = self.circuit.state, self.circuit.generation
        wait, due = self.circuit.retry_after(self.now), self.circuit.next_deadline
        in_a_row = self.life.in_a_row(Outcome.FAILURE)
        runs = self.circuit.consecutive_successes, self.circuit.consecutive_failures
        overdue = self.probes.pop(permit.id, math.inf) <= self.now

        verdict = self.circuit.report(permit, outcome, self.now, duration, error)

        life = self.history.add(Reported(self.now, permit.id, outcome, duration, error))
        SEEN[verdict, outcome] += 1
        assert verdict is life.endings[-1].verdict
        if permit.generation != generation or overdue:  # G6
            SEEN["late while", state] += 1
            assert verdict is (Verdict.EXPIRED if overdue else Verdict.STALE)
            assert (self.circuit.state, self.circuit.generation) == (state, generation)
            assert self.circuit.retry_after(self.now) == wait
            assert (self.circuit.consecutive_successes, self.circuit.consecutive_failures) == runs
            # The deadline of this very probe may have gone with it, and nothing may be nearer.
            assert due is None or (self.circuit.next_deadline or math.inf) >= due
        elif state is State.CLOSED:  # G2
            enough = in_a_row + 1 >= self.circuit.config.failure_threshold
            tripped = outcome is Outcome.FAILURE and enough
            assert self.circuit.state is (State.OPEN if tripped else State.CLOSED)

    @rule(outcome=OUTCOMES, duration=TIMES)
    def report_orphan(self, outcome: Outcome, duration: float) -> None:
        verdict = self.circuit.report_orphan(outcome, self.now, duration, "Error: orphan")
        life = self.history.add(Reported(self.now, None, outcome, duration, "Error: orphan"))
        assert verdict is life.endings[-1].verdict is Verdict.STALE

    @rule(outcomes=st.lists(OUTCOMES, min_size=1, max_size=3))
    def call(self, outcomes: list[Outcome]) -> None:
        """Quick calls: each is over before the next event."""
        for outcome in outcomes:
            permit = self.acquire()
            if isinstance(permit, Permit):
                self.report(permit, outcome, 0.25)

    @precondition(lambda self: self.circuit.state is State.CLOSED)
    @rule()
    def trip(self) -> None:
        """A service that is down: closed circuits are left behind quickly."""
        for _ in range(self.circuit.config.failure_threshold):
            if self.circuit.state is State.CLOSED:  # a lowered threshold may be reached sooner
                self.call([Outcome.FAILURE])
        assert self.circuit.state is State.OPEN

    # -- time and operators

    @rule(seconds=TIMES)
    def advance(self, seconds: float) -> None:
        """As a good owner: one look at every deadline on the way."""
        until = self.now + seconds
        while (due := self.circuit.next_deadline) is not None and due <= until:
            self.look(due)
            assert self.circuit.next_deadline != due
        self.look(until)

    @precondition(lambda self: self.circuit.next_deadline is not None)
    @rule()
    def advance_to_the_next_deadline(self) -> None:
        """Both sides of it: just before, nothing moves."""
        due = self.circuit.next_deadline
        assert due is not None
        before = self.circuit.stats(T0, 0.0), self.circuit.metrics()
        early = max(self.now, math.nextafter(due, -math.inf))
        if early < due:
            self.look(early)
        assert (self.circuit.stats(T0, 0.0), self.circuit.metrics()) == before
        self.look(due)
        assert (self.circuit.stats(T0, 0.0), self.circuit.metrics()) != before

    @rule(seconds=TIMES)
    def oversleep(self, seconds: float) -> None:
        """As an owner that was stopped and continued: one look, long after several deadlines."""
        self.look(self.now + 3 * seconds)

    @rule(config=st.none() | CONFIGS)
    def reset_or_configure(self, config: CircuitConfig | None) -> None:
        if config is None:
            self.circuit.reset(self.now)
            self.history.add(Reset(self.now))
            return
        before = self.circuit.config
        assert self.circuit.configure(config) == (config != before)
        self.history.add(Configured(self.now, config))
        self.configs.append(config)

    def look(self, now: float) -> None:
        self.now = now
        self.circuit.tick(now)
        self.history.add(Looked(now))

    # -- always

    @invariant()
    def the_circuit_is_what_its_history_makes_it(self) -> None:
        self.circuit.check()
        life, stats = self.life, self.circuit.stats(self.now, utc_offset=0.0)
        assert stats.state is life.state
        assert stats.generation == life.generation
        assert stats.consecutive_successes == life.in_a_row(Outcome.SUCCESS)
        assert stats.consecutive_failures == life.in_a_row(Outcome.FAILURE)
        assert stats.total_successes == life.total(Outcome.SUCCESS)
        assert stats.total_failures == life.total(Outcome.FAILURE)
        assert stats.total_neutral == life.total(Outcome.NEUTRAL)
        assert stats.total_rejected == life.rejected
        assert stats.total_requests == life.attempts
        assert stats.in_flight == len(life.in_flight)
        assert stats.retry_after == life.retry_after(self.now)
        assert stats.config == life.config
        assert stats.last_error == self.last_error
        failure = life.last_failure
        assert seconds(stats.last_error_at) == (None if failure is None else rounded(failure.at))
        assert seconds(stats.state_changed_at) == rounded(life.state_changed_at)
        assert self.circuit.next_deadline == life.next_deadline

    @invariant()
    def the_metrics_are_what_the_history_makes_them(self) -> None:
        life, metrics = self.life, self.circuit.metrics()
        executed = life.total(Outcome.SUCCESS), life.total(Outcome.FAILURE)
        assert (metrics.requests_successful, metrics.requests_failed) == executed
        assert metrics.requests_total == sum(executed)
        assert metrics.requests_rejected == life.rejected
        assert metrics.permits_lost == len(life.lost)
        assert metrics.stale_reports == life.late
        assert metrics.transitions == life.entries
        window = life.window
        ends = (window[0], window[-1]) if window else (None, None)
        assert (metrics.min_latency, metrics.max_latency) == ends

    @invariant()
    def the_transitions_are_those_of_the_history_and_of_the_table(self) -> None:
        for transition in self.circuit.take_transitions():
            assert TRANSITIONS[transition.old, transition.cause] is transition.new
            SEEN[transition.old, transition.cause] += 1
            self.transitions.append(transition)
        assert self.transitions == self.life.transitions
        generations = [transition.generation for transition in self.transitions]
        assert generations == list(range(2, 2 + len(generations)))  # G1: no gap, no repetition

    @invariant()
    def silence_brings_back_every_probe_and_then_admits_one(self) -> None:
        """G4, from here: all clients go silent, and the owner only looks at the clock."""
        # A deadline that is running keeps its time, so what counts is the longest ever configured.
        probes_are_back = self.now + max(config.permit_timeout for config in self.configs)
        rest_is_over = probes_are_back + max(config.open_timeout for config in self.configs)

        good, lazy = copy.deepcopy(self.circuit), copy.deepcopy(self.circuit)
        for until in (probes_are_back, rest_is_over):
            while (due := good.next_deadline) is not None and due <= until:
                good.tick(due)
                assert good.next_deadline != due
            good.tick(until)
            lazy.tick(until)
        held = sum(1 for call in self.life.in_flight.values() if call.due is None)
        for circuit in (good, lazy):
            circuit.check()
            assert circuit.stats(rest_is_over, 0.0).in_flight == held
            assert isinstance(circuit.acquire(-1, rest_is_over), Permit)

    @invariant()
    def reading_moves_nothing(self) -> None:
        before = self.circuit.stats(self.now, 0.0), self.circuit.metrics()
        self.circuit.stats(self.now + 1e6, 0.0)
        self.circuit.retry_after(self.now + 1e6)
        assert (self.circuit.stats(self.now, 0.0), self.circuit.metrics()) == before

    @property
    def last_error(self) -> str | None:
        failure = self.life.last_failure
        return None if failure is None else failure.error


def seconds(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()


def rounded(at: float) -> float:
    """A time as a datetime can hold it: microseconds."""
    return round(at, 6)


TestCircuitAgainstItsHistory = CircuitMachine.TestCase
# One failure at a time, shrunk and not explained: with all three it would take minutes.
TestCircuitAgainstItsHistory.settings = settings(
    deadline=None,
    max_examples=80,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
)


def test_the_walks_see_every_transition_and_mostly_reach_half_open() -> None:
    """The same walks every time: what they see is a property of the rules, not of luck."""
    SEEN.clear()
    run_state_machine_as_test(
        CircuitMachine,
        settings=settings(
            derandomize=True,
            database=None,
            deadline=None,
            max_examples=150,
            phases=[Phase.generate],  # the walks above shrink what fails
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert SEEN["examples"] >= 150
    assert SEEN["examples that reach half-open"] >= 0.5 * SEEN["examples"]
    wanted: list[object] = [
        *TRANSITIONS,
        *((verdict, outcome) for verdict in Verdict for outcome in Outcome),
        *(("late while", state) for state in State),
        ("rejected", State.OPEN),
        ("rejected", State.HALF_OPEN),
    ]
    assert [case for case in wanted if SEEN[case] == 0] == []


# -- the model by itself: it, too, can be wrong ------------------------------------------------


def life_of(config: CircuitConfig, *events: Event) -> Life:
    history = History(Configured(T0, config))
    for event in events:
        history.add(event)
    return history.life


def test_the_model_knows_the_textbook_life_of_a_circuit() -> None:
    life = life_of(
        CircuitConfig(failure_threshold=1, success_threshold=1),
        Asked(T0, 1),
        Asked(T0, 2),
        Reported(T0, 1, Outcome.FAILURE, 0.5, "E: m"),
        Asked(T0 + 1, 3),
        Looked(T0 + 30),
        Asked(T0 + 30, 4),
        Asked(T0 + 30, 5),
        Reported(T0 + 31, 2, Outcome.FAILURE, 31.0, "E: late"),
        Looked(T0 + 90),
        Looked(T0 + 120),
        Asked(T0 + 120, 6),
        Reported(T0 + 121, 4, Outcome.FAILURE, 91.0, "E: very late"),
        Reported(T0 + 121, 6, Outcome.SUCCESS, 1.0, None),
        Reset(T0 + 122),
    )
    assert [(str(old), str(new), cause, at) for old, new, cause, _, at in life.transitions] == [
        ("closed", "open", "failures", T0),
        ("open", "half-open", "timeout", T0 + 30),
        ("half-open", "open", "lost_permit", T0 + 90),
        ("open", "half-open", "timeout", T0 + 120),
        ("half-open", "closed", "successes", T0 + 121),
        ("closed", "closed", "reset", T0 + 122),
    ]
    assert [ending.verdict for ending in life.endings] == [
        Verdict.COUNTED,
        Verdict.STALE,
        Verdict.EXPIRED,
        Verdict.COUNTED,
    ]
    assert (life.asked, life.rejected, life.attempts) == (6, 2, 6)
    assert life.entries == {State.CLOSED: 1, State.OPEN: 2, State.HALF_OPEN: 2}
    assert life.window == [0.5, 1.0, 31.0, 91.0]


@pytest.mark.parametrize(("failures", "state"), [(2, State.CLOSED), (3, State.OPEN)])
def test_the_model_opens_at_the_threshold_and_not_before(failures: int, state: State) -> None:
    events: list[Event] = []
    for call in range(failures):
        events += [Asked(T0, call), Reported(T0, call, Outcome.FAILURE, 0.5, None)]
    assert life_of(CircuitConfig(failure_threshold=3), *events).state is state
