"""Celery's prefork pool: a worker, a broker of files, and real tasks."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import switchgear as sg

from ..conftest import PATIENCE, eventually, has_ended
from .servers import Answer, Deploy, children_of, needs, running

pytestmark = pytest.mark.process

CHILDREN: Final = 3
ALONE: Final = ("--without-mingle", "--without-gossip", "--without-heartbeat")
QUIET: Final = ("--loglevel", "CRITICAL", *ALONE)


@pytest.fixture(autouse=True)
def _installed() -> None:
    needs("celery")


class Worker:
    """A Celery worker that runs, and how to send it tasks."""

    def __init__(self, process: subprocess.Popen[bytes], home: Path) -> None:
        from celery import Celery

        self.process = process
        self._home = home
        self._app = Celery("visitor", set_as_current=False)
        self._app.conf.update(
            broker_url="filesystem://",
            result_backend=f"file://{home}/results",
            broker_transport_options={
                "data_folder_in": f"{home}/out",
                "data_folder_out": f"{home}/out",
                "control_folder": f"{home}/control",
            },
        )

    def send(self, path: str = "/", meet: bool = False, **options: Any) -> Any:
        """One task; its result."""
        result = self._app.send_task("visit", (path, meet), **options)
        # The worker would read a message that is still being written.
        for message in (self._home / "out").iterdir():
            message.rename(self._home / "in" / message.name)
        return result

    def visit(self, count: int = 1, path: str = "/", meet: bool = False) -> list[Answer]:
        """So many tasks, and what came of them."""
        results = [self.send(path, meet) for _ in range(count)]
        return [Answer(**result.get(PATIENCE, interval=0.01)) for result in results]

    def visit_each(self, service: Any) -> list[Answer]:
        """One task for each child: none of them has done with its own before all have met."""
        service.meet(CHILDREN)
        answers = self.visit(CHILDREN, meet=True)
        assert len({answer.pid for answer in answers}) == CHILDREN
        return answers

    @property
    def children(self) -> set[int]:
        return children_of(self.process.pid)

    def stop(self) -> None:
        """In good order."""
        self.process.terminate()
        assert self.process.wait(PATIENCE) == 0

    def close(self) -> None:
        self._app.close()


@contextlib.contextmanager
def celery(environment: dict[str, str], home: Path, *options: str) -> Iterator[Worker]:
    for folder in ("in", "out", "control", "processed", "results"):
        (home / folder).mkdir()
    command = [sys.executable, "-m", "celery", "--app", "tasks", "--quiet", "worker", *QUIET]
    command += ["--pool", "prefork", "--concurrency", str(CHILDREN), *options]
    with running(command, {**environment, "SHOP_HOME": str(home)}) as process:
        worker = Worker(process, home)
        try:
            yield worker
        finally:
            worker.close()


def test_celerys_children_share_one_circuit(deploy: Deploy, tmp_path: Path) -> None:
    environment = deploy.environment(
        calls_at_import=4, failure_threshold=CHILDREN, open_timeout=0.5
    )
    with celery(environment, tmp_path) as worker:
        answers: list[Answer] = []

        def visit_each() -> set[str]:
            visits = worker.visit_each(deploy.service)
            answers.extend(visits)
            return {answer.outcome for answer in visits}

        def visit() -> sg.State:
            answers.extend(worker.visit())
            return deploy.breaker.state

        assert visit_each() == {"success"}
        deploy.agrees(answers, besides=4)
        deploy.service.broken = True
        assert visit_each() == {"failure"}
        eventually(lambda: deploy.breaker.metrics().transitions[sg.State.OPEN])
        eventually(lambda: visit_each() == {"CircuitOpenError"})
        deploy.service.work()
        eventually(lambda: visit() is sg.State.CLOSED)
        eventually(lambda: visit_each() == {"success"})
        worker.stop()
    deploy.agrees(answers, besides=4)
    deploy.forgets_all_but([])


def test_celerys_hard_time_limit_gives_back_the_probe_of_a_task_that_hangs(
    deploy: Deploy, tmp_path: Path
) -> None:
    from celery.exceptions import TimeLimitExceeded

    environment = deploy.environment(
        failure_threshold=1, success_threshold=1, open_timeout=0.2, permit_timeout=3600.0
    )
    with celery(environment, tmp_path) as worker:
        deploy.service.broken = True
        assert worker.visit()[0].outcome == "failure"
        eventually(lambda: deploy.breaker.state is sg.State.HALF_OPEN)
        deploy.service.hang()
        probe = worker.send(time_limit=1)
        gone = has_ended(hung := deploy.service.caller(2))
        deploy.service.work()

        def closes() -> bool:
            worker.visit()
            return deploy.breaker.state is sg.State.CLOSED

        eventually(closes)
        eventually(gone)
        with pytest.raises(TimeLimitExceeded):
            probe.get(PATIENCE, interval=0.01)
        # By SIGTERM, which becomes SystemExit in the call; who does not heed it is killed.
        assert deploy.breaker.metrics().permits_lost + deploy.breaker.stats().total_neutral == 1
        eventually(lambda: len(worker.children - {hung}) == CHILDREN)
        worker.visit_each(deploy.service)
        deploy.forgets_all_but(worker.children)


def test_celerys_recycled_children_lose_no_task(deploy: Deploy, tmp_path: Path) -> None:
    environment = deploy.environment(failure_threshold=1_000_000)
    with celery(environment, tmp_path, "--max-tasks-per-child", "5") as worker:
        answers = worker.visit(45)
        assert len({answer.pid for answer in answers}) >= 9
        deploy.agrees(answers)
        deploy.forgets_all_but(worker.children)
