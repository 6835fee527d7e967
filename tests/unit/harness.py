"""Real sessions and a real actor, back to back in memory: time is a number.

Every message crosses as bytes and waits in a queue until it is delivered, so a test decides what
arrives when, what is lost or comes twice, when a connection breaks and when another manager comes.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Callable
from enum import Enum
from typing import Final, NamedTuple

from switchgear.circuit import Counts, Standing
from switchgear.client.lease import Gate, Lease, Settled
from switchgear.client.reports import One
from switchgear.client.session import Answer, Grant, Session
from switchgear.manager.actor import Actor, Send
from switchgear.manager.sessions import CONTROL, DATA, Peer, SavedSession
from switchgear.manager.unsaved import Changes, Saved
from switchgear.states import Outcome
from switchgear.wire import (
    FROM_CONTROL,
    FROM_DATA,
    HISTORY,
    TO_CONTROL,
    TO_DATA,
    Acquire,
    Batch,
    Error,
    Event,
    Granted,
    Malformed,
    Message,
    Rejected,
    Report,
    Reported,
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


class How(Enum):
    """What became of a call."""

    LEASED = "it ran, and nobody was asked"
    REJECTED_HERE = "it was rejected, and nobody was asked"
    ASKED = "the manager is asked"
    GRANTED = "it ran, and the manager was asked"
    REJECTED = "the manager rejected it"


class Said(NamedTuple):
    """A message that was sent, by whom and where, whether it arrived or not."""

    by_client: bool
    client: int
    connection: int
    message: Message
    at: float


class Wire:
    """One connection of one client: what is on its way, both ways."""

    def __init__(self) -> None:
        self.peer: Peer | None = None  # None: not connected
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()


class Client:
    """A session, its two connections, and what its leases hand on."""

    def __init__(self, number: int, clock: Callable[[], float]) -> None:
        self.number = number
        self.clock = clock
        self.gates: defaultdict[str, Gate] = defaultdict(Gate)
        self.dirty: list[Lease] = []
        self.session = Session(bytes([number + 1]) * 16, 1_000 + number, self.gates, self)
        self.wires = (Wire(), Wire())
        self.events: list[Event] = []

    def gate(self, name: str) -> Gate:
        """Where breakers look; there is one for every circuit that anybody asks about."""
        return self.gates[name]

    def rouse(self, lease: Lease) -> None:
        """See `Outlet`."""
        self.dirty.append(lease)

    def fail(
        self, lease: Lease, duration: float, error: str | None, settled: Settled | None
    ) -> None:
        """See `Outlet`."""
        grant = (lease.epoch, None, lease.generation)
        self.gates[lease.name].suspend(self.clock())
        failure = One(lease.name, grant, Outcome.FAILURE, duration, error, settled)
        self.session.report_failure(failure, lease, now=self.clock())

    def report(
        self,
        name: str,
        grant: Grant,
        outcome: Outcome = Outcome.SUCCESS,
        error: str | None = None,
        settled: Settled | None = None,
    ) -> None:
        """Say how a call ended that was asked for, as `Link.report` does."""
        if outcome is Outcome.FAILURE:
            self.gates[name].suspend(self.clock())
        self.session.report(name, grant, outcome, 0.001, error, settled, now=self.clock())

    def flush(self) -> None:
        """Collect what callers have left in leases, as the I/O thread does now and then."""
        while self.dirty:
            lease = self.dirty.pop(0)
            lease.noted = []
            self.session.collect(lease, now=self.clock())


class Memory:
    """A journal without a file: what was written is what a successor gets."""

    def __init__(self) -> None:
        self._standings: dict[str, Standing] = {}
        self._counts: dict[str, Counts] = {}
        self._sessions: dict[bytes, SavedSession] = {}
        self._events: defaultdict[str, deque[Event]] = defaultdict(lambda: deque(maxlen=HISTORY))

    def write(self, changes: Changes) -> None:
        """See `Journal.write`."""
        self._standings.update(changes.standings)
        for event in changes.events:
            self._events[event.name].append(event)
        self._counts.update(changes.counts)
        self._sessions.update((session.token, session) for session in changes.sessions)
        for token in changes.ended:
            self._sessions.pop(token, None)

    def read(self, epoch: int, origin: int) -> Saved:
        """See `Journal.open`."""
        standings = self._standings
        circuits = {name: (standings[name], self._counts.get(name)) for name in standings}
        events = sorted(event for events in self._events.values() for event in events)
        return Saved(epoch, origin, circuits, list(self._sessions.values()), events)


class Pair:
    """A manager and its client, or several. Checked after every step.

    Args:
        clients: How many.
        skew: The manager's clock less the clients'.
        connected: Begin with everybody connected and greeted.
    """

    def __init__(self, clients: int = 1, *, skew: float = 0.0, connected: bool = True) -> None:
        self.now = 1_000.0
        self.saves = True  # False: only when `save` is called
        self.skew = skew
        self.epoch = 1
        self.actor = Actor(self.epoch)
        self.memory = Memory()
        self.clients = [Client(number, lambda: self.now) for number in range(clients)]
        self.said: list[Said] = []
        self.undelivered: list[Message] = []
        self.taken_in: list[Report] = []
        # By client, when it sent the last of the messages that were answered; see "Leases" in the
        # protocol. An answer counts when it is said, which is before it arrives.
        self.answered: defaultdict[int, float] = defaultdict(lambda: -math.inf)
        self.last_sent: dict[tuple[int, type[Message], tuple[object, ...]], float] = {}
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
        self._cut_all()
        self.epoch += 1
        self.actor = Actor(self.epoch)
        self.memory = Memory()

    def kill_manager(self) -> None:
        """The manager is killed, and a successor goes on from what it had saved."""
        self._cut_all()
        self.epoch += 1
        origin = self.actor.origin
        self.actor = Actor(self.epoch)
        self.actor.restore(self.memory.read(self.epoch - 1, origin), self.now + self.skew)
        self.check()

    def _cut_all(self) -> None:
        for client in self.clients:
            for connection in (DATA, CONTROL):
                self.cut(client.number, connection)

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
            session = self.actor._connected.get(wire.peer)
            before = 0 if session is None else session.reports
            self._route(self.actor.receive(wire.peer, message, self.now + self.skew))
            if isinstance(message, Report) and session is not None and session.reports > before:
                self.taken_in.append(message)
        if self.saves:
            self.save()
        self.check()
        return True

    def save(self) -> None:
        """Save what is due, and acknowledge it, as the server does at the end of a turn."""
        now = self.now + self.skew
        if self.actor.save_by is not None and self.actor.save_by <= now:
            self.memory.write(self.actor.save())
            self._route(self.actor.saved(now))

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
                said = Said(True, client.number, connection, message, self.now)
                self.said.append(said)
                self.last_sent[client.number, type(message), message[:1]] = self.now
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
        if self.saves:
            self.save()

    def _route(self, sends: list[Send]) -> None:
        if sends and self.actor.news:
            self.memory.write(self.actor.take_news())
        for send in sends:
            found = self._wire_of(send.peer)
            if found is None:
                self.undelivered.append(send.message)
                now = self.now + self.skew
                self._route(self.actor.undelivered(send, now, gone=True))
            else:
                client, wire = found
                said = Said(False, client.number, send.peer.socket, send.message, self.now)
                self.said.append(said)
                self._note_answer(said)
                wire.down.append(encode(send.message))

    def _note_answer(self, said: Said) -> None:
        match said.message:
            case Granted(request) | Rejected(request):
                asked: list[tuple[type[Message], int]] = [(Acquire, request)]
            case Reported(number):
                asked = [(Report, number), (Batch, number)]
            case _:
                return
        for kind, number in asked:
            at = self.last_sent.get((said.client, kind, (number,)), -math.inf)
            self.answered[said.client] = max(self.answered[said.client], at)

    def _wire_of(self, peer: Peer) -> tuple[Client, Wire] | None:
        for client in self.clients:
            wire = client.wires[peer.socket]
            if wire.peer == peer:
                return client, wire
        return None

    # -- what callers do ---------------------------------------------------------------------------

    def admit(self, name: str = "a", *, client: int = 0) -> Lease | Waiter | None:
        """Begin a call, as a breaker does: the lease it runs under, None: rejected, or who asks."""
        lease = self.clients[client].gates[name].lease
        if self.now < lease.term.until:
            return lease
        if self.now < lease.rejects_until:
            lease.reject(self.now)
            return None
        return self.acquire(name, client=client)

    def end(self, lease: Lease, outcome: Outcome = Outcome.SUCCESS) -> None:
        """End a call that ran under a lease, as a breaker does."""
        if outcome is Outcome.SUCCESS:
            lease.successes.append(0.001)
            if not lease.noted:
                lease.rouse()
        else:
            lease.report(outcome, 0.001, "OSError: down" if outcome is Outcome.FAILURE else None)
        self.collect()

    def call(self, outcome: Outcome = Outcome.SUCCESS, name: str = "a", *, client: int = 0) -> How:
        """A whole call, with all that has to be delivered for it."""
        admitted = self.admit(name, client=client)
        if isinstance(admitted, Lease):
            self.end(admitted, outcome)
            return How.LEASED
        if admitted is None:
            return How.REJECTED_HERE
        self.run()
        if isinstance(admitted.answer, Grant):
            self.clients[client].report(name, admitted.answer, outcome)
            self.collect()
            return How.GRANTED
        assert isinstance(admitted.answer, Rejected), admitted.answer
        return How.REJECTED

    def how(self, name: str = "a", *, client: int = 0) -> How:
        """What would become of a call now; ASKED when the manager would be. Makes none."""
        lease = self.clients[client].gates[name].lease
        if self.now < lease.term.until:
            return How.LEASED
        return How.REJECTED_HERE if self.now < lease.rejects_until else How.ASKED

    def collect_leases(self) -> None:
        """Have every client report what its callers have left in leases."""
        for client in self.clients:
            client.flush()
        self.collect()

    def acquire(self, name: str = "a", *, client: int = 0, timeout: float = 0.05) -> Waiter:
        """Ask for a permit."""
        waiter = Waiter(f"acquire {name}")
        self.clients[client].gate(name)
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
