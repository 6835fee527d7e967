"""Acknowledgements that are held back: when they go, in which order, and for whom."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from switchgear.manager.acks import ACK_DELAY, ACKS_TOGETHER, Acks
from switchgear.states import Verdict
from switchgear.wire import Message, Reported, Synced

T0: Final = 100.0


def reported(number: int, verdict: Verdict = Verdict.COUNTED) -> Reported:
    return Reported(number, 10 * number, verdict)


class Desk:
    def __init__(self) -> None:
        self.acks: Acks[str] = Acks()

    def add(
        self,
        number: int,
        *,
        to: str = "a",
        now: float = T0,
        batch: bool = False,
        urgent: bool = False,
        verdict: Verdict = Verdict.COUNTED,
    ) -> None:
        self.acks.add(to, reported(number, verdict), now, batch=batch, urgent=urgent)
        self.acks.check()

    def due(self, now: float = T0) -> list[tuple[str, Message]]:
        taken = self.acks.take_due(now)
        self.acks.check()
        return taken


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_nothing_is_due_before_anything_was_added(desk: Desk) -> None:
    assert desk.acks.due is None
    assert desk.due(1e9) == []


def test_an_answer_goes_when_it_has_waited_and_not_before(desk: Desk) -> None:
    desk.add(1)
    assert desk.acks.due == T0 + ACK_DELAY
    assert desk.due(T0 + ACK_DELAY - 0.001) == []
    assert desk.due(T0 + ACK_DELAY) == [("a", reported(1))]
    assert desk.acks.due is None
    assert desk.due(1e9) == []


def test_later_ones_go_with_the_first_and_in_order(desk: Desk) -> None:
    desk.add(1)
    desk.add(2, now=T0 + 0.09)
    assert desk.due(T0 + ACK_DELAY) == [("a", reported(1)), ("a", reported(2))]
    desk.add(3, now=T0 + 0.2)
    assert desk.acks.due == T0 + 0.2 + ACK_DELAY


def test_the_oldest_says_when_and_others_stay_until_their_own_time(desk: Desk) -> None:
    desk.add(1, to="a", now=T0)
    desk.add(2, to="b", now=T0 + 0.05)
    assert desk.acks.due == T0 + ACK_DELAY
    assert desk.due(T0 + ACK_DELAY) == [("a", reported(1))]
    assert desk.acks.due == T0 + 0.05 + ACK_DELAY
    assert desk.due(T0 + 0.05 + ACK_DELAY) == [("b", reported(2))]


def test_one_that_is_waited_for_goes_at_once_with_those_before_it_and_nobody_elses(
    desk: Desk,
) -> None:
    desk.add(1, to="b")
    desk.add(1, to="a")
    desk.add(2, to="a", urgent=True)
    assert desk.acks.due == 0.0
    assert desk.due() == [("a", reported(1)), ("a", reported(2))]
    assert desk.acks.due == T0 + ACK_DELAY
    assert "b" in desk.acks
    assert "a" not in desk.acks


def test_who_is_both_waited_for_and_overdue_is_told_once(desk: Desk) -> None:
    desk.add(1, urgent=True)
    desk.add(1, to="b")
    assert desk.due(T0 + 1) == [("a", reported(1)), ("b", reported(1))]


def test_so_many_reports_are_urgent_and_one_fewer_are_not(desk: Desk) -> None:
    for number in range(1, ACKS_TOGETHER):
        desk.add(number, batch=True)
    assert desk.acks.due == T0 + ACK_DELAY
    desk.add(ACKS_TOGETHER, batch=True)
    assert desk.acks.due == 0.0
    assert desk.due() == [("a", reported(ACKS_TOGETHER))]
    desk.add(ACKS_TOGETHER + 1)  # and then it is counted from the beginning
    assert desk.acks.due == T0 + ACK_DELAY


def test_batches_in_a_row_that_came_to_the_same_are_answered_by_the_last(desk: Desk) -> None:
    desk.add(1, batch=True)
    desk.add(2, batch=True)
    desk.add(3, batch=True, verdict=Verdict.STALE)
    desk.add(4, batch=False, verdict=Verdict.STALE)
    desk.add(5, batch=True, verdict=Verdict.STALE)
    desk.add(6, batch=True, verdict=Verdict.STALE)
    told = [message for _, message in desk.due(T0 + 1)]
    stale = Verdict.STALE
    assert told == [reported(2), reported(3, stale), reported(4, stale), reported(6, stale)]


def test_a_batch_does_not_speak_for_one_before_another_message(desk: Desk) -> None:
    desk.add(1, batch=True)
    desk.acks.add_last("a", Synced(7, 15), T0)
    desk.add(2, batch=True)
    assert [message for _, message in desk.due()] == [reported(1), Synced(7, 15), reported(2)]


def test_what_is_put_last_goes_last_and_at_once(desk: Desk) -> None:
    desk.add(1)
    desk.acks.add_last("a", Synced(7, 15), T0)
    desk.acks.check()
    assert desk.acks.due == 0.0
    assert desk.due() == [("a", reported(1)), ("a", Synced(7, 15))]
    desk.acks.add_last("b", Synced(8, 16), T0)
    assert desk.due() == [("b", Synced(8, 16))]


def test_all_are_handed_over_for_the_end_whoever_waits(desk: Desk) -> None:
    desk.add(1, to="a")
    desk.add(1, to="b", urgent=True)
    assert desk.acks.take_all() == [("a", reported(1)), ("b", reported(1))]
    desk.acks.check()
    assert (desk.acks.due, desk.acks.take_all()) == (None, [])


def test_what_is_dropped_is_gone_and_who_is_not_there_can_be_dropped(desk: Desk) -> None:
    desk.add(1, urgent=True)
    desk.add(1, to="b")
    desk.acks.drop("a")
    desk.acks.drop("nobody")
    desk.acks.check()
    assert desk.due(T0 + 1) == [("b", reported(1))]


def test_answers_are_held_back_as_the_protocol_says() -> None:
    protocol = Path(__file__).parents[2].joinpath("docs", "protocol.md").read_text("utf-8")
    said = f"mostly after {1000 * ACK_DELAY:.0f} ms, or when {ACKS_TOGETHER}"
    assert said in " ".join(protocol.split())


def test_an_answer_speaks_for_itself_unless_it_answers_a_batch() -> None:
    acks: Acks[str] = Acks()
    for number in (1, 2):
        acks.add("a", reported(number), T0, urgent=False)
    assert acks.take_all() == [("a", reported(1)), ("a", reported(2))]
