"""The `switchgear` command: run a manager, look at its circuits, reset one.

Exit codes: 0 done · 1 refused (an unknown circuit, an address that is taken) · 2 wrong usage or a
value out of its range · 3 no manager answers.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence

from ..client.client import Client, connect
from ..errors import BreakerError, CapacityError, ConfigError, ManagerUnavailableError
from ..manager import run
from . import render

OK, REFUSED, USAGE, NO_MANAGER = 0, 1, 2, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code, see the module."""
    options = _parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may have letters the terminal has not
            stream.reconfigure(errors="backslashreplace")
    try:
        code: int = options.run(options)
        if sys.stdout is not None:  # as after `>&-`; print() does nothing then
            sys.stdout.flush()
    except BrokenPipeError:  # as `| head` leaves us; Python is not to meet it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except CapacityError as error:
        return _complain(options, error, REFUSED)
    except ManagerUnavailableError as error:
        return _complain(options, error, NO_MANAGER)
    except ConfigError as error:
        return _complain(options, error, USAGE)
    except BreakerError as error:
        return _complain(options, error, REFUSED)
    return code


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--address", help="ipc:///path or /path; default: the host's own manager")
    common.add_argument("--json", action="store_true", help="print one JSON document")
    parser = argparse.ArgumentParser(
        prog="switchgear", description="Circuit breakers that every process shares.",
        epilog="exit codes: 0 done, 1 refused, 2 wrong usage, 3 no manager answers",
    )  # fmt: skip
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", parents=[common], help="run a manager in the foreground")
    run.add_limits(serve)
    serve.set_defaults(run=_serve)

    listing = commands.add_parser("list", parents=[common], help="show every circuit")
    listing.set_defaults(run=_list)

    stats = commands.add_parser("stats", parents=[common], help="show one circuit in full")
    stats.add_argument("name", metavar="NAME")
    stats.set_defaults(run=_stats)

    reset = commands.add_parser("reset", parents=[common], help="close one circuit by hand")
    reset.add_argument("name", metavar="NAME")
    reset.set_defaults(run=_reset)
    return parser


def _serve(options: argparse.Namespace) -> int:
    def announce(said: Mapping[str, object]) -> None:
        print(json.dumps(said), flush=True)  # in a line: whoever started us waits for that

    return run.serve(
        options.address,
        max_clients=options.max_clients,
        max_circuits=options.max_circuits,
        announce=announce if options.json else None,
    )


def _list(options: argparse.Namespace) -> int:
    with _client(options) as client:
        circuits = client.breakers()
    if options.json:
        _print_json([render.stats_as_json(stats) for stats in circuits.values()])
    else:
        print(render.table(circuits.values()))
    return OK


def _stats(options: argparse.Namespace) -> int:
    with _client(options) as client:
        stats, metrics = client.stats(options.name), client.metrics(options.name)
        history = client.history(options.name)
    if options.json:
        _print_json(
            {
                **render.stats_as_json(stats),
                "metrics": render.metrics_as_json(metrics),
                "history": [render.change_as_json(change) for change in history],
            }
        )
    else:
        print(render.report(stats, metrics, history))
    return OK


def _reset(options: argparse.Namespace) -> int:
    with _client(options) as client:
        client.reset(options.name)
        stats = client.stats(options.name)
    if options.json:
        _print_json(render.stats_as_json(stats))
    else:
        print(f"{options.name}: {stats.state}, generation {stats.generation}")
    return OK


def _client(options: argparse.Namespace) -> Client:
    return connect(options.address, autostart=False)  # to look at what is there


def _print_json(value: object) -> None:
    # In ASCII: JSON leaves what controls a terminal beyond U+001F as it is, and errors may have it.
    print(json.dumps(value, indent=2), flush=True)


def _complain(options: argparse.Namespace, error: BreakerError, code: int) -> int:
    if options.json:
        _print_json({"error": type(error).__name__, "message": str(error)})
    print(f"switchgear: {error}", file=sys.stderr)
    return code
