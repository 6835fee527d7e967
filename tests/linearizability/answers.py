"""Why an answer is not the one that the model gives. No numbers, no time."""

from __future__ import annotations

from switchgear import wire
from switchgear.states import State
from switchgear.stats import CircuitStats, MetricsSnapshot

from .model import Circuit, Out, Step


def compare(step: Step, answer: wire.Message) -> str | None:
    """What differs, for people; None: nothing."""
    circuit, expected, _ = step
    match answer:
        case wire.Declared(_, _, config):
            return differs("config", config, circuit.config)
        case wire.Granted(_, _, generation, deadline):
            if not isinstance(expected, Out):
                return f"it should have been rejected: {expected}"
            return differs("generation", generation, expected.generation) or differs(
                "a deadline", deadline is not None, expected.deadline is not None
            )
        case wire.Rejected(_, _, state, _, last_error):
            if not isinstance(expected, State):
                return f"it should have been granted: {expected}"
            return differs("state", state, expected) or differs(
                "last_error", last_error, circuit.last_error
            )
        case wire.Reported(_, _, verdict):
            return differs("verdict", verdict, expected)
        case wire.ResetDone(_, _, _, generation):
            return differs("generation", generation, circuit.generation)
        case wire.StatsOf(_, _, stats):
            return _compare_stats(stats, circuit)
        case wire.MetricsOf(_, _, metrics):
            return _compare_metrics(metrics, circuit)
    return None


def differs(what: str, said: object, expected: object) -> str | None:
    """That it does, for people."""
    return None if said == expected else f"{what} is {said}, it should be {expected}"


def _compare_stats(stats: CircuitStats, circuit: Circuit) -> str | None:
    totals = circuit.totals
    said = (
        *(stats.state, stats.generation, stats.config, stats.last_error),
        *(stats.consecutive_successes, stats.consecutive_failures, stats.in_flight),
        *(stats.total_successes, stats.total_failures, stats.total_neutral, stats.total_rejected),
        *(stats.total_requests, stats.last_error_at is None),
    )
    expected = (
        *(circuit.state, circuit.generation, circuit.config, circuit.last_error),
        *(circuit.successes, circuit.failures, len(circuit.out)),
        *(totals.successes, totals.failures, totals.neutral, totals.rejected),
        *(circuit.attempts, stats.last_error is None),
    )
    return differs("stats", said, expected)


def _compare_metrics(metrics: MetricsSnapshot, circuit: Circuit) -> str | None:
    totals = circuit.totals
    executed = totals.successes + totals.failures
    said = (
        *(metrics.requests_total, metrics.requests_successful, metrics.requests_failed),
        *(metrics.requests_rejected, metrics.permits_lost, metrics.stale_reports),
        *(tuple(metrics.transitions[state] for state in State), metrics.avg_latency is None),
    )
    expected = (
        *(executed, totals.successes, totals.failures),
        *(totals.rejected, totals.lost, totals.stale),
        *(circuit.entries, metrics.requests_total == 0),
    )
    return differs("metrics", said, expected)
