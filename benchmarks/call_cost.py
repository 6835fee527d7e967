"""What does a call through a breaker cost, closed, open and half-open?"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import repeat
from typing import Any, Final

from measure import Candidate, Figure, Samples, Settings, in_turns, ratio
from peers import ENDLESS, NEVER, Circuit, Peer, Thresholds, candidates, manager, unique
from report import DASH, Chart, Goal, Section, Table, micros, number, spread

STATES: Final = ("closed", "open", "half-open")
THREADS: Final = 4
MOST_FAILURES: Final = 20  # calls that fail until a circuit is open
WARM_UP: Final = 50  # calls, before a circuit is measured
MOST_REJECTIONS: Final = 20_000  # a sample: the one exception of an open purgatory circuit grows

BARE: Final = "a bare function"
BARE_CASES: Final = {"closed": "called", "open": "raises"}  # in the charts
DIRECT, DECORATED = "direct", "decorated"


def empty() -> None:
    """The function that is called."""


async def empty_async() -> None:
    """The same for asyncio."""


def raising() -> None:
    """What a rejection is compared with."""
    raise ValueError


async def raising_async() -> None:
    """The same for asyncio."""
    raise ValueError


# -- loops: each makes `calls` calls and returns the seconds they took -----------------------------


def call_direct(through: Callable[..., Any], function: Callable[[], Any], calls: int) -> float:
    began = time.perf_counter()
    for _ in repeat(None, calls):
        through(function)
    return time.perf_counter() - began


def call_decorated(function: Callable[[], Any], calls: int) -> float:
    began = time.perf_counter()
    for _ in repeat(None, calls):
        function()
    return time.perf_counter() - began


def reject_direct(
    through: Callable[..., Any],
    function: Callable[[], Any],
    rejections: tuple[type[BaseException], ...],
    calls: int,
) -> float:
    began = time.perf_counter()
    for _ in repeat(None, calls):
        try:
            through(function)
        except rejections:
            pass
        else:
            raise RuntimeError("let through by an open circuit")
    return time.perf_counter() - began


def reject_decorated(
    function: Callable[[], Any], rejections: tuple[type[BaseException], ...], calls: int
) -> float:
    began = time.perf_counter()
    for _ in repeat(None, calls):
        try:
            function()
        except rejections:
            pass
        else:
            raise RuntimeError("let through by an open circuit")
    return time.perf_counter() - began


async def await_direct(
    through: Callable[..., Awaitable[Any]], function: Callable[[], Any], calls: int
) -> float:
    began = time.perf_counter()
    for _ in repeat(None, calls):
        await through(function)
    return time.perf_counter() - began


async def await_decorated(function: Callable[[], Awaitable[Any]], calls: int) -> float:
    began = time.perf_counter()
    for _ in repeat(None, calls):
        await function()
    return time.perf_counter() - began


async def await_reject_direct(
    through: Callable[..., Awaitable[Any]],
    function: Callable[[], Any],
    rejections: tuple[type[BaseException], ...],
    calls: int,
) -> float:
    began = time.perf_counter()
    for _ in repeat(None, calls):
        try:
            await through(function)
        except rejections:
            pass
        else:
            raise RuntimeError("let through by an open circuit")
    return time.perf_counter() - began


async def await_reject_decorated(
    function: Callable[[], Awaitable[Any]],
    rejections: tuple[type[BaseException], ...],
    calls: int,
) -> float:
    began = time.perf_counter()
    for _ in repeat(None, calls):
        try:
            await function()
        except rejections:
            pass
        else:
            raise RuntimeError("let through by an open circuit")
    return time.perf_counter() - began


def on_threads(loop: Callable[[int], float], calls: int) -> float:
    """The same loop on four threads at once, for as many calls in all; wall time."""
    share = max(1, calls // THREADS)
    start = threading.Barrier(THREADS + 1)
    failures: list[BaseException] = []

    def work() -> None:
        start.wait()
        try:
            loop(share)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    if failures:
        raise failures[0]
    return took * calls / (share * THREADS)


# -- candidates ------------------------------------------------------------------------------------


def thresholds_for(state: str, threads: int) -> Thresholds:
    """A circuit that stays in the state for as long as it is measured."""
    if state == "half-open":
        return Thresholds(successes=ENDLESS, open_timeout=0.02, at_once=threads)
    return Thresholds(open_timeout=NEVER)


class Case:
    """One candidate in one state. Open circuits are fresh ones for each sample."""

    def __init__(self, peer: Peer, form: str, state: str, threads: int) -> None:
        self.label = f"{peer.label}, {form}"
        self._peer, self._form, self._state, self._threads = peer, form, state, threads
        self._circuit: Circuit | None = None
        self._loop: Callable[[int], float] = lambda calls: 0.0

    def prepare(self) -> None:
        """Have the circuit in its state."""
        if self._circuit is not None:
            if self._state != "open":
                return
            self._circuit.close()
        circuit = self._peer.make(unique("cost"), thresholds_for(self._state, self._threads))
        assert circuit is not None
        self._circuit = circuit
        decorated = circuit.decorate(empty)
        if self._form == DIRECT:
            assert circuit.direct is not None
            self._loop = partial(call_direct, circuit.direct, empty)
        else:
            self._loop = partial(call_decorated, decorated)
        self._loop(WARM_UP)
        if self._state == "closed":
            return
        rejected = circuit.fail(MOST_FAILURES)
        if self._state == "half-open":
            assert circuit.half_open is not None
            circuit.half_open()
            self._loop(1)
            return
        if not rejected:
            raise RuntimeError(f"{self.label}: it does not open")
        if self._form == DIRECT:
            self._loop = partial(reject_direct, circuit.direct, empty, circuit.rejections)
        else:
            self._loop = partial(reject_decorated, decorated, circuit.rejections)

    def run(self, calls: int) -> float:
        """See Candidate. What the calls left for later is part of what they cost."""
        assert self._circuit is not None
        took = on_threads(self._loop, calls) if self._threads > 1 else self._loop(calls)
        began = time.perf_counter()
        self._circuit.settle()
        return took + time.perf_counter() - began

    def end(self) -> None:
        """Leave nothing running."""
        if self._circuit is not None:
            self._circuit.close()


class AsyncCase:
    """The same for asyncio, on one event loop for all."""

    def __init__(
        self, events: asyncio.AbstractEventLoop, peer: Peer, form: str, state: str
    ) -> None:
        self.label = f"{peer.label}, {form}"
        self._events, self._peer, self._form, self._state = events, peer, form, state
        self._circuit: Circuit | None = None
        self._loop: Callable[[int], Awaitable[float]]

    def prepare(self) -> None:
        """Have the circuit in its state."""
        self._events.run_until_complete(self._prepare())

    async def _prepare(self) -> None:
        if self._circuit is not None:
            if self._state != "open":
                return
            self._circuit.close()
        circuit = await self._peer.make_async(unique("cost"), thresholds_for(self._state, 1))
        assert circuit is not None
        self._circuit = circuit
        decorated = circuit.decorate(empty_async)
        if self._form == DIRECT:
            assert circuit.direct is not None
            self._loop = partial(await_direct, circuit.direct, empty_async)
        else:
            self._loop = partial(await_decorated, decorated)
        await self._loop(WARM_UP)
        if self._state == "closed":
            return
        rejected = await circuit.fail_async(MOST_FAILURES)
        if self._state == "half-open":
            assert circuit.half_open is not None
            wait = circuit.half_open()
            if wait is not None:
                await wait
            await self._loop(1)
            return
        if not rejected:
            raise RuntimeError(f"{self.label}: it does not open")
        if self._form == DIRECT:
            assert circuit.direct is not None
            self._loop = partial(
                await_reject_direct, circuit.direct, empty_async, circuit.rejections
            )
        else:
            self._loop = partial(await_reject_decorated, decorated, circuit.rejections)

    def run(self, calls: int) -> float:
        """See Candidate. What the calls left for later is part of what they cost."""

        async def measured() -> float:
            return await self._loop(calls)

        assert self._circuit is not None
        took = self._events.run_until_complete(measured())
        began = time.perf_counter()
        self._circuit.settle()
        return took + time.perf_counter() - began

    def end(self) -> None:
        """Leave nothing running."""

        async def close() -> None:
            if self._circuit is not None:
                self._circuit.close()
                await asyncio.sleep(0)

        self._events.run_until_complete(close())


def bare(state: str, threads: int) -> Candidate:
    """No breaker at all."""
    if state == "open":
        loop = partial(reject_decorated, raising, (ValueError,))
    else:
        loop = partial(call_decorated, empty)
    return Candidate(BARE, partial(on_threads, loop) if threads > 1 else loop)


def bare_async(events: asyncio.AbstractEventLoop, state: str) -> Candidate:
    """The same for asyncio."""

    def run(calls: int) -> float:
        if state == "open":
            loop = await_reject_decorated(raising_async, (ValueError,), calls)
        else:
            loop = await_decorated(empty_async, calls)
        return events.run_until_complete(loop)

    return Candidate(BARE, run)


def forms_of(circuit: Circuit | None, state: str, every: bool) -> list[str]:
    """How a circuit can be called in this state; nothing where it cannot be kept in it."""
    if circuit is None or (state == "half-open" and circuit.half_open is None):
        return []
    forms = [DECORATED] if circuit.direct is None else [DIRECT, DECORATED]
    return forms if every else forms[:1]


# -- measuring -------------------------------------------------------------------------------------


def measure_sync(peers: list[Peer], state: str, threads: int, settings: Settings) -> Samples:
    """One column of the table."""
    cases = []
    for peer in peers:
        probe = peer.make(unique("probe"), thresholds_for(state, threads))
        every = threads == 1 and state == "closed"
        cases += [Case(peer, form, state, threads) for form in forms_of(probe, state, every)]
        if probe is not None:
            probe.close()
    return _measure([bare(state, threads)], cases, state, settings)


def measure_async(
    events: asyncio.AbstractEventLoop, peers: list[Peer], state: str, settings: Settings
) -> Samples:
    """One column of the table of asyncio."""
    cases = []
    for peer in peers:
        probe = events.run_until_complete(
            peer.make_async(unique("probe"), thresholds_for(state, 1))
        )
        every = state == "closed"
        cases += [AsyncCase(events, peer, form, state) for form in forms_of(probe, state, every)]
    return _measure([bare_async(events, state)], cases, state, settings)


def _measure(bares: list[Candidate], cases: list[Any], state: str, settings: Settings) -> Samples:
    most = {"most": MOST_REJECTIONS} if state == "open" else {}
    listed = [Candidate(case.label, case.run, case.prepare, **most) for case in cases]
    try:
        return in_turns([*bares, *listed], settings.pick(9, 2), settings.pick(0.1, 0.004))
    finally:
        for case in cases:
            case.end()


Columns = dict[tuple[str, str], Samples]  # mode and state to the samples of its candidates


def run(settings: Settings) -> Section:
    """Measure everything, one column after the other."""
    columns: Columns = {}
    events = asyncio.new_event_loop()
    with manager() as ours:
        peers = candidates(settings, ours.address)
        for state in STATES:
            columns["one thread", state] = measure_sync(peers, state, 1, settings)
            columns["four threads", state] = measure_sync(peers, state, THREADS, settings)
            columns["asyncio", state] = measure_async(events, peers, state, settings)
    _close(events)
    return Section(
        "What a call through a breaker costs",
        "call_cost",
        tables=[_table(columns, mode) for mode in ("one thread", "four threads", "asyncio")],
        charts=[
            Chart(
                f"call_cost_{mode.replace(' ', '_')}",
                f"Cost of a call by candidate and state, {mode}",
                partial(_draw, columns, mode),
            )
            for mode in ("one thread", "asyncio")
        ],
        goals=_goals(columns, {peer.label for peer in peers}),
        notes=NOTES,
    )


def _close(events: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(events):
        task.cancel()
    events.run_until_complete(asyncio.sleep(0.01))
    events.close()


NOTES: Final = (
    "The function does nothing; what is measured is the call through the breaker and the loop "
    "around it. Microseconds a call; on four threads, wall time over all their calls. What is left "
    "to be done later is included: a sample of ours ends when the manager has taken in every "
    "outcome of it.",
    "*Direct* is `execute(function)` or what the peer has for it, *decorated* a function that was "
    "decorated before. The other columns show the cheaper of a peer's two ways, which is direct.",
    "*Open* is a call that is rejected, the rejection caught; a bare function beside it raises "
    "`ValueError`, which is caught.",
    "*Half-open*: a circuit that stays half-open, because it wants a billion successes, and calls "
    "that are admitted as probes: one at a time, four on four threads. A dash: the first success "
    "closes it, so there is nothing to measure, or the peer does not do this at all.",
    "An open circuit is a fresh one for each sample, and a sample has at most 20,000 rejections: "
    "an open circuit of purgatory in memory raises the same exception each time, whose traceback "
    "grows, and with it the cost.",
)


# -- showing ---------------------------------------------------------------------------------------


def _table(columns: Columns, mode: str) -> Table:
    labels: list[str] = []
    for state in STATES:
        labels += [label for label in columns[mode, state] if label not in labels]
    base = Figure.of(columns[mode, "closed"]["switchgear, direct"]).middle
    rows = []
    for label in labels:
        row = [label]
        for state in STATES:
            samples = columns[mode, state].get(label)
            row.append(DASH if samples is None else spread(Figure.of(samples), 1e6))
        closed = columns[mode, "closed"].get(label)
        row.append(DASH if closed is None else f"{number(Figure.of(closed).middle / base)}")
        rows.append(row)
    head = [mode, "closed, us", "open, us", "half-open, us", "closed, ours = 1"]
    return Table(f"Call cost, {mode}", head, rows)


def _draw(columns: Columns, mode: str) -> Any:
    import charts

    panel: dict[str, dict[str, float]] = {}
    for state in STATES:
        for label, samples in columns[mode, state].items():
            name, _, form = label.rpartition(", ")
            if form == DECORATED and f"{name}, {DIRECT}" in columns[mode, "closed"]:
                continue
            case = BARE_CASES.get(state) if label == BARE else state
            if case is not None:
                panel.setdefault(name or label, {})[case] = Figure.of(samples).middle * 1e6
    ordered = dict(sorted(panel.items(), key=lambda item: next(iter(item[1].values()))))
    title = f"A call of an empty function through a breaker, {mode}"
    return charts.bars(ordered, title, "microseconds, logarithmic; shorter is better")


def _goals(columns: Columns, there: set[str]) -> list[Goal]:
    closed, rejecting = columns["one thread", "closed"], columns["one thread", "open"]
    ours = "switchgear, direct"
    goals = []
    for peer, label, most in (
        ("pybreaker", "pybreaker, direct", 0.6),
        ("circuitbreaker", "circuitbreaker, decorated", 1.0),
    ):
        promise = f"`execute` of an empty function costs at most {most:g} x {peer} in memory"
        if peer not in there:
            goals.append(Goal(promise, f"{peer} is not installed", None))
            continue
        found = ratio(closed, ours, label)
        goals.append(Goal(promise, f"{spread(found)} x", found.middle <= most))

    own, raised = Figure.of(rejecting[ours]).middle, Figure.of(rejecting[BARE]).middle
    limit = max(1e-6, 1.5 * raised)
    goals.append(
        Goal(
            "an open circuit rejects within 1 us, or 1.5 x raising and catching an exception",
            f"{micros(own)} us; raising costs {micros(raised)} us",
            own <= limit,
        )
    )
    goals += _goals_async(columns["asyncio", "closed"])

    promise = "`execute` is at least 150 x cheaper than pybreaker on Redis"
    if "pybreaker on Redis" in there:
        found = ratio(closed, "pybreaker on Redis, direct", ours)
        goals.append(Goal(promise, f"{spread(found)} x", found.middle >= 150))
    else:
        goals.append(Goal(promise, "no pybreaker or no Redis here", None))
    return goals


def _goals_async(closed: Samples) -> list[Goal]:
    rivals = [
        label
        for label in closed
        if label.split(",")[0] in ("aiobreaker", "hyx", "circuitbreaker", "interlock-cb")
    ]
    goals = []
    for what, label in (
        ("`execute_async`", "switchgear, direct"),
        ("the async decorator", "switchgear, decorated"),
    ):
        promise = f"{what} is no dearer than the cheapest peer on asyncio"
        if not rivals:
            goals.append(Goal(promise, "no peer is installed", None))
            continue
        cheapest = min(rivals, key=lambda rival: Figure.of(closed[rival]).middle)
        found = ratio(closed, label, cheapest)
        measured = f"{spread(found)} x {cheapest}"
        goals.append(Goal(promise, measured, found.middle <= 1.0))
    return goals
