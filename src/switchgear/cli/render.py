"""Statistics as people and programs read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime

from ..states import State
from ..stats import CircuitStats, MetricsSnapshot, StateChange

_COLUMNS = ("NAME", "STATE", "REQUESTS", "FAILED", "REJECTED", "IN FLIGHT", "RETRY", "LAST ERROR")


def table(circuits: Iterable[CircuitStats]) -> str:
    """One line a circuit, under a heading."""
    rows = [_COLUMNS, *(_row(stats) for stats in circuits)]
    if len(rows) == 1:
        return "no circuits"
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def report(
    stats: CircuitStats, metrics: MetricsSnapshot, history: Sequence[StateChange] = ()
) -> str:
    """All there is to know about one circuit."""
    values = {**stats_as_json(stats), **metrics_as_json(metrics)}
    for name in (
        "config",
        "transitions",
        "requests_total",
        "requests_successful",
        "requests_failed",
        "requests_rejected",
    ):
        del values[name]  # the circuit's own totals say it
    lines = {key: _value(key, value) for key, value in values.items()}
    entries, settings = metrics.transitions, asdict(stats.config)
    lines["entered"] = ", ".join(f"{state} {count}" for state, count in entries.items())
    lines["config"] = ", ".join(f"{field}={value}" for field, value in settings.items())
    width = max(map(len, lines))
    told = [f"{key.ljust(width)}  {value}" for key, value in lines.items()]
    told += [
        f"{change.at.isoformat()}  {change.old} -> {change.new}  {change.cause}"
        for change in history
    ]
    return "\n".join(told)


def stats_as_json(stats: CircuitStats) -> dict[str, object]:
    """CircuitStats in JSON's types; instants in ISO 8601, durations in seconds."""
    return {key: _plain(value) for key, value in asdict(stats).items()}


def metrics_as_json(metrics: MetricsSnapshot) -> dict[str, object]:
    """MetricsSnapshot in JSON's types; durations in seconds."""
    values = {key: _plain(value) for key, value in asdict(metrics).items()}
    values["transitions"] = {str(state): count for state, count in metrics.transitions.items()}
    return values


def change_as_json(change: StateChange) -> dict[str, object]:
    """StateChange in JSON's types; instants in ISO 8601."""
    return {key: _plain(value) for key, value in asdict(change).items()}


def _plain(value: object) -> object:
    if isinstance(value, State):
        return str(value)
    return value.isoformat() if isinstance(value, datetime) else value


def _row(stats: CircuitStats) -> tuple[str, ...]:
    return (
        stats.name,
        str(stats.state),
        str(stats.total_requests),
        str(stats.total_failures),
        str(stats.total_rejected),
        str(stats.in_flight),
        "-" if stats.retry_after is None else f"{stats.retry_after:.1f} s",
        _one_line(stats.last_error or "-", 60),
    )


def _value(key: str, value: object) -> str:
    if value is None:
        return "-"
    if key.endswith("_latency") and isinstance(value, float):
        return f"{value * 1000:.3f} ms"
    if key == "retry_after":
        return f"{value:.1f} s"
    return _one_line(str(value), 512)


def _one_line(text: str, limit: int) -> str:
    """Text that cannot move a terminal's cursor: an error's message is anybody's."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return plain if len(plain) <= limit else f"{plain[: limit - 3]}..."
