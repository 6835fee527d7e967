"""A manager as the contract has it, to compare the real one with, message by message.

Written from the contract and the protocol's document, not from the package's code: of that it uses
the messages and the names of states and outcomes. It is told what the real manager was told and
what was written down, and says what must have come of it. Times are seconds on the manager's clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

from switchgear.config import CircuitConfig
from switchgear.states import Outcome, State, Verdict
from switchgear.wire import Batch, Missed, Report

KEPT: Final = 16  # changes of each circuit that survive
TIMED: Final = 100  # calls that latencies are of


class Change(NamedTuple):
    """One step of a circuit: an Event, without its number and its time of day."""

    name: str
    old: State
    new: State
    cause: str
    generation: int


class Probe(NamedTuple):
    """A permit of a half-open circuit."""

    generation: int
    due: float


class Circuit:
    """One circuit, as a table of what follows from what."""

    __slots__ = (
        "changes",
        "config",
        "durations",
        "entries",
        "failures",
        "failures_in_a_row",
        "generation",
        "in_flight",
        "last_error",
        "lost",
        "name",
        "neutral",
        "opens_until",
        "probes",
        "rejected",
        "stale",
        "state",
        "successes",
        "successes_in_a_row",
    )

    def __init__(self, name: str, config: CircuitConfig) -> None:
        self.name = name
        self.config = config
        self.state = State.CLOSED
        self.generation = 1
        self.opens_until: float | None = None
        self.failures_in_a_row = self.successes_in_a_row = 0
        self.successes = self.failures = self.neutral = self.rejected = 0
        self.lost = self.stale = 0
        self.in_flight = 0
        self.last_error: str | None = None
        self.durations: tuple[int, ...] = ()  # of the last calls, microseconds
        self.entries = dict.fromkeys(State, 0)
        self.probes: dict[int, Probe] = {}
        self.changes: list[Change] = []

    def copy(self) -> Circuit:
        """As it is now, with nothing in flight."""
        other = Circuit(self.name, self.config)
        for field in ("state", "generation", "opens_until", *COUNTED):
            setattr(other, field, getattr(self, field))
        other.entries = dict(self.entries)
        return other

    # -- what happens to it ------------------------------------------------------------------------

    @property
    def admits(self) -> bool:
        """It would let a call through."""
        if self.state is State.HALF_OPEN:
            return len(self.probes) < self.config.max_concurrent_requests
        return self.state is State.CLOSED

    def admit(self, permit: int, now: float) -> float | None:
        """Let a call through; a probe has to be back by the time that is returned."""
        self.in_flight += 1
        if self.state is State.CLOSED:
            return None
        due = now + self.config.permit_timeout
        self.probes[permit] = Probe(self.generation, due)
        return due

    def come_back(
        self,
        permit: int,
        generation: int,
        probe: bool,
        outcome: Outcome,
        error: str | None,
        duration: int,
        now: float,
    ) -> Verdict:
        """A permit of this manager's is reported."""
        if probe and permit not in self.probes:
            self.stale += 1
            self._count(outcome, error, duration)
            return Verdict.EXPIRED
        self.probes.pop(permit, None)
        self.in_flight -= 1
        return self._judge(generation == self.generation, outcome, error, duration, now)

    def come_back_leased(
        self, generation: int, outcome: Outcome, error: str | None, duration: int, now: float
    ) -> Verdict:
        """A call is reported that this manager has not admitted itself."""
        current = generation == self.generation and self.state is State.CLOSED
        return self._judge(current, outcome, error, duration, now)

    def _judge(
        self, current: bool, outcome: Outcome, error: str | None, duration: int, now: float
    ) -> Verdict:
        self._count(outcome, error, duration)
        if not current:
            self.stale += 1
            return Verdict.STALE
        if outcome is Outcome.SUCCESS:
            self.successes_in_a_row += 1
            self.failures_in_a_row = 0
            enough = self.successes_in_a_row >= self.config.success_threshold
            if self.state is State.HALF_OPEN and enough:
                self.become(State.CLOSED, "successes", now)
        elif outcome is Outcome.FAILURE:
            self.failures_in_a_row += 1
            self.successes_in_a_row = 0
            many = self.failures_in_a_row >= self.config.failure_threshold
            if self.state is State.HALF_OPEN or (self.state is State.CLOSED and many):
                self.become(State.OPEN, "failures", now)
        return Verdict.COUNTED

    def _count(self, outcome: Outcome, error: str | None, duration: int) -> None:
        if outcome is Outcome.SUCCESS:
            self.successes += 1
        elif outcome is Outcome.FAILURE:
            self.failures += 1
            self.last_error = error
        else:
            self.neutral += 1
            return
        self._time(duration)

    def _time(self, *durations: int) -> None:
        self.durations = (*self.durations, *durations)[-TIMED:]

    def come_back_together(self, message: Batch | Missed, generation: int) -> Verdict:
        """Many calls are reported that this manager has not admitted itself."""
        failures = message.failures if isinstance(message, Missed) else 0
        self.successes += message.successes
        self.failures += failures
        self.neutral += message.neutral
        self.rejected += message.rejected
        self._time(*message.durations)
        if isinstance(message, Missed) and failures:
            self.last_error = message.last_error
        if generation != self.generation or self.state is not State.CLOSED:
            self.stale += message.successes + failures + message.neutral
            return Verdict.STALE
        if message.successes:
            self.successes_in_a_row += message.successes
            self.failures_in_a_row = 0
        return Verdict.COUNTED

    def lose(self, permit: int, generation: int, now: float) -> None:
        """Nobody will report this permit any more."""
        self.in_flight -= 1
        self.lost += 1
        probe = self.probes.pop(permit, None)
        current = probe is not None and generation == self.generation
        if current and self.config.lost_permit == "failure":
            self.become(State.OPEN, "lost_permit", now)

    def pass_time(self, now: float) -> None:
        """It is that late."""
        if self.opens_until is not None and self.opens_until <= now:
            self.become(State.HALF_OPEN, "timeout", now)
        for permit, probe in list(self.probes.items()):
            if probe.due <= now:
                self.lose(permit, probe.generation, now)

    def become(self, state: State, cause: str, now: float) -> None:
        """Make a step."""
        self.generation += 1
        self.changes.append(Change(self.name, self.state, state, cause, self.generation))
        self.entries[state] += state is not self.state
        self.state = state
        self.failures_in_a_row = self.successes_in_a_row = 0
        self.opens_until = now + self.config.open_timeout if state is State.OPEN else None

    def take_changes(self) -> list[Change]:
        """The steps since the last time."""
        changes, self.changes = self.changes, []
        return changes


IN_A_ROW: Final = ("failures_in_a_row", "successes_in_a_row")
TOTALS: Final = (
    *("successes", "failures", "neutral", "rejected", "lost", "stale"),
    *("last_error", "durations"),
)
COUNTED: Final = (*IN_A_ROW, *TOTALS)


class Out(NamedTuple):
    """A permit that is out."""

    token: bytes
    name: str
    generation: int
    due: float | None
    request: int


class Session:
    """What a manager knows of one client."""

    __slots__ = ("asked", "reports", "requests")

    def __init__(self, reports: int = 0) -> None:
        self.reports = reports  # the number of the last one
        self.asked = 0  # the number of the last request for a permit that was decided
        self.requests: dict[int, int] = {}  # permits that are out, by request


class Written(NamedTuple):
    """What of a circuit is in the journal."""

    stands: Circuit
    counts: Circuit | None


class Manager:
    """All that the managers of one address must be."""

    def __init__(self) -> None:
        self.epoch = self.origin = 0
        self.circuits: dict[str, Circuit] = {}
        self.sessions: dict[bytes, Session] = {}
        self.permits: dict[int, Out] = {}
        self.version = 0
        self.history: dict[str, deque[tuple[int, Change]]] = {}
        # What is written, and what has changed since
        self.written: dict[str, Written] = {}
        self.written_sessions: dict[bytes, int] = {}
        self.written_version = 0
        self._written_history: dict[str, list[tuple[int, Change]]] = {}
        self._stands_elsewhere: set[str] = set()
        self._counted: set[str] = set()
        self._heard: set[bytes] = set()

    # -- lives -------------------------------------------------------------------------------------

    def begin(self, epoch: int, origin: int) -> None:
        """A manager begins, from what is written; in a line of its own, it knows nothing of that.

        Consecutive counts are of a generation; where another one is written they have passed.
        """
        self.epoch, self.origin = epoch, origin
        self.permits.clear()
        self.circuits = {}
        for name, (stands, counts) in self.written.items():
            circuit = self.circuits[name] = stands.copy()
            for field in TOTALS:
                setattr(circuit, field, 0 if counts is None else getattr(counts, field))
            if counts is None:
                circuit.last_error, circuit.durations = None, ()
            same = counts is not None and counts.generation == circuit.generation
            for field in IN_A_ROW:
                setattr(circuit, field, getattr(counts, field) if same else 0)
        self.sessions = {token: Session(n) for token, n in self.written_sessions.items()}
        self.version = self.written_version
        self.history = {
            name: deque(changes, KEPT) for name, changes in self._written_history.items()
        }
        for changed in (self._stands_elsewhere, self._counted, self._heard):
            changed.clear()
        self.written = {name: Written(c.copy(), c.copy()) for name, c in self.circuits.items()}

    def lose_all(self) -> None:
        """The journal is of no use."""
        for known in (
            *(self.written, self.written_sessions, self._written_history),
            *(self.circuits, self.sessions, self.permits, self.history),
        ):
            known.clear()
        self.written_version = 0

    def write_news(self) -> None:
        """Where circuits stand is written."""
        for name in self._stands_elsewhere:
            before = self.written.get(name)
            counts = None if before is None else before.counts
            self.written[name] = Written(self.circuits[name].copy(), counts)
            if name in self.history:
                self._written_history[name] = list(self.history[name])
        self.written_version = self.version
        self._stands_elsewhere.clear()

    def write_all(self) -> None:
        """And everything else."""
        self.write_news()
        for name in self._counted:
            self.written[name] = self.written[name]._replace(counts=self.circuits[name].copy())
        for token in self._heard:
            session = self.sessions.get(token)
            if session is None:
                self.written_sessions.pop(token, None)
            else:
                self.written_sessions[token] = session.reports
        self._counted.clear()
        self._heard.clear()

    # -- what it is told ---------------------------------------------------------------------------

    def declare(self, name: str, config: CircuitConfig | None) -> list[Change]:
        """A circuit is named."""
        circuit = self.circuits.get(name)
        if circuit is None:
            self.circuits[name] = Circuit(name, config or CircuitConfig())
            self._stands_elsewhere.add(name)
            return []
        if config is None or config == circuit.config:
            return []
        circuit.config = config
        change = Change(name, circuit.state, circuit.state, "config", circuit.generation)
        self._keep([change])
        return [change]

    def grant(self, token: bytes, request: int, name: str, permit: int, now: float) -> Out:
        """A call is let through."""
        circuit, session = self.circuits[name], self.sessions[token]
        due = circuit.admit(permit, now)
        out = self.permits[permit] = Out(token, name, circuit.generation, due, request)
        session.requests[request] = permit
        session.asked = request
        return out

    def reject(self, token: bytes, request: int, name: str) -> None:
        """A call is not let through."""
        self.circuits[name].rejected += 1
        self._counted.add(name)
        self.sessions[token].asked = request

    def report(
        self, token: bytes, message: Report | Batch | Missed, now: float
    ) -> tuple[Verdict | None, list[Change]]:
        """The next report of a session; no verdict: it is of a permit that is not out."""
        session = self.sessions[token]
        session.reports += 1
        self._heard.add(token)
        circuit = self.circuits.get(message.name)
        if circuit is None:
            return None, []
        in_line = not isinstance(message, Missed) and self.origin <= message.epoch <= self.epoch
        if not isinstance(message, Report):
            generation = 0 if isinstance(message, Missed) or not in_line else message.generation
            verdict = circuit.come_back_together(message, generation)
        elif message.permit is None or message.epoch != self.epoch:
            generation = message.generation if in_line else 0
            verdict = circuit.come_back_leased(
                *(generation, message.outcome, message.error, message.duration, now)
            )
        else:
            out = self.permits.get(message.permit)
            if out is None or out.name != message.name or out.token != token:
                return None, []
            self._take_back(message.permit)
            verdict = circuit.come_back(
                *(message.permit, out.generation, out.due is not None),
                *(message.outcome, message.error, message.duration, now),
            )
        self._counted.add(message.name)
        return verdict, self._keep(circuit.take_changes())

    def give_back(self, permit: int, now: float) -> list[Change]:
        """Nobody was told of this permit, or who held it has taken leave."""
        out = self._take_back(permit)
        circuit = self.circuits[out.name]
        probe = out.due is not None
        circuit.come_back(permit, out.generation, probe, Outcome.NEUTRAL, None, 0, now)
        self._counted.add(out.name)
        return self._keep(circuit.take_changes())

    def bury(self, token: bytes, now: float) -> list[Change]:
        """A session's process has died."""
        session = self.sessions.pop(token)
        self._heard.add(token)
        changes: list[Change] = []
        for permit in list(session.requests.values()):
            out = self.permits.pop(permit)
            circuit = self.circuits[out.name]
            if out.due is None or permit in circuit.probes:
                circuit.lose(permit, out.generation, now)
            self._counted.add(out.name)
            changes += self._keep(circuit.take_changes())
        return changes

    def leave(self, token: bytes, now: float) -> list[Change]:
        """A session has taken leave."""
        permits = list(self.sessions[token].requests.values())
        changes = [change for permit in permits for change in self.give_back(permit, now)]
        del self.sessions[token]
        self._heard.add(token)
        return changes

    def reset(self, name: str, now: float) -> list[Change]:
        """A circuit is closed by hand."""
        circuit = self.circuits[name]
        circuit.become(State.CLOSED, "reset", now)
        return self._keep(circuit.take_changes())

    def overdue(self, now: float) -> bool:
        """Something should have happened by then."""
        for circuit in self.circuits.values():
            if circuit.opens_until is not None and circuit.opens_until <= now:
                return True
            if circuit.probes and any(probe.due <= now for probe in circuit.probes.values()):
                return True
        return False

    def pass_time(self, now: float, first: Iterable[str]) -> list[Change]:
        """It is that late. Circuits have no order; those named come first."""
        changes: list[Change] = []
        for name in dict.fromkeys((*first, *self.circuits)):
            circuit = self.circuits[name]
            lost = circuit.lost
            circuit.pass_time(now)
            if circuit.changes or circuit.lost > lost:
                self._counted.add(circuit.name)
                changes += circuit.take_changes()
        return self._keep(changes)

    def _take_back(self, permit: int) -> Out:
        out = self.permits.pop(permit)
        del self.sessions[out.token].requests[out.request]
        return out

    def _keep(self, changes: Iterable[Change]) -> list[Change]:
        kept = list(changes)
        for change in kept:
            self.version += 1
            history = self.history.setdefault(change.name, deque(maxlen=KEPT))
            history.append((self.version, change))
            self._stands_elsewhere.add(change.name)
        return kept
