"""The service that the outage is about: a real server that hangs, fails and is well again.

One line in, one line out, over a Unix socket, so that sixteen callers and the service fit on two
cores. It keeps a book of the calls that reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

from crew import CONTEXT

WORK: Final = 0.0015  # seconds it needs for an answer when it is well
HANG: Final = 0.3  # seconds it hangs before it fails
LINE: Final = 16  # bytes of a request


class Failed(Exception):
    """The service answered that it could not."""


class Line(NamedTuple):
    """One call in the book; seconds on the machine's monotonic clock."""

    worker: int
    arrived: float
    left: float
    well: bool


class Service:
    """What the one who runs it can do."""

    def __init__(self, path: str, pipe: Connection) -> None:
        self.path = path
        self._pipe = pipe

    def be(self, well: bool) -> float:
        """Well, or hanging and then failing; returns since when."""
        self._pipe.send(well)
        return float(self._answer())

    def take_book(self) -> list[Line]:
        """What has reached it since the last time."""
        self._pipe.send(None)
        return [Line(*line) for line in self._answer()]

    def _answer(self) -> object:
        if not self._pipe.poll(20):
            raise RuntimeError("the service said nothing")
        return self._pipe.recv()


class Connected:
    """A worker's own connection to it."""

    def __init__(self, path: str, worker: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(path)
        self._request = f"{worker}".ljust(LINE - 1).encode() + b"\n"

    def fetch(self) -> bytes:
        """One call.

        Raises:
            Failed: The service said so.
        """
        self._socket.sendall(self._request)
        if (answer := self._socket.recv(3)) != b"ok\n":
            raise Failed
        return answer

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


@contextlib.contextmanager
def service() -> Iterator[Service]:
    """The service, in a process of its own; it is well."""
    with tempfile.TemporaryDirectory(prefix="switchgear-bench-") as directory:
        path = f"{directory}/service"
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_serve, args=(path, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            if not ours.poll(20):
                raise RuntimeError("the service did not start")
            ours.recv()
            yield Service(path, ours)
        finally:
            ours.close()
            process.terminate()
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def _serve(path: str, pipe: Connection) -> None:
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(_run(path, pipe))


async def _run(path: str, pipe: Connection) -> None:
    book: list[Line] = []
    well = True
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                worker = int(await reader.readexactly(LINE))
                arrived, fine = time.monotonic(), well
                await asyncio.sleep(WORK if fine else HANG)
                book.append(Line(worker, arrived, time.monotonic(), fine))
                writer.write(b"ok\n" if fine else b"no\n")
        writer.close()

    def listen() -> None:
        nonlocal well
        try:
            order = pipe.recv()
        except EOFError:
            over.set()
            return
        if order is None:
            pipe.send([tuple(line) for line in book])
            book.clear()
        else:
            well = order
            pipe.send(time.monotonic())

    server = await asyncio.start_unix_server(serve, path, backlog=128)
    asyncio.get_running_loop().add_reader(pipe.fileno(), listen)
    pipe.send("ready")
    await over.wait()
    server.close()
