"""The shared words: what people read, and the numbers the wire relies on."""

from __future__ import annotations

from switchgear.states import Outcome, State, Verdict


def test_str_of_a_state_is_the_word_people_read() -> None:
    assert [str(state) for state in State] == ["closed", "open", "half-open"]
    assert [f"{state}" for state in State] == ["closed", "open", "half-open"]


def test_the_wire_numbers_of_outcomes_and_verdicts_have_not_moved() -> None:
    assert {outcome.name: int(outcome) for outcome in Outcome} == {
        "SUCCESS": 0,
        "FAILURE": 1,
        "NEUTRAL": 2,
    }
    assert {verdict.name: int(verdict) for verdict in Verdict} == {
        "COUNTED": 0,
        "STALE": 1,
        "EXPIRED": 2,
    }
