"""A manager, and a client, that are sent tens of thousands of frames that are no messages.

Each is refused, and then there is nothing left of it: that is what one sees only after many.
"""

from __future__ import annotations

import gc
import itertools
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Set
from itertools import islice
from typing import Final, NamedTuple

from campaign import resident
from client_side import ClientSide
from frames import FRAMES, changes_at, read, truncations
from harness import FROM, TO
from manager_side import ManagerSide

from switchgear.manager.sessions import CONTROL, DATA, Peer
from switchgear.wire import (
    Acquire,
    Declare,
    Hello,
    Message,
    Subscribe,
    encode,
)

FED: Final = 30_000  # frames; at 100 bytes each they would leave 3 MiB behind
WARM_UP: Final = 10_000  # before the memory is looked at: tables have got their size then
TOGETHER: Final = 5  # in one message
MOST: Final = 2**20  # bytes that may be left behind, all in all: the allocator keeps some
MOST_BLOCKS: Final = FED // 10  # and blocks of Python's own: these it counts

_Feed = Callable[[int, list[bytes]], None]  # a socket, and the frames of one message


class Grown(NamedTuple):
    """What many bad frames have left behind.

    Attributes:
        memory: Bytes of the process: what leaks anywhere, unless it fits into what was free before.
        blocks: How many of Python's small blocks of memory, wherever they come from.
        sizes: The containers that had another size before: then, and now.
    """

    memory: int
    blocks: int
    sizes: dict[str, tuple[int, int]]


def manager_lives() -> Grown:
    """Feed a manager: peers that are in the middle of something, and others each time."""
    side = ManagerSide()
    greeted, subscribed = Peer(DATA, b"greeted"), Peer(CONTROL, b"subscribed")
    hello = encode(Hello(1, 1, 1, b"a bad peer's own", 1, 0))
    declare, acquire = Declare(2, "payments", None), Acquire(6, "payments", 2**40)
    side.feed(greeted, [hello, encode(declare), encode(acquire)])
    side.feed(subscribed, [hello, encode(Subscribe(2, None))])
    numbers = itertools.count()

    def feed(socket: int, frames: list[bytes]) -> None:
        known = (greeted, subscribed)[socket]
        number = next(numbers)
        peer = known if number % 2 else Peer(socket, b"new-%d" % number)
        side.put(peer, frames)
        side.shell.turn(side.now)
        side.answers.clear()
        side._hand_out()

    grown = _grown(feed, TO, lambda: _sizes(side.shell))
    side.check()
    side.still_works()
    return grown


def client_lives() -> Grown:
    """Feed a client, on both of its connections."""
    side = ClientSide()
    for connection in (DATA, CONTROL):
        side.connect(connection)
    for what in (0, 3, 4, 6, 7):  # see ClientSide.act
        side.act(what)
    side.said.clear()

    def feed(connection: int, frames: list[bytes]) -> None:
        for frame in frames:
            side.link._take(connection, frame, side.now)
        side._turn()

    grown = _grown(feed, FROM, lambda: _sizes(side.link))
    side.check()
    side.still_works()
    return grown


LIVES: Final = {"manager": manager_lives, "client": client_lives}


def _grown(
    feed: _Feed, ways: tuple[Set[type[Message]], ...], sizes: Callable[[], dict[str, int]]
) -> Grown:
    bad = [list(_bad_frames(allowed)) for allowed in ways]
    places = [itertools.cycle(range(0, len(frames), TOGETHER)) for frames in bad]

    def feed_many(count: int) -> None:
        for number in range(count // TOGETHER):
            socket = number % 2
            start = next(places[socket])
            feed(socket, bad[socket][start : start + TOGETHER])

    feed_many(WARM_UP)
    before = sizes()
    gc.collect()
    memory, blocks = resident(), sys.getallocatedblocks()
    feed_many(FED)
    gc.collect()
    grown, more = resident() - memory, sys.getallocatedblocks() - blocks
    after = sizes()
    changed = {
        name: (before.get(name, 0), after.get(name, 0))
        for name in before.keys() | after.keys()
        if before.get(name, 0) != after.get(name, 0)
    }
    return Grown(grown, more, changed)


def _bad_frames(allowed: Set[type[Message]]) -> Iterator[bytes]:
    """Some thousand frames that are none of these messages, of every way to be none."""
    for frame in FRAMES:
        changes = (islice(changes_at(frame, place), place, None, 50) for place in range(len(frame)))
        for other in itertools.chain(truncations(frame), *changes):
            if read(other, allowed, Counter()) is None:
                yield other


def _sizes(thing: object) -> dict[str, int]:
    """How long everything is that an object of ours holds, or that one of ours within it does."""
    sizes: dict[str, int] = {}
    seen: set[int] = set()

    def look(thing: object, path: str) -> None:
        if id(thing) in seen:
            return
        seen.add(id(thing))
        names = list(getattr(thing, "__dict__", ()))
        for kind in type(thing).__mro__:
            names += list(getattr(kind, "__slots__", ()))
        for name in names:
            value = getattr(thing, name, None)
            if isinstance(value, (dict, list, set, deque, bytearray)):
                sizes[f"{path}.{name}"] = len(value)
            elif type(value).__module__.partition(".")[0] == "switchgear":
                look(value, f"{path}.{name}")

    look(thing, "")
    return sizes
