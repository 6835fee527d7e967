"""Whether what callers saw is what the messages of their process say, and nothing else.

A call that was let through has a permit behind it or a lease, one that was rejected a rejection or
the lease of an open circuit; what came of it was handed over once. A lease is used from when it has
come, and not when its process has acted on its end; nor while a failure is unanswered.

Workers have one thread, so what is sent during a call is sent for it, or for what ended before.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from switchgear import wire
from switchgear.states import Outcome, State

from .history import OBSERVER, Called, History, Received
from .operations import DATA, Operation, Operations

_ROUNDING: Final = 2e-6  # seconds; an instant crosses as whole microseconds
_OUTCOMES: Final = {
    **{"returned": Outcome.SUCCESS, "raised": Outcome.FAILURE, "left": Outcome.NEUTRAL},
    **{"success": Outcome.SUCCESS, "failure": Outcome.FAILURE, "neutral": Outcome.NEUTRAL},
}


class _News(NamedTuple):
    """What a session was told of a lease on one circuit."""

    at: float
    done: float
    generation: int
    lease: wire.Leased | None  # None: what was leased of an earlier generation has ended
    ends: bool  # and of this one too


_REQUESTS: Final[dict[str, type[wire.Message]]] = {
    **{"stats": wire.GetStats, "metrics": wire.GetMetrics},
    **{"history": wire.GetHistory, "reset": wire.Reset},
}


def check_clients(history: History, operations: Operations) -> Iterator[str]:
    """What is wrong about them, but for what `check_leases` finds; nothing: all is well."""
    yield from _check_holders(history, operations)
    by_session: defaultdict[int, list[Operation]] = defaultdict(list)
    for operation in operations.all:
        by_session[operation.session].append(operation)
    calls: defaultdict[int, list[Called]] = defaultdict(list)
    for call in history.called:
        calls[call.session].append(call)
    received: defaultdict[int, list[Received]] = defaultdict(list)
    for each in history.received:
        received[each.session].append(each)
    for session in history.sessions:
        whole = session not in history.killed and not history.cut and not history.resumed
        yield from _Session(
            history, session, calls[session], by_session[session], received[session], whole
        ).check()


def check_listeners(history: History) -> Iterator[str]:
    """Who listens is told all that the observer is, in order and once; also its callbacks are."""
    events: dict[int, wire.Event] = {}
    told: defaultdict[int, dict[int, None]] = defaultdict(dict)  # whether again: `check_versions`
    for each in history.received:
        event = each.message
        if isinstance(event, wire.Event) and event.name in history.names:
            told[each.session][event.version] = None
            if each.session == OBSERVER:
                events[event.version] = event
    for session in history.listeners:
        whole = session not in history.killed
        versions = list(told[session])
        few = len(events) if whole else len(versions)
        if versions != list(events)[:few]:
            yield f"session {session} was told of {versions}, the observer of {list(events)}"
        heard: defaultdict[str, list[list[str]]] = defaultdict(list)
        for call in history.called:
            if call.session == session and call.what == "heard":
                heard[call.name].append(call.detail)
        for name in {*heard, *history.names}:
            changes = [
                [str(event.old), str(event.new)]
                for event in events.values()
                if event.name == name and event.old is not event.new
            ]
            few = len(changes) if whole else len(heard[name])
            if heard[name] != changes[:few]:
                yield f"session {session} heard {heard[name]} of {name!r}, it was {changes}"


def check_leases(history: History) -> Iterator[str]:
    """Leases say what the events say: the state of a generation, and until when it is open."""
    states = {(name, 1): State.CLOSED for name in history.names}
    half_open_at: dict[tuple[str, int], float] = {}  # by the generation before
    for each in history.received:
        event = each.message
        if each.session == OBSERVER and isinstance(event, wire.Event):
            states[event.name, event.generation] = event.new
            if event.cause == "timeout":
                half_open_at[event.name, event.generation - 1] = each.at
    until: dict[tuple[str, int], int | None] = {}
    for received in history.received:
        lease = received.message
        if not isinstance(lease, wire.Leased) or lease.name not in history.names:
            continue
        key = lease.name, lease.generation
        if states.get(key) is not lease.state:
            yield f"session {received.session} got {lease}, it was {states.get(key)} then"
        if until.setdefault(key, lease.until) != lease.until:
            yield f"session {received.session} got {lease}, another one until {until[key]}"
        ended = half_open_at.get(key, math.inf)
        if lease.until is not None and ended < lease.until / 1e6 - _ROUNDING:
            yield f"{lease} ended {lease.until / 1e6 - ended} s too early"


def _check_holders(history: History, operations: Operations) -> Iterator[str]:
    """Who has a lease is told of its end, before anything that was decided later.

    But for an open circuit that turns half-open: that end was part of the lease.
    """
    changes = {
        (event.name, event.generation): event
        for events in history.events().values()
        for event in (each.message for each in events)
        if isinstance(event, wire.Event) and event.cause != "config"
    }
    for queue in operations.queues:
        if queue.connection != DATA or queue.session in history.killed:
            continue
        told = max((one.number or 0 for one in queue.operations), default=0)
        news: defaultdict[str, list[wire.Leased | wire.Revoked]] = defaultdict(list)
        for received in history.received:
            message = received.message
            if received.session == queue.session and isinstance(
                message, (wire.Leased, wire.Revoked)
            ):
                news[message.name].append(message)
        for name, messages in news.items():
            for place, lease in enumerate(messages):
                change = changes.get((name, lease.generation + 1))
                if isinstance(lease, wire.Revoked) or change is None:
                    continue
                ended = any(
                    isinstance(later, wire.Revoked) or later.generation == change.generation
                    for later in messages[place + 1 :]
                )
                if change.new is not State.HALF_OPEN and change.operation < told and not ended:
                    yield f"session {queue.session} was not told that {lease} ended: {change}"


class _Session:
    """One worker and what it did."""

    def __init__(
        self,
        history: History,
        session: int,
        calls: list[Called],
        operations: list[Operation],
        received: list[Received],
        whole: bool,
    ) -> None:
        self._session = session
        self._epoch = history.epoch
        self._calls = sorted(calls, key=lambda call: call.begun)
        self._whole = whole  # it has ended all it had begun
        self._resumed = history.resumed  # it had begun before
        self._acquires = [one for one in operations if isinstance(one.asked, wire.Acquire)]
        self._reports = [
            one for one in operations if isinstance(one.asked, (wire.Report, wire.Batch))
        ]
        kinds = tuple(_REQUESTS.values())
        self._questions = [one for one in operations if isinstance(one.asked, kinds)]
        self._by_permit = {
            report.asked.permit: report
            for report in self._reports
            if isinstance(report.asked, wire.Report)
            and report.asked.permit is not None
            and report.asked.epoch == self._epoch
        }
        self._by_error = {
            report.asked.error: report
            for report in self._reports
            if isinstance(report.asked, wire.Report) and report.asked.error is not None
        }
        self._news: defaultdict[str, list[_News]] = defaultdict(list)
        for each in received:
            self._hear(each)
        self._owed: Counter[tuple[str, str]] = Counter()  # under leases, by circuit and outcome
        self._failures: defaultdict[str, list[tuple[float, Operation]]] = defaultdict(list)
        self._ended: defaultdict[str, list[Operation]] = defaultdict(list)  # what reports permits

    def _hear(self, received: Received) -> None:
        _, at, done, message, _ = received
        match message:
            case wire.Leased(name, generation, _, _, _):
                self._news[name].append(_News(at, done, generation, message, False))
            case wire.Revoked(name, generation):
                self._news[name].append(_News(at, done, generation, None, True))
            case wire.Event(_, _, name, _, _, _, generation, _) | wire.ResetDone(
                _, _, name, generation
            ):
                self._news[name].append(_News(at, done, generation, None, False))
            case wire.StatsOf(_, _, stats):
                self._news[stats.name].append(_News(at, done, stats.generation, None, False))

    def check(self) -> Iterator[str]:
        """What is wrong, for people."""
        for call in self._calls:
            match call.what:
                case "call" | "acquire":
                    yield from self._check_call(call)
                case "end":
                    yield from self._check_end(call)
                case "verdict":
                    yield from self._check_verdict(call)
                case "stats" | "metrics" | "history" | "reset":
                    yield from self._check_question(call)
                case "flush":
                    yield from self._check_flush(call)
            if call.result == "unavailable":
                yield f"no manager was there for {call}"
        if self._whole:
            yield from self._check_handed_over()
        yield from self._check_reports()

    # -- calls -------------------------------------------------------------------------------------

    def _check_call(self, call: Called) -> Iterator[str]:
        asked = [
            one
            for one in self._acquires
            if getattr(one.asked, "name", None) == call.name
            and call.begun <= one.sent <= call.ended
        ]
        if call.ran is not None and call.result not in _OUTCOMES:
            yield f"{call}: the function ran"
        if len(asked) > 1:
            yield f"{call} asked {len(asked)} times"
        elif asked:
            yield from self._check_asked(call, asked[0])
        else:
            yield from self._check_leased(call)

    def _check_asked(self, call: Called, asked: Operation) -> Iterator[str]:
        answer = asked.answer
        if answer is None or asked.received > call.ended:
            yield f"{call} did not wait for the answer: {asked}"
        elif isinstance(answer, wire.Rejected):
            if call.result != str(answer.state):
                yield f"{call} was answered {answer}"
            elif call.detail != [str(answer.state), answer.retry_after, answer.last_error]:
                yield f"{call} was told something else than {answer}"
        elif isinstance(answer, wire.Granted):
            if call.what == "acquire":
                if call.result != "granted" or call.detail != answer.operation:
                    yield f"{call} was answered {answer}"
                return
            outcome = _OUTCOMES.get(call.result)
            if outcome is None or call.ran is None or call.ran < asked.received:
                yield f"{call} was answered {answer}"
                return
            yield from self._check_permit(call, answer.operation, outcome)
        for ended, report in self._failures[call.name]:
            # What is decided after a failure is decided with it counted.
            if ended <= call.begun and report.sent > asked.sent:
                yield f"{call} asked before the failure of this process was reported: {report}"

    def _check_permit(self, call: Called, permit: int, outcome: Outcome) -> Iterator[str]:
        report = self._by_permit.get(permit)
        if report is None:
            if self._whole:
                yield f"{call} was never reported"
            return
        assert isinstance(report.asked, wire.Report)
        if report.asked.outcome is not outcome:
            yield f"{call} was reported as {report.asked}"
        if report.sent < (call.ran or call.begun):
            yield f"{call} was reported before it ended: {report}"
        self._ended[call.name].append(report)
        if outcome is Outcome.FAILURE:
            self._failures[call.name].append((call.ended, report))

    def _check_leased(self, call: Called) -> Iterator[str]:
        ran = call.ended if call.ran is None else call.ran
        leases = list(self._leases(call.name, call.begun, ran))
        if call.result == "open":
            said = [
                lease
                for lease in leases
                if lease.state is State.OPEN and (lease.until or 0) / 1e6 > call.begun
            ]
            if not any(lease.last_error == call.detail[2] for lease in said):
                yield f"{call}: nobody had said that it is open; leases: {leases}"
            self._owed[call.name, "rejected"] += 1
            return
        outcome = Outcome.SUCCESS if call.result == "granted" else _OUTCOMES.get(call.result)
        if outcome is None:
            yield f"{call}: the manager was not asked"
            return
        if not any(lease.state is State.CLOSED for lease in leases):
            yield f"{call} ran without a lease or a permit; leases: {leases}"
        for ended, report in self._failures[call.name]:
            if ended <= call.begun and report.received > ran:
                yield f"{call} ran while a failure of its process was not answered: {report}"
        if call.what == "call":
            yield from self._owe(call, outcome, call.detail)

    def _owe(self, call: Called, outcome: Outcome, error: str | None) -> Iterator[str]:
        self._owed[call.name, outcome.name] += 1
        if outcome is not Outcome.FAILURE:
            return
        report = self._by_error.get(f"ConnectionError: {error}")
        if report is not None:
            self._failures[call.name].append((call.ended, report))
        elif self._whole:
            yield f"{call} was never reported"

    def _leases(self, name: str, begun: float, ran: float) -> Iterator[wire.Leased]:
        """Those that may have been in force at some instant between the two."""
        news = self._news[name]
        for place, each in enumerate(news):
            if each.lease is None or each.at > ran:
                continue
            ended = any(
                later.done < begun
                and (later.lease is not None or later.ends or later.generation > each.generation)
                for later in news[place + 1 :]
            )
            if not ended:
                yield each.lease

    # -- endings -----------------------------------------------------------------------------------

    def _check_end(self, call: Called) -> Iterator[str]:
        outcome = _OUTCOMES[call.result]
        permit, error = call.detail
        if permit is not None:
            yield from self._check_permit(call, permit, outcome)
        else:
            yield from self._owe(call, outcome, error)

    def _check_verdict(self, call: Called) -> Iterator[str]:
        report = self._by_permit.get(call.detail) if call.detail is not None else None
        if report is None:
            return
        assert isinstance(report.answer, wire.Reported)
        if report.answer.verdict.name != call.result:
            yield f"{call} was answered {report.answer}"

    def _check_question(self, call: Called) -> Iterator[str]:
        """It was told what the one message says, and that was asked after its own outcomes."""
        mine = [
            one
            for one in self._questions
            if type(one.asked) is _REQUESTS[call.what]
            and getattr(one.asked, "name", None) == call.name
            and call.begun <= one.sent
            and one.received <= call.ended
        ]
        told = [_said(one.answer) for one in mine]
        if told != [call.detail]:
            yield f"{call} was told {told}"
        for one in mine:
            yield from self._check_own_outcomes(call, one)

    def _check_own_outcomes(self, call: Called, asked: Operation) -> Iterator[str]:
        """What this process had handed over before the call was taken in before it was asked."""
        for report in (*self._reports, *self._ended[call.name]):
            if report.sent < asked.sent < report.received:
                yield f"{call} overtook {report}"
            if report in self._ended[call.name] and report.sent > asked.sent:
                yield f"{call} was asked before {report}"
        if self._resumed:
            return
        taken_in = _handed_over(one for one in self._reports if one.received <= asked.sent)
        for (name, what), count in self._owed.items():
            if name == call.name and taken_in[name, what] < count:
                yield f"{call}: of {count} {what} {taken_in[name, what]} were taken in"

    def _check_flush(self, call: Called) -> Iterator[str]:
        """What was sent before it has been taken in."""
        for report in self._reports:
            if report.sent < call.begun and report.received > call.ended:
                yield f"{call} did not wait for {report}"

    def _check_handed_over(self) -> Iterator[str]:
        """What came of calls under leases is in the reports, once; and nothing else is."""
        handed_over = _handed_over(self._reports)
        if +handed_over != +self._owed:
            yield (
                f"session {self._session} has made {dict(+self._owed)} calls under leases "
                f"and told of {dict(+handed_over)}"
            )

    def _check_reports(self) -> Iterator[str]:
        """Nothing is reported under a lease that had not come."""
        for one in self._reports:
            match one.asked:
                case wire.Report(_, name, epoch, None, generation, _, _, _) | wire.Batch(
                    _, name, epoch, generation, _, _, _, _
                ) if epoch == self._epoch:
                    leased = [
                        news.at
                        for news in self._news[name]
                        if news.lease is not None and news.generation == generation
                    ]
                    if not leased or min(leased) > one.sent:
                        yield f"session {self._session} had no lease for {one.asked}"


def _said(answer: wire.Message | None) -> object:
    """What its caller is to be told, as a worker notes it."""
    match answer:
        case wire.StatsOf(_, _, stats):
            return [stats.generation, str(stats.state), stats.total_requests]
        case wire.MetricsOf(_, _, metrics):
            return metrics.requests_total
        case wire.HistoryOf(_, _, changes):
            return [change.version for change in changes]
        case wire.ResetDone():
            return None
    return answer


def _handed_over(reports: Iterable[Operation]) -> Counter[tuple[str, str]]:
    """How many calls under leases they tell of, by circuit and outcome."""
    counts: Counter[tuple[str, str]] = Counter()
    for one in reports:
        match one.asked:
            case wire.Report(_, name, _, None, _, outcome, _, _):
                counts[name, outcome.name] += 1
            case wire.Batch(_, name, _, _, successes, neutral, rejected, _):
                counts[name, "SUCCESS"] += successes
                counts[name, "NEUTRAL"] += neutral
                counts[name, "rejected"] += rejected
    return counts
