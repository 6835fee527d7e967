"""A manager beside whose healthy client others send whatever bytes they like.

The manager's shell, its actor and what it writes into its journal are the real ones; its sockets
and its clock are not, so that one input is one sequence of turns, and the same each time. The
healthy client is a real session: it has circuits in every state, leases, permits that are out, a
probe among them, and a subscription.

What may a peer do to it? Bytes that are no message: nothing at all (G12). A message: what the
protocol says. So whatever comes, its session, its permits and its subscription stay as they are,
unless somebody greets with its token, which is a secret, or has the manager stop; and unless
somebody names them in a message, its circuits stay exactly as they are too.
"""

from __future__ import annotations

import errno
from collections import Counter, deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

import zmq
from frames import read
from harness import FROM, TO, Client, Memory, Waiter

from switchgear.client.session import Grant
from switchgear.config import CircuitConfig
from switchgear.manager.actor import EVENTS_KEPT, Actor
from switchgear.manager.journal import Journal
from switchgear.manager.server import Server
from switchgear.manager.sessions import CONTROL, DATA, Peer, Session
from switchgear.states import Outcome
from switchgear.wire import (
    MAX_FRAME,
    MAX_FRAMES,
    GetStats,
    Hello,
    Message,
    Shutdown,
    StatsOf,
    Subscribe,
    decode,
    encode,
)

BEGIN: Final = 1_000.0  # seconds on the manager's clock
EPOCH: Final = 7
LONG: Final = 100_000.0  # seconds: more than passes in any input
CLIENTS: Final = 8  # sessions there may be, the healthy one among them
CIRCUITS: Final = 64

LEASED, STRICT, OPEN, PROBED = "kept leased", "kept strict", "kept open", "kept half-open"
KEPT: Final = {
    LEASED: CircuitConfig(),
    STRICT: CircuitConfig(consistency="strict"),
    OPEN: CircuitConfig(failure_threshold=1, open_timeout=LONG),
    PROBED: CircuitConfig(failure_threshold=1, open_timeout=1.0, permit_timeout=LONG),
}
HEALTHY: Final = (Peer(DATA, b"healthy"), Peer(CONTROL, b"healthy"))


class Received:
    """What ZeroMQ hands over where it is asked not to copy."""

    def __init__(self, frame: bytes, more: bool) -> None:
        self.bytes, self.more = frame, more


class Router:
    """In the place of a ROUTER socket: what is put in arrives, what is sent is kept.

    Attributes:
        inbox: Whole messages: who has sent it, and the frames.
        sent: The same, on their way out.
        gone: Who is not connected any more.
        deaf: Who does not read.
    """

    def __init__(self) -> None:
        self.inbox: deque[list[bytes]] = deque()
        self.sent: list[list[bytes]] = []
        self.gone: set[bytes] = set()
        self.deaf: set[bytes] = set()
        self._arriving: deque[bytes] = deque()
        self._leaving: list[bytes] = []

    def getsockopt(self, option: int) -> int:
        if option == zmq.RCVMORE:
            return int(bool(self._arriving))
        return int(zmq.POLLIN) if self.inbox else 0

    def recv(self, flags: int, copy: bool = True) -> bytes | Received:
        if not self._arriving:
            if not self.inbox:
                raise zmq.Again
            self._arriving.extend(self.inbox.popleft())
        frame = self._arriving.popleft()
        return frame if copy else Received(frame, bool(self._arriving))

    def send(self, frame: bytes, flags: int) -> None:
        if not self._leaving and frame in self.gone:
            raise zmq.ZMQError(errno.EHOSTUNREACH)
        if not self._leaving and frame in self.deaf:
            raise zmq.Again
        self._leaving.append(frame)
        if not flags & zmq.SNDMORE:
            self.sent.append(self._leaving)
            self._leaving = []


class Processes:
    """In the place of the processes of those who greet: each lives, unless it is said to be dead.

    Attributes:
        dead: The next one that greets has ended before we looked.
    """

    def __init__(self) -> None:
        self.dead = False

    def meet(self, session: bytes, frame: object, started: int) -> bool:
        alive, self.dead = not self.dead, False
        return alive

    def share(self, session: bytes, other: bytes) -> None:
        pass

    def forget(self, session: bytes) -> None:
        pass

    def watches(self, session: bytes) -> bool:
        return False


class Book(Memory):
    """A journal that can always be written."""

    retry_at = None


class Shell(Server):
    """The real one, but for what is the machine's: sockets, processes, files, the time of day."""

    def __init__(self, actor: Actor, book: Book) -> None:
        self._actor = actor
        self._journal = book  # type: ignore[assignment]
        self._sockets = (Router(), Router())  # type: ignore[assignment]
        self._peers = Processes()  # type: ignore[assignment]
        self._doors = []
        self._ended = deque()
        self._unread = {DATA, CONTROL}
        self._oversized: set[int] = set()
        self._cleared_at = BEGIN
        self._rests_until = 0.0
        self._now = BEGIN

    def turn(self, now: float) -> None:
        """As `_turn`, at a time that is given."""
        self._now = now
        self._send(self._actor.tick(now), now)
        self._take_all(now)
        self._bury(now)
        self._take_all(now)
        self._save(now)

    def _take_all(self, now: float) -> None:
        while self._unread:
            for socket in (CONTROL, DATA):
                self._take(socket, now)

    def _clock(self) -> float:
        return self._now

    def _correct_clock(self, now: float) -> None:
        pass


class View(NamedTuple):
    """What the healthy client has at the manager, as far as nobody else may change it."""

    session: Session | None  # the very object
    reports: int
    granted: dict[int, object]
    subscribed: bool


class ManagerSide:
    """See the module.

    Attributes:
        now: Seconds on the manager's clock.
        named: The circuits of the healthy client that were named in messages of others.
        taken: Its token was said, or Shutdown was: nothing is promised any more.
        told: The version of the last event that the healthy client was told.
        answers: What everybody else was told since the last `feed` began.
        counted: How many frames were messages, and how many were none.
    """

    def __init__(self) -> None:
        self.now = BEGIN
        self.book = Book()
        self.actor = Actor(EPOCH, 1, max_clients=CLIENTS, max_circuits=CIRCUITS)
        self.book.write(self.actor.everything())
        self.shell = Shell(self.actor, self.book)
        self.routers: tuple[Router, Router] = self.shell._sockets  # type: ignore[assignment]
        self.named: set[str] = set()
        self.taken = False
        self.counted: Counter[str] = Counter()
        self.told = 0
        self.answers: dict[Peer, list[Message]] = {}
        self.permits: list[tuple[str, Grant]] = []
        self._heard: Counter[Peer] = Counter()  # how much everybody else was told
        self._may_hear: Counter[Peer] = Counter()
        self.healthy = Client(200, lambda: self.now)
        self._settle_in()
        self.view = self._look()
        self.circuits = {name: self._circuit(name) for name in KEPT}

    # -- the healthy client ------------------------------------------------------------------------

    def _settle_in(self) -> None:
        session = self.healthy.session
        for connection in (DATA, CONTROL):
            session.connected(connection, self.now)
        for name, config in KEPT.items():
            self.healthy.gate(name)
            session.declare(name, config)
        self.converse()
        session.subscribe(Waiter("subscribe"))
        for name in (OPEN, PROBED):
            self.healthy.report(name, self._granted(name), Outcome.FAILURE, "OSError: down")
        self.converse()
        self.now += 1.0
        self.permits = [(name, self._granted(name)) for name in (STRICT, STRICT, LEASED, PROBED)]
        self.converse()

    def _granted(self, name: str) -> Grant:
        waiter = Waiter(f"acquire {name}")
        self.healthy.session.acquire(waiter, name, self.now + 1.0, self.now)
        self.converse()
        assert isinstance(waiter.answer, Grant), waiter.answer
        return waiter.answer

    def converse(self) -> None:
        """Have turns until nothing of the healthy client's is under way."""
        session = self.healthy.session
        for _ in range(100):
            outbox, session.outbox = session.outbox, []
            for connection, message in outbox:
                self.put(HEALTHY[connection], [encode(message)])
            self.shell.turn(self.now)
            self._hand_out()
            while session.answers:
                waiter, answer = session.answers.pop(0)
                waiter.complete(answer)
            if not session.outbox:
                return
        raise AssertionError("no end to it")

    def still_works(self) -> None:
        """The healthy client reports what it holds, and all of it is counted; then it asks."""
        before = {name: self.actor._circuits[name].totals().successes for name in KEPT}
        verdicts: list[object] = []
        for name, grant in self.permits:
            self.healthy.report(name, grant, settled=verdicts.append)
        self.permits = []
        flushed = Waiter("flush")
        self.healthy.session.flush(flushed)
        self.converse()
        assert flushed.answered, "its reports were not taken in"
        for name in KEPT.keys() - self.named:
            held = {STRICT: 2, LEASED: 1, PROBED: 1}.get(name, 0)
            assert self.actor._circuits[name].totals().successes == before[name] + held
            waiter = Waiter(f"stats {name}")
            self.healthy.session.ask(waiter, lambda number, name=name: GetStats(number, name))
            self.converse()
            assert isinstance(waiter.answer, StatsOf), waiter.answer
            assert waiter.answer.stats.in_flight == 0
        if not self.named:
            assert [verdict.name for verdict in verdicts] == ["COUNTED"] * len(verdicts)
        self.actor.check()
        self.healthy.session.check()

    # -- what others send --------------------------------------------------------------------------

    def put(self, peer: Peer, frames: Iterable[bytes]) -> None:
        """Let a message arrive: it is read in the next turn."""
        self.routers[peer.socket].inbox.append([peer.address, *frames])
        self.shell._unread.add(peer.socket)

    def feed(self, peer: Peer, frames: list[bytes]) -> None:
        """Let somebody send one ZeroMQ message, and look what it has done.

        Raises:
            Whatever escapes the manager, and AssertionError.
        """
        messages = [read(frame, TO[peer.socket], self.counted) for frame in frames[:MAX_FRAMES]]
        meant = [message for message in messages if message is not None]
        router = self.routers[peer.socket]
        hears = peer.address not in router.gone | router.deaf  # else it is disconnected
        before = self._fingerprint() if hears and not meant and not self._has_work else None
        for message in meant:
            self._note(message)
        self.answers = {}
        self.put(peer, frames)
        self.shell.turn(self.now)
        sent = self._hand_out()
        self.check()
        if before is not None:
            # Nothing at all has come of it, but one refusal of each.
            assert self._fingerprint() == before
            assert sent == Counter({peer: len(messages)}), sent
        # An answer each, now or later, and perhaps a lease; and of every event what it asked for.
        self._may_hear[peer] += 3 * len(messages)
        self._may_hear[peer] += EVENTS_KEPT * sum(isinstance(one, Subscribe) for one in meant)
        self._heard.update(sent)  # and not +=, which goes over all of them
        for receiver in sent:
            most = self._may_hear[receiver] + 2 * self.actor._version
            assert self._heard[receiver] <= most, f"{receiver} is told {self._heard[receiver]}"

    def pass_time(self, seconds: float) -> None:
        """Let time pass, and the manager see it."""
        self.now += seconds
        self.shell.turn(self.now)
        self._hand_out()
        self.check()

    def lose(self, peer: Peer) -> None:
        """A connection breaks; the manager hears of it when it sends something."""
        self.routers[peer.socket].gone.add(peer.address)

    def kill(self, peer: Peer) -> None:
        """The process ends that has greeted there; of one that has not greeted, the next does."""
        session = self.actor.session_of(peer)
        if session is None:
            self.shell._peers.dead = True  # type: ignore[attr-defined]
        else:
            self.shell._ended.append((self.now - 1.0, session.token))
            self.pass_time(0.0)

    def end_others(self) -> None:
        """Everybody's process ends but the healthy client's."""
        for token in self.actor._sessions.keys() - {self.healthy.session._token}:
            self.shell._ended.append((self.now - 1.0, token))
        self.pass_time(0.0)

    @property
    def _has_work(self) -> bool:
        save_by = self.actor.save_by
        return save_by is not None and save_by <= self.now

    def _note(self, message: Message) -> None:
        name = getattr(message, "name", None)
        if name in KEPT:
            self.named.add(name)
        said = isinstance(message, Hello) and message.session == self.healthy.session._token
        self.taken |= said or isinstance(message, Shutdown)

    def _hand_out(self) -> Counter[Peer]:
        """Take what was sent; what the healthy client gets of it, it hears. How many to whom?"""
        sent: Counter[Peer] = Counter()
        for socket, router in enumerate(self.routers):
            messages, router.sent = router.sent, []
            for address, *frames in messages:
                peer = Peer(socket, address)
                for frame in frames:
                    assert len(frame) <= MAX_FRAME
                    message = decode(frame, FROM[socket])
                    if peer in HEALTHY:
                        self.healthy.session.received(socket, message, self.now)
                    else:
                        self.answers.setdefault(peer, []).append(message)
                if peer not in HEALTHY:
                    sent[peer] += len(frames)
        for event in self.healthy.session.events:
            self.told += 1
            assert event.version == self.told
            assert event.operation <= self.actor._operation
        self.healthy.session.events.clear()
        return sent

    # -- what must be so ---------------------------------------------------------------------------

    def check(self) -> None:
        """Assert what is true after whatever was fed."""
        self.actor.check()
        self.healthy.session.check()
        if self.taken:
            return
        assert self._look() == self.view, (self._look(), self.view)
        for name in KEPT.keys() - self.named:
            assert self._circuit(name) == self.circuits[name], name
        assert self.told == self.actor._version, "it was not told of an event"
        assert not self.healthy.session.outbox, "it was made to speak"

    def check_journal(self) -> None:
        """A successor that reads what was written stands where this manager stands."""
        self.book.write(self.actor.save())
        successor = Actor(EPOCH + 1)
        successor.restore(self.book.read(EPOCH, EPOCH), self.now)
        successor.check()
        assert successor._names == self.actor._names
        for name, circuit in self.actor._circuits.items():
            other = successor._circuits[name]
            assert other.standing() == circuit.standing()
            assert other.counts() == circuit.counts()
        for token, session in successor._sessions.items():
            assert session.reports == self.actor._sessions[token].reports
        assert successor._version == self.actor._version
        assert successor._histories == self.actor._histories

    def check_file(self, path: Path) -> None:
        """The same of a file: it is written and read again."""
        self.book.write(self.actor.save())  # what is handed over now is not once more
        everything = self.actor.everything()
        journal = Journal(str(path))
        journal.open(0.0)
        journal.begin(EPOCH, EPOCH, 0.0, everything)
        assert journal.retry_at is None, "it could not be written"
        journal.close()
        saved = Journal(str(path))
        try:
            found = saved.open(0.0)
        finally:
            saved.close()
        assert found is not None, "it could not be read"
        counts = dict(everything.counts)
        assert found.circuits == {name: (s, counts[name]) for name, s in everything.standings}
        assert sorted(found.sessions) == sorted(everything.sessions)
        assert found.events == everything.events

    def _look(self) -> View:
        data, control = HEALTHY
        session = self.actor.session_of(data)
        reports, granted = (0, {}) if session is None else (session.reports, dict(session.granted))
        return View(session, reports, granted, control in self.actor._subscribers)

    def _circuit(self, name: str) -> tuple[object, ...]:
        circuit = self.actor._circuits[name]
        leased = HEALTHY[DATA] in self.actor._leases.holders(name)
        return circuit.standing(), circuit.counts(), circuit._in_flight, circuit._silent, leased

    def _fingerprint(self) -> tuple[object, ...]:
        """All that the manager has, in few words: what bytes that are no message may not change."""
        actor, unsaved = self.actor, self.actor._unsaved
        return (
            *(actor._operation, actor._version, actor.stopping, actor.save_by, actor._heard_at),
            *(len(actor._timers), dict(actor._armed), list(actor._names), len(actor._events)),
            *(dict(actor._subscribers), dict(actor._permits), dict(actor._connected)),
            *(unsaved.news, len(unsaved._counts), len(unsaved._sessions), len(unsaved._events)),
            [
                (
                    session.token,
                    session.reports,
                    session.requests,
                    session.heard_at,
                    session.granted,
                )
                for session in actor._sessions.values()
            ],
            {peer: len(waiting.messages) for peer, waiting in actor._acks._waiting.items()},
            {name: list(holders) for name, holders in actor._leases._holders.items()},
            [circuit.stats(0.0, 0.0) for circuit in actor._circuits.values()],
        )
