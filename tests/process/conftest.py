"""Real managers, real processes, and the one way to wait for them."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeVar

import pytest

import switchgear as sg

T = TypeVar("T")

ACQUIRE_TIMEOUT: Final = 5.0  # seconds; generous, because machines are loaded
# A test wants to see it when a call was not answered, and not to have it stood in for; nor that
# one is not answered in time only because the machine has much else to do.
connect: Final = functools.partial(
    sg.connect, manager_loss="reject", acquire_timeout=ACQUIRE_TIMEOUT
)
PATIENCE: Final = 20.0  # seconds until a test gives up on what must happen


@pytest.fixture(autouse=True)
def nobody_is_started_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever forgets to say which manager it wants gets none, and not the machine's own."""
    monkeypatch.setenv("SWITCHGEAR_AUTOSTART", "0")


@pytest.fixture
def manager() -> Iterator[sg.Manager]:
    """A manager of the test's own."""
    with sg.Manager(acquire_timeout=ACQUIRE_TIMEOUT, manager_loss="reject") as manager:
        yield manager


@pytest.fixture
def address() -> Iterator[str]:
    """An address at which nobody is. Short, as a socket's path has to be."""
    directory = tempfile.mkdtemp(prefix="sg-")
    yield f"ipc://{directory}/m"
    shutil.rmtree(directory, ignore_errors=True)


def eventually(look: Callable[[], T], patience: float = PATIENCE) -> T:
    """Look again and again until something true is seen, and return it; fail after `patience` s."""
    deadline = time.monotonic() + patience
    idle = threading.Event()
    while not (seen := look()):
        assert time.monotonic() < deadline, f"in {patience} s it never came true; last: {seen!r}"
        idle.wait(0.005)
    return seen


def fail(message: str = "down") -> None:
    """What a call does whose service is down."""
    raise ConnectionError(message)


def trip(breaker: sg.Breaker) -> None:
    """Have the breaker's calls fail until its circuit opens; a short open_timeout may be over."""
    for _ in range(breaker.stats().config.failure_threshold):
        with pytest.raises(ConnectionError):
            breaker.execute(fail)
    assert breaker.state is not sg.State.CLOSED


def half_open(breaker: sg.Breaker) -> None:
    """Open the circuit and wait until it is half-open."""
    trip(breaker)
    eventually(lambda: breaker.state is sg.State.HALF_OPEN)


def start_manager(
    address: str,
    *,
    program: Sequence[str] = ("-m", "switchgear.manager"),
    within: Sequence[str] = (),
    log: Path | None = None,
    options: Sequence[str] = (),
) -> subprocess.Popen[bytes]:
    """A manager as an operator starts it; returns once its sockets answer.

    Args:
        address: Its own.
        program: What Python is to run: something that ends in the manager's main().
        within: A command that runs the rest of the command line.
        log: Where to write its log, all of it; None: what matters goes where ours goes.
        options: More words for its command line.
    """
    read, write = os.pipe()
    level = "WARNING" if log is None else "DEBUG"
    command = [*within, sys.executable, *program, "--log-level", level]
    command += ["--address", address, "--ready-fd", str(write), *options]
    with contextlib.ExitStack() as stack:
        stderr = None if log is None else stack.enter_context(log.open("wb"))
        process = subprocess.Popen(command, pass_fds=(write,), stderr=stderr)
    os.close(write)
    try:
        assert wait_readable(read), "the manager said nothing"
        assert os.read(read, 100) == b"ready"
    except BaseException:
        end(process)
        raise
    finally:
        os.close(read)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process of ours by force, whatever it is at."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGCONT)
    process.kill()
    process.wait(PATIENCE)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


@contextlib.contextmanager
def ending(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End the process with the block, if it has not ended."""
    try:
        yield process
    finally:
        end(process)


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Keep a process of ours stopped for the block; begins once it has stopped."""
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: _state_of(pid) == "T")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0]


def wait_readable(fd: int, patience: float = PATIENCE) -> bool:
    """Wait until a descriptor can be read, or its other end is closed."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(patience * 1000))


def has_ended(pid: int) -> Callable[[], bool]:
    """A way to look whether a process that need not be our child has ended. Call it while it runs:
    its number may be another's later."""
    pidfd = os.pidfd_open(pid)

    def look() -> bool:
        return wait_readable(pidfd, patience=0)

    return look


def run_script(text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a Python script in a process of its own, to its end."""
    return subprocess.run(
        [sys.executable, "-c", text, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )


def start_script(text: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a Python script in a process of its own, with pipes to and from it."""
    return subprocess.Popen(
        [sys.executable, "-c", text, *arguments],
        bufsize=0,  # for read_line
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def read_line(process: subprocess.Popen[bytes]) -> str:
    """The next line a process prints. Its pipe must be unbuffered."""
    assert process.stdout is not None
    assert wait_readable(process.stdout.fileno()), "the script printed nothing"
    return process.stdout.readline().decode().strip()


def cpu_seconds(pid: int) -> float:
    """The processor time a process has used so far, all its threads together."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
