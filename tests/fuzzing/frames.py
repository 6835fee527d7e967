"""Frames to feed: the golden ones, all that lie one step beside them, and some further away."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Set
from random import Random
from typing import Any, Final

import msgpack
from test_wire import GOLDEN

from switchgear.wire import Malformed, Message, decode

FRAMES: Final = tuple(bytes.fromhex(golden) for _, golden in GOLDEN)  # of every kind, one or more

# What a field may be put to: each border that some field has, and what none may hold.
VALUES: Final[tuple[object, ...]] = (
    *(None, True, False, 0, 1, 2, 3, 127, 128, 255, 256, -1, -(2**63)),
    *(10**9, 10**9 + 1, 10**15, 10**15 + 1, 2**31, 2**32, 2**62, 2**62 + 1, 2**63 - 1, 2**63),
    *(2**64 - 1, 1.5, float("nan"), float("inf"), "", "a", "payments", "a\nb", "ü" * 64, "x" * 128),
    *("x" * 129, "x" * 512, "x" * 513, "x" * 2049, "failures", "reset", b"", bytes(16), bytes(65)),
    *((), (1,), (0,) * 100, (0,) * 101, (5, 2, 10**15, 1, 1, 0, 1), (1, 1, 1, 1, 1, 1, 0)),
)


def read(frame: bytes, allowed: Set[type[Message]], counted: Counter[str]) -> Message | None:
    """The message in a frame, and counted by its kind; None: there is none."""
    try:
        message = decode(frame, allowed)
    except Malformed:
        counted["no message"] += 1
        return None
    counted[type(message).__name__] += 1
    return message


def truncations(frame: bytes) -> Iterator[bytes]:
    """What is left of a frame, cut short anywhere."""
    return (frame[:length] for length in range(len(frame)))


def changes_at(frame: bytes, place: int) -> Iterator[bytes]:
    """The 255 other frames that have another byte in one place."""
    before, after = frame[:place], frame[place + 1 :]
    return (before + bytes((byte,)) + after for byte in range(256) if byte != frame[place])


def mutated(frame: bytes, random: Random) -> bytes:
    """A frame like another one: a field, a byte or a piece of it is another."""
    match random.randrange(6):
        case 0:
            return _with_another_byte(frame, random)
        case 1:
            start, end = sorted(random.choices(range(len(frame) + 1), k=2))
            return frame[:start] + random.choice(FRAMES)[start:end] + frame[end:]
        case 2:
            return frame[: random.randrange(len(frame) + 1)]
        case _:
            return _with_another_field(frame, random)


def _with_another_byte(frame: bytes, random: Random) -> bytes:
    if not frame:
        return bytes((random.randrange(256),))
    place = random.randrange(len(frame))
    return frame[:place] + bytes((random.randrange(256),)) + frame[place + 1 :]


def _with_another_field(frame: bytes, random: Random) -> bytes:
    """It, with a value in a place of a value; of bytes that are no array, another byte."""
    try:
        array: Any = msgpack.unpackb(frame, use_list=True, strict_map_key=False)
        if not isinstance(array, list) or not array:
            return _with_another_byte(frame, random)
        row = array
        while True:
            place = random.randrange(len(row))
            if not isinstance(row[place], list) or not row[place] or random.random() < 0.2:
                break
            row = row[place]
        row[place] = _like(row[place], random)
        packed: bytes = msgpack.packb(array)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException):
        return _with_another_byte(frame, random)
    return packed


def _like(value: object, random: Random) -> object:
    if type(value) is int and random.random() < 0.5:
        return value + random.choice((-2, -1, 1, 2))  # the next number, of a report or a request
    return random.choice(VALUES)
