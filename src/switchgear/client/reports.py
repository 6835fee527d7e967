"""The outcomes that a session owes the manager: in order, numbered, kept until acknowledged.

A report's number is its place in the queue, so what was sent is never changed and never changes
places. Outcomes under a lease go many to a report. As long as such a report was not sent, because
nobody takes reports in, it takes up what comes after it: so what waits grows with the circuits and
not with the calls. No socket, no clock.

A signal handler may raise out of any call in here; see the session.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from ..circuit import Totals
from ..config import MAX_COUNT
from ..states import Outcome, Verdict
from ..stats import LATENCY_WINDOW
from ..wire import Batch, Missed, Report, to_micros
from .lease import Lease, Settled

WINDOW: Final = 4096  # reports that may be sent and not acknowledged


class Owed(Protocol):
    """What is reported once, however often that is tried."""

    reported: bool


class One:
    """The outcome of one call, for a Report.

    Attributes:
        name: The circuit.
        owed: What is reported by it.
        failed: The outcome is a failure; see `Gate.suspend`.
        reported: It is in the queue.
        sent_at: When, seconds on our clock.
    """

    __slots__ = ("_fields", "_settled", "failed", "name", "owed", "reported", "sent_at")

    def __init__(
        self,
        name: str,
        grant: tuple[int, int | None, int],
        outcome: Outcome,
        duration: float,
        error: str | None,
        settled: Settled | None,
        owed: Owed | None = None,
    ) -> None:
        epoch, permit, generation = grant
        self._fields = (name, epoch, permit, generation, outcome, to_micros(duration), error)
        self._settled = settled
        self.name = name
        self.owed: Owed = self if owed is None else owed
        self.failed = outcome is Outcome.FAILURE
        self.reported = False
        self.sent_at = 0.0

    def build(self, number: int) -> Report:
        """The message."""
        return Report(number, *self._fields)

    def settle(self, verdict: Verdict) -> None:
        """Tell who wants to know."""
        if self._settled is not None:
            self._settled(verdict)


class Whole:
    """What a client has counted by itself, for a Missed.

    Attributes:
        name: The circuit.
        owed: What is reported by it: itself.
        reported: It is in the queue, or was taken up by one that is.
        sent_at: When, seconds on our clock.
    """

    __slots__ = ("_fields", "name", "owed", "reported", "sent_at")

    def __init__(self, name: str, totals: Totals) -> None:
        successes, failures, neutral, rejected, durations, last_error = totals
        counts = (successes, failures, neutral, rejected)
        self._fields = (name, *counts, _micros(durations), last_error)
        self.name = name
        self.owed: Owed = self
        self.reported = False
        self.sent_at = 0.0

    def take(self, later: Whole) -> None:
        """Take up what was counted after it."""
        name, successes, failures, neutral, rejected, durations, last_error = self._fields
        _, succeeded, failed, other, refused, lasted, error = later._fields
        counts = successes + succeeded, failures + failed, neutral + other, rejected + refused
        durations = (*durations, *lasted)[-LATENCY_WINDOW:]
        # No call here, see Many.take.
        self._fields = (name, *counts, durations, last_error if error is None else error)
        later.reported = True

    @property
    def full(self) -> bool:
        """It takes no more, as `Many.full`."""
        return max(self._fields[1:5]) > MAX_COUNT // 2

    def build(self, number: int) -> Missed:
        """The message."""
        return Missed(number, *self._fields)

    def settle(self, verdict: Verdict) -> None:
        """Nobody wants to know."""


class Many:
    """The outcomes of many calls under one lease, for a Batch.

    Attributes:
        source: The lease.
        sent_at: When, seconds on our clock.
    """

    __slots__ = ("_durations", "_more", "_rejected", "_told", "sent_at", "source")

    def __init__(self, source: Lease) -> None:
        self.source = source
        self.sent_at = 0.0
        self._durations: list[float] = []  # of the last successes
        self._more = 0  # successes before these
        self._told: list[tuple[Outcome, float, Settled | None]] = []
        self._rejected = 0

    def take(self) -> None:
        """Move in what is in the lease."""
        successes, told, rejected = self.source.successes, self.source.told, self.source.rejected
        ended, answered, refused = len(successes), len(told), len(rejected)
        earlier = max(0, ended - LATENCY_WINDOW)
        # A signal handler that raises comes at calls. Between what is put here and what is taken
        # there is none, so nothing is lost and nothing counted twice; nor does another thread come
        # between, but all that one can do is append.
        self._more += earlier
        self._durations += successes[earlier:ended]
        del successes[:ended]
        self._told += told[:answered]
        del told[:answered]
        self._rejected += refused
        del rejected[:refused]
        surplus = max(0, len(self._durations) - LATENCY_WINDOW)
        self._more += surplus
        del self._durations[:surplus]

    @property
    def full(self) -> bool:
        """It takes no more: a Batch says no higher number than MAX_COUNT."""
        return max(self._more, self._rejected) > MAX_COUNT // 2

    def build(self, number: int) -> Batch:
        """The message."""
        told = [duration for outcome, duration, _ in self._told if outcome is Outcome.SUCCESS]
        durations = (*self._durations, *told)[-LATENCY_WINDOW:]
        return Batch(
            number,
            self.source.name,
            self.source.epoch,
            self.source.generation,
            self._more + len(self._durations) + len(told),
            len(self._told) - len(told),
            self._rejected,
            _micros(durations),
        )

    def settle(self, verdict: Verdict) -> None:
        """Tell who wants to know."""
        for _, _, settled in self._told:
            if settled is not None:
                settled(verdict)


def _micros(durations: Sequence[float]) -> tuple[int, ...]:
    # As to_micros(), and without a call for each of up to a hundred.
    return tuple([int(seconds * 1e6 + 0.5) if seconds > 0 else 0 for seconds in durations])


class Reports:
    """The queue.

    Attributes:
        acknowledged: The number of the report before the first in the queue.
        sent: The number of the last one sent on this connection.
        settled: How many have left the queue, ever.
    """

    def __init__(self) -> None:
        self.acknowledged = 0
        self.sent = 0
        self.settled = 0
        self._queue: deque[One | Many | Whole] = deque()
        self._growing: dict[Lease, Many] = {}  # those that were never sent
        self._whole: dict[str, Whole] = {}  # and of those the last of each circuit

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def handed_over(self) -> int:
        """How many there were, ever."""
        return self.settled + len(self._queue)

    def failing(self, name: str) -> bool:
        """A failure on a circuit is in the queue. Linear in the queue."""
        return any(isinstance(one, One) and one.failed and one.name == name for one in self._queue)

    def add(self, report: One | Whole) -> None:
        """Put one at the end, unless it is owed no more."""
        owed = report.owed
        if owed.reported:
            return
        if isinstance(report, Whole):
            before = self._whole.get(report.name)
            if before is not None and not before.full:
                before.take(report)  # it moves no circuit, so it may count before others
                return
        for lease in [lease for lease in self._growing if lease.name == report.name]:
            del self._growing[lease]  # what ends later must not be counted before this
        self._queue += (report,)  # not append(), which is a call: see Many.take
        owed.reported = True
        if isinstance(report, Whole):
            self._whole[report.name] = report

    def collect(self, lease: Lease) -> None:
        """Take the outcomes that callers have left in a lease."""
        if lease.empty:
            return
        batch = self._growing.get(lease)
        if batch is None or batch.full:
            batch = Many(lease)
            self._queue.append(batch)
            self._growing[lease] = batch
        batch.take()

    def next_to_send(self, now: float) -> Report | Batch | Missed | None:
        """The first one that was not sent, if the manager may have another one; and then it was."""
        place = self.sent - self.acknowledged
        if place >= min(len(self._queue), WINDOW):
            return None
        report = self._queue[place]
        if isinstance(report, Many):
            self._growing.pop(report.source, None)
        elif isinstance(report, Whole):
            self._whole.pop(report.name, None)
        report.sent_at = now
        self.sent += 1
        return report.build(self.sent)

    def delayed(self, name: str) -> bool:
        """A failure on a circuit waits for room in the window. Linear in what does."""
        place = self.sent - self.acknowledged
        if place == len(self._queue):
            return False  # as mostly
        unsent = itertools.islice(self._queue, place, None)
        return any(isinstance(one, One) and one.failed and one.name == name for one in unsent)

    def sent_at(self, number: int) -> float | None:
        """When a report was sent that is still in the queue."""
        place = number - self.acknowledged - 1
        return self._queue[place].sent_at if 0 <= place < len(self._queue) else None

    @property
    def first_sent_at(self) -> float | None:
        """When the first one was sent that is not acknowledged; None: there is none such."""
        return self._queue[0].sent_at if self.sent > self.acknowledged else None

    def acknowledge(self) -> One | Many | Whole:
        """Take the first one off the queue: it was taken in."""
        report = self._queue[0]
        # No call here, see Many.take.
        self.acknowledged += 1
        self.settled += 1
        del self._queue[0]
        if self.sent < self.acknowledged:
            self.sent = self.acknowledged
        return report

    def discard(self) -> One | Many | Whole:
        """Take the first one off the queue: it never will be taken in, and its number is free.

        Those behind it were refused too, so they are sent again, each under the number before.
        """
        report = self._queue[0]
        self.settled += 1
        del self._queue[0]
        self.sent = self.acknowledged
        return report

    def restart(self, taken_in: int) -> None:
        """Count from the number that a manager has taken in, and send the rest again."""
        self.acknowledged = self.sent = taken_in

    def clear(self) -> None:
        """Nobody will ever take them in."""
        self._growing.clear()
        self._whole.clear()
        self._queue.clear()
        self.sent = self.acknowledged

    def check(self) -> None:
        """Assert what is true between any two calls. For tests."""
        assert self.acknowledged <= self.sent <= self.acknowledged + len(self._queue)
        assert self.sent <= self.acknowledged + WINDOW
        unsent = list(self._queue)[self.sent - self.acknowledged :]
        assert all(batch in unsent for batch in self._growing.values())
        assert all(whole in unsent for whole in self._whole.values())
