"""The benchmarks run, whatever they measure: no assertion here is about times."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import switchgear

pytestmark = pytest.mark.process

RUN = Path(__file__).parents[2] / "benchmarks" / "run.py"
NAMES = {
    *("call_cost", "round_trip", "throughput", "journal", "scale"),
    *("outage", "kills", "manager_kills", "elections", "overhead", "idle"),
}


@pytest.mark.timeout(180)
def test_every_benchmark_runs_without_peers_and_the_results_are_written(tmp_path: Path) -> None:
    package = str(Path(switchgear.__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, str(RUN), "--quick", "--no-peers", "--output", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert set(re.findall(r"^== (\w+):", ran.stdout, re.MULTILINE)) == NAMES
    results = (tmp_path / "RESULTS.md").read_text()
    assert "Left out: the peers, as was asked for" in results
    goals = re.findall(
        r"^\| .* \| (reached|\*\*not reached\*\*|not measured) \|$", results, re.MULTILINE
    )
    assert len(goals) >= 15
