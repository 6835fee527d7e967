"""The manager process itself: what it is told on its command line, and how it ends."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from ..address import Address
from ..config import check_count
from ..errors import ConfigError
from ..launch import READY, TAKEN
from .limits import MAX_CIRCUITS, MAX_CLIENTS
from .server import AlreadyRunningError, Server


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m switchgear.manager`. Other processes of ours pass what people have no use for."""
    parser = argparse.ArgumentParser(
        prog="python -m switchgear.manager",
        description="Run the breaker manager in the foreground until SIGTERM or SIGINT.",
    )
    parser.add_argument("--address", help="ipc:///path or /path; default: the host's own")
    parser.add_argument("--parent", type=int, help="end when this process, our parent, ends")
    parser.add_argument("--ready-fd", type=int, help="where to say that the sockets answer")
    parser.add_argument(
        "--idle-exit",
        type=float,
        metavar="SECONDS",
        help="end when nobody has used it for so long, or its files are removed",
    )
    add_limits(parser)
    parser.add_argument("--log-level", default="INFO", help="default: INFO")
    options = parser.parse_args(arguments)
    return serve(
        options.address,
        parent=options.parent,
        ready_fd=options.ready_fd,
        idle_exit=options.idle_exit,
        log_level=options.log_level,
        max_clients=options.max_clients,
        max_circuits=options.max_circuits,
    )


def add_limits(parser: argparse.ArgumentParser) -> None:
    """Let a command line say how much the manager takes on."""
    what = "how many {} to take on; default: SWITCHGEAR_MAX_{}, or {}"
    for name, default in (("clients", MAX_CLIENTS), ("circuits", MAX_CIRCUITS)):
        text = what.format(name, name.upper(), default)
        parser.add_argument(f"--max-{name}", type=int, metavar="N", help=text)


def serve(
    address: str | None,
    *,
    parent: int | None = None,
    ready_fd: int | None = None,
    idle_exit: float | None = None,
    log_level: str = "INFO",
    max_clients: int | None = None,
    max_circuits: int | None = None,
    announce: Callable[[Mapping[str, object]], None] | None = None,
) -> int:
    """Run a manager in this process, which must be in its main thread, until told to stop.

    Args:
        address: Where to listen; None means the host's own.
        parent: Our parent's process number: end when it does.
        ready_fd: Where to write READY, or what went wrong, which begins with TAKEN where another
            manager holds the address.
        idle_exit: See `Server`.
        log_level: Of the log on standard error.
        max_clients: See `Server`; None means what the environment says, or the default.
        max_circuits: The same.
        announce: Called with address and pid once the sockets answer, or with error and message.

    Returns:
        An exit code: 0 after an orderly stop, 1 if the address is taken, 2 if it is unfit.
    """
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(name)s %(levelname)s %(message)s"
    )
    try:
        place = Address.parse(address)
        until = () if parent is None else (_parent_descriptor(parent),)
        server = Server(
            place,
            until,
            idle_exit,
            max_clients=_limit("max_clients", max_clients, MAX_CLIENTS),
            max_circuits=_limit("max_circuits", max_circuits, MAX_CIRCUITS),
        )
    except (ConfigError, OSError) as error:
        taken = TAKEN if isinstance(error, AlreadyRunningError) else b""
        _tell(ready_fd, taken + str(error).encode())
        if announce is not None:
            announce({"error": type(error).__name__, "message": str(error)})
        sys.stderr.write(f"switchgear: {error}\n")
        return 1 if isinstance(error, AlreadyRunningError) else 2

    def ready() -> None:
        _tell(ready_fd, READY)
        if announce is not None:
            announce({"address": str(place), "pid": os.getpid()})

    server.serve(ready)
    return 0


def _limit(name: str, chosen: int | None, default: int) -> int:
    variable = f"SWITCHGEAR_{name.upper()}"
    said = os.environ.get(variable)
    if chosen is None and said:
        check_count(variable, int(said) if said.isdecimal() else said)
        return int(said)
    value = default if chosen is None else chosen
    check_count(name, value)
    return value


def _tell(fd: int | None, text: bytes) -> None:
    """Say one thing to whoever started us, if they are still there, and close the line."""
    if fd is not None:
        with contextlib.suppress(BrokenPipeError):
            os.write(fd, text)
        os.close(fd)


def _parent_descriptor(parent: int) -> int:
    """A descriptor that becomes readable when our parent ends, however it ends.

    A pidfd, because the end of a pipe would be kept open by every child that the parent forks.
    """
    fd = os.pidfd_open(parent)
    if os.getppid() != parent:  # it had ended before, and the number may be somebody else's by now
        raise ConfigError(f"process {parent} is not the parent of this one")
    return fd
