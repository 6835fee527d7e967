"""What a circuit can tell about itself: two frozen snapshots, and the window behind the latencies.

Reading moves nothing. No clock: whoever takes a snapshot says what time it is.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from .config import CircuitConfig
from .states import State

LATENCY_WINDOW: Final = 100  # executed calls; the Go original's
_ROOM: Final = 128  # durations that may be kept, so that not each new one moves all the others


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitStats:
    """One circuit at one instant of the manager's.

    `total_requests` counts attempts: successes + failures + neutral + rejected + in flight, and
    besides these the permits that were lost and have not been reported after all.

    A call that runs under a lease is nowhere in these numbers before it has ended.

    Attributes:
        name: The circuit.
        state: Its state.
        total_requests: Attempts, rejected ones included.
        total_successes: Calls that returned.
        total_failures: Calls that raised, or ran past their timeout.
        total_neutral: Calls that said nothing about the service: cancelled, interrupted, released.
        total_rejected: Attempts that were not let through.
        consecutive_successes: Successes in a row in this generation, in the manager's order.
        consecutive_failures: Failures in a row in this generation, in the manager's order.
        in_flight: Permits acquired and not yet reported, lost or given back.
        last_error: The last failure, as "Type: message" of at most 512 characters; None before any.
        last_error_at: When it was reported, UTC.
        state_changed_at: When the circuit entered its state (was declared, for its first), UTC.
        retry_after: Seconds until an open circuit turns half-open; None in the other states.
        generation: Bumped at every change of state and at every reset; fences permits.
        config: The configuration in force.
    """

    name: str
    state: State
    total_requests: int
    total_successes: int
    total_failures: int
    total_neutral: int
    total_rejected: int
    consecutive_successes: int
    consecutive_failures: int
    in_flight: int
    last_error: str | None
    last_error_at: datetime | None
    state_changed_at: datetime
    retry_after: float | None
    generation: int
    config: CircuitConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class StateChange:
    """One step of a circuit: a change of its state, a reset, or another configuration.

    Attributes:
        version: Rises by one from step to step, over all circuits of a manager.
        old: The state before.
        new: The state after; the old one for another configuration, and the reset of a closed one.
        cause: "failures", "timeout", "successes", "lost_permit", "reset" or "config".
        generation: The circuit's after it.
        at: When it was, UTC.
    """

    version: int
    old: State
    new: State
    cause: str
    generation: int
    at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsSnapshot:
    """What one circuit has done so far. Latencies are seconds over the last 100 executed calls.

    Attributes:
        requests_total: Calls that were executed and ended in success or failure.
        requests_successful: Those that succeeded.
        requests_failed: Those that failed.
        requests_rejected: Attempts that were not let through.
        permits_lost: Permits that never came back: half-open ones held past `permit_timeout`, and
            all whose holder died.
        stale_reports: Outcomes that came too late to move the circuit (stale or expired).
        transitions: Entries into each state, by state.
        avg_latency: Mean; None, like the others, when nothing was executed yet.
        min_latency: Shortest.
        max_latency: Longest.
        p50_latency: Median (nearest rank).
        p95_latency: 95th percentile (nearest rank).
        p99_latency: 99th percentile (nearest rank).
    """

    requests_total: int
    requests_successful: int
    requests_failed: int
    requests_rejected: int
    permits_lost: int
    stale_reports: int
    transitions: Mapping[State, int]
    avg_latency: float | None
    min_latency: float | None
    max_latency: float | None
    p50_latency: float | None
    p95_latency: float | None
    p99_latency: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Latencies:
    """The latency part of a MetricsSnapshot, seconds; all None for an empty window."""

    avg_latency: float | None = None
    min_latency: float | None = None
    max_latency: float | None = None
    p50_latency: float | None = None
    p95_latency: float | None = None
    p99_latency: float | None = None


class LatencyWindow:
    """The durations of the last `LATENCY_WINDOW` executed calls, and no others: bounded memory."""

    __slots__ = ("_durations",)

    def __init__(self) -> None:
        self._durations = array("d")  # a third of the memory of floats in a deque

    def add(self, duration: float) -> None:
        """Take in one duration, seconds."""
        self._durations.append(duration)
        if len(self._durations) > _ROOM:
            del self._durations[:-LATENCY_WINDOW]

    def extend(self, durations: Iterable[float]) -> None:
        """Take in several, oldest first."""
        self._durations.extend(durations)
        del self._durations[:-LATENCY_WINDOW]

    def durations(self) -> array[float]:
        """What is in it, oldest first."""
        return self._durations[-LATENCY_WINDOW:]

    def latencies(self) -> Latencies:
        """Summarise the window. Sorts it: O(n log n), n at most 100."""
        if not self._durations:
            return Latencies()
        ordered = sorted(self._durations[-LATENCY_WINDOW:])
        return Latencies(
            avg_latency=math.fsum(ordered) / len(ordered),
            min_latency=ordered[0],
            max_latency=ordered[-1],
            p50_latency=_nearest_rank(ordered, 50),
            p95_latency=_nearest_rank(ordered, 95),
            p99_latency=_nearest_rank(ordered, 99),
        )


def _nearest_rank(ordered: list[float], percent: int) -> float:
    """The smallest value that at least `percent` % of the sorted, non-empty list do not exceed."""
    # In whole numbers, which have no rounding to think about.
    return ordered[-(-percent * len(ordered) // 100) - 1]
