"""The numbers: nearest-rank percentiles by hand, memory that does not grow, frozen snapshots."""

from __future__ import annotations

import dataclasses
import math
import pickle
from collections import deque
from datetime import datetime, timezone
from itertools import pairwise
from random import Random

import pytest

from switchgear.circuit import Circuit
from switchgear.config import CircuitConfig
from switchgear.stats import (
    LATENCY_WINDOW,
    CircuitStats,
    Latencies,
    LatencyWindow,
    MetricsSnapshot,
    StateChange,
)


def window_of(*durations: float) -> LatencyWindow:
    window = LatencyWindow()
    for duration in durations:
        window.add(duration)
    return window


def percentiles(window: LatencyWindow) -> tuple[float | None, float | None, float | None]:
    found = window.latencies()
    return found.p50_latency, found.p95_latency, found.p99_latency


def test_an_empty_window_has_no_latencies_at_all() -> None:
    assert dataclasses.astuple(LatencyWindow().latencies()) == (None,) * 6


def test_one_call_is_every_latency_even_when_it_took_no_time() -> None:
    assert dataclasses.astuple(window_of(0.25).latencies()) == (0.25,) * 6
    assert dataclasses.astuple(window_of(0.0).latencies()) == (0.0,) * 6


def test_the_median_of_two_is_the_smaller_and_the_tail_is_the_larger() -> None:
    # Ranks: ceil(1.0) = 1, ceil(1.9) = 2, ceil(1.98) = 2.
    assert percentiles(window_of(2.0, 1.0)) == (1.0, 2.0, 2.0)


def test_the_95th_percentile_of_twenty_is_the_nineteenth_and_not_the_largest() -> None:
    # Ranks: 10.0 -> 10, 19.0 -> 19, 19.8 -> 20.
    descending = [float(n) for n in range(20, 0, -1)]
    assert percentiles(window_of(*descending)) == (10.0, 19.0, 20.0)


def test_the_percentiles_of_twenty_one_are_one_rank_up_where_the_rank_is_no_whole_number() -> None:
    # Ranks: 10.5 -> 11, 19.95 -> 20, 20.79 -> 21.
    assert percentiles(window_of(*(float(n) for n in range(1, 22)))) == (11.0, 20.0, 21.0)


def test_the_percentiles_of_a_hundred_are_their_ranks() -> None:
    # 37 and 100 have no common factor: every number from 1 to 100, in no order.
    shuffled = [float(n * 37 % 100 + 1) for n in range(100)]
    assert sorted(shuffled) == [float(n) for n in range(1, 101)]
    assert dataclasses.astuple(window_of(*shuffled).latencies()) == (
        50.5,  # (1 + 100) / 2
        1.0,
        100.0,
        50.0,
        95.0,
        99.0,
    )


def test_the_hundred_and_first_call_pushes_out_the_first() -> None:
    first_in = [float(n) for n in range(1, 102)]
    assert dataclasses.astuple(window_of(*first_in).latencies()) == (
        51.5,  # (2 + 101) / 2
        2.0,
        101.0,
        51.0,
        96.0,
        100.0,
    )
    assert window_of(*first_in[:100]).latencies().min_latency == 1.0


def test_the_window_pushes_out_the_oldest_and_not_the_smallest() -> None:
    window = window_of(900.0, *[float(n) for n in range(1, 101)])
    assert window.latencies().max_latency == 100.0


def test_the_window_holds_a_hundred_calls_and_forgets_what_came_before() -> None:
    assert LATENCY_WINDOW == 100
    assert window_of(*[9.0] * 10_000, *[1.0] * 99).latencies().max_latency == 9.0
    assert window_of(*[9.0] * 10_000, *[1.0] * 100).latencies().max_latency == 1.0


def test_the_mean_does_not_gather_rounding_errors() -> None:
    # Adding one by one gives 0.09999999999999999, as sum() does before Python 3.12.
    assert window_of(*[0.1] * 10).latencies().avg_latency == 0.1


def test_reading_the_window_changes_nothing() -> None:
    window = window_of(3.0, 1.0, 2.0)
    assert window.latencies() == window.latencies()
    window.add(4.0)
    assert window.latencies() == window_of(3.0, 1.0, 2.0, 4.0).latencies()


def test_the_statistics_are_the_fields_the_contract_names() -> None:
    assert [field.name for field in dataclasses.fields(CircuitStats)] == [
        "name",
        "state",
        "total_requests",
        "total_successes",
        "total_failures",
        "total_neutral",
        "total_rejected",
        "consecutive_successes",
        "consecutive_failures",
        "in_flight",
        "last_error",
        "last_error_at",
        "state_changed_at",
        "retry_after",
        "generation",
        "config",
    ]
    assert [field.name for field in dataclasses.fields(MetricsSnapshot)] == [
        "requests_total",
        "requests_successful",
        "requests_failed",
        "requests_rejected",
        "permits_lost",
        "stale_reports",
        "transitions",
        "avg_latency",
        "min_latency",
        "max_latency",
        "p50_latency",
        "p95_latency",
        "p99_latency",
    ]


def test_a_snapshot_cannot_be_changed_and_survives_pickling() -> None:
    circuit = Circuit("payments", CircuitConfig(), now=0.0)
    stats = circuit.stats(0.0, utc_offset=0.0)
    metrics = circuit.metrics()
    for snapshot in (stats, metrics, Latencies(avg_latency=1.0)):
        assert pickle.loads(pickle.dumps(snapshot)) == snapshot
        for field in dataclasses.fields(snapshot):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(snapshot, field.name, None)
    assert stats.state_changed_at == datetime(1970, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize("seed", range(20))
def test_the_window_is_the_last_hundred_of_any_history_however_it_came_in(seed: int) -> None:
    rng = Random(seed)
    window, last = LatencyWindow(), deque[float](maxlen=100)
    for _ in range(80):
        durations = [rng.random() for _ in range(rng.choice([0, 1, 1, 7, 99, 100, 101, 250]))]
        if len(durations) == 1:
            window.add(durations[0])
        else:
            window.extend(iter(durations))
        last.extend(durations)
        ordered, found = sorted(last), window.latencies()
        assert (found.min_latency, found.max_latency) == (
            (ordered[0], ordered[-1]) if ordered else (None, None)
        )
        if ordered:
            ranks = [-(-percent * len(ordered) // 100) for percent in (50, 95, 99)]
            assert percentiles(window) == tuple(ordered[rank - 1] for rank in ranks)
            assert found.avg_latency == math.fsum(ordered) / len(ordered)


def test_the_window_keeps_a_kibibyte_at_most_and_is_seldom_moved() -> None:
    window, kept = LatencyWindow(), [0]
    for number in range(10 * LATENCY_WINDOW):
        window.add(float(number))
        kept.append(len(window._durations))
    assert max(kept) * window._durations.itemsize == 1024
    moved = sum(after <= before for before, after in pairwise(kept))
    assert moved < 10 * LATENCY_WINDOW // 20
    window.extend(range(10 * LATENCY_WINDOW))
    assert len(window._durations) == LATENCY_WINDOW


@pytest.mark.parametrize(
    "kind", [CircuitConfig, CircuitStats, Latencies, MetricsSnapshot, StateChange]
)
def test_a_snapshot_is_frozen_small_and_built_by_names(kind: type[object]) -> None:
    assert kind.__dataclass_params__.frozen
    assert "__slots__" in vars(kind)
    assert all(field.kw_only for field in dataclasses.fields(kind))
