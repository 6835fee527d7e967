"""Bugs to be found: each breaks the package in one place, as somebody might by mistake.

A simulation that finds nothing proves something only if it would have found something.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Final
from unittest import mock

from switchgear.circuit import Circuit, Counts, Permit, Standing, Totals
from switchgear.client.lease import Gate
from switchgear.client.leases import Leases as ClientLeases
from switchgear.client.reports import Many, One, Reports
from switchgear.client.session import Session
from switchgear.client.standby import Standby
from switchgear.manager.acks import Acks
from switchgear.manager.actor import Actor
from switchgear.manager.leases import Leases
from switchgear.manager.unsaved import Saved, Unsaved
from switchgear.states import Outcome, State, Verdict
from switchgear.wire import Error, Granted, Report, Reported

from .journals import Remembered

Plant = contextlib.AbstractContextManager[object]


def _in_place_of(owner: type, name: str, make: Callable[[Any], Callable[..., Any]]) -> Plant:
    """Replace a method by one that is made from it."""
    return mock.patch.object(owner, name, make(getattr(owner, name)))


def _do_nothing(*args: object) -> None:
    pass


def _without(owner: type, name: str) -> Plant:
    """Have a method do nothing."""
    return mock.patch.object(owner, name, _do_nothing)


def _is_current(self: Circuit, permit: Permit) -> Permit:
    return permit._replace(generation=self.generation)


def late_outcomes_move_the_circuit() -> Plant:
    """Circuit.report does not compare generations."""
    return _in_place_of(
        Circuit,
        "report",
        lambda report: lambda self, permit, *rest: report(self, _is_current(self, permit), *rest),
    )


def late_leased_outcomes_move_the_circuit() -> Plant:
    """Circuit.report_leased does not, either."""
    return _in_place_of(
        Circuit,
        "report_leased",
        lambda report: lambda self, generation, *rest: report(self, self.generation, *rest),
    )


def a_lost_grant_stays_out() -> Plant:
    """Actor.undelivered forgets the permit of a message that could not be sent."""

    def make(undelivered: Callable[..., Any]) -> Callable[..., Any]:
        def forgetful(self: Actor, send: Any, now: float, *, gone: bool) -> Any:
            if isinstance(send.message, Granted):
                send = send._replace(message=Error(0, 0, 0, ""))
            return undelivered(self, send, now, gone=gone)

        return forgetful

    return _in_place_of(Actor, "undelivered", make)


def reports_are_acknowledged_before_they_are_written() -> Plant:
    """Actor._acknowledge answers at once."""

    def make(receive: Callable[..., Any]) -> Callable[..., Any]:
        def hasty(self: Actor, peer: Any, message: Any, now: float) -> Any:
            sends = receive(self, peer, message, now)
            if isinstance(message, Report):
                sends = sends + [send for send in self.saved(now) if send not in sends]
            return sends

        return hasty

    return _in_place_of(Actor, "receive", make)


def events_are_told_before_they_are_written() -> Plant:
    """Unsaved.news does not say that there are any."""
    return mock.patch.object(Unsaved, "news", property(lambda self: False))


def a_change_ends_no_lease() -> Plant:
    """Leases.follow tells nobody of a circuit that was closed by hand."""

    def make(follow: Callable[..., Any]) -> Callable[..., Any]:
        def silent(self: Any, circuit: Circuit) -> Any:
            if circuit.state is State.CLOSED:
                return [], None
            return follow(self, circuit)

        return silent

    return _in_place_of(Leases, "follow", make)


def a_failure_leaves_the_lease_as_it_is() -> Plant:
    """Gate.suspend does nothing."""
    return _without(Gate, "suspend")


def leases_outlast_their_connection() -> Plant:
    """Leases.end_all does nothing."""
    return _without(ClientLeases, "end_all")


def a_lease_is_renewed_by_what_was_answered_and_not_by_what_was_asked() -> Plant:
    """Leases.renew counts the term from a later time than it may."""
    return _in_place_of(
        ClientLeases, "renew", lambda renew: lambda self, sent_at: renew(self, sent_at + 0.5)
    )


def a_report_that_comes_twice_counts_twice() -> Plant:
    """Actor takes in a report of any number."""

    def make(take_in: Callable[..., Any]) -> Callable[..., Any]:
        def gullible(self: Actor, message: Any, peer: Any, now: float) -> Any:
            session = self._connected.get(peer)
            if session is not None and message.number <= session.reports:
                session.reports = message.number - 1
            return take_in(self, message, peer, now)

        return gullible

    return _in_place_of(Actor, "_take_in", make)


def what_was_taken_in_is_sent_again() -> Plant:
    """Session does not look at how far a new manager knows its reports."""

    def make(restart: Callable[..., Any]) -> Callable[..., Any]:
        def renumbering(self: Reports, taken_in: int) -> None:
            restart(self, taken_in)
            if self._queue and taken_in:
                self._queue.appendleft(self._queue[0])

        return renumbering

    return _in_place_of(Reports, "restart", make)


def a_circuit_opens_one_failure_late() -> Plant:
    """Circuit._judge compares with > in place of >=."""

    def make(judge: Callable[..., Any]) -> Callable[..., Any]:
        def late(self: Circuit, outcome: Outcome, now: float) -> None:
            last = self.consecutive_failures == self.config.failure_threshold - 1 > 0
            if last and outcome is Outcome.FAILURE and self.state is State.CLOSED:
                self.consecutive_failures += 1
                self.consecutive_successes = 0
            else:
                judge(self, outcome, now)

        return late

    return _in_place_of(Circuit, "_judge", make)


def one_probe_too_many() -> Plant:
    """Circuit.acquire compares with <= in place of <."""

    def make(acquire: Callable[..., Any]) -> Callable[..., Any]:
        def generous(self: Circuit, permit_id: int, now: float) -> Any:
            full = len(self._probes) == self.config.max_concurrent_requests
            if self.state is not State.HALF_OPEN or not full:
                return acquire(self, permit_id, now)
            self._in_flight += 1
            due = now + self.config.permit_timeout
            probe = self._probes[permit_id] = Permit(permit_id, self.generation, due)
            return probe

        return generous

    return _in_place_of(Circuit, "acquire", make)


def probes_wait_for_ever() -> Plant:
    """Circuit.next_deadline does not look at the permits that are out."""
    return mock.patch.object(Circuit, "next_deadline", property(lambda self: self.half_open_at))


def an_open_circuit_begins_its_time_anew() -> Plant:
    """Actor.restore forgets how long circuits have been open."""

    def make(restore: Callable[..., Any]) -> Callable[..., Any]:
        def anew(self: Actor, saved: Saved, now: float) -> None:
            circuits = dict(saved.circuits)
            for name, (standing, counts) in saved.circuits.items():
                if standing.half_open_at is not None:
                    later = now + standing.config.open_timeout
                    circuits[name] = (standing._replace(half_open_at=later), counts)
            restore(self, saved._replace(circuits=circuits), now)

        return anew

    return _in_place_of(Actor, "restore", make)


def a_successor_counts_on_in_another_generation() -> Plant:
    """Circuit.restore takes consecutive counts of whatever generation."""

    def make(restore: Callable[..., Any]) -> Callable[..., Any]:
        def blind(name: str, standing: Standing, counts: Counts | None) -> Circuit:
            if counts is not None:
                counts = counts._replace(generation=standing.generation)
            circuit: Circuit = restore(name, standing, counts)
            return circuit

        return blind

    return mock.patch.object(Circuit, "restore", staticmethod(make(Circuit.restore)))


def a_permit_that_nobody_waits_for_stays_out() -> Plant:
    """Session forgets who has stopped waiting, and what comes for them."""

    def make(abandon: Callable[..., Any]) -> Callable[..., Any]:
        def forgetful(self: Session, waiter: Any, *, timed_out: bool) -> None:
            abandon(self, waiter, timed_out=timed_out)
            self._abandoned.clear()

        return forgetful

    return _in_place_of(Session, "abandon", make)


def a_goodbye_keeps_its_permits() -> Plant:
    """Actor._goodbye gives nothing back."""

    def make(goodbye: Callable[..., Any]) -> Callable[..., Any]:
        def keeping(self: Actor, message: Any, peer: Any, now: float) -> Any:
            session = self._connected.get(peer)
            if session is not None:
                for granted in session.granted.values():
                    del self._permits[granted.operation]
                session.granted.clear()
            return goodbye(self, message, peer, now)

        return keeping

    return _in_place_of(Actor, "_goodbye", make)


def a_permit_that_was_told_twice_goes_back() -> Plant:
    """Actor.undelivered gives back a permit whose holder may have heard of it before."""

    def make(undelivered: Callable[..., Any]) -> Callable[..., Any]:
        def hasty(self: Actor, send: Any, now: float, *, gone: bool) -> Any:
            if isinstance(send.message, Granted):
                held = self._permits.get(send.message.operation)
                if held is not None:
                    self._permits[send.message.operation] = held._replace(told_again=False)
            return undelivered(self, send, now, gone=gone)

        return hasty

    return _in_place_of(Actor, "undelivered", make)


def nobody_knocks() -> Plant:
    """Session waits for ever for an answer that was dropped."""
    return mock.patch.object(Session, "knock_at", math.inf)


def who_missed_the_last_event_is_not_told() -> Plant:
    """Actor waits for the next event to show what was missed."""
    return mock.patch.object(Actor, "_tell_again", lambda self, now: self._behind.clear() or [])


def an_acknowledgement_is_dropped() -> Plant:
    """Acks keeps only the last of what a peer is to be told."""

    def make(take: Callable[..., Any]) -> Callable[..., Any]:
        def shortened(self: Acks[Any], peer: Any) -> Any:
            messages = take(self, peer)
            answers = [message for message in messages if type(message) is Reported]
            return [m for m in messages if m not in answers[:-1]]

        return shortened

    return _in_place_of(Acks, "_take", make)


def who_is_alone_forgets_that_a_circuit_was_open() -> Plant:
    """Gate.heard_open does nothing."""
    return _without(Gate, "heard_open")


def who_is_alone_never_opens_a_circuit() -> Plant:
    """Standby.report hands outcomes over, and does not judge them."""

    def report(self: Standby, circuit: Circuit, permit: Permit, *outcome: Any) -> Verdict:
        self._hand_over(circuit.name, Totals.of(*outcome))
        return Verdict.STALE

    return mock.patch.object(Standby, "report", report)


def who_was_alone_stays_alone() -> Plant:
    """Session.received does not notice that a manager answers again."""

    def make(received: Callable[..., Any]) -> Callable[..., Any]:
        def unaware(self: Session, *args: Any) -> None:
            lost = self.lost
            received(self, *args)
            self.lost = lost

        return unaware

    return _in_place_of(Session, "received", make)


def a_subscription_ends_with_its_line() -> Plant:
    """Session._welcome does not subscribe with a manager that counts anew."""

    def make(welcome: Callable[..., Any]) -> Callable[..., Any]:
        def deaf(self: Session, connection: int, message: Any, now: float) -> None:
            known = self._lines[connection].origin
            same = not connection or known in (0, message.origin)
            with contextlib.nullcontext() if same else _without(Session, "_subscribe_anew"):
                welcome(self, connection, message, now)

        return deaf

    return _in_place_of(Session, "_welcome", make)


def successes_are_told_before_a_failure_that_came_before_them() -> Plant:
    """Reports.add lets a batch grow that is followed by others."""

    def make(add: Callable[..., Any]) -> Callable[..., Any]:
        def forgetful(self: Reports, report: Any) -> None:
            growing = dict(self._growing)
            add(self, report)
            self._growing.update(growing)

        return forgetful

    return _in_place_of(Reports, "add", make)


def neutral_outcomes_count_twice() -> Plant:
    """Many.build doubles them."""

    def make(build: Callable[..., Any]) -> Callable[..., Any]:
        def doubling(self: Many, number: int) -> Any:
            batch = build(self, number)
            return batch._replace(neutral=2 * batch.neutral)

        return doubling

    return _in_place_of(Many, "build", make)


def what_is_beyond_the_latency_window_is_dropped() -> Plant:
    """Many.take counts no more calls than it keeps the durations of."""

    def make(take: Callable[..., Any]) -> Callable[..., Any]:
        def shortened(self: Many) -> None:
            more = self._more
            take(self)
            self._more = more

        return shortened

    return _in_place_of(Many, "take", make)


def entries_into_states_are_forgotten() -> Plant:
    """Circuit.restore leaves them at none."""
    return mock.patch.object(
        Circuit,
        "restore",
        lambda name, standing, counts, restore=Circuit.restore: restore(
            name, standing._replace(entries=(0, 0, 0)), counts
        ),
    )


def a_sound_journal_is_taken_for_a_damaged_one() -> Plant:
    """Journal.open, or what stands in for it, gives up one that has sessions and events."""

    def make(succeed: Callable[..., Any]) -> Callable[..., Any]:
        def blind(self: Remembered, epoch: int, utc_offset: float) -> Saved | None:
            saved = succeed(self, epoch, utc_offset)
            return None if saved is not None and saved.sessions and saved.events else saved

        return blind

    return _in_place_of(Remembered, "succeed", make)


def a_clock_that_was_set_back_sets_back_epochs() -> Plant:
    """Actor.restore keeps the epoch it was given, whatever its predecessor's was."""

    def make(restore: Callable[..., Any]) -> Callable[..., Any]:
        def trusting(self: Actor, saved: Saved, now: float) -> None:
            epoch = self.epoch
            restore(self, saved, now)
            if saved.origin is not None:
                self.epoch = epoch

        return trusting

    return _in_place_of(Actor, "restore", make)


def a_line_goes_on_from_a_journal_that_is_behind() -> Plant:
    """Actor.restore does not begin a line of its own, whatever was told and not written."""

    def make(restore: Callable[..., Any]) -> Callable[..., Any]:
        def blind(self: Actor, saved: Saved, now: float) -> None:
            restore(self, saved, now)
            if saved.origin is None:
                self.origin = saved.epoch

        return blind

    return _in_place_of(Actor, "restore", make)


def statistics_do_not_wait_for_reports() -> Plant:
    """Session._may_pass lets a question overtake what was to be reported before it."""
    return _in_place_of(
        Session,
        "_may_pass",
        lambda may_pass: lambda self, behind: may_pass(self, behind._replace(reports=0)),
    )


def a_permit_of_a_cancelled_caller_stays_out() -> Plant:
    """Session.abandon remembers only those that waited too long."""

    def make(abandon: Callable[..., Any]) -> Callable[..., Any]:
        def forgetful(self: Session, waiter: Any, *, timed_out: bool) -> None:
            number = self._numbers.get(waiter)
            abandon(self, waiter, timed_out=timed_out)
            if not timed_out:
                self._abandoned.pop(number, None)

        return forgetful

    return _in_place_of(Session, "abandon", make)


def every_verdict_is_counted() -> Plant:
    """One.settle does not look at the answer."""
    return _in_place_of(
        One, "settle", lambda settle: lambda self, verdict: settle(self, Verdict.COUNTED)
    )


def clocks_differ_the_other_way() -> Plant:
    """Leases.grant adds the offset of the manager's clock."""
    return _in_place_of(
        ClientLeases,
        "grant",
        lambda grant: lambda self, message, epoch, offset: grant(self, message, epoch, -offset),
    )


PLANTS: Final[dict[str, Callable[[], Plant]]] = {
    plant.__name__: plant
    for plant in (
        late_outcomes_move_the_circuit,
        late_leased_outcomes_move_the_circuit,
        a_lost_grant_stays_out,
        reports_are_acknowledged_before_they_are_written,
        events_are_told_before_they_are_written,
        a_change_ends_no_lease,
        a_failure_leaves_the_lease_as_it_is,
        leases_outlast_their_connection,
        a_lease_is_renewed_by_what_was_answered_and_not_by_what_was_asked,
        a_report_that_comes_twice_counts_twice,
        what_was_taken_in_is_sent_again,
        a_circuit_opens_one_failure_late,
        one_probe_too_many,
        probes_wait_for_ever,
        an_open_circuit_begins_its_time_anew,
        a_successor_counts_on_in_another_generation,
        a_permit_that_nobody_waits_for_stays_out,
        a_goodbye_keeps_its_permits,
        a_permit_that_was_told_twice_goes_back,
        nobody_knocks,
        who_missed_the_last_event_is_not_told,
        an_acknowledgement_is_dropped,
        who_is_alone_forgets_that_a_circuit_was_open,
        who_is_alone_never_opens_a_circuit,
        who_was_alone_stays_alone,
        a_subscription_ends_with_its_line,
        successes_are_told_before_a_failure_that_came_before_them,
        neutral_outcomes_count_twice,
        what_is_beyond_the_latency_window_is_dropped,
        entries_into_states_are_forgotten,
        a_sound_journal_is_taken_for_a_damaged_one,
        a_clock_that_was_set_back_sets_back_epochs,
        a_line_goes_on_from_a_journal_that_is_behind,
        statistics_do_not_wait_for_reports,
        a_permit_of_a_cancelled_caller_stays_out,
        every_verdict_is_counted,
        clocks_differ_the_other_way,
    )
}


@contextlib.contextmanager
def planted(name: str | None) -> Iterator[None]:
    """Have a bug, or none."""
    with contextlib.nullcontext() if name is None else PLANTS[name]():
        yield
