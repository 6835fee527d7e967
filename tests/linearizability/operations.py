"""What was asked, matched with what was answered: the operations of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from switchgear import wire
from switchgear.wire import Message

from .history import History, Received

DATA: Final = 0  # the two connections of a session
CONTROL: Final = 1

_ON_DATA: Final = (wire.Declare, wire.Acquire, wire.Report, wire.Batch, wire.Missed, wire.Sync)
_ON_CONTROL: Final = (
    *(wire.Ping, wire.GetStats, wire.GetMetrics, wire.GetHistory, wire.Reset, wire.Subscribe),
)
_REPORTS: Final = (wire.Report, wire.Batch, wire.Missed)
# What answers a request under its number. Reported answers a report, under its own.
_ANSWERS: Final = (
    *(wire.Declared, wire.Granted, wire.Rejected, wire.Synced),
    *(wire.Pong, wire.StatsOf, wire.MetricsOf, wire.HistoryOf, wire.ResetDone, wire.Subscribed),
)


@dataclass(eq=False)
class Operation:
    """One thing that a process asked of the manager, and its answer.

    Attributes:
        session: Whose.
        asked: The message.
        sent: When, at the earliest.
        number: The manager's; None: nobody was told it.
        answer: The message; None: it did not come, or a later one spoke for it.
        received: When, at the latest; infinite: never.
    """

    session: int
    asked: Message
    sent: float
    number: int | None = None
    answer: Message | None = None
    received: float = math.inf

    def __str__(self) -> str:
        what = "nobody was told its number" if self.answer is None else self.answer
        return f"session {self.session}: {self.asked} -> {what}"


class Queue(NamedTuple):
    """What one session sent on one connection, in order; the manager decides it in that order."""

    session: int
    connection: int
    operations: list[Operation]


@dataclass
class Operations:
    """All of a run, and what is wrong about them already."""

    queues: list[Queue] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def all(self) -> list[Operation]:
        return [operation for queue in self.queues for operation in queue.operations]


def match(history: History) -> Operations:
    """Put answers to questions."""
    found = Operations()
    for session in history.sessions:
        _match_session(history, session, found)
    return found


def _match_session(history: History, session: int, found: Operations) -> None:
    data, control = Queue(session, DATA, []), Queue(session, CONTROL, [])
    requests: dict[int, Operation] = {}
    reports: dict[int, Operation] = {}
    for sent in history.sent:
        message = sent.message
        if sent.session != session or not isinstance(message, _ON_DATA + _ON_CONTROL):
            continue
        numbered = reports if isinstance(message, _REPORTS) else requests
        number = message[0]
        assert isinstance(number, int)
        if number in numbered:
            continue  # sent again, because the answer may have been lost
        operation = numbered[number] = Operation(session, message, sent.at)
        (data if isinstance(message, _ON_DATA) else control).operations.append(operation)
    for received in history.received:
        if received.session == session:
            _answer(received, requests, reports, found)
    _speak_for_others(reports)
    found.queues += [queue for queue in (data, control) if queue.operations]


def _answer(
    received: Received,
    requests: dict[int, Operation],
    reports: dict[int, Operation],
    found: Operations,
) -> None:
    message = received.message
    if isinstance(message, wire.Error):
        if (message.kind, message.code) == (0, wire.ErrorCode.NO_SESSION):
            return  # each connection begins with an empty frame, and that is its answer
        found.wrong.append(f"session {received.session} was refused: {message}")
        return
    if isinstance(message, _ANSWERS):
        operation = requests.get(message.request)
    elif isinstance(message, wire.Reported):
        operation = reports.get(message.number)
    else:
        return
    if operation is None:
        # Nobody waits for it, so it may come when the run it belongs to has ended.
        if not isinstance(message, wire.Synced):
            found.wrong.append(f"session {received.session} had not asked for {message}")
    elif operation.answer is not None:
        found.wrong.append(f"session {received.session} was answered twice: {message}")
    else:
        operation.answer, operation.number = message, message.operation
        operation.received = received.at


def _speak_for_others(reports: dict[int, Operation]) -> None:
    """A Reported acknowledges all before it, so they were decided by then."""
    received = math.inf
    for number in sorted(reports, reverse=True):
        report = reports[number]
        if report.answer is not None:
            received = min(received, report.received)
        else:
            report.received = received
