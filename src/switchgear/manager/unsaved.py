"""What a manager's successor must know, and what of it has changed since it was last saved.

Two kinds of things, because two kinds of telling wait for them. Where circuits stand, and the
transitions that brought them there, must be saved before anybody is told anything. What was counted
must be saved before a report of it is acknowledged, which is later and for many at once; it is
always saved together with how far each session's reports have been taken in, so that what is sent
again is exactly what was not counted. No file, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from ..circuit import Circuit, Counts, Standing
from ..wire import Event
from .sessions import SavedSession, Session

SAVE_INTERVAL: Final = 0.1  # seconds that a change of counts may wait


class Changes(NamedTuple):
    """What is to be saved, all of it or nothing."""

    standings: list[tuple[str, Standing]]
    events: list[Event]
    counts: list[tuple[str, Counts]]  # of circuits that are saved, or in standings
    sessions: list[SavedSession]
    ended: list[bytes]  # tokens of sessions that will not come back

    def __bool__(self) -> bool:
        return any(self[:])


class Saved(NamedTuple):
    """What a predecessor has left.

    Attributes:
        epoch: Its own.
        origin: The epoch of the first manager in its line; None: the line ends with it, because it
            has told more than is in here.
        circuits: By name. Counts may be missing, and older than the standing.
        sessions: Those that may come back.
        events: The last ones of each circuit, by version.
    """

    epoch: int
    origin: int | None
    circuits: Mapping[str, tuple[Standing, Counts | None]]
    sessions: list[SavedSession]
    events: list[Event]


class Unsaved:
    """Keeps track of what has changed. It grows with the circuits and sessions, not with the calls.

    Attributes:
        save_by: When counts are to be saved at the latest; None: there is no need.
    """

    def __init__(self) -> None:
        self.save_by: float | None = None
        self._standings: dict[str, Circuit] = {}
        self._events: list[Event] = []
        self._counts: dict[str, Circuit] = {}
        self._sessions: dict[bytes, Session | None] = {}  # None: it has ended

    @property
    def news(self) -> bool:
        """A circuit stands elsewhere, so nobody may be told anything before this is saved."""
        return bool(self._standings)

    def stands(self, circuit: Circuit, event: Event | None = None) -> None:
        """A circuit is new, has made a transition or has another configuration."""
        self._standings[circuit.name] = circuit
        if event is not None:
            self._events.append(event)

    def counted(self, circuit: Circuit, now: float) -> None:
        """A circuit has counted something."""
        self._counts[circuit.name] = circuit
        if self.save_by is None:
            self.save_by = now + SAVE_INTERVAL

    def reported(self, session: Session, now: float) -> None:
        """A report was taken in; what it told is `counted`."""
        self._sessions[session.token] = session
        if self.save_by is None:
            self.save_by = now + SAVE_INTERVAL

    def ended(self, token: bytes, now: float) -> None:
        """A session will not come back."""
        self._sessions[token] = None
        if self.save_by is None:
            self.save_by = now + SAVE_INTERVAL

    def has_reports_of(self, session: Session) -> bool:
        """Some were taken in since the last time."""
        return session.token in self._sessions

    def take_news(self) -> Changes:
        """Hand over where circuits stand now, and how they got there."""
        standings = [(name, circuit.standing()) for name, circuit in self._standings.items()]
        changes = Changes(standings, self._events, [], [], [])
        self._standings, self._events = {}, []
        return changes

    def take_all(self) -> Changes:
        """Hand over everything."""
        standings, events, *_ = self.take_news()
        counts = [(name, circuit.counts()) for name, circuit in self._counts.items()]
        sessions = [session.saved() for session in self._sessions.values() if session is not None]
        ended = [token for token, session in self._sessions.items() if session is None]
        self._counts, self._sessions, self.save_by = {}, {}, None
        return Changes(standings, events, counts, sessions, ended)
