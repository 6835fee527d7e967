"""Watches a life, and says what of the contract was broken.

It sees every message that a manager takes and says, every journal entry, every call that begins,
runs, is rejected or ends, and compares with what the reference says and with what it has seen. A
Violation names the guarantee.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from switchgear.circuit import Circuit as RealCircuit
from switchgear.client.lease import Lease
from switchgear.client.session import Answer, Grant
from switchgear.manager.actor import Actor, Send
from switchgear.manager.sessions import CONTROL, DATA, Peer
from switchgear.manager.unsaved import Saved
from switchgear.states import Outcome, State, Verdict
from switchgear.wire import (
    KINDS,
    Acquire,
    Batch,
    Declare,
    Error,
    ErrorCode,
    Event,
    Goodbye,
    Granted,
    Hello,
    HistoryOf,
    Leased,
    Message,
    MetricsOf,
    Missed,
    Rejected,
    Report,
    Reported,
    Reset,
    ResetDone,
    Revoked,
    StatsOf,
    Subscribe,
    Subscribed,
    Welcome,
)

from .alone import Alone
from .books import Books, Place
from .listeners import Listeners
from .news import News
from .reference import Change, Manager, Session
from .world import Violation, World

if TYPE_CHECKING:
    from .life import Life
    from .network import Connection
    from .processes import Call, Process

WITNESS: Final = Peer(CONTROL, b"the oracle")  # it subscribes to events like anybody
TERM: Final = 1.0  # seconds that a lease holds; contract, G8
GREETING: Final = 5.0  # seconds that one may take, with a manager that is stopped meanwhile
SMALL: Final = 0.00001  # seconds; a message tells instants in whole microseconds

Answered = Granted | Rejected | Error
LEASING: Final = (Leased, Revoked)
REPORTS: Final = frozenset({KINDS[Report], KINDS[Batch], KINDS[Missed]})
TAKEN_IN: Final = frozenset(  # refusals of reports that will not be sent again
    {
        *(ErrorCode.DUPLICATE_REPORT, ErrorCode.UNKNOWN_PERMIT),
        *(ErrorCode.FOREIGN_PERMIT, ErrorCode.UNKNOWN_CIRCUIT),
    }
)


class Question(NamedTuple):
    """What a process has asked for, or about.

    Attributes:
        name: The circuit.
        ended: What the process had come to on it by then, as in its books.
    """

    name: str
    ended: tuple[int, ...] = ()


class Oracle:
    """See the module.

    Args:
        world: What it watches.
        skewed: Managers' clocks are not the processes'.

    Attributes:
        life: Who owns it.
        exact: No journal was lost or behind, so everything that ended is counted once.
    """

    life: Life

    def __init__(self, world: World, *, skewed: bool) -> None:
        self.exact = True
        self.reference = Manager()
        self._world = world
        self._skewed = skewed
        # Where clocks differ, nobody can say to a microsecond when a process takes time for up.
        self._alone = None if skewed else Alone(world)
        self._actor: Actor | None = None
        self._line = 0
        self._lines: dict[int, int] = {}  # by epoch
        self._served: dict[int, int] = {}  # the same, of those that lived to be heard
        self._journal_lost = True  # a manager may know nothing, like the first one
        self._behind = False  # what is told is not in the journal, which cannot be written
        self._connected: dict[Peer, bytes] = {}
        self._verdicts: dict[bytes, dict[int, tuple[Verdict | None, bool]]] = defaultdict(dict)
        self._acknowledged: dict[bytes, int] = defaultdict(int)
        self._books: dict[tuple[bytes, str], Books] = defaultdict(Books)
        self._unwritten: set[tuple[bytes, str]] = set()
        self._decisions: dict[tuple[int, int], int] = {}  # by operation: failures counted by then
        self._told_again: set[int] = set()  # permits of this manager
        self._probes: dict[str, dict[Call, float]] = defaultdict(dict)  # that run; when due
        self._heard_at: dict[bytes, float] = {}  # when a manager last took something
        self._listeners = Listeners()
        self._news = News(world)
        self._told: dict[tuple[int, str], int] = defaultdict(int)  # the highest generation
        self._stood: dict[Place, tuple[State, float | None]] = {}  # and until when, if open
        self._left: dict[Place, float] = {}  # when
        self._known: dict[tuple[bytes, str], Place] = {}  # what a process was told last
        self._verdict_of: dict[tuple[int, int], Verdict] = {}  # by epoch and permit
        self._questions: dict[tuple[bytes, int], Question] = {}  # by token and number
        self._decided: Counter[tuple[bytes, str]] = Counter()  # by managers; under leases, too
        self._handlers: dict[type[Message], Callable[..., Iterable[Change]]] = {
            Hello: self._hello,
            Declare: self._declare,
            Acquire: self._acquire,
            Report: self._report,
            Batch: self._report,
            Missed: self._report,
            Goodbye: self._goodbye,
            Reset: self._reset,
        }

    # -- lives of managers -------------------------------------------------------------------------

    def loses_journal(self) -> None:
        """What managers have written down is gone; but for that, nothing may be forgotten."""
        self._journal_lost = True
        self._behind = self.exact = False

    def falls_behind(self) -> None:
        """The journal cannot be written: what happens from now on may be lost with the manager."""
        self._behind = True

    def wrote_everything(self) -> None:
        """The journal was begun, with all that is to be known."""
        self._behind = False
        self.wrote_all()

    def manager_begins(self, actor: Actor, now: float, saved: Saved | None) -> None:
        """A manager has read what there was to read."""
        if saved is None:
            if not self._journal_lost:
                raise Violation("G11: a manager begins anew, and no journal was lost")
            self.reference.lose_all()
        elif (saved.origin is None) is not self._behind:
            raise Violation(f"G1: a manager of line {saved.origin}, of a journal that is behind")
        self.exact = self.exact and not self._behind
        if any(e >= actor.epoch for e, line in self._served.items() if line == actor.origin):
            raise Violation(f"G6: manager {actor.epoch} is not the latest of its line")
        self._actor = actor
        self.reference.begin(actor.epoch, actor.origin)
        self._line = self._lines[actor.epoch] = actor.origin
        self._connected.clear()
        self._told_again.clear()
        self._probes.clear()  # a successor cannot know of them; see docs/guarantees.md, G3
        for books in self._books.values():
            books.restore()
        self._unwritten.clear()
        if set(actor._circuits) != set(self.reference.circuits):
            raise Violation(f"G11: a successor knows {set(actor._circuits)}")
        for name, circuit in actor._circuits.items():
            self._compare_restored(name, circuit)
        self._listeners.manager_begins(actor.origin, actor._version)
        self._compare()

    def _compare_restored(self, name: str, circuit: RealCircuit) -> None:
        place = Place(self._line, name, circuit.generation)
        if circuit.generation < self._told[self._line, name]:
            raise Violation(f"G11: generation {self._told[self._line, name]} of {name} was told")
        for other in list(self._stood):  # what was neither saved nor told has not happened
            if other[:2] == place[:2] and other.generation > place.generation:
                del self._stood[other]
        for other in list(self._left):
            if other[:2] == place[:2] and other.generation >= place.generation:
                del self._left[other]
        reference, standing, counts = self._of(name), circuit.standing(), circuit.counts()
        if standing.config != reference.config or standing.half_open_at != reference.opens_until:
            raise Violation(f"G11: {name} stands at {standing}")
        totals = counts.totals
        found = (totals.successes, totals.failures, totals.neutral, totals.rejected)
        wanted = reference.successes, reference.failures, reference.neutral, reference.rejected
        if found != wanted or totals.last_error != reference.last_error:
            raise Violation(f"G11: {name} has counted {found}, and not {wanted}")
        if (counts.permits_lost, counts.stale_reports) != (reference.lost, reference.stale):
            raise Violation(f"G11: {name} has other metrics than it had")
        if standing.entries != tuple(reference.entries.values()):
            raise Violation(f"G11: {name} has entered its states {standing.entries} times")
        if tuple(round(seconds * 1e6) for seconds in totals.durations) != reference.durations:
            raise Violation(f"G11: {name} has forgotten how long calls took")
        assert self._actor is not None
        history = [(e[0], Change(*e[2:7])) for e in self._actor._histories.get(name, ())]
        if history != list(self.reference.history.get(name, ())):
            raise Violation(f"G11: {name} has another history: {history}")
        self._stood.setdefault(place, (circuit.state, standing.half_open_at))

    def subscribed(self, actor: Actor, now: float) -> None:
        """Have every event of this manager's sent to us."""
        self._journal_lost = self._journal_lost and self._behind  # else it has begun one
        self._served[actor.epoch] = actor.origin
        (answer,) = actor.receive(WITNESS, Subscribe(1, None), now)
        if answer.message[2] != self.reference.version:
            raise Violation(f"G1: versions go on from {answer.message[2]}")

    def wrote_news(self) -> None:
        """Where circuits stand is in the journal."""
        self.reference.write_news()

    def wrote_all(self) -> None:
        """And what they have counted."""
        self.reference.write_all()
        for key in self._unwritten:
            self._books[key].write()
        self._unwritten.clear()

    # -- what a manager does -----------------------------------------------------------------------

    def took(self, peer: Peer, message: Message, now: float, sends: list[Send]) -> None:
        """A manager has taken a message in."""
        if self.reference.overdue(now):
            raise Violation("G4: a manager has missed a deadline")
        handler = self._handlers.get(type(message))
        changes: Iterable[Change] = ()
        if handler is not None:
            changes = handler(peer, message, now, sends)
        self._changed(changes, sends)

    def ticked(self, now: float, sends: list[Send]) -> None:
        """A manager has looked at the clock."""
        names = [send.message.name for send in sends if _is_witnessed(send)]  # type: ignore[union-attr]
        self._changed(self.reference.pass_time(now, names), sends)

    def process_died(self, token: bytes, now: float, sends: list[Send]) -> None:
        """A manager was told that a process has died."""
        changes = self.reference.bury(token, now)
        self._connected = {p: t for p, t in self._connected.items() if t != token}
        self._changed(changes, sends)

    def undelivered(
        self, peer: Peer, message: Message, now: float, sends: list[Send], *, gone: bool
    ) -> None:
        """A manager could not say something."""
        if not gone and peer.socket == DATA:
            self._connected.pop(peer, None)
            self._news.missed(peer)
        changes: list[Change] = []
        self.life.seen["messages that could not be sent"] += 1
        if isinstance(message, Granted) and message.operation in self.reference.permits:
            if message.operation not in self._told_again:
                changes = self.reference.give_back(message.operation, now)
            self.life.seen["grants that could not be sent"] += 1
        self._changed(changes, sends)

    def _hello(self, peer: Peer, message: Hello, now: float, sends: list[Send]) -> list[Change]:
        if peer.socket == DATA:
            token = message.session
            self.reference.sessions.setdefault(token, Session())
            self._connected = {p: t for p, t in self._connected.items() if t != token}
            self._connected[peer] = token
        return []

    def _goodbye(self, peer: Peer, message: Goodbye, now: float, sends: list[Send]) -> list[Change]:
        token = self._connected.pop(peer, None)
        return [] if token is None else self.reference.leave(token, now)

    def _declare(self, peer: Peer, message: Declare, now: float, sends: list[Send]) -> list[Change]:
        if peer not in self._connected:
            return []
        return self.reference.declare(message.name, message.config)

    def _reset(self, peer: Peer, message: Reset, now: float, sends: list[Send]) -> list[Change]:
        if message.name not in self.reference.circuits:
            return []
        return self.reference.reset(message.name, now)

    def _acquire(self, peer: Peer, message: Acquire, now: float, sends: list[Send]) -> list[Change]:
        token = self._connected.get(peer)
        answer = next((send.message for send in sends if isinstance(send.message, Answered)), None)
        if answer is None:
            raise Violation(f"{message} was not answered")
        if isinstance(answer, Error):
            self._check_refusal(token, message, answer, now)
            return []
        assert token is not None
        self._heard_at[token] = self._world.now
        session = self.reference.sessions[token]
        name, operation = message.name, answer.operation
        self._questions[token, message.request] = Question(name)
        if session.requests.get(message.request) == operation:
            self._told_again.add(operation)  # so it may be known even if this gets lost
            return []
        if message.request <= session.asked or message.deadline < int(now * 1e6 - 1):
            raise Violation(f"G6: {message} was decided, too late or again")
        circuit = self.reference.circuits[name]
        if isinstance(answer, Granted):
            if not circuit.admits:
                raise Violation(f"G3: {name} let a call through: {circuit.state}, {circuit.probes}")
            out = self.reference.grant(token, message.request, name, operation, now)
            due = None if out.due is None else round(out.due * 1e6)
            if (answer.generation, answer.deadline) != (out.generation, due):
                raise Violation(f"G6: {answer} for {out}")
        else:
            if circuit.admits or answer.state is not circuit.state:
                raise Violation(f"G2: {name} rejected a call: it is {circuit.state}")
            self.reference.reject(token, message.request, name)
        key = token, name
        self._decisions[self.reference.epoch, operation] = self._books[key].counted
        return []

    def _check_refusal(
        self, token: bytes | None, message: Acquire, error: Error, now: float
    ) -> None:
        session = None if token is None else self.reference.sessions[token]
        right = {
            ErrorCode.NO_SESSION: session is None,
            ErrorCode.UNKNOWN_CIRCUIT: message.name not in self.reference.circuits,
            ErrorCode.DEADLINE_PASSED: message.deadline < now * 1e6 + 1,
            ErrorCode.DUPLICATE_REQUEST: session is not None and message.request <= session.asked,
        }
        if not right.get(error.code, False):
            raise Violation(f"{message} was refused: {error}")

    def _report(
        self, peer: Peer, message: Report | Batch | Missed, now: float, sends: list[Send]
    ) -> list[Change]:
        token = self._connected.get(peer)
        if token is None or message.number != self.reference.sessions[token].reports + 1:
            return []
        self._heard_at[token] = self._world.now
        verdict, changes = self.reference.report(token, message, now)
        batch = isinstance(message, Batch)
        self.life.seen[f"reports {_VERDICTS[verdict]}"] += 1
        self._verdicts[token][message.number] = verdict, batch
        if verdict is not None:
            if isinstance(message, Report) and message.permit is not None:
                self._verdict_of[message.epoch, message.permit] = verdict
            self._enter(token, message)
        return changes

    def _enter(self, token: bytes, message: Report | Batch | Missed) -> None:
        """Keep the books of what was taken in."""
        key = token, message.name
        books = self._books[key]
        self._unwritten.add(key)
        line = 0 if isinstance(message, Missed) else self._lines[message.epoch]
        if books.take(message, line, exact=self.exact):
            generation = self._of(message.name).generation
            books.counted_at = Place(self._line, message.name, generation)

    # -- what came of it ---------------------------------------------------------------------------

    def _changed(self, wanted: Iterable[Change], sends: list[Send]) -> None:
        """Compare the steps that circuits made with those that they had to make."""
        events = [send.message for send in sends if _is_witnessed(send)]
        changes = list(wanted)
        found = [Change(*event[2:7]) for event in events]
        if found != changes:
            raise Violation(f"G1, G2, G6: events {found} where there had to be {changes}")
        version = self.reference.version - len(events)
        for event in events:
            version += 1
            if event[0] != version:
                raise Violation(f"G1: event {event[0]} where {version} is next")
            self._listeners.happened(event, self._line)
        for change in changes:
            if change.cause != "config":
                self._moved(change)
        self._compare()

    def _moved(self, change: Change) -> None:
        self.life.seen[f"{change.old} to {change.new}, {change.cause}"] += 1
        now = self._world.now
        place = Place(self._line, change.name, change.generation)
        self._left[place._replace(generation=change.generation - 1)] = now
        until = self._of(change.name).opens_until if change.new is State.OPEN else None
        self._stood[place] = change.new, until
        self._news.moved(place, self.life.network)

    def _compare(self) -> None:
        assert self._actor is not None
        for name, wanted in self.reference.circuits.items():
            found = self._actor._circuits[name]
            if (
                found.state is not wanted.state
                or found.generation != wanted.generation
                or found.consecutive_failures != wanted.failures_in_a_row
                or found.consecutive_successes != wanted.successes_in_a_row
            ):
                raise Violation(f"G2, G6: {name} is {found.standing()}, {found.counts()}")

    def _of(self, name: str) -> Any:
        return self.reference.circuits[name]

    def told(self, peer: Peer, message: Message) -> None:
        """A manager has said something: it must be true, and survive the manager."""
        match message:
            case Event():
                self._told_event(message)
            case Leased():
                self._told_lease(message)
            case Granted():
                out = self.reference.permits.get(message.operation)
                if out is not None:
                    self._told_generation(out.name, message.generation)
            case StatsOf():
                self._told_stats(peer, message)
            case MetricsOf():
                self._told_metrics(peer, message)
            case HistoryOf():
                self._told_history(peer, message)
            case Error() if message.kind in REPORTS and message.code in TAKEN_IN:
                token = self._connected.get(peer)
                if token is not None:
                    self._check_survives(token, message.ref)
            case ResetDone() | Revoked():
                self._told_generation(message.name, message.generation)
            case Reported():
                self._told_verdict(peer, message)
            case Welcome() if peer.socket == DATA:
                token = self._connected[peer]
                self._check_survives(token, message.reports)
                self._acknowledged[token] = message.reports

    def _told_generation(self, name: str, generation: int) -> None:
        written = self.reference.written.get(name)
        if not self._behind and (written is None or written.stands.generation < generation):
            raise Violation(f"G11: generation {generation} of {name} was told and not written")
        self._told[self._line, name] = max(self._told[self._line, name], generation)

    def _told_event(self, event: Event) -> None:
        if not self._behind and event.version > self.reference.written_version:
            raise Violation(f"G11: event {event.version} was told and not written")
        self._listeners.told(event, self._line, self.reference.epoch)
        self._told_generation(event.name, event.generation)

    def _told_lease(self, lease: Leased) -> None:
        self._told_generation(lease.name, lease.generation)
        circuit = self._of(lease.name)
        until = None if circuit.opens_until is None else round(circuit.opens_until * 1e6)
        if lease[1:4] != (circuit.generation, circuit.state, until):
            raise Violation(f"G8: {lease} of a circuit in {circuit.generation}, {circuit.state}")
        if circuit.config.consistency == "strict":
            raise Violation(f"G8: {lease} of a strict circuit")

    def _told_stats(self, peer: Peer, message: StatsOf) -> None:
        stats = message.stats
        self._check_read(peer, message.request)
        self._told_generation(stats.name, stats.generation)
        circuit = self._of(stats.name)
        found = (
            *(stats.state, stats.generation, stats.total_successes, stats.total_failures),
            *(stats.total_neutral, stats.total_rejected, stats.in_flight, stats.last_error),
        )
        wanted = (
            *(circuit.state, circuit.generation, circuit.successes, circuit.failures),
            *(circuit.neutral, circuit.rejected, circuit.in_flight, circuit.last_error),
        )
        if found != wanted:
            raise Violation(f"G10: statistics say {found}, and it is {wanted}")

    def _told_metrics(self, peer: Peer, message: MetricsOf) -> None:
        circuit, metrics = self._of(self._asked_about(peer, message.request)), message.metrics
        self._check_read(peer, message.request)
        found = (
            *(metrics.requests_successful, metrics.requests_failed, metrics.requests_rejected),
            *(metrics.permits_lost, metrics.stale_reports, dict(metrics.transitions)),
            *(_microseconds(metrics.min_latency), _microseconds(metrics.max_latency)),
        )
        wanted = (
            *(circuit.successes, circuit.failures, circuit.rejected),
            *(circuit.lost, circuit.stale, circuit.entries),
            *(min(circuit.durations, default=None), max(circuit.durations, default=None)),
        )
        if found != wanted:
            raise Violation(f"G10: metrics say {found}, and it is {wanted}")

    def _told_history(self, peer: Peer, message: HistoryOf) -> None:
        name = self._asked_about(peer, message.request)
        found = [
            (its.version, Change(name, its.old, its.new, its.cause, its.generation))
            for its in message.changes
        ]
        wanted = list(self.reference.history.get(name, ()))
        if found != wanted:
            raise Violation(f"G1: {name} went through {found}, and it was {wanted}")

    def _check_read(self, peer: Peer, request: int) -> None:
        """Who reads finds what it had come to before it asked."""
        process = self.life.network.process_of(peer)
        name, ended = self._questions[process.token, request]
        taken = self._books[process.token, name].taken
        if self.exact and any(a < b for a, b in zip(taken, ended, strict=True)):
            raise Violation(f"G7: {process} reads {name}: {taken}, and had come to {ended}")

    def _asked_about(self, peer: Peer, request: int) -> str:
        return self._questions[self.life.network.process_of(peer).token, request].name

    def _told_verdict(self, peer: Peer, answer: Reported) -> None:
        token = self._connected.get(peer)
        if token is None:
            return
        self._check_survives(token, answer.number)
        verdicts = self._verdicts[token]
        for number in range(self._acknowledged[token] + 1, answer.number + 1):
            verdict, batch = verdicts.get(number, (answer.verdict, False))
            last = number == answer.number
            if verdict is not answer.verdict and (last or batch):
                raise Violation(f"G6: report {number} was {verdict}, and told to be {answer}")
        self._acknowledged[token] = max(self._acknowledged[token], answer.number)

    def _check_survives(self, token: bytes, number: int) -> None:
        if not self._behind and number > self.reference.written_sessions.get(token, 0):
            raise Violation(f"G10: report {number} was acknowledged and not written")

    # -- what a process hears ----------------------------------------------------------------------

    def process_begins(self, process: Process) -> None:
        """There is another process."""
        for name in process.configs:
            self._books[process.token, name] = Books()

    def process_dies(self, process: Process) -> None:
        """It will never say another word; its calls run no more."""
        for calls in self._probes.values():
            for call in [call for call in calls if call.process is process]:
                del calls[call]

    def wonders(self, process: Process, name: str) -> Question:
        """It asks about a circuit; the question will have a number."""
        return Question(name, tuple(self._books[process.token, name].ended))

    def asked(self, process: Process, number: int, question: Question) -> None:
        """This is its number."""
        self._questions[process.token, number] = question

    def hears(self, process: Process, socket: int, message: Message) -> None:
        """A message arrives there."""
        actor = self._connection(process, socket).manager.actor
        if isinstance(message, Subscribed):
            self._listeners.listens(process, actor.origin, message.version)
        elif socket == DATA and isinstance(message, LEASING):
            key = process.token, message.name
            place = Place(actor.origin, message.name, message.generation)
            known = self._known.get(key)
            if known is None or known[::2] <= place[::2]:
                self._known[key] = place
            if isinstance(message, Leased):
                self._news.leased(process, message.name, self._connection(process, socket))
        if self._alone is not None:
            self._tell_alone(process, message, actor.origin)

    def _tell_alone(self, process: Process, message: Message, line: int) -> None:
        """Is it something that says how a circuit stands, or has just stood?"""
        assert self._alone is not None
        match message:
            case Leased():
                place = Place(line, message.name, message.generation)
                self._alone.hears_lease(process.token, place, message.until)
            case Granted() | Rejected():
                name = self._questions[process.token, message.request].name
                self._alone.hears_answer(process.token, name, message)
            case Event() | ResetDone():
                self._alone.hears_of(process.token, Place(line, message.name, message.generation))
            case StatsOf(stats=stats):
                self._alone.hears_of(process.token, Place(line, stats.name, stats.generation))

    def _connection(self, process: Process, socket: int) -> Connection:
        connection = process.link.lines[socket]
        assert connection is not None
        return connection

    def learns(self, process: Process, events: Iterable[Event]) -> None:
        """Its callbacks are called."""
        actor = self._connection(process, CONTROL).manager.actor
        self._listeners.learns(process, actor.origin, actor.epoch, events)

    # -- calls -------------------------------------------------------------------------------------

    def outcome(
        self, process: Process, name: str, place: Place | None, *, leased: bool = False
    ) -> tuple[Outcome, str | None]:
        """How a call ends, and the text of its failure. From here on it is to be counted.

        Args:
            process: Whose it is.
            name: The circuit.
            place: Where it ran; None: no manager had let it through.
            leased: It had asked nobody.
        """
        outcome = self.life.outcome(name)
        number = self._books[process.token, name].end(outcome, place, leased=leased)
        if outcome is not Outcome.FAILURE:
            return outcome, None
        return outcome, f"Down: {process} {name} {'alone' if number is None else number}"

    def place_of(self, lease: Lease) -> Place:
        """Where a call runs that begins under a lease now."""
        return Place(self._lines[lease.epoch], lease.name, lease.generation)

    def place_granted(self, call: Call) -> Place | None:
        """Where a call runs that has asked; None: nobody has answered."""
        grant = call.grant
        return grant and Place(self._lines[grant.epoch], call.name, grant.generation)

    def asks(self, process: Process, name: str) -> int:
        """A call wants a permit: how many failures its process has had is what must be known."""
        return self._books[process.token, name].failed

    def runs(self, process: Process, call: Call, floor: int) -> None:
        """A call runs that has asked."""
        grant = call.grant
        if grant is None:
            self.life.seen["calls decided alone"] += 1
            if self._alone is not None:
                self._alone.runs(call)
            return
        self._world.note(str(process), f"runs {call.name} with {grant}")
        self.life.seen["calls granted"] += 1
        self._decided[process.token, call.name] += 1
        self._check_decision(process, call.name, (grant.epoch, grant.permit), floor)
        if grant.probe and grant.epoch == self.reference.epoch:
            self._check_probes(call, grant)

    def _check_probes(self, call: Call, grant: Grant) -> None:
        out = self.reference.permits.get(grant.permit)
        now = self._world.now
        if out is None or out.due is None or out.due <= self.life.manager_clock:
            return  # it took so long to come that it counts as lost
        calls = self._probes[call.name]
        for other, due in list(calls.items()):
            if due <= now:
                del calls[other]
        self.life.seen["probes"] += 1
        calls[call] = now + (out.due - self.life.manager_clock)
        if len(calls) > self.life.most_probes(call.name):
            raise Violation(f"G3: {len(calls)} probes of {call.name} run at once")

    def gives_up(self, process: Process, name: str) -> None:
        """A call waits for its permit no more."""
        self._books[process.token, name].in_vain += 1

    def ends(self, call: Call, outcome: Outcome, error: str | None) -> None:
        """A call that has asked ends."""
        if self._alone is not None:
            self._alone.ends(call, outcome, error)
        self._probes[call.name].pop(call, None)

    def rejected(self, process: Process, name: str, answer: Answer, floor: int) -> None:
        """A call is rejected that has asked, by the manager or, if that did not answer, here."""
        if isinstance(answer, Rejected):
            self._world.note(str(process), f"is rejected: {answer}")
            self.life.seen["calls rejected"] += 1
            self._decided[process.token, name] += 1
            self._check_decision(process, name, (0, answer.operation), floor)
        else:
            if self._alone is not None:
                self._alone.rejects(process, name)
            self._books[process.token, name].ended[3] += 1

    def is_back(self, process: Process) -> None:
        """A manager answers it again, where none has."""
        if self._alone is not None:
            self._alone.is_over(process)

    def _check_decision(
        self, process: Process, name: str, operation: tuple[int, int], floor: int
    ) -> None:
        epoch, number = operation
        if epoch == 0:  # a rejection does not say whose it is
            found = [counted for (_, its), counted in self._decisions.items() if its == number]
            counted = max(found)
        else:
            counted = self._decisions[operation]
        if self.exact and counted < floor:
            raise Violation(f"G7: {process} had {floor} failures of {name}, {counted} were known")

    def runs_leased(self, process: Process, name: str, lease: Lease) -> None:
        """A call runs that has asked nobody."""
        self.life.seen["calls leased"] += 1
        self._decided[process.token, name] += 1
        now, key = self._world.now, (process.token, name)
        books = self._books[key]
        line = self._lines[lease.epoch]
        if self.exact and books.counted < books.failed:
            raise Violation(f"G7: {process} runs {name} with a failure of its own not counted")
        at = books.counted_at
        if at is not None and at.line == line and lease.generation < at.generation:
            raise Violation(f"G7: {process} runs {name} in {lease.generation}, its failure made it")
        if now >= self._heard_at[process.token] + TERM:
            raise Violation(f"G8: {process} runs {name} and was not heard of for a second")
        place = Place(line, name, lease.generation)
        if now > self._left.get(place, now) + TERM:
            raise Violation(f"G8: {process} runs {name} a second after the trip")
        self._news.check(process, lease, line)
        known = self._known.get(key)
        if known is not None and known.line == line and known.generation > lease.generation:
            raise Violation(f"G8: {process} runs {name} and was told of {known}")
        state, _ = self._stood.get(place, (State.CLOSED, None))
        if state is not State.CLOSED:
            raise Violation(f"G8: {process} runs {name}, {state} in {place}")

    def rejects_unasked(self, process: Process, name: str, lease: Lease) -> None:
        """A call is rejected that has asked nobody."""
        self.life.seen["calls rejected unasked"] += 1
        self._books[process.token, name].ended[3] += 1
        place = Place(self._lines[lease.epoch], name, lease.generation)
        state, until = self._stood.get(place, (State.OPEN, None))
        if state is not State.OPEN:
            raise Violation(f"G8: {process} rejects {name}, {state} in {place}")
        # Where clocks differ, a process knows by how much only to half the time of a greeting.
        most = GREETING if self._skewed else SMALL
        if until is not None and self.life.manager_clock > until + most:
            raise Violation(f"G8: {process} rejects {name}, which was open until {until}")

    # -- the end -----------------------------------------------------------------------------------

    def ended(self, process: Process) -> int:
        """How many calls of a process have ended so far."""
        return sum(sum(self._books[process.token, name].ended) for name in process.configs)

    def settled(self, process: Process) -> None:
        """All that a living process has come to must be counted by now, and once."""
        for name in process.configs:
            books = self._books[process.token, name]
            if self.exact and not books.balanced:
                raise Violation(f"G10: {process} {name}: {books.ended} ended, {books.taken} taken")

    def nothing_is_out(self, processes: Iterable[Process]) -> None:
        """All calls have ended, so nobody holds a permit; but for those that died unnoticed."""
        living = {process.token for process in processes}
        held = [out for out in self.reference.permits.values() if out.token in living]
        if held:
            raise Violation(f"G4: permits that nobody has are out: {held}")

    def heard_verdicts(self, process: Process) -> None:
        """What permits say became of their reports is what became of them, or nothing yet."""
        for grant, found in process.verdicts:
            wanted = self._verdict_of.get((grant.epoch, grant.permit))
            if self.exact and found not in (None, wanted):
                raise Violation(f"G6: {grant} was {wanted}, and {process} heard {found}")

    def decided(self, process: Process, name: str) -> int:
        """How many of its calls managers have decided, those under a lease included."""
        return self._decided[process.token, name]

    def was_let_through(self, process: Process, name: str) -> None:
        """A call has ended that somebody new has made."""
        ended = self._books[process.token, name].ended
        if not any(ended[:3]) or ended[3]:
            raise Violation(f"G4: {name} is {self._of(name).state}, and lets nobody through")

    def saw_all(self, process: Process) -> None:
        """Who subscribes has seen the last event."""
        self._listeners.saw_all(process, self._line)


_VERDICTS: Final = {
    Verdict.COUNTED: "counted",
    Verdict.STALE: "stale",
    Verdict.EXPIRED: "expired",
    None: "of no permit that is out",
}


def _microseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1e6)


def _is_witnessed(send: Send) -> bool:
    return send.peer is WITNESS and type(send.message) is Event
