"""The words every module shares: a circuit's states, how a call ends, what becomes of a report."""

from __future__ import annotations

from enum import Enum, IntEnum


class State(Enum):
    """The state of a circuit. `str()` gives the word people read: closed, open, half-open."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"

    def __str__(self) -> str:
        return self.value


class Outcome(IntEnum):
    """How a call ended. The numbers are the wire's and must not move."""

    SUCCESS = 0
    FAILURE = 1
    NEUTRAL = 2  # it says nothing about the service: cancelled, interrupted, released


class Verdict(IntEnum):
    """What became of a report. The numbers are the wire's and must not move."""

    COUNTED = 0  # in the totals, and it may have moved the circuit
    STALE = 1  # in the totals only: the permit was of an earlier generation
    EXPIRED = 2  # in the totals only: the permit had been held past permit_timeout
