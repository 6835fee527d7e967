"""What happens in an outage, to sixteen worker processes that call one service?

The story: the service is well, hangs and fails, and is well again, while the workers go on calling.
`revocation` is the one figure of it that needs many repetitions, measured on its own.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

from crew import Crew, crew, orders
from measure import Figure, Settings, percentile
from peers import (
    NEVER,
    Down,
    Interlock,
    InterlockRedis,
    Leased,
    Peer,
    PyBreaker,
    PyBreakerRedis,
    Strict,
    Thresholds,
    candidates,
    manager,
    unique,
)
from report import DASH, Chart, Goal, Section, Table, number, spread
from service import HANG, Connected, Failed, Line, Service, service

WORKERS: Final = 16
PAUSE: Final = 0.02  # seconds between two calls of a worker, on average
FAILURES, SUCCESSES, OPEN_TIMEOUT = 5, 2, 1.0
WINDOW: Final = 0.1  # seconds over which the traffic is counted


class Plan(NamedTuple):
    """Seconds from the start until the service breaks, until it is well again, until the end."""

    breaks: float
    heals: float
    ends: float


FULL: Final = Plan(0.8, 3.6, 6.4)
QUICK: Final = Plan(0.2, 1.0, 2.2)


# -- the workers -----------------------------------------------------------------------------------


class Story(NamedTuple):
    """An order: live through it, with this circuit in front of the service."""

    peer: Peer
    circuit: str
    service: str  # its socket
    ends: float  # seconds


class Call(NamedTuple):
    """What a worker saw of one call; seconds on the machine's monotonic clock."""

    start: float
    end: float
    how: str  # "ok", "failed" or "rejected"


def worker(number: int, pipe: Connection) -> None:
    """Call the service again and again, and write down what came of it."""
    for order in orders(pipe):
        if isinstance(order, Story):
            _live(number, pipe, order)
        else:
            _be_revoked(number, pipe, order)


def _live(number: int, pipe: Connection, story: Story) -> None:
    connection = Connected(story.service, number)
    circuit = story.peer.make(
        story.circuit,
        Thresholds(failures=FAILURES, successes=SUCCESSES, open_timeout=OPEN_TIMEOUT),
    )
    assert circuit is not None
    chance = random.Random(number)
    reached = answered = False

    def fetch() -> None:
        nonlocal reached, answered
        reached = True
        connection.fetch()
        answered = True

    call = circuit.decorate(fetch)
    expected = (*circuit.rejections, Failed)
    call()
    calls = []
    pipe.send("ready")
    began = pipe.recv()
    time.sleep(max(0.0, began - time.monotonic() + chance.uniform(0, PAUSE)))
    while (start := time.monotonic()) < began + story.ends:
        reached = answered = False
        with contextlib.suppress(*expected):
            call()
        # Not by the exception: pybreaker's call that trips raises a rejection in place of its own.
        how = "ok" if answered else "failed" if reached else "rejected"
        calls.append(Call(start, time.monotonic(), how))
        time.sleep(chance.uniform(0.5 * PAUSE, 1.5 * PAUSE))
    pipe.send(calls)
    circuit.close()
    connection.close()


# -- the story -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Round:
    """What was seen of one story."""

    peer: Peer
    began: float
    broke: float
    healed: float
    calls: Sequence[Sequence[Call]]  # by worker
    book: Sequence[Line]

    @property
    def trip(self) -> float:
        """When the fifth failing call had ended, or the first was rejected if that was earlier."""
        failed = sorted(call.end for calls in self.calls for call in calls if call.how == "failed")
        rejected = [call.start for calls in self.calls for call in calls if call.how == "rejected"]
        return min([*failed[FAILURES - 1 : FAILURES], *rejected], default=math.inf)

    @property
    def last_rejection(self) -> float | None:
        """Seconds from the trip to the last worker's first rejection; None: one never had any."""
        last = max(self._first_rejections())
        return None if last == math.inf else last - self.trip

    def _first_rejections(self) -> list[float]:
        """When each worker was first rejected; never is infinitely late."""
        return [
            next((call.start for call in calls if call.how == "rejected"), math.inf)
            for calls in self.calls
        ]

    @property
    def let_through(self) -> int:
        """Failing calls, of each worker until its first rejection."""
        return sum(
            call.how == "failed" and call.start < first
            for calls, first in zip(self.calls, self._first_rejections(), strict=True)
            for call in calls
        )

    @property
    def under_way(self) -> int:
        """Calls that had begun before the trip and ended after it."""
        return sum(
            call.how == "failed" and call.start < self.trip < call.end
            for calls in self.calls
            for call in calls
        )

    def _failing_probes(self) -> list[Line]:
        firsts = self._first_rejections()
        return [line for line in self.book if not line.well and line.arrived > firsts[line.worker]]

    def _good_probes(self) -> list[Line]:
        """Calls that the well service got while the circuit cannot have been closed yet.

        It cannot before the last success that it needs has ended: of all calls where the workers
        share a circuit, of the worker's own where they do not.
        """
        firsts = self._first_rejections()
        well = [line for line in self.book if line.well and line.arrived > firsts[line.worker]]
        groups = [well]
        if not self.peer.shared:
            groups = [[x for x in well if x.worker == n] for n in range(len(self.calls))]
        probes = []
        for group in groups:
            closed = sorted(line.left for line in group)[SUCCESSES - 1 : SUCCESSES]
            probes += [line for line in group if not closed or line.arrived < closed[0]]
        return probes

    @property
    def probes(self) -> tuple[int, int]:
        """How many reached the broken service, and how many the healed one."""
        return len(self._failing_probes()), len(self._good_probes())

    @property
    def at_once(self) -> int:
        """The most probes that the service had before it at once."""
        probes = [*self._failing_probes(), *self._good_probes()]
        return max(
            (sum(a.arrived <= b.arrived < a.left for a in probes) for b in probes), default=0
        )

    @property
    def recovery(self) -> float | None:
        """Seconds from the first good probe to 90 % of the traffic before; None: not seen."""
        good = sorted(line.arrived for line in self._good_probes())
        back = self.back
        return back + self.healed - good[0] if back is not None and good else None

    @property
    def back(self) -> float | None:
        """Seconds from the healing to 90 % of the traffic before; None: not in the time we had."""
        ends = sorted(call.end for calls in self.calls for call in calls if call.how == "ok")
        before = [end for end in ends if end < self.broke]
        wanted = 0.9 * len(before) / (self.broke - self.began) * WINDOW
        after = [end for end in ends if end > self.healed]
        first = 0
        for last, end in enumerate(after):
            while after[first] < end - WINDOW:
                first += 1
            if last - first + 1 >= wanted:
                return end - self.healed
        return None


def live(workers: Crew, upstream: Service, peer: Peer, plan: Plan, shift: float) -> Round:
    """One story with one candidate. The healing comes `shift` seconds later than planned."""
    ends = plan.ends + shift
    ready = workers.ask(Story(peer, unique("outage"), upstream.path, ends))
    assert ready == ["ready"] * len(workers)
    upstream.take_book()
    began = time.monotonic() + 0.05
    workers.tell(began)
    time.sleep(plan.breaks + 0.05)
    broke = upstream.be(False)
    time.sleep(max(0.0, began + plan.heals + shift - time.monotonic()))
    healed = upstream.be(True)
    calls = workers.hear()
    return Round(peer, began, broke, healed, calls, upstream.take_book())


# -- revocation ------------------------------------------------------------------------------------


class Revoke(NamedTuple):
    """An order: call a circuit of your own till you are rejected; the first worker trips it."""

    peer: Peer
    circuit: str
    trips_after: float  # seconds
    patience: float  # seconds


class Revoked(NamedTuple):
    """What a worker saw; seconds on the machine's monotonic clock."""

    rejected: float  # its first rejection
    admitted: float  # the start of the last call it was let through with
    failed: float  # the end of its last failing call; 0 if it had none
    failures: int  # how many it had


REVOKED_WORKERS: Final = 8
REVOKED_PAUSE: Final = 0.001  # seconds


def _be_revoked(number: int, pipe: Connection, order: Revoke) -> None:
    # One failure trips it: the workers' successes in between would reset a count.
    thresholds = Thresholds(failures=1, successes=1, open_timeout=NEVER)
    circuit = order.peer.make(order.circuit, thresholds)
    assert circuit is not None
    failing, reached, failures, failed = False, False, 0, 0.0

    def function() -> None:
        nonlocal reached, failures, failed
        reached = True
        if failing:
            failures += 1
            failed = time.monotonic()
            raise Down

    call = circuit.decorate(function)
    expected = (*circuit.rejections, Down)
    for _ in range(3):
        call()
    pipe.send("ready")
    pipe.recv()
    began = admitted = time.monotonic()
    rejected = began + order.patience
    while (start := time.monotonic()) < began + order.patience:
        failing = number == 0 and start - began > order.trips_after
        reached = False
        with contextlib.suppress(*expected):
            call()
        if not reached:
            rejected = time.monotonic()
            break
        admitted = start
        if not failing:
            time.sleep(REVOKED_PAUSE)
    pipe.send(Revoked(rejected, admitted, failed, failures))
    circuit.close()


class Revocation(NamedTuple):
    """Seconds after the trip, one of each round; and of each worker in each round."""

    last_rejection: list[float]
    last_admission: list[float]
    rejections: list[float]
    failures: list[float]  # that it took to trip it


def revoke(workers: Crew, peer: Peer, rounds: int, patience: float) -> Revocation:
    """Trip a circuit again and again while workers use it."""
    found = Revocation([], [], [], [])
    chance = random.Random(7)
    for _ in range(rounds):
        order = Revoke(peer, unique("revoked"), chance.uniform(0.03, 0.05), patience)
        workers.ask(order, REVOKED_WORKERS)
        results: list[Revoked] = workers.ask("go", REVOKED_WORKERS)
        trip = results[0].failed
        others = results[1:]
        found.failures.append(results[0].failures)
        found.last_rejection.append(max(seen.rejected for seen in others) - trip)
        found.last_admission.append(max(0.0, max(seen.admitted for seen in others) - trip))
        found.rejections.extend(seen.rejected - trip for seen in others)
    return found


# -- all of it -------------------------------------------------------------------------------------


def run(settings: Settings) -> Section:
    """Live through outages, in turns, and trip circuits."""
    plan = settings.pick(FULL, QUICK)
    stories: dict[str, list[Round]] = {}
    revocations: dict[str, Revocation] = {}
    with (
        manager() as ours,
        service() as upstream,
        crew(settings.pick(WORKERS, REVOKED_WORKERS), worker) as workers,
    ):
        kinds = (Leased, PyBreaker, Interlock, PyBreakerRedis, InterlockRedis)
        peers = candidates(settings, ours.address, *kinds)
        chance = random.Random(5)
        for number in range(settings.pick(4, 1)):
            shift = chance.uniform(0.0, 0.5) if number else 0.0
            for peer in peers:
                stories.setdefault(peer.label, []).append(
                    live(workers, upstream, peer, plan, shift)
                )
        for peer in candidates(settings, ours.address, Leased, Strict, PyBreakerRedis):
            rounds = settings.pick(150, 5)
            revocations[peer.label] = revoke(workers, peer, rounds, 3.0)
        for peer in candidates(settings, ours.address, InterlockRedis):  # it polls: seconds
            revocations[peer.label] = revoke(workers, peer, settings.pick(12, 1), 4.0)
    return Section(
        "An outage",
        "outage",
        tables=[_story_table(stories), _revocation_table(revocations)],
        charts=[
            Chart(
                "outage",
                "An outage as each worker process sees it, call by call",
                lambda: _draw(stories),
            )
        ],
        goals=_goals(stories, revocations),
        notes=_notes(plan, settings),
    )


def _notes(plan: Plan, settings: Settings) -> list[str]:
    return [
        f"{settings.pick(WORKERS, REVOKED_WORKERS)} worker processes call one service, each over a "
        f"connection of its own, with pauses of {PAUSE * 1e3:.0f} ms on average. After "
        f"{plan.breaks:g} s the service breaks: a call hangs for {HANG:g} s and then fails. At "
        f"{plan.heals:g} s, or up to half a second later, it is well again. Every candidate: "
        f"{FAILURES} failures, {OPEN_TIMEOUT:g} s open, {SUCCESSES} successes, one probe at a time "
        "where it has such a limit.",
        "Everything is read from what the workers and the service wrote down, and nothing from "
        "what a breaker says of itself. *Trip*: the moment when the fifth failing call had ended, "
        "or a worker was rejected, whichever came first. *Let through*: the failing calls of each "
        "worker until its first rejection. *Under way*: those of them that had begun before the "
        "trip and ended after it; nobody can call them back.",
        "*Probes* are the calls that reach the service from a worker that has been rejected: while "
        "it is broken, all of them; once it is well, those that arrive before the "
        f"{SUCCESSES} successes that close the circuit have ended (of all workers where they share "
        "a circuit, of the worker's own where they do not). A breaker that is slower to close than "
        "it need be is not charged for it here.",
        f"*Full traffic*: {WINDOW * 1e3:.0f} ms with 90 % of the successful calls that there were "
        "before the outage; these are part of the time. Counted from the first good probe, too, "
        "because when that comes depends on when the service happens to heal.",
        f"*Revocation*: {REVOKED_WORKERS} worker processes call a circuit that one failure trips, "
        f"with pauses of {REVOKED_PAUSE * 1e3:.0f} ms, till one of them lets its calls fail until "
        "it is rejected itself. The clock starts when the last of these calls raises, before any "
        "breaker knows. Another worker notices with its next call, so up to a pause is its own. "
        "Where it takes more failures than one, a success of another worker has erased it.",
    ]


# -- showing ---------------------------------------------------------------------------------------


def _over(rounds: Sequence[Round], value: Callable[[Round], float | None]) -> list[float]:
    return [found for each in rounds if (found := value(each)) is not None]


def _cell(values: Sequence[float], scale: float = 1.0) -> str:
    return spread(Figure.of(values), scale) if values else "never"


def _counts(values: Sequence[float]) -> str:
    figure = Figure.of(values)
    if figure.low == figure.high:
        return f"{figure.middle:.0f}"
    return f"{figure.middle:.0f} ({figure.low:.0f} to {figure.high:.0f})"


def _story_table(stories: dict[str, list[Round]]) -> Table:
    lines: list[tuple[str, Callable[[Sequence[Round]], str]]] = [
        ("failing calls let through", _counted(lambda each: each.let_through)),
        ("of them under way at the trip", _counted(lambda each: each.under_way)),
        ("trip to the last worker's first rejection, ms", _timed(lambda each: each.last_rejection)),
        ("probes while it was broken", _counted(lambda each: each.probes[0])),
        ("probes when it was well", _counted(lambda each: each.probes[1])),
        ("most probes at once", _counted(lambda each: each.at_once)),
        ("first good probe to full traffic, ms", _timed(lambda each: each.recovery)),
        ("healing to full traffic, ms", _timed(lambda each: each.back)),
    ]
    rows = [[what, *map(show, stories.values())] for what, show in lines]
    rounds = next(iter(stories.values()))
    head = [
        f"{len(rounds[0].calls)} worker processes, {len(rounds)} rounds",
        *(f"{x}{'' if all_[0].peer.shared else ', one each'}" for x, all_ in stories.items()),
    ]
    return Table("The outage", head, rows)


def _counted(value: Callable[[Round], float]) -> Callable[[Sequence[Round]], str]:
    return lambda rounds: _counts([value(each) for each in rounds])


def _timed(value: Callable[[Round], float | None]) -> Callable[[Sequence[Round]], str]:
    def show(rounds: Sequence[Round]) -> str:
        found = [seconds for each in rounds if (seconds := value(each)) is not None]
        return spread(Figure.of(found), 1e3) if found else DASH

    return show


def _counts(values: Sequence[float]) -> str:
    figure = Figure.of(values)
    if figure.low == figure.high:
        return f"{figure.middle:.0f}"
    return f"{figure.middle:g} ({figure.low:.0f} to {figure.high:.0f})"


def _revocation_table(revocations: dict[str, Revocation]) -> Table:
    def shares(values: Sequence[float]) -> list[str]:
        return [" / ".join(number(percentile(values, x) * 1e3) for x in (0.5, 0.99, 1.0))]

    rows = [
        [
            label,
            f"{len(found.failures)}",
            _counts(found.failures),
            *shares(found.last_admission),
            *shares(found.rejections),
            *shares(found.last_rejection),
        ]
        for label, found in revocations.items()
    ]
    head = [
        "ms after the trip: p50 / p99 / most",
        "trips",
        "failures a trip",
        "last call let through",
        "a worker's first rejection",
        "the last worker's first rejection",
    ]
    return Table(f"Revocation, {REVOKED_WORKERS} worker processes", head, rows)


def _draw(stories: dict[str, list[Round]]) -> Any:
    import charts

    shown = [
        label for label in ("switchgear", "pybreaker", "pybreaker on Redis") if label in stories
    ]
    panels, captions = {}, {}
    moments: dict[str, float] = {}
    for label in shown:
        first = stories[label][0]
        panels[label] = [
            [(call.start - first.began, call.end - first.began, call.how) for call in calls]
            for calls in first.calls
        ]
        bad, good = first.probes
        own = "" if first.peer.shared else " in each process"
        captions[label] = (
            f"{first.let_through} failing calls let through, {bad + good} probes, at most "
            f"{first.at_once} at once"
        )
        if own:
            panels[f"{label}{own}"] = panels.pop(label)
            captions[f"{label}{own}"] = captions.pop(label)
        moments = {
            "the service hangs": first.broke - first.began,
            "it is well again": first.healed - first.began,
        }
    title = f"An outage, as {len(next(iter(panels.values())))} worker processes see it"
    return charts.timeline(panels, moments, title, captions)


def _goals(stories: dict[str, list[Round]], revocations: dict[str, Revocation]) -> list[Goal]:
    ours = stories[Leased.label]
    over = max(each.let_through - FAILURES - each.under_way for each in ours)
    let_through = _counts([each.let_through for each in ours])
    under_way = _counts([each.under_way for each in ours])
    last = revocations[Leased.label].last_rejection
    late = percentile(last, 0.99)
    at_once = max(each.at_once for each in ours)
    return [
        Goal(
            "an outage lets through 5 failing calls and those already under way, no more",
            f"{let_through} let through, {under_way} of them under way at the trip; "
            f"{max(0, over)} more in the worst of {len(ours)} rounds",
            over <= 0,
        ),
        Goal(
            "the last worker is rejected within 5 ms of the trip, p99",
            f"{late * 1e3:.1f} ms; median {percentile(last, 0.5) * 1e3:.1f} ms, {len(last)} trips",
            late <= 0.005,
        ),
        Goal(
            "probes at recovery: exactly `max_concurrent_requests` at a time, which is 1",
            f"{at_once} at once in the worst of {len(ours)} rounds",
            at_once == 1,
        ),
    ]
