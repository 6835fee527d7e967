"""How much one manager takes on: clients, connections, circuits. No clock, no I/O.

Whoever asks for more is refused, and nobody else notices. For connections the limit is hard: libzmq
ends the process when accept() finds no descriptor left (src/ipc_listener.cpp), so most of what is
planned here is how to stay away from that.
"""

from __future__ import annotations

from typing import Final, NamedTuple

MAX_CLIENTS: Final = 10_000
MAX_CIRCUITS: Final = 100_000  # 2 KiB each

_OWN: Final = 40  # descriptors of the manager itself: sockets, monitors, files, the journal's
_EACH: Final = 3  # of a client: two connections and what watches its process
_REFUSED: Final = 16  # connections of those who come too late, until they have read why
_MAX_BACKLOG: Final = 256


class Limits(NamedTuple):
    """What a manager takes on.

    Attributes:
        clients: Sessions; the next Hello is refused.
        circuits: The next Declare of another one is refused.
        connections: Descriptors in use at which the door of the data socket is shut.
        questions: The same for the control socket: who asks what is wrong is let in longer.
        backlog: Connections that may be under way then; they still come in.
    """

    clients: int = MAX_CLIENTS
    circuits: int = MAX_CIRCUITS
    connections: int = 2**31
    questions: int = 2**31
    backlog: int = _MAX_BACKLOG

    @classmethod
    def of(
        cls, descriptors: int, clients: int = MAX_CLIENTS, circuits: int = MAX_CIRCUITS
    ) -> Limits:
        """The limits of a process that may have so many descriptors.

        A third of them is kept for what comes before the manager has looked again.

        Args:
            descriptors: The process's limit.
            clients: As many as are wanted; there will be fewer where descriptors are few.
            circuits: As many as are wanted.
        """
        reserve = descriptors // 3
        enough = descriptors - reserve
        fit = max(1, (enough - _OWN - _REFUSED) // _EACH)
        backlog = max(1, min(_MAX_BACKLOG, reserve // 4))
        return cls(min(clients, fit), circuits, enough, enough + reserve // 4, backlog)
