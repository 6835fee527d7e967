"""What does a call through the manager cost, beside a bare round trip?

Both are measured in turns in one process, so that a noisy machine is noisy for both; the ratio of a
round is of that round's medians, and the result is the median of the rounds.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable

from bare import dealer, echo_server

import switchgear as sg

ROUNDS, CALLS = 15, 500
GOAL = 1.8


def empty() -> None:
    """The function that is called."""


async def empty_async() -> None:
    """The same for asyncio."""


def median_us(call: Callable[[], object]) -> float:
    """The median of many calls, microseconds."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


async def median_async_us(breaker: sg.Breaker) -> float:
    """The same for `execute_async`."""
    times = []
    for _ in range(CALLS):
        start = time.perf_counter()
        await breaker.execute_async(empty_async)
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    """Print the table."""
    rounds: list[tuple[float, float, float]] = []
    with (
        echo_server() as (address, _),
        dealer(address) as socket,
        sg.Manager(acquire_timeout=10.0) as manager,
    ):
        breaker = manager.breaker("bench", consistency="strict")
        payload = b"x" * 26  # as long as a request for a permit

        def bare() -> None:
            socket.send(payload)
            socket.recv()

        for _ in range(ROUNDS):
            one = median_us(bare)
            two = median_us(lambda: breaker.execute(empty))
            three = asyncio.run(median_async_us(breaker))
            rounds.append((one, two, three))
        stats = breaker.stats()
    assert stats.total_successes == 2 * ROUNDS * CALLS, stats
    names = ("bare DEALER/ROUTER round trip", "execute, report included", "execute_async")
    print(f"{'':32}{'median':>10}{'ratio':>8}   ratios of the {ROUNDS} rounds")
    for column, name in enumerate(names):
        ratios = sorted(r[column] / r[0] for r in rounds)
        middle = statistics.median(r[column] for r in rounds)
        print(
            f"{name:32}{middle:>7.0f} us{statistics.median(ratios):>8.2f}"
            f"   {ratios[0]:.2f} to {ratios[-1]:.2f}"
        )
    ratio = statistics.median(r[1] / r[0] for r in rounds)
    print(f"goal for execute: at most {GOAL}; {'reached' if ratio <= GOAL else 'not reached'}")


if __name__ == "__main__":
    main()
