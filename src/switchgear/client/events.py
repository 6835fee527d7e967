"""State-change callbacks: called one by one, in the manager's order, by a thread of their own.

Neither a slow callback nor one that raises can hold up a call.
"""

from __future__ import annotations

import queue
import signal
import threading
from collections.abc import Callable, Iterable
from typing import Final

from ..processes import leave_signals
from ..states import State
from ..wire import Event
from .logs import log

Handler = Callable[[str, State, State], object]

_QUEUE: Final = 10_000  # events that may wait for callbacks that do not keep up


def check_handler(handler: object) -> None:
    """Refuse, with TypeError, what cannot be called."""
    if not callable(handler):
        raise TypeError(f"on_state_change takes a function, got {handler!r}")


class Handlers:
    """The callbacks of one client, by circuit. Thread-safe.

    Without a lock, which a fork or a signal handler could come into the middle of: each step here
    is one that nobody can.
    """

    def __init__(self) -> None:
        self._by_name: dict[str, dict[_Entry, None]] = {}

    def __bool__(self) -> bool:
        return any(list(self._by_name.values()))

    def add(self, name: str, handler: Handler) -> Callable[[], None]:
        """Add a callback; returns what removes it, once however often it is called."""
        entry, entries = _Entry(handler), self._by_name.setdefault(name, {})
        entries[entry] = None

        def remove() -> None:
            entries.pop(entry, None)

        return remove

    def of(self, name: str) -> tuple[Handler, ...]:
        """The callbacks of one circuit, oldest first."""
        return tuple(self._by_name.get(name, {}).copy())


class _Entry:
    """One registration: the same function may be registered twice."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    def __call__(self, name: str, old: State, new: State) -> object:
        return self._handler(name, old, new)


class Dispatcher:
    """The thread that calls the handlers of one process."""

    def __init__(self, handlers: Handlers) -> None:
        self._handlers = handlers
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._started = False
        self._at_it = threading.Lock()  # held by the thread that is
        self._dropping = False
        # Of who connects, not of who starts the thread: what a callback starts inherits it.
        self._blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])

    def put(self, events: Iterable[Event]) -> None:
        """Have the handlers called for these events. Does not block; one caller at a time."""
        for event in events:
            if event.old is event.new:
                continue
            if self._queue.qsize() >= _QUEUE:
                if not self._dropping:
                    log.warning("on_state_change callbacks do not keep up: events are dropped")
                self._dropping = True
                continue
            self._dropping = False
            self._queue.put(event)
            if not self._started:
                self._start()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="switchgear-events", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads; what waits is told with the next event
            log.warning("on_state_change callbacks have to wait: %s", error)
        else:
            self._started = True  # not before: then it may have failed

    def close(self) -> None:
        """Let the thread end after what it has."""
        self._queue.put(None)

    def _run(self) -> None:
        leave_signals()
        if not self._at_it.acquire(blocking=False):
            return  # a signal handler raised while the first one was started
        while (event := self._queue.get()) is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._blocked)
            for handler in self._handlers.of(event.name):
                _call(handler, event)
            leave_signals()


def _call(handler: Handler, event: Event) -> None:
    try:
        handler(event.name, event.old, event.new)
    except BaseException:  # not even SystemExit may end the thread of all callbacks
        log.exception("an on_state_change callback of circuit %r raised", event.name)
