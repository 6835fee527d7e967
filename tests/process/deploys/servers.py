"""Real servers for the deploy tests, the service that their calls go to, and who visits them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

import switchgear as sg

from ..conftest import ACQUIRE_TIMEOUT, PATIENCE, eventually, stopped

APPS: Final = Path(__file__).parent / "apps"
SRC: Final = Path(sg.__file__).parents[1]
# A test wants to see it when a call was not answered, and not to have it stood in for.
ASKING: Final = {"acquire_timeout": ACQUIRE_TIMEOUT, "manager_loss": "reject"}


def needs(package: str) -> None:
    """Fail, and do not skip: a deploy that nobody has tried is not one that works."""
    if find_spec(package) is None:
        pytest.fail(f"{package} is not installed: pip install -e '.[deploys]'", pytrace=False)


# -- the service that is called --------------------------------------------------------------------


class Service:
    """What the applications call; a test has it fail, hang and recover."""

    def __init__(self) -> None:
        self.broken = False
        self._callers: list[int] = []  # processes, in order
        self._hangs = False
        self._closed = False
        self._missing = 0  # until those at "/meet" go on
        self._moved = threading.Condition()

    def hang(self) -> None:
        """Answer none of the calls that come from now on, for as long as a test waits."""
        with self._moved:
            self._hangs = True

    def work(self) -> None:
        """Answer those that come from now on, and well."""
        with self._moved:
            self._hangs = self.broken = False

    def meet(self, count: int) -> None:
        """Let callers of "/meet" go on once there are so many: no two of one worker."""
        with self._moved:
            self._missing = count

    def answer(self, path: str, caller: int) -> int:
        """How a process's call is answered, once it is."""
        with self._moved:
            if path == "/meet":
                self._missing -= 1
                self._moved.notify_all()
                met = self._moved.wait_for(lambda: self._missing <= 0, PATIENCE)
                return 200 if met else 504
            self._callers.append(caller)
            status = 503 if self.broken else 200
            self._moved.notify_all()
            if self._hangs:
                self._moved.wait_for(lambda: self._closed, PATIENCE * 2)
            return status

    def close(self) -> None:
        """Leave no thread waiting."""
        with self._moved:
            self._closed = True
            self._moved.notify_all()

    def caller(self, number: int) -> int:
        """The process whose call was the first one, the second one, ...; waits for it."""
        with self._moved:
            came = self._moved.wait_for(lambda: len(self._callers) >= number, PATIENCE)
            assert came, f"{len(self._callers)} calls have come, and not {number}"
            return self._callers[number - 1]


class _Listening(ThreadingHTTPServer):
    daemon_threads = True  # some of them wait for processes that a test has killed
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The caller was killed meanwhile."""


@contextlib.contextmanager
def service_at_a_port() -> Iterator[tuple[Service, str]]:
    """A service, and its host and port."""
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(service.answer(self.path, int(self.headers["From"] or 0)))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with _Listening(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield service, f"127.0.0.1:{server.server_port}"
        finally:
            service.close()
            server.shutdown()
            thread.join()


# -- servers ---------------------------------------------------------------------------------------


class Answer(NamedTuple):
    """What a visit came to, and in which worker."""

    pid: int
    outcome: str
    took: float  # seconds in the worker


LOST: Final = Answer(0, "lost", 0.0)  # its worker was killed


def answered(answers: Iterable[Answer]) -> list[Answer]:
    """All but the visits whose connection a server that ends closed before it had read from it.

    Had it made a call for one of them, the manager would have counted more than was told.
    """
    return [answer for answer in answers if answer is not LOST]


class Server:
    """A server that runs, and how to visit it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def get(self, path: str = "/") -> Answer:
        """One request."""
        try:
            status, body = self.fetch(path)
        except (ConnectionError, http.client.IncompleteRead):
            return LOST
        return Answer(**json.loads(body)) if status == 200 else LOST

    def fetch(self, path: str) -> tuple[int, bytes]:
        """What the server sends."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get_many(self, count: int, path: str = "/", at_once: int = 4) -> list[Answer]:
        """So many requests, a few of them at any time."""
        with ThreadPoolExecutor(at_once) as visitors:
            return list(visitors.map(self.get, [path] * count))

    def get_each(self, workers: int, path: str = "/") -> list[Answer]:
        """One request to each of so many workers: who has answered is stopped until all have."""
        answers = []
        with contextlib.ExitStack() as stack:
            for _ in range(workers):
                answers.append(answer := self.get(path))
                assert answer is not LOST
                stack.enter_context(stopped(answer.pid))
        assert len({answer.pid for answer in answers}) == workers
        return answers

    @property
    def workers(self) -> set[int]:
        """The processes that it has started and that live."""
        return children_of(self.process.pid)

    def tell(self, signum: int) -> None:
        self.process.send_signal(signum)

    def stop(self) -> None:
        """In good order."""
        self.process.terminate()
        assert self.process.wait(PATIENCE) in (0, -signal.SIGTERM)


@contextlib.contextmanager
def serving(command: Sequence[str], environment: dict[str, str], app: str) -> Iterator[Server]:
    """A server of an application of ours; it ends with the block, and all its workers do.

    Args:
        command: A module and its options; "FD" in them becomes the descriptor of the socket.
        environment: See `Deploy`.
        app: Where the application is.
    """
    # Ours: whoever comes before the server listens waits, and no port can be taken meanwhile.
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        fd = listener.fileno()
        words = [word.replace("FD", str(fd)) for word in command]
        with running([sys.executable, "-m", *words, app], environment, fd) as process:
            yield Server(process, listener.getsockname()[1])


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: dict[str, str], *fds: int
) -> Iterator[subprocess.Popen[bytes]]:
    """A server; at the end of the block all its processes end."""
    process = subprocess.Popen(
        command,
        env=environment,
        pass_fds=fds,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(PATIENCE)


def children_of(pid: int) -> set[int]:
    """The processes that a process has started, whichever of its threads, and that live."""
    found: set[int] = set()
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found.update(map(int, (thread / "children").read_text().split()))
    return found


# -- what the manager has of it --------------------------------------------------------------------


def sessions(manager: int) -> Counter[int]:
    """The processes whose sessions a manager keeps, and how many of each: it has a pidfd for each.

    A process that has ended and is still watched is -1 there.
    """
    found: Counter[int] = Counter()
    for info in Path(f"/proc/{manager}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):
            for line in info.read_text().splitlines():
                if line.startswith("Pid:"):
                    found[int(line.split()[1])] += 1
    return found


class Deploy(NamedTuple):
    """A manager, a service, and what a server's application is told of them."""

    manager: subprocess.Popen[bytes] | None  # None: the application starts it
    client: sg.Client
    service: Service
    place: str  # of the service
    address: str

    def environment(
        self, *, connect: dict[str, Any] | None = None, calls_at_import: int = 0, **breaker: Any
    ) -> dict[str, str]:
        """For a server that is to find the application, the manager and the service.

        Args:
            connect: How the application connects.
            calls_at_import: So many calls succeed while it is imported.
            **breaker: The configuration of its breaker.
        """
        settings = {
            "connect": ASKING if connect is None else connect,
            "breaker": breaker,
            "calls_at_import": calls_at_import,
            "service": self.place,
        }
        ours = {
            "SHOP": json.dumps(settings),
            "SWITCHGEAR_ADDRESS": self.address,
            "PYTHONPATH": f"{APPS}:{SRC}",
        }
        return {**os.environ, **ours}

    @property
    def breaker(self) -> sg.Breaker:
        """The application's circuit, as it has configured it."""
        return self.client.breaker("shop")

    def agrees(self, answers: Iterable[Answer], besides: int = 0) -> None:
        """The manager comes to have counted exactly what the visitors were told.

        Args:
            answers: To all visits.
            besides: Calls that have succeeded and that nobody was told of.
        """
        told = Counter(answer.outcome for answer in answers)
        rejected = told["CircuitOpenError"] + told["TooManyRequestsError"]
        want = (told["success"] + besides, told["failure"], rejected, 0)
        assert sum(want) == sum(told.values()) + besides, told
        with contextlib.suppress(AssertionError):
            eventually(lambda: self.counted() == want, patience=5.0)
        assert (counted := self.counted()) == want, f"counted {counted}, told {want}"
        assert self.breaker.stats().total_requests == sum(want)

    def counted(self) -> tuple[int, int, int, int]:
        """Successes, failures, rejections, and calls in flight."""
        stats = self.breaker.stats()
        succeeded, failed = stats.total_successes, stats.total_failures
        return succeeded, failed, stats.total_rejected, stats.in_flight

    def opens_and_recovers(
        self, server: Server, workers: int, besides: int = 0, path: str = "/"
    ) -> list[Answer]:
        """Failures of different workers open the one circuit, all of them reject, and it closes.

        Its failure_threshold must be the number of workers.
        """
        answers: list[Answer] = []

        def visit_each() -> set[str]:
            visits = server.get_each(workers, path)
            answers.extend(visits)
            return {answer.outcome for answer in visits}

        def visit() -> sg.State:
            answers.append(server.get(path))
            return self.breaker.state

        assert visit_each() == {"success"}
        self.agrees(answers, besides)  # a success that comes late would break the row of failures
        self.service.broken = True
        assert visit_each() == {"failure"}
        eventually(lambda: self.breaker.metrics().transitions[sg.State.OPEN])
        eventually(lambda: visit_each() == {"CircuitOpenError"})
        self.service.work()
        eventually(lambda: visit() is sg.State.CLOSED)
        eventually(lambda: visit_each() == {"success"})
        self.agrees(answers, besides)
        return answers

    def forgets_all_but(self, workers: Iterable[int]) -> None:
        """The manager comes to keep no session but of these, and of us."""
        assert self.manager is not None
        pid, us = self.manager.pid, {os.getpid()}
        eventually(lambda: us <= set(sessions(pid)) <= us.union(workers))
