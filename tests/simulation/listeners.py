"""Who subscribes to events hears all of them, in order, from every manager of a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from switchgear.wire import Event

from .reference import KEPT
from .world import Violation

if TYPE_CHECKING:
    from .processes import Process


class Version(NamedTuple):
    """The number of an event. Managers of one line count on, those of another begin anew."""

    line: int
    number: int


class Told(NamedTuple):
    """An event, and the manager that has told it first."""

    event: Event
    epoch: int


class Listeners:
    """See the module."""

    def __init__(self) -> None:
        self._happened: dict[Version, str] = {}  # the circuit of each event
        self._told: dict[Version, Told] = {}
        self._heard: dict[bytes, Version] = {}  # by token: the last one, or what it begins after

    # -- what managers say -------------------------------------------------------------------------

    def happened(self, event: Event, line: int) -> None:
        """There is an event, whether anybody is told or not."""
        self._happened[Version(line, event.version)] = event.name

    def told(self, event: Event, line: int, epoch: int) -> None:
        """An event was told to somebody."""
        known, _ = self._told.setdefault(Version(line, event.version), Told(event, epoch))
        if known != event:
            raise Violation(f"G1: event {event.version} was {known} and is {event}")

    def manager_begins(self, line: int, version: int) -> None:
        """A manager goes on from there."""
        if self._last(line) > version:
            raise Violation(f"G1: event {self._last(line)} was told, and a successor knows it not")

    def _last(self, line: int) -> int:
        return max((number for its, number in self._told if its == line), default=0)

    # -- what processes hear -----------------------------------------------------------------------

    def listens(self, process: Process, line: int, version: int) -> None:
        """It is told that its subscription holds; events after that version follow."""
        if line != self._heard.get(process.token, (0, 0))[0]:
            self._heard[process.token] = Version(line, version)

    def learns(self, process: Process, line: int, epoch: int, events: Iterable[Event]) -> None:
        """A manager's events come to its callbacks."""
        for event in events:
            its, seen = self._heard.get(process.token, (line, event.version - 1))
            if line != its:
                seen = event.version - 1
            if event.version <= seen:
                raise Violation(f"G1: {process} saw {event.version} after {seen}")
            if self._told[Version(line, event.version)].event != event:
                raise Violation(f"G1: {process} saw {event}")
            if event.version > seen + 1:
                self._check_skipped(process, Version(line, seen + 1), event.version, epoch)
            self._heard[process.token] = Version(line, event.version)

    def _check_skipped(self, process: Process, first: Version, seen: int, epoch: int) -> None:
        """A successor knows the last events of each circuit, and tells those that are in a row."""
        # Those that nobody was ever told of are not among them, and cannot be missed.
        told = [self._told.get(Version(first.line, n)) for n in range(first.number, seen)]
        missed = [known for known in told if known is not None]
        later = [v for v in self._happened if v.line == first.line and v >= first]
        gap = max(Counter(self._happened[version] for version in later).values()) > KEPT
        if missed and (not gap or missed[-1].epoch == epoch):
            raise Violation(f"G1: {process} saw {seen}, and never {missed}")

    def saw_all(self, process: Process, line: int) -> None:
        """Who subscribes listens to managers of the line, and has seen their last event."""
        if process.subscribed:
            its, version = self._heard.get(process.token, (0, 0))
            if its != line:
                raise Violation(f"G1: {process} does not listen to managers of {line}")
            if version < self._last(line):
                raise Violation(f"G1: {process} has seen {version} of {self._last(line)}")
