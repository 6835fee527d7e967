"""Circuit against a model of it that forgets nothing, under orders of events nobody thought of.

The orders come from Hypothesis, which shrinks what it finds, and from seeded walks, which are long
and the same everywhere: those are asked whether they have seen every transition and every kind of
report.
"""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from random import Random
from typing import Literal

import pytest
from circuit_model import (
    Asked,
    Configured,
    Died,
    Event,
    History,
    Life,
    Looked,
    Reported,
    Reset,
    Tallied,
)
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

from switchgear.circuit import TRANSITIONS, Circuit, Permit, Totals, Transition
from switchgear.config import CircuitConfig
from switchgear.states import Outcome, State, Verdict

T0 = 1000.0


class Pair:
    """A circuit and its history: the same is done to both, and `check` compares them."""

    def __init__(self, config: CircuitConfig) -> None:
        self.now = T0
        self.circuit = Circuit("payments", config, T0)
        self.history = History(Configured(T0, config))
        self.configs = [config]
        self.probes: dict[int, Permit] = {}  # not reported, by id; kept without the model's help
        self.ids = 0
        self.transitions: list[Transition] = []
        self.seen: Counter[object] = Counter()

    @property
    def life(self) -> Life:
        return self.history.life

    @property
    def last_error(self) -> str | None:
        failure = self.life.last_failure
        return None if failure is None else failure.error

    def is_overdue(self, permit: Permit) -> bool:
        return permit.deadline is not None and permit.deadline <= self.now

    # -- calls

    def ask(self) -> Permit | None:
        self.ids += 1
        admits, wait, last = self.life.admits, self.life.retry_after(self.now), self.last_error
        running = [permit for permit in self.probes.values() if not self.is_overdue(permit)]
        if any(permit.generation != self.circuit.generation for permit in running):
            self.seen["asked while an old probe hangs", self.circuit.state] += 1

        answer = self.circuit.acquire(self.ids, self.now)

        life = self.history.add(Asked(self.now, self.ids))
        assert isinstance(answer, Permit) == admits
        self.seen["admitted" if admits else "rejected", life.state] += 1
        if not isinstance(answer, Permit):
            assert answer == (life.state, wait, last)
            return None
        call = life.admitted[self.ids]
        assert answer == (self.ids, call.generation, call.due)
        if life.state is State.HALF_OPEN:  # G3
            assert len(running) < self.circuit.config.max_concurrent_requests
            assert answer.deadline == self.now + self.circuit.config.permit_timeout
            self.probes[answer.id] = answer
        return answer

    def report(self, permit: Permit, outcome: Outcome, duration: float) -> None:
        error = f"Error: {permit.id}" if outcome is Outcome.FAILURE else None
        state, generation = self.circuit.state, self.circuit.generation
        wait, due = self.circuit.retry_after(self.now), self.circuit.next_deadline
        in_a_row = self.life.in_a_row(Outcome.FAILURE)
        runs = self.circuit.consecutive_successes, self.circuit.consecutive_failures
        overdue = self.is_overdue(permit)
        self.probes.pop(permit.id, None)

        verdict = self.circuit.report(permit, outcome, self.now, duration, error)

        life = self.history.add(Reported(self.now, permit.id, outcome, duration, error))
        self.seen[verdict, outcome, state] += 1
        assert verdict is life.endings[-1].verdict
        if permit.generation != generation or overdue:  # G6
            assert verdict is (Verdict.EXPIRED if overdue else Verdict.STALE)
            assert (self.circuit.state, self.circuit.generation) == (state, generation)
            assert self.circuit.retry_after(self.now) == wait
            assert (self.circuit.consecutive_successes, self.circuit.consecutive_failures) == runs
            # The deadline of this very probe may have gone with it; nothing nearer came.
            assert due is None or (self.circuit.next_deadline or math.inf) >= due
        elif state is State.CLOSED:  # G2
            enough = in_a_row + 1 >= self.circuit.config.failure_threshold
            tripped = outcome is Outcome.FAILURE and enough
            assert self.circuit.state is (State.OPEN if tripped else State.CLOSED)

    def die(self, permits: list[Permit]) -> None:
        """Whoever holds these is dead, and says nothing any more."""
        for permit in permits:
            state, generation = self.circuit.state, self.circuit.generation
            overdue, lost = self.is_overdue(permit), self.circuit.metrics().permits_lost
            self.probes.pop(permit.id, None)

            self.circuit.abandon(permit, self.now)

            life = self.history.add(Died(self.now, permit.id))
            assert self.circuit.metrics().permits_lost == lost + (not overdue)
            if permit.deadline is None or permit.generation != generation or overdue:
                assert (self.circuit.state, self.circuit.generation) == (state, generation)
            elif life.config.lost_permit == "failure":
                assert self.circuit.state is State.OPEN
            kind = "probe" if permit.deadline is not None else "call"
            late = (
                "overdue" if overdue else "late" if permit.generation != generation else "in time"
            )
            self.seen["died", kind, "overdue" if overdue else late] += 1

    def report_leased(self, generation: int, outcome: Outcome, duration: float) -> None:
        error = f"Error: lease {generation}" if outcome is Outcome.FAILURE else None
        with self.nothing_moves_unless(self.life.is_leased(generation)):
            verdict = self.circuit.report_leased(generation, outcome, self.now, duration, error)
        report = Reported(self.now, None, outcome, duration, error, generation)
        assert verdict is self.history.add(report).endings[-1].verdict
        self.seen["leased", verdict, outcome] += 1

    def report_tally(self, generation: int, tally: Totals) -> None:
        with self.nothing_moves_unless(self.life.is_leased(generation)):
            verdict = self.circuit.report_totals(tally, self.now, generation)
        successes, _, neutral, rejected, durations, _ = tally
        event = Tallied(self.now, generation, successes, neutral, rejected, list(durations))
        assert verdict is self.history.add(event).tallies[-1]
        self.seen["tally", verdict, successes > 0] += 1

    @contextmanager
    def nothing_moves_unless(self, leased: bool) -> Iterator[None]:
        """G6: an outcome under a lease that has ended."""
        state, generation = self.circuit.state, self.circuit.generation
        runs = self.circuit.consecutive_successes, self.circuit.consecutive_failures
        deadline = self.circuit.next_deadline
        yield
        if not leased:
            assert (self.circuit.state, self.circuit.generation) == (state, generation)
            assert (self.circuit.consecutive_successes, self.circuit.consecutive_failures) == runs
            assert self.circuit.next_deadline == deadline

    def call(self, *outcomes: Outcome) -> None:
        """Quick calls: each is over before the next event."""
        for outcome in outcomes:
            if (permit := self.ask()) is not None:
                self.report(permit, outcome, 0.25)

    def trip(self) -> None:
        for _ in range(self.circuit.config.failure_threshold):
            if self.circuit.state is State.CLOSED:  # a lowered threshold may be reached sooner
                self.call(Outcome.FAILURE)
        assert self.circuit.state is State.OPEN

    # -- time and operators

    def look(self, now: float) -> None:
        self.now = now
        self.circuit.tick(now)
        self.history.add(Looked(now))

    def advance(self, seconds: float, oversleep: bool) -> None:
        """With a look at every deadline on the way, or as an owner that was stopped meanwhile."""
        until = self.now + seconds
        while (due := self.circuit.next_deadline) is not None and due <= until and not oversleep:
            self.look(due)
            assert self.circuit.next_deadline != due
        self.look(until)

    def advance_to_the_next_deadline(self) -> None:
        """Both sides of it: just before, nothing moves."""
        due = self.circuit.next_deadline
        assert due is not None
        before = self.circuit.stats(T0, 0.0), self.circuit.metrics()
        if (early := math.nextafter(due, -math.inf)) > self.now:
            self.look(early)
        assert (self.circuit.stats(T0, 0.0), self.circuit.metrics()) == before
        self.look(due)
        assert (self.circuit.stats(T0, 0.0), self.circuit.metrics()) != before

    def reset(self) -> None:
        self.circuit.reset(self.now)
        self.history.add(Reset(self.now))

    def configure(self, config: CircuitConfig) -> None:
        before = self.circuit.config
        assert self.circuit.configure(config) == (config != before)
        self.history.add(Configured(self.now, config))
        self.configs.append(config)

    # -- what is true at any time

    def check(self) -> None:
        self.circuit.check()
        self.check_stats()
        self.check_metrics()
        self.check_transitions()
        self.check_silence()
        self.check_reading()

    def check_stats(self) -> None:
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

    def check_metrics(self) -> None:
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

    def check_transitions(self) -> None:
        for transition in self.circuit.take_transitions():
            assert TRANSITIONS[transition.old, transition.cause] is transition.new
            self.seen[transition.old, transition.cause] += 1
            self.transitions.append(transition)
        assert self.transitions == self.life.transitions
        generations = [transition.generation for transition in self.transitions]
        assert generations == list(range(2, 2 + len(generations)))  # G1: no gap, no repetition

    def check_silence(self) -> None:
        """G4, from here: all clients go silent, and the owner only looks at the clock."""
        # A deadline that is running keeps its time, so what counts is the longest ever configured.
        probes_are_back = self.now + max(config.permit_timeout for config in self.configs)
        rest_is_over = probes_are_back + max(config.open_timeout for config in self.configs)

        good, lazy = twin(self.circuit), twin(self.circuit)
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

    def check_reading(self) -> None:
        before = self.circuit.stats(self.now, 0.0), self.circuit.metrics()
        self.circuit.stats(self.now + 1e6, 0.0)
        self.circuit.retry_after(self.now + 1e6)
        assert (self.circuit.stats(self.now, 0.0), self.circuit.metrics()) == before

    def summary(self) -> Counter[object]:
        """What this life has shown; one more example, and whether it got to half-open."""
        reached = any(transition.new is State.HALF_OPEN for transition in self.transitions)
        return self.seen + Counter(["examples", *["examples that reach half-open"] * reached])


def twin(circuit: Circuit) -> Circuit:
    """The same circuit again, to try things on. As copy.deepcopy, in a fifth of the time."""
    copied = pickle.loads(pickle.dumps(circuit))
    assert isinstance(copied, Circuit)
    return copied


def seconds(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()


def rounded(at: float) -> float:
    """A time as a datetime can hold it: microseconds."""
    return round(at, 6)


# -- orders from Hypothesis --------------------------------------------------------------------

# Few and round times, so that deadlines often fall on the same instant.
TIMES = [0.25, 0.5, 1.0, 2.0, 5.0]
# Longer ones too, so that probes outlive the open time that follows.
PERMIT_TIMES = [0.5, 2.0, 10.0, 40.0]
# Neutral ones are the rarest, as in life.
OUTCOMES = [Outcome.FAILURE] * 2 + [Outcome.SUCCESS] * 2 + [Outcome.NEUTRAL]
CONFIGS: SearchStrategy[CircuitConfig] = st.builds(
    CircuitConfig,
    failure_threshold=st.integers(1, 4),
    success_threshold=st.integers(1, 4),
    open_timeout=st.sampled_from(TIMES),
    max_concurrent_requests=st.integers(1, 3),
    permit_timeout=st.sampled_from(PERMIT_TIMES),
    lost_permit=st.sampled_from(["failure", "ignore"]),
    consistency=st.sampled_from(["leased", "strict"]),
)

# How many generations ago a lease was granted; 0 is none of this circuit's, so many is enough.
AGES: SearchStrategy[int] = st.sampled_from([0, 0, 1, 1_000])
TALLIES: SearchStrategy[Totals] = st.builds(
    lambda durations, more, neutral, rejected: Totals(
        len(durations) + more, 0, neutral, rejected, durations, None
    ),
    st.lists(st.sampled_from(TIMES), max_size=3) | st.just([0.125] * 99),
    st.sampled_from([0, 0, 2]),
    st.integers(0, 2),
    st.integers(0, 3),
)

SEEN_BY_HYPOTHESIS: Counter[object] = Counter()


class CircuitMachine(RuleBasedStateMachine):
    """What can happen to a pair, as rules."""

    permits: Bundle[Permit] = Bundle("permits")

    @initialize(config=CONFIGS, begin=st.sampled_from(State))
    def declare(self, config: CircuitConfig, begin: State) -> None:
        self.pair = Pair(config)
        # Most walks are short, so many of them begin where it gets interesting.
        if begin is not State.CLOSED:
            self.pair.trip()
        if begin is State.HALF_OPEN:
            self.pair.advance_to_the_next_deadline()

    @rule(target=permits, attempts=st.integers(1, 3))
    def acquire(self, attempts: int) -> MultipleResults[Permit]:
        answers = [self.pair.ask() for _ in range(attempts)]
        return multiple(*(answer for answer in answers if answer is not None))

    @rule(
        permit=consumes(permits),
        outcome=st.sampled_from(OUTCOMES),
        duration=st.sampled_from(TIMES),
    )
    def report(self, permit: Permit, outcome: Outcome, duration: float) -> None:
        self.pair.report(permit, outcome, duration)

    @rule(permit=consumes(permits))
    def die(self, permit: Permit) -> None:
        self.pair.die([permit])

    @rule(age=AGES, outcome=st.sampled_from(OUTCOMES), duration=st.sampled_from(TIMES))
    def report_leased(self, age: int, outcome: Outcome, duration: float) -> None:
        self.pair.report_leased(max(0, self.pair.circuit.generation - age), outcome, duration)

    @rule(age=AGES, tally=TALLIES)
    def report_tally(self, age: int, tally: Totals) -> None:
        self.pair.report_tally(max(0, self.pair.circuit.generation - age), tally)

    @rule(outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=3))
    def call(self, outcomes: list[Outcome]) -> None:
        self.pair.call(*outcomes)

    @precondition(lambda self: self.pair.circuit.state is State.CLOSED)
    @rule()
    def trip(self) -> None:
        self.pair.trip()

    @rule(seconds=st.sampled_from(TIMES), oversleep=st.booleans())
    def advance(self, seconds: float, oversleep: bool) -> None:
        self.pair.advance(seconds, oversleep)

    @precondition(lambda self: self.pair.circuit.next_deadline is not None)
    @rule()
    def advance_to_the_next_deadline(self) -> None:
        self.pair.advance_to_the_next_deadline()

    @rule(config=st.none() | CONFIGS)
    def reset_or_configure(self, config: CircuitConfig | None) -> None:
        if config is None:
            self.pair.reset()
        else:
            self.pair.configure(config)

    @invariant()
    def the_circuit_is_what_its_history_makes_it(self) -> None:
        self.pair.check()

    def teardown(self) -> None:
        SEEN_BY_HYPOTHESIS.update(self.pair.summary())


TestCircuitAgainstItsHistory = CircuitMachine.TestCase
# One failure at a time, shrunk and not explained: with all three it would take minutes.
TestCircuitAgainstItsHistory.settings = settings(
    deadline=None,
    max_examples=50,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    report_multiple_bugs=False,
)


def test_half_of_what_hypothesis_tries_reaches_half_open() -> None:
    SEEN_BY_HYPOTHESIS.clear()
    run_state_machine_as_test(
        CircuitMachine,
        settings=settings(
            derandomize=True,  # the same examples every time: this test does not flicker
            database=None,
            deadline=None,
            max_examples=80,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
    seen = SEEN_BY_HYPOTHESIS
    assert seen["examples"] >= 80
    assert seen["examples that reach half-open"] >= 0.5 * seen["examples"]


# -- orders from a seed ------------------------------------------------------------------------

WALKS = 60
STEPS = 70


def walk(seed: int) -> Pair:
    """One long life of a circuit whose service is sometimes down."""
    rng = Random(seed)

    def config() -> CircuitConfig:
        return CircuitConfig(
            failure_threshold=rng.randint(1, 4),
            success_threshold=rng.randint(1, 4),
            open_timeout=rng.choice(TIMES),
            max_concurrent_requests=rng.randint(1, 3),
            permit_timeout=rng.choice(PERMIT_TIMES),
            lost_permit=rng.choice(["failure", "ignore"]),
        )

    def outcome() -> Outcome:
        return rng.choices(
            [Outcome.NEUTRAL, Outcome.FAILURE, Outcome.SUCCESS],
            [0.2, 0.7 if down else 0.1, 0.1 if down else 0.7],
        )[0]

    def lease() -> int:
        now = pair.circuit.generation
        return rng.choices([now, now - 1, 0], [0.7, 0.2, 0.1])[0]

    def tally() -> Totals:
        durations = [rng.choice(TIMES) for _ in range(rng.choice([0, 1, 3, 100]))]
        more = rng.choice([0, 7]) if len(durations) == 100 else 0
        neutral, rejected = rng.randint(0, 2), rng.randint(0, 2)
        return Totals(len(durations) + more, 0, neutral, rejected, durations, None)

    pair, held, down = Pair(config()), list[Permit](), False
    for _ in range(STEPS):
        if rng.random() < 0.15:
            down = not down
        dice = rng.random()
        if dice < 0.30:
            held += filter(None, [pair.ask() for _ in range(rng.randint(1, 3))])
        elif dice < 0.50 and held:
            permit = held.pop(rng.randrange(len(held)))
            pair.report(permit, outcome(), rng.choice(TIMES))
        elif dice < 0.60:
            pair.call(*[outcome() for _ in range(rng.randint(1, 4))])
        elif dice < 0.66:
            pair.report_leased(lease(), outcome(), rng.choice(TIMES))
        elif dice < 0.70:
            pair.report_tally(lease(), tally())
        elif dice < 0.82 and pair.circuit.next_deadline is not None:
            pair.advance_to_the_next_deadline()
        elif dice < 0.90:
            pair.advance(rng.choice(TIMES), oversleep=rng.random() < 0.5)
        elif dice < 0.93:
            pair.die([held.pop(rng.randrange(len(held))) for _ in range(min(2, len(held)))])
        elif dice < 0.96:
            pair.reset()
        else:
            pair.configure(config())
        pair.check()
    return pair


def seen_by_walk(seed: int) -> Counter[object]:
    try:
        return walk(seed).summary()
    except AssertionError as error:
        raise AssertionError(f"walk({seed}) parts from the model") from error


def test_long_walks_agree_with_the_model_and_see_everything_that_can_happen() -> None:
    seen: Counter[object] = Counter()
    for seed in range(WALKS):
        seen += seen_by_walk(seed)
    assert seen["examples that reach half-open"] >= 0.9 * WALKS
    late = (Verdict.STALE, Verdict.EXPIRED)
    leased = (Verdict.COUNTED, Verdict.STALE)
    everything: list[object] = [
        *TRANSITIONS,
        *(("admitted", state) for state in (State.CLOSED, State.HALF_OPEN)),
        *(("rejected", state) for state in (State.OPEN, State.HALF_OPEN)),
        *(("asked while an old probe hangs", state) for state in State),
        *((Verdict.COUNTED, how, State.CLOSED) for how in Outcome),
        *((Verdict.COUNTED, how, State.HALF_OPEN) for how in Outcome),
        *((verdict, how, state) for verdict in late for how in Outcome for state in State),
        *(("leased", verdict, how) for verdict in leased for how in Outcome),
        *(("died", "call", late) for late in ("in time", "late")),
        *(("died", "probe", late) for late in ("in time", "late", "overdue")),
        *(("tally", verdict, any_successes) for verdict in leased for any_successes in (0, 1)),
    ]
    assert {case: seen[case] for case in everything if seen[case] == 0} == {}


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


@pytest.mark.parametrize(
    ("lease", "state"), [(0, State.CLOSED), (1, State.OPEN), (2, State.CLOSED)]
)
def test_the_model_judges_leased_calls_of_the_current_closed_spell_only(
    lease: int, state: State
) -> None:
    config = CircuitConfig(failure_threshold=1)
    failure = Reported(T0, None, Outcome.FAILURE, 0.5, "E: m", lease)
    life = life_of(config, failure, Tallied(T0, 1, 3, 1, 2, [0.25]))
    assert life.state is state
    assert life.tallies == [Verdict.STALE if lease == 1 else Verdict.COUNTED]
    assert (life.attempts, life.rejected, life.total(Outcome.SUCCESS)) == (7, 2, 3)
    assert life.window == [0.25, 0.5]
    assert life.late == (4 if lease == 1 else 1)


@pytest.mark.parametrize("lost_permit", ["failure", "ignore"])
def test_the_model_loses_what_the_dead_held_once_and_re_opens_for_a_current_probe_only(
    lost_permit: Literal["failure", "ignore"],
) -> None:
    life = life_of(
        CircuitConfig(failure_threshold=1, lost_permit=lost_permit, permit_timeout=10.0),
        Asked(T0, 1),
        Asked(T0, 2),
        Died(T0, 1),
        Reported(T0, 2, Outcome.FAILURE, 0.5, "E: m"),
        Looked(T0 + 30),
        Asked(T0 + 30, 3),
        Died(T0 + 31, 3),
        Died(T0 + 31, 3),
    )
    assert life.lost == {1: T0, 3: T0 + 31}
    assert life.in_flight == {}
    causes = [cause for _, _, cause, _, _ in life.transitions]
    assert causes == ["failures", "timeout", *["lost_permit"] * (lost_permit == "failure")]
