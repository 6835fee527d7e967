"""What does the journal cost the manager's loop?"""

from __future__ import annotations

import json
import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Final, NamedTuple

import managers
from measure import PATIENCE, Settings, percentile
from report import Goal, Section, Table, number
from throughput import load_manager

import switchgear as sg
from switchgear.circuit import Circuit
from switchgear.manager.journal import Journal
from switchgear.manager.unsaved import Unsaved
from switchgear.wire import Event

TRANSITION: Final = 200e-6  # seconds
SHARE: Final = 0.02
WORKERS: Final = 2
WHEN: Final = datetime.fromtimestamp(0, timezone.utc)

# A manager that tells how long it was at its journal, and how long at everything.
TIMED: Final = """
import json, sys, time
from switchgear.manager.actor import Actor
from switchgear.manager.journal import Journal
from switchgear.manager.run import main

spent, commits = 0.0, 0

def timed(owner, name, count):
    call = getattr(owner, name)
    def wrapper(*args):
        global spent, commits
        began = time.thread_time()
        try:
            return call(*args)
        finally:
            spent += time.thread_time() - began
            commits += count and any(args[1])
    setattr(owner, name, wrapper)

timed(Actor, "save", False)
timed(Actor, "take_news", False)
timed(Journal, "write", True)
path, *arguments = sys.argv[1:]
code = main(arguments)
with open(path, "w") as file:
    json.dump((spent, commits, time.process_time()), file)
sys.exit(code)
"""


# -- one transition --------------------------------------------------------------------------------


def transitions(circuits: int, count: int) -> list[float]:
    """Seconds that each of so many transitions holds the loop up for, until it may be told of."""
    chance = random.Random(4711)
    took = []
    with tempfile.TemporaryDirectory(prefix="switchgear-bench-") as directory:
        journal = Journal(f"{directory}/journal")
        journal.open(0.0)
        unsaved = Unsaved()
        all_of_them = [Circuit(f"circuit-{n:05}", sg.CircuitConfig(), 0.0) for n in range(circuits)]
        for circuit in all_of_them:
            unsaved.stands(circuit)
        journal.begin(1, 1, 0.0, unsaved.take_all())
        for version in range(1, count + 1):
            circuit = chance.choice(all_of_them)
            circuit.reset(float(version))
            (change,) = circuit.take_transitions()
            event = Event(version, version, circuit.name, *change[:4], WHEN)
            unsaved.stands(circuit, event)
            began = time.perf_counter()
            journal.write(unsaved.take_news())
            took.append(time.perf_counter() - began)
        journal.close()
    return took


# -- its share at full load ------------------------------------------------------------------------


class Share(NamedTuple):
    """What a manager told after some load."""

    journal: float  # seconds
    commits: int
    busy: float  # seconds of processor time, of all its threads


@contextmanager
def timed_manager(found: list[Share]) -> Iterator[str]:
    """The address of a manager that tells its share when the block has ended."""
    with tempfile.TemporaryDirectory(prefix="switchgear-bench-") as directory:
        told = Path(directory, "told")
        address = f"ipc://{directory}/m"
        process = managers.start(address, ("-c", TIMED, str(told)))
        try:
            yield address
        finally:
            process.terminate()
            process.wait(PATIENCE)
        found.append(Share(*json.loads(told.read_text())))


def load_failing(address: str, seconds: float) -> int:
    """As `load_manager`, and one call in a hundred fails, which is acknowledged at once."""
    return load_manager(address, seconds, failing=100)


def load_leased(address: str, seconds: float) -> int:
    """Call under a lease, as fast as can be; how many calls were made."""
    calls = 0
    with sg.connect(address, acquire_timeout=PATIENCE) as client:
        breaker = client.breaker("bench")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            breaker.execute(int)
            calls += 1
    return calls


FULL: Final = {
    "strict, as many as it can take": load_manager,
    "the same, and one call in 100 fails": load_failing,
}
LOADS: Final[dict[str, Callable[[str, float], int]]] = {
    **FULL,
    "leased, as many as two workers can make": load_leased,
}


def run(settings: Settings) -> Section:
    """One transition at a time, then load of each kind."""
    count, seconds = settings.pick(20_000, 50), settings.pick(5.0, 0.1)
    rows, worst = [], 0.0
    for circuits in (10, settings.pick(10_000, 20)):
        took = transitions(circuits, count)
        p99 = percentile(took, 0.99)
        worst = max(worst, p99)
        figures = (percentile(took, 0.5), p99, percentile(took, 0.999), max(took))
        rows.append([f"{circuits:,}", f"{count:,}", *(number(s * 1e6) for s in figures)])
    spawn = multiprocessing.get_context("spawn")
    loads, shares = [], []
    with spawn.Pool(WORKERS) as pool:
        for label, load in LOADS.items():
            found: list[Share] = []
            with timed_manager(found) as address:
                pool.starmap(load, [(address, seconds)] * WORKERS, chunksize=1)
            (share,) = found
            if label in FULL:
                shares.append(share.journal / share.busy)
            cells = [share.commits / seconds, share.journal / share.commits * 1e6]
            cells += [100 * share.busy / seconds, 100 * share.journal / share.busy]
            loads.append([label, *map(number, cells)])
    return Section(
        "What the journal costs",
        "journal",
        tables=[
            Table(
                "Until a transition is safe and may be told, us",
                ("circuits", "transitions", "p50", "p99", "p99.9", "longest"),
                rows,
            ),
            Table(
                "At full load",
                ("the load", "commits/s", "each, us", "manager's CPU, %", "the journal's share, %"),
                loads,
            ),
        ],
        goals=[
            Goal(
                "a transition takes under 200 us of the loop's time (p99)",
                f"{worst * 1e6:.0f} us",
                worst < TRANSITION,
            ),
            Goal(
                "the journal takes under 2 % of the manager's time at full load",
                f"{max(shares) * 100:.2f} % in the worst of {len(FULL)} loads",
                max(shares) < SHARE,
            ),
        ],
        notes=[
            "Until it is safe: from the moment the loop turns to it until the commit has returned, "
            "collecting what is to be written included. No commit waits for a disk. At full load: "
            "processor time of the loop for the same, beside that of all the manager's threads. "
            "Two workers under a lease are no full load for it."
        ],
    )
