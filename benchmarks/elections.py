"""Is there exactly one manager, however many start it at once and whoever of them is killed?"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from killer.steps import STEPS
from measure import Settings, percentile
from report import Goal, Section, Table, number

import switchgear
from switchgear.address import Address

HERE: Final = Path(__file__).parent
HERD: Final = HERE / "herd.py"
KILLER: Final = HERE / "killer"
UNDISTURBED: Final = "nobody"
ELECTIONS: Final = 200
PROCESSES: Final = 32
PATIENCE: Final = 120.0  # seconds for one election
HEAD: Final = (
    "killed",
    "elections",
    "of them with one manager",
    "kills",
    "candidates beside the one",
    "answered within: p50, s",
    "the last, s",
)


class Election(NamedTuple):
    """What became of one.

    Attributes:
        one: All processes that lived got the same manager, and there was no other one in the end.
        killed: How many were killed in it.
        refused: Candidates that found the address taken.
        waits: Seconds until the processes had their answers.
    """

    one: bool
    killed: int
    refused: int
    waits: Sequence[float]


def elect(processes: int, step: str) -> Election:
    """Let so many processes ask at one moment, at an address of their own."""
    with tempfile.TemporaryDirectory(prefix="sg-bench-") as directory:
        killed = Path(directory) / "killed"
        place = Address.parse(f"{directory}/m")
        with left_alone(place):
            said = subprocess.run(
                [sys.executable, str(HERD), str(processes)],
                env=environment(place, step, killed),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # the clients tell of tries that failed, as they should
                text=True,
                timeout=PATIENCE,
                check=False,
            ).stdout
            lines = [line.split() for line in said.splitlines()]
            found = {int(pid) for pid, _ in lines}
            alive = settled(place)
            kills = int(killed.exists())
            log = Path(place.log_path).read_text() if os.path.exists(place.log_path) else ""
    expected = processes - int(step.startswith("spawner"))
    served = re.findall(r"INFO manager (\d+) serves", log)
    one = (
        kills == int(step != UNDISTURBED)  # somebody came to that step
        and len(lines) == expected
        and found == set(alive)
        and len(alive) == 1
        and len(served) <= 1 + kills
    )
    return Election(one, kills, log.count("already serves"), [float(wait) for _, wait in lines])


def environment(place: Address, step: str, killed: Path) -> Mapping[str, str]:
    """Where the processes look for the manager, and who of them is killed."""
    paths = [str(Path(switchgear.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    mine = {"SWITCHGEAR_ADDRESS": str(place)}
    if step != UNDISTURBED:
        paths.insert(0, str(KILLER))
        mine |= {"KILL": step, "KILLED": str(killed)}
    inherited = {key: value for key, value in os.environ.items() if "SWITCHGEAR" not in key}
    return {**inherited, **mine, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def settled(place: Address) -> list[int]:
    """The managers, once those that have lost have ended."""
    deadline = time.monotonic() + PATIENCE
    while len(found := managers(place)) != 1 and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


def managers(place: Address) -> list[int]:
    """The processes of managers at an address, and of candidates."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if b"switchgear.manager" in words and str(place).encode() in words:
                    found.append(int(entry))
    return found


@contextlib.contextmanager
def left_alone(place: Address) -> Iterator[None]:
    """Leave no manager behind."""
    try:
        yield
    finally:
        while found := managers(place):
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)


def run(settings: Settings) -> Section:
    """In about half of them nobody is killed; in the others, somebody at each step in turn."""
    processes = settings.pick(PROCESSES, 6)
    steps = settings.pick(STEPS, (STEPS[0], STEPS[5], STEPS[18]))
    each = settings.pick(math.ceil(ELECTIONS / 2 / len(STEPS)), 1)
    undisturbed = settings.pick(ELECTIONS - each * len(STEPS), 2)
    found: dict[str, list[Election]] = {UNDISTURBED: []}
    found |= {step: [] for step in steps}
    for _ in range(each):
        for step in steps:
            found[step].append(elect(processes, step))
            if len(found[UNDISTURBED]) < undisturbed:
                found[UNDISTURBED].append(elect(processes, UNDISTURBED))
    every = [election for elections in found.values() for election in elections]
    wrong = sum(not election.one for election in every)
    rows = [_row(step, elections) for step, elections in (found | {"all": every}).items()]
    return Section(
        "Elections",
        "elections",
        tables=[Table(f"{processes} processes that ask at one moment", HEAD, rows)],
        goals=[
            Goal(
                "in 200 elections of 32 processes, with a kill at each step of the start, there is "
                "one manager each time",
                f"{len(every) - wrong} of {len(every)}",
                not wrong,
            )
        ],
        notes=[
            "All processes are forked, and make their first call when they are let go, at an "
            "address where nobody ever was. One manager: every process that lived was answered by "
            "the same, and in the end no other process of a manager was left.",
            "Who is killed: the candidate, as `manager`; the client that starts it, `spawner`; the "
            "process between them, `messenger`. Where: the function that is called or returns.",
        ],
    )


def _row(step: str, elections: Sequence[Election]) -> list[str]:
    waits = [wait for election in elections for wait in election.waits]
    role, *where = step.split()
    words = " ".join((role, *(word for word in where if word not in ("-", "1"))))
    return [
        words,
        str(len(elections)),
        str(sum(election.one for election in elections)),
        str(sum(election.killed for election in elections)),
        str(sum(election.refused for election in elections)),
        number(percentile(waits, 0.5)),
        number(max(waits, default=math.nan)),
    ]
