"""The answers to reports, held back until what they answer for would survive the manager.

A report is taken in at once and acknowledged later: together with others, which is cheaper, and
not before its effects are saved, because a client forgets what was acknowledged. No socket, no
clock.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

from ..wire import Message, Reported

ACK_DELAY: Final = 0.1  # seconds an answer may wait; well below the term of a lease
ACKS_TOGETHER: Final = 256  # reports that may wait for one peer; with another one they are urgent

Holder = TypeVar("Holder", bound=Hashable)


class _Waiting:
    """What one peer is to be told."""

    __slots__ = ("due", "messages", "reports", "speaks_for_batches")

    def __init__(self, due: float) -> None:
        self.due = due
        self.messages: list[Message] = []
        self.reports = 0  # that are answered by these
        self.speaks_for_batches = False  # the last one answers a Batch

    def add(self, message: Reported, *, batch: bool) -> None:
        """Answer one more report; batches in a row that came to the same are answered as one."""
        last = self.messages[-1] if batch and self.speaks_for_batches else None
        if type(last) is Reported and last.verdict is message.verdict:
            self.messages[-1] = message
        else:
            self.messages.append(message)
        self.reports += 1
        self.speaks_for_batches = batch


class Acks(Generic[Holder]):
    """What is held back, by connection."""

    def __init__(self) -> None:
        self._waiting: dict[Holder, _Waiting] = {}  # oldest first
        self._urgent: dict[Holder, None] = {}  # somebody waits for these

    @property
    def due(self) -> float | None:
        """When some are to be sent, if that is saved which they answer for; 0: as soon as it is."""
        if self._urgent:
            return 0.0
        return next(iter(self._waiting.values())).due if self._waiting else None

    def add(
        self, peer: Holder, answer: Reported, now: float, *, batch: bool = False, urgent: bool
    ) -> None:
        """Hold one back.

        Args:
            peer: For whom.
            answer: It.
            now: Seconds.
            batch: It answers a Batch, and a later one may speak for it.
            urgent: It is waited for.
        """
        waiting = self._of(peer, now)
        waiting.add(answer, batch=batch)
        if urgent or waiting.reports >= ACKS_TOGETHER:
            self._urgent[peer] = None

    def add_last(self, peer: Holder, answer: Message, now: float) -> None:
        """Put this after the others, and have them sent; somebody waits for it."""
        self._of(peer, now).messages.append(answer)
        self._urgent[peer] = None

    def __contains__(self, peer: Holder) -> bool:
        return peer in self._waiting

    def _of(self, peer: Holder, now: float) -> _Waiting:
        waiting = self._waiting.get(peer)
        if waiting is None:
            waiting = self._waiting[peer] = _Waiting(now + ACK_DELAY)
        return waiting

    def take_due(self, now: float) -> list[tuple[Holder, Message]]:
        """Hand over those that are waited for and those whose time has come."""
        peers = list(self._urgent)
        for peer, waiting in self._waiting.items():
            if waiting.due > now:
                break
            if peer not in self._urgent:
                peers.append(peer)
        return [(peer, message) for peer in peers for message in self._take(peer)]

    def take_all(self) -> list[tuple[Holder, Message]]:
        """Hand over all."""
        return [(peer, message) for peer in list(self._waiting) for message in self._take(peer)]

    def _take(self, peer: Holder) -> list[Message]:
        self._urgent.pop(peer, None)
        return self._waiting.pop(peer).messages

    def drop(self, peer: Holder) -> None:
        """Forget what was held back for one that hears nothing more: it will send again."""
        self._waiting.pop(peer, None)
        self._urgent.pop(peer, None)

    def check(self) -> None:
        """Assert what is true between any two calls. For tests."""
        assert set(self._urgent) <= set(self._waiting)
        times = [waiting.due for waiting in self._waiting.values()]
        assert times == sorted(times)
        assert all(waiting.messages for waiting in self._waiting.values())
