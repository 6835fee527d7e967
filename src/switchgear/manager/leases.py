"""Who may decide about which circuit without asking, and so must be told when it changes.

A lease holds for one generation of a circuit that is closed or open. It ends at the next change of
state, of which every holder is told on the connection that its acknowledgements take, so that no
acknowledgement can renew a lease that has ended. No socket, no clock.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from ..circuit import Circuit
from ..states import State
from ..wire import Leased, Revoked, to_micros

Holder = TypeVar("Holder", bound=Hashable)


class Leases(Generic[Holder]):
    """The leases that are out, by circuit. Holders are connections, as their owner names them."""

    def __init__(self) -> None:
        self._holders: dict[str, dict[Holder, None]] = {}  # in the order of their first calls
        self._circuits: dict[Holder, set[str]] = {}  # the same, by holder; nobody has an empty one

    def grant(self, holder: Holder, circuit: Circuit) -> Leased | None:
        """Give a lease, if the circuit is one that is leased now and the holder has none."""
        if circuit.config.consistency == "strict" or circuit.state is State.HALF_OPEN:
            return None
        holders = self._holders.setdefault(circuit.name, {})
        if holder in holders:
            return None
        holders[holder] = None
        self._circuits.setdefault(holder, set()).add(circuit.name)
        return _lease(circuit)

    def follow(self, circuit: Circuit) -> tuple[list[Holder], Leased | Revoked | None]:
        """Say whom to tell what, now that the circuit has another generation or configuration."""
        holders = list(self._holders.get(circuit.name, ()))
        if not holders:
            return [], None
        if circuit.config.consistency == "strict":
            self._end(circuit.name)
            return holders, Revoked(circuit.name, circuit.generation)
        if circuit.state is State.HALF_OPEN:
            self._end(circuit.name)
            return [], None  # what they held was good for as long as the circuit was open
        return holders, _lease(circuit)

    def drop(self, holder: Holder) -> None:
        """Forget a holder that has gone, or begins anew. Linear in the circuits it has leased."""
        for name in self._circuits.pop(holder, ()):
            holders = self._holders[name]
            del holders[holder]
            if not holders:
                del self._holders[name]

    def holders(self, name: str) -> list[Holder]:
        """Who has a lease on a circuit, oldest first."""
        return list(self._holders.get(name, ()))

    def check(self) -> None:
        """Assert what is true between any two calls. For tests."""
        leased = {(holder, name) for name, all_ in self._holders.items() for holder in all_}
        assert leased == {(one, name) for one, names in self._circuits.items() for name in names}
        assert all(self._holders.values())
        assert all(self._circuits.values())

    def _end(self, name: str) -> None:
        for holder in self._holders.pop(name):
            names = self._circuits[holder]
            names.remove(name)
            if not names:
                del self._circuits[holder]


def _lease(circuit: Circuit) -> Leased:
    until = None if circuit.half_open_at is None else to_micros(circuit.half_open_at)
    return Leased(circuit.name, circuit.generation, circuit.state, until, circuit.last_error)
