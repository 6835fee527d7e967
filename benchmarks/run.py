"""Run the benchmarks: `make bench`. Everything side by side, in turns, with its goals.

python benchmarks/run.py [--quick] [--only NAME ...] [--no-peers] [--output DIRECTORY]
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Final

import call_cost
import elections
import idle
import journal
import kills
import manager_kills
import msgpack
import outage
import overhead
import round_trip
import scale
import throughput
import zmq
from measure import Settings, machine, version_of
from peers import OTHERS, OURS, Peer
from redis_server import HOW_TO_GET_IT, RedisServer, redis_server
from report import Results, Section, show, show_goals, write

HERE: Final = Path(__file__).parent
BENCHMARKS: Final = {
    module.__name__: module
    for module in (
        *(call_cost, round_trip, throughput, journal, scale),
        *(outage, kills, manager_kills, elections, overhead, idle),
    )
}


def main() -> int:
    """One after the other: they would disturb each other."""
    arguments = parse()
    with redis_server() as redis:
        path = redis.path if redis is not None and version_of("redis") is not None else None
        settings = Settings(arguments.quick, not arguments.no_peers, path)
        left_out = missing(settings, redis)
        results = Results(command(arguments), facts(settings, redis), setups(settings), left_out)
        for name, value in results.machine:
            print(f"{name}: {value}")
        for what in left_out:
            print(f"left out: {what}")
        failed = [
            name
            for name in BENCHMARKS
            if (not arguments.only or name in arguments.only)
            and not measured(name, settings, results.sections)
        ]
    show_goals(results.sections)
    if directory := output(arguments):
        write(results, directory)
        print(f"\nwritten: {directory / 'RESULTS.md'}")
    for name in failed:
        print(f"failed: {name}; see above", file=sys.stderr)
    return 1 if failed else 0


def measured(name: str, settings: Settings, sections: list[Section]) -> bool:
    """Run one. One that fails is no reason to throw away the others."""
    title = (BENCHMARKS[name].__doc__ or "").splitlines()[0]
    print(f"\n== {name}: {title} ==", flush=True)
    began = time.monotonic()
    try:
        section = BENCHMARKS[name].run(settings)
    except Exception:
        traceback.print_exc()
        return False
    sections.append(section)
    show(section)
    print(f"({time.monotonic() - began:.0f} s)", flush=True)
    return True


def parse() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="Run the benchmarks.")
    parser.add_argument(
        "--quick", action="store_true", help="run everything for a moment; the figures say nothing"
    )
    parser.add_argument(
        "--only", nargs="+", choices=BENCHMARKS, metavar="NAME", help=", ".join(BENCHMARKS)
    )
    parser.add_argument("--no-peers", action="store_true", help="only switchgear")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIRECTORY",
        help="where RESULTS.md and the charts go; benchmarks/ after a whole run, else nowhere",
    )
    return parser.parse_args()


def output(arguments: argparse.Namespace) -> Path | None:
    """Where the results go. A run of less than everything replaces no results unasked."""
    if arguments.output is not None:
        return Path(arguments.output)
    whole = not (arguments.quick or arguments.only or arguments.no_peers)
    return HERE if whole else None


def command(arguments: argparse.Namespace) -> str:
    """What was called, without where."""
    words = ["python benchmarks/run.py"]
    words += ["--quick"] if arguments.quick else []
    words += ["--no-peers"] if arguments.no_peers else []
    words += ["--only", *arguments.only] if arguments.only else []
    return " ".join(words) if len(words) > 1 else "make bench"


def kinds(settings: Settings) -> list[type[Peer]]:
    """All that may be measured, installed or not."""
    return [*OURS, *(OTHERS if settings.peers else ())]


def facts(settings: Settings, redis: RedisServer | None) -> list[tuple[str, str]]:
    """The machine and the versions."""
    versions = [
        f"pyzmq {zmq.__version__}",
        f"libzmq {zmq.zmq_version()}",
        f"msgpack {'.'.join(map(str, msgpack.version))}",
    ]
    packages = dict.fromkeys(kind.package for kind in kinds(settings))
    if settings.peers and redis is not None:
        packages |= dict.fromkeys(("redis", "hiredis"))
        versions.append(f"Redis server {redis.version}")
    found = [f"{name} {version}" for name in packages if (version := version_of(name))]
    return [*machine(), ("versions", ", ".join([*found, *versions]))]


def setups(settings: Settings) -> list[tuple[str, str]]:
    """How each candidate is set up."""
    return [(f"{kind.label}", kind.setup) for kind in kinds(settings) if version_of(kind.package)]


def missing(settings: Settings, redis: RedisServer | None) -> list[str]:
    """What this run cannot or does not do, in words."""
    found = []
    if settings.quick:
        found.append("nearly all of the time: this was a quick run, and its figures say nothing")
    if not settings.peers:
        return [*found, "the peers, as was asked for"]
    absent = dict.fromkeys(k.package for k in OTHERS if version_of(k.package) is None)
    if absent:
        found.append(f"{', '.join(absent)}: not installed; `make bench` installs them")
    if redis is None:
        found.append(f"everything on Redis: {HOW_TO_GET_IT}")
    elif settings.redis is None:
        found.append("everything on Redis: its client is not installed; `make bench` installs it")
    return found


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # and everything with it
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("stopped")
