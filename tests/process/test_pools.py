"""Breakers that cross into other processes: pools, forks, scripts; and threads beside tasks."""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.pool
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import BaseContext
from typing import Final

import pytest

import switchgear as sg

from .conftest import (
    PATIENCE,
    connect,
    eventually,
    fail,
    run_script,
    trip,
    wait_readable,
)

pytestmark = [
    pytest.mark.process,
    # Python 3.12 warns of a fork in a process that has threads. Ours has one: to be forked with it
    # is what is tested here.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

METHODS: Final = ["fork", "spawn", "forkserver"]
WORKERS: Final = 3
CALLS: Final = 40  # a task of a pool makes

Totals = tuple[int, int, int]


def totals(breaker: sg.Breaker) -> Totals:
    """Successes, failures, in flight."""
    stats = breaker.stats()
    return stats.total_successes, stats.total_failures, stats.in_flight


@pytest.fixture
def breaker(manager: sg.Manager) -> sg.Breaker:
    # So high that the failures that are counted cannot open it.
    return manager.breaker("service", failure_threshold=1_000_000)


# -- what the workers do ---------------------------------------------------------------------------


def call_often(breaker: sg.Breaker) -> int:
    for number in range(CALLS):
        if number % 4 == 0:
            with pytest.raises(ConnectionError):
                breaker.execute(fail)
        else:
            breaker.execute(int)
    return os.getpid()


def call_with(breaker: sg.Breaker, value: int) -> int:
    return breaker.execute(int, str(value))


def call(breaker: sg.Breaker) -> int:
    return breaker.execute(int)


def time_out(breaker: sg.Breaker) -> None:
    breaker.options(timeout=0.05).execute(threading.Event().wait)


def cancel(breaker: sg.Breaker) -> None:
    token = sg.CancelToken()
    token.cancel()
    breaker.options(cancel=token).execute(int)


def call_while_half_open(breaker: sg.Breaker) -> None:
    with breaker.acquire():
        breaker.execute(int)


def call_nobody(address: str) -> None:
    with connect(address, acquire_timeout=0.05) as client:
        client.breaker("service").execute(int)


def ask_for_no_circuit(breaker: sg.Breaker) -> None:
    with connect(str(breaker._client.address)) as client:
        client.stats("no such")


def configure_badly(breaker: sg.Breaker) -> None:
    sg.CircuitConfig(failure_threshold=0)


# -- pools -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_loses_no_call(breaker: sg.Breaker, method: str) -> None:
    breaker.execute(int)  # so that there is a connection that a fork inherits
    context = multiprocessing.get_context(method)
    with context.Pool(WORKERS) as pool:
        pids = pool.map(call_often, [breaker] * 6, chunksize=1)
        pool.close()
        pool.join()
    assert os.getpid() not in pids
    assert totals(breaker) == (1 + 6 * CALLS * 3 // 4, 6 * CALLS // 4, 0)


@pytest.mark.parametrize("method", METHODS)
def test_a_process_pool_executor_loses_no_call(breaker: sg.Breaker, method: str) -> None:
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(WORKERS, mp_context=context) as pool:
        assert list(pool.map(call_with, [breaker] * 20, range(20))) == list(range(20))
    assert totals(breaker) == (20, 0, 0)


@pytest.mark.parametrize("method", METHODS)
def test_an_error_comes_out_of_a_pool_with_its_attributes(
    manager: sg.Manager, address: str, method: str
) -> None:
    opened = manager.breaker("opened", failure_threshold=1, open_timeout=600.0)
    trip(opened)
    healing = manager.breaker("healing", failure_threshold=1, open_timeout=0.05)
    trip(healing)
    eventually(lambda: healing.state is sg.State.HALF_OPEN)
    closed = manager.breaker("closed")
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        open_error = raised(pool.apply_async, call, opened)
        too_many = raised(pool.apply_async, call_while_half_open, healing)
        timeout = raised(pool.apply_async, time_out, closed)
        cancelled = raised(pool.apply_async, cancel, closed)
        unavailable = raised(pool.apply_async, call_nobody, address)
        unknown = raised(pool.apply_async, ask_for_no_circuit, closed)
        bad = raised(pool.apply_async, configure_badly, closed)
        pool.close()
        pool.join()
    assert isinstance(open_error, sg.CircuitOpenError)
    assert (open_error.name, open_error.state) == ("opened", sg.State.OPEN)
    assert open_error.last_error == "ConnectionError: down"
    assert open_error.retry_after is not None
    assert 500.0 < open_error.retry_after <= 600.0
    assert isinstance(too_many, sg.TooManyRequestsError)
    assert (too_many.name, too_many.state) == ("healing", sg.State.HALF_OPEN)
    assert isinstance(timeout, sg.CallTimeoutError)
    assert (timeout.name, timeout.timeout) == ("closed", 0.05)
    assert isinstance(cancelled, sg.CallCancelledError)
    assert cancelled.name == "closed"
    assert isinstance(unavailable, sg.ManagerUnavailableError)
    assert unavailable.address == address
    assert isinstance(unknown, sg.UnknownCircuitError)
    assert unknown.name == "no such"
    assert isinstance(bad, sg.ConfigError)
    assert "failure_threshold" in str(bad)
    for error in (open_error, too_many, timeout, cancelled, unavailable, unknown, bad):
        copy = pickle.loads(pickle.dumps(error))
        assert (str(copy), vars(copy)) == (str(error), vars(error))


def raised(
    apply: Callable[..., multiprocessing.pool.AsyncResult[object]],
    function: Callable[..., object],
    argument: object,
) -> BaseException:
    with pytest.raises(sg.BreakerError) as caught:
        apply(function, (argument,)).get(PATIENCE)
    return caught.value


@pytest.mark.parametrize("method", METHODS)
def test_a_circuit_opened_in_one_process_is_open_in_the_others(
    manager: sg.Manager, method: str
) -> None:
    breaker = manager.breaker("service", failure_threshold=3, open_timeout=600.0)
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        pool.apply(trip, (breaker,))
        with pytest.raises(sg.CircuitOpenError):
            breaker.execute(int)
        with pytest.raises(sg.CircuitOpenError):
            pool.apply(call, (breaker,))
        pool.close()
        pool.join()


@pytest.mark.parametrize("method", METHODS)
def test_a_breaker_keeps_its_config_and_timeout_on_the_way(
    manager: sg.Manager, method: str
) -> None:
    breaker = manager.breaker("service", failure_threshold=7).options(timeout=600.0)
    context = multiprocessing.get_context(method)
    with context.Pool(1) as pool:
        assert pool.apply(describe, (breaker,)) == ("service", 7, 600.0, str(breaker))
        pool.close()
        pool.join()


def describe(breaker: sg.Breaker) -> tuple[str, int, float | None, str]:
    return breaker.name, breaker.stats().config.failure_threshold, breaker._timeout, str(breaker)


# -- a child's last words --------------------------------------------------------------------------


def call_and_leave(breaker: sg.Breaker) -> None:
    breaker.execute(int)
    permit = breaker.acquire()
    permit.failure("last")


@pytest.mark.parametrize("method", METHODS)
def test_a_child_that_leaves_right_after_its_last_call_loses_nothing(
    breaker: sg.Breaker, method: str
) -> None:
    context: BaseContext = multiprocessing.get_context(method)
    for number in range(1, 6):
        child = context.Process(target=call_and_leave, args=(breaker,))  # type: ignore[attr-defined]  # typeshed: every context has it
        child.start()
        child.join(PATIENCE)
        assert child.exitcode == 0
        assert totals(breaker) == (number, number, 0)


LAST_WORDS: Final = """
import os, sys
import switchgear as sg

client = sg.connect(sys.argv[1], acquire_timeout=5.0)
breaker = client.breaker("service")
how = sys.argv[2]
if how == "fork after use":
    breaker.execute(int)
if how.startswith("fork"):
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
for _ in range(50):
    breaker.execute(int)
if how == "raise":
    raise KeyError("the script's own")
if how != "end":
    sys.exit(0)
"""


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("how", "code", "successes"),
    [
        ("end", 0, 50),
        ("exit", 0, 50),
        ("raise", 1, 50),
        ("fork before use", 0, 50),
        ("fork after use", 0, 51),
    ],
)
def test_a_script_that_ends_right_after_its_last_call_loses_nothing(
    manager: sg.Manager, breaker: sg.Breaker, how: str, code: int, successes: int
) -> None:
    done = run_script(LAST_WORDS, manager.address, how)
    assert done.returncode == code, done.stderr
    assert totals(breaker) == (successes, 0, 0)


# -- fork ------------------------------------------------------------------------------------------


def in_fork(work: Callable[[], object]) -> object:
    """What the function returns in a forked child; raises what it raises there."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            try:
                result: object = work()
            except BaseException as error:
                result = error
            os.write(write, pickle.dumps(result))
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    try:
        assert wait_readable(read), "the child said nothing"
        chunks = b"".join(iter(lambda: os.read(read, 65536), b""))
    finally:
        os.close(read)
        os.waitpid(child, 0)
    result = pickle.loads(chunks)
    if isinstance(result, BaseException):
        raise result
    return result


def test_a_client_used_before_a_fork_works_in_parent_and_child(
    manager: sg.Manager, breaker: sg.Breaker
) -> None:
    breaker.execute(int)

    def child() -> tuple[Totals, int]:
        for _ in range(20):
            breaker.execute(int)
        return totals(breaker), manager.client.ping().pid

    assert in_fork(child) == ((21, 0, 0), manager.pid)
    for _ in range(20):
        breaker.execute(int)
    assert totals(breaker) == (41, 0, 0)
    assert in_fork(child) == ((61, 0, 0), manager.pid)


def test_parent_and_child_work_at_the_same_time(breaker: sg.Breaker) -> None:
    breaker.execute(int)
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=call_often, args=(breaker,)) for _ in range(3)]
    for child in children:
        child.start()
    call_often(breaker)
    for child in children:
        child.join(PATIENCE)
        assert child.exitcode == 0
    assert totals(breaker) == (1 + 4 * CALLS * 3 // 4, 4 * CALLS // 4, 0)


def test_a_grandchild_works_too(breaker: sg.Breaker) -> None:
    breaker.execute(int)

    def grandchild() -> Totals:
        breaker.execute(int)
        return totals(breaker)

    def child() -> object:
        breaker.execute(int)
        return in_fork(grandchild)

    assert in_fork(child) == (3, 0, 0)
    assert totals(breaker) == (3, 0, 0)


def test_a_permit_of_the_parent_is_refused_in_the_child(breaker: sg.Breaker) -> None:
    permit = breaker.acquire()

    def child() -> None:
        permit.success()

    with pytest.raises(sg.BreakerError, match="another process"):
        in_fork(child)
    assert totals(breaker) == (0, 0, 1)
    permit.success()
    assert totals(breaker) == (1, 0, 0)


def test_a_fork_inside_a_block_leaves_the_permit_to_the_parent(breaker: sg.Breaker) -> None:
    read, write = os.pipe()
    child = 0
    try:
        with breaker:
            child = os.fork()
            if child == 0:
                fail()
    except ConnectionError:  # in the child, and the block has been left there
        with breaker:
            pass
        os.write(write, repr(totals(breaker)).encode())
        os._exit(0)
    finally:
        if child == 0:
            os._exit(1)
    os.close(write)
    assert wait_readable(read)
    seen = os.read(read, 100).decode()
    os.close(read)
    os.waitpid(child, 0)
    # The parent may have left its block by the time the child looked.
    assert seen in ("(1, 0, 1)", "(2, 0, 0)")
    assert totals(breaker) == (2, 0, 0)


def test_a_child_that_drops_a_permit_of_its_parent_gives_nothing_back(breaker: sg.Breaker) -> None:
    permits = [breaker.acquire()]

    def child() -> Totals:
        permits.clear()
        return totals(breaker)

    assert in_fork(child) == (0, 0, 1)
    permits[0].success()
    assert totals(breaker) == (1, 0, 0)


def test_a_manager_object_that_was_forked_does_not_end_its_manager(manager: sg.Manager) -> None:
    in_fork(manager.stop)
    assert manager.breaker("service").execute(int) == 0
    with pytest.raises(sg.BreakerError, match="before"):
        in_fork(manager.start)


def test_callbacks_go_on_in_a_forked_child(manager: sg.Manager) -> None:
    seen: list[sg.State] = []
    breaker = manager.breaker(
        "service",
        failure_threshold=1,
        open_timeout=600.0,
        on_state_change=lambda name, old, new: seen.append(new),
    )

    def child() -> list[sg.State]:
        breaker.execute(int)
        trip(breaker)
        return list(eventually(lambda: seen))

    assert in_fork(child) == [sg.State.OPEN]
    assert eventually(lambda: seen) == [sg.State.OPEN]


@pytest.mark.untraced
def test_a_fork_while_other_threads_make_calls_leaves_a_child_that_works(
    breaker: sg.Breaker,
) -> None:
    over = threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not over.is_set():
                breaker.execute(int)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            assert in_fork(lambda: breaker.execute(int, "7")) == 7
    finally:
        over.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert errors == []


# -- threads and tasks at once ---------------------------------------------------------------------


def test_threads_and_tasks_of_one_process_lose_no_call(breaker: sg.Breaker) -> None:
    threads, loops, tasks, calls = 3, 2, 10, 30
    errors: list[BaseException] = []

    async def call_in_task() -> None:
        for number in range(calls):
            if number % 3 == 0:
                async with breaker:
                    await asyncio.sleep(0)
            else:
                await breaker.execute_async(asyncio.sleep, 0)

    async def call_in_tasks() -> None:
        await asyncio.gather(*(call_in_task() for _ in range(tasks)))

    def call_in_thread() -> None:
        for _ in range(calls):
            breaker.execute(int)

    def guarded(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    works: list[Callable[[], object]] = [call_in_thread] * threads
    works += [lambda: asyncio.run(call_in_tasks())] * loops
    running = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert errors == []
    assert totals(breaker) == (threads * calls + loops * tasks * calls, 0, 0)
