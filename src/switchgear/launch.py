"""Starting a manager's process: for who wants one of its own, and for who wants one to be there.

Of many that find nobody at an address one starts a manager and the others wait for it: tmux's way,
a look, a lock, and a second look. That only keeps a crowd from starting a crowd. What makes it
exactly one is the lock that the manager itself holds for as long as it lives, so whoever is killed
in here, and whenever, leaves nothing that has to be cleared away.

It must know neither the manager nor the client.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from .address import SHUT, Address
from .errors import BreakerError, ConfigError

READY: Final = b"ready"  # what a manager says once its sockets answer
TAKEN: Final = b"taken: "  # and the beginning of what it says when another one holds the address

IDLE_EXIT: Final = 60.0  # seconds without use until one that was started unasked ends

_ELECTION: Final = 5.0  # seconds to wait for who is starting one; then it is tried without the lock
_LOOK_AGAIN: Final = 0.02  # seconds between two looks meanwhile
_START_TIMEOUT: Final = 5.0  # seconds until a manager must have said something
_LOG_MAX: Final = 1_000_000  # bytes; what is longer when a manager starts is put aside

# The process that we start must not stay our child: servers reap all children they find, and who
# reaps none would keep a zombie. So it forks, and ends. It does so before it has loaded anything,
# and its child is a new program: neither has a thread or a lock that a fork could break.
_DETACH: Final = """
import os, signal, sys
if not os.fork():
    os.umask(0o077)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.execv(sys.argv[1], sys.argv[1:])
"""


def command(address: Address, *options: str) -> list[str]:
    """The command line of a manager's process.

    Raises:
        ConfigError: There is no Python to run it.
    """
    if not sys.executable or getattr(sys, "frozen", False):
        raise ConfigError("a program without a Python of its own cannot start a manager")
    return [sys.executable, "-m", "switchgear.manager", "--address", str(address), *options]


def environment() -> dict[str, str]:
    """Ours, with a path on which the manager finds this very package, in whatever directory it is.

    And what it starts, should it not be what we think it is, starts no manager in its turn.
    """
    package = str(Path(__file__).resolve().parents[1])
    inherited = os.environ.get("PYTHONPATH", "")
    paths = [package, *(os.path.abspath(path) for path in inherited.split(os.pathsep) if path)]
    path = os.pathsep.join(dict.fromkeys(paths))
    return {**os.environ, "PYTHONPATH": path, "SWITCHGEAR_AUTOSTART": "0"}


def spawn(command: list[str], ready_fd: int, **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that reads nothing, in a session of its own; a fork waits meanwhile.

    Args:
        command: What to run.
        ready_fd: The one descriptor that it inherits.
        **options: See `subprocess.Popen`.
    """
    with _starting:
        return subprocess.Popen(
            command,
            pass_fds=(ready_fd,),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            **options,
        )


def first_word(fd: int, timeout: float) -> bytes:
    """What a manager says until it is READY, the other end is closed, or seconds have passed."""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    said = b""
    while said != READY and poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        chunk = os.read(fd, 4096)
        if not chunk:
            break
        said += chunk
    return said


def listening(address: Address) -> bool:
    """Whether there is a manager, be it stopped or busy; costs it next to nothing."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            probe.connect(address.data_path)
    except BlockingIOError:
        return True  # so many want to be let in that we would have to wait
    except OSError:
        return False
    return True


def _crowded(address: Address) -> bool:
    """Whether there is a manager that lets nobody in, for want of descriptors."""
    if not os.path.lexists(address.data_path + SHUT):
        return False
    with _opened(address.lock_path, os.O_RDWR) as lock:  # or one that was killed then has left it
        return not _locked(lock)


def start(address: Address) -> bool:
    """See that a manager is at an address: start one, unless somebody else does. Takes a while.

    It is nobody's child, has nothing of ours open, writes to a file, and ends by itself.

    Returns:
        False: another one holds the address and does not listen, because it has just begun or is
        about to end. Ask again in a moment.

    Raises:
        BreakerError: It did not start; the message says why.
    """
    if listening(address):
        return True
    try:
        if _crowded(address):
            return True
        address.make_directory()
        with _opened(address.spawn_path, os.O_RDWR) as lock:
            deadline = time.monotonic() + _ELECTION
            while not _locked(lock) and time.monotonic() < deadline:
                if listening(address):
                    return True
                time.sleep(_LOOK_AGAIN)
            try:
                # Another one may have had the lock, and be done, between our look and our turn.
                return listening(address) or _start(address)
            finally:
                # Said aloud: a fork of this process may have a copy of the descriptor.
                fcntl.flock(lock, fcntl.LOCK_UN)
    except (OSError, subprocess.SubprocessError) as error:
        raise BreakerError(str(error)) from error


def _start(address: Address) -> bool:
    limit = idle_exit()
    with contextlib.ExitStack() as ours:
        log = ours.enter_context(_log(address))
        read, write = os.pipe2(os.O_CLOEXEC)
        ours.enter_context(_closing(read))
        with _closing(write):
            manager = command(address, "--idle-exit", str(limit), "--ready-fd", str(write))
            first = spawn(
                [manager[0], "-I", "-S", "-c", _DETACH, *manager],
                write,
                stdout=log,
                stderr=log,
                cwd="/",
                # Or -m would look for modules in its directory first, and "/" is nobody's.
                env={**environment(), "PYTHONSAFEPATH": "1"},
            )
        try:
            first.wait(_START_TIMEOUT)
        except subprocess.TimeoutExpired:
            first.kill()
            first.wait()
        said = first_word(read, _START_TIMEOUT)
    if said == READY:
        return True
    if said.startswith(TAKEN):
        return listening(address)
    reason = said.decode(errors="replace") or "it ended, or said nothing in time"
    raise BreakerError(f"{reason}; its log is {address.log_path}")


def idle_exit() -> float:
    """Seconds without use until a manager that was started unasked ends.

    Raises:
        ConfigError: `SWITCHGEAR_IDLE_EXIT` is no number of seconds.
    """
    text = os.environ.get("SWITCHGEAR_IDLE_EXIT")
    if not text:
        return IDLE_EXIT
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:  # so that nan is refused too; inf means never
        raise ConfigError(f"SWITCHGEAR_IDLE_EXIT must be more than 0 seconds, got {text!r}")
    return seconds


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _log(address: Address) -> Iterator[int]:
    """The file that a manager writes to, at its end. One that has grown long is put aside first."""
    path = address.log_path
    with contextlib.suppress(FileNotFoundError):
        if os.lstat(path).st_size > _LOG_MAX:
            os.replace(path, f"{path}.1")
    with _opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        yield fd


# -- across a fork ---------------------------------------------------------------------------------

_FORK_PATIENCE: Final = 1.0  # seconds that a fork of another thread waits for us at most

_open: Final[set[int]] = set()
# Held while a process is started: Popen waits until nobody has its own pipe open any more, which a
# child that is forked meanwhile would have for all its life.
_starting = threading.Lock()
_forking: Final = threading.local()


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    with _closing(os.open(path, flags | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)) as fd:
        yield fd


@contextlib.contextmanager
def _closing(fd: int) -> Iterator[int]:
    _open.add(fd)
    try:
        yield fd
    finally:
        _open.discard(fd)
        os.close(fd)


def _before_fork() -> None:
    _forking.waited = _starting.acquire(timeout=_FORK_PATIENCE)


def _after_fork_in_parent() -> None:
    if _forking.waited:
        _starting.release()


def _after_fork_in_child() -> None:
    """Close what a thread of the parent has open: a lock it may be killed with, a pipe's end."""
    global _starting
    _starting = threading.Lock()
    while _open:
        os.close(_open.pop())


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
