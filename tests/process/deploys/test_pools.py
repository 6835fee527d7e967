"""Process pools that are terminated, recycled or broken in the middle of calls."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from http.client import HTTPConnection
from typing import Final

import pytest

import switchgear as sg

from ..conftest import PATIENCE, eventually, half_open
from .servers import Deploy

pytestmark = [
    pytest.mark.process,
    # Python 3.12 warns of a fork in a process that has threads. Ours has them, as servers do.
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

METHODS: Final = ["fork", "spawn", "forkserver"]


def fetch(place: str) -> None:
    connection = HTTPConnection(place, timeout=2 * PATIENCE)
    try:
        connection.request("GET", "/", headers={"From": str(os.getpid())})
        assert connection.getresponse().status == 200
    finally:
        connection.close()


def visit(breaker: sg.Breaker, place: str) -> int:
    breaker.execute(fetch, place)
    return os.getpid()


def admits(breaker: sg.Breaker, place: str) -> bool:
    try:
        visit(breaker, place)
    except sg.CallNotPermittedError:
        return False
    return True


def fragile(deploy: Deploy) -> sg.Breaker:
    """Half-open, and its one probe has an hour."""
    breaker = deploy.client.breaker(
        "shop", failure_threshold=1, success_threshold=1, open_timeout=0.2, permit_timeout=3600.0
    )
    half_open(breaker)
    return breaker


def closes(deploy: Deploy, breaker: sg.Breaker, submit: Callable[..., bool]) -> None:
    """The lost probe has come back, nothing of the dead is left, and another one is admitted."""
    eventually(lambda: breaker.metrics().permits_lost == 1)
    assert breaker.stats().in_flight == 0
    deploy.forgets_all_but([])
    eventually(lambda: submit(admits, breaker, deploy.place))
    eventually(lambda: breaker.state is sg.State.CLOSED)  # the probe's report is another process's
    assert breaker.metrics().permits_lost == 1


@pytest.mark.parametrize("method", METHODS)
def test_a_pool_that_is_terminated_in_the_middle_of_calls_gives_back_its_probe(
    deploy: Deploy, method: str
) -> None:
    breaker, other = fragile(deploy), deploy.client.breaker("other")
    context = multiprocessing.get_context(method)
    deploy.service.hang()
    with context.Pool(3) as pool:
        for one in (breaker, other, other):
            pool.apply_async(visit, (one, deploy.place))
        callers = {deploy.service.caller(number) for number in (1, 2, 3)}
        assert len(callers) == 3
        pool.terminate()
        pool.join()
    deploy.service.work()
    with context.Pool(2) as pool:
        closes(deploy, breaker, lambda function, *args: pool.apply(function, args))
        assert pool.apply(visit, (other, deploy.place)) not in callers
        pool.close()
        pool.join()
    assert other.stats().total_successes == 1
    assert other.stats().in_flight == 0


@pytest.mark.parametrize("method", METHODS)
def test_an_executor_whose_worker_is_killed_gives_back_its_probe(
    deploy: Deploy, method: str
) -> None:
    breaker = fragile(deploy)
    context = multiprocessing.get_context(method)
    deploy.service.hang()
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        probe: Future[int] = pool.submit(visit, breaker, deploy.place)
        os.kill(deploy.service.caller(1), signal.SIGKILL)
        with pytest.raises(BrokenProcessPool):
            probe.result(PATIENCE)
    deploy.service.work()
    with ProcessPoolExecutor(2, mp_context=context) as pool:
        closes(deploy, breaker, lambda *call: pool.submit(*call).result(PATIENCE))
    deploy.forgets_all_but([])


@pytest.mark.parametrize("method", METHODS)
def test_a_pools_recycled_workers_lose_no_call(deploy: Deploy, method: str) -> None:
    breaker = deploy.client.breaker("shop")
    with multiprocessing.get_context(method).Pool(2, maxtasksperchild=3) as pool:
        calls = [(breaker, deploy.place)] * 30
        assert len(set(pool.starmap(visit, calls, chunksize=1))) >= 10
        pool.close()
        pool.join()
    assert breaker.stats().total_successes == 30
    assert breaker.stats().in_flight == 0
    deploy.forgets_all_but([])
