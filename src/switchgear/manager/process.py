"""Manager: a breaker manager that an application starts as a child and ends with its block."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from ..address import Address
from ..client.breaker import Breaker
from ..client.client import ACQUIRE_TIMEOUT, Client, ManagerLoss, Settings, share
from ..client.logs import log
from ..config import CircuitConfig
from ..errors import BreakerError, ConfigError
from ..launch import READY, TAKEN, command, environment, first_word, spawn
from ..processes import leave_signals
from ..states import State
from ..stats import CircuitStats

_START_TIMEOUT: Final = 15.0  # seconds until its sockets must answer
_STOP_TIMEOUT: Final = 5.0  # seconds it gets to end in good order
_FIRST_PAUSE: Final = 0.01  # seconds until one that was killed is replaced; then twice as long
_LONGEST_PAUSE: Final = 30.0  # each time, up to this


class Manager:
    """A breaker manager of the application's own, in a child process.

    `with Manager() as manager:` starts it and ends it, and replaces one that was killed. It also
    ends with the process that started it, however that one ends. Breakers of it can be used by the
    children of this process, forked or spawned, as long as the block lasts.

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
        self._child: subprocess.Popen[bytes] | None = None  # the last one
        self._launching = threading.Lock()
        self._stopping = threading.Event()
        self._starter = os.getpid()
        self.client = Client(settings)
        share(self.client)

    @property
    def address(self) -> str:
        """For `connect()` in other processes."""
        return self.client.address

    @property
    def pid(self) -> int | None:
        """The manager's process, or the last one there was; None before the first."""
        return None if self._child is None else self._child.pid

    def start(self) -> Manager:
        """Start it and wait until it answers; when it is killed, another one is started.

        Raises:
            BreakerError: It did not start; the message says why. ConfigError when that is the
                address.
        """
        if self._child is not None:
            raise BreakerError("this manager has been started before")
        try:
            self._launch()
        except BaseException:
            self.stop()
            raise
        threading.Thread(target=self._keep, name="switchgear-keeper", daemon=True).start()
        return self

    def stop(self) -> None:
        """End it in good order, and by force if it does not. Does nothing in a forked child."""
        if os.getpid() != self._starter:
            return
        self.client.close()
        self._stopping.set()
        with self._launching:
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

    def _launch(self) -> None:
        """Start a child and wait until it answers."""
        options = ["--log-level", "WARNING", "--parent", str(os.getpid())]
        manager = command(Address.parse(self.address), *options)
        read, write = os.pipe()
        try:
            # In a session of its own: the terminal's Ctrl-C is for the application. And not in its
            # directory, where -m would look for modules first, and may find a random.py.
            try:
                self._child = spawn(
                    [*manager, "--ready-fd", str(write)],
                    write,
                    cwd="/",
                    env={**environment(), "PYTHONSAFEPATH": "1"},
                )
            finally:
                os.close(write)
            said = first_word(read, _START_TIMEOUT)
        finally:
            os.close(read)
        if said != READY:
            self._child.kill()  # or it would be in the way of the next one
            self._child.wait()
            said = said.removeprefix(TAKEN) or b"it ended, or said nothing in time"
            reason = said.decode(errors="replace")
            raise ConfigError(f"the manager did not start: {reason}")

    def _keep(self) -> None:
        """Replace it whenever it was killed. One that ends in good order was told to."""
        leave_signals()
        pause, complained = _FIRST_PAUSE, False
        while (child := self._child) is not None and child.wait() and not self._stopping.is_set():
            log.warning("manager %d was killed; another one takes its place", child.pid)
            while not self._stopping.wait(pause):
                pause = min(2 * pause, _LONGEST_PAUSE)
                try:
                    with self._launching:
                        if not self._stopping.is_set():
                            self._launch()
                    pause, complained = _FIRST_PAUSE, False
                    break
                except (BreakerError, OSError) as error:
                    if not complained:  # one line, and not one for every try
                        complained = True
                        log.warning("no manager serves %s: %s", self.address, error)

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
