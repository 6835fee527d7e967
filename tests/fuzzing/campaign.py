"""Coverage-guided fuzzing for a bounded time: `make fuzz SECONDS=600`; CONTRIBUTING.md says more.

    campaign.py [--seconds N] [--side manager|client] [--directory D]
    campaign.py --replay FILE --side manager|client

Each side has half of the time, in a process of its own. libFuzzer, through atheris, keeps each
script that reaches code in a way that no other has; the corpus grows from the seeds in `scripts`,
which are computed, and stays in the directory for the next time. A script that fails is kept there
too, and the command printed that replays it. In the end the whole corpus is run over and over
without atheris, in another process, to see that memory stays flat.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Final

SIDES: Final = ("manager", "client")
MOST_BYTES: Final = 4_096  # of a script
HANGS: Final = 10  # seconds; one takes milliseconds
WARM_UP: Final = 2_000  # scripts before the memory is looked at
REPLAYS: Final = 20_000  # scripts between the two looks
DRIFT: Final = 10 * 1024 * 1024  # bytes it may have grown meanwhile: 500 for each


def main() -> int:
    """Do what the command line says; 1: something was found."""
    parser = argparse.ArgumentParser(description="Fuzz the protocol.")
    parser.add_argument("--seconds", type=int, default=600, help="for all of it")
    parser.add_argument("--side", choices=SIDES, help="only this one")
    parser.add_argument("--directory", type=Path, default=Path(".fuzz"), help="what is kept")
    parser.add_argument("--replay", type=Path, help="run one script, without atheris")
    parser.add_argument("--replays", type=int, default=REPLAYS, help="to see memory flat")
    parser.add_argument("--child", choices=("fuzz", "flat"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if options.replay is not None:
        side = options.side or parser.error("--replay needs --side")
        with scratch() as place:
            runner(side, Path(place))(options.replay.read_bytes())
        print("nothing is wrong with it")
        return 0
    if options.child is not None:
        if options.child == "fuzz":
            instrument()  # before they are imported
        with scratch() as place:
            run = runner(options.side, Path(place))
            if options.child == "flat":
                return flat(run, options.directory / options.side, options.replays)
            return fuzz(run, options.directory / options.side, options.side, options.seconds)
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: it has wheels for CPython 3.10 to 3.13 on x86-64 Linux")
        return 1
    sides = SIDES if options.side is None else (options.side,)
    seconds = max(1, options.seconds // len(sides))
    wrong = [side for side in sides if not campaign(side, options.directory, seconds, options)]
    return int(bool(wrong))


def runner(side: str, directory: Path | None = None) -> Callable[[bytes], object]:
    """What runs a script of a side; the manager's may write a file, if there is a directory."""
    from scripts import run_client_side, run_manager_side

    if side == "client":
        return run_client_side
    return lambda script: run_manager_side(script, directory)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A directory where a file costs nothing, if the machine has one."""
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


# -- the parent ------------------------------------------------------------------------------------


def campaign(side: str, directory: Path, seconds: int, options: argparse.Namespace) -> bool:
    """Fuzz one side, then look at the memory; say what came of it, and whether all is well."""
    place = directory / side
    (place / "corpus").mkdir(parents=True, exist_ok=True)
    before = set(place.glob("found-*"))
    log = place / "log"
    with log.open("wb") as output:
        ended = _child("fuzz", side, directory, "--seconds", str(seconds), output=output)
    text = log.read_text(errors="replace")
    print(f"== the {side}'s side ==")
    for pattern in (r"^#\d+.*(?:DONE|INITED).*$", r"^Done .*$", r"^switchgear: .*$"):
        for line in re.findall(pattern, text, re.MULTILINE):
            print(line)
    found = sorted(set(place.glob("found-*")) - before)
    for script in found:
        command = f"{sys.executable} {sys.argv[0]} --side {side} --replay {script}"
        print(f"FOUND: PYTHONPATH=tests/unit {command}")
    if ended and not found:
        print(f"atheris ended with {ended}; see {log}")
    kept = not _child("flat", side, directory, "--replays", str(options.replays))
    return not ended and not found and kept


def _child(what: str, side: str, directory: Path, *more: str, output: object = None) -> int:
    sys.stdout.flush()
    command = [sys.executable, sys.argv[0], "--child", what, "--side", side]
    command += ["--directory", str(directory), *more]
    return subprocess.run(command, stdout=output, stderr=output, check=False).returncode  # type: ignore[call-overload]


# -- its children ----------------------------------------------------------------------------------


def instrument() -> None:
    """Import the package so that atheris sees where a script goes."""
    import atheris

    with atheris.instrument_imports(include=["switchgear"]):
        import switchgear.client.link
        import switchgear.manager.server  # noqa: F401
    from switchgear import wire

    for message, read in wire._READERS.items():  # these were made of text, and not imported
        wire._READERS[message] = atheris.instrument_func(read)


def fuzz(run: Callable[[bytes], object], directory: Path, side: str, seconds: int) -> int:
    """Have libFuzzer look for what fails; it ends the process when it has found something."""
    import atheris
    from scripts import SEEDS, mutate

    corpus = directory / "corpus"
    for number, seed in enumerate(SEEDS[side]()):
        (corpus / f"seed-{number}").write_bytes(seed)

    def one_input(script: bytes) -> None:
        run(script)

    def another(script: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.25:
            return atheris.Mutate(script, most)  # type: ignore[no-any-return]
        for _ in range(random.randrange(1, 4)):
            script = mutate(script, random)
        return script[:most]

    arguments = [
        *(sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}"),
        *(f"-timeout={HANGS}", f"-artifact_prefix={directory}/found-"),
        *("-print_final_stats=1", "-rss_limit_mb=2048"),
    ]
    atheris.Setup(arguments, one_input, custom_mutator=another)
    atheris.Fuzz()
    return 0


def flat(run: Callable[[bytes], object], directory: Path, replays: int) -> int:
    """Run the corpus over and over; 1: the memory that this takes has grown.

    The bound is what a leak of a few hundred bytes a script would come to; what the allocator
    itself keeps varies by a few hundred KiB in all.
    """
    scripts = [path.read_bytes() for path in sorted((directory / "corpus").iterdir())]
    for number in range(WARM_UP):
        run(scripts[number % len(scripts)])
    before = resident()
    for number in range(replays):
        run(scripts[number % len(scripts)])
    grown = resident() - before
    print(
        f"memory: {len(scripts)} scripts, {replays} runs after {WARM_UP} to warm up: "
        f"{before / 2**20:.1f} MiB, and {grown / 2**10:+.0f} KiB then"
    )
    return int(grown > DRIFT)


def resident() -> int:
    """How much of this process is in memory, bytes."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
