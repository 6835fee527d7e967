"""Whether a run could have been one sequence of decisions though the manager was killed in it.

Operations begin again with every manager, so a run is cut where the manager was killed. Before the
cut it is checked like any other, but that not everybody was answered. After it circuits must stand
where the events before it left them; what was counted by then only the manager knew, so the replay
begins with every count that it may have been, and with totals that agree with everything. At the
end every call that anybody made must be in the totals, once.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from switchgear import wire
from switchgear.config import CircuitConfig
from switchgear.states import State

from . import checker
from .checker import Replay, Result
from .history import OBSERVER, History, Received
from .model import Circuit, Totals
from .operations import match

_RESTART: Final = 0.03  # seconds; no manager is there within so many of the death of another


class _Number(int):
    """A count that nobody knows: whatever is added, it is equal to everything."""

    def __add__(self, other: object) -> _Number:
        return self

    __radd__ = __sub__ = __add__

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class _Text(str):
    """A text that nobody knows."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


ANY_NUMBER: Final = _Number()
ANY_TEXT: Final = _Text()


def check(history: History, unix: float) -> Result:
    """Check one run.

    Args:
        history: All of it; its first number is of the first manager, its last of the second.
        unix: When the manager was killed, Unix time.
    """
    before, after = split(history, unix)
    result = Result([*checker.check_versions(history)])
    for part in (before, after):
        operations = match(part)
        result.wrong += operations.wrong
        result.wrong += checker.check_numbers(part, operations)
        result.wrong += checker.check_real_time(operations)
        if result.wrong:
            return result
        begin = [{}] if part is before else list(_standing(history, before))
        replay = Replay(part, operations, begin)
        result.wrong += replay.run()
        result.operations += replay.count
        result.kinds.update(replay.kinds())
        for events in replay.events.values():
            result.changes.update(f"{event.cause} -> {event.new}" for event in events)
    result.wrong += _check_totals(history)
    result.calls = len(history.called)
    return result


def split(history: History, unix: float) -> tuple[History, History]:
    """What belongs to the first manager, and what to the second.

    Each connection is the second's from its Welcome on. What happened before, and was not told by
    the first, the second tells.
    """
    before = replace(history, sent=[], received=[], called=[], cut=True)
    after = replace(history, sent=[], received=[], called=[], first=1)
    turns: dict[tuple[int, int], float] = {}
    for each in history.received:
        message = each.message
        if isinstance(message, wire.Welcome) and message.epoch != history.epoch:
            turns.setdefault((each.session, each.connection), each.at)
            after.epoch = message.epoch
    for sent in history.sent:
        connection = int(type(sent.message) in wire.TO_CONTROL)
        turn = turns.get((sent.session, connection), float("inf"))
        (before if sent.at < turn else after).sent.append(sent)
    for each in history.received:
        turn = turns.get((each.session, each.connection), float("inf"))
        first = each.at < turn
        if isinstance(each.message, wire.Event):
            first = first or each.message.at.timestamp() < unix + _RESTART
        (before if first else after).received.append(each)
    before.last = max(map(_operation, before.received))
    return before, after


def _operation(received: Received) -> int:
    operation = getattr(received.message, "operation", 0)
    return operation if isinstance(operation, int) else 0


def _standing(history: History, before: History) -> Iterator[dict[str, Circuit]]:
    """All that the circuits may be when the second manager begins."""
    choices = []
    for name in history.names:
        configs = [
            sent.message.config
            for sent in before.sent
            if isinstance(sent.message, wire.Declare) and sent.message.name == name
        ]
        config = next(config for config in configs if config is not None)
        changes = [
            event
            for each in before.received
            if each.session == OBSERVER
            and isinstance(event := each.message, wire.Event)
            and event.name == name
        ]
        entries = Counter(change.new for change in changes if change.new is not change.old)
        state = changes[-1].new if changes else State.CLOSED
        unknown = Totals(*(ANY_NUMBER,) * 7)
        circuit = Circuit(
            config,
            state,
            generation=1 + len(changes),
            totals=unknown,
            entries=(entries[State.CLOSED], entries[State.OPEN], entries[State.HALF_OPEN]),
            last_error=ANY_TEXT,
        )
        choices.append(list(_counts(circuit, config)))
    for circuits in itertools.product(*choices):
        yield dict(zip(history.names, circuits, strict=True))


def _counts(circuit: Circuit, config: CircuitConfig) -> Iterator[Circuit]:
    """What may have been counted in a row, short of what would have moved it."""
    if circuit.state is State.CLOSED:
        yield circuit._replace(successes=ANY_NUMBER)
        for failures in range(1, config.failure_threshold):
            yield circuit._replace(failures=failures)
    elif circuit.state is State.HALF_OPEN:
        for successes in range(config.success_threshold):
            yield circuit._replace(successes=successes)
    else:
        yield circuit


_COUNTED: Final = {
    **{"returned": "successes", "success": "successes"},
    **{"raised": "failures", "failure": "failures"},
    **{"left": "neutral", "neutral": "neutral"},
}


def _check_totals(history: History) -> Iterator[str]:
    """Every call is counted once, whichever manager it was told."""
    for name in history.names:
        made = Counter(
            _COUNTED[call.result]
            for call in history.called
            if call.name == name and call.what in ("call", "end") and call.result in _COUNTED
        )
        told = [
            each.message
            for each in history.received
            if isinstance(each.message, wire.StatsOf) and each.message.stats.name == name
        ]
        stats = told[-1].stats
        counted = Counter(
            successes=stats.total_successes,
            failures=stats.total_failures,
            neutral=stats.total_neutral,
        )
        if +counted != +made:
            yield f"{name!r}: {dict(+made)} calls were made, and {dict(+counted)} were counted"
