"""How many operations a second does the manager serve, beside a bare ROUTER echo loop?

Clients of the same kind load both, in turns: two processes, each with a window of requests in
flight. An operation is a request served: a permit granted or an outcome taken in. The clients share
two cores with the server, so the processor time of the server an operation is printed too.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable

import msgpack
from bare import dealer, echo_server

import switchgear as sg
from switchgear.wire import KINDS, Acquire, Declare, Granted, Hello, Report, Reported

ROUNDS, SECONDS, CLIENTS, WINDOW = 7, 1.0, 2, 64
GOAL = 0.45
NEVER = 2**62  # a deadline


def load_echo(address: str) -> int:
    """Keep an echo server busy; how many messages came back."""
    served = 0
    frame = msgpack.packb((KINDS[Acquire], 12345, "bench", NEVER))
    with dealer(address) as socket:
        for _ in range(WINDOW):
            socket.send(frame)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            msgpack.unpackb(socket.recv())
            served += 1
            socket.send(frame)
    return served


def load_manager(address: str) -> int:
    """Keep a manager busy with Acquire and Report; how many of both it answered."""
    acquire, report = KINDS[Acquire], KINDS[Report]
    granted = reported = 0
    with dealer(f"{address}.data") as socket:
        socket.send(msgpack.packb((KINDS[Hello], 1, 1, os.urandom(16), os.getpid())))
        epoch = msgpack.unpackb(socket.recv())[2]
        socket.send(msgpack.packb((KINDS[Declare], 0, "bench", None)))
        socket.recv()
        for number in range(1, WINDOW + 1):
            socket.send(msgpack.packb((acquire, number, "bench", NEVER)))
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            for frame in socket.recv_multipart():
                kind, number, operation, *_ = msgpack.unpackb(frame)
                if kind == KINDS[Granted]:
                    granted += 1
                    outcome = (report, granted, "bench", epoch, operation, 0, 1, None)
                    socket.send(msgpack.packb(outcome))
                    socket.send(msgpack.packb((acquire, number + WINDOW, "bench", NEVER)))
                elif kind == KINDS[Reported]:
                    reported += 1
                else:
                    raise AssertionError(frame)
    return granted + reported


def measure(
    pool: multiprocessing.pool.Pool, load: Callable[[str], int], address: str, server: int
) -> tuple[float, float]:
    """Operations a second, and the server's processor time an operation, microseconds."""
    before = cpu_seconds(server)
    served = sum(pool.map(load, [address] * CLIENTS, chunksize=1))
    return served / SECONDS, (cpu_seconds(server) - before) / served * 1e6


def cpu_seconds(pid: int) -> float:
    """What a process has used so far, all threads."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print the table."""
    rounds = []
    spawn = multiprocessing.get_context("spawn")
    with echo_server() as (address, pid), sg.Manager() as manager, spawn.Pool(CLIENTS) as pool:
        assert manager.pid is not None
        for _ in range(ROUNDS):
            echo = measure(pool, load_echo, address, pid)
            ours = measure(pool, load_manager, manager.address, manager.pid)
            rounds.append((*echo, *ours))
    columns = [statistics.median(column) for column in zip(*rounds, strict=True)]
    print(f"{'':24}{'operations/s':>14}{'server CPU each':>18}")
    print(f"{'bare ROUTER echo loop':24}{columns[0]:>14,.0f}{columns[1]:>15.1f} us")
    print(f"{'manager':24}{columns[2]:>14,.0f}{columns[3]:>15.1f} us")
    ratios = sorted(ours / echo for echo, _, ours, _ in rounds)
    ratio = statistics.median(ratios)
    print(
        f"ratio {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f} in {ROUNDS} rounds); "
        f"goal: at least {GOAL}; {'reached' if ratio >= GOAL else 'not reached'}"
    )


if __name__ == "__main__":
    main()
