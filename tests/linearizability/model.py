"""What one circuit answers, as the contract says it: values, and one function for each decision.

A circuit is a tuple, so that a search can keep any number of them, compare them and go back. There
is no clock: when a timer has fired is something that the checker finds out, and here is what
follows from it. Written from the contract and docs/protocol.md, not from circuit.py, so that the
two do not share their mistakes.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from switchgear.config import CircuitConfig
from switchgear.states import Outcome, State, Verdict


class Out(NamedTuple):
    """A permit that is out. `deadline` is None for one that was granted while closed."""

    permit: int
    generation: int
    deadline: float | None
    session: int


class Change(NamedTuple):
    """What subscribers are told of one step."""

    old: State
    new: State
    cause: str
    generation: int


class Totals(NamedTuple):
    """What has been counted, over all generations."""

    successes: int = 0
    failures: int = 0
    neutral: int = 0
    rejected: int = 0
    stale: int = 0  # reports that came too late to move anything
    lost: int = 0  # permits that did not come back
    silent: int = 0  # of those, what was not reported after all


class Circuit(NamedTuple):
    """One circuit between two decisions."""

    config: CircuitConfig
    state: State = State.CLOSED
    generation: int = 1
    successes: int = 0  # in a row, in this generation
    failures: int = 0
    totals: Totals = Totals()
    entries: tuple[int, int, int] = (0, 0, 0)  # into closed, open, half-open
    last_error: str | None = None
    out: tuple[Out, ...] = ()
    gone: tuple[Out, ...] = ()  # lost, and their holders may still report
    timers: tuple[float, ...] = ()  # when the manager meant to look at it again, whatever for

    @property
    def probes(self) -> list[Out]:
        """The probes that are out, of any generation; soonest lost first."""
        return sorted((one for one in self.out if one.deadline is not None), key=_deadline)

    @property
    def attempts(self) -> int:
        """As CircuitStats.total_requests."""
        totals = self.totals
        ended = totals.successes + totals.failures + totals.neutral + totals.rejected
        return ended + len(self.out) + totals.silent


class Step(NamedTuple):
    """A circuit after a decision, what was answered, and what changed."""

    circuit: Circuit
    answer: Out | State | Verdict | None
    changes: tuple[Change, ...] = ()


_PLACE: Final = {State.CLOSED: 0, State.OPEN: 1, State.HALF_OPEN: 2}


def _deadline(one: Out) -> float:
    return one.deadline or 0.0


def _to(circuit: Circuit, state: State, cause: str) -> tuple[Circuit, Change]:
    entries = list(circuit.entries)
    if state is not circuit.state:
        entries[_PLACE[state]] += 1
    after = circuit._replace(
        state=state,
        generation=circuit.generation + 1,
        successes=0,
        failures=0,
        entries=(entries[0], entries[1], entries[2]),
    )
    return after, Change(circuit.state, state, cause, after.generation)


def acquire(circuit: Circuit, permit: int, session: int, deadline: float) -> Step:
    """Somebody asks: the answer is a permit, or the state that rejects.

    Args:
        permit: The number that it gets, if it gets one.
        session: Whose it is then.
        deadline: When it counts as lost, if it is a probe's.
    """
    probe = circuit.state is State.HALF_OPEN
    if circuit.state is State.OPEN or (
        probe and len(circuit.probes) >= circuit.config.max_concurrent_requests
    ):
        totals = circuit.totals._replace(rejected=circuit.totals.rejected + 1)
        return Step(circuit._replace(totals=totals), circuit.state)
    one = Out(permit, circuit.generation, deadline if probe else None, session)
    timers = (*circuit.timers, deadline) if probe else circuit.timers
    return Step(circuit._replace(out=(*circuit.out, one), timers=timers), one)


def report(circuit: Circuit, permit: int, outcome: Outcome, error: str | None) -> Step | None:
    """A permit comes back; None: it was not out."""
    for one in circuit.out:
        if one.permit == permit:
            left = tuple(other for other in circuit.out if other is not one)
            current = one.generation == circuit.generation
            return _take(circuit._replace(out=left), current, outcome, error)
    for one in circuit.gone:
        if one.permit == permit:
            left = tuple(other for other in circuit.gone if other is not one)
            totals = circuit.totals._replace(silent=circuit.totals.silent - 1)
            taken = _take(circuit._replace(gone=left, totals=totals), False, outcome, error)
            return taken._replace(answer=Verdict.EXPIRED)
    return None


def report_leased(circuit: Circuit, generation: int, outcome: Outcome, error: str | None) -> Step:
    """A call comes back that ran under the lease of a generation."""
    return _take(circuit, _leases(circuit, generation), outcome, error)


def _leases(circuit: Circuit, generation: int) -> bool:
    return circuit.state is State.CLOSED and circuit.generation == generation


def _take(circuit: Circuit, current: bool, outcome: Outcome, error: str | None) -> Step:
    totals = circuit.totals
    if outcome is Outcome.SUCCESS:
        totals = totals._replace(successes=totals.successes + 1)
    elif outcome is Outcome.FAILURE:
        totals = totals._replace(failures=totals.failures + 1)
        circuit = circuit._replace(last_error=error)
    else:
        totals = totals._replace(neutral=totals.neutral + 1)
    if not current:
        totals = totals._replace(stale=totals.stale + 1)
        return Step(circuit._replace(totals=totals), Verdict.STALE)
    circuit = circuit._replace(totals=totals)
    half_open = circuit.state is State.HALF_OPEN
    if outcome is Outcome.SUCCESS:
        circuit = circuit._replace(successes=circuit.successes + 1, failures=0)
        if half_open and circuit.successes >= circuit.config.success_threshold:
            circuit, change = _to(circuit, State.CLOSED, "successes")
            return Step(circuit, Verdict.COUNTED, (change,))
    elif outcome is Outcome.FAILURE:
        circuit = circuit._replace(failures=circuit.failures + 1, successes=0)
        if half_open or circuit.failures >= circuit.config.failure_threshold:
            circuit, change = _to(circuit, State.OPEN, "failures")
            return Step(circuit, Verdict.COUNTED, (change,))
    return Step(circuit, Verdict.COUNTED)


def tally(circuit: Circuit, generation: int, successes: int, neutral: int, rejected: int) -> Step:
    """Many leased calls come back at once, or were rejected."""
    totals = circuit.totals
    current = _leases(circuit, generation)
    totals = totals._replace(
        successes=totals.successes + successes,
        neutral=totals.neutral + neutral,
        rejected=totals.rejected + rejected,
        stale=totals.stale + (0 if current else successes + neutral),
    )
    circuit = circuit._replace(totals=totals)
    if current and successes:
        circuit = circuit._replace(successes=circuit.successes + successes, failures=0)
    return Step(circuit, Verdict.COUNTED if current else Verdict.STALE)


def time_out(circuit: Circuit) -> Step:
    """An open circuit has been so for long enough."""
    circuit, change = _to(circuit, State.HALF_OPEN, "timeout")
    return Step(circuit, None, (change,))


def lose(circuit: Circuit, lost: tuple[Out, ...]) -> Step:
    """These permits do not come back: held too long, or their holder has died."""
    changes: tuple[Change, ...] = ()
    for one in lost:
        totals = circuit.totals
        totals = totals._replace(lost=totals.lost + 1, silent=totals.silent + 1)
        left = tuple(other for other in circuit.out if other is not one)
        circuit = circuit._replace(out=left, gone=(*circuit.gone, one), totals=totals)
        counts = one.deadline is not None and one.generation == circuit.generation
        if counts and circuit.config.lost_permit == "failure":
            circuit, change = _to(circuit, State.OPEN, "lost_permit")
            changes = (*changes, change)
    return Step(circuit, None, changes)


def bury(circuit: Circuit, one: Out) -> Step:
    """The holder of a permit has died, so it is lost, if it was not before."""
    if one in circuit.out:
        circuit, _, changes = lose(circuit, (one,))
        return Step(_forget(circuit, one), None, changes)
    return Step(_forget(circuit, one), None)


def _forget(circuit: Circuit, one: Out) -> Circuit:
    """It will not be reported any more."""
    return circuit._replace(gone=tuple(other for other in circuit.gone if other is not one))


def reset(circuit: Circuit) -> Step:
    """An operator closes it."""
    circuit, change = _to(circuit, State.CLOSED, "reset")
    return Step(circuit, None, (change,))


def configure(circuit: Circuit, config: CircuitConfig | None) -> Step:
    """It is declared again."""
    if config is None or config == circuit.config:
        return Step(circuit, None)
    change = Change(circuit.state, circuit.state, "config", circuit.generation)
    return Step(circuit._replace(config=config), None, (change,))
