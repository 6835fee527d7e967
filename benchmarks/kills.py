"""How soon is a permit back whose holder is killed, and is one ever leaked?"""

from __future__ import annotations

import asyncio
import contextlib
import math
import multiprocessing
import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

import managers
from crew import CONTEXT
from measure import PATIENCE, Settings, percentile
from report import Goal, Section, Table, number

import switchgear as sg

KINDS: Final = ("fork", "spawn", "forkserver", "thread", "asyncio", "grandchild")
KILLS: Final = 1000
TOGETHER: Final = 8  # holders that are made ready at once, so that none starts while one is timed
GIVEN_UP: Final = 5.0  # seconds after which a permit counts as leaked
GOAL: Final = 0.010
HEAD: Final = (
    "the holder",
    "killed",
    "leaked",
    "p50, ms",
    "p99, ms",
    "longest, ms",
    "of that the kernel's p50",
    "p99",
)


# -- who is killed ---------------------------------------------------------------------------------


def hold(kind: str, breaker: sg.Breaker, pipe: Connection) -> None:
    """Get ready, wait for the word, hold a probe and do nothing more."""
    breaker.stats()  # it is connected and its code is loaded
    pipe.send("ready")
    if kind == "asyncio":
        asyncio.run(_hold_in_a_task(breaker, pipe))
    elif kind == "thread":
        thread = threading.Thread(target=_hold, args=(kind, breaker, pipe))
        thread.start()
        thread.join()
    else:
        _hold(kind, breaker, pipe)


def _hold(kind: str, breaker: sg.Breaker, pipe: Connection) -> None:
    pipe.recv()
    permit = breaker.acquire()
    if kind == "grandchild" and not os.fork():
        with contextlib.suppress(EOFError):  # with a copy of each descriptor, until we are told
            pipe.recv()
        os._exit(0)
    pipe.send("holds")
    threading.Event().wait()
    permit.release()


async def _hold_in_a_task(breaker: sg.Breaker, pipe: Connection) -> None:
    pipe.recv()
    permit = await breaker.acquire_async()
    pipe.send("holds")
    await asyncio.Event().wait()
    permit.release()


@contextlib.contextmanager
def holders(kind: str, count: int, breaker: sg.Breaker) -> Iterator[list[tuple[int, Connection]]]:
    """Processes that are ready to hold a probe, and the pipes to tell them."""
    if kind in ("fork", "spawn"):
        context: Any = multiprocessing.get_context(kind)
    else:
        context = CONTEXT
    processes: list[Any] = []
    pipes: list[Connection] = []
    try:
        for _ in range(count):
            ours, theirs = context.Pipe()
            pipes.append(ours)
            process = context.Process(target=hold, args=(kind, breaker, theirs), daemon=True)
            process.start()
            processes.append(process)
            theirs.close()
        for pipe in pipes:
            _expect(pipe, "ready")
        yield [(process.pid, pipe) for process, pipe in zip(processes, pipes, strict=True)]
    finally:
        for process in processes:
            process.kill()
        for pipe in pipes:
            pipe.close()  # which ends the grandchildren; they hold what join() waits for
        for process in processes:
            process.join(PATIENCE)


def _expect(pipe: Connection, word: str) -> None:
    if not pipe.poll(6 * PATIENCE) or pipe.recv() != word:
        raise RuntimeError(f"a holder did not say {word!r}")


@contextlib.contextmanager
def quiet_manager() -> Iterator[sg.Client]:
    """A client of a manager that does not log each death, as it else would."""
    with tempfile.TemporaryDirectory(prefix="switchgear-bench-") as directory:
        process = managers.start(f"{directory}/m")
        try:
            with sg.connect(f"{directory}/m", acquire_timeout=PATIENCE) as client:
                yield client
        finally:
            process.terminate()
            process.wait(PATIENCE)


# -- how long it takes -----------------------------------------------------------------------------


class Kill(NamedTuple):
    """Seconds from a kill."""

    back: float  # until another client holds the permit; infinite if that was never
    dead: float  # until the kernel says that the process has ended


def measure(kind: str, kills: int, breaker: sg.Breaker) -> list[Kill]:
    """Make so many holders ready, and kill one after the other."""
    found: list[Kill] = []
    with holders(kind, kills, breaker) as ready:
        for pid, pipe in ready:
            pipe.send("hold")
            _expect(pipe, "holds")
            found.append(_kill(pid, breaker))
    return found


def _kill(pid: int, breaker: sg.Breaker) -> Kill:
    end = select.poll()
    pidfd = os.pidfd_open(pid)
    end.register(pidfd, select.POLLIN)
    dead = math.inf
    began = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    try:
        while (took := time.perf_counter() - began) < GIVEN_UP:
            try:
                permit = breaker.acquire()
            except sg.TooManyRequestsError:
                # Leaves the processor to who dies, for a millisecond; then asks again and again.
                if dead == math.inf and end.poll(1):
                    dead = time.perf_counter() - began
                continue
            took = time.perf_counter() - began
            permit.release()
            breaker.stats()  # it is back before the next holder asks
            return Kill(took, min(dead, took))
        return Kill(math.inf, dead)
    finally:
        os.close(pidfd)


def run(settings: Settings) -> Section:
    """Kill them one at a time, the kinds in turns."""
    each = settings.pick(-(-KILLS // len(KINDS)), 2)
    found: dict[str, list[Kill]] = {kind: [] for kind in KINDS}
    with quiet_manager() as client:
        breaker = client.breaker(
            "bench",
            failure_threshold=1,
            success_threshold=1_000_000_000,  # so that it stays half-open
            open_timeout=0.001,
            permit_timeout=3600.0,  # so that no deadline brings a permit back
            lost_permit="ignore",
        )
        with breaker.acquire() as permit:
            permit.failure("down")
        while breaker.state is not sg.State.HALF_OPEN:
            time.sleep(0.001)
        while len(found[KINDS[-1]]) < each:
            for kind, kills in found.items():
                kills += measure(kind, min(TOGETHER, each - len(kills)), breaker)
        lost, in_flight = breaker.metrics().permits_lost, breaker.stats().in_flight
    every = [kill for kills in found.values() for kill in kills]
    rows = [_row(kind, kills) for kind, kills in (found | {"all": every}).items()]
    leaked = _leaked(every)
    p99 = percentile((kill.back for kill in every), 0.99)
    return Section(
        "Killed holders",
        "kills",
        tables=[
            Table(
                "From os.kill() until another client holds the permit",
                HEAD,
                rows,
            )
        ],
        goals=[
            Goal(
                "of 1,000 probes whose holders are killed none is leaked",
                f"{leaked} of {len(every):,}; the manager counted {lost:,} as lost, and "
                f"{in_flight} are in flight",
                not leaked and lost == len(every) and not in_flight,
            ),
            Goal(
                "the permit of a killed process comes back within 10 ms (p99)",
                f"{p99 * 1e3:.2f} ms",
                p99 < GOAL,
            ),
        ],
        notes=[
            "SIGKILL, one holder at a time, `permit_timeout` an hour. Who waits for the permit "
            "asks for it every millisecond, and without a pause once the process has ended. What "
            "the kernel needs to end a process is in the figures, and also told alone. A "
            "grandchild is a process forked by the holder that lives on with copies of all its "
            "descriptors."
        ],
    )


def _leaked(kills: list[Kill]) -> int:
    return sum(kill.back == math.inf for kill in kills)


def _row(kind: str, kills: list[Kill]) -> list[str]:
    back, dead = zip(*kills, strict=True)
    figures = (percentile(back, 0.5), percentile(back, 0.99), max(back))
    kernel = (percentile(dead, 0.5), percentile(dead, 0.99))
    times = [number(seconds * 1e3) for seconds in (*figures, *kernel)]
    return [kind, f"{len(kills):,}", str(_leaked(kills)), *times]
