"""One process's conversation with the manager: what was asked, what is reported, what to repeat.

Commands of callers and messages of the manager go in, with the time; what is to be sent, who is to
be answered and which events came are collected in `outbox`, `answers` and `events`. No socket, no
clock, no thread, no random source.

A signal handler may raise out of any call in here. Whatever was half-way is then done again, from
the command or after `resume`; so a thing is put where it goes before it is taken from where it was.

What it guarantees: reports reach the manager in order and are taken in once, whatever breaks in
between, because they are numbered and kept until acknowledged; a request is answered at most once;
a permit that nobody waited for any more goes back; what is asked on the control socket comes
after everything that was reported before; no lease outlasts what the manager has said of the
circuit, nor by more than its term what it could not say; and however long a manager takes
nothing in, what waits for it grows with the circuits and not with the calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol

from ..config import CircuitConfig
from ..states import Outcome, Verdict
from ..wire import (
    KINDS,
    MAX_INTEGER,
    PROTOCOL,
    Acquire,
    Batch,
    Declare,
    Declared,
    Error,
    ErrorCode,
    Event,
    Goodbye,
    Granted,
    Hello,
    HistoryOf,
    Leased,
    ListOf,
    Message,
    MetricsOf,
    Missed,
    Pong,
    Rejected,
    Report,
    Reported,
    ResetDone,
    Revoked,
    StatsOf,
    Stopping,
    Subscribe,
    Subscribed,
    Sync,
    Synced,
    Welcome,
    to_micros,
    to_seconds,
)
from .lease import Gate, Lease, Outlet, Settled
from .leases import Leases
from .reports import Many, One, Owed, Reports, Whole

DATA: Final = 0  # the two connections
CONTROL: Final = 1

GREETING_INTERVAL: Final = 0.1  # seconds between two Hellos while the manager does not answer
RETRY: Final = 1.0  # seconds until who was turned away knocks again; then twice as long each time,
RETRY_MAX: Final = 30.0  # up to this
PATIENCE: Final = 1.0  # seconds after which an answer that is owed has got lost; then twice as long
UNREPORTED: Final = 1.0  # seconds after which a failure that is not in the queue never will be


class Grant(NamedTuple):
    """A permit, as its holder needs it: which manager's, its number there, the generation."""

    epoch: int
    permit: int
    generation: int = 0
    probe: bool = False  # somebody may be waiting for it to come back


# What a waiter gets: an answer, or None when no manager is there.
Answer = Grant | Message | None


class Waiter(Protocol):
    """Somebody who has asked for something. The session only keeps it; the shell completes it."""

    @property
    def answer(self) -> Answer:
        """What came, once `answered`."""

    @property
    def answered(self) -> bool:
        """It came."""

    def complete(self, answer: Answer) -> None:
        """Take the answer; a second one is ignored. Must neither block nor raise."""


class _Phase(Enum):
    OFFLINE = auto()  # no connection
    GREETING = auto()  # Hello is sent
    READY = auto()  # Welcome was received
    REFUSED = auto()  # the manager speaks another protocol


class _Line:
    """One of the two connections."""

    __slots__ = ("epoch", "greeted_at", "greeting", "origin", "phase", "refusal")

    def __init__(self) -> None:
        self.phase = _Phase.OFFLINE
        self.refusal: Error | None = None
        self.epoch = 0  # of the manager at the other end, once it has answered
        self.origin = 0  # and of the first one in its line
        # From the first Hello on:
        self.greeting: int  # the number of the last one
        self.greeted_at: float  # when it was sent


class _Wanted(NamedTuple):
    """A request for a permit, on the data connection. It waits for its answer."""

    waiter: Waiter
    name: str
    deadline: float  # until when, seconds on our clock
    since: float  # when it was asked for, on our clock


class _Question(NamedTuple):
    """A request on the control connection. It waits behind the barrier, then for its answer."""

    waiter: Waiter
    build: Callable[[int], Message]  # from its number
    circuits: tuple[str, ...] = ()  # that must be declared first


class _Behind(NamedTuple):
    """What waits until so many reports have been settled."""

    reports: int
    question: _Question


class _Flush(NamedTuple):
    """Who waits for nothing else."""

    reports: int
    waiter: Waiter


class _Syncing(NamedTuple):
    """A Sync that is out."""

    request: int
    reports: int  # the number of the last one before it


class Session:
    """See the module.

    Args:
        token: 16 bytes, drawn once in the life of the process.
        pid: The process, for whoever looks at the manager.
        gates: Where leases are put, by circuit; the owner adds to it.
        outlet: Where leases hand on what cannot wait.
        started: When the process was started, in the kernel's clock ticks; 0: nobody knows.

    Attributes:
        outbox: What to send, as (connection, message), oldest first; whoever sends clears it.
        answers: Who to answer, as (waiter, answer); whoever answers clears it.
        events: The events that came, in the manager's order; whoever takes them clears it.
        wanted: The connections that are needed.
        lost: Nobody answers, so requests for permits are answered with None at once.
        away: The manager has no room for us, or we for a connection: there will be none until
            `retry_at`, and all requests are answered at once.
        refusal: What the manager said when it had no room; None: it was not asked.
        retry_at: Seconds on our clock.
    """

    def __init__(
        self,
        token: bytes,
        pid: int,
        gates: Mapping[str, Gate],
        outlet: Outlet,
        started: int = 0,
    ) -> None:
        self.outbox: list[tuple[int, Message]] = []
        self.answers: list[tuple[Waiter, Answer]] = []
        self.events: list[Event] = []
        self.wanted: set[int] = set()
        self.lost = False
        self.away = False
        self.refusal: Error | None = None
        self.retry_at = 0.0
        self._token = token
        self._pid = pid
        self._started = started
        self._lines = (_Line(), _Line())
        self._clock_offset = 0.0  # the manager's clock less ours
        self._last_number = 0
        self._last_acquire = 0  # the highest number under which a permit was asked for
        self._asked: dict[int, _Wanted | _Question] = {}  # by request number
        self._numbers: dict[Waiter, int] = {}
        self._held: list[_Behind] = []
        self._flushes: list[_Flush] = []
        self._abandoned: dict[int, str] = {}  # requests for permits nobody waits for -> circuit
        self._configs: dict[str, CircuitConfig | None] = {}  # what callers have declared
        self._delayed: dict[int, None] = {}  # requests for permits, behind reports that are unsent
        self._declared: dict[str, None] = {}  # this manager has been told
        self._declaring: dict[int, str] = {}  # and has not answered yet: request -> circuit
        self._full: dict[str, Error] = {}  # it has no room for these circuits, as it said then
        self._patience = PATIENCE  # before we knock where somebody has let us in
        self._pause = RETRY  # before the next time that we knock
        self._reports = Reports()
        self._syncing: _Syncing | None = None
        self._subscribed = False
        self._seen: int | None = None  # the version of the last event from this manager
        self._leases = Leases(gates, outlet)

    # -- commands of callers -----------------------------------------------------------------------

    def declare(self, name: str, config: CircuitConfig | None) -> None:
        """Name a circuit; the manager hears of it now, or with the first use of it."""
        self._configs[name] = config
        if self._lines[DATA].phase is _Phase.READY:
            self._send_declare(name)
        elif name in self._declared:
            # This manager was told something else: have it told anew after the next Welcome.
            self._declaring[self._next_number()] = name

    def acquire(self, waiter: Waiter, name: str, deadline: float, now: float) -> None:
        """Ask for a permit: the answer is a Grant, a Rejected, an Error or, when lost, None.

        Args:
            waiter: Who gets the answer.
            name: The circuit; declared before.
            deadline: Until when the caller waits, on our clock.
            now: Seconds on our clock.
        """
        if self.away:
            self.answers.append((waiter, self.refusal))
            return
        if self.lost:
            self.answers.append((waiter, None))
            self._greet_again(now)
            return
        if name in self._full and self._lines[DATA].phase is _Phase.READY:
            self.answers.append((waiter, self._full[name]))
            return
        self.wanted.add(DATA)
        self._ask(_Wanted(waiter, name, deadline, since=now))

    def report(
        self,
        name: str,
        grant: Grant,
        outcome: Outcome,
        duration: float = 0.0,
        error: str | None = None,
        settled: Settled | None = None,
        *,
        now: float,
        owed: Owed | None = None,
    ) -> None:
        """Say how a call ended; the manager takes it in once, and in order.

        Args:
            name: The circuit.
            grant: What acquire was answered.
            outcome: How the call ended.
            duration: Seconds.
            error: For a failure, what it was.
            settled: Called with the verdict, when it comes; must neither block nor raise.
            now: Seconds on our clock.
            owed: What this reports; tried again, it does nothing.
        """
        self._add(One(name, grant[:3], outcome, duration, error, settled, owed), now)

    def report_failure(self, failure: One, source: Lease, *, now: float) -> None:
        """Say that a call failed that ran under a lease, after the others that did; see `report`.

        Args:
            failure: It.
            source: The lease.
            now: Seconds on our clock.
        """
        self._reports.collect(source)
        self._add(failure, now)

    def report_totals(self, totals: Whole, *, now: float) -> None:
        """Hand over what was counted here while no manager answered."""
        self._add(totals, now)

    def collect(self, lease: Lease, *, now: float) -> None:
        """Take the outcomes that callers have left in a lease, and report them as one."""
        self._reports.collect(lease)
        self.wanted.add(DATA)
        self._send_reports(now)

    def _add(self, report: One | Whole, now: float) -> None:
        self._reports.add(report)
        self.wanted.add(DATA)
        self._send_reports(now)

    def ask(
        self, waiter: Waiter, build: Callable[[int], Message], circuits: tuple[str, ...] = ()
    ) -> None:
        """Ask on the control connection, after all that was reported before.

        Args:
            waiter: Who gets the answer.
            build: Makes the message from its request number.
            circuits: Those that must be declared first.
        """
        if self.away:
            self.answers.append((waiter, self.refusal))
            return
        self.wanted.add(CONTROL)
        if circuits:
            self.wanted.add(DATA)
        question = _Question(waiter, build, circuits)
        self._held.append(_Behind(self._reports.handed_over, question))
        self._pass_barrier()

    def flush(self, waiter: Waiter) -> None:
        """Answer the waiter with None when all that was reported before has been taken in."""
        self._flushes.append(_Flush(self._reports.handed_over, waiter))
        self._pass_barrier()

    def subscribe(self, waiter: Waiter) -> None:
        """Begin to collect `events`; the answer comes when none can be missed any more."""
        self.wanted.add(CONTROL)
        self._subscribed = True
        if self.away:
            self.answers.append((waiter, self.refusal))
        else:
            self._ask(_Question(waiter, self._build_subscribe))

    def needed(self, now: float) -> Set[int]:
        """The connections there should be now: none while away, then one to knock with."""
        if not self.away:
            return self.wanted
        return self.wanted & {DATA} if now >= self.retry_at else frozenset()

    def cannot_connect(self, connection: int, now: float) -> None:
        """This process has no descriptor for it: to those who need it nobody is there."""
        if connection == DATA:
            self._stay_away(None, now)
            return
        self.wanted.discard(CONTROL)  # the next one who asks there tries again
        for number in self._asked_on(CONTROL):
            self._answer(number, None)
        self.answers += [(behind.question.waiter, None) for behind in self._held]
        self._held.clear()

    def _stay_away(self, refusal: Error | None, now: float) -> None:
        """Do without the manager, and knock again after a while."""
        self.away, self.refusal = True, refusal
        # Those who were turned away together come back one by one: a token is as good as dice.
        self.retry_at = now + self._pause * (0.75 + self._token[0] / 512)
        self._pause = min(2 * self._pause, RETRY_MAX)
        for line in self._lines:
            line.phase = _Phase.OFFLINE
        # Not who waits for reports to be taken in: these are kept, and it may still happen.
        self._answer_all(refusal)

    def abandon(self, waiter: Waiter, *, timed_out: bool) -> None:
        """Forget a waiter; a permit that comes for it later goes back by itself.

        Args:
            waiter: Who has stopped waiting.
            timed_out: It waited in vain: `lost` until the manager is heard again.
        """
        self._held = [behind for behind in self._held if behind.question.waiter is not waiter]
        self._flushes = [flush for flush in self._flushes if flush.waiter is not waiter]
        number = self._numbers.get(waiter)
        if number is not None:
            asked = self._asked.get(number)
            if isinstance(asked, _Wanted):
                if number <= self._last_acquire:  # else it was never sent, and nothing will come
                    self._abandoned[number] = asked.name
                self.lost |= timed_out
            self._asked.pop(number, None)
            del self._numbers[waiter]

    def resume(self, now: float) -> None:
        """Greet again, to have whatever is unanswered sent again; nothing will happen twice."""
        for connection, line in enumerate(self._lines):
            if line.phase in (_Phase.GREETING, _Phase.READY):
                self._greet(connection, now)

    @property
    def knock_at(self) -> float:
        """When to `knock`, if nothing is heard until then; inf: nothing is owed to us."""
        data, control = self._lines
        at = math.inf
        if data.phase is _Phase.READY:
            sent_at = self._reports.first_sent_at
            if sent_at is not None:
                at = max(sent_at, data.greeted_at)
        elif data.phase is _Phase.GREETING and (self._reports or self._asked or self._held):
            at = data.greeted_at
        if control.phase is _Phase.GREETING and (self._asked or self._subscribed):
            at = min(at, control.greeted_at)
        return at + self._patience

    def knock(self, now: float) -> None:
        """Greet again: a manager drops what a client does not read, as one that was stopped."""
        self._patience = min(2 * self._patience, RETRY_MAX)
        self.resume(now)

    def goodbye(self) -> None:
        """Tell the manager that this process goes: it takes back what is still held."""
        if self._lines[DATA].phase is _Phase.READY:
            self.outbox.append((DATA, Goodbye()))

    def hang_up(self) -> None:
        """There will be no connection any more: answer whoever waits with None."""
        self._answer_all(None)
        self.answers += [(flush.waiter, None) for flush in self._flushes]
        self._flushes.clear()
        self._reports.clear()
        self._leases.close()
        self.outbox.clear()

    # -- what the connections do -------------------------------------------------------------------

    def connected(self, connection: int, now: float) -> None:
        """A manager can be written to."""
        self._greet(connection, now)

    def disconnected(self, connection: int) -> None:
        """It can no longer; what was on its way may be lost and is sent again later."""
        self._lines[connection].phase = _Phase.OFFLINE

    def received(self, connection: int, message: Message, now: float) -> None:
        """Take a message that was decoded from what the connection allows."""
        if connection == DATA:
            self.lost = False
        match message:
            case Welcome():
                self._welcome(connection, message, now)
            case Reported():
                self._reported(message, now)
            case Granted():
                self._granted(message, now)
            case Rejected():
                self._rejected(message, now)
            case Leased():
                self._leased(message)
            case Revoked():
                self._leases.heard(message.name, message.generation)
                self._leases.end(message.name)
            case Declared():
                name = self._declaring.pop(message.request, None)
                if name is not None:
                    self._full.pop(name, None)
                    self._leases.declared(name, message.config)
                self._pass_barrier()
            case Event():
                self._event(message)
            case Error():
                self._refused(connection, message, now)
            case Synced():
                self._synced(message, now)
            case Subscribed():
                # Higher than what was asked for where the manager no longer has all we missed.
                seen = message.version if self._seen is None else self._seen
                self._seen = max(message.version, seen)
                self._answer(message.request, message)
            case StatsOf():
                self._heard(message.stats.name, message.stats.generation)
                self._answer(message.request, message)
            case ResetDone():
                self._heard(message.name, message.generation)
                self._answer(message.request, message)
            case Pong() | MetricsOf() | HistoryOf() | ListOf() | Stopping():
                self._answer(message.request, message)
            case _:
                pass  # goes the other way only, so decode() has refused it

    def _greet(self, connection: int, now: float) -> None:
        line = self._lines[connection]
        number = self._next_number()
        # Without a call, so that a signal handler finds all of it or nothing.
        line.phase = _Phase.GREETING
        line.greeting = number
        line.greeted_at = now
        hello = Hello(line.greeting, PROTOCOL, PROTOCOL, self._token, self._pid, self._started)
        self.outbox.append((connection, hello))

    def _greet_again(self, now: float) -> None:
        """Knock, at most every so often: a manager that was stopped may be awake again."""
        line = self._lines[DATA]
        if line.phase is not _Phase.OFFLINE and now - line.greeted_at >= GREETING_INTERVAL:
            self._greet(DATA, now)

    def _welcome(self, connection: int, message: Welcome, now: float) -> None:
        line = self._lines[connection]
        if line.phase is not _Phase.GREETING or message.request != line.greeting:
            return  # a later Hello is on its way, and what it finds is what counts
        another = message.epoch != line.epoch
        another_line = message.origin != line.origin
        if connection == DATA:
            self._set_clock(to_seconds(message.clock), now)
        line.phase, line.refusal = _Phase.READY, None
        line.epoch, line.origin = message.epoch, message.origin
        self._patience = PATIENCE
        if connection == DATA:
            self.away, self._pause = False, RETRY
            self._leases.length = to_seconds(message.lease)
            self._resume_data(message.reports, another, another_line, now)
        elif self._subscribed:
            if another_line:
                self._seen = None  # versions are counted anew
            if not self._subscribing:
                self._subscribe_anew()
        for number in self._asked_on(connection):
            self._send(number, self._asked[number])
        self._pass_barrier()

    def _set_clock(self, theirs: float, now: float) -> None:
        # One host has one monotonic clock. Only where it shows another one (a time namespace)
        # do we reckon with the middle of the round trip.
        sent_at = self._lines[DATA].greeted_at
        same = sent_at <= theirs <= now
        self._clock_offset = 0.0 if same else theirs - (sent_at + now) / 2

    def _resume_data(self, taken_in: int, another: bool, another_line: bool, now: float) -> None:
        """Go on where this manager stands: our reports up to a number are in what it knows."""
        self._leases.end_all()
        if another:
            self._leases.forget()
            self._abandoned.clear()
        for number, name in self._abandoned.items():
            # Granted or not? With a deadline long past, the answer is the permit or nothing.
            self.outbox.append((DATA, Acquire(number, name, 0)))
        self._acknowledge(taken_in, None)
        self._reports.restart(taken_in)
        self._delayed.clear()  # all that is unanswered is sent anew
        unanswered = {*self._declaring.values(), *self._full}  # there may be room by now
        self._full.clear()
        # A successor knows what its predecessor has answered; and to declare that again would undo
        # what others have declared since.
        again = [name for name in self._declared if another_line or name in unanswered]
        self._declaring.clear()
        for name in again:
            self._send_declare(name)
        self._send_reports(now)
        self._syncing = None

    def _refused(self, connection: int, error: Error, now: float) -> None:
        line = self._lines[connection]
        if error.code is ErrorCode.TOO_MANY_CLIENTS:
            if line.phase is _Phase.GREETING:
                self._stay_away(error, now)
        elif error.kind == KINDS[Hello]:
            line.phase, line.refusal = _Phase.REFUSED, error
            for number in self._asked_on(connection):
                self._answer(number, error)
        elif error.code is ErrorCode.NO_SESSION or error.code is ErrorCode.OUT_OF_ORDER:
            if line.phase is _Phase.READY:
                self._greet(connection, now)
        elif error.code is ErrorCode.DEADLINE_PASSED and self._still_wanted(error.ref, now):
            # The clocks are not what we took them for: a manager that was stopped in the middle of
            # a turn tells the time of before. Compare them again.
            if line.phase is _Phase.READY:
                self._greet(connection, now)
        elif error.code is ErrorCode.DUPLICATE_REQUEST:
            if self._still_wanted(error.ref, now):
                self._ask_anew(error.ref)
            else:
                self._answer(error.ref, None)  # as if nothing had come, which is nearly so
        elif error.kind in _REPORTS:
            self._report_refused(error, now)
        elif error.kind == KINDS[Declare]:
            name = self._declaring.pop(error.ref, None)
            if name is not None and error.code is ErrorCode.TOO_MANY_CIRCUITS:
                self._full[name] = error
            self._pass_barrier()
        else:
            self._answer(error.ref, self._reason(error))

    def _reason(self, error: Error) -> Error:
        """A circuit that the manager does not know, for what is asked of one it has no room for."""
        asked = self._asked.get(error.ref)
        if error.code is not ErrorCode.UNKNOWN_CIRCUIT or asked is None:
            return error
        circuits = (asked.name,) if isinstance(asked, _Wanted) else asked.circuits
        return next((self._full[name] for name in circuits if name in self._full), error)

    def _report_refused(self, error: Error, now: float) -> None:
        if error.code not in _NOT_TAKEN_IN:
            self._acknowledge(error.ref, None)
        elif self._lines[DATA].phase is _Phase.READY:  # else it is sent, and refused, once more
            # It will never be one, so it must not stand in the way of those behind it. Those before
            # it may only not be acknowledged yet: Welcome tells, and then it is the first.
            if error.ref == self._reports.acknowledged + 1 <= self._reports.sent:
                self._answered(self._reports.discard())
            self._greet(DATA, now)

    # -- leases ------------------------------------------------------------------------------------

    def _leased(self, message: Leased) -> None:
        self._leases.grant(message, self._lines[DATA].epoch, self._clock_offset)

    def _heard(self, name: str, generation: int) -> None:
        # Of this manager? The control connection may still bring what an earlier one has said.
        if self._lines[CONTROL].epoch == self._lines[DATA].epoch:
            self._leases.heard(name, generation)

    # -- permits and reports -----------------------------------------------------------------------

    def _granted(self, message: Granted, now: float) -> None:
        self._renew(message.request)
        probe = message.deadline is not None
        grant = Grant(self._lines[DATA].epoch, message.operation, message.generation, probe)
        asked = self._asked.get(message.request)
        if isinstance(asked, _Wanted):
            self._leases.granted(asked.name, now, probe=probe)
            if self._leases.suspended(asked.name) and not self._reports.failing(asked.name):
                self._leases.reported(asked.name, now - UNREPORTED)
            self._answer(message.request, grant)
        elif message.request in self._abandoned:
            name = self._abandoned[message.request]
            self.report(name, grant, Outcome.NEUTRAL, now=now)
            del self._abandoned[message.request]

    def _rejected(self, message: Rejected, now: float) -> None:
        self._renew(message.request)
        asked = self._asked.get(message.request)
        if isinstance(asked, _Wanted):
            self._leases.rejected(asked.name, message, now)
        self._answer(message.request, message)

    def _renew(self, request: int) -> None:
        asked = self._asked.get(request)
        if isinstance(asked, _Wanted):
            self._leases.renew(asked.since)

    def _reported(self, message: Reported, now: float) -> None:
        sent_at = self._reports.sent_at(message.number)
        if sent_at is not None:
            self._leases.renew(sent_at)
        self._acknowledge(message.number, message.verdict)
        self._send_reports(now)

    def _acknowledge(self, number: int, verdict: Verdict | None) -> None:
        """Take reports up to a number off the queue; the verdict is on the last and each Batch."""
        # What was never sent is still owed, and may still grow, whatever the manager believes.
        number = min(number, self._reports.sent)
        while self._reports and self._reports.acknowledged < number:
            report = self._reports.acknowledge()
            self._answered(report)
            last = self._reports.acknowledged == number
            if verdict is not None and (last or isinstance(report, Many)):
                report.settle(verdict)
        self._pass_barrier()

    def _answered(self, report: One | Many | Whole) -> None:
        if isinstance(report, One) and report.failed:
            self._leases.answered(report.name)

    def _send_reports(self, now: float) -> None:
        if self._lines[DATA].phase is _Phase.READY:
            while (report := self._reports.next_to_send(now)) is not None:
                if report.name not in self._declared:  # counted while no manager was ever asked
                    self._send_declare(report.name)
                self.outbox.append((DATA, report))
            if self._delayed:
                self._send_delayed()

    def _send_delayed(self) -> None:
        delayed, self._delayed = self._delayed, {}
        for number in delayed:
            asked = self._asked.get(number)
            if asked is not None:
                self._send(number, asked)
            elif number in self._abandoned:  # it may have been sent before, on another connection
                self.outbox.append((DATA, Acquire(number, self._abandoned[number], 0)))

    # -- what is waited for ------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Somebody waits for an answer."""
        return bool(self._asked or self._held or self._flushes)

    @property
    def leasing(self) -> bool:
        """Calls may run without asking, for as long as nothing else is heard."""
        return bool(self._leases)

    # -- requests ----------------------------------------------------------------------------------

    def _asked_on(self, connection: int) -> list[int]:
        """The numbers of the requests that wait for an answer there."""
        kind = (_Wanted, _Question)[connection]
        return [number for number, asked in self._asked.items() if isinstance(asked, kind)]

    def _next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def _ask(self, asked: _Wanted | _Question) -> None:
        if asked.waiter not in self._numbers:  # else a signal handler came: `resume` repeats it
            self._ask_as(self._next_number(), asked)

    def _ask_as(self, number: int, asked: _Wanted | _Question) -> None:
        self._asked[number] = asked
        self._numbers[asked.waiter] = number
        line = self._lines[DATA if isinstance(asked, _Wanted) else CONTROL]
        if line.refusal is not None:
            self._answer(number, line.refusal)
        elif line.phase is _Phase.READY:
            self._send(number, asked)

    def _ask_anew(self, number: int) -> None:
        """Ask under a new number: the answer to the old one was lost, and it was no permit."""
        self._ask_as(self._next_number(), self._asked[number])
        del self._asked[number]

    def _still_wanted(self, number: int, now: float) -> bool:
        asked = self._asked.get(number)
        return isinstance(asked, _Wanted) and now < asked.deadline

    def _send(self, number: int, asked: _Wanted | _Question) -> None:
        if isinstance(asked, _Wanted):
            if self._reports.delayed(asked.name):  # to be decided with that failure counted
                self._delayed[number] = None
                return
            self._ensure_declared((asked.name,))
            # An instant, whatever clock the manager has told.
            deadline = min(to_micros(asked.deadline + self._clock_offset), MAX_INTEGER)
            self._last_acquire = max(self._last_acquire, number)
            self.outbox.append((DATA, Acquire(number, asked.name, deadline)))
        else:
            self.outbox.append((CONTROL, asked.build(number)))

    def _answer(self, number: int, answer: Answer) -> None:
        self._abandoned.pop(number, None)
        asked = self._asked.get(number)
        if asked is not None:
            self.answers.append((asked.waiter, answer))
            del self._asked[number]
            self._numbers.pop(asked.waiter, None)

    def _answer_all(self, answer: Answer) -> None:
        """Answer every request."""
        questions = [behind.question for behind in self._held]
        self.answers += [(asked.waiter, answer) for asked in (*self._asked.values(), *questions)]
        self._asked.clear()
        self._numbers.clear()
        self._held.clear()

    def _pass_barrier(self) -> None:
        """Let through, in order, what no longer has to wait for a report or a declaration."""
        while self._flushes and self._reports.settled >= self._flushes[0].reports:
            self.answers.append((self._flushes[0].waiter, None))
            del self._flushes[0]
        while self._held and self._may_pass(self._held[0]):
            self._ask(self._held[0].question)
            del self._held[0]
        if (self._held or self._flushes) and self._reports and self._syncing is None:
            self._hurry()

    def _hurry(self) -> None:
        """Have the acknowledgements sent that the barrier waits for."""
        if self._lines[DATA].phase is _Phase.READY:
            self._syncing = _Syncing(self._next_number(), self._reports.sent)
            self.outbox.append((DATA, Sync(self._syncing.request)))

    def _synced(self, message: Synced, now: float) -> None:
        syncing = self._syncing
        if syncing is None or message.request != syncing.request:
            return
        self._syncing = None
        if self._reports.acknowledged < syncing.reports:
            # A report or its acknowledgement was lost on a connection that holds: the manager drops
            # what a client that was stopped does not read. To ask again would go on for ever.
            self._greet(DATA, now)
        else:
            self._pass_barrier()

    def _may_pass(self, behind: _Behind) -> bool:
        circuits = behind.question.circuits
        if circuits:
            if self._lines[DATA].phase is not _Phase.READY:
                return False
            self._ensure_declared(circuits)
            if not set(self._declaring.values()).isdisjoint(circuits):
                return False
        return self._reports.settled >= behind.reports

    def _ensure_declared(self, circuits: tuple[str, ...]) -> None:
        for name in circuits:
            if name not in self._declared:
                self._send_declare(name)

    def _send_declare(self, name: str) -> None:
        number = self._next_number()
        self._declared[name] = None
        self._declaring[number] = name
        self.outbox.append((DATA, Declare(number, name, self._configs.get(name))))

    # -- events ------------------------------------------------------------------------------------

    def _build_subscribe(self, number: int) -> Message:
        return Subscribe(number, self._seen)

    @property
    def _subscribing(self) -> bool:
        """The first Subscribe is not answered, and so is sent by itself after each Welcome.

        The answer to another one would tell us to begin after events that were on their way.
        """
        questions = [asked for asked in self._asked.values() if isinstance(asked, _Question)]
        return any(question.build == self._build_subscribe for question in questions)

    def _subscribe_anew(self) -> None:
        """Have all that came since sent again."""
        self.outbox.append((CONTROL, self._build_subscribe(self._next_number())))

    def _event(self, event: Event) -> None:
        self._heard(event.name, event.generation)  # whoever is told of it may act on it at once
        if self._seen is None or event.version == self._seen + 1:
            self.events += (event,)  # not append(), which is a call: a signal handler may come
            self._seen = event.version
        elif event.version > self._seen:  # some were lost on the way
            self._subscribe_anew()

    def check(self) -> None:
        """Assert what is true between any two calls. For tests."""
        assert set(self._numbers.values()) == set(self._asked)
        assert not set(self._abandoned) & set(self._asked)
        assert set(self._declaring.values()) <= self._declared.keys()
        assert self._full.keys() <= self._declared.keys()
        assert not (self.away and self._asked)
        self._reports.check()
        self._leases.check()


_REPORTS: Final = frozenset({KINDS[Report], KINDS[Batch], KINDS[Missed]})

# Refused before they were taken in: their number is still free.
_NOT_TAKEN_IN: Final = frozenset(
    {ErrorCode.MALFORMED, ErrorCode.UNKNOWN_KIND, ErrorCode.BAD_CONFIG}
)
