"""Who sees to it that there is a manager: looks for one, starts one, and tries again after a pause.

On a thread of its own, which ends when the connection is up: to start a process takes longer than
any call may wait, and the I/O thread has others to serve.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final, Protocol

from .. import launch
from ..address import Address
from ..processes import leave_signals
from .logs import log

_FIRST_PAUSE: Final = 0.1  # seconds; then twice as long each time, up to
_LONGEST_PAUSE: Final = 30.0
_TRIES: Final = 6  # after which one that is there should have answered: three seconds


class Connection(Protocol):
    """What a starter works for."""

    @property
    def online(self) -> bool:
        """It is up."""


class Starter:
    """Starts a manager for one connection. Thread-safe; not for use after a fork.

    Nothing here takes a lock that a caller could be interrupted with: a signal handler may come in
    the middle, and make calls of its own.

    Args:
        address: Where the manager is to be.
        connection: What is to come up.
        start: See `launch.start`.
        first_pause: Seconds until the second try.
    """

    def __init__(
        self,
        address: Address,
        connection: Connection,
        start: Callable[[Address], bool] = launch.start,
        first_pause: float = _FIRST_PAUSE,
    ) -> None:
        self._address = address
        self._connection = connection
        self._start = start
        self._first_pause = first_pause
        self._at_it = threading.Lock()  # held by the thread that is
        self._news = threading.Event()  # there is something better to do than to wait
        self._complained = False
        self._closed = False

    @property
    def failing(self) -> bool:
        """It has tried in vain, said so, and tries on."""
        return self._complained

    def wake(self) -> None:
        """The connection is needed, and not up. Does not wait."""
        if self._at_it.locked() or self._closed:
            return
        thread = threading.Thread(target=self._run, name="switchgear-starter", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter is about to end
            self._complain(error)

    def lost(self) -> None:
        """The connection was up, and is no longer. Does not wait."""
        self._news.set()
        self.wake()

    def close(self) -> None:
        """Start no more managers."""
        self._closed = True
        self._news.set()

    def _run(self) -> None:
        leave_signals()
        # Who wakes us while we hold the lock relies on us; so look again once it is released.
        while not self._done() and self._at_it.acquire(blocking=False):
            try:
                self._insist()
            finally:
                self._at_it.release()

    def _done(self) -> bool:
        return self._connection.online or self._closed

    def _insist(self) -> None:
        pause, tries = self._first_pause, 0
        while not self._done():
            tries += 1
            try:
                self._start(self._address)
            except Exception as error:
                self._complain(error)
            else:
                if tries > _TRIES:
                    self._complain("there is one, stopped or overloaded")
            if self._done():
                break
            if self._news.wait(pause):
                self._news.clear()
                pause, tries = self._first_pause, 0
            else:
                pause = min(2 * pause, _LONGEST_PAUSE)
        self._complained = False

    def _complain(self, reason: object) -> None:
        if not self._complained and not self._closed:  # one line, and not one for every try
            self._complained = True
            log.warning("no manager answers at %s: %s", self._address, reason)
