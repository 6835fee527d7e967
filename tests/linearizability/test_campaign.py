"""Real processes, real sockets: what they were answered is one sequence of decisions.

More of it, as long as you like: `make linearizability HISTORIES=10000`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from . import campaign
from .campaign import Tally
from .client_mutants import CLIENT_MUTANTS
from .mutants import LOSS_MUTANTS, MUTANTS

pytestmark = pytest.mark.process

PARTS: Final = range(4)
HISTORIES: Final = 50  # in one test, which is to be over in a fraction of its time limit
STEPS: Final = 25
LOSSES: Final = 10
ENOUGH: Final = 400  # histories, in which a defect must show; the rarest does in one of 25


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Tally]:
    """What came of each part of the runs; they are made once."""

    @functools.cache
    def run(part: int) -> Tally:
        seeds = range(part * HISTORIES, (part + 1) * HISTORIES)
        folder = tmp_path_factory.mktemp("histories")
        tally = campaign.run(seeds, folder, steps=STEPS)
        assert not tally.wrong, f"kept in {folder}; see python -m linearizability --check FILE"
        assert not tally.undecided, f"kept in {folder}"
        return tally

    return run


@pytest.mark.parametrize("part", PARTS)
def test_real_runs_are_linearizable(part: int, ran: Callable[[int], Tally]) -> None:
    assert ran(part).histories == HISTORIES


def test_real_runs_take_every_way(ran: Callable[[int], Tally]) -> None:
    """It would say little if they did not."""
    tally = sum((ran(part) for part in PARTS), Tally())
    assert tally.killed
    assert set(tally.changes) >= {
        *("failures -> open", "timeout -> half-open", "successes -> closed"),
        *("lost_permit -> open", "reset -> closed", "config -> closed"),
    }


def test_runs_in_which_the_manager_is_killed_are_linearizable(tmp_path: Path) -> None:
    tally = campaign.run(range(LOSSES), tmp_path, losses=True)
    assert not tally.wrong, f"kept in {tmp_path}; see python -m linearizability --check FILE"
    assert not tally.undecided, f"kept in {tmp_path}"
    assert tally.lost == tally.histories == LOSSES


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_manager_with_a_defect_is_found(mutant: str) -> None:
    tally = campaign.run(
        range(ENOUGH),
        kills=0.5,
        program=("-m", "linearizability.mutants", mutant),
        enough=lambda tally: bool(tally.wrong),
    )
    assert tally.wrong


@pytest.mark.parametrize("mutant", CLIENT_MUTANTS)
def test_clients_with_a_defect_are_found(mutant: str) -> None:
    tally = campaign.run(range(ENOUGH), defect=mutant, enough=lambda tally: bool(tally.wrong))
    assert tally.wrong


@pytest.mark.parametrize("mutant", LOSS_MUTANTS)
def test_a_manager_whose_successor_has_a_defect_is_found(mutant: str) -> None:
    tally = campaign.run(
        range(ENOUGH),
        losses=True,
        program=("-m", "linearizability.mutants", mutant),
        enough=lambda tally: bool(tally.wrong),
    )
    assert tally.wrong
