"""What does a call that asks the manager cost, beside a bare round trip?"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Final

from bare import dealer, echo_server
from measure import PATIENCE, Figure, Settings
from report import Goal, Section, Table, spread

import switchgear as sg

GOAL: Final = 1.5


def empty() -> None:
    """The function that is called."""


async def empty_async() -> None:
    """The same for asyncio."""


def median(call: Callable[[], object], calls: int) -> float:
    """The median of many calls, seconds."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


async def median_async(breaker: sg.Breaker, calls: int) -> float:
    """The same for `execute_async`."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        await breaker.execute_async(empty_async)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def run(settings: Settings) -> Section:
    """Measure all three in turns, in one process."""
    rounds, calls = settings.pick(15, 3), settings.pick(500, 20)
    found: list[tuple[float, float, float]] = []
    with (
        echo_server() as (address, _),
        dealer(address) as socket,
        sg.Manager(acquire_timeout=PATIENCE) as manager,
    ):
        breaker = manager.breaker("bench", consistency="strict")
        payload = b"x" * 26  # as long as a request for a permit

        def bare() -> None:
            socket.send(payload)
            socket.recv()

        median(bare, calls)
        median(lambda: breaker.execute(empty), calls)
        for _ in range(rounds):
            one = median(bare, calls)
            two = median(lambda: breaker.execute(empty), calls)
            found.append((one, two, asyncio.run(median_async(breaker, calls))))
        stats = breaker.stats()
    assert stats.total_successes == (2 * rounds + 1) * calls, stats
    names = ("bare DEALER/ROUTER round trip", "strict `execute`", "strict `execute_async`")
    rows = []
    for column, name in enumerate(names):
        times = Figure.of(each[column] for each in found)
        rows.append([name, spread(times, 1e6), spread(Figure.of(r[column] / r[0] for r in found))])
    ratio = Figure.of(each[1] / each[0] for each in found)
    return Section(
        "A call that asks the manager",
        "round_trip",
        tables=[Table("Round trip", ["", "us", "ratio"], rows)],
        goals=[
            Goal(
                f"a strict call costs at most {GOAL} x a bare DEALER/ROUTER round trip",
                f"{spread(ratio)} x",
                ratio.middle <= GOAL,
            )
        ],
        notes=[
            "One thread and an empty function, the report of its outcome included. A round is the "
            f"median of {calls} calls of each."
        ],
    )
