"""What a process may decide about a circuit without asking, and what came of it until it is told.

Here callers' threads and the session meet without a turn between them. Callers only append to
lists and read one attribute; the session alone takes from the lists and replaces leases. Each of
these is one step that no other thread can come into the middle of. No socket, no clock.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Protocol

from ..config import CircuitConfig
from ..errors import CircuitOpenError
from ..states import Outcome, State, Verdict

Settled = Callable[[Verdict], None]

_new_error: Final[Callable[..., CircuitOpenError]] = BaseException.__new__


class Outlet(Protocol):
    """Where a lease hands on what cannot wait to be fetched."""

    def rouse(self, lease: Lease) -> None:
        """See that what is in the lease is collected, in a few milliseconds."""

    def fail(
        self, lease: Lease, duration: float, error: str | None, settled: Settled | None
    ) -> None:
        """Report a failure, after what is in the lease, at once; see `Gate.suspend`."""


class Term:
    """How long the leases of one session hold: one assignment renews or ends them all.

    Attributes:
        until: Seconds on our clock.
    """

    __slots__ = ("until",)

    def __init__(self, until: float = -math.inf) -> None:
        self.until = until


LAPSED: Final = Term()


class Lease:
    """The right to decide the calls of one generation of a circuit: run them, or reject them.

    Attributes:
        name: The circuit.
        epoch: Of the manager that granted it.
        generation: The circuit's.
        term: Calls run while it lasts; LAPSED while a failure is unanswered, and at the end.
        rejects_until: Calls are rejected until then, seconds on our clock.
        last_error: The circuit's, when calls are rejected.
        successes: The durations of calls that returned, in seconds. Callers append to the list
            itself: CPython has an instruction for that, twice as fast as any call of ours.
        told: Outcomes, except failures, whose reporter wants to know the verdict.
        rejected: As many elements as calls were rejected.
        runs: It was granted on a closed circuit.
        noted: Not empty: it will be collected; who appends something and finds it empty must
            `rouse`. Who collects puts another list in its place, first.
    """

    __slots__ = (
        "_outlet",
        "epoch",
        "generation",
        "last_error",
        "name",
        "noted",
        "rejected",
        "rejects_until",
        "runs",
        "successes",
        "term",
        "told",
    )

    def __init__(self, outlet: Outlet, name: str, epoch: int, generation: int) -> None:
        self.name = name
        self.epoch = epoch
        self.generation = generation
        self.runs = False
        self.term = LAPSED
        self.rejects_until = -math.inf
        self.last_error: str | None = None
        self.successes: list[float] = []
        self.told: list[tuple[Outcome, float, Settled | None]] = []
        self.rejected: list[None] = []
        self.noted: list[None] = []
        self._outlet = outlet

    # -- what callers do ---------------------------------------------------------------------------

    def report(
        self,
        outcome: Outcome,
        duration: float = 0.0,
        error: str | None = None,
        settled: Settled | None = None,
    ) -> None:
        """Say how a call ended that ran under this lease; as `Claim.report`."""
        if outcome is Outcome.FAILURE:
            self._outlet.fail(self, duration, error, settled)
        else:
            self.told.append((outcome, duration, settled))
            if not self.noted:
                self.rouse()

    def reject(self, now: float) -> CircuitOpenError:
        """Count a call that is rejected, and say why; only before `rejects_until`."""
        self.rejected.append(None)
        if not self.noted:
            self.rouse()
        # Without a call of its __init__, a third of what a rejection costs; it has these arguments.
        return _new_error(
            CircuitOpenError, self.name, State.OPEN, self.rejects_until - now, self.last_error
        )

    def rouse(self) -> None:
        """Have it collected, soon."""
        noted = self.noted  # if it is collected before we are done, that is another list
        self._outlet.rouse(self)
        noted.append(None)  # last: a signal handler that raises leaves nobody relying on it

    @property
    def empty(self) -> bool:
        """There is nothing to collect."""
        return not (self.successes or self.told or self.rejected)


class _NoLease(Lease):
    """Lets no call run or be rejected. It is of no circuit and has no place for outcomes."""

    __slots__ = ()

    def __init__(self) -> None:
        self.runs = False
        self.term = LAPSED
        self.rejects_until = -math.inf


NO_LEASE: Final[Lease] = _NoLease()


class Gate:
    """What a breaker looks at before a call. One for each circuit of a client, whatever happens.

    Attributes:
        lease: The process's on this circuit; NO_LEASE means to ask.
        failing: When each of the failures came that are not answered, seconds on our clock.
        config: What the manager has said is in force; None: nothing yet.
        open_until: The circuit was open, when it was last heard of, until then, and is half-open
            since; seconds on our clock. -inf: it was closed.
        last_error: And this was its last failure.
    """

    __slots__ = ("config", "failing", "last_error", "lease", "open_until")

    def __init__(self) -> None:
        self.lease = NO_LEASE
        self.failing: list[float] = []
        self.config: CircuitConfig | None = None
        self.open_until = -math.inf
        self.last_error: str | None = None

    def heard_open(self, until: float, last_error: str | None) -> None:
        """The manager has said that the circuit is open until then, and half-open after that."""
        self.open_until = until
        self.last_error = last_error

    def heard_closed(self) -> None:
        """The manager has said that it is closed."""
        self.open_until = -math.inf
        self.last_error = None

    def suspend(self, now: float) -> None:
        """A call has failed: let no other run unasked until the manager has answered that."""
        self.failing.append(now)
        self.lease.term = LAPSED

    def answered(self) -> None:
        """One of the failures is answered."""
        del self.failing[:1]

    def forget(self, before: float) -> None:
        """Wait no more for answers to failures that came before then and were never reported."""
        while self.failing and self.failing[0] < before:
            del self.failing[:1]

    def resume(self, term: Term) -> None:
        """Let calls run unasked, if the lease says so and no failure is unanswered."""
        lease = self.lease
        if lease.runs and not self.failing:
            lease.term = term
            if self.failing:  # a moment ago; no thread can have seen the term in between
                lease.term = LAPSED

    def close(self) -> None:
        """Let every call ask: whoever knew of leases and failures is no more."""
        self.lease = NO_LEASE
        self.failing.clear()
