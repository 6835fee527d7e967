"""Whether a run could have been one sequence of decisions: the manager's numbers say which.

The decisions are replayed in the order of their numbers through `model`. Each must give the answer
that its process received and the events that the observer was told of, and no number may be left
over. Numbers that nobody was told are searched for: a report that a later Reported spoke for, what
a killed process had asked, a timer, a permit that came back from the dead. Each of these may only
take a number that real time and the order of its connection leave it.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, combinations
from typing import Final, NamedTuple, TypeVar

from switchgear import wire
from switchgear.states import Outcome, State
from switchgear.stats import StateChange
from switchgear.wire import Event, to_seconds

from . import model
from .answers import compare, differs
from .clients import check_clients, check_leases, check_listeners
from .history import History, Received
from .model import Change, Circuit, Out, Step
from .operations import CONTROL, DATA, Operation, Operations, match

T = TypeVar("T")

_MICROSECOND: Final = 1e-6
_ROUNDING: Final = 2 * _MICROSECOND  # instants and durations cross as whole microseconds
MOST_CHOICES: Final = 200_000  # in one run, before the search gives up


class UndecidedError(Exception):
    """The search has tried too much."""


@dataclass
class Result:
    """What was found.

    Attributes:
        wrong: What cannot be, for people; empty: nothing.
        operations: How many numbered decisions were replayed.
        kinds: The same, by what was asked; "(nobody told)" for those whose number was searched.
        calls: How many calls of the public API were held against them.
        changes: How many changes of circuits there were, by what they led to and why.
    """

    wrong: list[str]
    operations: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    changes: Counter[str] = field(default_factory=Counter)


def check(history: History) -> Result:
    """Check one run.

    Raises:
        UndecidedError: There were too many ways to order what nobody was told the number of.
    """
    operations = match(history)
    result = Result(operations.wrong)
    result.wrong += check_numbers(history, operations)
    result.wrong += check_real_time(operations)
    result.wrong += check_versions(history)
    if not result.wrong:  # else there is no order to replay
        replay = Replay(history, operations)
        result.wrong += replay.run()
        result.operations, result.kinds = replay.count, replay.kinds()
        for events in replay.events.values():
            result.changes.update(f"{event.cause} -> {event.new}" for event in events)
    result.wrong += check_clients(history, operations)
    result.wrong += check_leases(history)
    result.wrong += check_listeners(history)
    result.calls = count_calls(history)
    return result


def count_calls(history: History) -> int:
    """How many calls of the public API there are that are held against the messages."""
    return sum(1 for call in history.called if call.what in _CALLS)


_CALLS: Final = {"call", "acquire", "end", "stats", "metrics", "history", "reset", "flush"}


# -- numbers, time, versions -----------------------------------------------------------------------


def check_numbers(history: History, operations: Operations) -> Iterator[str]:
    seen: dict[int, Operation] = {}
    for operation in operations.all:
        number = operation.number
        if number is None:
            # A client asks for acknowledgements, and does not wait for more than these.
            waits = operation.session not in history.killed and not history.cut
            if waits and operation.received == math.inf and type(operation.asked) is not wire.Sync:
                yield f"nobody answered {operation}"
            continue
        if number in seen:
            yield f"operation {number} came twice: {seen[number]}; {operation}"
        if not history.first <= number <= history.last:
            yield f"operation {number} is none of {history.first} to {history.last}: {operation}"
        seen[number] = operation


def check_real_time(operations: Operations) -> Iterator[str]:
    """Who was answered before another one asked has the lower number."""
    numbered = sorted(
        (operation for operation in operations.all if operation.number is not None),
        key=lambda operation: operation.number or 0,
        reverse=True,
    )
    earliest: Operation | None = None  # to be answered, of those with higher numbers
    for operation in numbered:
        if earliest is not None and earliest.received < operation.sent:
            yield f"{earliest} was answered before this was sent, which is earlier: {operation}"
        if earliest is None or operation.received < earliest.received:
            earliest = operation


def check_versions(history: History) -> Iterator[str]:
    """Events come in order, none is missing, and everybody is told the same.

    They come again only to who asks for those after one: some may have been on their way then.
    """
    by_version: dict[int, Event] = {}
    last: dict[int, int] = {}
    for session, _at, _done, message, _connection in history.received:
        if isinstance(message, wire.Subscribed):
            last[session] = min(message.version, last.get(session, message.version))
        if not isinstance(message, Event):
            continue
        version = message.version
        if by_version.setdefault(version, message) != message:
            yield f"session {session} was told {message}, another one {by_version[version]}"
        if version != last.setdefault(session, version - 1) + 1:
            yield f"session {session} was told of version {version} after {last[session]}"
        last[session] = version


# -- the replay ------------------------------------------------------------------------------------


class Opened(NamedTuple):
    """When a circuit opened, and for how long."""

    at: float  # as the event said, Unix time
    asked: float  # what had been asked by then was asked by then; monotonic
    since: float  # the turn of the manager's in which it opened did not begin before
    told: float  # and somebody was told then of it, or of something later
    term: float


class Place(NamedTuple):
    """How far a replay has come. Equal places go on equally."""

    circuits: tuple[Circuit | None, ...]  # by place in the history's names
    done: tuple[int, ...]  # how many operations of each queue
    opened: tuple[Opened | None, ...]


class _Move(NamedTuple):
    """What may have had a number: a step of one circuit, or none."""

    step: Step | None
    circuit: int | None = None  # whose, by place
    queue: int | None = None  # whose next operation it was
    ends: int | None = None  # the queue whose session has ended with it


class Replay:
    """The replay of one run.

    Args:
        history: The run.
        operations: Its operations; their numbers are different ones.
        begin: All that its circuits may be at the beginning, by name; none is there by default.
        opened: When those that are open then had opened, as far as it is known.

    Attributes:
        ends: The places that it came to, of those that `run` looked for.
        complete: There are no others.
    """

    def __init__(
        self,
        history: History,
        operations: Operations,
        begin: Sequence[Mapping[str, Circuit]] = ({},),
        opened: Mapping[str, Opened] | None = None,
    ) -> None:
        self.ends: list[Place] = []
        self.complete = False
        self._begin = begin
        self._opened = opened or {}
        self._history = history
        self._queues = operations.queues
        self._names = {name: place for place, name in enumerate(history.names)}
        self._known = {
            operation.number: (place, operation)
            for place, queue in enumerate(self._queues)
            for operation in queue.operations
            if operation.number is not None
        }
        heard = history.events()
        self.events = {
            number: [each.message for each in events if isinstance(each.message, Event)]
            for number, events in heard.items()
        }
        self._asked_by, self._told_by = self._bounds(heard)
        self._since = self._turns()
        self._changes: dict[str, list[tuple[int, StateChange]]] = {}  # by name, with the number
        for number, events in sorted(self.events.items()):
            for event in events:
                self._changes.setdefault(event.name, []).append((number, state_change(event)))
        self._searched = 0
        self._mismatch = (history.first, "nothing was replayed")

    def _bounds(self, heard: dict[int, list[Received]]) -> tuple[list[float], list[float]]:
        """By number: what was asked at the latest by then, and told at the earliest from then on.

        The manager decided each number after the first and before the second of the two.
        """
        first, last = self._history.first, self._history.last
        asked, told = [-math.inf] * (last - first + 1), [math.inf] * (last - first + 1)
        for number, (_, operation) in self._known.items():
            asked[number - first] = operation.sent
            told[number - first] = operation.received
        for number, events in heard.items():
            earliest = min(event.at for event in events)
            told[number - first] = min(told[number - first], earliest)
        return list(accumulate(asked, max)), list(accumulate(told[::-1], min))[::-1]

    def _turns(self) -> list[float]:
        """By number: the turn of the manager's that decided it did not begin before.

        A turn looks at the clock once, then takes what has come on control connections, and then on
        the others. So who was answered on one of the others, and then asks on a control connection,
        asks in a later turn than that; and a later turn began after the first was asked.
        """
        answered = sorted(
            (operation.received, operation.sent)
            for queue in self._queues
            if queue.connection == DATA
            for operation in queue.operations
            if operation.received < math.inf
        )
        asked_by = list(accumulate((sent for _, sent in answered), max))
        since = [-math.inf] * self.count
        for number, (queue, operation) in self._known.items():
            if self._queues[queue].connection == CONTROL:
                before = bisect.bisect(answered, (operation.sent, -math.inf))
                if before:
                    since[number - self._history.first] = asked_by[before - 1]
        return list(accumulate(since, max))

    def awaits_reports(self, name: str) -> bool:
        """Whether outcomes of a circuit were sent that were never acknowledged."""
        return any(
            operation.received == math.inf
            for queue in self._queues
            for operation in queue.operations
            if isinstance(operation.asked, (wire.Report, wire.Batch, wire.Missed))
            and operation.asked.name == name
        )

    @property
    def count(self) -> int:
        """How many decisions there were."""
        return self._history.last - self._history.first + 1

    def kinds(self) -> Counter[str]:
        """How many of each kind."""
        kinds = Counter(type(one.asked).__name__ for _, one in self._known.values())
        kinds["(nobody told)"] = self.count - len(self._known)
        return kinds

    def run(self, *, all_ends: bool = False) -> list[str]:
        """What is wrong; empty: nothing.

        Args:
            all_ends: Go on until all is known that the circuits may be at the end.
        """
        first = self._history.first
        untried = [(first, self._first_place(circuits)) for circuits in self._begin]
        number, place = untried.pop()
        tried: set[tuple[int, Place]] = set()
        while True:
            if number > self._history.last:
                left = self._left(place)
                if left is None:
                    self.ends.append(place)
                    if not all_ends:
                        return []
                else:
                    self._note(number, left)
                following = []
            else:
                following = self._follow(number, place)
            if len(following) > 1:
                following = [each for each in following if (number, each) not in tried]
                tried.update((number, each) for each in following)
                self._searched += len(following)
                if self._searched > MOST_CHOICES and self.ends:
                    return []
                if self._searched > MOST_CHOICES:
                    raise UndecidedError(f"run {self._history.seed}: {self._mismatch[1]}")
            untried += [(number + 1, each) for each in reversed(following)]
            if not untried:
                self.complete = True
                return [] if self.ends else [self._mismatch[1]]
            number, place = untried.pop()

    def _first_place(self, circuits: Mapping[str, Circuit]) -> Place:
        begin = tuple(circuits.get(name) for name in self._names)
        # If it is open, nobody knows how long.
        unknown = Opened(-math.inf, -math.inf, -math.inf, math.inf, math.inf)
        opened = tuple(self._opened.get(name, unknown) for name in self._names)
        return Place(begin, (0,) * len(self._queues), opened)

    def _note(self, number: int, text: str) -> None:
        """Keep the mismatch that was furthest on: the search went there with all else right."""
        if number >= self._mismatch[0]:
            self._mismatch = (number, f"operation {number}: {text}")

    def _left(self, place: Place) -> str | None:
        """What was answered, or acknowledged, and has no number; and what never came back."""
        for circuit in place.circuits:
            if circuit is None or self._history.cut:
                continue
            for one in circuit.out:
                if one.session in self._history.killed:
                    return f"the permit of a killed process is still out: {one}"
                if one.deadline is not None:
                    return f"a probe is out, and all were ended or overdue: {one}"
        for queue, done in zip(self._queues, place.done, strict=True):
            for operation in queue.operations[done:]:
                if operation.received < math.inf:
                    return f"there is no number left for {operation}"
        return None

    def _follow(self, number: int, place: Place) -> list[Place]:
        """All that the circuits may be after one more decision."""
        known = self._known.get(number)
        if known is not None:
            late = self._is_late(number, place)
            if late is not None:
                self._note(number, late)
                return []
        moves = self._search(number, place) if known is None else self._decide(number, place, known)
        told = [_change(event) for event in self.events.get(number, [])]
        following = []
        for move in moves:
            changes = [] if move.step is None else list(move.step.changes)
            if changes == told:
                following.append(self._go(number, place, move))
            else:
                self._note(number, f"subscribers were told of {told}, it should be {changes}")
        if not following and known is None and number >= self._mismatch[0]:
            self._note(number, f"nobody can have had it, with the events {told}")
        return following

    def _is_late(self, number: int, place: Place) -> str | None:
        """What a timer should have done by then: each turn begins with what is due."""
        since = self._since[number - self._history.first] - _ROUNDING
        for circuit, opened in zip(place.circuits, place.opened, strict=True):
            if circuit is None:
                continue
            for one in circuit.probes:
                if -math.inf < (one.deadline or 0.0) < since:
                    return f"a probe is still out {since - (one.deadline or 0.0)} s late: {one}"
            if circuit.state is State.OPEN and opened is not None:
                late = since - opened.told - opened.term
                if late > 0:
                    return f"a circuit is still open, at least {late} s late"
        return None

    def _go(self, number: int, place: Place, move: _Move) -> Place:
        circuits, done, opened = place
        if move.circuit is not None and move.step is not None:
            circuit = move.step.circuit
            circuits = _with(circuits, move.circuit, circuit)
            for event in self.events.get(number, []):
                if event.new is State.OPEN and event.cause != "config":
                    here = number - self._history.first
                    asked, since, told = (
                        each[here] for each in (self._asked_by, self._since, self._told_by)
                    )
                    term = circuit.config.open_timeout
                    mark = Opened(event.at.timestamp(), asked, since, told, term)
                    opened = _with(opened, move.circuit, mark)
                    timers = (*circuit.timers, asked)  # fires later, and how much is not known
                    circuits = _with(circuits, move.circuit, circuit._replace(timers=timers))
        if move.queue is not None:
            done = _with(done, move.queue, done[move.queue] + 1)
        if move.ends is not None:
            done = _with(done, move.ends, len(self._queues[move.ends].operations))
        return Place(circuits, done, opened)

    # -- a number that somebody was told -----------------------------------------------------------

    def _decide(self, number: int, place: Place, known: tuple[int, Operation]) -> Iterator[_Move]:
        queue, operation = known
        following = self._queues[queue].operations[place.done[queue] :]
        if not following or following[0] is not operation:
            self._note(number, f"{operation}, before what was sent earlier: {following[:1]}")
            return
        move = self._apply(number, place, queue, operation)
        if isinstance(move, str):
            self._note(number, f"{operation}; {move}")
        else:
            yield move

    def _apply(self, number: int, place: Place, queue: int, operation: Operation) -> _Move | str:
        """What the operation does if it has this number, or why it cannot have it."""
        asked, answer = operation.asked, operation.answer
        name = getattr(asked, "name", None)
        if name is None:  # it is about no circuit
            return _Move(None, None, queue)
        index = self._names.get(name)
        if index is None:
            return f"{name!r} is not of this run"
        circuit = place.circuits[index]
        if circuit is None:
            if not isinstance(asked, wire.Declare):
                return f"nobody has declared {name!r}"
            assert asked.config is not None
            step = Step(Circuit(asked.config), None)
        else:
            found = self._step(number, circuit, operation)
            if found is None:
                return "the permit is not out"
            step = found
        if answer is not None:
            why = self._compare(number, step, answer, operation, place.opened[index])
            if why is not None:
                return why
        return _Move(step, index, queue)

    def _step(self, number: int, circuit: Circuit, operation: Operation) -> Step | None:
        """What the model makes of it; None: it has no answer."""
        match operation.asked:
            case wire.Declare(_, _, config):
                return model.configure(circuit, config)
            case wire.Acquire():
                deadline = -math.inf  # it may be lost at any time, for all we know
                if isinstance(operation.answer, wire.Granted):
                    deadline = to_seconds(operation.answer.deadline or 0)
                return model.acquire(circuit, number, operation.session, deadline)
            case wire.Report(_, _, epoch, permit, generation, outcome, _, error):
                if permit is None or epoch != self._history.epoch:
                    return model.report_leased(circuit, generation, outcome, error)
                return model.report(circuit, permit, outcome, error)
            case wire.Batch(_, _, _, generation, successes, neutral, rejected, _):
                return model.tally(circuit, generation, successes, neutral, rejected)
            case wire.Reset():
                return model.reset(circuit)
        return Step(circuit, None)

    def _compare(
        self,
        number: int,
        step: Step,
        answer: wire.Message,
        operation: Operation,
        opened: Opened | None,
    ) -> str | None:
        """Why the answer is not the model's; None: it is."""
        wrong = compare(step, answer)
        if wrong is not None:
            return wrong
        match answer:
            case wire.Granted(_, _, _, deadline):
                return self._permit_time_is_wrong(number, step.circuit, deadline, operation)
            case wire.Rejected(_, _, state, retry_after, _):
                return _retry_after_is_wrong(state, retry_after, opened, operation.received)
            case wire.StatsOf(_, _, stats):
                return _retry_after_is_wrong(
                    stats.state, stats.retry_after, opened, operation.received
                )
            case wire.HistoryOf(_, _, changes):
                assert isinstance(operation.asked, wire.GetHistory)
                name = operation.asked.name
                before = [c for at, c in self._changes.get(name, []) if at < number]
                return differs("history", list(changes), before[-wire.HISTORY :])
        return None

    def _permit_time_is_wrong(
        self, number: int, circuit: Circuit, deadline: int | None, operation: Operation
    ) -> str | None:
        """The manager's clock when it granted a probe: not after its answer was there.

        Nor before the turn began that granted it.
        """
        if deadline is None:
            return None
        decided = to_seconds(deadline) - circuit.config.permit_timeout
        if decided > operation.received + _ROUNDING:
            return f"its deadline is {decided - operation.received} s too far away"
        since = self._since[number - self._history.first]
        if decided < since - _ROUNDING:
            return f"its deadline is {since - decided} s too early"
        return None

    # -- a number that nobody was told -------------------------------------------------------------

    def _search(self, number: int, place: Place) -> Iterator[_Move]:
        yield from self._unanswered(number, place)
        told = self._told_by[number - self._history.first]
        for index, circuit in enumerate(place.circuits):
            if circuit is not None:
                yield from self._timer(number, index, circuit, place.opened[index], told)
        for session, killed_at in self._history.killed.items():
            if killed_at <= told:
                yield from self._death(session, place)

    def _unanswered(self, number: int, place: Place) -> Iterator[_Move]:
        """The next of each queue, if its own number is not known and it can have this one."""
        here = number - self._history.first
        for index, queue in enumerate(self._queues):
            done = place.done[index]
            if done == len(queue.operations):
                continue
            operation = queue.operations[done]
            if operation.number is not None:
                continue
            if operation.sent <= self._told_by[here] and self._asked_by[here] <= operation.received:
                move = self._apply(number, place, index, operation)
                if isinstance(move, _Move):
                    yield move

    def _timer(
        self, number: int, index: int, circuit: Circuit, opened: Opened | None, told: float
    ) -> Iterator[_Move]:
        """The manager's timer for a circuit has fired: with something to do, or for nothing."""
        for lost in overdue(circuit, told):
            fired = [one.deadline or 0.0 for one in lost]
            if circuit.state is State.OPEN and self._was_open_long_enough(number, opened, told):
                assert opened is not None
                half_open = model.time_out(_without(circuit, [*fired, opened.asked]))
                after = model.lose(half_open.circuit, lost)
                changes = (*half_open.changes, *after.changes)
                yield _Move(Step(after.circuit, None, changes), index)
            if lost and circuit.timers:
                # Its own timer, or one that was for something else and came late.
                late = [] if set(fired) & set(circuit.timers) else [min(circuit.timers)]
                yield _Move(model.lose(_without(circuit, [*fired, *late]), lost), index)
        # A timer is not taken back when what it was for has come to an end.
        if circuit.timers and min(circuit.timers) <= told + _ROUNDING:
            yield _Move(Step(_without(circuit, [min(circuit.timers)]), None), index)

    def _was_open_long_enough(self, number: int, opened: Opened | None, told: float) -> bool:
        """Not before `open_timeout` had passed: on the manager's clock, and on everybody's.

        Its Unix time is corrected now and then; then the other one tells.
        """
        if opened is None:
            return False
        if told - opened.since < opened.term - _ROUNDING:
            waited = told - opened.since
            self._note(number, f"it is half-open {waited} s after it opened, of {opened.term} s")
            return False
        events = self.events.get(number, [])
        if not events:
            return False
        passed = events[0].at.timestamp() - opened.at
        if passed >= opened.term - 2 * _ROUNDING or told - opened.asked >= opened.term:
            return True
        self._note(number, f"it turned half-open after {passed} s instead of {opened.term} s")
        return False

    def _death(self, session: int, place: Place) -> Iterator[_Move]:
        """A killed process's permit comes back, the oldest first; nothing is heard of it again."""
        held = [
            (one, index)
            for index, circuit in enumerate(place.circuits)
            if circuit is not None
            for one in (*circuit.out, *circuit.gone)
            if one.session == session
        ]
        if not held:
            return
        one, index = min(held, key=lambda each: each[0].permit)
        circuit = place.circuits[index]
        assert circuit is not None
        queue = next(
            place
            for place, queue in enumerate(self._queues)
            if (queue.session, queue.connection) == (session, DATA)
        )
        yield _Move(model.bury(circuit, one), index, ends=queue)
        for one, index in held:
            if self._known.get(one.permit) is None:  # the grant could not be delivered
                circuit = place.circuits[index]
                assert circuit is not None
                step = model.report(circuit, one.permit, Outcome.NEUTRAL, None)
                assert step is not None
                yield _Move(step, index)


# -- comparing -------------------------------------------------------------------------------------


def _with(row: tuple[T, ...], place: int, value: T) -> tuple[T, ...]:
    return (*row[:place], value, *row[place + 1 :])


def overdue(circuit: Circuit, told: float) -> Iterator[tuple[Out, ...]]:
    """Which probes a timer may have taken that had fired before then: none, or some of them.

    It takes those whose time came first; how late it was itself, nobody was told. Nor what time a
    probe had that was granted to a killed process, so such a one may be among them or not.
    """
    probes = circuit.probes
    unknown = [one for one in probes if one.deadline == -math.inf]
    known = [one for one in probes if -math.inf < (one.deadline or 0.0) <= told + _ROUNDING]
    for few in range(len(known) + 1):
        for many in range(len(unknown) + 1):
            for some in combinations(unknown, many):
                yield (*known[:few], *some)


def _without(circuit: Circuit, fired: Sequence[float]) -> Circuit:
    """Its timers less those that have fired."""
    timers = list(circuit.timers)
    for timer in fired:
        if timer in timers:
            timers.remove(timer)
    return circuit._replace(timers=tuple(timers))


def _change(event: Event) -> Change:
    return Change(event.old, event.new, event.cause, event.generation)


def state_change(event: Event) -> StateChange:
    """What a history tells of an event."""
    return StateChange(
        version=event.version,
        old=event.old,
        new=event.new,
        cause=event.cause,
        generation=event.generation,
        at=event.at,
    )


def _retry_after_is_wrong(
    state: State, retry_after: float | None, opened: Opened | None, received: float
) -> str | None:
    if state is not State.OPEN:
        return differs("retry_after", retry_after, None)
    if retry_after is None or opened is None:
        return f"retry_after is {retry_after}, and it is open"
    if retry_after > opened.term + _ROUNDING:
        return f"retry_after is {retry_after} s, of {opened.term} s"
    left = opened.since + opened.term - received  # at least, unless nobody knows since when
    if -math.inf < left < math.inf and retry_after < left - _ROUNDING:
        return f"retry_after is {retry_after} s, and {left} s are left"
    return None
