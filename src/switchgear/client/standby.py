"""The circuits of one process on its own, while no manager answers (`manager_loss="local"`).

The same state machine as the manager's, begun from what the process last heard of a circuit. It
protects this process and knows nothing of the others. When the manager is back it forgets all
states, and hands over what it has counted: that belongs in the totals, and moves nothing.

A circuit that the manager is there for, but has no room for, stays here alone until it has.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable

from ..circuit import Circuit, Permit, Rejection, Totals
from ..config import CircuitConfig
from ..states import Outcome, Verdict
from .lease import Gate, Settled

HandOver = Callable[[str, Totals], None]


class Standby:
    """Stands in for the manager. Thread-safe; it holds its lock over no call of anybody's.

    Args:
        hand_over: Where the totals of a circuit go, once the manager is back; must not raise.
        clock: Seconds.

    Attributes:
        active: Calls have been decided here, and the manager has not been told.
        alone: The circuits that the manager had no room for; they are not counted in that.
    """

    def __init__(self, hand_over: HandOver, clock: Callable[[], float] = time.monotonic) -> None:
        self.active = False
        self.alone: dict[str, Circuit] = {}
        self._hand_over = hand_over
        self._clock = clock
        self._lock = threading.RLock()  # a finalizer may come to us out of anything here
        self._circuits: dict[str, Circuit] = {}
        self._numbers = itertools.count()

    def acquire(
        self, name: str, config: CircuitConfig, gate: Gate, *, alone: bool = False
    ) -> StandbyPermit | Rejection:
        """Admit or reject a call.

        Args:
            name: The circuit.
            config: Its configuration, as far as this process knows.
            gate: What this process has last heard of it.
            alone: The manager has said that it has no room for it.
        """
        now = self._clock()
        with self._lock:
            circuit = self.alone.get(name) or self._circuits.get(name)
            if circuit is None:
                circuit = self._circuits[name] = Circuit(name, config, now)
                if gate.open_until > -math.inf:  # half-open, if that is over
                    circuit.resume_open(gate.open_until, gate.last_error)
            if alone and name not in self.alone:
                self.alone[name] = circuit
                self._circuits.pop(name, None)
            self.active = bool(self._circuits)
            circuit.tick(now)
            permit = circuit.acquire(next(self._numbers), now)
            circuit.take_transitions()
        if isinstance(permit, Rejection):
            return permit
        return StandbyPermit(self, circuit, permit)

    def report(
        self, circuit: Circuit, permit: Permit, outcome: Outcome, duration: float, error: str | None
    ) -> Verdict:
        """Take the outcome of a call that was admitted here."""
        now = self._clock()
        with self._lock:
            if circuit in (self.alone.get(circuit.name), self._circuits.get(circuit.name)):
                circuit.tick(now)
                verdict = circuit.report(permit, outcome, now, duration, error)
                circuit.take_transitions()
                return verdict
        self._hand_over(circuit.name, Totals.of(outcome, duration, error))
        return Verdict.STALE

    def tell(self) -> None:
        """Hand over what was counted so far, and go on."""
        self._tell(self._circuits)

    def end(self, name: str | None = None) -> None:
        """The manager is back: tell it what was counted, and leave the deciding to it.

        Args:
            name: A circuit that it has answered for, and so has room for; None: of none is known.
        """
        with self._lock:
            ended, self._circuits = self._circuits, {}
            alone = None if name is None else self.alone.pop(name, None)
            if alone is not None:
                ended[alone.name] = alone
            self.active = False
        self._tell(ended)

    def _tell(self, circuits: dict[str, Circuit]) -> None:
        with self._lock:
            counted = {name: circuit.take_totals() for name, circuit in circuits.items()}
        for name, totals in counted.items():
            if any(totals[:4]):
                self._hand_over(name, totals)


class StandbyPermit:
    """A permit of a standby, for the one report that is owed for it."""

    __slots__ = ("_circuit", "_permit", "_standby")

    def __init__(self, standby: Standby, circuit: Circuit, permit: Permit) -> None:
        self._standby = standby
        self._circuit = circuit
        self._permit = permit

    def report(
        self,
        outcome: Outcome,
        duration: float = 0.0,
        error: str | None = None,
        settled: Settled | None = None,
    ) -> None:
        """As `Claim.report`."""
        verdict = self._standby.report(self._circuit, self._permit, outcome, duration, error)
        if settled is not None:
            settled(verdict)
