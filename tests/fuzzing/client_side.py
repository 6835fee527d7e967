"""A client to which what answers in the manager's place sends whatever bytes it likes.

The session is the real one, and so is how the link takes frames in, sends and hands over; sockets
and clock are not. Its application has asked, holds permits and leases, and has reported.

Bytes that are no message change nothing. Whatever else comes: nothing is raised, nobody is answered
twice, what the client says is messages and little of it, and a real manager that comes afterwards
finds a client that works.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import zmq
from frames import read
from harness import FROM, TO, Client, Waiter

from switchgear.client.link import Link
from switchgear.client.session import RETRY_MAX, Grant
from switchgear.config import CircuitConfig
from switchgear.manager.actor import Actor
from switchgear.manager.sessions import CONTROL, DATA, Peer
from switchgear.states import Outcome
from switchgear.wire import (
    GetList,
    GetStats,
    Message,
    Ping,
    decode,
    encode,
)

BEGIN: Final = 1_000.0  # seconds on the client's clock
NAMES: Final = ("payments", "a")
CONNECTIONS: Final = (DATA, CONTROL)


def _get_list(number: int) -> Message:
    return GetList(number, "")


class Dealer:
    """In the place of a DEALER socket: what is sent is kept."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, frame: bytes, flags: int) -> None:
        assert not isinstance(frame, zmq.Frame)
        self.sent.append(frame)


class Handle(Link):
    """The real one, but for its sockets, its thread and its clock."""

    def __init__(self, client: Client) -> None:
        self._session = client.session
        self._address = "nowhere"  # type: ignore[assignment]
        self._sockets = {DATA: Dealer(), CONTROL: Dealer()}  # type: ignore[dict-item]
        self._online = {DATA: False, CONTROL: False}
        self._away = self._outage = False
        self._outage_level = logging.DEBUG
        self._watching = None
        self._on_events = client.events.extend
        self._on_loss = None
        self._on_return = lambda: None


class Caller(Waiter):
    """Somebody who has asked; see `Waiter`, and `Claim.complete`: a second answer is ignored."""


class ClientSide:
    """See the module.

    Attributes:
        now: Seconds on the client's clock.
        counted: How many frames were messages, and how many were none.
        held: Permits that callers have, by circuit.
    """

    def __init__(self) -> None:
        self.now = BEGIN
        self.counted: Counter[str] = Counter()
        self.client = Client(100, lambda: self.now)
        self.session = self.client.session
        self.link = Handle(self.client)
        self.held: deque[tuple[str, Grant]] = deque()
        self.callers: list[tuple[str, Caller]] = []
        self.settled: list[object] = []
        self.reported = 0  # that wants to know the verdict
        self.said: list[tuple[int, Message]] = []
        for name in NAMES:
            self.client.gate(name)
            self.session.declare(name, CircuitConfig())

    # -- what may happen ---------------------------------------------------------------------------

    def connect(self, connection: int) -> None:
        """The connection is there; what is at its other end, nobody knows."""
        if not self.link._online[connection]:
            self.link._note(connection, True)
            self.session.connected(connection, self.now)
        self._turn()

    def cut(self, connection: int) -> None:
        """It breaks."""
        if self.link._online[connection]:
            self.link._note(connection, False)
            self.session.disconnected(connection)
        self._turn()

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def feed(self, connection: int, frames: list[bytes]) -> None:
        """Let one ZeroMQ message arrive.

        Raises:
            Whatever escapes the client, and AssertionError.
        """
        if not self.link._online[connection]:
            return
        session = self.session
        waiting = len(session._asked) + len(session._held) + len(session._flushes)
        owed = len(session._reports) + waiting
        owed += len(self.session._declared) + len(self.session._abandoned)
        messages = [read(frame, FROM[connection], self.counted) for frame in frames]
        quiet = all(message is None for message in messages)
        before = self._fingerprint() if quiet else None
        for frame in frames:
            self.link._take(connection, frame, self.now)
        if before is not None:
            assert self._fingerprint() == before
        said = self._turn()
        # A Welcome may have all of it said again; nothing may have more.
        assert said <= (owed + 4) * (1 + len(frames)), f"{said} messages for {len(frames)}"
        self.check()

    def act(self, what: int) -> None:
        """Let the application do one of the things that it may."""
        name = NAMES[what // 8 % len(NAMES)]
        actions: tuple[Callable[[str], None], ...] = (
            self._acquire,
            lambda name: self._report(Outcome.SUCCESS),
            lambda name: self._report(Outcome.FAILURE),
            lambda name: self._ask(lambda number: GetStats(number, name), (name,)),
            lambda name: self._ask((Ping, _get_list)[what // 16 % 2], ()),
            self._call_under_lease,
            lambda name: self.session.subscribe(self._caller("subscribe")),
            lambda name: self.session.flush(self._caller("flush")),
        )
        actions[what % 8](name)
        self._turn()
        self.check()

    def _caller(self, what: str) -> Caller:
        caller = Caller(what)
        self.callers.append((what, caller))
        return caller

    def _acquire(self, name: str) -> None:
        self.session.acquire(self._caller(name), name, self.now + 0.05, self.now)

    def _report(self, outcome: Outcome) -> None:
        if self.held:
            name, grant = self.held.popleft()
            self.reported += 1
            error = "OSError: down" if outcome is Outcome.FAILURE else None
            self.client.report(name, grant, outcome, error, self.settled.append)

    def _ask(self, build: Callable[[int], Message], circuits: tuple[str, ...]) -> None:
        self.session.ask(self._caller("ask"), build, circuits)

    def _call_under_lease(self, name: str) -> None:
        lease = self.client.gates[name].lease
        if self.now < lease.term.until:
            lease.successes.append(0.001)
            if not lease.noted:
                lease.rouse()
            self.client.flush()
        elif self.now < lease.rejects_until:
            lease.reject(self.now)
            self.client.flush()

    # -- a real manager ----------------------------------------------------------------------------

    def still_works(self) -> None:
        """With a manager that does as it should, everything is asked, answered and counted."""
        for connection in CONNECTIONS:
            self.cut(connection)
        self.now += 2 * RETRY_MAX  # whoever was turned away knocks again
        manager = Actor(2**62 + 1)
        callers = [*self.callers]
        knock, probe = self._caller("knock"), self._caller("a permit")
        self.session.acquire(knock, NAMES[0], self.now + 1.0, self.now)
        self._meet(manager)
        self.session.acquire(probe, NAMES[0], self.now + 1.0, self.now)
        self._meet(manager)
        assert isinstance(probe.answer, Grant), probe.answer
        assert probe.answer.epoch == manager.epoch
        self.client.report(NAMES[0], probe.answer)
        flushed = Caller("flush")
        self.session.flush(flushed)
        self._meet(manager)
        assert flushed.answered
        assert not len(self.session._reports)
        assert manager._circuits[NAMES[0]].totals().successes >= 1
        for what, caller in callers:
            assert caller.answered, f"{what} was never answered"
        assert len(self.settled) <= self.reported
        manager.check()
        self.check()

    def _meet(self, manager: Actor) -> None:
        """Connect what wants to be, and let everything be said."""
        for _ in range(100):
            for connection in self.session.needed(self.now):
                self.connect(connection)
            if not self._exchange(manager):
                return
        raise AssertionError("no end to it")

    def _exchange(self, manager: Actor) -> int:
        """Hand over what was said, and back what is answered; how much was it?"""
        self._turn()
        said, self.said = self.said, []
        answers = []
        for connection, message in said:
            peer = Peer(connection, b"client")
            answers += manager.receive(peer, message, self.now)
        manager.save()
        answers += manager.saved(self.now)
        for peer, answer in answers:
            if self.link._online[peer.socket]:
                self.link._take(peer.socket, encode(answer), self.now)
        self._turn()
        return len(said) + len(answers)

    # -- what must be so ---------------------------------------------------------------------------

    def check(self) -> None:
        """Assert what is true after whatever was fed."""
        self.session.check()
        assert len(self.settled) <= self.reported, "a report was settled twice"

    def _turn(self) -> int:
        """Send, and hand over, as the link does in a turn; how many messages were said?"""
        count = 0
        while self.session.outbox:
            outbox = self.session.outbox
            self.link._send()
            for connection, message in outbox:
                assert self.link._online[connection], f"said to nobody: {message}"
            for connection in CONNECTIONS:
                dealer: Dealer = self.link._sockets[connection]  # type: ignore[assignment]
                sent, dealer.sent = dealer.sent, []
                self.said += [(connection, decode(frame, TO[connection])) for frame in sent]
                count += len(sent)
            self.link._hand_over()
        self.link._hand_over()
        for what, caller in self.callers:
            if isinstance(caller.answer, Grant):
                self.held.append((what, caller.answer))
        self.callers = [(what, caller) for what, caller in self.callers if not caller.answered]
        return count

    def _fingerprint(self) -> tuple[object, ...]:
        session = self.session
        return (
            *(len(session.outbox), len(session.answers), len(session.events), set(session.wanted)),
            *(session.lost, session.away, session.refusal, session._clock_offset),
            *(session._last_number, list(session._asked), len(session._held), session._seen),
            len(session._flushes),
            *(dict(session._abandoned), set(session._declared), dict(session._declaring)),
            *(dict(session._full), session._syncing, session._subscribed),
            *(session._reports.acknowledged, session._reports.sent, len(session._reports)),
            [(line.phase, line.epoch, line.origin) for line in session._lines],
            *(dict(session._leases._leases), dict(session._leases._generations)),
            [
                (gate.lease, gate.lease.term.until, gate.open_until, list(gate.failing))
                for gate in self.client.gates.values()
            ],
        )
