"""What the processes of one run have recorded: a header and records, in one file of msgpack.

Instants are seconds on CLOCK_MONOTONIC, which is one clock for all processes of a host. A message
is kept as the bytes that crossed, so that reading it is the only thing that can go wrong with it.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgpack

from switchgear.wire import (
    FROM_CONTROL,
    FROM_DATA,
    TO_CONTROL,
    TO_DATA,
    Event,
    Message,
    decode,
)

SENT: Final = 0  # the kinds of records, their first element
RECEIVED: Final = 1
CALLED: Final = 2

OBSERVER: Final = 0  # the session that listens to events; the others are workers


class Sent(NamedTuple):
    """A message that a process was about to send."""

    session: int
    at: float  # before it was sent
    message: Message


class Received(NamedTuple):
    """A message that a process had received."""

    session: int
    at: float  # after it had come, before anything was done with it
    done: float  # after its process had acted on it
    message: Message
    connection: int = 0  # on which


class Called(NamedTuple):
    """One call of the public API, as its caller saw it.

    Attributes:
        begun, ended: Around the call.
        ran: When the protected function ran; None: it did not, or there is none.
        what: The method.
        result: How it ended, one word.
        detail: More of it, see the worker.
    """

    session: int
    begun: float
    ran: float | None
    ended: float
    what: str
    name: str
    result: str
    detail: Any


@dataclass
class History:
    """One run: everything between two numbers of one manager's.

    Attributes:
        seed: What the run was generated from.
        epoch: The manager's.
        first, last: All its operations with these numbers and between them are this run's.
        names: The circuits that were used, and no others were.
        killed: Sessions whose process was killed, and when at the earliest.
        lost: When the manager was killed, and another one took its place, Unix time; None: never.
        cut: It was killed, and this is the part before that: not everybody was answered.
        resumed: It is the part after that: what everybody had done before is not in it.
        listeners: Sessions that were to be told all of it.
    """

    seed: int
    epoch: int
    first: int
    last: int
    names: list[str]
    killed: dict[int, float] = field(default_factory=dict)
    lost: float | None = None
    cut: bool = False
    resumed: bool = False
    listeners: list[int] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    called: list[Called] = field(default_factory=list)

    def add(self, records: Iterable[list[Any]]) -> None:
        """Take in what a process has recorded."""
        for kind, *values in records:
            if kind == SENT:
                session, at, frame = values
                self.sent.append(Sent(session, at, read(frame)))
            elif kind == RECEIVED:
                session, at, done, connection, frame = values
                self.received.append(Received(session, at, done, read(frame), connection))
            else:
                self.called.append(Called(*values))

    @functools.cached_property
    def sessions(self) -> list[int]:
        """All of them that sent anything."""
        return sorted({each.session for each in self.sent})

    def events(self) -> dict[int, list[Received]]:
        """What the observer was told happened, by the number of the operation."""
        events: defaultdict[int, list[Received]] = defaultdict(list)
        for each in self.received:
            message = each.message
            if (
                each.session == OBSERVER
                and isinstance(message, Event)
                and self.first <= message.operation <= self.last
            ):
                events[message.operation].append(each)
        return events


_ANY: Final = TO_DATA | TO_CONTROL | FROM_DATA | FROM_CONTROL


def read(frame: bytes) -> Message:
    """The message that a record holds."""
    return decode(frame, _ANY)


def unpack(data: bytes) -> tuple[list[Any], bytes]:
    """The whole records at the beginning of some bytes, and what is left: one that was cut off."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    records, end = [], 0
    try:
        for record in unpacker:
            records.append(record)
            end = unpacker.tell()
    except msgpack.OutOfData:
        pass
    return records, data[end:]


def write(path: Path, header: dict[str, Any], records: Iterable[list[Any]]) -> None:
    """Keep a run in a file, for `load`."""
    path.write_bytes(b"".join(map(msgpack.packb, [header, *records])))


def build(header: dict[str, Any], records: Iterable[list[Any]]) -> History:
    """A run of its header and its records."""
    history = History(
        header["seed"],
        header["epoch"],
        header["first"],
        header["last"],
        header["names"],
        dict(header["killed"]),
        header["lost"],
        listeners=header["listeners"],
    )
    history.add(records)
    return history


def load(path: Path) -> History:
    """A run that was kept in a file."""
    (header, *records), rest = unpack(path.read_bytes())
    if rest:
        raise ValueError(f"{path} was cut off")
    return build(header, records)
