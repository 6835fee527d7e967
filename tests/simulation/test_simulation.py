"""Hundreds of simulated lives: every guarantee holds in each, and bugs that are planted are found.

`make simulate SEEDS=100000` lives as many as you like; `make simulate SEED=17` shows one.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from .campaign import Result, live, live_all
from .life import FILED, Life
from .plants import PLANTS, planted

TOGETHER: Final = 50
SHARES: Final = range(8)
MOST: Final = 1_000  # lives within which a bug must be found


@functools.cache
def lived(share: int) -> Result:
    first = 1 + share * TOGETHER
    return live_all(range(first, first + TOGETHER))


def command(*arguments: str, hash_seed: str = "0") -> subprocess.CompletedProcess[str]:
    """The command that a failing seed prints, as `make simulate` runs it."""
    tests = Path(__file__).parent.parent
    path = os.pathsep.join([str(tests), str(tests / "unit")])
    return subprocess.run(
        [sys.executable, "-m", "simulation", *arguments],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        timeout=50,
    )


@pytest.mark.parametrize("share", SHARES)
def test_g1_to_g4_g6_to_g8_g10_g11_hold_whatever_befalls_a_life(share: int) -> None:
    result = lived(share)
    assert result.failures == {}
    assert result.lives == TOGETHER


def test_lives_know_every_misfortune_and_circuits_take_every_way() -> None:
    seen = sum((lived(share).seen for share in SHARES), Counter[str]())
    wanted = {
        "calls cancelled": 100,
        "calls decided alone": 5_000,
        "calls granted": 5_000,
        "calls leased": 5_000,
        "calls rejected": 1_000,
        "calls rejected unasked": 1_000,
        "closed to closed, reset": 50,
        "closed to open, failures": 200,
        "connections cut": 300,
        "disks that were full": 50,
        "ends of connections that nobody noticed": 20,
        "forks": 50,
        "grants that could not be sent": 5,
        "half-open to closed, reset": 10,
        "half-open to closed, successes": 50,
        "half-open to open, failures": 100,
        "half-open to open, lost_permit": 10,
        "machines suspended": 20,
        "managers stopped": 50,
        "managers that died": 50,
        "managers that died as they began": 10,
        "managers that died and its journal is lost": 5,
        "managers that died in good order": 10,
        "managers that died over the journal": 50,
        "messages that could not be sent": 100,
        "open to closed, reset": 10,
        "open to half-open, timeout": 200,
        "probes": 500,
        "processes killed": 100,
        "processes that took leave": 50,
        "processes stopped": 100,
        "reports counted": 5_000,
        "reports expired": 10,
        "reports stale": 1_000,
    }
    assert {what: seen[what] for what in wanted if seen[what] < wanted[what]} == {}


@pytest.mark.parametrize("plant", PLANTS)
def test_a_planted_bug_is_found(plant: str) -> None:
    for seed in range(1, MOST):
        found = live_all(range(seed, seed + 1), plant).failures.get(seed, "")
        if re.match(r"G\d+(, G\d+)*: ", found):  # where the bug itself raises, that is no merit
            break
    else:
        pytest.fail(f"{MOST} lives have not found: {PLANTS[plant].__doc__}")
    assert live(Life(seed)) is None  # so it is the bug that was found


@pytest.mark.parametrize("seed", [FILED, 11])
def test_a_seed_says_all_that_happens_to_the_last_byte(seed: int) -> None:
    first, second = (command("--replay", str(seed), hash_seed=n) for n in ("1", "2"))
    assert first.returncode == 0, first.stdout
    assert first.stdout.count("\n") > 100
    assert second.stdout == first.stdout
    life = Life(seed)
    assert live(life) is None
    assert f"digest {life.world.digest}" in first.stdout


def test_a_seed_that_fails_is_told_with_the_command_that_shows_it_again() -> None:
    plant = "a_circuit_opens_one_failure_late"
    campaign = command("--seeds", "40", "--jobs", "1", "--plant", plant)
    assert campaign.returncode == 1
    told, told_command = campaign.stdout.splitlines()[-2:]
    made = told_command.split()
    assert made[:2] == ["make", "simulate"]
    seed, bug = (argument.partition("=")[2] for argument in made[2:])
    assert bug == plant
    again = command("--replay", seed, "--plant", bug)
    assert again.returncode == 1
    _, _, violation = told.partition(": ")
    assert again.stdout.splitlines()[-1] == f"broken: {violation}"
    with planted(plant):
        assert live(Life(int(seed))) == violation
