"""The command: `make simulate`, or `python -m simulation --help` from the tests' folder."""

from __future__ import annotations

import argparse
import os
import sys
import time

from .campaign import Result, bar, live, run
from .life import Life
from .plants import PLANTS, planted


def main() -> int:
    """Run lives, or one again; 1 means that something was broken."""
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1_000, help="how many lives")
    parser.add_argument("--first", type=int, default=1, help="the first one's seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that run them")
    parser.add_argument("--plant", choices=PLANTS, help="a bug to have, until it is found")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one life and tell all")
    arguments = parser.parse_args()
    if arguments.replay is not None:
        return replay(arguments.replay, arguments.plant)
    seeds = range(arguments.first, arguments.first + arguments.seeds)
    began = time.monotonic()
    result = run(seeds, arguments.jobs, plant=arguments.plant, progress=bar(len(seeds)))
    tell(result, time.monotonic() - began, arguments.plant)
    return 1 if result.failures else 0


def replay(seed: int, plant: str | None) -> int:
    """Run one life again: every thing that happened, and how it ended."""
    life = Life(seed, tracing=True)
    with planted(plant):
        failure = live(life)
    print("\n".join(life.world.trace))
    print(f"life {seed}, {life.world.events} events, digest {life.world.digest}")
    if failure is None:
        return 0
    print(f"broken: {failure}")
    return 1


def tell(result: Result, seconds: float, plant: str | None) -> None:
    """Say what came of it, and how to see it again."""
    for kind, count in sorted(result.seen.items()):
        print(f"{count:14,}  {kind}")
    rate = result.events / result.seconds
    print(
        f"{result.lives:,} lives, {result.events:,} events, {len(result.failures)} broken; "
        f"{seconds:.0f} s, {rate:,.0f} events a second a core"
    )
    bug = f" PLANT={plant}" if plant else ""
    for seed, failure in sorted(result.failures.items()):
        print(f"\nseed {seed}: {failure}\n    make simulate SEED={seed}{bug}")


if __name__ == "__main__":
    sys.exit(main())
