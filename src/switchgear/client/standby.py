"""The circuits of one process on its own, while no manager answers (`manager_loss="local"`).

The same state machine as the manager's, begun from what the process last heard of a circuit. It
protects this process and knows nothing of the others. When the manager is back it forgets all
states, and hands over what it has counted: that belongs in the totals, and moves nothing.
"""

from __future__ import annotations

import itertools
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
    """

    def __init__(self, hand_over: HandOver, clock: Callable[[], float] = time.monotonic) -> None:
        self.active = False
        self._hand_over = hand_over
        self._clock = clock
        self._lock = threading.RLock()  # a finalizer may come to us out of anything here
        self._circuits: dict[str, Circuit] = {}
        self._numbers = itertools.count(1)

    def acquire(self, name: str, config: CircuitConfig, gate: Gate) -> StandbyPermit | Rejection:
        """Admit or reject a call.

        Args:
            name: The circuit.
            config: Its configuration, as far as this process knows.
            gate: What this process has last heard of it.
        """
        now = self._clock()
        with self._lock:
            self.active = True
            circuit = self._circuits.get(name)
            if circuit is None:
                circuit = self._circuits[name] = Circuit(name, config, now)
                if now < gate.open_until:
                    circuit.resume_open(gate.open_until, gate.last_error)
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
            if self._circuits.get(circuit.name) is circuit:
                circuit.tick(now)
                verdict = circuit.report(permit, outcome, now, duration, error)
                circuit.take_transitions()
                return verdict
        self._hand_over(circuit.name, Totals.of(outcome, duration, error))
        return Verdict.STALE

    def tell(self) -> None:
        """Hand over what was counted so far, and go on."""
        self._tell(self._circuits)

    def end(self) -> None:
        """The manager is back: tell it what was counted, and leave the deciding to it."""
        with self._lock:
            ended, self._circuits = self._circuits, {}
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
