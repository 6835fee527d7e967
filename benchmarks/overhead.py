"""What does a breaker add to a function that does some work?"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from call_cost import call_decorated, call_direct
from measure import Candidate, Figure, Settings, calibrate, percentile, sample, settled
from peers import (
    CircuitBreaker,
    Interlock,
    Leased,
    PyBreaker,
    PyBreakerRedis,
    Strict,
    Thresholds,
    candidates,
    manager,
    unique,
)
from report import Goal, Section, Table

WORK: Final = {"100 us": 100e-6, "1 ms": 1e-3}  # processor time of the function
WITHOUT: Final = "without a breaker"


def spin(turns: int) -> None:
    """Use the processor."""
    for _ in range(turns):
        pass


def turns_for(seconds: float) -> int:
    """How often to turn for so long, on this machine as it is now."""
    turns = 1000
    for _ in range(3):
        times = []
        for _ in range(100):
            began = time.perf_counter()
            spin(turns)
            times.append(time.perf_counter() - began)
        turns = max(1, round(turns * seconds / percentile(times, 0.5)))
    return turns


class Found(NamedTuple):
    """Of one candidate, an entry a round."""

    times: list[float]  # seconds a call
    ratios: list[float]  # to the function alone, just before or just after


def measure(settings: Settings, address: str, seconds: float) -> dict[str, Found]:
    """Each sample beside one without a breaker: what is looked for is less than the noise."""
    work = partial(spin, turns_for(seconds))
    without = Candidate(WITHOUT, partial(call_decorated, work))
    listed = []
    kinds = (Leased, Strict, PyBreaker, CircuitBreaker, Interlock, PyBreakerRedis)
    for peer in candidates(settings, address, *kinds):
        circuit = peer.make(unique("work"), Thresholds())
        assert circuit is not None
        run: Callable[[int], float]
        if circuit.direct is None:
            run = partial(call_decorated, circuit.decorate(function_of(work)))
        else:
            run = partial(call_direct, circuit.direct, work)
        listed.append(Candidate(peer.label, run, partial(call_once, run, circuit.settle)))

    length = settings.pick(0.025, 0.003)
    calls = calibrate(without, length)
    counts = {each.label: calibrate(each, length) for each in listed}
    found = {WITHOUT: Found([], []), **{each.label: Found([], []) for each in listed}}
    with settled():
        for number in range(settings.pick(81, 3)):
            first = number % len(listed)
            for each in [*listed[first:], *listed[:first]]:
                if number % 2:
                    alone = sample(without, calls)
                    took = sample(each, counts[each.label])
                else:
                    took = sample(each, counts[each.label])
                    each.prepare()  # nothing of it is left to be done in the other's time
                    alone = sample(without, calls)
                found[WITHOUT].times.append(alone)
                found[each.label].times.append(took)
                found[each.label].ratios.append(took / alone)
    return found


def call_once(run: Callable[[int], float], settle: Callable[[], object]) -> None:
    """Before a sample: what was not called for a second may have to ask, and that is not in it."""
    run(1)
    settle()


def quartiles(found: Found) -> Figure:
    """How much dearer it is than without a breaker: the median round and the quartiles."""
    return Figure(*(percentile(found.ratios, share) for share in (0.5, 0.25, 0.75)))


def function_of(work: Callable[[], Any]) -> Callable[[], Any]:
    """A function with a name, which some decorators want."""

    def function() -> Any:
        return work()

    return function


def run(settings: Settings) -> Section:
    """Measure both amounts of work."""
    with manager() as ours:
        found = {name: measure(settings, ours.address, seconds) for name, seconds in WORK.items()}
    rows = []
    for label in next(iter(found.values())):
        row = [label]
        for by_label in found.values():
            row.append(f"{Figure.of(by_label[label].times).middle * 1e6:,.1f}")
            row.append(_percent(quartiles(by_label[label])) if label != WITHOUT else "")
        rows.append(row)
    head = ["a function of"]
    for name in found:
        head += [f"{name}: us a call", "slower by"]
    slower = quartiles(found["100 us"][Leased.label])
    goal = Goal(
        "a function of 100 us of processor time slows down by at most 3 %",
        _percent(slower),
        slower.middle <= 1.03,
    )
    return Section(
        "What it adds to real work",
        "overhead",
        tables=[Table("Overhead on a function that works", head, rows)],
        goals=[goal],
        notes=[
            "The function counts; one thread, a closed circuit. Each short sample with a breaker "
            "stands beside one without, and is compared with that; in brackets are the quartiles "
            "of the rounds, because single rounds of so short samples are all noise.",
            "One call before each sample is not counted: ours asks the manager after a second "
            "without a call, which takes as long as a strict call does.",
        ],
    )


def _percent(slower: Figure) -> str:
    middle, low, high = ((value - 1) * 100 for value in slower)
    return f"{middle:.1f} % ({low:.1f} to {high:.1f})"
