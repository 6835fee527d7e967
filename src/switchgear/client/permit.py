"""Permit: the right to run one call, and its three endings."""

from __future__ import annotations

import os
import time
import warnings
from types import TracebackType
from typing import TYPE_CHECKING

from ..errors import BreakerError
from ..states import Outcome, Verdict
from ..wire import MAX_ERROR_CHARACTERS
from .lease import Lease, Settled
from .session import Grant

if TYPE_CHECKING:
    from .claim import Claim
    from .standby import StandbyPermit


def outcome_of(error: BaseException | None) -> Outcome:
    """What it says about the service that a call ended this way.

    Exceptions that stop the caller (cancelled, interrupted, told to exit) say nothing about it.
    """
    if error is None:
        return Outcome.SUCCESS
    return Outcome.FAILURE if isinstance(error, Exception) else Outcome.NEUTRAL


def end(
    owed: Claim | Lease | StandbyPermit,
    error: BaseException | None,
    duration: float,
    settled: Settled | None = None,
) -> None:
    """Report a call by what left it: an exception, or None for a return. Duration in seconds."""
    outcome = outcome_of(error)
    text = describe(error) if outcome is Outcome.FAILURE else None
    owed.report(outcome, duration, text, settled)


class Permit:
    """The right to run one call, from `Breaker.acquire`.

    End it exactly once, in the process that acquired it: `success()`, `failure(error)` or
    `release()`. As a context manager it ends by itself, by what leaves the block. One that is
    dropped without an end is released, with a ResourceWarning.

    Attributes:
        name: The circuit.
        operation: The number of the manager's decision to grant it; None when it was not asked,
            because the circuit is leased, or because nobody answered.
        verdict: What became of the report; None until the manager has answered. `Client.flush()`
            waits for that.
    """

    __slots__ = ("_ended", "_owed", "_pid", "_started", "name", "verdict")

    def __init__(self, name: str, owed: Claim | Lease | StandbyPermit | None) -> None:
        self.name = name
        self.verdict: Verdict | None = None
        self._owed = owed  # None: the call runs unprotected, and nobody is told
        self._pid = os.getpid()
        self._started = time.perf_counter()
        self._ended = False  # the last one: without it there is nothing to end

    @property
    def operation(self) -> int | None:
        """See the class."""
        grant = getattr(self._owed, "answer", None)
        return grant.permit if isinstance(grant, Grant) else None

    def success(self) -> None:
        """The call returned.

        Raises:
            BreakerError: The permit was ended before, or acquired by another process.
        """
        self._end(Outcome.SUCCESS)

    def failure(self, error: BaseException | str | None = None) -> None:
        """The call failed.

        Args:
            error: What it failed with, for the statistics.

        Raises:
            BreakerError: The permit was ended before, or acquired by another process.
        """
        self._end(Outcome.FAILURE, describe(error))

    def release(self) -> None:
        """The call said nothing about the service, or was not made.

        Raises:
            BreakerError: The permit was ended before, or acquired by another process.
        """
        self._end(Outcome.NEUTRAL)

    def end(self, error: BaseException | None) -> None:
        """End it by what left the call: an exception, or None for a return.

        Does nothing in a process that was forked while the call ran: the permit is its parent's.
        """
        if not self._ended and self._is_ours():
            outcome = outcome_of(error)
            self._end(outcome, describe(error) if outcome is Outcome.FAILURE else None)

    def _end(self, outcome: Outcome, error: str | None = None) -> None:
        if self._ended:
            raise BreakerError(f"the permit for circuit {self.name!r} was ended before")
        if not self._is_ours():
            raise BreakerError(
                f"the permit for circuit {self.name!r} belongs to another process; "
                f"process {os.getpid()} cannot end it"
            )
        self._ended = True
        if self._owed is not None:
            duration = time.perf_counter() - self._started
            self._owed.report(outcome, duration, error, self._settled)

    def _is_ours(self) -> bool:
        return self._pid == os.getpid()

    def _settled(self, verdict: Verdict) -> None:
        self.verdict = verdict

    def __enter__(self) -> Permit:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(error)

    async def __aenter__(self) -> Permit:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end(error)

    def __del__(self) -> None:
        if not getattr(self, "_ended", True) and self._owed is not None and self._is_ours():
            self._end(Outcome.NEUTRAL)
            warnings.warn(
                f"a permit for circuit {self.name!r} was dropped without success(), failure() or "
                f"release()",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )

    def __repr__(self) -> str:
        state = "ended" if self._ended else "out"
        return f"<Permit {self.operation} for {self.name!r}, {state}>"


def describe(error: BaseException | str | None) -> str | None:
    """An error as "Type: message", at most 512 characters that can be sent; never raises."""
    if error is None:
        return None
    if isinstance(error, str):
        text = error
    else:
        try:
            text = f"{type(error).__name__}: {error}".removesuffix(": ")
        except Exception:  # an exception that cannot be printed is still a failure
            text = type(error).__name__
    # Undecodable bytes (surrogates) are legal in a str and illegal in UTF-8.
    return text[:MAX_ERROR_CHARACTERS].encode(errors="replace").decode()
