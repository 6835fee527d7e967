"""Connections as ZeroMQ makes them over ipc: in order, reliable as long as they last.

What is on its way when one breaks is lost, wholly or from some message on; each end notices in its
own time, and what it sends until then goes nowhere. Between two connections there is no order. A
message may come twice, which ZeroMQ does not do: a program that repeats itself would. An outcome
may come again late, behind what was sent after it, but for a greeting: taken in between that and
the declaration of its circuit, it would count nowhere, and no client of ours could repeat it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from switchgear.manager.sessions import CONTROL, DATA, Peer
from switchgear.wire import Batch, Hello, Message, Missed, Report, encode

from .world import IDLE, Idle, World

if TYPE_CHECKING:
    from .managers import Manager
    from .processes import Process

SOCKETS: Final = (DATA, CONTROL)
NUMBERED: Final = (Report, Batch, Missed)  # a late copy of these must do no harm


class Weather(NamedTuple):
    """What a network does to messages. Where nothing else is said, a chance, by message."""

    slow: float = 0.0  # it takes much longer
    slowest: float = 0.3  # seconds
    twice: float = 0.0  # it comes again
    most_unread: int = 200  # messages for one that does not read; then sending fails


class Connection:
    """One of a process's two, to one life of a manager."""

    __slots__ = (
        "_down_at",
        "_greetings",
        "_network",
        "_up_at",
        "broken",
        "gone",
        "manager",
        "peer",
        "process",
        "socket",
        "unread",
    )

    def __init__(self, network: Network, process: Process, manager: Manager, peer: Peer) -> None:
        self._network = network
        self.process = process
        self.manager = manager
        self.peer = peer
        self.socket = peer.socket
        self.broken = False  # nothing that is sent arrives any more
        self.gone = False  # and the manager knows
        self.unread = 0  # messages of one or more frames to the process that are on their way
        self._up_at = 0.0  # when the last message arrives, so that none overtakes it
        self._down_at = 0.0
        self._greetings = 0  # that were sent

    def begin(self) -> None:
        """What ZeroMQ itself says on a new connection, before all that the process does."""
        self._up_at = self._network.world.now + self._network.delay()
        self._network.world.at(self._up_at, self._arrive_up, b"")

    def send_up(self, message: Message) -> None:
        """From the process to the manager."""
        if not self.broken:
            network = self._network
            world = network.world
            self._up_at = max(self._up_at, world.now + network.delay())
            frame = encode(message)
            world.at(self._up_at, self._arrive_up, frame)
            self._greetings += isinstance(message, Hello)
            if world.chance() < network.weather.twice:
                late = isinstance(message, NUMBERED) and world.chance() < 0.5
                when = self._up_at + (network.delay() if late else 0.0)
                world.at(when, self._arrive_again, frame, self._greetings)

    def send_down(self, messages: list[Message]) -> None:
        """From the manager to the process, together."""
        if not self.broken:
            network = self._network
            world = network.world
            self._down_at = max(self._down_at, world.now + network.delay())
            self.unread += 1
            for message in messages:
                frame = encode(message)
                for _ in range(2 if world.chance() < network.weather.twice else 1):
                    world.at(self._down_at, self.arrive_down, frame)
            world.at(self._down_at, self._was_read)

    def _arrive_up(self, frame: bytes) -> object:
        if self.broken:
            return IDLE
        return self.manager.arrive(self, frame)

    def _arrive_again(self, frame: bytes, greetings: int) -> object:
        return self._arrive_up(frame) if greetings == self._greetings else IDLE

    def arrive_down(self, frame: bytes) -> Idle | None:
        """Hand a message to the process, or let it wait until that runs again."""
        if self.broken or self.process.defer(self.arrive_down, frame):
            return IDLE
        self.process.link.arrive(self, frame)
        return None

    def _was_read(self) -> Idle:
        if not self.process.defer(self._was_read):
            self.unread -= 1
        return IDLE

    def end(self) -> None:
        """Lose whatever is on its way."""
        self.broken = True


class Network:
    """All connections.

    Args:
        world: Where they are.
        weather: How they are.
    """

    def __init__(self, world: World, weather: Weather) -> None:
        self.world = world
        self.weather = weather
        self.manager: Manager | None = None  # that takes connections
        self._connections: dict[Peer, Connection] = {}
        self._waiting: dict[tuple[Process, int], None] = {}  # for a manager to connect to
        self._count = 0

    def delay(self) -> float:
        """Seconds that a message takes."""
        world = self.world
        if world.chance() < self.weather.slow:
            return world.between(0.001, self.weather.slowest)
        return 0.00003 + 0.00015 * world.chance()

    # -- connecting --------------------------------------------------------------------------------

    def want(self, process: Process, socket: int) -> None:
        """Connect as soon as there is a manager."""
        self._waiting[process, socket] = None
        if self.manager is not None and not self.manager.stopped:
            self._connect_soon(process, socket)

    def listen(self, manager: Manager) -> None:
        """A manager takes connections now."""
        self.manager = manager
        for process, socket in list(self._waiting):
            self._connect_soon(process, socket)

    def _connect_soon(self, process: Process, socket: int) -> None:
        self.world.after(self.world.between(0.0002, 0.05), self._connect, process, socket)

    def _connect(self, process: Process, socket: int) -> object:
        if process.defer(self._connect, process, socket):
            return IDLE
        manager = self.manager
        if manager is None or manager.stopped or (process, socket) not in self._waiting:
            return IDLE  # who comes next, or goes on, connects those that wait
        del self._waiting[process, socket]
        self._count += 1
        connection = Connection(self, process, manager, Peer(socket, b"%d" % self._count))
        self._connections[connection.peer] = connection
        connection.begin()
        process.link.connected(connection)
        return None

    # -- breaking ----------------------------------------------------------------------------------

    def connections(self) -> list[Connection]:
        """Those that hold."""
        return [one for one in self._connections.values() if not one.broken]

    def of(self, process: Process) -> list[Connection]:
        """Those of one process that hold."""
        return [one for one in self.connections() if one.process is process]

    def process_of(self, peer: Peer) -> Process:
        """Who is connected there."""
        return self._connections[peer].process

    def cut(self, connection: Connection) -> None:
        """Break one. The process and the manager notice, each in its time."""
        connection.end()
        self.world.after(self._until_noticed(), connection.process.link.disconnected, connection)
        self.world.after(self._until_noticed(), self.forget, connection)

    def _until_noticed(self) -> float:
        return self.world.between(0.0, 0.3 if self.world.chance() < 0.2 else 0.002)

    def forget(self, connection: Connection) -> None:
        """The manager has noticed."""
        connection.gone = True
        self._connections.pop(connection.peer, None)

    def manager_died(self) -> None:
        """Whoever was connected to it notices; what it had sent last may arrive, or not."""
        self.manager = None
        for connection in self.connections():
            self.world.after(self.world.between(0.0, 0.002), self._lose_manager, connection)

    def _lose_manager(self, connection: Connection) -> object:
        if connection.broken:
            return IDLE
        connection.end()
        self.forget(connection)
        connection.process.link.disconnected(connection)
        return None

    # -- what a manager sends ----------------------------------------------------------------------

    def send(self, peer: Peer, messages: list[Message]) -> bool | None:
        """Send to a process; None: they were sent, else whether nobody is connected there."""
        connection = self._connections.get(peer)
        if connection is None:
            return True
        if connection.unread >= self.weather.most_unread:
            return False
        connection.send_down(messages)
        return None
