"""The checker finds what is wrong, and lets pass what is right. Runs written by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import pytest

from switchgear import wire
from switchgear.config import CircuitConfig
from switchgear.states import Outcome, State, Verdict
from switchgear.stats import StateChange

from . import history as files
from .checker import check, overdue, state_change
from .history import CALLED, RECEIVED, SENT, Called, History
from .model import Circuit, Out
from .notebook import NAME, Notebook, answered, configured, instant, replaced, retold

CLOSED, OPEN, HALF_OPEN = State.CLOSED, State.OPEN, State.HALF_OPEN
SUCCESS, FAILURE = Outcome.SUCCESS, Outcome.FAILURE
COUNTED, STALE = Verdict.COUNTED, Verdict.STALE
ERROR: Final = "ConnectionError: down"
STRICT: Final = CircuitConfig(
    failure_threshold=2,
    success_threshold=1,
    open_timeout=2.5,
    permit_timeout=20.0,
    consistency="strict",
)


def strict_run() -> History:
    """A circuit that opens, turns half-open, and closes; the numbers are in the comments."""
    book = Notebook(STRICT)
    book.ping()  # 1
    book.declare()  # 2
    book.acquire(1, 1, None)  # 3
    book.acquire(2, 1, None)  # 4
    book.report(1, 3, 1, FAILURE, COUNTED)  # 5
    book.acquire(2, 1, None)  # 6
    book.report(2, 4, 1, FAILURE, COUNTED)  # 7
    book.event(CLOSED, OPEN, "failures", 2)
    book.acquire(1, OPEN, 2.4, ERROR)  # 8
    book.report(2, 6, 1, SUCCESS, STALE)  # 9
    book.timer(OPEN, HALF_OPEN, "timeout", 3)  # 10
    book.acquire(1, 3, 31_200_000)  # 11
    book.acquire(2, HALF_OPEN, None, ERROR)  # 12
    book.report(1, 11, 3, SUCCESS, COUNTED)  # 13
    book.event(HALF_OPEN, CLOSED, "successes", 4)
    book.stats(  # 14
        total_requests=6,
        total_successes=2,
        total_failures=2,
        total_rejected=2,
        last_error=ERROR,
        last_error_at=instant(7.1),
        generation=4,
    )
    return book.close()  # 15


def swap(history: History, one: int, other: int) -> None:
    """Give each of two operations the number of the other."""
    answered(history, one, operation=1_000)
    answered(history, other, operation=one)
    answered(history, 1_000, operation=other)


def is_sent_later(history: History, place: int, seconds: float) -> None:
    history.sent[place] = history.sent[place]._replace(at=history.sent[place].at + seconds)


def loses_event(history: History, operation: int) -> None:
    history.received[:] = [
        each
        for each in history.received
        if not (isinstance(each.message, wire.Event) and each.message.operation == operation)
    ]


def has_one_number_more(history: History) -> None:
    answered(history, 15, operation=16)
    history.last = 16


def is_never_answered(history: History) -> None:
    history.received[:] = [
        each for each in history.received if getattr(each.message, "operation", 0) != 9
    ]


def counts_in_stats(history: History, **fields: int) -> None:
    (told,) = (e.message.stats for e in history.received if isinstance(e.message, wire.StatsOf))
    answered(history, 14, stats=replace(told, **fields))  # type: ignore[arg-type]


WRONG: Final[dict[str, Callable[[History], None]]] = {
    "two numbers are swapped": lambda h: swap(h, 5, 7),
    "two numbers of one connection are swapped": lambda h: swap(h, 3, 5),
    "a number comes twice": lambda h: answered(h, 6, operation=5),
    "a number is left over": has_one_number_more,
    "a number is beyond the last": lambda h: answered(h, 6, operation=99),
    "a report is never answered": is_never_answered,
    "a later answer came before this was asked": lambda h: is_sent_later(h, 2, 1.8),
    "a grant has an old generation": lambda h: answered(h, 11, generation=2),
    "a second probe is admitted": lambda h: replaced(h, 12, wire.Granted, 3, 32_000_000),
    "a call is admitted while open": lambda h: replaced(h, 8, wire.Granted, 2, None),
    "a call is rejected while closed": lambda h: replaced(h, 6, wire.Rejected, OPEN, 1.0, None),
    "a probe has no deadline": lambda h: answered(h, 11, deadline=None),
    "a probe has more time than it should": lambda h: answered(h, 11, deadline=32_000_000),
    "a rejection names another state": lambda h: answered(h, 12, state=OPEN, retry_after=1.0),
    "a rejection promises too late a probe": lambda h: answered(h, 8, retry_after=2.6),
    "a rejection knows of no failure": lambda h: answered(h, 8, last_error=None),
    "a stale report is counted": lambda h: answered(h, 9, verdict=COUNTED),
    "a report that counts is stale": lambda h: answered(h, 5, verdict=STALE),
    "a report is expired in time": lambda h: answered(h, 13, verdict=Verdict.EXPIRED),
    "it opens a failure late": lambda h: configured(h, replace(STRICT, failure_threshold=1)),
    "it opens a failure early": lambda h: configured(h, replace(STRICT, failure_threshold=3)),
    "it closes a success early": lambda h: configured(h, replace(STRICT, success_threshold=2)),
    "it turns half-open early": lambda h: configured(h, replace(STRICT, open_timeout=9.0)),
    "an event is missing": lambda h: loses_event(h, 7),
    "the last event is missing": lambda h: loses_event(h, 13),
    "an event has another generation": lambda h: retold(h, 7, generation=3),
    "an event has another cause": lambda h: retold(h, 13, cause="reset"),
    "an event has another number": lambda h: retold(h, 7, operation=9),
    "a version is skipped": lambda h: retold(h, 13, version=4),
    "a version comes twice": lambda h: retold(h, 13, version=2),
    "a rejection is not counted": lambda h: counts_in_stats(h, total_rejected=1),
    "a success is counted twice": lambda h: counts_in_stats(h, total_successes=3),
    "an attempt is counted twice": lambda h: counts_in_stats(h, total_requests=7),
    "a permit is never taken back": lambda h: counts_in_stats(h, in_flight=1),
    "a closed circuit kept its failures": lambda h: counts_in_stats(h, consecutive_failures=2),
}


def test_a_right_run_is_right() -> None:
    result = check(strict_run())
    assert result.wrong == []
    assert result.operations == 15
    assert result.kinds["(nobody told)"] == 1  # the timer


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_run_is_found(what: str) -> None:
    run = strict_run()
    WRONG[what](run)
    assert check(run).wrong


def test_a_kept_run_is_the_same_again(tmp_path: object) -> None:
    run = strict_run()
    header = {
        **{"seed": 0, "epoch": run.epoch, "first": run.first, "last": run.last},
        **{"names": run.names, "killed": [], "lost": None, "listeners": []},
    }
    records = [
        *([SENT, s.session, s.at, wire.encode(s.message)] for s in run.sent),
        *([RECEIVED, r.session, r.at, r.done, 0, wire.encode(r.message)] for r in run.received),
        *([CALLED, *call] for call in run.called),
    ]
    path = tmp_path / "run"  # type: ignore[operator]
    files.write(path, header, records)
    assert files.load(path) == run


# -- numbers that nobody was told ------------------------------------------------------------------


def opened(config: CircuitConfig) -> Notebook:
    """The first permit's call fails and opens the circuit."""
    book = Notebook(replace(config, failure_threshold=1))
    book.ping()  # 1
    book.declare()  # 2
    book.acquire(1, 1, None)  # 3
    book.report(1, 3, 1, FAILURE, COUNTED)  # 4
    book.event(CLOSED, OPEN, "failures", 2)
    return book


def half_open(config: CircuitConfig) -> Notebook:
    """As `opened`, and it becomes half-open."""
    book = opened(config)
    book.now += 2.0
    book.timer(OPEN, HALF_OPEN, "timeout", 3)  # 5
    return book


def killed_run(*, reopens: bool) -> History:
    """The holder of a probe is killed, and what it had sent last was never answered."""
    book = half_open(STRICT)
    book.acquire(2, 3, 28_200_000)  # 6
    book.batch(2, 1, successes=3)  # 7
    book.history.killed[2] = book.now
    if reopens:
        book.timer(HALF_OPEN, OPEN, "lost_permit", 4)  # 8
    else:
        book.nothing()
    return book.close()


def test_the_permit_of_a_killed_process_reopens_its_circuit() -> None:
    # Its Batch ran under a lease that nobody gave, and that is the client's fault.
    only_leases = [wrong for wrong in check(killed_run(reopens=True)).wrong if "lease" not in wrong]
    assert only_leases == []
    assert check(killed_run(reopens=False)).wrong[0].startswith("operation 8")


def test_nobody_dies_before_it_is_killed() -> None:
    run = killed_run(reopens=True)
    run.killed[2] += 10.0
    assert check(run).wrong[0].startswith("operation 8")


def timers_run(fired: int) -> History:
    """A probe is lost while the circuit is open, which is then reset; timers fire all the same."""
    book = half_open(replace(STRICT, max_concurrent_requests=2, permit_timeout=2.0))
    book.acquire(2, 3, 10_200_000)  # 6
    book.acquire(1, 3, 11_200_000)  # 7
    book.report(2, 6, 3, FAILURE, COUNTED)  # 8
    book.event(HALF_OPEN, OPEN, "failures", 4)
    book.nothing()  # 9: the other probe is lost, and is of an earlier generation
    book.reset(5)  # 10
    book.event(OPEN, CLOSED, "reset", 5)
    for _ in range(fired):
        book.nothing()  # 11 ...
    return book.close()


def test_a_timer_fires_for_nothing_once_for_each_time_that_it_was_set() -> None:
    # For the probe that came back, and for the circuit that was open.
    assert [check(timers_run(fired)).wrong == [] for fired in (0, 1, 2, 3)] == [
        *(True, True, True, False),
    ]


def test_a_timer_may_spare_a_probe_whose_time_nobody_was_told() -> None:
    first, second = Out(1, 3, 5.0, 1), Out(2, 3, 6.0, 1)
    unknown = Out(3, 3, -math.inf, 2)  # its holder was killed before it heard of it
    circuit = Circuit(STRICT, out=(second, unknown, first))
    assert set(overdue(circuit, told=5.5)) == {(), (first,), (unknown,), (first, unknown)}
    assert (first, second, unknown) in set(overdue(circuit, told=6.0))


# -- leases ----------------------------------------------------------------------------------------

LEASED: Final = replace(STRICT, consistency="leased", failure_threshold=1)


def leased_run(
    *,
    lease: bool = True,
    called: int = 2,
    told: int = 2,
    told_of_end: bool = True,
    late_call: str | None = None,
    until: float = 9.6,
) -> History:
    """Worker 1 runs calls under a lease, until worker 2 has failed."""
    book = Notebook(LEASED)
    book.ping()  # 1
    book.declare()  # 2
    book.acquire(1, 1, None)  # 3
    if lease:
        book.leased(1, 1, CLOSED, None)
    book.report(1, 3, 1, SUCCESS, COUNTED)  # 4
    for _ in range(called):
        book.call(1, "returned")
    book.acquire(2, 1, None)  # 5
    book.batch(1, 1, successes=told)  # 6
    book.report(2, 5, 1, FAILURE, COUNTED)  # 7
    book.event(CLOSED, OPEN, "failures", 2)
    if told_of_end:
        book.leased(1, 2, OPEN, until)
    if late_call is not None:
        book.call(1, late_call, ran=late_call != "open", detail=["open", 1.0, ERROR])
        if late_call == "open":
            book.batch(1, 2, successes=0, rejected=1)  # 8
    book.report(1, None, 1, FAILURE, STALE)  # 8 or 9; speaks for the batch
    book.call(1, "raised", begun=4.95, detail="down")
    book.now += 1.0
    book.timer(OPEN, HALF_OPEN, "timeout", 3)
    return book.close()


def test_leased_calls_are_right() -> None:
    assert check(leased_run()).wrong == []
    assert check(leased_run(late_call="open")).wrong == []


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (leased_run(lease=False), "without a lease"),
        (leased_run(told=1), "under leases and told of"),
        (leased_run(called=3), "under leases and told of"),
        (leased_run(told_of_end=False), "was not told that"),
        (leased_run(late_call="returned", called=1), "ran without a lease"),
        (leased_run(until=7.6, late_call="open"), "nobody had said that it is open"),
        (leased_run(until=30.0), "too early"),
    ],
)
def test_a_wrong_use_of_a_lease_is_found(run: History, said: str) -> None:
    assert any(said in wrong for wrong in check(run).wrong)


def test_a_function_that_ran_although_it_was_rejected_is_found() -> None:
    run = leased_run(late_call="open")
    place = next(n for n, call in enumerate(run.called) if call.result == "open")
    run.called[place] = run.called[place]._replace(ran=run.called[place].begun)
    assert any("the function ran" in wrong for wrong in check(run).wrong)


# -- time ------------------------------------------------------------------------------------------


def timed_run(
    *, left: float = 58.0, waits: float = 60.0, time: float = 20.0, held: float = 5.0
) -> History:
    """A circuit opens for a minute, and then admits a probe, which fails.

    Args:
        left: What a rejection says two seconds after it opened.
        waits: Seconds until it is half-open.
        time: Seconds that the probe has.
        held: Seconds that it is held.
    """
    book = Notebook(replace(STRICT, failure_threshold=1, open_timeout=60.0))
    book.ping()  # 1
    book.declare()  # 2
    book.acquire(1, 1, None)  # 3
    book.acquire(2, 1, None)  # 4
    book.ping()  # 5: its turn began after 4 was asked
    book.report(1, 3, 1, FAILURE, COUNTED)  # 6
    book.event(CLOSED, OPEN, "failures", 2)
    opened = book.now
    book.report(2, 4, 1, SUCCESS, STALE)  # 7
    book.acquire(1, OPEN, left, ERROR)  # 8
    book.now = opened + waits - 1.0
    if waits > 60.0:  # with decisions in between, in turns that the timer should have begun
        book.report(2, None, 1, SUCCESS, STALE)
        book.ping()
        book.ping()
    book.timer(OPEN, HALF_OPEN, "timeout", 3)
    book.history.received[-1] = book.history.received[-1]._replace(
        message=book.history.received[-1].message._replace(at=instant(opened + 60.1))
    )
    book.report(2, None, 1, SUCCESS, STALE)
    book.ping()  # its turn began after that was asked
    granted_at = book.now + 1.0
    permit = book.acquire(1, 3, round((granted_at + 0.1 + time) * 1e6))
    book.now += held
    book.report(2, None, 1, SUCCESS, STALE)
    book.ping()
    book.report(1, permit, 3, FAILURE, COUNTED)
    book.event(HALF_OPEN, OPEN, "failures", 4)
    return book.close()


def in_time(run: History) -> list[str]:
    """What is wrong, but for leases: what it reports under them nobody had."""
    return [wrong for wrong in check(run).wrong if "lease" not in wrong]


def test_what_happens_in_time_is_right() -> None:
    assert in_time(timed_run()) == []


@pytest.mark.parametrize(
    ("run", "said"),
    [
        (timed_run(left=1.0), "s are left"),
        (timed_run(waits=15.0), "operation 9: nobody can have had it"),
        (timed_run(time=10.0), "s too early"),
        (timed_run(held=25.0), "a probe is still out"),
        (timed_run(waits=90.0), "still open"),
    ],
)
def test_what_comes_too_early_or_too_late_is_found(run: History, said: str) -> None:
    assert any(said in wrong for wrong in in_time(run))


def test_a_permit_that_never_comes_back_from_the_dead_is_found() -> None:
    book = Notebook(STRICT)
    book.ping()
    book.declare()
    book.acquire(2, 1, None)
    book.history.killed[2] = book.now + 0.6
    assert any("of a killed process is still out" in wrong for wrong in check(book.close()).wrong)


# -- questions, and who listens --------------------------------------------------------------------


def question_run(what: str, *, late: bool) -> History:
    """Worker 1 ends a permit, and asks for the stats or resets; `late`: its outcome comes after."""
    book = Notebook(replace(STRICT, failure_threshold=1))
    book.ping()  # 1
    book.declare()  # 2
    book.acquire(1, 1, None)  # 3
    book.asked(1, "acquire", "granted", 3)
    begun = book.now + 0.7
    book.history.called.append(Called(1, begun, None, begun, "end", NAME, "failure", [3, "down"]))

    def report() -> None:
        # What comes after the reset is of an earlier generation.
        stale = late and what == "reset"
        book.report(1, 3, 1, FAILURE, STALE if stale else COUNTED)
        if not stale:
            book.event(CLOSED, OPEN, "failures", 2)

    if not late:
        report()
    if what == "reset":
        book.ask(
            1,
            lambda n: wire.Reset(n, NAME),
            lambda n, op: wire.ResetDone(n, op, NAME, 2 + (not late)),
        )
        book.event(CLOSED if late else OPEN, CLOSED, "reset", 2 + (not late))
        book.asked(1, "reset", "told", None)
    else:
        book.ask(
            1, lambda n: wire.GetHistory(n, NAME), lambda n, op: wire.HistoryOf(n, op, told(book))
        )
        book.asked(1, "history", "told", [change.version for change in told(book)])
    if late:
        report()
    return book.close()


def told(book: Notebook) -> tuple[StateChange, ...]:
    events = [
        each.message for each in book.history.received if isinstance(each.message, wire.Event)
    ]
    return tuple(state_change(event) for event in events)


@pytest.mark.parametrize("what", ["history", "reset"])
def test_a_question_that_overtakes_an_own_outcome_is_found(what: str) -> None:
    assert check(question_run(what, late=False)).wrong == []
    assert any("was asked before" in wrong for wrong in check(question_run(what, late=True)).wrong)


def test_an_answer_that_its_caller_was_not_told_is_found() -> None:
    run = question_run("history", late=False)
    run.called[-1] = run.called[-1]._replace(detail=[7])
    assert any("was told [[1]]" in wrong for wrong in check(run).wrong)


def listened_run() -> History:
    """As `strict_run`, and worker 1 is told all that the observer is."""
    run = strict_run()
    run.listeners = [1]
    for each in list(run.received):
        event = each.message
        if isinstance(event, wire.Event):
            run.received.append(each._replace(session=1))
            detail = [str(event.old), str(event.new)]
            run.called.append(Called(1, each.at, None, each.at, "heard", NAME, "", detail))
    return run


LISTENS_WRONG: Final[dict[str, Callable[[History], object]]] = {
    "an event did not come": lambda h: h.received.pop(),
    "no event came": lambda h: h.received.__delitem__(slice(-3, None)),
    "a callback was not called": lambda h: h.called.pop(),
    "a callback was called twice": lambda h: h.called.append(h.called[-1]),
    "two callbacks were swapped": lambda h: h.called.reverse(),
    "a callback was told of another circuit": lambda h: h.called.append(
        h.called[-1]._replace(name="other")
    ),
}


def test_who_listens_is_told_all() -> None:
    assert check(listened_run()).wrong == []


@pytest.mark.parametrize("what", LISTENS_WRONG)
def test_who_listens_and_is_told_something_else_is_found(what: str) -> None:
    run = listened_run()
    LISTENS_WRONG[what](run)
    assert check(run).wrong


def told_again_run(after: int | None, *, again: int = 1) -> History:
    """Worker 1 is told of the only change, asks for those it has not seen, and is told again.

    Args:
        after: Of which version on, it is told; None: it did not ask.
        again: The version that it is told of then.
    """
    book = opened(STRICT)
    received = book.history.received
    event = received[-1]._replace(session=1)
    received.append(event)
    book.history.listeners = [1]
    heard = Called(1, event.at, None, event.at, "heard", NAME, "", [str(CLOSED), str(OPEN)])
    book.history.called.append(heard)
    if after is not None:
        book.ask(1, lambda n: wire.Subscribe(n, 0), lambda n, op: wire.Subscribed(n, op, after))
    received.append(event._replace(message=event.message._replace(version=again)))
    return book.close()


@pytest.mark.parametrize(
    ("run", "wrong"),
    [
        (told_again_run(0), None),
        (told_again_run(1), "session 1 was told of version 1 after 1"),
        (told_again_run(None), "session 1 was told of version 1 after 1"),
        (told_again_run(0, again=2), "session 1 was told of version 2 after 0"),
        (told_again_run(7, again=7), "session 1 was told of version 7 after 1"),
    ],
)
def test_only_who_asks_for_what_it_has_not_seen_may_be_told_again(
    run: History, wrong: str | None
) -> None:
    assert next(iter(check(run).wrong), None) == wrong
