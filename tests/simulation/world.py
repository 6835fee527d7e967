"""Virtual time: what happens next, and the one source of chance.

Nothing here or in what runs here asks a clock or the operating system for anything, so a seed says
all that will happen.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections.abc import Callable
from typing import Final

START: Final = 1_000.0  # seconds on everybody's clock

MOST_AT_ONCE: Final = 20_000  # things that happen without any time passing

Action = Callable[..., object]


class Violation(AssertionError):
    """Something promised is not so."""


class Idle:
    """What an action returns that had nothing to do after all: it is not counted as an event."""


IDLE: Final = Idle()


class World:
    """A queue of what is to happen.

    Args:
        seed: Of everything that is random.
        tracing: Keep a line of text for each thing that happens.

    Attributes:
        now: Seconds.
        events: How many things have happened: messages that arrived, calls that began or ended,
            timers, deaths, cuts.
        jumped_at: When it last jumped.
        random: The source of chance; `chance` is a number from 0 to 1.
        trace: The lines.
    """

    def __init__(self, seed: int, *, tracing: bool = False) -> None:
        self.now = START
        self.events = 0
        self.jumped_at = 0.0
        self.random = random.Random(seed)
        self.chance = self.random.random
        self.tracing = tracing
        self.trace: list[str] = []
        self._digest = hashlib.blake2b(digest_size=8)
        self._queue: list[tuple[float, int, Action, tuple[object, ...]]] = []
        self._planned = 0

    def at(self, when: float, action: Action, *args: object) -> None:
        """Have something happen, after what is to happen at the same time already."""
        self._planned += 1
        heapq.heappush(self._queue, (when, self._planned, action, args))

    def after(self, delay: float, action: Action, *args: object) -> None:
        """The same, in so many seconds."""
        self._planned += 1
        heapq.heappush(self._queue, (self.now + delay, self._planned, action, args))

    def run(self, until: float) -> None:
        """Let everything happen that is due by then. What is overdue happens late, and in order."""
        queue = self._queue
        at_once = 0
        while queue and queue[0][0] <= until:
            when, _, action, args = heapq.heappop(queue)
            if when > self.now:
                self.now = when
                at_once = 0
            at_once += 1
            if at_once > MOST_AT_ONCE:
                raise Violation(f"time stands still: {action} comes again and again")
            if action(*args) is not IDLE:
                self.events += 1
        self.now = max(self.now, until)

    def jump(self, seconds: float) -> None:
        """Let time pass in which nothing happens to anybody, as when a machine is suspended."""
        self.now += seconds
        self.jumped_at = self.now

    def between(self, least: float, most: float) -> float:
        """Any number from one to the other."""
        return least + (most - least) * self.chance()

    def note(self, who: str, what: object) -> None:
        """Keep a line, if anybody wants to read it."""
        if self.tracing:
            self.trace.append(f"{self.now - START:10.6f}  {who:<12} {what}")

    def witness(self, frame: bytes) -> None:
        """Take a frame that arrived into the digest of this life."""
        self._digest.update(frame)

    @property
    def digest(self) -> str:
        """What two runs of one seed have in common: every byte that arrived, in order, and time."""
        digest = self._digest.copy()
        digest.update(f"{self.now!r} {self.events}".encode())
        return digest.hexdigest()
