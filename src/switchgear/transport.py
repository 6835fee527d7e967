"""Frames through ZeroMQ sockets, the cheap way, for both shells.

pyzmq's own send_multipart and recv_multipart handle every case; for a few small frames they cost
more than the sending. Its flags are enums, which cost a microsecond whenever they are combined.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Final

import zmq

READABLE: Final = int(zmq.POLLIN)
WRITABLE: Final = int(zmq.POLLOUT)

_NOBLOCK: Final = int(zmq.NOBLOCK)
_MORE_TO_COME: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_RCVMORE: Final = int(zmq.RCVMORE)
_EVENTS: Final = int(zmq.EVENTS)


def send_frames(socket: zmq.Socket[bytes], frames: Sequence[bytes]) -> None:
    """Send one ZeroMQ message, whole or not at all, without waiting.

    Raises:
        zmq.Again: Nobody is connected, or the other side does not read.
        zmq.ZMQError: With EHOSTUNREACH: a ROUTER knows no such peer.
    """
    for frame in frames[:-1]:
        socket.send(frame, _MORE_TO_COME)
    socket.send(frames[-1], _NOBLOCK)


def receive_frames(socket: zmq.Socket[bytes], most: int = sys.maxsize) -> list[bytes]:
    """Receive one ZeroMQ message without waiting, or as many of its frames.

    Raises:
        zmq.Again: None has arrived.
    """
    frames = [socket.recv(_NOBLOCK)]
    while len(frames) < most and socket.getsockopt(_RCVMORE):
        frames.append(socket.recv(_NOBLOCK))
    return frames


def drop_rest(socket: zmq.Socket[bytes], most: int) -> bool:
    """Drop up to so many frames of a message of which some were received; True: that was all."""
    for _ in range(most):
        if not socket.getsockopt(_RCVMORE):
            return True
        socket.recv(_NOBLOCK)
    return not socket.getsockopt(_RCVMORE)


def events_of(socket: zmq.Socket[bytes]) -> int:
    """READABLE and WRITABLE, as they are now; clears the signal on the socket's descriptor."""
    events: int = socket.getsockopt(_EVENTS)  # type: ignore[assignment]  # never bytes
    return events


def have_descriptors(count: int) -> bool:
    """This process may open so many more.

    To be asked before libzmq opens some: where it finds none left half-way, it ends the process.
    """
    opened: list[int] = []
    try:
        opened.extend(os.eventfd(0) for _ in range(count))
    except OSError:
        return False
    finally:
        for fd in opened:
            os.close(fd)
    return True
