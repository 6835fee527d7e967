"""Writes down what the client of this process sends and receives, without the client knowing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from unittest import mock

import msgpack

from switchgear.client import link
from switchgear.wire import Message, encode

from .history import CALLED, RECEIVED, SENT


class Recorder:
    """Where the records of one session go.

    Args:
        session: Its number.
        write: Takes the bytes of one record, whole; what it has taken outlives the process.
    """

    def __init__(self, session: int, write: Callable[[bytes], object]) -> None:
        self.session = session
        self._write = write

    def called(
        self,
        begun: float,
        ran: float | None,
        what: str,
        name: str,
        result: str,
        detail: object = None,
    ) -> None:
        """Note a call of the public API that has ended just now."""
        ended = time.monotonic()
        record = [CALLED, self.session, begun, ran, ended, what, name, result, detail]
        self._write(msgpack.packb(record))

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Note all that clients of this process send and receive meanwhile."""
        take = link.Link._take

        def encode_and_note(message: Message) -> bytes:
            frame = encode(message)
            self._write(msgpack.packb([SENT, self.session, time.monotonic(), frame]))
            return frame

        def note_and_take(self_: link.Link, connection: int, frame: bytes, now: float) -> None:
            at = time.monotonic()
            take(self_, connection, frame, now)
            done = time.monotonic()
            self._write(msgpack.packb([RECEIVED, self.session, at, done, connection, frame]))

        with (
            mock.patch.object(link, "encode", encode_and_note),
            mock.patch.object(link.Link, "_take", note_and_take),
        ):
            yield
