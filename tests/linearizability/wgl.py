"""The same question without the manager's numbers: is there any order at all that explains a run?

Wing and Gong's search with Lowe's memory (Testing for linearizability, 2017), for small runs of one
circuit: it is given what each connection asked, in order, what was answered, and when. It shares
the model with the checker, and neither its replay nor what the manager says of its own order.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Final

from switchgear import wire
from switchgear.states import State

from . import model
from .answers import compare
from .model import Circuit, Step
from .operations import Operation

MOST_STATES: Final = 500_000  # before the search gives up

_Place = tuple[tuple[int, ...], Circuit]  # how many of each queue were decided, and what came of it


class UndecidedError(Exception):
    """The search has tried too much."""


def linearizable(circuit: Circuit, queues: list[list[Operation]]) -> bool:
    """Whether some order of decisions gives every answer, and each decision is within its call.

    Args:
        circuit: As it was before.
        queues: What each connection asked, in order; all of it was answered or acknowledged. No
            permit may be lost meanwhile; the circuit may turn half-open whenever it is open.

    Raises:
        UndecidedError: There were too many orders.
    """
    permits = {
        operation.number: place
        for place, operation in enumerate(one for queue in queues for one in queue)
        if isinstance(operation.answer, wire.Granted)
    }
    # When the first one of what is left of a queue was answered.
    answered = [
        [*accumulate((one.received for one in queue[::-1]), min, initial=math.inf)][::-1]
        for queue in queues
    ]
    untried: list[_Place] = [((0,) * len(queues), circuit)]
    seen: set[_Place] = set()
    while untried:
        place = untried.pop()
        if place in seen:
            continue
        seen.add(place)
        if len(seen) > MOST_STATES:
            raise UndecidedError
        done, before = place
        if all(at == len(queue) for at, queue in zip(done, queues, strict=True)):
            return True
        # Who was not decided before this instant comes after somebody who was answered by then.
        first = min(left[at] for left, at in zip(answered, done, strict=True))
        if before.state is State.OPEN:
            untried.append((done, model.time_out(before).circuit))
        for index, queue in enumerate(queues):
            at = done[index]
            if at == len(queue) or queue[at].sent > first:
                continue
            step = _decide(before, queue[at], permits)
            if step is not None:
                following = (*done[:index], at + 1, *done[index + 1 :])
                untried.append((following, step.circuit))
    return False


def _decide(circuit: Circuit, operation: Operation, permits: dict[int | None, int]) -> Step | None:
    """What comes of it, if that is what was answered."""
    number = permits.get(operation.number, -1)
    match operation.asked:
        case wire.Acquire():
            step: Step | None = model.acquire(circuit, number, operation.session, math.inf)
        case wire.Report(_, _, _, None, generation, outcome, _, error):
            step = model.report_leased(circuit, generation, outcome, error)
        case wire.Report(_, _, _, permit, _, outcome, _, error):
            step = model.report(circuit, permits.get(permit, -1), outcome, error)
        case wire.Batch(_, _, _, generation, successes, neutral, rejected, _):
            step = model.tally(circuit, generation, successes, neutral, rejected)
        case wire.Reset():
            step = model.reset(circuit)
        case wire.Declare(_, _, config):
            step = model.configure(circuit, config)
        case _:
            step = Step(circuit, None)
    if step is None:
        return None
    wrong = operation.answer is not None and compare(step, operation.answer) is not None
    # What timers were meant for is nothing to tell two circuits apart by.
    return None if wrong else step._replace(circuit=step.circuit._replace(timers=()))
