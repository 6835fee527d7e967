"""A door: a socket in the file system, shut before the descriptors run out.

libzmq accepts whoever connects, on a thread of its own, and ends the process when there is no
descriptor left for that (src/ipc_listener.cpp). To unbind would end the connections that there are,
so a door is shut by giving its file another name: who is inside notices nothing, and who comes
finds nobody there and tries again.

It takes a moment until the loop has seen how many have come, and until then more come in. How many
at most? libzmq tells of each one on a queue, and accepts nobody as long as that is full.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from typing import Final

import zmq

from ..address import SHUT

log = logging.getLogger("switchgear.manager")

LOOK_AGAIN: Final = 0.1  # seconds until a door that is shut may be opened
LOG_AGAIN: Final = 60.0  # seconds between two lines that say so

_NOBLOCK: Final = int(zmq.NOBLOCK)


class Door:
    """Watches the door of one socket.

    Args:
        context: The socket's.
        socket: It, before it is bound.
        path: Where it will be bound.
        enough: Descriptors in use at which the door is shut.

    Attributes:
        path: Where people look for it.
        shut: It is.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        socket: zmq.Socket[bytes],
        path: str,
        enough: int,
    ) -> None:
        self.shut = False
        self.path = path
        self._file: tuple[int, int] | None = None  # ours, once there is one
        self._enough = enough
        self._logged_at = -LOG_AGAIN
        self._socket = socket
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path + SHUT)  # of one who was killed
        name = f"inproc://door-{path}"
        socket.monitor(name, zmq.EVENT_ACCEPTED)
        self._bell = context.socket(zmq.PAIR)
        self._bell.setsockopt(zmq.LINGER, 0)
        self._bell.setsockopt(zmq.RCVHWM, 1)  # and a thousand on libzmq's side, who sends
        self._bell.connect(name)

    def bound(self) -> None:
        """The socket has made its file."""
        self._file = identity(self.path)

    @property
    def lost(self) -> bool:
        """Somebody has removed its file, or put another one in its place."""
        return identity(self.path + SHUT if self.shut else self.path) != self._file

    def fileno(self) -> int:
        """Readable when somebody has come in; `look` then, and every LOOK_AGAIN while shut."""
        return int(self._bell.fd)

    def look(self) -> None:
        """Shut the door if that is due, or open it."""
        # First this and then the queue: as long as that is full, nobody else comes in.
        used = descriptors_in_use()
        if self.shut and used < self._enough - self._enough // 16:
            _rename(self.path + SHUT, self.path)
            self.shut = False
        elif not self.shut and used >= self._enough:
            _rename(self.path, self.path + SHUT)
            self.shut = True
            self._log(used)
        self._hear()

    def close(self) -> None:
        """Take the door away, but no successor's. To be called before the socket is closed."""
        for name in (self.path, self.path + SHUT):
            if identity(name) == self._file:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
        self._hear()  # with a full queue libzmq's thread would not hear of our end
        self._socket.monitor(None, 0)
        self._bell.close()

    def _hear(self) -> None:
        with contextlib.suppress(zmq.Again):
            while True:
                self._bell.recv_multipart(_NOBLOCK)

    def _log(self, used: int) -> None:
        now = time.monotonic()
        if now - self._logged_at >= LOG_AGAIN:  # the next one may come in a moment
            self._logged_at = now
            log.warning("%d descriptors are in use: who connects now has to wait", used)


def descriptors_in_use() -> int:
    """How many this process has open; 0 where there is no /proc, so nobody knows."""
    try:
        return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
    except OSError:  # a size of 0 is that of a kernel before Linux 6.2
        return 0


def identity(file: str | int) -> tuple[int, int] | None:
    """What tells a file from another one of the same name; None: there is none."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _rename(old: str, new: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # somebody has taken it away
        os.rename(old, new)
