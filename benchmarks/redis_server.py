"""A Redis server of our own, for the peers that share circuits through one."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

HOW_TO_GET_IT: Final = (
    "redis-server is not installed; `apt-get install redis-server`, `dnf install redis` or "
    "`brew install redis` brings it"
)


class RedisServer(NamedTuple):
    """A running server."""

    path: str  # of its Unix socket
    pid: int
    version: str


@contextlib.contextmanager
def redis_server() -> Iterator[RedisServer | None]:
    """A server on a Unix socket, which keeps nothing on disk and ends with the block.

    None where it is not installed. A Unix socket is the fastest way to it, and ours is one, too.
    """
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="switchgear-bench-") as directory:
        path = f"{directory}/redis"
        command = [program, "--port", "0", "--unixsocket", path, "--dir", directory]
        command += ["--save", "", "--appendonly", "no", "--daemonize", "no"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C is for us; we end it when all others are done
            preexec_fn=_end_with_parent,
        )
        try:
            _wait(path, process)
            yield RedisServer(path, process.pid, _version(program))
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _end_with_parent() -> None:
    """In the child: have the kernel end it when we are killed."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG


def _wait(path: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
            client.settimeout(1)
            client.connect(path)
            client.sendall(b"PING\r\n")
            if client.recv(16).startswith(b"+PONG"):
                return
        time.sleep(0.02)
    raise RuntimeError("redis-server did not answer")


def _version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10).stdout
    return next((word[2:] for word in said.split() if word.startswith("v=")), "unknown")
