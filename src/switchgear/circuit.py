"""One circuit: its state machine, its permits and its numbers.

Every method takes the time and returns a value. No clock, no lock, no socket, no thread. `now` is
always seconds on one monotonic clock and never less than in the call before. Whoever owns a circuit
calls `tick` when `next_deadline` has come and before any other call at a later time, and collects
what changed with `take_transitions`.

The state machine is Nygard's (Release It!, 2nd ed., ch. 5); the generation that fences late
results is sony/gobreaker's idea; that a probe's permit has a deadline answers the most reported
defect of breakers anywhere, the half-open circuit that waits for ever for a lost probe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Final, NamedTuple, overload

from .config import CircuitConfig
from .states import Outcome, State, Verdict
from .stats import CircuitStats, LatencyWindow, MetricsSnapshot

# All of the machine: (state, cause) -> the state it moves to. What is not here moves nothing.
TRANSITIONS: Final[Mapping[tuple[State, str], State]] = {
    (State.CLOSED, "failures"): State.OPEN,  # failure_threshold in a row
    (State.OPEN, "timeout"): State.HALF_OPEN,  # open_timeout has passed
    (State.HALF_OPEN, "successes"): State.CLOSED,  # success_threshold in a row
    (State.HALF_OPEN, "failures"): State.OPEN,  # the first one
    (State.HALF_OPEN, "lost_permit"): State.OPEN,  # unless lost_permit="ignore"
    (State.CLOSED, "reset"): State.CLOSED,
    (State.OPEN, "reset"): State.CLOSED,
    (State.HALF_OPEN, "reset"): State.CLOSED,
}
# Every reason for an event: those above, and a change of configuration, which moves no state.
CAUSES: Final = frozenset({"config", *(cause for _, cause in TRANSITIONS)})


class Permit(NamedTuple):
    """The right to run one call, as the circuit that issued it keeps it.

    Attributes:
        id: Unique in the life of a manager.
        generation: The circuit's when it was issued.
        deadline: When it counts as lost, on the circuit's clock; None for a call admitted while
            closed, which may take as long as it likes.
    """

    id: int
    generation: int
    deadline: float | None


class Rejection(NamedTuple):
    """Why a call may not run: the state, seconds until a probe may (if known), the last failure."""

    state: State
    retry_after: float | None
    last_error: str | None


class Totals(NamedTuple):
    """What calls came to that were decided without this circuit: by a client, for itself.

    Attributes:
        successes: How many.
        failures: How many.
        neutral: How many.
        rejected: How many.
        durations: Seconds that the last of those took that were executed, oldest first.
        last_error: What the last failure was.
    """

    successes: int
    failures: int
    neutral: int
    rejected: int
    durations: Sequence[float]
    last_error: str | None

    @classmethod
    def of(cls, outcome: Outcome, duration: float, error: str | None) -> Totals:
        """Those of one call."""
        success, failure, neutral = (int(outcome is each) for each in Outcome)
        durations = () if neutral else (duration,)
        return cls(success, failure, neutral, 0, durations, error)


class Standing(NamedTuple):
    """Where a circuit stands: what only a transition or a new configuration changes.

    Instants are on the circuit's clock.
    """

    config: CircuitConfig
    state: State
    generation: int
    half_open_at: float | None  # set while open, and only then
    state_changed_at: float
    entries: tuple[int, int, int]  # how often it has become closed, open, half-open


class Counts(NamedTuple):
    """What a circuit has counted so far. Instants are on the circuit's clock."""

    generation: int  # that the consecutive counts are of
    consecutive_successes: int
    consecutive_failures: int
    totals: Totals
    permits_lost: int
    stale_reports: int
    last_error_at: float | None


class Transition(NamedTuple):
    """One step of a circuit. `old is new` only for the reset of a circuit that was closed."""

    old: State
    new: State
    cause: str
    generation: int
    at: float


class Circuit:
    """The state machine of one named service."""

    __slots__ = (
        "_entries",
        "_in_flight",
        "_last_error_at",
        "_permits_lost",
        "_probes",
        "_silent",
        "_stale_reports",
        "_state_changed_at",
        "_total_rejected",
        "_totals",
        "_transitions",
        "_window",
        "config",
        "consecutive_failures",
        "consecutive_successes",
        "generation",
        "half_open_at",
        "last_error",
        "name",
        "state",
    )

    def __init__(self, name: str, config: CircuitConfig, now: float) -> None:
        self.name = name
        self.config = config
        self.state = State.CLOSED
        self.generation = 1
        self.consecutive_successes = 0
        self.consecutive_failures = 0
        self.half_open_at: float | None = None  # seconds; set while open, and only then
        self._probes: dict[int, Permit] = {}  # by permit id, of every generation
        self._in_flight = 0  # probes included
        self._totals = [0, 0, 0]  # by Outcome
        self._total_rejected = 0
        self._permits_lost = 0
        self._silent = 0  # lost, and not reported after all
        self._stale_reports = 0
        self._entries = {State.CLOSED: 0, State.OPEN: 0, State.HALF_OPEN: 0}
        self.last_error: str | None = None
        self._last_error_at: float | None = None
        self._state_changed_at = now
        self._window = LatencyWindow()
        self._transitions: list[Transition] = []

    @classmethod
    def restore(cls, name: str, standing: Standing, counts: Counts | None) -> Circuit:
        """Go on as a circuit that ended without a word.

        No permit is out: who holds one still may report, to a generation that may have passed.
        An open circuit resumes with its remaining time.

        Args:
            name: Its name.
            standing: What `standing` was, the last time it changed.
            counts: What `counts` was, then or somewhat earlier; consecutive counts of an earlier
                generation have passed with it.
        """
        circuit = cls(name, standing.config, standing.state_changed_at)
        circuit.state = standing.state
        circuit.generation = standing.generation
        circuit.half_open_at = standing.half_open_at
        circuit._entries = dict(zip(State, standing.entries, strict=True))
        if counts is not None:
            circuit._resume_counts(counts)
        return circuit

    def _resume_counts(self, counts: Counts) -> None:
        totals = counts.totals
        self._totals = [totals.successes, totals.failures, totals.neutral]
        self._total_rejected = totals.rejected
        self._window.extend(totals.durations)
        self.last_error, self._last_error_at = totals.last_error, counts.last_error_at
        self._permits_lost = counts.permits_lost
        self._stale_reports = counts.stale_reports
        if counts.generation == self.generation:
            self.consecutive_successes = counts.consecutive_successes
            self.consecutive_failures = counts.consecutive_failures

    # -- calls -------------------------------------------------------------------------------------

    def acquire(self, permit_id: int, now: float) -> Permit | Rejection:
        """Admit or reject one call.

        Half-open admits while fewer than `max_concurrent_requests` probes are in flight, whatever
        generation they are of: a probe that still hangs from the last half-open time is still a
        call that the service has to bear.

        Args:
            permit_id: The id that a permit gets; never used before.
            now: Seconds.

        Raises:
            Nothing.
        """
        if self.state is State.CLOSED:
            self._in_flight += 1
            return Permit(permit_id, self.generation, None)
        if (
            self.state is State.HALF_OPEN
            and len(self._probes) < self.config.max_concurrent_requests
        ):
            self._in_flight += 1
            probe = Permit(permit_id, self.generation, now + self.config.permit_timeout)
            self._probes[permit_id] = probe
            return probe
        self._total_rejected += 1
        return Rejection(self.state, self.retry_after(now), self.last_error)

    def report(
        self,
        permit: Permit,
        outcome: Outcome,
        now: float,
        duration: float = 0.0,
        error: str | None = None,
    ) -> Verdict:
        """Take the outcome of one call and move the circuit if it is due.

        A permit from an earlier generation is counted in the totals and moves nothing: a late
        success never closes, a late failure never opens nor prolongs.

        Args:
            permit: What acquire() returned; each is reported at most once, its owner sees to that.
            outcome: How the call ended.
            now: Seconds.
            duration: How long the call took, seconds.
            error: For a failure, what it was.

        Returns:
            COUNTED, STALE (an earlier generation) or EXPIRED (held past permit_timeout).

        Raises:
            Nothing. Every permit has an answer.
        """
        if permit.deadline is not None and self._probes.pop(permit.id, None) is None:
            self._silent -= 1
            self._stale_reports += 1
            self._count(outcome, now, duration, error)
            return Verdict.EXPIRED
        self._in_flight -= 1
        self._count(outcome, now, duration, error)
        if permit.generation != self.generation:
            self._stale_reports += 1
            return Verdict.STALE
        self._judge(outcome, now)
        return Verdict.COUNTED

    def report_leased(
        self,
        generation: int | None,
        outcome: Outcome,
        now: float,
        duration: float = 0.0,
        error: str | None = None,
    ) -> Verdict:
        """Take the outcome of a call that ran under a lease, which is a permit for any number.

        Args:
            generation: The lease's; None for one of generations that are counted anew since.
            outcome: How the call ended.
            now: Seconds.
            duration: How long the call took, seconds.
            error: For a failure, what it was.

        Returns:
            COUNTED or STALE.

        Raises:
            Nothing.
        """
        self._count(outcome, now, duration, error)
        if not self._leases(generation):
            self._stale_reports += 1
            return Verdict.STALE
        self._judge(outcome, now)
        return Verdict.COUNTED

    def report_totals(self, totals: Totals, now: float, generation: int | None = None) -> Verdict:
        """Take the outcomes of many calls, at the cost of one.

        Args:
            totals: What they came to. Failures that are to open the circuit are told one by one.
            now: Seconds.
            generation: Of the lease that they ran under, as above; None without one.

        Returns:
            COUNTED or STALE.
        """
        self._totals[Outcome.SUCCESS] += totals.successes
        self._totals[Outcome.FAILURE] += totals.failures
        self._totals[Outcome.NEUTRAL] += totals.neutral
        self._total_rejected += totals.rejected
        self._window.extend(totals.durations)
        if totals.failures:
            self.last_error = totals.last_error
            self._last_error_at = now
        if not self._leases(generation):
            self._stale_reports += totals.successes + totals.failures + totals.neutral
            return Verdict.STALE
        if totals.successes:
            self.consecutive_successes += totals.successes
            self.consecutive_failures = 0
        return Verdict.COUNTED

    def _leases(self, generation: int | None) -> bool:
        # Only a closed circuit is leased; who says otherwise must not pass for a probe.
        return generation == self.generation and self.state is State.CLOSED

    def _count(self, outcome: Outcome, now: float, duration: float, error: str | None) -> None:
        self._totals[outcome] += 1
        if outcome is Outcome.NEUTRAL:
            return
        self._window.add(duration)
        if outcome is Outcome.FAILURE:
            self.last_error = error
            self._last_error_at = now

    def _judge(self, outcome: Outcome, now: float) -> None:
        if outcome is Outcome.SUCCESS:
            self.consecutive_successes += 1
            self.consecutive_failures = 0
            if (
                self.state is State.HALF_OPEN
                and self.consecutive_successes >= self.config.success_threshold
            ):
                self._to("successes", now)
        elif outcome is Outcome.FAILURE:
            self.consecutive_failures += 1
            self.consecutive_successes = 0
            # At least, not exactly: a new config may have lowered the threshold below the count.
            if (
                self.state is State.HALF_OPEN
                or self.consecutive_failures >= self.config.failure_threshold
            ):
                self._to("failures", now)

    # -- time and operators ------------------------------------------------------------------------

    @property
    def next_deadline(self) -> float | None:
        """When `tick` has something to do next, or None. Linear in the probes in flight."""
        if not self._probes:
            return self.half_open_at
        deadlines = [p.deadline for p in self._probes.values() if p.deadline is not None]
        if self.half_open_at is not None:
            deadlines.append(self.half_open_at)
        return min(deadlines, default=None)

    def tick(self, now: float) -> None:
        """Let time pass: an open circuit turns half-open, and permits held too long are lost.

        A lost permit is no outcome: it is in no total but `permits_lost`, because the call may
        still report, late. If it is of this generation, it re-opens the circuit, or not, as
        `lost_permit` says.
        """
        if self.half_open_at is not None and now >= self.half_open_at:
            self._to("timeout", now)
        for probe in list(self._probes.values()):
            if probe.deadline is not None and probe.deadline <= now:
                self._lose(probe, now)

    def abandon(self, permit: Permit, now: float) -> None:
        """Take back a permit whose holder has died: it is lost, at once.

        Args:
            permit: What acquire() returned, neither reported nor abandoned yet.
            now: Seconds.
        """
        if permit.deadline is None or permit.id in self._probes:
            self._lose(permit, now)

    def _lose(self, permit: Permit, now: float) -> None:
        self._in_flight -= 1
        self._silent += 1
        self._permits_lost += 1
        if self._probes.pop(permit.id, None) is None:
            return  # admitted while closed: that nobody hears of it says nothing of the service
        if permit.generation == self.generation and self.config.lost_permit == "failure":
            self._to("lost_permit", now)

    def reset(self, now: float) -> None:
        """Close the circuit from anywhere; consecutive counts go to zero, totals stay.

        A new generation begins even if the circuit was closed, so what is in flight cannot trip it.
        """
        self._to("reset", now)

    def resume_open(self, half_open_at: float, last_error: str | None) -> None:
        """Go on as a circuit that somebody else knew to be open.

        Args:
            half_open_at: When it turns half-open, seconds on our clock.
            last_error: Its last failure.
        """
        self.state = State.OPEN
        self.half_open_at = half_open_at
        self.last_error = last_error

    def configure(self, config: CircuitConfig) -> bool:
        """Replace the configuration and say whether it is another one. Nothing else moves.

        A deadline that is running keeps its time; the next one is set by the new values.
        """
        changed = config != self.config
        self.config = config
        return changed

    @property
    def changed(self) -> bool:
        """There are transitions to be taken."""
        return bool(self._transitions)

    def take_transitions(self) -> list[Transition]:
        """Hand over the transitions since the last time, oldest first."""
        taken, self._transitions = self._transitions, []
        return taken

    def _to(self, cause: str, now: float) -> None:
        old, new = self.state, TRANSITIONS[self.state, cause]
        if new is not old:
            self._entries[new] += 1
            self._state_changed_at = now
        self.state = new
        self.generation += 1
        self.consecutive_successes = 0
        self.consecutive_failures = 0
        self.half_open_at = now + self.config.open_timeout if new is State.OPEN else None
        self._transitions.append(Transition(old, new, cause, self.generation, now))

    # -- reading: moves nothing --------------------------------------------------------------------

    def retry_after(self, now: float) -> float | None:
        """Seconds until an open circuit turns half-open; None in the other states."""
        return None if self.half_open_at is None else max(0.0, self.half_open_at - now)

    def totals(self) -> Totals:
        """What all calls came to so far; those in flight are in none of it."""
        successes, failures, neutral = self._totals
        return Totals(
            successes,
            failures,
            neutral,
            self._total_rejected,
            self._window.durations(),
            self.last_error,
        )

    def take_totals(self) -> Totals:
        """Hand over what `totals` says, and count from zero."""
        totals = self.totals()
        self._totals = [0, 0, 0]
        self._total_rejected = 0
        self._window = LatencyWindow()
        return totals

    def standing(self) -> Standing:
        """What a successor must know before anybody is told what happened."""
        closed, opened, half_opened = (self._entries[state] for state in State)
        return Standing(
            self.config,
            self.state,
            self.generation,
            self.half_open_at,
            self._state_changed_at,
            (closed, opened, half_opened),
        )

    def counts(self) -> Counts:
        """What a successor must know before a report is acknowledged."""
        return Counts(
            self.generation,
            self.consecutive_successes,
            self.consecutive_failures,
            self.totals(),
            self._permits_lost,
            self._stale_reports,
            self._last_error_at,
        )

    def stats(self, now: float, utc_offset: float) -> CircuitStats:
        """Take a snapshot.

        Args:
            now: Seconds.
            utc_offset: What to add to a time on the circuit's clock to get seconds of Unix time.
        """
        successes, failures, neutral = self._totals
        ended = successes + failures + neutral + self._total_rejected
        return CircuitStats(
            name=self.name,
            state=self.state,
            total_requests=ended + self._in_flight + self._silent,
            total_successes=successes,
            total_failures=failures,
            total_neutral=neutral,
            total_rejected=self._total_rejected,
            consecutive_successes=self.consecutive_successes,
            consecutive_failures=self.consecutive_failures,
            in_flight=self._in_flight,
            last_error=self.last_error,
            last_error_at=_utc(self._last_error_at, utc_offset),
            state_changed_at=_utc(self._state_changed_at, utc_offset),
            retry_after=self.retry_after(now),
            generation=self.generation,
            config=self.config,
        )

    def metrics(self) -> MetricsSnapshot:
        """Take a snapshot; latencies in seconds."""
        successes, failures, _neutral = self._totals
        latencies = self._window.latencies()
        return MetricsSnapshot(
            requests_total=successes + failures,
            requests_successful=successes,
            requests_failed=failures,
            requests_rejected=self._total_rejected,
            permits_lost=self._permits_lost,
            stale_reports=self._stale_reports,
            transitions=dict(self._entries),
            avg_latency=latencies.avg_latency,
            min_latency=latencies.min_latency,
            max_latency=latencies.max_latency,
            p50_latency=latencies.p50_latency,
            p95_latency=latencies.p95_latency,
            p99_latency=latencies.p99_latency,
        )

    def check(self) -> None:
        """Assert what is true of a circuit between any two calls. For tests."""
        assert (self.half_open_at is not None) == (self.state is State.OPEN)
        assert len(self._probes) <= self._in_flight
        assert self._silent >= 0
        assert all(probe.generation <= self.generation for probe in self._probes.values())
        assert self.state is State.CLOSED or self.consecutive_failures == 0
        assert self.state is not State.OPEN or self.consecutive_successes == 0


@overload
def _utc(at: float, utc_offset: float) -> datetime: ...
@overload
def _utc(at: None, utc_offset: float) -> None: ...
def _utc(at: float | None, utc_offset: float) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at + utc_offset, timezone.utc)
