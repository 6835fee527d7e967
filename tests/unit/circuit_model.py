"""What a circuit should be, derived from all that ever happened to it.

`History` keeps every event and nothing else. Whatever one asks, it goes through the events from the
first one on and counts: the state is the last of the spells that the events make, a run of failures
is read off the end of the list of outcomes, what is in flight is what was admitted and has not come
back. Slow, and nothing to keep in step with anything else.

Written from the contract, not from circuit.py, so that the two do not share their mistakes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from typing import NamedTuple

from switchgear.config import CircuitConfig
from switchgear.states import Outcome, State, Verdict

# -- what can happen ---------------------------------------------------------------------------


class Asked(NamedTuple):
    """Somebody wanted to make a call."""

    at: float
    call: int


class Reported(NamedTuple):
    """The call came back. `call` is None for one that nobody asked for, because it was leased."""

    at: float
    call: int | None
    outcome: Outcome
    duration: float | None  # None: nobody knows
    error: str | None
    lease: int = 0  # its generation; none of this circuit's for one that an earlier manager gave


class Tallied(NamedTuple):
    """Many leased calls came back, or were rejected. Who counted them kept the last durations."""

    at: float
    lease: int
    successes: int
    neutral: int
    rejected: int
    durations: list[float]


class Died(NamedTuple):
    """Whoever made the call has died, and nothing will be heard of it any more."""

    at: float
    call: int


class Looked(NamedTuple):
    """The owner looked at the clock: only now can a timer be noticed."""

    at: float


class Reset(NamedTuple):
    """An operator closed the circuit."""

    at: float


class Configured(NamedTuple):
    """The circuit was declared, first or again."""

    at: float
    config: CircuitConfig


Event = Asked | Reported | Tallied | Died | Looked | Reset | Configured


# -- what follows from it ----------------------------------------------------------------------


class Spell(NamedTuple):
    """The time from one change to the next. The n-th spell is generation n."""

    state: State
    since: float
    cause: str
    until: float | None  # for an open circuit, the end of its time


class Call(NamedTuple):
    """A call that was admitted, in which spell, and by when it must be back."""

    generation: int
    due: float | None


class Ending(NamedTuple):
    """A report and what became of it."""

    verdict: Verdict
    generation: int | None  # the spell it had a say in
    report: Reported


@dataclass
class Life:
    """Everything known after a number of events. Lists that only grow, and questions to them."""

    config: CircuitConfig
    spells: list[Spell]
    asked: int = 0
    rejected_elsewhere: int = 0  # under leases
    tallies: list[Verdict] = field(default_factory=list)
    admitted: dict[int, Call] = field(default_factory=dict)
    lost: dict[int, float] = field(default_factory=dict)  # by call, when it was noticed
    endings: list[Ending] = field(default_factory=list)

    # The circuit

    @property
    def state(self) -> State:
        return self.spells[-1].state

    @property
    def generation(self) -> int:
        return len(self.spells)

    @property
    def transitions(self) -> list[tuple[State, State, str, int, float]]:
        return [
            (old.state, new.state, new.cause, generation, new.since)
            for generation, (old, new) in enumerate(pairwise(self.spells), start=2)
        ]

    @property
    def entries(self) -> dict[State, int]:
        into = Counter(new for old, new, *_ in self.transitions if old is not new)
        return {state: into[state] for state in State}

    @property
    def state_changed_at(self) -> float:
        changes = [at for old, new, _cause, _generation, at in self.transitions if old is not new]
        return changes[-1] if changes else self.spells[0].since

    def retry_after(self, now: float) -> float | None:
        until = self.spells[-1].until
        return None if until is None else max(0.0, until - now)

    @property
    def next_deadline(self) -> float | None:
        dues = [call.due for call in self.in_flight.values()] + [self.spells[-1].until]
        return min((due for due in dues if due is not None), default=None)

    # The calls

    @property
    def in_flight(self) -> dict[int, Call]:
        back = {ending.report.call for ending in self.endings} | set(self.lost)
        return {number: call for number, call in self.admitted.items() if number not in back}

    @property
    def probes(self) -> dict[int, Call]:
        return {number: call for number, call in self.in_flight.items() if call.due is not None}

    @property
    def admits(self) -> bool:
        if self.state is State.HALF_OPEN:
            return len(self.probes) < self.config.max_concurrent_requests
        return self.state is State.CLOSED

    @property
    def rejected(self) -> int:
        return self.asked - len(self.admitted) + self.rejected_elsewhere

    @property
    def attempts(self) -> int:
        leased = sum(1 for ending in self.endings if ending.report.call is None)
        return self.asked + leased + self.rejected_elsewhere

    # The outcomes

    def in_a_row(self, outcome: Outcome) -> int:
        """How many of these the current spell ends with so far."""
        current = self.generation
        said = (
            ending.report.outcome
            for ending in reversed(self.endings)
            if ending.generation == current and ending.report.outcome is not Outcome.NEUTRAL
        )
        return sum(1 for _ in takewhile(lambda other: other is outcome, said))

    def total(self, outcome: Outcome) -> int:
        return sum(1 for ending in self.endings if ending.report.outcome is outcome)

    @property
    def late(self) -> int:
        return sum(1 for ending in self.endings if ending.verdict is not Verdict.COUNTED)

    @property
    def last_failure(self) -> Reported | None:
        failures = (e.report for e in reversed(self.endings) if e.report.outcome is Outcome.FAILURE)
        return next(failures, None)

    @property
    def window(self) -> list[float]:
        """The durations of the last 100 executed calls of which they are known, sorted."""
        executed = [
            ending.report.duration
            for ending in self.endings
            if ending.report.outcome is not Outcome.NEUTRAL and ending.report.duration is not None
        ]
        return sorted(executed[-100:])

    # The rules

    def live_through(self, event: Event) -> None:
        """Add to the lists what follows from one more event."""
        match event:
            case Asked(at, call):
                if self.admits:
                    is_probe = self.state is State.HALF_OPEN
                    due = at + self.config.permit_timeout if is_probe else None
                    self.admitted[call] = Call(self.generation, due)
                self.asked += 1
            case Reported():
                self._hear(event)
            case Tallied():
                self._hear_all(event)
            case Died(at, call):
                if call in self.in_flight:
                    self._lose([call], at)
            case Looked(at):
                self._notice(at)
            case Reset(at):
                self._begin(State.CLOSED, "reset", at)
            case Configured(_, config):
                self.config = config

    def _hear(self, report: Reported) -> None:
        if report.call in self.lost:
            self.endings.append(Ending(Verdict.EXPIRED, None, report))
        elif not self._is_current(report):
            self.endings.append(Ending(Verdict.STALE, None, report))
        else:
            self.endings.append(Ending(Verdict.COUNTED, self.generation, report))
            for state, cause in self._follows(report.outcome):
                self._begin(state, cause, report.at)

    def _is_current(self, report: Reported) -> bool:
        if report.call is not None:
            return self.admitted[report.call].generation == self.generation
        return self.is_leased(report.lease)

    def is_leased(self, generation: int) -> bool:
        """Calls may run without asking in this spell, and it is the current one."""
        return generation == self.generation and self.state is State.CLOSED

    def _hear_all(self, tally: Tallied) -> None:
        # Nothing of it can move a circuit, so one by one is as good as together.
        self.tallies.append(Verdict.COUNTED if self.is_leased(tally.lease) else Verdict.STALE)
        self.rejected_elsewhere += tally.rejected
        unknown = [None] * (tally.successes - len(tally.durations))
        for duration in (*unknown, *tally.durations):
            self._hear(Reported(tally.at, None, Outcome.SUCCESS, duration, None, tally.lease))
        for _ in range(tally.neutral):
            self._hear(Reported(tally.at, None, Outcome.NEUTRAL, None, None, tally.lease))

    def _follows(self, outcome: Outcome) -> Iterator[tuple[State, str]]:
        match self.state, outcome:
            case State.CLOSED, Outcome.FAILURE:
                if self.in_a_row(Outcome.FAILURE) >= self.config.failure_threshold:
                    yield State.OPEN, "failures"
            case State.HALF_OPEN, Outcome.FAILURE:
                yield State.OPEN, "failures"
            case State.HALF_OPEN, Outcome.SUCCESS:
                if self.in_a_row(Outcome.SUCCESS) >= self.config.success_threshold:
                    yield State.CLOSED, "successes"

    def _notice(self, at: float) -> None:
        overdue = [n for n, call in self.probes.items() if call.due is not None and call.due <= at]
        until = self.spells[-1].until
        if until is not None and until <= at:
            self._begin(State.HALF_OPEN, "timeout", at)
        self._lose(overdue, at)

    def _lose(self, calls: list[int], at: float) -> None:
        current = [call for call in calls if self.admitted[call].generation == self.generation]
        self.lost.update(dict.fromkeys(calls, at))
        if current and self.config.lost_permit == "failure" and self.state is State.HALF_OPEN:
            self._begin(State.OPEN, "lost_permit", at)

    def _begin(self, state: State, cause: str, at: float) -> None:
        until = at + self.config.open_timeout if state is State.OPEN else None
        self.spells.append(Spell(state, at, cause, until))


class History:
    """All that ever happened to one circuit."""

    def __init__(self, declared: Configured) -> None:
        self._declared = declared
        self._events: list[Event] = []
        self._life: Life | None = None

    def add(self, event: Event) -> Life:
        """Remember one more event and say what the circuit is now."""
        self._events.append(event)
        self._life = None
        return self.life

    @property
    def life(self) -> Life:
        if self._life is None:
            self._life = replay(self._declared, self._events)
        return self._life


def replay(declared: Configured, events: Iterable[Event]) -> Life:
    """Live through the events from the first one on."""
    life = Life(declared.config, [Spell(State.CLOSED, declared.at, "declared", None)])
    for event in events:
        life.live_through(event)
    return life
