"""Real sessions and a real actor, back to back in memory: time is a number.

Every message crosses as bytes and waits in a queue until it is delivered, so a test decides what
arrives when, what is lost or comes twice, when a connection breaks and when another manager comes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from switchgear.client.session import Answer, Session
from switchgear.manager.actor import CONTROL, DATA, Actor, Peer, Send
from switchgear.wire import (
    FROM_CONTROL,
    FROM_DATA,
    TO_CONTROL,
    TO_DATA,
    Error,
    Event,
    Malformed,
    Message,
    decode,
    encode,
)

TO: Final = (TO_DATA, TO_CONTROL)
FROM: Final = (FROM_DATA, FROM_CONTROL)
MOST_DELIVERIES: Final = 20_000  # in one run: whoever needs more talks in a circle


class Waiter:
    """Somebody who has asked, and what they got."""

    def __init__(self, what: str = "") -> None:
        self.what = what
        self.answer: Answer = None
        self.answered = False

    def complete(self, answer: Answer) -> None:
        """Take the only answer there may be."""
        assert not self.answered, f"{self.what} was answered twice"
        self.answer, self.answered = answer, True


class Said(NamedTuple):
    """A message that was sent, by whom and where, whether it arrived or not."""

    by_client: bool
    client: int
    connection: int
    message: Message


class Wire:
    """One connection of one client: what is on its way, both ways."""

    def __init__(self) -> None:
        self.peer: Peer | None = None  # None: not connected
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()


class Client:
    """A session and its two connections."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.session = Session(bytes([number + 1]) * 16, 1_000 + number)
        self.wires = (Wire(), Wire())
        self.events: list[Event] = []


class Pair:
    """A manager and its client, or several. Checked after every step.

    Args:
        clients: How many.
        skew: The manager's clock less the clients'.
        connected: Begin with everybody connected and greeted.
    """

    def __init__(self, clients: int = 1, *, skew: float = 0.0, connected: bool = True) -> None:
        self.now = 1_000.0
        self.skew = skew
        self.epoch = 1
        self.actor = Actor(self.epoch)
        self.clients = [Client(number) for number in range(clients)]
        self.said: list[Said] = []
        self._connections = 0
        if connected:
            self.connect_all()
            self.run()

    @property
    def session(self) -> Session:
        """The first client's."""
        return self.clients[0].session

    # -- connections and managers ------------------------------------------------------------------

    def connect(self, client: int = 0, connection: int = DATA) -> None:
        """Make a connection, unless there is one."""
        wire = self.clients[client].wires[connection]
        if wire.peer is None:
            self._connections += 1
            wire.peer = Peer(connection, b"%d" % self._connections)
            self.clients[client].session.connected(connection, self.now)
            self.collect()

    def connect_all(self) -> None:
        """Make every connection that is missing."""
        for client in self.clients:
            for connection in (DATA, CONTROL):
                self.connect(client.number, connection)

    def cut(self, client: int = 0, connection: int = DATA) -> None:
        """Break a connection: what is on its way, both ways, is lost. The manager hears nothing."""
        wire = self.clients[client].wires[connection]
        if wire.peer is not None:
            wire.peer = None
            wire.up.clear()
            wire.down.clear()
            self.clients[client].session.disconnected(connection)
            self.collect()

    def replace_manager(self) -> None:
        """The manager is killed, and another one, that knows nothing, takes its place."""
        for client in self.clients:
            for connection in (DATA, CONTROL):
                self.cut(client.number, connection)
        self.epoch += 1
        self.actor = Actor(self.epoch)

    # -- delivery ----------------------------------------------------------------------------------

    def deliver_up(self, client: int = 0, connection: int = DATA) -> bool:
        """Hand the oldest message of a client to the manager; False: there is none."""
        wire = self.clients[client].wires[connection]
        if not wire.up:
            return False
        assert wire.peer is not None
        frame = wire.up.popleft()
        self._tick()
        try:
            message = decode(frame, TO[connection])
        except Malformed as wrong:
            answer = Error(wrong.kind, wrong.ref, wrong.code, wrong.text)
            self._route([Send(wire.peer, answer)])
        else:
            self._route(self.actor.receive(wire.peer, message, self.now + self.skew))
        self.check()
        return True

    def deliver_down(self, client: int = 0, connection: int = DATA) -> bool:
        """Hand the manager's oldest message to a client; False: there is none."""
        wire = self.clients[client].wires[connection]
        if not wire.down:
            return False
        message = decode(wire.down.popleft(), FROM[connection])
        self.clients[client].session.received(connection, message, self.now)
        self.collect()
        return True

    def run(self) -> None:
        """Deliver until nothing is on its way. No time passes."""
        self.collect()
        for _ in range(MOST_DELIVERIES):
            if not any(
                deliver(client.number, connection)
                for client in self.clients
                for connection in (CONTROL, DATA)
                for deliver in (self.deliver_up, self.deliver_down)
            ):
                return
        raise AssertionError(f"no end to it: ... {self.said[-6:]}")

    def advance(self, seconds: float) -> None:
        """Let time pass, then deliver all."""
        self.now += seconds
        self._tick()
        self.run()

    def collect(self) -> None:
        """Take what the sessions have to send, to answer and to tell."""
        for client in self.clients:
            session = client.session
            while session.outbox:
                connection, message = session.outbox.pop(0)
                self.said.append(Said(True, client.number, connection, message))
                wire = client.wires[connection]
                assert wire.peer is not None, f"sent without a connection: {message}"
                wire.up.append(encode(message))
            while session.answers:
                waiter, answer = session.answers.pop(0)
                waiter.complete(answer)
            client.events += session.events
            session.events.clear()
        self.check()

    def check(self) -> None:
        """Assert what is true at any time."""
        self.actor.check()
        for client in self.clients:
            client.session.check()

    def sent(self, *kinds: type[Message], client: int = 0) -> list[Message]:
        """What a client has sent, of some kinds or all, oldest first."""
        return [
            said.message
            for said in self.said
            if said.by_client
            and said.client == client
            and (not kinds or type(said.message) in kinds)
        ]

    def _tick(self) -> None:
        self._route(self.actor.tick(self.now + self.skew))

    def _route(self, sends: list[Send]) -> None:
        for send in sends:
            found = self._wire_of(send.peer)
            if found is None:
                now = self.now + self.skew
                self._route(self.actor.undelivered(send, now, gone=True))
            else:
                client, wire = found
                said = Said(False, client.number, send.peer.socket, send.message)
                self.said.append(said)
                wire.down.append(encode(send.message))

    def _wire_of(self, peer: Peer) -> tuple[Client, Wire] | None:
        for client in self.clients:
            wire = client.wires[peer.socket]
            if wire.peer == peer:
                return client, wire
        return None

    # -- what callers do ---------------------------------------------------------------------------

    def acquire(self, name: str = "a", *, client: int = 0, timeout: float = 0.05) -> Waiter:
        """Ask for a permit."""
        waiter = Waiter(f"acquire {name}")
        self.clients[client].session.acquire(waiter, name, self.now + timeout, self.now)
        self.collect()
        return waiter

    def ask(self, build: Callable[[int], Message], *circuits: str, client: int = 0) -> Waiter:
        """Ask on the control connection."""
        waiter = Waiter("ask")
        self.clients[client].session.ask(waiter, build, circuits)
        self.collect()
        return waiter

    def flush(self, client: int = 0) -> Waiter:
        """Ask to hear when everything reported was taken in."""
        waiter = Waiter("flush")
        self.clients[client].session.flush(waiter)
        self.collect()
        return waiter

    def subscribe(self, client: int = 0) -> Waiter:
        """Ask for events."""
        waiter = Waiter("subscribe")
        self.clients[client].session.subscribe(waiter)
        self.collect()
        return waiter
