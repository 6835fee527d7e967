"""Real processes, real sockets: what they were answered is one sequence of decisions.

More of it, as long as you like: `make linearizability HISTORIES=10000`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from . import campaign
from .mutants import MUTANTS

pytestmark = pytest.mark.process

HISTORIES: Final = 50  # in one test, which is to be over in a fraction of its time limit
STEPS: Final = 30
ENOUGH: Final = 60  # histories, in which a defect must show


@pytest.mark.parametrize("part", range(4))
def test_real_runs_are_linearizable(part: int, tmp_path: Path) -> None:
    seeds = range(part * HISTORIES, (part + 1) * HISTORIES)
    tally = campaign.run(seeds, tmp_path, steps=STEPS)
    assert not tally.wrong, f"kept in {tmp_path}; see python -m linearizability --check FILE"
    assert not tally.undecided, f"kept in {tmp_path}"
    assert tally.histories == HISTORIES
    # It would say little if they had not been everywhere.
    assert tally.killed
    assert set(tally.changes) >= {
        *("failures -> open", "timeout -> half-open", "successes -> closed"),
        *("lost_permit -> open", "reset -> closed", "config -> closed"),
    }


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_manager_with_a_defect_is_found(mutant: str) -> None:
    tally = campaign.run(
        range(ENOUGH),
        kills=0.5,
        program=("-m", "linearizability.mutants", mutant),
        enough=lambda tally: bool(tally.wrong),
    )
    assert tally.wrong
