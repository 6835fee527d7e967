"""Calls that may be stopped before they are over: by a deadline, by a token.

Sync code cannot be stopped, so it runs on a thread of its own and is left behind; a task is
cancelled, as `asyncio.timeout` does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

R = TypeVar("R")

_POLL: Final = 0.01  # seconds between two looks at a token that cannot call back


class Cancellable(Protocol):
    """What `options(cancel=)` takes: a CancelToken, or any Event."""

    def is_set(self) -> bool:
        """It has fired."""


class CancelToken:
    """Cancels the calls that were given it, from any thread. Once fired it stays so."""

    # No lock: a signal handler that fires it would wait for the call that it interrupts. Each step
    # on the listeners is one that nobody can come into the middle of.

    def __init__(self) -> None:
        self._fired = False
        self._listeners: dict[object, Callable[[], None]] = {}

    def cancel(self) -> None:
        """Fire: calls that run are cancelled, calls that begin are not run."""
        self._fired = True  # first: who listens from now on looks at it
        for key, listener in self._listeners.copy().items():
            listener()
            self._forget(key)  # last: if a signal handler raises, the next cancel() tells the rest

    def is_set(self) -> bool:
        """It has fired."""
        return self._fired

    def listen(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have a function called when the token fires, or now if it has; returns how to undo it.

        It may be called more than once.
        """
        key = object()
        self._listeners[key] = listener
        if self._fired:
            self._forget(key)
            listener()
        return lambda: self._forget(key)

    def _forget(self, key: object) -> None:
        self._listeners.pop(key, None)


class _Bell:
    """Wakes the one thread that waits for it, like an Event.

    That has a lock, which who rings from a signal handler may find taken by what it interrupts.
    """

    def __init__(self) -> None:
        self._silent = threading.Lock()
        self._silent.acquire()

    def ring(self) -> None:
        """Have the wait end, or the next one if there is none."""
        with contextlib.suppress(RuntimeError):  # it rings already
            self._silent.release()

    def wait(self, timeout: float | None) -> None:
        """Wait until it rings, at most so many seconds."""
        self._silent.acquire(timeout=-1 if timeout is None else timeout)


class TimedOut(Exception):
    """The deadline came first. Never leaves the package."""


class Cancelled(Exception):
    """The token came first. Never leaves the package."""


class NotStarted(Exception):
    """There was no thread to call the function on. Never leaves the package.

    Attributes:
        error: What was raised for that.
    """

    def __init__(self, error: RuntimeError) -> None:
        super().__init__(error)
        self.error = error


def call_on_thread(
    function: Callable[[], R], timeout: float | None, token: Cancellable | None
) -> R:
    """Run a function on a thread of its own, with the caller's context variables, and wait.

    When the deadline or the token comes first, the thread is left behind; what it returns or raises
    later is dropped.

    Raises:
        TimedOut: After `timeout` seconds.
        Cancelled: The token fired.
        NotStarted: The function was not called.
        BaseException: What the function raised, itself.
    """
    bell = _Bell()
    results: list[R] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)
        finally:
            bell.ring()

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(work,), name="switchgear-call", daemon=True)
    deadline = None if timeout is None else time.monotonic() + timeout
    forget = token.listen(bell.ring) if isinstance(token, CancelToken) else None
    try:
        try:
            thread.start()
        except RuntimeError as error:
            raise NotStarted(error) from None
        while not (results or errors):
            if token is not None and token.is_set():
                raise Cancelled
            remaining = None if deadline is None else deadline - time.monotonic()
            if remaining is not None and remaining <= 0:
                raise TimedOut
            polled = _POLL if token is not None and forget is None else None
            bell.wait(min((w for w in (remaining, polled) if w is not None), default=None))
    finally:
        if forget is not None:
            forget()
    if errors:
        raise errors.pop()
    return results.pop()


class TaskLimit:
    """Cancels the current task at a deadline or when a token fires, and says which it was.

    As `asyncio.timeout`, which Python 3.10 has not: the cancellation is ours only if nobody else
    cancelled the task too.

    Attributes:
        reason: What was reached first, the deadline or the token; None while neither was.
    """

    def __init__(self, timeout: float | None, token: Cancellable | None) -> None:
        self._token = token
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("options(timeout=, cancel=) need a running asyncio task")
        self._task = task
        self.reason: type[TimedOut] | type[Cancelled] | None = None
        self._ended = False
        self._cancelling = _cancelling(task)
        self._timers: list[asyncio.Handle] = []
        self._forget: Callable[[], None] = lambda: None
        if timeout is not None:
            self._timers.append(self._loop.call_later(timeout, self._fire, TimedOut))
        if isinstance(token, CancelToken):
            self._forget = token.listen(self._fire_from_anywhere)
        elif token is not None:
            # Not now: a task that cancels itself hears of it when it waits, perhaps after the call.
            self._timers.append(self._loop.call_soon(self._look))

    def end(self, error: BaseException | None) -> type[TimedOut] | type[Cancelled] | None:
        """Stop watching. What the error was, if it is the cancellation that this limit caused."""
        self._ended = True
        self._forget()
        for timer in self._timers:
            timer.cancel()
        if self.reason is None:
            return None
        ours = _uncancel(self._task) <= self._cancelling
        return self.reason if ours and isinstance(error, asyncio.CancelledError) else None

    def _fire(self, reason: type[TimedOut] | type[Cancelled]) -> None:
        # A token may have queued this before the end, and what is queued so cannot be withdrawn.
        if self.reason is None and not self._ended:
            self.reason = reason
            self._task.cancel()

    def _fire_from_anywhere(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the task is gone
            self._loop.call_soon_threadsafe(self._fire, Cancelled)

    def _look(self) -> None:
        assert self._token is not None
        if self._token.is_set():
            self._fire(Cancelled)
        else:
            self._timers[1:] = [self._loop.call_later(_POLL, self._look)]


if sys.version_info >= (3, 11):

    def _cancelling(task: asyncio.Task[object]) -> int:
        return task.cancelling()

    def _uncancel(task: asyncio.Task[object]) -> int:
        return task.uncancel()

else:

    def _cancelling(task: asyncio.Task[object]) -> int:
        return 0

    def _uncancel(task: asyncio.Task[object]) -> int:
        return 0
