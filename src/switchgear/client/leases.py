"""The leases of one session: granted, renewed and ended as the manager says.

No lease outlasts what the manager has said of the circuit; what it could not say ends it after its
term. No socket, no clock.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from ..config import CircuitConfig
from ..states import State
from ..wire import Leased, Rejected, to_seconds
from .lease import LAPSED, NO_LEASE, Gate, Lease, Outlet, Term


class Leases:
    """Puts leases into gates, and takes them out again.

    Args:
        gates: Where breakers look, by circuit; the owner adds to it.
        outlet: Where leases hand on what cannot wait.

    Attributes:
        length: Seconds that a lease holds.
    """

    def __init__(self, gates: Mapping[str, Gate], outlet: Outlet) -> None:
        self.length = 0.0
        self._gates = gates
        self._outlet = outlet
        self._leases: dict[str, Lease] = {}  # those that are in a gate
        # The latest we heard of, on either connection.
        self._generations: defaultdict[str, int] = defaultdict(int)
        self._term = Term()

    def __bool__(self) -> bool:
        return bool(self._leases)

    def grant(self, message: Leased, epoch: int, clock_offset: float) -> None:
        """Take what the manager has granted.

        Args:
            message: What it said.
            epoch: The manager's.
            clock_offset: Its clock less ours, seconds.
        """
        name, generation = message.name, message.generation
        gate = self._gates.get(name)
        if gate is None or generation < self._generations[name]:
            return
        self.end(name)
        self._generations[name] = generation
        lease = Lease(self._outlet, name, epoch, generation)
        if message.state is State.CLOSED:
            lease.runs = True
            gate.heard_closed()
        elif message.until is not None:
            lease.rejects_until = to_seconds(message.until) - clock_offset
            lease.last_error = message.last_error
            gate.heard_open(lease.rejects_until, message.last_error)
        self._leases[name] = lease
        gate.lease = lease
        gate.resume(self._term)  # it may have been granted before a failure of ours was heard of

    def heard(self, name: str, generation: int) -> None:
        """End a lease of an earlier generation than the one that we have heard of.

        The news of a change may come on the control connection first.
        """
        if generation > self._generations[name]:
            self._generations[name] = generation
            self.end(name)  # whose generation was the latest until now

    def renew(self, sent_at: float) -> None:
        """The manager has answered what was sent then; all that had ended by then, it said before.

        Args:
            sent_at: Seconds on our clock.
        """
        self._term.until = max(self._term.until, sent_at + self.length)

    def declared(self, name: str, config: CircuitConfig) -> None:
        """Keep in mind how the manager has a circuit configured."""
        gate = self._gates.get(name)
        if gate is not None:
            gate.config = config

    def rejected(self, name: str, message: Rejected, now: float) -> None:
        """Keep in mind what the manager said of a circuit, in case it says no more."""
        gate = self._gates.get(name)
        if gate is not None:
            gate.heard_open(now + (message.retry_after or 0.0), message.last_error)

    def granted(self, name: str, now: float, *, probe: bool) -> None:
        """The same, of one that admits calls."""
        gate = self._gates.get(name)
        if gate is not None:
            if probe:
                gate.heard_open(now, gate.last_error)
            else:
                gate.heard_closed()

    def suspended(self, name: str) -> bool:
        """A failure on a circuit is not answered."""
        gate = self._gates.get(name)
        return gate is not None and bool(gate.failing)

    def reported(self, name: str, before: float) -> None:
        """All failures on a circuit that came before then, and will be reported, are answered.

        A signal handler that raises may have come between a failure and its report.
        """
        gate = self._gates.get(name)
        if gate is not None:
            gate.forget(before)
            gate.resume(self._term)

    def answered(self, name: str) -> None:
        """A failure on a circuit is answered."""
        gate = self._gates.get(name)
        if gate is not None:
            gate.answered()
            gate.resume(self._term)

    def end(self, name: str) -> None:
        """Let every call on a circuit ask."""
        lease = self._leases.pop(name, None)
        if lease is not None:
            lease.term = LAPSED  # for who has looked into the gate and not yet at the clock
            self._gates[name].lease = NO_LEASE

    def end_all(self) -> None:
        """The manager has forgotten them, or we may have missed the end of some."""
        self._term.until = LAPSED.until
        self._term = Term()
        for name in list(self._leases):
            self.end(name)

    def close(self) -> None:
        """There will be no manager any more."""
        self.end_all()
        for gate in list(self._gates.values()):
            gate.close()

    def forget(self) -> None:
        """Another manager is there, and counts generations anew."""
        self._generations.clear()

    def check(self) -> None:
        """Assert what is true between any two calls. For tests."""
        for name, lease in self._leases.items():
            assert self._gates[name].lease is lease
            assert lease.generation == self._generations[name]
            assert lease.term in (self._term, LAPSED)
            assert lease.term is LAPSED or lease.runs
            assert not (lease.runs and lease.rejects_until > LAPSED.until)
