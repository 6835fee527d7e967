"""Whether a run could have been one sequence of decisions though the manager was killed in it.

Operations begin again with every manager, so a run is cut where the manager was killed. Before the
cut it is checked like any other, but that not everybody was answered. After it circuits must stand
where the events before it left them; what was counted by then only the manager knew, so the replay
begins with every count that it may have been, and with totals that agree with everything. At the
end every call that anybody made must be in the totals, once.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from switchgear import wire
from switchgear.config import CircuitConfig
from switchgear.states import State

from . import checker
from .checker import Opened, Replay, Result
from .clients import check_clients, check_leases, check_listeners
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
    result = Result([*checker.check_versions(history), *check_listeners(history)])
    result.wrong += check_leases(history)
    first: Replay | None = None
    for part in (before, after):
        operations = match(part)
        result.wrong += operations.wrong
        result.wrong += checker.check_numbers(part, operations)
        result.wrong += checker.check_real_time(operations)
        if result.wrong:
            return result
        if first is None:
            replay = first = Replay(part, operations)
            result.wrong += replay.run(all_ends=True)
        else:
            begin = list(_standing(history, before, first))
            replay = Replay(part, operations, begin, _opened(history, first))
            result.wrong += replay.run()
        result.wrong += check_clients(part, operations)
        result.operations += replay.count
        result.calls += checker.count_calls(part)
        result.kinds.update(replay.kinds())
        for events in replay.events.values():
            result.changes.update(f"{event.cause} -> {event.new}" for event in events)
    result.wrong += _check_totals(history)
    return result


def split(history: History, unix: float) -> tuple[History, History]:
    """What belongs to the first manager, and what to the second.

    Each connection is the second's from its Welcome on. What happened before, and was not told by
    the first, the second tells. Calls that were under way when either Welcome came are nobody's.
    """
    before = replace(history, sent=[], received=[], called=[], cut=True)
    after = replace(history, sent=[], received=[], called=[], first=1, resumed=True)
    turns: dict[tuple[int, int], float] = {}
    settled: dict[int, float] = {}  # by session: when it had acted on what was said last
    for each in history.received:
        message = each.message
        if isinstance(message, wire.Welcome) and message.epoch != history.epoch:
            turns.setdefault((each.session, each.connection), each.at)
            settled[each.session] = each.done
            after.epoch = message.epoch
    for sent in history.sent:
        connection = int(type(sent.message) in wire.TO_CONTROL)
        turn = turns.get((sent.session, connection), math.inf)
        (before if sent.at < turn else after).sent.append(sent)
    for each in history.received:
        turn = turns.get((each.session, each.connection), math.inf)
        first = each.at < turn
        if isinstance(each.message, wire.Event):
            first = first or each.message.at.timestamp() < unix + _RESTART
        (before if first else after).received.append(each)
    before.last = max(map(_operation, before.received))
    _split_calls(history, turns, settled, before, after)
    return before, after


def _operation(received: Received) -> int:
    operation = getattr(received.message, "operation", 0)
    return operation if isinstance(operation, int) else 0


def _split_calls(
    history: History,
    turns: dict[tuple[int, int], float],
    settled: dict[int, float],
    before: History,
    after: History,
) -> None:
    granted: dict[tuple[int, int], int] = Counter()
    of_second = set()
    for call in sorted(history.called, key=lambda call: call.begun):
        at = [at for (session, _), at in turns.items() if session == call.session]
        turn, begins = min(at, default=math.inf), settled.get(call.session, math.inf)
        if call.what == "acquire" and isinstance(call.detail, int):
            granted[call.session, call.detail] += 1
            if call.begun > begins:
                of_second.add((call.session, call.detail))
        if call.ended < turn:
            before.called.append(call)
        elif call.begun > begins:
            if call.what in ("end", "verdict"):
                number = call.detail[0] if call.what == "end" else call.detail
                of = call.session, number
                # Of the first manager's, whose number the second may have given once more?
                if number is not None and (of not in of_second or granted[of] > 1):
                    continue
            after.called.append(call)


def _standing(history: History, before: History, first: Replay) -> Iterator[dict[str, Circuit]]:
    """All that the circuits may be when the second manager begins."""
    choices = []
    for place, name in enumerate(history.names):
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
        ends = {end.circuits[place] for end in first.ends}
        if first.complete and not first.awaits_reports(name):
            # All that was counted was acknowledged, and so the second manager knows of it.
            choices.append(list(_known_counts(circuit, ends)))
        else:
            choices.append(list(_counts(circuit, config)))
    for circuits in itertools.product(*choices):
        yield dict(zip(history.names, circuits, strict=True))


def _known_counts(circuit: Circuit, ends: Iterable[Circuit | None]) -> Iterator[Circuit]:
    """What was counted in a row when the first manager was killed."""
    for successes, failures in {(end.successes, end.failures) for end in ends if end is not None}:
        yield circuit._replace(successes=successes, failures=failures)


def _opened(history: History, first: Replay) -> dict[str, Opened]:
    """When each circuit last opened; every end has it of the same event."""
    opened = first.ends[0].opened if first.ends else ()
    named = zip(history.names, opened, strict=False)
    return {name: one for name, one in named if one is not None}


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
