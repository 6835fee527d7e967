"""How many operations a second does the manager serve, beside a bare ROUTER echo loop?

Clients of the same kind load both, in turns. They share the cores with the server, so the processor
time of the server an operation is printed too.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import os
import time
from collections.abc import Callable
from typing import Final

import msgpack
from bare import dealer, echo_server
from measure import Figure, Settings, cpu_seconds
from report import Goal, Section, Table, spread

import switchgear as sg
from switchgear.wire import KINDS, Acquire, Declare, Granted, Hello, Report, Reported

CLIENTS, WINDOW = 2, 64
GOAL: Final = 0.45
NEVER: Final = 2**62  # a deadline
STRICT: Final = (
    1_000_000_000,
    2,
    30_000_000,
    1,
    60_000_000,
    0,
    1,
)  # a configuration: ask for each call


def load_echo(address: str, seconds: float) -> int:
    """Keep an echo server busy; how many messages came back."""
    served = 0
    frame = msgpack.packb((KINDS[Acquire], 12345, "bench", NEVER))
    with dealer(address) as socket:
        for _ in range(WINDOW):
            socket.send(frame)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            msgpack.unpackb(socket.recv())
            served += 1
            socket.send(frame)
    return served


def load_manager(address: str, seconds: float, failing: int = NEVER) -> int:
    """Keep a manager busy with Acquire and Report; how many of both it answered.

    Args:
        address: The manager's.
        seconds: How long.
        failing: One call in so many fails.
    """
    acquire, report = KINDS[Acquire], KINDS[Report]
    granted = reported = 0
    with dealer(f"{address}.data") as socket:
        socket.send(msgpack.packb((KINDS[Hello], 1, 1, 1, os.urandom(16), os.getpid(), 0)))
        epoch = msgpack.unpackb(socket.recv())[3]
        socket.send(msgpack.packb((KINDS[Declare], 0, "bench", STRICT)))
        socket.recv()
        for number in range(1, WINDOW + 1):
            socket.send(msgpack.packb((acquire, number, "bench", NEVER)))
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for frame in socket.recv_multipart():
                kind, number, operation, *_ = msgpack.unpackb(frame)
                if kind == KINDS[Granted]:
                    granted += 1
                    failed = int(granted % failing == 0)
                    outcome = (report, granted, "bench", epoch, operation, 1, failed, 1, None)
                    socket.send(msgpack.packb(outcome))
                    socket.send(msgpack.packb((acquire, number + WINDOW, "bench", NEVER)))
                elif kind == KINDS[Reported]:
                    reported += 1
                else:
                    raise AssertionError(frame)
    return granted + reported


def measure(
    pool: multiprocessing.pool.Pool,
    load: Callable[[str, float], int],
    address: str,
    server: int,
    seconds: float,
) -> tuple[float, float]:
    """Operations a second, and the server's processor time an operation, seconds."""
    before = cpu_seconds(server)
    served = sum(pool.starmap(load, [(address, seconds)] * CLIENTS, chunksize=1))
    return served / seconds, (cpu_seconds(server) - before) / served


def run(settings: Settings) -> Section:
    """Measure both in turns."""
    rounds, seconds = settings.pick(7, 1), settings.pick(1.0, 0.05)
    found = []
    spawn = multiprocessing.get_context("spawn")
    with echo_server() as (address, pid), sg.Manager() as manager, spawn.Pool(CLIENTS) as pool:
        assert manager.pid is not None
        for _ in range(rounds):
            echo = measure(pool, load_echo, address, pid, seconds)
            ours = measure(pool, load_manager, manager.address, manager.pid, seconds)
            found.append((*echo, *ours))
    columns = [Figure.of(column) for column in zip(*found, strict=True)]
    rows = [
        [name, f"{columns[at].middle:,.0f}", spread(columns[at + 1], 1e6)]
        for at, name in ((0, "bare ROUTER echo loop"), (2, "manager"))
    ]
    ratio = Figure.of(ours / echo for echo, _, ours, _ in found)
    return Section(
        "What the manager serves",
        "throughput",
        tables=[Table("Operations", ["", "operations a second", "server CPU each, us"], rows)],
        goals=[
            Goal(
                f"the manager serves at least {GOAL} x the operations of a bare ROUTER echo loop",
                f"{spread(ratio)} x",
                ratio.middle >= GOAL,
            )
        ],
        notes=[
            f"{CLIENTS} processes load both, each with {WINDOW} requests in flight. An operation "
            "is a request served: a permit granted or an outcome taken in."
        ],
    )
