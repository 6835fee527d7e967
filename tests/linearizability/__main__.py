"""`python -m linearizability`: as many histories as you like, from real processes; or one again.

--histories 100 --seed 7     a hundred runs, of the seeds 7 to 106
--operations 500000          as many as it takes
--check FILE                 check a history that was kept
--show FILE                  print it, in the order of its numbers
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from . import campaign, history, operations
from .campaign import Tally

# A manager keeps every circuit that it was ever told of, so it is replaced after so many runs.
RUNS_EACH: Final = 200


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m linearizability", description=__doc__)
    parser.add_argument("--histories", type=int, default=300, help="at most; default: 300")
    parser.add_argument("--operations", type=int, help="go on until so many were checked")
    parser.add_argument("--seed", type=int, default=1, help="of the first history; default: 1")
    parser.add_argument("--workers", type=int, default=campaign.WORKERS, help="processes at a time")
    parser.add_argument("--steps", type=int, default=campaign.STEPS, help="of one process")
    parser.add_argument("--losses", action="store_true", help="kill the manager in each")
    parser.add_argument("--keep", type=Path, default=Path("histories"), help="wrong ones, where")
    parser.add_argument("--check", type=Path, metavar="FILE", help="check a kept history again")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print a kept history")
    options = parser.parse_args(arguments)
    if options.show is not None:
        return show(options.show)
    if options.check is not None:
        return check(options.check)
    return run(options)


def run(options: argparse.Namespace) -> int:
    """A campaign, and what it came to in one line."""
    began = time.monotonic()
    whole = Tally()
    wanted = options.operations
    left = iter(itertools.count(options.seed) if wanted else range(options.histories))
    if not wanted:
        left = iter(range(options.seed, options.seed + options.histories))
    while seeds := list(itertools.islice(left, RUNS_EACH)):
        before = whole

        def progress(tally: Tally, before: Tally = before) -> None:
            so_far = before + tally
            seconds = time.monotonic() - began
            sys.stderr.write(
                f"\r{so_far.histories} histories, {so_far.operations} operations, "
                f"{len(so_far.wrong)} wrong, {seconds:.0f} s "
            )

        def enough(tally: Tally, before: Tally = before) -> bool:
            return bool(wanted) and before.operations + tally.operations >= wanted

        whole = before + campaign.run(
            seeds,
            options.keep,
            steps=options.steps,
            losses=options.losses,
            workers=options.workers,
            progress=progress,
            enough=enough,
        )
        if enough(Tally(), whole):
            break
    sys.stderr.write("\n")
    seconds = time.monotonic() - began
    for seed, wrong in whole.wrong.items():
        kept = options.keep / f"{seed}.history"
        sys.stdout.write(f"wrong: seed {seed}, kept as {kept}\n    {wrong}\n")
    for seed in whole.undecided:
        sys.stdout.write(f"undecided: seed {seed}, kept as {options.keep / f'{seed}.history'}\n")
    sys.stdout.write(f"decisions: {_listed(whole.kinds)}\n")
    sys.stdout.write(f"changes: {_listed(whole.changes)}\n")
    sys.stdout.write(f"{whole}, seconds: {seconds:.0f}\n")
    return 1 if whole.wrong or whole.undecided else 0


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{what} {count}" for what, count in sorted(counts.items()))


def check(path: Path) -> int:
    """Check one history, and print all that is wrong."""
    result = campaign.check(history.load(path))
    for wrong in result.wrong:
        sys.stdout.write(f"{wrong}\n")
    sys.stdout.write(f"operations: {result.operations}, wrong: {len(result.wrong)}\n")
    return 1 if result.wrong else 0


def show(path: Path) -> int:
    """Print one history."""
    run = history.load(path)
    found = operations.match(run).all
    known = {one.number: one for one in found if one.number is not None}
    events = run.events()
    for number in range(run.first, run.last + 1):
        one = known.get(number)
        told = "" if one is None else f"{one.sent:.6f} {one.received:.6f} {one}"
        sys.stdout.write(f"{number} {told}\n")
        for event in events.get(number, []):
            sys.stdout.write(f"    {event.at:.6f} {event.message}\n")
    for one in found:
        if one.number is None:
            sys.stdout.write(f"? {one.sent:.6f} {one.received:.6f} {one}\n")
    for call in run.called:
        sys.stdout.write(f"{call}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
