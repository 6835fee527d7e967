"""Every example runs as it stands, says nothing on stderr, and shows what it says it shows."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import switchgear

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))


def run(name: str) -> str:
    """What the example prints. It runs with the very package that is under test."""
    package = str(Path(switchgear.__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, "-W", "default", str(EXAMPLES / f"{name}.py")],
        env={**os.environ, "PYTHONPATH": package},
        capture_output=True,
        text=True,
        timeout=55,
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    return ran.stdout


def check_pool(output: str) -> None:
    facts = json.loads(output.splitlines()[-1])
    workers, threshold = facts["workers"], facts["failure_threshold"]
    assert (workers, threshold) == (8, 5)
    hung, answered_500, well = [
        ["half-open", "open"],
        ["half-open", "open"],
        ["half-open", "closed"],
    ]
    assert facts["states"] == ["closed", "open", *hung, *answered_500, *well]
    # The service has counted these itself. G2: the circuit opens at the threshold-th failure, and
    # by then each of the other workers may have one more call under way.
    assert threshold <= facts["reached_until_open"] <= threshold + workers - 1
    assert facts["reached_while_broken"] == facts["reached_until_open"] + 2
    assert facts["failed"] == facts["reached_while_broken"]
    assert (facts["probes"], facts["probes_at_once"]) == (4, 1)  # G3
    assert facts["workers_back"] == workers
    assert facts["rejected"] > facts["reached_while_broken"]
    assert facts["unasked"] == 0
    assert facts["private_breakers_by_arithmetic"] == workers * threshold + workers * 2
    assert "this is arithmetic, not measured" in output


def check_http_client(output: str) -> None:
    assert output.count("HTTP 404 Not Found: a success") == 3
    assert output.count("HTTP 503: a failure") == 3
    assert "circuit open, and the shop has seen 8 calls" in output
    assert output.endswith("circuit closed, and the shop has seen 9 calls\n")


def check_database(output: str) -> None:
    assert output.count("ms  UNIQUE constraint failed") == 2
    assert output.count("failed: database is locked") == 2
    assert output.count("failed: unable to open database file") == 2
    assert output.count("not sent, the circuit is open") == 4
    circuits = re.findall(r"  circuit (\S+)", output)
    assert circuits == ["closed", "half-open", "closed", "half-open", "closed"]
    assert output.count("[(2,)]") == 1  # the order that met the lock arrived once


def check_fallback(output: str) -> None:
    assert output.count("ConnectionRefusedError: the last one known") == 2
    assert output.count("circuit open: the last one known") == 2
    assert "cake  5.00  circuit open: the list price" in output
    assert output.endswith("tea   3.40  fresh\n  cake  4.50  fresh\n")


def check_monitoring(output: str) -> None:
    changes = re.findall(r"^circuit (\S+ -> \S+)", output, re.MULTILINE)
    assert changes == ["closed -> open", "open -> half-open", "half-open -> closed"]
    last = re.findall(r"closed +(\d+) +(\d+) +(\d+) +(\d+) .*RuntimeError: HTTP 500", output)[-1]
    calls, succeeded, failed, rejected = map(int, last)
    assert calls == succeeded + failed + rejected
    assert failed == 4
    assert rejected > 0
    assert "times entered: closed 1, open 1, half-open 1" in output


def check_services(output: str) -> None:
    assert "mail     closed: 9 answered, 0 failed, 0 not sent" in output
    assert "search   closed: 9 answered, 0 failed, 0 not sent" in output
    assert "stock    closed: 4 answered, 3 failed, 2 not sent" in output


def check_asyncio_tasks(output: str) -> None:
    assert "2 x sunny in Oslo, 1 x sunny in Rome in " in output
    assert "3 x CallTimeoutError in " in output
    assert "20 x CircuitOpenError in " in output
    assert "1 x sunny in Rome, 9 x TooManyRequestsError in " in output  # G3
    assert "circuit closed: 4 successes, 3 failures, 1 neutral, 29 rejected" in output


CHECKS: dict[str, Callable[[str], None]] = {
    name.removeprefix("check_"): check
    for name, check in list(globals().items())
    if name.startswith("check_")
}


@pytest.mark.parametrize("name", NAMES)
def test_example_runs_as_it_stands_and_shows_what_it_says(name: str) -> None:
    CHECKS[name](run(name))


def test_every_example_has_a_check_and_a_line_in_the_readme() -> None:
    linked = re.findall(r"\]\((\w+)\.py\)", (EXAMPLES / "README.md").read_text())
    assert sorted(CHECKS) == sorted(linked) == NAMES
