"""Who has asked the manager for something, the answer to it, and what is owed for that.

A permit is owed a report. Between the manager's answer and the end of the call a signal handler may
raise anywhere, so the permit hangs on an object from before it is asked for: when nobody has that
object any more, the permit goes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from typing import TYPE_CHECKING

from ..states import Outcome
from .lease import Settled
from .session import Answer, Grant

if TYPE_CHECKING:
    from .link import Link


class Hold:
    """An answer, and what is owed for it: a permit among them is to be reported, once."""

    __slots__ = ("answer", "name", "reported")

    def __init__(self, name: str | None) -> None:
        self.answer: Answer = None
        self.name = name  # the circuit, when a permit was asked for
        self.reported = False

    @property
    def owed(self) -> bool:
        """It is a permit, and not reported."""
        return isinstance(self.answer, Grant) and not self.reported


class Watch(weakref.ref["Claim"]):
    """Hands over a hold when nobody has its claim any more.

    The interpreter itself puts it into the link's `dropped` then. A finalizer could not be relied
    on: a signal that is pending raises as soon as one is entered, before its first line.
    """

    __slots__ = ("hold",)

    hold: Hold


class Claim:
    """Somebody's request, and the answer to it."""

    __slots__ = ("__weakref__", "_link", "answered", "hold")

    def __init__(self, link: Link, name: str | None) -> None:
        self.answered = False
        self.hold = Hold(name)
        self._link = link
        if name is not None:
            watch = Watch(self, link.dropped.append)
            watch.hold = self.hold
            link.watches[self.hold] = watch

    @property
    def answer(self) -> Answer:
        """What came, once `answered`."""
        return self.hold.answer

    def report(
        self,
        outcome: Outcome,
        duration: float = 0.0,
        error: str | None = None,
        settled: Settled | None = None,
    ) -> None:
        """Say how the call ended that the permit was for; see `Session.report`.

        Does not wait. Only the first report counts. Does nothing in a forked child.
        """
        self._link.report(self, outcome, duration, error, settled)

    def __del__(self) -> None:
        hold = getattr(self, "hold", None)  # a signal handler may have raised before there was one
        if hold is not None and hold.owed:
            self._link.wake()  # or it goes back with the next turn


class ThreadWaiter(Claim):
    """A thread that blocks until it is answered."""

    __slots__ = ("_arrived",)

    def __init__(self, link: Link, name: str | None = None) -> None:
        super().__init__(link, name)
        self._arrived = threading.Lock()
        self._arrived.acquire()

    def complete(self, answer: Answer) -> None:
        if not self.answered:
            self.hold.answer = answer
            self.answered = True
            self._arrived.release()

    def wait(self, timeout: float) -> None:
        """Block until answered, at most `timeout` seconds."""
        self._arrived.acquire(timeout=max(0.0, timeout))


class TaskWaiter(Claim):
    """An asyncio task that awaits its answer."""

    __slots__ = ("_loop", "arrived")

    def __init__(self, link: Link, name: str) -> None:
        super().__init__(link, name)
        self._loop = asyncio.get_running_loop()
        self.arrived: asyncio.Future[None] = self._loop.create_future()

    def complete(self, answer: Answer) -> None:
        if not self.answered:
            self.hold.answer = answer
            self.answered = True
            with contextlib.suppress(RuntimeError):  # the loop is closed, and its tasks are gone
                self._loop.call_soon_threadsafe(self.wake)

    def wake(self) -> None:
        """Resume the task, answered or not. In the loop's own thread only."""
        if not self.arrived.done():
            self.arrived.set_result(None)
