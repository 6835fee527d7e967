"""How everything here is measured: calibrated samples taken in turns, medians and ratios of them.

A machine that others use is slow for a while and then fast again. So every candidate is measured
once in each round, the order changes from round to round, and a ratio is taken within a round: what
slows the machine down slows both sides. Reported is the median of the rounds, beside the lowest and
the highest.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.metadata
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

T = TypeVar("T")

PATIENCE: Final = (
    10.0  # seconds of `acquire_timeout`: on a loaded machine a healthy manager is slow
)


@dataclass(frozen=True)
class Settings:
    """What a benchmark may use and how long it may take.

    Attributes:
        quick: Tiny budgets: everything is exercised, nothing is measured well.
        peers: Other packages may be measured, where they are installed.
        redis: The socket of a Redis server, or None where there is none.
    """

    quick: bool
    peers: bool
    redis: str | None

    def pick(self, full: T, quick: T) -> T:
        """The value for this run."""
        return quick if self.quick else full


class Figure(NamedTuple):
    """A median and what it is the median of."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Figure:
        """Of at least one value."""
        values = sorted(values)
        return cls(statistics.median(values), values[0], values[-1])


class Candidate(NamedTuple):
    """What is measured, in samples of many calls.

    Attributes:
        label: Unique within a comparison.
        run: Makes that many calls and returns the seconds they took.
        prepare: Called before every sample, untimed.
        most: Calls that one sample may have at most.
    """

    label: str
    run: Callable[[int], float]
    prepare: Callable[[], object] = lambda: None
    most: int = 5_000_000


Samples = dict[str, list[float]]  # seconds a call, one of each round


def in_turns(candidates: Sequence[Candidate], rounds: int, seconds: float) -> Samples:
    """Measure each candidate once in each round, `seconds` long or so."""
    counts = {each.label: calibrate(each, seconds) for each in candidates}
    samples: Samples = {each.label: [] for each in candidates}
    with settled():
        for number in range(rounds):
            first = number % len(candidates)
            for each in [*candidates[first:], *candidates[:first]]:
                samples[each.label].append(sample(each, counts[each.label]))
    return samples


@contextlib.contextmanager
def settled() -> Iterator[None]:
    """Keep the collector away from what is there already: it is nobody's garbage, and much."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def sample(candidate: Candidate, calls: int) -> float:
    """Seconds a call. All start with nothing to collect; then the collector runs as usual."""
    candidate.prepare()
    gc.collect()
    return candidate.run(calls) / calls


def calibrate(candidate: Candidate, seconds: float) -> int:
    """How many calls take that long. This is the warm-up, too."""
    candidate.prepare()
    calls = 1
    while True:
        took = candidate.run(calls)
        if took >= seconds / 4 or calls >= candidate.most:
            return max(1, min(candidate.most, int(calls * seconds / took)))
        calls = min(calls * 4, candidate.most)


def ratio(samples: Mapping[str, Sequence[float]], label: str, base: str) -> Figure:
    """How much dearer one is than the other, within the rounds."""
    pairs = zip(samples[label], samples[base], strict=True)
    return Figure.of(one / other for one, other in pairs)


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    values = sorted(values)
    return values[min(len(values) - 1, max(0, -(-int(share * len(values) * 1000) // 1000) - 1))]


# -- processes -------------------------------------------------------------------------------------


def cpu_seconds(pid: int) -> float:
    """What the threads of a process have used so far, to the nanosecond where the kernel counts."""
    total = 0
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # a thread that has ended just now
                total += int((task / "schedstat").read_text().split()[0])
    except OSError:
        total = 0
    return total / 1e9 if total else _ticks(pid)


def _ticks(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int | str) -> int:
    """Bytes of a process that are in memory now."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("this kernel does not say how much memory a process has")


@contextlib.contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Seconds since the block began."""
    began = time.perf_counter()
    yield lambda: time.perf_counter() - began


# -- the machine -----------------------------------------------------------------------------------


def machine() -> list[tuple[str, str]]:
    """What the figures were taken on. No host name: nobody else's business."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    cores = len(os.sched_getaffinity(0))
    return [
        ("processor", f"{model}, {cores} core{'s' if cores > 1 else ''}"),
        ("kernel", f"Linux {platform.release().split('-')[0]}"),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
    ]


def version_of(package: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
