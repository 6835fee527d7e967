"""A breaker in an asyncio program: the decorator, timeouts, a crowd of tasks, a cancelled one.

The service is a real one, on a TCP port. Calls through a breaker never block the event loop.
`stats()` waits for the manager, so it goes to a thread.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable

import switchgear as sg


class Weather:
    """The service: one line in, one line out. It hangs while it is told to."""

    hanging = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        city = await reader.readline()
        if self.hanging:
            await reader.read()  # until the caller has hung up
        else:
            await asyncio.sleep(0.02)
            writer.write(b"sunny in " + city)
        writer.close()


async def ask(port: int, city: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{city}\n".encode())
        return (await reader.readline()).decode().strip()
    finally:
        writer.close()


async def crowd(*calls: Awaitable[object]) -> str:
    """Await all at once; how they ended, counted, and how long it took."""
    began = time.perf_counter()
    results = await asyncio.gather(*calls, return_exceptions=True)
    kinds = Counter(type(r).__name__ if isinstance(r, Exception) else str(r) for r in results)
    counts = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    return f"{counts} in {(time.perf_counter() - began) * 1e3:.0f} ms"


async def story(breaker: sg.Breaker) -> None:
    weather = Weather()
    server = await asyncio.start_server(weather.serve, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]

    @breaker
    async def forecast(city: str) -> str:
        return await ask(port, city)

    async def state() -> sg.State:
        return (await asyncio.to_thread(breaker.stats)).state

    print("Three calls at once, of a decorated function:")
    print(f"  {await crowd(*(forecast(city) for city in ('Oslo', 'Rome', 'Oslo')))}")

    print("The service hangs, and each call may take 0.1 s:")
    weather.hanging = True
    patient = breaker.options(timeout=0.1)
    print(f"  {await crowd(*(patient.execute_async(ask, port, 'Oslo') for _ in range(3)))}")
    print(f"  circuit {await state()}: nobody waits for it now")
    print(f"  {await crowd(*(patient.execute_async(ask, port, 'Oslo') for _ in range(20)))}")

    print("The service is well again. Of ten calls at once, one is the probe:")
    weather.hanging = False
    while await state() is sg.State.OPEN:
        await asyncio.sleep(0.02)
    print(f"  {await crowd(*(forecast('Rome') for _ in range(10)))}")
    print(f"  circuit {await state()}")

    print("A task that is cancelled in its block says nothing about the service:")

    async def long_call() -> None:
        async with breaker:
            await asyncio.sleep(60)

    task = asyncio.create_task(long_call())
    while (await asyncio.to_thread(breaker.stats)).in_flight == 0:
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait([task])
    stats = await asyncio.to_thread(breaker.stats)
    print(
        f"  circuit {stats.state}: {stats.total_successes} successes, {stats.total_failures} "
        f"failures, {stats.total_neutral} neutral, {stats.total_rejected} rejected"
    )
    server.close()


def main() -> None:
    with sg.Manager(acquire_timeout=5.0) as manager:
        config = sg.CircuitConfig(failure_threshold=3, success_threshold=1, open_timeout=0.5)
        asyncio.run(story(manager.breaker("weather", config)))


if __name__ == "__main__":
    main()
