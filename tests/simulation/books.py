"""What one process has come to on one circuit, and what of it managers have taken in.

Outcomes are reported in the order in which they came: at each failure, managers must know exactly
the successes that ended before it in its place, and no others.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

from switchgear.states import Outcome
from switchgear.wire import Batch, Missed, Report

from .world import Violation


class Place(NamedTuple):
    """One generation of a circuit. Managers of one line count on, those of another begin anew."""

    line: int
    name: str
    generation: int


class Failure(NamedTuple):
    """One that is reported by itself.

    Attributes:
        place: Where the call ran.
        leased: It had asked nobody.
        successes: That had ended there before.
    """

    place: Place
    leased: bool
    successes: int


class Books:
    """See the module.

    Attributes:
        ended: Successes, failures, neutral outcomes and rejections, the last without those that a
            manager has decided.
        taken: What managers have taken in of that.
        failed: Failures that are reported one by one.
        counted: The last of those that was taken in.
        counted_at: Where that left the circuit.
        in_vain: Callers that stopped waiting: what came for them goes back as neutral.
    """

    __slots__ = (
        *("counted", "counted_at", "ended", "failed", "in_vain", "taken"),
        *("_failures", "_successes", "_told", "_written"),
    )

    def __init__(self) -> None:
        self.ended = [0, 0, 0, 0]
        self.taken = [0, 0, 0, 0]
        self.failed = self.counted = self.in_vain = 0
        self.counted_at: Place | None = None
        self._failures: dict[int, Failure] = {}
        self._successes: Counter[Place] = Counter()  # that ended there, of those that are told one
        self._told: Counter[Place] = Counter()  # and of those, that were taken in
        self._written = ([0, 0, 0, 0], 0, self._told.copy())  # as far as they would survive

    def end(self, outcome: Outcome, place: Place | None, *, leased: bool) -> int | None:
        """A call ends; a failure has a number, if it will be reported by itself.

        Args:
            outcome: How.
            place: Where it ran; None: no manager had let it through.
            leased: It had asked nobody.
        """
        self.ended[outcome] += 1
        if place is None:
            return None
        if outcome is Outcome.SUCCESS:
            self._successes[place] += 1
        if outcome is not Outcome.FAILURE:
            return None
        self.failed += 1
        self._failures[self.failed] = Failure(place, leased, self._successes[place])
        return self.failed

    def take(self, message: Report | Batch | Missed, line: int, *, exact: bool) -> bool:
        """A manager has taken that in; was it one of the numbered failures?

        Args:
            message: What it was told.
            line: Of the manager that had let the calls through.
            exact: Nothing that was taken in is forgotten.
        """
        if isinstance(message, Missed):
            counts = message.successes, message.failures, message.neutral, message.rejected
        elif isinstance(message, Batch):
            counts = message.successes, 0, message.neutral, message.rejected
        else:
            return self._take_one(message, Place(line, message.name, message.generation), exact)
        self.taken = [a + b for a, b in zip(self.taken, counts, strict=True)]
        if isinstance(message, Batch):
            self._told[Place(line, message.name, message.generation)] += message.successes
        return False

    def _take_one(self, message: Report, place: Place, exact: bool) -> bool:
        self.taken[message.outcome] += 1
        if message.outcome is Outcome.SUCCESS:
            self._told[place] += 1
        if message.outcome is not Outcome.FAILURE:
            return False
        assert message.error is not None
        number = int(message.error.rpartition(" ")[2])
        if exact and number != self.counted + 1:
            raise Violation(f"G10: failure {number} came after {self.counted}: {message}")
        self.counted = number
        failure, told = self._failures[number], self._told[place]
        if place != failure.place or (failure.leased and message.permit is not None):
            raise Violation(f"G6: {message} says {place}, and it was {failure}")
        if exact and told != failure.successes:
            raise Violation(f"G7: {message} came after {told} successes, and it was {failure}")
        return True

    # -- lives of managers -------------------------------------------------------------------------

    def write(self) -> None:
        """What was taken in is in the journal."""
        self._written = list(self.taken), self.counted, self._told.copy()

    def restore(self) -> None:
        """A manager begins, that knows what was written."""
        taken, self.counted, told = self._written
        self.taken, self._told = list(taken), told.copy()

    @property
    def balanced(self) -> bool:
        """All that ended was taken in, once."""
        neutral, most = self.ended[Outcome.NEUTRAL], self.in_vain
        exactly = self.taken[:2] == self.ended[:2] and self.taken[3] == self.ended[3]
        return exactly and neutral <= self.taken[Outcome.NEUTRAL] <= neutral + most
