"""Which processes are connected, and noticing at once when one of them ends.

Who is at the other end of a connection the kernel says, and not the client. A pidfd is readable
when its process has ended, however that came and whatever children it left behind, which keep its
connection open. Where there is no pidfd nobody is noticed here: permits come back by deadline.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import struct
from typing import Final

import zmq

from ..processes import start_of

log = logging.getLogger("switchgear.manager")

_SO_PEERPIDFD: Final = 77  # Linux 6.5; socket has no name for it
_CREDENTIALS: Final = struct.Struct("3i")  # of SO_PEERCRED: process, user, group


class Peers:
    """The processes of the sessions, each behind a pidfd, and all behind one descriptor.

    Each session has a pidfd of its own, also where one process has several sessions: that two of
    them are of one process its number does not say. It may have been another's a moment ago, and
    all processes that another pid namespace hides have the number 0.
    """

    def __init__(self) -> None:
        self._all = select.epoll()
        self._pidfds: dict[bytes, int] = {}  # by session
        self._sessions: dict[int, bytes] = {}  # by pidfd
        self._blind = False  # as last logged

    def fileno(self) -> int:
        """Readable when a process has ended."""
        return self._all.fileno()

    def watches(self, session: bytes) -> bool:
        """The end of the session's process has not been told yet, and will be."""
        return session in self._pidfds

    def meet(self, session: bytes, frame: zmq.Frame | None, started: int) -> bool:
        """Watch the process that has sent a frame, and no longer the one it was until now.

        Args:
            session: What it calls itself.
            frame: One that came over its connection; None: there is none at hand.
            started: When it says it was started, as `start_of` has it; 0: it does not know.

        Returns:
            False: it has ended already.
        """
        try:
            if frame is None:
                raise OSError(errno.ENODATA, "nobody knows its process")
            self._watch(session, _open(frame, started))
        except ProcessLookupError:
            self.forget(session)
            return False
        except OSError as error:  # an old kernel, a sandbox, or no descriptor left
            self._go_blind(error)
        else:
            self._blind = False
        return True

    def share(self, session: bytes, other: bytes) -> None:
        """Watch the process of another session, over whose connection this one has come."""
        pidfd = self._pidfds.get(other)
        if pidfd is not None:
            try:
                self._watch(session, os.dup(pidfd))
            except OSError as error:
                self._go_blind(error)

    def forget(self, session: bytes) -> None:
        """Watch a session's process no more."""
        pidfd = self._pidfds.pop(session, None)
        if pidfd is not None:
            del self._sessions[pidfd]
            self._all.unregister(pidfd)
            os.close(pidfd)

    def ended(self) -> list[bytes]:
        """The sessions whose processes have ended since the last time."""
        sessions = [self._sessions[pidfd] for pidfd, _ in self._all.poll(0)]
        for session in sessions:
            self.forget(session)
        return sessions

    def close(self) -> None:
        """Watch nobody any more."""
        for session in list(self._pidfds):
            self.forget(session)
        self._all.close()

    def _watch(self, session: bytes, pidfd: int) -> None:
        try:
            self._all.register(pidfd, select.EPOLLIN)
        except OSError:
            os.close(pidfd)
            raise
        self.forget(session)
        self._pidfds[session] = pidfd
        self._sessions[pidfd] = session

    def _go_blind(self, error: OSError) -> None:
        if not self._blind:  # one line, and not one for every client
            log.warning("cannot watch clients, their permits come back by deadline: %s", error)
        self._blind = True


def _open(frame: zmq.Frame, started: int) -> int:
    """A pidfd for the process at the other end of the frame's connection.

    Raises:
        ProcessLookupError: It has ended.
        OSError: There is none to be had.
    """
    pid = _pid_of(frame)
    pidfd = _peer_pidfd(pid, frame)
    if pidfd is not None:
        return pidfd
    if not pid or not hasattr(os, "pidfd_open"):
        raise OSError(errno.ENOSYS, "no pidfd")
    pidfd = os.pidfd_open(pid)
    # Later, not another time: who has got the number of a process that ended was started after it,
    # but in a time namespace of its own a process may well believe that it is younger than it is.
    if start_of(pid) > started > 0:
        os.close(pidfd)
        raise ProcessLookupError(errno.ESRCH, "another process has its number")
    return pidfd


def _pid_of(frame: zmq.Frame) -> int:
    """The process that has connected, as this process's namespace has it; 0: not in it."""
    try:
        return int(str(frame.get("Peer-Address")).rpartition(":")[2])
    except (zmq.ZMQError, ValueError):
        return 0


def _peer_pidfd(pid: int, frame: zmq.Frame) -> int | None:
    """The kernel's own answer, which no reused number can fool; None: it has none.

    Raises:
        ProcessLookupError: The process has ended.
    """
    try:
        # A copy of the descriptor, because libzmq may close its own at any moment; which is why
        # it must be asked first whether it still is what it was.
        copy = os.dup(int(frame.get(zmq.SRCFD)))
    except (zmq.ZMQError, OSError, ValueError):
        return None
    try:
        connection = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        return None
    with connection:
        try:
            credentials = connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
            )
            if _CREDENTIALS.unpack(credentials)[0] != pid:
                return None
            return _ask_for_pidfd(connection)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ESRCH) and _knows_pidfds():
                raise ProcessLookupError(errno.ESRCH, "it has ended") from None
            return None


def _ask_for_pidfd(connection: socket.socket) -> int:
    return connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)


def _knows_pidfds() -> bool:
    """The kernel tells the pidfd of a peer that lives: of us."""
    one, other = socket.socketpair()
    with one, other:
        try:
            os.close(_ask_for_pidfd(one))
        except OSError:
            return False
        return True
