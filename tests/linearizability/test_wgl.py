"""The search without numbers agrees with what is right, and does not with what is wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from switchgear import wire
from switchgear.config import CircuitConfig

from . import campaign
from .campaign import Campaign
from .checker import check
from .history import History
from .model import Circuit
from .notebook import answered
from .operations import match
from .test_checker import STRICT, WRONG, strict_run
from .wgl import linearizable

SEEDS: Final = range(5_000, 5_030)
WORKERS: Final = 3

# It is told no number and no event, does not know how late it is, and lets any answer be missing.
# All else it must find.
BEYOND: Final = (
    *("number", "event", "version", "never answered"),
    *("half-open early", "time than", "too late a probe"),
)


def is_linearizable(history: History, config: CircuitConfig) -> bool:
    """Whether there is an order that explains what one circuit's processes were answered."""
    return linearizable(Circuit(config), [queue.operations for queue in match(history).queues])


def test_there_is_an_order_for_a_right_run() -> None:
    assert is_linearizable(strict_run(), STRICT)


@pytest.mark.parametrize("what", [w for w in WRONG if not any(each in w for each in BEYOND)])
def test_there_is_no_order_for_a_wrong_run(what: str) -> None:
    run = strict_run()
    WRONG[what](run)
    configs = [s.message.config for s in run.sent if isinstance(s.message, wire.Declare)]
    assert configs[0] is not None
    assert not is_linearizable(run, configs[0])


@pytest.fixture(scope="module")
def small_runs() -> list[tuple[CircuitConfig, History]]:
    """Real runs of a few dozen operations."""
    runs = []
    with Campaign(workers=WORKERS) as real:
        for seed in SEEDS:
            plan = campaign.small_plan(seed, WORKERS)
            real.run(plan)
            (config,) = plan.circuits.values()
            runs.append((config, real.history()))
        assert not real.finish().wrong
    return runs


@pytest.mark.process
def test_there_is_an_order_for_every_small_real_run(
    small_runs: list[tuple[CircuitConfig, History]],
) -> None:
    states = set()
    for config, run in small_runs:
        assert is_linearizable(run, config), run.seed
        states |= {
            each.message.new for each in run.received if isinstance(each.message, wire.Event)
        }
    assert len(states) == 3  # they have been everywhere


@pytest.mark.process
def test_one_call_too_many_in_a_small_real_run_is_found_with_and_without_numbers(
    small_runs: list[tuple[CircuitConfig, History]],
) -> None:
    for config, run in small_runs:
        told = [each.message for each in run.received if isinstance(each.message, wire.StatsOf)]
        last = max(told, key=lambda each: each.operation)
        stats = replace(last.stats, total_requests=last.stats.total_requests + 1)
        answered(run, last.operation, stats=stats)
        assert check(run).wrong
        assert not is_linearizable(run, config), run.seed
