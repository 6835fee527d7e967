"""Who the manager talks to: connections, and the clients behind them."""

from __future__ import annotations

from typing import Final, NamedTuple

from ..wire import Granted

DATA: Final = 0  # the two sockets, as a Peer names them
CONTROL: Final = 1


class Peer(NamedTuple):
    """Where a message came from and an answer goes: a socket of the manager's, and an address."""

    socket: int
    address: bytes


class SavedSession(NamedTuple):
    """A client, as a successor must know it to go on where it stands.

    Attributes:
        token: Drawn once in the life of the client.
        pid: Its process, as it says.
        started: When that was started, in the kernel's clock ticks; 0: it does not know.
        reports: The number of the last report taken in.
    """

    token: bytes
    pid: int
    started: int
    reports: int = 0


class Session:
    """One client, as long as its process lives: it may come back on another connection."""

    __slots__ = ("granted", "heard_at", "peer", "pid", "reports", "requests", "started", "token")

    def __init__(self, saved: SavedSession) -> None:
        self.token, self.pid, self.started, self.reports = saved
        self.peer: Peer | None = None  # where it was heard last
        self.heard_at: float  # when it last greeted, asked for a permit or reported; once it has
        self.requests = 0  # the highest number of a request for a permit that was decided
        self.granted: dict[int, Granted] = {}  # what is out, by the request that asked for it

    def saved(self) -> SavedSession:
        """What a successor must know."""
        return SavedSession(self.token, self.pid, self.started, self.reports)
