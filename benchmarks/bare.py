"""What the others are measured against: a ROUTER that echoes, and nothing else."""

from __future__ import annotations

import contextlib
import multiprocessing
import tempfile
from collections.abc import Iterator

import zmq


def _echo(address: str, ready: multiprocessing.synchronize.Event) -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.setsockopt(zmq.LINGER, 0)
        router.bind(address)
        ready.set()
        while True:
            router.send_multipart(router.recv_multipart())


@contextlib.contextmanager
def echo_server() -> Iterator[tuple[str, int]]:
    """An echo server in a process of its own: its address and its process number."""
    with tempfile.TemporaryDirectory(prefix="switchgear-bench-") as directory:
        address = f"ipc://{directory}/echo"
        spawn = multiprocessing.get_context("spawn")
        ready = spawn.Event()
        process = spawn.Process(target=_echo, args=(address, ready), daemon=True)
        process.start()
        ready.wait(30)
        try:
            assert process.pid is not None
            yield address, process.pid
        finally:
            process.terminate()
            process.join()


@contextlib.contextmanager
def dealer(address: str) -> Iterator[zmq.Socket[bytes]]:
    """A connected DEALER."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(address)
        yield socket
