"""gunicorn's ways to start, stop, recycle and kill workers, with real requests."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Final

import pytest

import switchgear as sg
from switchgear.manager.actor import LEASE

from ..conftest import (
    connect,
    end,
    ending,
    eventually,
    has_ended,
    start_manager,
    trip,
)
from .servers import LOST, Deploy, Server, answered, needs, service_at_a_port, serving

pytestmark = pytest.mark.process

SOON: Final = 2.0  # seconds: a machine may be busy, but nobody waited in vain for the manager
THREADS: Final = ("--worker-class", "gthread", "--threads", "2")
KINDS: Final = [
    pytest.param((), id="sync"),
    pytest.param(("--preload",), id="sync-preload"),
    pytest.param(THREADS, id="gthread"),
    pytest.param((*THREADS, "--preload"), id="gthread-preload"),
]


@pytest.fixture(autouse=True)
def _installed() -> None:
    needs("gunicorn")


def gunicorn(
    environment: dict[str, str], *options: str, workers: int = 3
) -> AbstractContextManager[Server]:
    quiet = ("--log-level", "error", "--no-control-socket")
    command = ("gunicorn", *quiet, "--bind", "fd://FD", "--workers", str(workers), *options)
    return serving(command, environment, "wsgi:app")


@pytest.mark.parametrize("options", KINDS)
def test_gunicorns_workers_share_one_circuit(deploy: Deploy, options: tuple[str, ...]) -> None:
    at_import = 4
    environment = deploy.environment(
        calls_at_import=at_import, failure_threshold=3, open_timeout=0.5
    )
    besides = at_import * (1 if "--preload" in options else 3)
    with gunicorn(environment, *options) as server:
        answers = deploy.opens_and_recovers(server, workers=3, besides=besides)
        server.stop()
    deploy.agrees(answers, besides)
    deploy.forgets_all_but([])


@pytest.mark.parametrize("options", KINDS[:2])
def test_gunicorns_workers_start_their_manager_and_its_successor(
    address: str, options: tuple[str, ...]
) -> None:
    """And nobody else does."""
    with (
        connect(address) as client,
        service_at_a_port() as (service, place),
    ):
        deploy = Deploy(None, client, service, place, address)
        environment = deploy.environment(connect={"autostart": True}, failure_threshold=3)
        managers: list[int] = []

        def another_answers() -> bool:
            with contextlib.suppress(sg.ManagerUnavailableError):
                if (pid := client.ping().pid) not in managers:
                    managers.append(pid)
                    return True
            return False

        try:
            with gunicorn(environment, *options) as server:
                answers = server.get_each(3)
                eventually(another_answers)
                deploy.agrees(answers)
                os.kill(managers[-1], signal.SIGKILL)
                answers += server.get_each(3)
                eventually(another_answers)
                deploy.agrees(answers)
                assert {answer.outcome for answer in answers} == {"success"}
        finally:
            eventually(lambda: managers)
            ended = has_ended(managers[-1])
            os.kill(managers[-1], signal.SIGTERM)
            eventually(ended)


# -- workers that are killed -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "path"),
    [
        pytest.param((), "/hears", id="hears"),
        pytest.param((), "/deaf", id="deaf"),
        pytest.param(("--preload",), "/deaf", id="deaf-preload"),
    ],
)
def test_gunicorns_timeout_gives_back_the_probe_of_a_worker_that_hangs(
    deploy: Deploy, options: tuple[str, ...], path: str
) -> None:
    """By SIGABRT, which becomes SystemExit in the call; who does not heed it is killed."""
    environment = deploy.environment(
        failure_threshold=1, success_threshold=1, open_timeout=0.2, permit_timeout=3600.0
    )
    with (
        gunicorn(environment, *options, "--timeout", "2", workers=2) as server,
        ThreadPoolExecutor(1) as visitor,
    ):
        deploy.service.broken = True
        first = server.get()
        assert first.outcome == "failure"
        eventually(lambda: deploy.breaker.state is sg.State.HALF_OPEN)

        deploy.service.hang()
        probe = visitor.submit(server.get, path)
        hung = deploy.service.caller(2)
        gone = has_ended(hung)
        deploy.service.work()

        answers = [first]

        def closes() -> bool:
            answers.append(server.get())
            return deploy.breaker.state is sg.State.CLOSED

        eventually(closes)
        eventually(gone)
        assert probe.result() is LOST
        assert hung not in {answer.pid for answer in answers[1:]}
        lost = deploy.breaker.metrics().permits_lost
        neutral = deploy.breaker.stats().total_neutral
        assert (lost, neutral) == ((1, 0) if path == "/deaf" else (0, 1))
        deploy.forgets_all_but(server.workers)


# -- workers that come and go ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "visits"),
    [
        pytest.param((), 50, id="sync"),
        pytest.param(("--preload",), 300, id="sync-preload"),
        pytest.param((*THREADS, "--preload"), 100, id="gthread-preload"),
    ],
)
def test_gunicorns_recycled_workers_lose_and_delay_no_request(
    deploy: Deploy, options: tuple[str, ...], visits: int
) -> None:
    environment = deploy.environment(failure_threshold=1_000_000)
    with gunicorn(environment, *options, "--max-requests", "5", workers=2) as server:
        answers = server.get_many(visits)
        assert LOST not in answers or "gthread" in options
        assert len({answer.pid for answer in answers}) > visits / 10
        assert max(answer.took for answer in answers) < SOON
        deploy.agrees(answered(answers))
        deploy.forgets_all_but(server.workers)


@pytest.mark.parametrize("options", KINDS)
def test_gunicorns_reload_under_load_loses_no_request(
    deploy: Deploy, options: tuple[str, ...]
) -> None:
    environment = deploy.environment(failure_threshold=1_000_000)
    with gunicorn(environment, *options, workers=2) as server:
        answers = server.get_each(2)
        for _ in range(2):
            before = server.workers
            server.tell(signal.SIGHUP)

            def replaced(before: set[int] = before) -> bool:
                answers.extend(server.get_many(8))
                return len(server.workers) == 2 and not server.workers & before

            eventually(replaced)
        deploy.service.broken = True
        answers += server.get_many(8)
        deploy.agrees(answered(answers))
        deploy.forgets_all_but(server.workers)
        server.stop()
    assert LOST not in answers or "gthread" in options
    deploy.agrees(answered(answers))


# -- a manager that is killed ----------------------------------------------------------------------


def test_gunicorns_workers_go_on_without_a_manager_and_share_the_next_one(deploy: Deploy) -> None:
    environment = deploy.environment(
        connect={"acquire_timeout": 0.5}, failure_threshold=3, open_timeout=600.0
    )
    with gunicorn(environment) as server:
        answers = server.get_each(3)
        end(deploy.manager)
        leased_until = time.monotonic() + LEASE
        while time.monotonic() < leased_until:
            answers += server.get_many(10)
        answers += server.get_each(3)  # who all have to decide alone
        assert {answer.outcome for answer in answers} == {"success"}
        assert max(answer.took for answer in answers) < SOON

        def outcomes() -> set[str]:
            return {answer.outcome for answer in server.get_each(3)}

        with ending(start_manager(deploy.address)):
            breaker = deploy.breaker
            # All of them, or one that comes late would begin the count of failures anew.
            eventually(lambda: breaker.stats().total_successes == len(answers))
            trip(breaker)  # of no worker's doing
            eventually(lambda: outcomes() == {"CircuitOpenError"})
            breaker.reset()
            eventually(lambda: outcomes() == {"success"})
            deploy.service.broken = True  # and now of theirs
            eventually(lambda: outcomes() and breaker.state is sg.State.OPEN)
            eventually(lambda: outcomes() == {"CircuitOpenError"})
