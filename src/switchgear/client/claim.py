"""Who has asked the manager for something, the answer to it, and what is owed for that.

A permit is owed a report. Between the manager's answer and the end of the call a signal handler may
raise anywhere, so the permit hangs on an object from before it is asked for: when nobody has that
object any more, the permit goes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING

from ..states import Outcome
from .lease import Settled
from .session import Answer, Grant

if TYPE_CHECKING:
    from .link import Link


class Hold:
    """An answer, and what is owed for it: a permit among them is to be reported, once.

    When nobody has it any more, because a signal handler raised somewhere on the way between the
    manager's answer and the end of the call, the permit goes back by itself.
    """

    __slots__ = ("_link", "answer", "name", "reported")

    def __init__(self, link: Link, name: str | None) -> None:
        self.answer: Answer = None
        self.name = name  # the circuit, when a permit was asked for
        self.reported = False
        self._link = link

    def report(
        self,
        outcome: Outcome,
        duration: float = 0.0,
        error: str | None = None,
        settled: Settled | None = None,
    ) -> None:
        """See `Claim.report`."""
        self._link.report(self, outcome, duration, error, settled)

    def __del__(self) -> None:
        try:
            if not getattr(self, "reported", True) and isinstance(self.answer, Grant):
                self.report(Outcome.NEUTRAL)
        except BaseException:  # a signal handler raised in here, and nobody comes after us
            self.report(Outcome.NEUTRAL)
            raise


class Claim:
    """Somebody's request, and the answer to it."""

    __slots__ = ("answered", "hold")

    def __init__(self, link: Link, name: str | None) -> None:
        self.answered = False
        self.hold = Hold(link, name)

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
        self.hold.report(outcome, duration, error, settled)

    def __del__(self) -> None:
        # A signal that is pending raises as soon as a finalizer is entered, before its first line.
        # Let it be this one: ours is always entered before that of the hold.
        pass


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
