"""A signal handler may raise out of any call in the session: nothing is lost, nothing is repeated.

The same conversation is held again and again, and each time a handler raises at the next one of all
the places in the client's modules where it can. The rest is done as `Link` does it: what was
half-way is resumed, and the command is done again.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import pytest
from harness import Client, Pair, Waiter

from switchgear.client.claim import Claim, Hold, Watch
from switchgear.client.session import Answer, Grant, Session
from switchgear.config import CircuitConfig
from switchgear.manager.acks import ACK_DELAY
from switchgear.manager.sessions import CONTROL, DATA, Peer
from switchgear.states import Outcome, State
from switchgear.wire import Acquire, GetStats, Message, StatsOf

CONFIG: Final = CircuitConfig(failure_threshold=2, open_timeout=2.0, success_threshold=1)
COMMANDS: Final = {
    *("declare", "acquire", "report", "report_failure", "collect", "ask", "flush", "subscribe"),
    *("abandon", "connected", "disconnected"),
}


class Raised(BaseException):
    """What the handler raises."""


class Handler:
    """A profile function: raises at the so-manieth call or return in the client's code."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if "/switchgear/client/" in frame.f_code.co_filename:
            self.left -= 1
            if self.left == 0:
                raise Raised

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Let it come to this."""
        sys.setprofile(self)
        try:
            yield
        finally:
            sys.setprofile(None)


class Interrupted:
    """A session into which the handler comes, and the rest of a turn of `Link`."""

    def __init__(self, client: Client, handler: Handler) -> None:
        self._client = client
        self._session = client.session
        self._handler = handler

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._session, name)
        if name == "received":
            return lambda *args: self._comes_to_its_end(found, args, {})
        if name in COMMANDS:
            return lambda *args, **options: self._do(found, args, options)
        return found

    def check(self) -> None:
        """Not while something may have been asked twice."""

    def _do(self, command: Callable[..., None], args: Any, options: Any) -> None:
        while not self._comes_to_its_end(command, args, options):
            pass

    def _comes_to_its_end(self, method: Callable[..., None], args: Any, options: Any) -> bool:
        try:
            with self._handler.armed():
                method(*args, **options)
        except Raised:
            session, wires = self._session, self._client.wires
            session.resume(self._client.clock())
            session.outbox = [said for said in session.outbox if wires[said[0]].peer is not None]
            return False
        return True


class Caller(Waiter):
    """Takes one answer; another permit goes back, as in `Link._hand_over`."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def complete(self, answer: Answer) -> None:
        """See `session.Waiter`."""
        if not self.answered:
            super().complete(answer)
        elif isinstance(answer, Grant) and answer != self.answer:
            self._client.report("a", answer, Outcome.NEUTRAL)


class Owed:
    """See `reports.Owed`."""

    reported = False


class Conversation:
    """Nearly all that a client does.

    Args:
        at: At how manieth place the handler raises.
    """

    def __init__(self, at: int) -> None:
        self.handler = Handler(at)
        self.pair = Pair(connected=False)
        self.client = self.pair.clients[0]
        self.session: Session = Interrupted(self.client, self.handler)  # type: ignore[assignment]
        self.client.session = self.session
        self.client.gate("a")  # as a breaker has one

    def hold(self) -> None:
        """Hold it: five successes, a permit that is given up, two failures."""
        self.session.declare("a", CONFIG)
        self.connect()
        subscription = Caller(self.client)
        self.session.subscribe(subscription)
        self.report(self.permit(), Outcome.SUCCESS)
        self.succeed()
        self.succeed()
        given_up = Caller(self.client)
        self.session.acquire(given_up, "a", self.pair.now + 1.0, self.pair.now)
        self.session.abandon(given_up, timed_out=True)
        self.settle()
        late, held = self.permit(), self.permit()
        self.report(late, Outcome.SUCCESS)
        self.session.declare("b", None)
        assert isinstance(self.asks("b"), StatsOf)
        self.pair.cut()
        self.pair.cut(connection=CONTROL)
        self.report(held, Outcome.FAILURE)
        self.connect()
        self.report(self.permit(), Outcome.FAILURE)
        self.settle()
        self.pair.advance(CONFIG.open_timeout)
        self.report(self.permit(), Outcome.SUCCESS)
        flushed = Caller(self.client)
        self.session.flush(flushed)
        self.settle()
        assert subscription.answered
        assert flushed.answered

    def connect(self) -> None:
        """Make both connections."""
        for connection in (DATA, CONTROL):
            self.pair.connect(connection=connection)
        self.settle()

    def settle(self) -> None:
        """Let all be delivered, and acknowledged."""
        self.pair.run()
        self.pair.advance(2 * ACK_DELAY)

    def permit(self) -> Grant:
        """Ask for one."""
        caller = Caller(self.client)
        self.session.acquire(caller, "a", self.pair.now + 1.0, self.pair.now)
        self.settle()
        assert isinstance(caller.answer, Grant)
        return caller.answer

    def succeed(self) -> None:
        """Make a call, under the lease if it still holds: who was interrupted has greeted again."""
        lease = self.client.gate("a").lease
        if self.pair.now < lease.term.until:
            lease.successes.append(0.001)
            self.session.collect(lease, now=self.pair.now)
            self.settle()
        else:
            self.report(self.permit(), Outcome.SUCCESS)

    def report(self, grant: Grant, outcome: Outcome) -> None:
        """Say how its call ended."""
        if outcome is Outcome.FAILURE:
            self.client.gate("a").suspend(self.pair.now)
        self.session.report("a", grant, outcome, 0.001, now=self.pair.now, owed=Owed())

    def asks(self, name: str) -> Answer:
        """Ask for statistics."""
        caller = Caller(self.client)
        self.session.ask(caller, lambda number: GetStats(number, name), (name,))
        self.settle()
        return caller.answer


def test_a_handler_that_raises_anywhere_costs_nothing_and_repeats_nothing() -> None:
    for at in itertools.count(1):
        talk = Conversation(at)
        talk.hold()
        stats = talk.asks("a")
        assert isinstance(stats, StatsOf)
        found = stats.stats
        counted = (found.total_successes, found.total_failures, found.in_flight)
        assert counted == (5, 2, 0), f"interrupted at {at}"
        changes = [event.new for event in talk.client.events]
        assert changes == [State.OPEN, State.HALF_OPEN, State.CLOSED], f"interrupted at {at}"
        assert talk.client.gate("a").failing == []
        if talk.handler.left > 0:
            break
    assert at > 500


class Outbox(list[tuple[int, Message]]):
    """A handler raises when a request for a permit has been put in."""

    def append(self, sent: tuple[int, Message]) -> None:
        super().append(sent)
        if isinstance(sent[1], Acquire):
            raise Raised


def test_a_request_is_known_as_sent_when_a_handler_raises_while_they_are_sent_again() -> None:
    pair = Pair()
    pair.session.declare("a", None)
    first, second = pair.acquire(), pair.acquire()
    while pair.deliver_up():
        pass  # both are granted
    pair.cut()
    pair.connect()
    pair.deliver_up()
    pair.session.outbox = Outbox()
    with pytest.raises(Raised):
        pair.deliver_down()  # after the Welcome the first is sent, and the second is not
    pair.session.outbox = []
    pair.session.resume(pair.now)
    pair.session.abandon(second, timed_out=False)
    pair.run()
    assert isinstance(first.answer, Grant)
    (send,) = pair.actor.receive(Peer(CONTROL, b"somebody else"), GetStats(1, "a"), pair.now)
    assert isinstance(send.message, StatsOf)
    assert send.message.stats.in_flight == 1


class Desk:
    """What a claim knows of its link."""

    def __init__(self) -> None:
        self.watches: dict[Hold, Watch] = {}
        self.dropped: deque[Watch] = deque()
        self.woken = 0

    def wake(self) -> None:
        """See `Link.wake`."""
        self.woken += 1


def test_a_permit_that_nobody_has_any_more_is_handed_over() -> None:
    desk = Desk()
    claim = Claim(desk, "a")  # type: ignore[arg-type]
    hold = claim.hold
    hold.answer = Grant(1, 2, 3, probe=True)
    del claim
    assert [watch.hold for watch in desk.dropped] == [hold]
    assert desk.woken == 1


def test_it_is_even_when_a_handler_raises_in_the_finalizer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: raised.append(unraisable.object))
    desk = Desk()
    claim = Claim(desk, "a")  # type: ignore[arg-type]
    hold = claim.hold
    hold.answer = Grant(1, 2, 3, probe=True)
    with Handler(1).armed():
        del claim
    assert raised == [Claim.__del__]
    assert desk.woken == 0
    assert [watch.hold for watch in desk.dropped] == [hold]


def test_a_claim_that_a_handler_keeps_from_being_made_is_nobodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raised: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: raised.append(unraisable.object))
    desk = Desk()
    made = None
    for at in itertools.count(1):
        with contextlib.suppress(Raised), Handler(at).armed():
            made = Claim(desk, "a")  # type: ignore[arg-type]
        if made is not None:
            break
    assert at > 2
    assert raised == []


@pytest.mark.parametrize("answer", [None, Grant(1, 2, 3, probe=True)])
def test_nobody_is_woken_for_a_claim_that_owes_nothing(answer: Grant | None) -> None:
    desk = Desk()
    claim = Claim(desk, "a")  # type: ignore[arg-type]
    claim.hold.answer = answer
    claim.hold.reported = answer is not None
    del claim
    assert desk.woken == 0


def test_a_question_is_not_watched() -> None:
    desk = Desk()
    claim = Claim(desk, None)  # type: ignore[arg-type]
    del claim
    assert not desk.watches
    assert not desk.dropped
