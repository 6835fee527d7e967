"""Manager: a breaker manager that an application starts as a child and ends with its block."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from ..address import Address
from ..client.breaker import Breaker
from ..client.client import ACQUIRE_TIMEOUT, Client, ManagerLoss, Settings, share
from ..config import CircuitConfig
from ..errors import BreakerError, ConfigError
from ..launch import READY, TAKEN, command, environment, first_word
from ..states import State
from ..stats import CircuitStats

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
        options = ["--log-level", "WARNING", "--parent", str(os.getpid())]
        manager = command(Address.parse(self.address), *options)
        read, write = os.pipe()
        try:
            self._child = subprocess.Popen(
                [*manager, "--ready-fd", str(write)],
                pass_fds=(write,),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # the terminal's Ctrl-C is for the application
                env=environment(),
            )
            os.close(write)
            said = first_word(read, _START_TIMEOUT)
        finally:
            os.close(read)
        if said != READY:
            self.stop()
            said = said.removeprefix(TAKEN) or b"it ended, or said nothing in time"
            reason = said.decode(errors="replace")
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
