"""One input, as bytes and as what is done: so that bytes can be replayed, and steps be mutated.

A step is a byte that says who does what and, by what it is, a length and a frame, or one byte more.
Every sequence of bytes is a script; what it lacks at its end is not done.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from enum import IntEnum
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from client_side import ClientSide
from frames import FRAMES, mutated
from harness import Client, Waiter
from manager_side import EPOCH, ManagerSide

from switchgear.circuit import Totals
from switchgear.client.lease import Lease
from switchgear.client.reports import Whole
from switchgear.client.session import Grant
from switchgear.config import CircuitConfig
from switchgear.manager.actor import Actor, Send
from switchgear.manager.sessions import CONTROL, DATA, Peer
from switchgear.states import Outcome
from switchgear.wire import (
    GetHistory,
    GetList,
    GetMetrics,
    GetStats,
    Message,
    Ping,
    Reset,
    encode,
)

MOST_STEPS: Final = 64
_TENTH: Final = 0.1  # seconds: one of what PASS counts
_FILED: Final = 16  # one script in so many is written into a file too, and read again


class Do(IntEnum):
    """What a step does. The first four are one: frames are what there is to feed most of all."""

    FEED = 0  # a frame
    PASS = 4  # time
    LOSE = 5  # the connection
    KILL = 6  # the process; for a client: connect
    SHUT = 7  # or open an ear; for a client: have its application do something


class Step(NamedTuple):
    """One thing that happens.

    Attributes:
        who: One of the four peers; of a client, one of the two connections.
        do: What.
        frame: For FEED.
        much: For PASS and SHUT.
        more: The next frame comes in the same message.
    """

    who: int
    do: Do
    frame: bytes = b""
    much: int = 0
    more: bool = False


def parse(script: bytes) -> list[Step]:
    """The steps of any bytes."""
    steps: list[Step] = []
    place = 0
    while place < len(script) and len(steps) < MOST_STEPS:
        head = script[place]
        place += 1
        who, what, more = head & 3, head >> 2 & 7, bool(head & 32)
        if what < Do.PASS:
            size = int.from_bytes(script[place : place + 2], "little")
            frame = script[place + 2 : place + 2 + size]
            place += 2 + size
            steps.append(Step(who, Do.FEED, frame, 0, more))
        else:
            much = script[place] if what != Do.KILL and place < len(script) else 0
            place += what != Do.KILL
            steps.append(Step(who, Do(what), b"", much))
    return steps


def pack(steps: Iterable[Step]) -> bytes:
    """The bytes of some steps."""
    parts = []
    for who, do, frame, much, more in steps:
        parts.append(bytes((who & 3 | do << 2 | more << 5,)))
        if do is Do.FEED:
            parts.append(len(frame).to_bytes(2, "little") + frame)
        elif do is not Do.KILL:
            parts.append(bytes((much & 255,)))
    return b"".join(parts)


def mutate(script: bytes, random: Random) -> bytes:
    """A script like another one: another frame, another step, another order."""
    steps = parse(script) or [Step(0, Do.FEED, random.choice(FRAMES))]
    place = random.randrange(len(steps))
    match random.randrange(8):
        case 0:
            steps.insert(place, Step(random.randrange(4), Do.FEED, random.choice(FRAMES)))
        case 1:
            do = random.choice((Do.PASS, Do.LOSE, Do.KILL, Do.SHUT))
            steps.insert(place, Step(random.randrange(4), do, b"", random.randrange(256)))
        case 2:
            del steps[place]
        case 3:
            steps.insert(random.randrange(len(steps) + 1), steps[place])
        case 4:
            step = steps[place]
            steps[place] = step._replace(who=random.randrange(4), more=random.random() < 0.3)
        case _:
            step = steps[place]
            if step.do is Do.FEED:
                steps[place] = step._replace(frame=mutated(step.frame, random))
            else:
                steps[place] = step._replace(much=random.randrange(256))
    return pack(steps)


# -- what is done ----------------------------------------------------------------------------------


def run_manager_side(script: bytes, directory: Path | None = None) -> ManagerSide:
    """Feed a manager, and see that its healthy client and its journal are as they should be.

    Args:
        script: Any bytes.
        directory: Where a file may be written; None: nowhere.

    Raises:
        Whatever escapes the manager, and AssertionError.
    """
    side = ManagerSide()
    feed_manager(side, parse(script))
    side.check_journal()
    if directory is not None and zlib.crc32(script) % _FILED == 0:
        side.check_file(directory / "journal")
    if not side.taken:
        side.still_works()
        side.check_journal()
    return side


def feed_manager(side: ManagerSide, steps: Iterable[Step]) -> None:
    """Do the steps, up to one that has the manager stop."""
    peers = [Peer((DATA, CONTROL)[who // 2], b"bad-%d" % who) for who in range(4)]
    waiting: list[bytes] = []
    for number, (who, do, frame, much, more) in enumerate(steps):
        peer = peers[who]
        match do:
            case Do.FEED:
                waiting.append(frame)
                if not more:
                    side.feed(peer, waiting)
                    waiting = []
            case Do.PASS:
                side.pass_time(much * _TENTH)
            case Do.LOSE:
                side.lose(peer)
                peers[who] = peer._replace(address=b"bad-%d-%d" % (who, number))
            case Do.KILL:
                side.kill(peer)
            case Do.SHUT:
                side.routers[peer.socket].deaf ^= {peer.address}
        if side.actor.stopping:
            return


def run_client_side(script: bytes) -> ClientSide:
    """Feed a client, and see that it works when a real manager comes.

    Raises:
        Whatever escapes the client, and AssertionError.
    """
    side = ClientSide()
    feed_client(side, parse(script))
    side.still_works()
    return side


def feed_client(side: ClientSide, steps: Iterable[Step]) -> None:
    """Do the steps."""
    waiting: list[bytes] = []
    for who, do, frame, much, more in steps:
        connection = (DATA, CONTROL)[who % 2]
        match do:
            case Do.FEED:
                waiting.append(frame)
                if not more:
                    side.feed(connection, waiting)
                    waiting = []
            case Do.PASS:
                side.pass_time(much * _TENTH)
            case Do.LOSE:
                side.cut(connection)
            case Do.KILL:
                side.connect(connection)
            case Do.SHUT:
                side.act(much)


# -- what to begin with ----------------------------------------------------------------------------


def _conversation() -> list[Step]:
    """What a client says that uses everything, to the manager of a `ManagerSide`."""
    side, steps = ManagerSide(), []
    talker = Client(150, lambda: side.now)
    session = talker.session
    peers = (Peer(DATA, b"bad-0"), Peer(CONTROL, b"bad-2"))

    def talk() -> None:
        while session.outbox:
            outbox, session.outbox = session.outbox, []
            for connection, message in outbox:
                frame = encode(message)
                steps.append(Step(2 * connection, Do.FEED, frame))
                side.feed(peers[connection], [frame])
                for told, peer in enumerate(peers):
                    for answer in side.answers.get(peer, []):
                        session.received(told, answer, side.now)

    def do(act: Callable[..., None], *args: object) -> None:
        act(Waiter(), *args)
        talk()
        session.answers.clear()

    def permit() -> Grant:
        waiter = Waiter()
        session.acquire(waiter, "payments", side.now + 1.0, side.now)
        talk()
        ((_, answer),) = session.answers
        session.answers.clear()
        assert isinstance(answer, Grant)
        return answer

    for connection in (DATA, CONTROL):
        session.connected(connection, side.now)
    talk()
    talker.gate("payments")
    session.declare("payments", CircuitConfig(failure_threshold=2, open_timeout=0.5))
    do(session.subscribe)
    held = [permit() for _ in range(4)]
    for outcome in (Outcome.SUCCESS, Outcome.NEUTRAL, Outcome.FAILURE, Outcome.FAILURE):
        talker.report("payments", held.pop(0), outcome, "OSError: down")
        talk()
    steps.append(Step(0, Do.PASS, b"", 6))
    side.pass_time(0.6)
    for _ in range(2):
        talker.report("payments", permit())
        talk()
    session.report_totals(Whole("payments", Totals(3, 1, 1, 1, (0.5,), "down")), now=side.now)
    lease = Lease(talker, "payments", EPOCH, 4)
    lease.successes += [0.001, 0.002]
    lease.rejected.append(None)
    session.collect(lease, now=side.now)
    do(session.flush)
    for build in _QUESTIONS:
        do(session.ask, build)
    session.goodbye()
    talk()
    return steps


def _answers() -> list[Step]:
    """What a manager answers to a client that uses everything, and what that does meanwhile."""
    side, manager, steps = ClientSide(), Actor(1), []

    def talk() -> None:
        while side.said:
            said, side.said = side.said, []
            sends: list[Send] = []
            for connection, message in said:
                sends += manager.receive(Peer(connection, b"client"), message, side.now)
            manager.save()
            sends += manager.saved(side.now)
            for peer, message in sends:
                frame = encode(message)
                steps.append(Step(peer.socket, Do.FEED, frame))
                side.feed(peer.socket, [frame])

    for connection in (DATA, CONTROL):
        steps.append(Step(connection, Do.KILL))
        side.connect(connection)
    talk()
    for what in (6, 0, 0, 0, 1, 2, 5, 3, 4, 20, 7, 8, 0, 1, 5, 7, 2, 3, 0):
        steps.append(Step(0, Do.SHUT, b"", what))
        side.act(what)
        talk()
    return steps


_QUESTIONS: Final[tuple[Callable[[int], Message], ...]] = (
    Ping,
    lambda number: GetStats(number, "payments"),
    lambda number: GetMetrics(number, "payments"),
    lambda number: GetHistory(number, "payments"),
    lambda number: GetList(number, ""),
    lambda number: Reset(number, "payments"),
)
_WELCOMED: Final = 4  # two connections, and a welcome on each


def manager_seeds() -> list[bytes]:
    """Scripts in which a client talks as it should, and each frame after its greeting."""
    conversation = _conversation()
    hello = conversation[:2]
    seeds = [pack(conversation)]
    seeds += [pack(conversation[:length]) for length in range(2, len(conversation), 3)]
    later = ([Step(0, Do.FEED, frame), Step(2, Do.FEED, frame)] for frame in FRAMES)
    return seeds + [pack([*hello, *steps]) for steps in later]


def client_seeds() -> list[bytes]:
    """Scripts in which a manager answers as it should, and each frame after its welcome."""
    conversation = _answers()
    welcome = conversation[:_WELCOMED]
    seeds = [pack(conversation)]
    seeds += [pack(conversation[:length]) for length in range(_WELCOMED, len(conversation), 3)]
    later = ([Step(0, Do.FEED, frame), Step(1, Do.FEED, frame)] for frame in FRAMES)
    return seeds + [pack([*welcome, *steps]) for steps in later]


SEEDS: Final = {"manager": manager_seeds, "client": client_seeds}
