"""What the kernel says of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

from switchgear.processes import start_of

IMPORTS: Final = """
import sys
from switchgear.processes import start_of
before = set(sys.modules)
assert start_of()
print(*set(sys.modules) - before)
"""


def test_a_process_has_its_start_and_one_that_is_not_there_has_none() -> None:
    assert start_of() == start_of(os.getpid()) > 0
    assert start_of(2**30) == 0  # beyond what the kernel gives out


def test_the_start_of_a_process_is_read_without_an_import() -> None:
    # A signal handler that came in the middle of one could wait for it for ever.
    done = subprocess.run(
        [sys.executable, "-X", "utf8", "-c", IMPORTS], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
