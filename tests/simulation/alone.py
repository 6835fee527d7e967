"""What a process decides alone, while no manager answers it, against circuits of its own.

Each begins from what the process last heard of the circuit, is what a breaker of its own would be,
and ends when a manager answers again.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING, Final, NamedTuple

from switchgear.states import Outcome, State
from switchgear.wire import Granted, Rejected

from .books import Place
from .reference import Circuit
from .world import Violation, World

if TYPE_CHECKING:
    from .processes import Call, Process

NOT_OPEN: Final = -math.inf
UNCERTAIN: Final = math.nan  # whether it noticed depends on whether its caller still waited

Key = tuple[bytes, str]  # a process's token, and a circuit


class Admitted(NamedTuple):
    """A call that such a circuit has let through."""

    circuit: Circuit
    permit: int
    generation: int
    probe: bool


class Alone:
    """See the module.

    Args:
        world: Whose clock managers tell, too.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._heard: dict[Key, float] = {}  # that it was open, until then
        self._latest: dict[Key, Place] = {}  # of all that it heard
        self._circuits: dict[Key, Circuit] = {}
        self._calls: dict[Call, Admitted] = {}
        self._numbers = itertools.count()

    def _begin(self, key: Key, circuit: Circuit) -> None:
        """The one rule of how it begins: open for the rest of its time, then half-open."""
        until = self._heard.get(key, NOT_OPEN)
        if until != NOT_OPEN:
            circuit.state, circuit.opens_until = State.OPEN, until

    def hears_of(self, token: bytes, place: Place) -> None:
        """A manager says where a circuit stands, on the control connection."""
        latest = self._latest.get((token, place.name))
        if latest is None or latest.line != place.line or latest.generation < place.generation:
            self._latest[token, place.name] = place

    def hears_lease(self, token: bytes, place: Place, until: int | None) -> None:
        """A process is granted a lease; later news that came before makes it void."""
        self.hears_of(token, place)
        key = token, place.name
        if self._latest[key] != place:
            self._heard[key] = UNCERTAIN
        else:
            self._heard[key] = NOT_OPEN if until is None else until / 1e6

    def hears_answer(self, token: bytes, name: str, message: Granted | Rejected) -> None:
        """A request is answered."""
        key = token, name
        if (
            isinstance(message, Rejected)
            or message.deadline is not None
            or self._heard.get(key, NOT_OPEN) != NOT_OPEN
        ):
            self._heard[key] = UNCERTAIN

    def is_over(self, process: Process) -> None:
        """A manager answers a process again."""
        for key in [key for key in self._circuits if key[0] == process.token]:
            del self._circuits[key]

    def _of(self, process: Process, name: str) -> Circuit | None:
        """What a circuit is now; None: that cannot be said."""
        key = process.token, name
        circuit = self._circuits.get(key)
        if circuit is None:
            if math.isnan(self._heard.get(key, NOT_OPEN)):
                return None
            config = process.gates[name].config or process.configs[name]
            circuit = self._circuits[key] = Circuit(name, config)
            self._begin(key, circuit)
        circuit.pass_time(self._world.now)
        return circuit

    def runs(self, call: Call) -> None:
        """A call runs."""
        circuit = self._of(call.process, call.name)
        if circuit is None:
            return
        if not circuit.admits:
            raise Violation(f"G2, G11: {call.process} alone runs {call.name}: {circuit.state}")
        permit = next(self._numbers)
        probe = circuit.admit(permit, self._world.now) is not None
        self._calls[call] = Admitted(circuit, permit, circuit.generation, probe)

    def ends(self, call: Call, outcome: Outcome, error: str | None) -> None:
        """A call ends that ran, or one that a manager had let through."""
        admitted = self._calls.pop(call, None)
        if admitted is not None:
            circuit, permit, generation, probe = admitted
            circuit.pass_time(self._world.now)
            circuit.come_back(permit, generation, probe, outcome, error, 0, self._world.now)

    def rejects(self, process: Process, name: str) -> None:
        """A call is rejected."""
        circuit = self._of(process, name)
        if circuit is not None and circuit.admits:
            raise Violation(f"G2: {process} alone rejects {name}: {circuit.state}")
