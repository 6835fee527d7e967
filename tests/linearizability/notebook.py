"""Runs written by hand, for tests of the checker: every second, one thing is asked and answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from switchgear import wire
from switchgear.config import CircuitConfig
from switchgear.states import State
from switchgear.stats import CircuitStats
from switchgear.wire import Message

from .history import OBSERVER, Called, History, Received, Sent

NAME: Final = "c"
EPOCH: Final = 1
_BEGIN: Final = datetime(2026, 1, 1, tzinfo=timezone.utc)


def instant(at: float) -> datetime:
    """Unix time when the monotonic clock shows `at` seconds."""
    return _BEGIN + timedelta(seconds=at)


@dataclass
class Notebook:
    """What two workers and the observer have done, so far.

    Attributes:
        now: Seconds; the last thing was asked then, and answered half a second later.
    """

    config: CircuitConfig
    now: float = 0.0
    operation: int = 0
    version: int = 0
    requests: dict[int, int] = field(default_factory=dict)
    reports: dict[int, int] = field(default_factory=dict)
    history: History = field(default_factory=lambda: History(0, EPOCH, 1, 0, [NAME]))

    def ask(
        self, session: int, build: Callable[[int], Message], answer: Callable[[int, int], Message]
    ) -> int:
        """A request: made of its number, and answered with its number and the operation's."""
        self.requests[session] = number = self.requests.get(session, 0) + 1
        return self._exchange(session, build(number), lambda op: answer(number, op))

    def ping(self) -> int:
        """The observer asks whether anybody is there."""
        return self.ask(OBSERVER, wire.Ping, lambda n, op: wire.Pong(n, op, 1, 1))

    def declare(self) -> int:
        """The observer declares the circuit."""
        return self.ask(
            OBSERVER,
            lambda n: wire.Declare(n, NAME, self.config),
            lambda n, op: wire.Declared(n, op, self.config),
        )

    def acquire(self, session: int, *answer: Any) -> int:
        """A worker asks for a permit, and is granted (generation, deadline) or rejected."""
        kind = wire.Granted if isinstance(answer[0], int) else wire.Rejected
        return self.ask(
            session,
            lambda n: wire.Acquire(n, NAME, 2**62),
            lambda n, op: kind(n, op, *answer),
        )

    def report(
        self, session: int, permit: int | None, generation: int, outcome: Any, verdict: Any
    ) -> int:
        """A worker says how a call ended."""
        self.reports[session] = number = self.reports.get(session, 0) + 1
        error = "ConnectionError: down" if outcome else None
        report = wire.Report(number, NAME, EPOCH, permit, generation, outcome, 10, error)
        return self._exchange(session, report, lambda op: wire.Reported(number, op, verdict))

    def batch(self, session: int, generation: int, successes: int, rejected: int = 0) -> int:
        """A worker says how many leased calls there were; nobody answers, yet."""
        self.reports[session] = number = self.reports.get(session, 0) + 1
        batch = wire.Batch(number, NAME, EPOCH, generation, successes, 0, rejected, ())
        self.now += 1.0
        self.operation += 1
        self.history.sent.append(Sent(session, self.now, batch))
        return self.operation

    def stats(self, **fields: Any) -> int:
        """The observer asks for the circuit's."""
        stats = CircuitStats(**{**_STATS, "config": self.config, **fields})
        return self.ask(
            OBSERVER,
            lambda n: wire.GetStats(n, NAME),
            lambda n, op: wire.StatsOf(n, op, stats),
        )

    def event(self, old: State, new: State, cause: str, generation: int) -> None:
        """The observer is told what the last operation changed."""
        self.version += 1
        at = instant(self.now + 0.1)
        change = (self.version, self.operation, NAME, old, new, cause, generation, at)
        self._receive(OBSERVER, 0.4, wire.Event(*change))

    def timer(self, *change: Any) -> None:
        """A decision that nobody asked for."""
        self.now += 1.0
        self.operation += 1
        self.event(*change)

    def nothing(self) -> None:
        """A decision that nobody asked for, and that changed nothing."""
        self.now += 1.0
        self.operation += 1

    def reset(self, generation: int) -> int:
        """The observer closes the circuit."""
        return self.ask(
            OBSERVER,
            lambda n: wire.Reset(n, NAME),
            lambda n, op: wire.ResetDone(n, op, NAME, generation),
        )

    def leased(self, session: int, generation: int, state: State, until: float | None) -> None:
        """A worker gets a lease, behind the last answer."""
        micros = None if until is None else round(until * 1e6)
        error = "ConnectionError: down" if until is not None else None
        self._receive(session, 0.5, wire.Leased(NAME, generation, state, micros, error))

    def call(
        self, session: int, result: str, *, ran: bool = True, detail: Any = None, begun: float = 0.0
    ) -> None:
        """A worker's caller has called something just before the next second."""
        at = begun or self.now + 0.8
        self.history.called.append(
            Called(session, at, at + 0.05 if ran else None, at + 0.1, "call", NAME, result, detail)
        )

    def asked(self, session: int, what: str, result: str, detail: Any) -> None:
        """A worker's caller has asked for what the last second was about."""
        called = Called(session, self.now - 0.1, None, self.now + 0.6, what, NAME, result, detail)
        self.history.called.append(called)

    def close(self) -> History:
        """The run, to its end."""
        self.ping()
        self.history.last = self.operation
        return self.history

    def _exchange(self, session: int, asked: Message, answer: Callable[[int], Message]) -> int:
        self.now += 1.0
        self.operation += 1
        self.history.sent.append(Sent(session, self.now, asked))
        self._receive(session, 0.5, answer(self.operation))
        return self.operation

    def _receive(self, session: int, later: float, message: Message) -> None:
        at = self.now + later
        self.history.received.append(Received(session, at, at + 0.1, message))


_STATS: Final[dict[str, Any]] = {
    "name": NAME,
    "state": State.CLOSED,
    "total_requests": 0,
    "total_successes": 0,
    "total_failures": 0,
    "total_neutral": 0,
    "total_rejected": 0,
    "consecutive_successes": 0,
    "consecutive_failures": 0,
    "in_flight": 0,
    "last_error": None,
    "last_error_at": None,
    "state_changed_at": instant(0.0),
    "retry_after": None,
    "generation": 1,
}


def answered(history: History, operation: int, /, **fields: Any) -> None:
    """Change an answer: that of an operation."""
    _rewrite(history, operation, lambda message: message._replace(**fields), answers=True)


def replaced(history: History, operation: int, kind: type[Any], *fields: Any) -> None:
    """Put another answer in the place of an operation's."""
    _rewrite(
        history,
        operation,
        lambda message: kind(message[0], message[1], *fields),
        answers=True,
    )


def retold(history: History, operation: int, /, **fields: Any) -> None:
    """Change an event: that of an operation."""
    _rewrite(history, operation, lambda event: event._replace(**fields), answers=False)


def _rewrite(
    history: History, operation: int, change: Callable[[Any], Any], *, answers: bool
) -> None:
    (place,) = (
        place
        for place, each in enumerate(history.received)
        if getattr(each.message, "operation", None) == operation
        and isinstance(each.message, wire.Event) is not answers
    )
    each = history.received[place]
    history.received[place] = each._replace(message=change(each.message))


def configured(history: History, config: CircuitConfig) -> None:
    """Have the circuit been declared otherwise."""
    for place, sent in enumerate(history.sent):
        if isinstance(sent.message, wire.Declare):
            declare = sent.message._replace(config=config)
            history.sent[place] = sent._replace(message=declare)
    for place, each in enumerate(history.received):
        message = each.message
        if isinstance(message, wire.Declared):
            history.received[place] = each._replace(message=message._replace(config=config))
        elif isinstance(message, wire.StatsOf):
            stats = replace(message.stats, config=config)
            history.received[place] = each._replace(message=message._replace(stats=stats))
