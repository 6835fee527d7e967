"""What is to be saved: news before anybody is told, counts with how far each session has come."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Final

from switchgear.circuit import Circuit
from switchgear.config import CircuitConfig
from switchgear.manager.sessions import SavedSession, Session
from switchgear.manager.unsaved import SAVE_INTERVAL, Changes, Unsaved
from switchgear.states import Outcome, State
from switchgear.wire import Event

T0: Final = 100.0
NOTHING: Final = Changes([], [], [], [], [])
AT: Final = datetime(2026, 1, 1, tzinfo=timezone.utc)


def circuit(name: str = "a") -> Circuit:
    return Circuit(name, CircuitConfig(failure_threshold=1), T0)


def session(number: int = 1) -> Session:
    return Session(SavedSession(bytes([number]) * 16, 1_000 + number, 5))


def event(version: int) -> Event:
    return Event(version, 10, "a", State.CLOSED, State.OPEN, "failures", 2, AT)


def test_there_is_nothing_to_save_at_the_beginning() -> None:
    unsaved = Unsaved()
    assert (unsaved.news, unsaved.save_by) == (False, None)
    assert unsaved.take_news() == unsaved.take_all() == NOTHING


def test_news_is_where_circuits_stand_when_it_is_taken_and_how_they_got_there() -> None:
    unsaved, a, b = Unsaved(), circuit("a"), circuit("b")
    unsaved.stands(a)
    assert unsaved.news
    a.report_leased(1, Outcome.FAILURE, T0)
    unsaved.stands(a, event(1))
    unsaved.stands(b)
    a.reset(T0)
    unsaved.stands(a, event(2))
    standings = [("a", a.standing()), ("b", b.standing())]
    assert a.generation == 3
    assert unsaved.take_news() == NOTHING._replace(standings=standings, events=[event(1), event(2)])
    assert not unsaved.news
    assert unsaved.take_news() == NOTHING


def test_news_has_no_date_of_its_own() -> None:
    unsaved = Unsaved()
    unsaved.stands(circuit())
    assert unsaved.save_by is None  # whoever tells somebody something saves it before


def test_news_leaves_the_counts_for_later() -> None:
    unsaved, a = Unsaved(), circuit()
    a.report_leased(1, Outcome.SUCCESS, T0)
    unsaved.counted(a, T0)
    unsaved.stands(a)
    assert unsaved.take_news() == NOTHING._replace(standings=[("a", a.standing())])
    assert unsaved.save_by == T0 + SAVE_INTERVAL
    assert unsaved.take_all() == NOTHING._replace(counts=[("a", a.counts())])


def test_the_first_change_says_by_when_and_all_of_them_do() -> None:
    for change in range(3):
        unsaved, a, one = Unsaved(), circuit(), session()
        changes = [
            lambda now: unsaved.counted(a, now),  # noqa: B023
            lambda now: unsaved.reported(one, now),  # noqa: B023
            lambda now: unsaved.ended(one.token, now),  # noqa: B023
        ]
        changes[change](T0)
        for other in changes:
            other(T0 + 1)
        assert unsaved.save_by == T0 + SAVE_INTERVAL
        unsaved.take_all()
        assert unsaved.save_by is None
        changes[change](T0 + 2)
        assert unsaved.save_by == T0 + 2 + SAVE_INTERVAL


def test_counts_and_sessions_are_those_of_the_moment_and_come_once() -> None:
    unsaved, a, one = Unsaved(), circuit(), session()
    for number in (1, 2, 3):
        one.reports = number
        unsaved.reported(one, T0)
        a.report_leased(1, Outcome.SUCCESS, T0)
        unsaved.counted(a, T0)
    assert unsaved.has_reports_of(one)
    taken = unsaved.take_all()
    assert taken == NOTHING._replace(counts=[("a", a.counts())], sessions=[one.saved()])
    assert (taken.sessions[0].reports, taken.counts[0][1].totals.successes) == (3, 3)
    assert not unsaved.has_reports_of(one)
    assert unsaved.take_all() == NOTHING


def test_a_session_ends_or_goes_on_as_was_said_last() -> None:
    unsaved, one, other = Unsaved(), session(1), session(2)
    unsaved.reported(one, T0)
    unsaved.ended(one.token, T0)
    unsaved.ended(other.token, T0)
    unsaved.reported(other, T0)
    taken = unsaved.take_all()
    assert (taken.sessions, taken.ended) == ([other.saved()], [one.token])


def test_all_is_news_and_counts_together() -> None:
    unsaved, a = Unsaved(), circuit()
    unsaved.stands(a, event(1))
    unsaved.counted(a, T0)
    changes = [("a", a.standing())], [event(1)], [("a", a.counts())]
    assert unsaved.take_all() == Changes(*changes, [], [])
    assert not unsaved.news


def test_changes_are_true_when_there_are_any() -> None:
    assert not NOTHING
    assert NOTHING._replace(ended=[b""])
