"""Many lives, on all cores."""

from __future__ import annotations

import logging
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from .life import Life
from .plants import planted
from .world import Violation

SHARE: Final = 20  # lives that a process is given at a time


class Result(NamedTuple):
    """What came of some lives, or of many.

    Attributes:
        lives: How many there were.
        events: That happened in them.
        seconds: Of processor time that they took.
        seen: How often each kind of thing happened.
        failures: What was broken, by seed, and the digest of that life.
    """

    lives: int
    events: int
    seconds: float
    seen: Counter[str]
    failures: dict[int, str]

    def __add__(self, other: object) -> Result:
        assert isinstance(other, Result)
        return Result(
            self.lives + other.lives,
            self.events + other.events,
            self.seconds + other.seconds,
            self.seen + other.seen,
            {**self.failures, **other.failures},
        )


NOTHING: Final = Result(0, 0, 0.0, Counter(), {})


def live(life: Life) -> str | None:
    """Run one life, and say what was broken, if anything was."""
    # Managers say when they go on from a journal, and clients when they lose one: as they should.
    logging.disable(logging.CRITICAL)
    try:
        life.run()
    except Violation as violation:
        return f"{violation} [{life.world.digest}]"
    except Exception as error:  # the package's own, which is as bad
        return f"{type(error).__name__}: {error} [{life.world.digest}]"
    finally:
        logging.disable(logging.NOTSET)
    return None


def live_all(seeds: range, plant: str | None = None) -> Result:
    """Run some lives in this process."""
    began, events, seen = time.process_time(), 0, Counter[str]()
    failures: dict[int, str] = {}
    with planted(plant):
        for seed in seeds:
            life = Life(seed)
            failure = live(life)
            if failure is not None:
                failures[seed] = failure
            events += life.world.events
            seen += life.seen
    return Result(len(seeds), events, time.process_time() - began, seen, failures)


def _live_share(share: tuple[range, str | None]) -> Result:
    return live_all(*share)


def run(
    seeds: range,
    jobs: int,
    *,
    plant: str | None = None,
    progress: Callable[[Result], None] = lambda so_far: None,
) -> Result:
    """Run many lives, in several processes; with a bug, only until it is found."""
    shares = [(seeds[first : first + SHARE], plant) for first in range(0, len(seeds), SHARE)]
    result = NOTHING
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        for part in pool.imap(_live_share, shares):
            result += part
            progress(result)
            if plant is not None and result.failures:
                break
    return result


def bar(total: int) -> Callable[[Result], None]:
    """Show how far it has come: on a terminal as it goes, elsewhere now and then.

    What is broken is shown at once.
    """
    began = time.monotonic()
    shown = _every(total // 20)
    known: set[int] = set()

    def show(so_far: Result) -> None:
        for seed in sorted(so_far.failures.keys() - known):
            known.add(seed)
            sys.stderr.write(f"seed {seed}: {so_far.failures[seed]}\n")
        if not (sys.stderr.isatty() or shown(so_far.lives)):
            return
        done = so_far.lives / total
        left = (time.monotonic() - began) * (1 - done) / done
        filled = "#" * int(30 * done)
        end = "\r" if sys.stderr.isatty() and done < 1 else "\n"
        text = f"[{filled:30}] {so_far.lives:,} lives, {len(so_far.failures)} broken, {left:.0f} s"
        sys.stderr.write(f"{text} left{end}")

    return show


def _every(step: int) -> Callable[[int], bool]:
    """Whether a number is the first beyond another multiple of the step."""

    def steps() -> Iterator[int]:
        yield from range(max(step, 1), sys.maxsize, max(step, 1))

    marks = steps()
    ahead = [next(marks)]

    def passed(number: int) -> bool:
        if number < ahead[0]:
            return False
        while ahead[0] <= number:
            ahead[0] = next(marks)
        return True

    return passed
