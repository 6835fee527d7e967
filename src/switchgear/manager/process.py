"""Manager: a breaker manager that an application starts as a child and ends with its block."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ..client.breaker import Breaker
from ..client.client import ACQUIRE_TIMEOUT, Client, ManagerLoss, Settings, share
from ..config import CircuitConfig
from ..errors import BreakerError, ConfigError
from ..states import State
from ..stats import CircuitStats
from .run import READY

_START_TIMEOUT: Final = 15.0  # seconds until its sockets must answer
_STOP_TIMEOUT: Final = 5.0  # seconds it gets to end in good order


class Manager:
    """A breaker manager of the application's own, in a child process.

    `with Manager() as manager:` starts it and ends it. It also ends with the process that started
    it, however that one ends. Breakers of it can be used by the children of this process, forked or
    spawned, as long as the block lasts.

    Args:
        address: Where it listens; None means a directory of its own, which goes with it.
        manager_loss: See `connect`.
        acquire_timeout: See `connect`, seconds.

    Raises:
        ConfigError: A value is out of its range.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        manager_loss: ManagerLoss = "local",
        acquire_timeout: float = ACQUIRE_TIMEOUT,
    ) -> None:
        self._own_directory: str | None = None
        if address is None:
            self._own_directory = tempfile.mkdtemp(prefix="switchgear-")
            address = f"{self._own_directory}/m"
        settings = Settings.of(address, manager_loss, acquire_timeout)
        self._child: subprocess.Popen[bytes] | None = None
        self._starter = os.getpid()
        self.client = Client(settings)
        share(self.client)

    @property
    def address(self) -> str:
        """For `connect()` in other processes."""
        return self.client.address

    @property
    def pid(self) -> int | None:
        """The manager's process; None while it does not run."""
        return None if self._child is None else self._child.pid

    def start(self) -> Manager:
        """Start it and wait until it answers.

        Raises:
            BreakerError: It did not start; the message says why. ConfigError when that is the
                address.
        """
        if self._child is not None:
            raise BreakerError("this manager has been started before")
        read, write = os.pipe()
        command = [sys.executable, "-m", "switchgear.manager", "--log-level", "WARNING"]
        command += ["--address", self.address]
        command += ["--parent", str(os.getpid()), "--ready-fd", str(write)]
        try:
            self._child = subprocess.Popen(
                command,
                pass_fds=(write,),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's Ctrl-C is for the application
                env=_environment(),
            )
            os.close(write)
            said = _read_all(read, _START_TIMEOUT)
        finally:
            os.close(read)
        if said != READY:
            self.stop()
            reason = said.decode(errors="replace") or "it ended, or said nothing in time"
            raise ConfigError(f"the manager did not start: {reason}")
        return self

    def stop(self) -> None:
        """End it in good order, and by force if it does not. Does nothing in a forked child."""
        if os.getpid() != self._starter:
            return
        self.client.close()
        child = self._child
        if child is not None:
            child.terminate()
            try:
                child.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if self._own_directory is not None:
            shutil.rmtree(self._own_directory, ignore_errors=True)

    def breaker(
        self,
        name: str,
        config: CircuitConfig | None = None,
        *,
        on_state_change: Callable[[str, State, State], object] | None = None,
        **fields: Any,
    ) -> Breaker:
        """See `Client.breaker`."""
        return self.client.breaker(name, config, on_state_change=on_state_change, **fields)

    def breakers(self) -> dict[str, CircuitStats]:
        """See `Client.breakers`."""
        return self.client.breakers()

    def __enter__(self) -> Manager:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


def _environment() -> dict[str, str]:
    """Ours, with a path on which the child finds this very package, wherever we found it."""
    package = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH")
    path = package if not inherited else f"{package}{os.pathsep}{inherited}"
    return {**os.environ, "PYTHONPATH": path}


def _read_all(fd: int, timeout: float) -> bytes:
    """What comes until it is READY, the other end is closed, or `timeout` seconds have passed."""
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
