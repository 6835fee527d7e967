"""How soon processes must act on the news that a circuit has moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from switchgear.client.lease import Lease
from switchgear.manager.sessions import DATA, Peer

from .books import Place
from .world import Violation, World

if TYPE_CHECKING:
    from .network import Connection, Network
    from .processes import Process

SOON: Final = 0.005  # seconds; contract, G8


class Move(NamedTuple):
    """What a process is about to hear.

    Attributes:
        place: Where the circuit stands now.
        at: When it moved.
        connection: On which the process has to hear of it.
    """

    place: Place
    at: float
    connection: Connection


class News:
    """See the module."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._moves: dict[tuple[bytes, str], Move] = {}
        self._overrun: set[Peer] = set()
        self._leased_on: dict[tuple[bytes, str], Connection] = {}

    def leased(self, process: Process, name: str, connection: Connection) -> None:
        """A process hears of a lease: who granted it, there, tells what becomes of it."""
        self._leased_on[process.token, name] = connection

    def missed(self, peer: Peer) -> None:
        """What was said there was too much: the manager gives it up, until it greets again."""
        self._overrun.add(peer)

    def moved(self, place: Place, network: Network) -> None:
        """A circuit has moved; processes that can hear of it soon, must."""
        weather = network.weather
        if weather.slow:
            return
        for one in network.connections():
            process = one.process
            deaf = process.dead or process.stopped or one.unread >= weather.most_unread
            if one.socket == DATA and one.peer not in self._overrun and not deaf:
                self._moves[process.token, place.name] = Move(place, self._world.now, one)

    def check(self, process: Process, lease: Lease, line: int) -> None:
        """A call runs under a lease: it is not one that the process must know has ended."""
        key, now = (process.token, lease.name), self._world.now
        move = self._moves.get(key)
        if move is None or move.place.line != line or move.place.generation <= lease.generation:
            return
        held = (
            process.link.lines.get(DATA) is move.connection
            and not move.connection.broken
            and self._leased_on.get(key) is move.connection
        )
        awake = process.went_on_at <= move.at and self._world.jumped_at <= move.at
        if held and awake and now > move.at + SOON:
            raise Violation(f"G8: {process} runs {lease.name} {now - move.at:.4f} s after {move}")
