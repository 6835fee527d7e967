"""Leases, seen from real processes: what runs unasked, when it must stop, and that it counts."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, Final

import pytest

import switchgear as sg

from .conftest import (
    PATIENCE,
    connect,
    ending,
    eventually,
    fail,
    read_line,
    start_script,
    stopped,
    trip,
)

pytestmark = pytest.mark.process

CONTEXT: Final = multiprocessing.get_context("fork")
LEASE: Final = 1.0  # seconds, as the contract has it
STAYS: Final = sg.CircuitConfig(failure_threshold=1_000_000)  # closed, whatever happens


@pytest.fixture
def breaker(manager: sg.Manager) -> sg.Breaker:
    """A breaker whose circuit this process has a lease on."""
    breaker = manager.breaker("service", STAYS)
    breaker.execute(int)
    assert runs_unasked(breaker)
    return breaker


@pytest.fixture
def other(manager: sg.Manager) -> Iterator[sg.Client]:
    """Another client of the manager; to the manager, another process."""
    with connect(manager.address) as client:
        yield client


def runs_unasked(breaker: sg.Breaker) -> bool:
    """The breaker's process may run calls without asking, now."""
    return time.monotonic() < breaker._gate.lease.term.until


def counts(breaker: sg.Breaker) -> tuple[int, int, int, int]:
    """Successes, failures, neutral and rejected, by the manager."""
    stats = breaker.stats()
    assert stats.in_flight == 0
    assert stats.total_requests == sum(
        (stats.total_successes, stats.total_failures, stats.total_neutral, stats.total_rejected)
    )
    return (
        stats.total_successes,
        stats.total_failures,
        stats.total_neutral,
        stats.total_rejected,
    )


def interrupt() -> None:
    raise KeyboardInterrupt


# -- running without asking ------------------------------------------------------------------------


def test_a_closed_circuit_runs_calls_of_every_form_while_nobody_answers(
    manager: sg.Manager, breaker: sg.Breaker
) -> None:
    assert manager.pid is not None

    async def nothing() -> None:
        pass

    async def tasks() -> None:
        await breaker.execute_async(nothing)
        await breaker(nothing)()
        async with breaker:
            pass
        (await breaker.acquire_async()).success()

    with stopped(manager.pid):
        assert breaker.execute(int) == 0
        assert breaker(int)() == 0
        with breaker as permit:
            assert permit.operation is None
        breaker.acquire().success()
        breaker.acquire().release()
        asyncio.run(tasks())
        assert breaker.options(timeout=60.0).execute(int) == 0
        with pytest.raises(KeyboardInterrupt):
            breaker.execute(interrupt)
        assert runs_unasked(breaker), "too slow a machine for this test"
    assert counts(breaker) == (10, 0, 2, 0)


def test_strict_asks_for_every_call(manager: sg.Manager) -> None:
    breaker = manager.breaker("service", consistency="strict")
    for _ in range(3):
        breaker.execute(int)
        assert not runs_unasked(breaker)
    with connect(manager.address, acquire_timeout=0.05) as impatient:
        asking = impatient.breaker("service")
        eventually(lambda: works(asking))
        assert manager.pid is not None
        with stopped(manager.pid), pytest.raises(sg.ManagerUnavailableError):
            asking.execute(int)


def works(breaker: sg.Breaker) -> bool:
    try:
        breaker.execute(int)
    except (sg.ManagerUnavailableError, sg.CallNotPermittedError):
        return False
    return True


def works_patiently(breaker: sg.Breaker) -> int:
    """Whether a call runs; where the lease lapses a moment before it, it is not waited for."""
    try:
        with breaker:
            return 1
    except sg.ManagerUnavailableError:
        return 0


def test_a_lease_is_kept_by_calling_and_lapses_quietly_without(breaker: sg.Breaker) -> None:
    first = breaker._gate.lease
    begun = time.monotonic()
    while time.monotonic() < begun + 2 * LEASE:
        breaker.execute(int)
    assert breaker._gate.lease is first
    assert runs_unasked(breaker)
    eventually(lambda: not runs_unasked(breaker))
    breaker.execute(int)  # asks, and has it again
    assert breaker._gate.lease is first
    assert runs_unasked(breaker)


def test_a_circuit_made_strict_is_asked_for_again(breaker: sg.Breaker, other: sg.Client) -> None:
    other.breaker("service", consistency="strict")
    other.stats("service")
    eventually(lambda: not runs_unasked(breaker))
    with breaker as permit:
        assert permit.operation is not None


def test_a_verdict_comes_for_a_permit_under_a_lease_too(
    breaker: sg.Breaker, other: sg.Client
) -> None:
    counted, stale, failed = breaker.acquire(), breaker.acquire(), breaker.acquire()
    counted.success()
    failed.failure("down")
    breaker.stats()  # comes after what was handed over before
    other.reset("service")
    stale.success()
    breaker.stats()
    verdicts = [permit.verdict for permit in (counted, failed, stale)]
    assert verdicts == [sg.Verdict.COUNTED, sg.Verdict.COUNTED, sg.Verdict.STALE]


# -- G7 and G8: when it must stop ------------------------------------------------------------------


def test_g7_no_call_runs_after_the_failure_that_opens(manager: sg.Manager) -> None:
    breaker = manager.breaker("service", failure_threshold=1, open_timeout=600.0)

    async def fail_async() -> None:
        fail()

    ways = [
        lambda: breaker.execute(fail),
        lambda: breaker.acquire().failure("down"),
        lambda: asyncio.run(breaker.execute_async(fail_async)),
        breaker(fail),
    ]
    for number in range(200):
        breaker.execute(int)
        assert runs_unasked(breaker)
        with contextlib.suppress(ConnectionError):  # a permit raises nothing
            ways[number % len(ways)]()
        with pytest.raises(sg.CircuitOpenError):
            breaker.execute(pytest.fail, "it ran")
        breaker.reset()
    assert counts(breaker) == (200, 200, 0, 200)


def test_g7_a_failure_comes_after_what_ended_under_a_lease_before_it(manager: sg.Manager) -> None:
    breaker = manager.breaker("service", failure_threshold=2)
    asked = breaker.acquire()  # the first call asks, and with its permit comes the lease
    assert runs_unasked(breaker)
    breaker.execute(int)
    asked.failure(ConnectionError())
    with pytest.raises(ConnectionError):
        breaker.execute(fail)
    assert breaker.state is sg.State.OPEN  # as a plain breaker's would be


def test_g7_holds_when_every_thread_of_a_process_fails_at_once(manager: sg.Manager) -> None:
    threshold, threads = 4, 8
    breaker = manager.breaker("service", failure_threshold=threshold, open_timeout=600.0)
    for _ in range(20):
        breaker.execute(int)
        workers = [Failing(breaker, threshold) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(PATIENCE)
        failed = sorted(at for worker in workers for at in worker.failed)
        # By then so many have failed, so no call may run that begins later.
        opened_at = failed[threshold - 1]
        assert [at for worker in workers for at in worker.ran if at > opened_at] == []
        breaker.reset()


class Failing(threading.Thread):
    """A thread that makes calls that fail, and keeps when they began and when they had failed."""

    def __init__(self, breaker: sg.Breaker, calls: int) -> None:
        super().__init__()
        self.breaker = breaker
        self.calls = calls
        self.ran: list[float] = []
        self.failed: list[float] = []

    def run(self) -> None:
        for _ in range(self.calls):
            begun = time.monotonic()
            with contextlib.suppress(sg.CircuitOpenError):
                with contextlib.suppress(ConnectionError):
                    self.breaker.execute(fail)
                self.failed.append(time.monotonic())
                self.ran.append(begun)


def test_g8_a_lease_lapses_when_nothing_is_heard(manager: sg.Manager) -> None:
    assert manager.pid is not None
    with connect(manager.address, acquire_timeout=0.05) as client:
        breaker = client.breaker("service", STAYS)
        eventually(lambda: works(breaker))
        with stopped(manager.pid):
            begun = time.monotonic()
            ran = 0
            longest = LEASE + 0.05 + 1.0  # the last: machines are loaded
            while works(breaker):
                ran += 1
                assert time.monotonic() - begun < longest, "the lease goes on"
            assert ran > 0
        eventually(lambda: works(breaker))
        client.flush(PATIENCE)
        assert runs_unasked(breaker)


def test_g8_a_process_that_was_stopped_over_a_trip_runs_nothing_when_it_goes_on(
    manager: sg.Manager,
) -> None:
    breaker = manager.breaker("service", failure_threshold=1, open_timeout=600.0)
    script = """
import sys, time
import switchgear as sg
client = sg.connect(sys.argv[1], acquire_timeout=20.0)
breaker = client.breaker("service")
begun = []

def call():
    begun.append(time.monotonic())
    time.sleep(0.001)

print("ready", flush=True)
while True:
    try:
        breaker.execute(call)
        if len(begun) == 20:
            print("runs", flush=True)
    except sg.CircuitOpenError:
        print(*begun[-5:], flush=True)
        break
"""
    with ending(start_script(script, manager.address)) as worker:
        assert read_line(worker) == "ready"
        assert read_line(worker) == "runs"
        with stopped(worker.pid):
            stopped_at = time.monotonic()
            trip(breaker)
            eventually(lambda: time.monotonic() > stopped_at + 1.2 * LEASE)
        last = [float(begun) for begun in read_line(worker).split()]
    # One may have been admitted when it was stopped, and not have begun.
    assert sum(begun > stopped_at for begun in last) <= 1
    assert breaker.stats().total_successes in range(20, 10_000)
    assert breaker.stats().total_failures == 1


def test_g8_every_process_hears_of_a_trip_without_asking(
    manager: sg.Manager, other: sg.Client
) -> None:
    breaker = manager.breaker("service", failure_threshold=1, open_timeout=600.0)
    second = other.breaker("service")
    for _ in range(20):
        second.execute(int)
        assert runs_unasked(second)
        trip(breaker)
        eventually(lambda: not runs_unasked(second))
        asked = other.link()._session._last_number  # type: ignore[union-attr]  # it is connected
        with pytest.raises(sg.CircuitOpenError) as caught:
            second.execute(int)
        assert other.link()._session._last_number == asked  # type: ignore[union-attr]
        assert caught.value.retry_after == pytest.approx(600.0, abs=60.0)
        assert caught.value.last_error == "ConnectionError: down"
        breaker.reset()
        eventually(lambda: works(second))  # the reset ends what the trip began
        eventually(lambda: works(breaker))


def test_a_process_that_has_read_the_new_state_runs_by_it(
    manager: sg.Manager, other: sg.Client
) -> None:
    breaker = manager.breaker("service", failure_threshold=1, open_timeout=600.0)
    second = other.breaker("service")
    for _ in range(100):
        second.execute(int)
        trip(breaker)
        assert second.state is sg.State.OPEN
        with pytest.raises(sg.CircuitOpenError):
            second.execute(pytest.fail, "it ran")
        breaker.reset()
        assert second.state is sg.State.CLOSED
        second.execute(int)
        breaker.execute(int)


def test_an_open_circuit_rejects_by_itself_until_its_deadline_and_not_longer(
    manager: sg.Manager,
) -> None:
    assert manager.pid is not None
    breaker = manager.breaker("service", failure_threshold=1, success_threshold=1, open_timeout=1.0)
    trip(breaker)
    left = []
    with stopped(manager.pid):
        for _ in range(100):
            with pytest.raises(sg.CircuitOpenError) as caught:
                breaker.execute(int)
            left.append(caught.value.retry_after)
    assert left == sorted(left, reverse=True)
    assert 0.0 < left[-1] < left[0] < 1.0
    eventually(lambda: works(breaker))
    successes, failures, _, rejected = counts(breaker)
    assert (successes, failures) == (1, 1)
    assert rejected >= 100


# -- G10: each call is counted once ----------------------------------------------------------------


def call_at_random(pipe: Connection, breaker: sg.Breaker, calls: int, seed: int) -> None:
    """Make calls of all kinds and say what came of them; leave at once after the last one."""
    rng = random.Random(seed)
    did: Counter[str] = Counter()
    for _ in range(calls):
        kind = rng.random()
        if kind < 0.90:
            breaker.execute(int)
            did["success"] += 1
        elif kind < 0.95:
            with pytest.raises(ConnectionError):
                breaker.execute(fail)
            did["failure"] += 1
        elif kind < 0.97:
            with pytest.raises(KeyboardInterrupt):
                breaker.execute(interrupt)
            did["neutral"] += 1
        else:
            breaker.acquire().success()
            did["success"] += 1
    pipe.send(did)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_g10_calls_of_many_processes_are_counted_exactly(manager: sg.Manager, method: str) -> None:
    breaker = manager.breaker("service", STAYS)
    context = multiprocessing.get_context(method)
    pipes, children = [], []
    for seed in range(4):
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=call_at_random, args=(theirs, breaker, 5_000, seed))
        child.start()
        theirs.close()
        pipes.append(ours)
        children.append(child)
    did = sum((pipe.recv() for pipe in pipes), Counter())
    for child in children:
        child.join(PATIENCE)
        assert child.exitcode == 0
    expected = (did["success"], did["failure"], did["neutral"], 0)
    assert counts(breaker) == expected
    assert sum(expected) == 4 * 5_000


def test_threads_and_tasks_of_one_process_are_counted_exactly(breaker: sg.Breaker) -> None:
    calls, threads, tasks = 3_000, 4, 50

    def work() -> None:
        for number in range(calls):
            with contextlib.suppress(ConnectionError):
                breaker.execute(int if number % 100 else fail)

    async def run() -> None:
        async def answer() -> None:
            await asyncio.sleep(0)

        async def task() -> None:
            for _ in range(calls // tasks):
                await breaker.execute_async(answer)

        cancelled = asyncio.create_task(breaker.execute_async(asyncio.sleep, 600.0))
        await asyncio.gather(*[task() for _ in range(tasks)])
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    asyncio.run(run())
    for worker in workers:
        worker.join(PATIENCE)
    failures = threads * calls // 100
    assert counts(breaker) == (1 + threads * (calls - calls // 100) + calls, failures, 1, 0)


def test_a_forked_child_counts_its_own_calls_and_not_its_parents(breaker: sg.Breaker) -> None:
    for _ in range(20):
        for _ in range(100):
            breaker.execute(int)
        child = CONTEXT.Process(target=_call_often, args=(breaker, 50))  # nothing is sent yet
        child.start()
        breaker.execute(int)
        child.join(PATIENCE)
        assert child.exitcode == 0
    assert counts(breaker) == (1 + 20 * (100 + 1 + 50), 0, 0, 0)


def _call_often(breaker: sg.Breaker, calls: int) -> None:
    for _ in range(calls):
        breaker.execute(int)


def test_a_call_that_forks_is_its_parents(breaker: sg.Breaker) -> None:
    def fork() -> int:
        return os.fork()

    for _ in range(5):
        child = breaker.execute(fork)
        if child == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(child, 0)
    assert counts(breaker) == (6, 0, 0, 0)


def test_while_the_manager_takes_nothing_in_outcomes_become_counts_and_none_is_lost(
    manager: sg.Manager, breaker: sg.Breaker
) -> None:
    assert manager.pid is not None
    link = manager.client.link()
    assert link is not None
    calls = 0
    with stopped(manager.pid):
        while runs_unasked(breaker):
            calls += works_patiently(breaker)
        waiting = list(link._session._reports._queue)
        kept = sum(len(report._durations) for report in waiting if hasattr(report, "_durations"))
        assert len(waiting) < 200  # one for each time the I/O thread has collected, in a second
        assert kept <= 100 * len(waiting)
    assert calls > 10_000
    assert counts(breaker) == (1 + calls, 0, 0, 0)


def test_rejections_reach_the_totals(manager: sg.Manager, other: sg.Client) -> None:
    breaker = manager.breaker("service", failure_threshold=1, open_timeout=600.0)
    trip(breaker)
    for _ in range(1_000):
        with pytest.raises(sg.CircuitOpenError):
            breaker.execute(int)
    eventually(lambda: other.stats("service").total_rejected == 1_000)  # without our asking
    assert counts(breaker) == (0, 1, 0, 1_000)


def test_latencies_are_those_of_the_calls(manager: sg.Manager) -> None:
    breaker = manager.breaker("service", STAYS)
    breaker.execute(int)
    for _ in range(150):
        breaker.execute(_a_moment)
    metrics = breaker.metrics()
    assert metrics.min_latency is not None
    assert metrics.min_latency >= 0.001  # the first call of all has left the window of 100
    assert metrics.requests_total == 151


def _a_moment() -> None:
    end = time.perf_counter() + 0.001
    while time.perf_counter() < end:
        pass


def test_an_idle_process_sends_nothing_for_its_lease(breaker: sg.Breaker, other: sg.Client) -> None:
    def operations() -> int:
        return other.ping().operation

    breaker.execute(int)
    manager_client: Any = breaker._client
    manager_client.flush()
    eventually(lambda: not runs_unasked(breaker))
    first = operations()
    begun = time.monotonic()
    eventually(lambda: time.monotonic() > begun + 1.5 * LEASE)
    assert operations() == first + 1  # our own
