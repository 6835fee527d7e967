"""uvicorn with several workers, with real requests."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

import pytest

import switchgear as sg

from ..conftest import eventually
from .servers import LOST, Deploy, Server, answered, needs, serving

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def _installed() -> None:
    needs("uvicorn")


def uvicorn(environment: dict[str, str], workers: int = 3) -> AbstractContextManager[Server]:
    command = ["uvicorn", "--log-level", "error", "--fd", "FD"]
    # Longer than a test stops a worker for.
    command += ["--workers", str(workers), "--timeout-worker-healthcheck", "60"]
    return serving(command, environment, "asgi:app")


@pytest.mark.parametrize("path", ["/execute_async", "/decorated"])
def test_uvicorns_workers_share_one_circuit(deploy: Deploy, path: str) -> None:
    environment = deploy.environment(failure_threshold=3, open_timeout=0.5)
    with uvicorn(environment) as server:
        answers = deploy.opens_and_recovers(server, workers=3, path=path)
        server.stop()
    deploy.agrees(answers)
    deploy.forgets_all_but([])


def test_the_probe_of_a_killed_uvicorn_worker_comes_back_and_its_successor_joins_in(
    deploy: Deploy,
) -> None:
    environment = deploy.environment(
        failure_threshold=1, success_threshold=1, open_timeout=0.2, permit_timeout=3600.0
    )
    with uvicorn(environment) as server, ThreadPoolExecutor(1) as visitor:
        before = {answer.pid for answer in server.get_each(3)}
        first = server.workers
        deploy.service.broken = True
        assert server.get().outcome == "failure"
        eventually(lambda: deploy.breaker.state is sg.State.HALF_OPEN)
        deploy.service.hang()
        probe = visitor.submit(server.get)
        hung = deploy.service.caller(5)
        deploy.service.work()
        os.kill(hung, signal.SIGKILL)
        assert probe.result() is LOST
        assert hung in before

        def closes() -> bool:
            server.get()
            return deploy.breaker.state is sg.State.CLOSED

        eventually(closes)
        assert deploy.breaker.metrics().permits_lost == 1

        # At least one: uvicorn replaces those, too, that do not answer it for some seconds.
        eventually(lambda: server.workers - first)
        after = {answer.pid for answer in server.get_each(3)}
        assert after - before
        assert hung not in after
        deploy.forgets_all_but(after)


def test_uvicorns_restart_under_load_loses_no_call(deploy: Deploy) -> None:
    environment = deploy.environment(failure_threshold=1_000_000)
    with uvicorn(environment, workers=2) as server:
        answers = server.get_each(2)
        before = {answer.pid for answer in answers}
        server.tell(signal.SIGHUP)

        def replaced() -> bool:
            answers.extend(server.get_many(8))
            return not server.workers & before

        eventually(replaced)
        deploy.service.broken = True
        answers += server.get_many(8)
        server.stop()
    deploy.agrees(answered(answers))
    deploy.forgets_all_but([])
