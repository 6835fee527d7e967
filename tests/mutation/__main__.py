"""The mutation score of the pure core and the wire: `python tests/mutation [module ...]`.

Prints how many mutants the unit tests kill, by module and by what was changed, and fails when one
lives that survivors.toml does not list with a reason, or when one is listed there that does not
live.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

from campaign import Campaign, Fate
from mutants import KINDS, Key, Module, kind_of
from survivors import ROOT, as_toml, modules, read

CACHE: Final = ROOT / ".mutants"


def main() -> int:
    """See the module."""
    options = parse(sys.argv[1:])
    every = modules()
    chosen = [module for module in every if not options.modules or named(module, options.modules)]
    mutants = {mutant.key: (module, mutant) for module in chosen for mutant in module.mutants}
    if options.since:
        touched = {module.name: changed(module, options.since) for module in chosen}
        mutants = {
            key: (module, mutant)
            for key, (module, mutant) in mutants.items()
            if not touched[module.name].isdisjoint(range(mutant.first, mutant.last + 1))
        }
    if options.sample:
        keys = random.Random(options.seed).sample(sorted(mutants), options.sample)
        mutants = {key: mutants[key] for key in sorted(keys)}
    began = time.monotonic()
    campaign = Campaign(
        every,
        CACHE,
        options.jobs,
        lambda fate: progress(campaign, mutants, began),
        again=options.again,
    )
    campaign.run(mutants)
    print(file=sys.stderr)
    fates = [campaign.fates[key] for key in mutants]
    report(chosen, fates)
    print(f"{time.monotonic() - began:.0f} s, {options.jobs} at once")
    return judge(fates, read())


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python tests/mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", help="such as circuit or manager.actor; else all")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sample", type=int, default=0, help="only so many, drawn with the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--since", metavar="COMMIT", help="only in lines that were changed since")
    parser.add_argument(
        "--again", action="store_true", help="only what lived before, with the tests that are new"
    )
    return parser.parse_args(arguments)


def named(module: Module, names: Sequence[str]) -> bool:
    return module.name in names or module.name.rpartition(".")[2] in names


def changed(module: Module, commit: str) -> set[int]:
    """The lines of a module that are not as they were at a commit."""
    diff = ["git", "diff", "--unified=0", commit, "--", str(module.path)]
    text = subprocess.run(diff, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    hunks = re.findall(r"^@@ -\S+ \+(\d+)(?:,(\d+))? @@", text, re.MULTILINE)
    return {int(first) + line for first, count in hunks for line in range(int(count or 1))}


def progress(campaign: Campaign, mutants: Mapping[Key, object], began: float) -> None:
    done = len(campaign.fates)
    alive = sum(not fate.dead for fate in campaign.fates.values())
    text = f"\r{done}/{len(mutants)} mutants, {alive} live, {time.monotonic() - began:.0f} s "
    os.write(2, text.encode())


def report(modules: Sequence[Module], fates: Sequence[Fate]) -> None:
    print(f"{'module':24} {'killed':>7} {'mutants':>8} {'score':>8}")
    for module in modules:
        row(module.name, [fate for fate in fates if fate.key.module == module.name])
    row("all", fates)
    print(f"\n{'what was changed':24} {'killed':>7} {'mutants':>8} {'score':>8}")
    for kind in KINDS:
        row(kind, [fate for fate in fates if kind_of(fate.key.mutation) == kind])


def row(name: str, fates: Sequence[Fate]) -> None:
    """One line of a table; none for what there was none of."""
    if fates:
        dead = sum(fate.dead for fate in fates)
        print(f"{name:24} {dead:7} {len(fates):8} {100 * dead / len(fates):7.1f}%")


def judge(fates: Sequence[Fate], listed: Mapping[Key, str]) -> int:
    alive = {fate.key: fate for fate in fates if not fate.dead}
    tried = {fate.key for fate in fates}
    unlisted = [key for key in alive if key not in listed]
    obsolete = [key for key in listed if key in tried and key not in alive]
    for key in unlisted:
        print(f"\nlives, and is not listed ({alive[key].tests} tests reach it):\n{as_toml(key)}")
    for key in obsolete:
        print(f"\nis listed, and does not live:\n{as_toml(key)}")
    print(f"{len(alive)} live, {len(unlisted)} of them not listed; {len(obsolete)} listed in vain")
    return int(bool(unlisted or obsolete))


if __name__ == "__main__":
    raise SystemExit(main())
