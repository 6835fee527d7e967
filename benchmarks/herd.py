"""Many processes that ask for the host's manager at the same moment, and say which one they got.

Each prints the manager's process and the seconds until it had answered. One that is killed prints
nothing.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time

import switchgear as sg

PATIENCE = 60.0  # seconds


def ask(barrier: int) -> None:
    """Wait for the end of the barrier's other end, then for a manager."""
    client = sg.connect()
    breaker = client.breaker("bench")
    os.read(barrier, 1)
    began = time.monotonic()
    breaker.execute(int)
    while time.monotonic() < began + PATIENCE:
        with contextlib.suppress(sg.ManagerUnavailableError):
            line = f"{client.ping().pid} {time.monotonic() - began}\n"
            os.write(1, line.encode())  # whole, however many write at once
            return
    os.write(1, b"0 0\n")


def main(count: int) -> None:
    """Fork them, and let them go."""
    read, write = os.pipe()
    for _ in range(count):
        if not os.fork():
            os.close(write)
            ask(read)
            os._exit(0)
    os.close(read)
    os.close(write)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main(int(sys.argv[1]))
