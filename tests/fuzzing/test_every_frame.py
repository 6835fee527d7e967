"""Every message kind, cut short anywhere and with any other byte in any one place, in every state.

That is some 230,000 frames for each way. Most are no messages. Those are decoded alike whatever was
said before, so they are fed once on each socket; those that are messages after all, in each state.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Final

import pytest
from client_side import ClientSide
from frames import FRAMES, changes_at, truncations
from manager_side import CLIENTS, EPOCH, LEASED, LONG, PROBED, STRICT, ManagerSide
from scripts import client_seeds, feed_client, parse

from switchgear.config import CircuitConfig
from switchgear.manager.sessions import CONTROL, DATA, Peer
from switchgear.states import Outcome
from switchgear.wire import (
    FROM_CONTROL,
    FROM_DATA,
    KINDS,
    MAX_FRAMES,
    TO_CONTROL,
    TO_DATA,
    Acquire,
    Batch,
    Declare,
    Goodbye,
    Hello,
    Malformed,
    Message,
    Report,
    Reset,
    Subscribe,
    decode,
    encode,
)

pytestmark = pytest.mark.timeout(600)  # seconds; fifteen at most on an idle machine

TOKEN: Final = b"a bad peer's own"
HELLO: Final = encode(Hello(1, 1, 1, TOKEN, 1, 0))
FIRST_REPORT: Final = 42  # among the golden frames: it is taken in where 41 were before it
DECLARED: Final = [HELLO, encode(Declare(2, "payments", None))]
NOSY: Final = (
    encode(Report(FIRST_REPORT, STRICT, EPOCH, 100, 1, Outcome.FAILURE, 5, "not mine")),
    encode(Report(FIRST_REPORT, PROBED, EPOCH, 100, 3, Outcome.FAILURE, 5, "not mine")),
    encode(Acquire(8, LEASED, 2**40)),
    encode(Batch(FIRST_REPORT, LEASED, EPOCH, 1, 1, 1, 1, (1,))),
    encode(Declare(9, STRICT, CircuitConfig())),
    encode(Reset(9, PROBED)),
)
RECOVERS: Final = CircuitConfig(
    failure_threshold=1, open_timeout=0.001, permit_timeout=LONG, lost_permit="ignore"
)

Prepare = Callable[[ManagerSide, Peer], None]


def says(*frames: bytes) -> Prepare:
    """A state that one gets into by saying all this."""
    return lambda side, peer: side.feed(peer, list(frames)) if frames else None


def report_last(side: ManagerSide, peer: Peer, report: Report | Batch) -> None:
    """Say it as the last report before the golden ones."""
    session = side.actor.session_of(peer)
    assert session is not None
    session.reports = FIRST_REPORT - 2
    side.feed(peer, [encode(report)])


def holds_a_probe(side: ManagerSide, peer: Peer) -> None:
    """It has the one permit of a circuit that is half-open."""
    side.feed(peer, [HELLO, encode(Declare(2, "payments", RECOVERS))])
    circuit = side.actor._circuits["payments"]
    failure = (EPOCH, None, circuit.generation, Outcome.FAILURE, 5, "down")
    report_last(side, peer, Report(FIRST_REPORT - 1, "payments", *failure))
    side.pass_time(1.0)
    side.feed(peer, [encode(Acquire(6, "payments", 2**40))])
    assert len(circuit._probes) == 1


def waits_for_an_acknowledgement(side: ManagerSide, peer: Peer) -> None:
    """It has reported, and what it said is not saved yet."""
    side.feed(peer, DECLARED)
    report_last(side, peer, Batch(FIRST_REPORT - 1, "payments", EPOCH, 1, 1, 1, 1, (1,)))
    assert side.actor._acks._waiting


def finds_no_room(side: ManagerSide, peer: Peer) -> None:
    """There are as many sessions as there may be."""
    crowd = (Hello(1, 1, 1, b"%016d" % number, 1, 0) for number in range(CLIENTS))
    for number, hello in enumerate(crowd):
        side.feed(Peer(DATA, b"crowd-%d" % number), [encode(hello)])
    assert side.actor.full


STATES: Final[dict[str, tuple[int, Prepare]]] = {
    "before its Hello": (DATA, says()),
    "after its Hello": (DATA, says(HELLO)),
    "with a permit out and a lease": (
        DATA,
        says(*DECLARED, encode(Acquire(6, "payments", 2**40))),
    ),
    "with a probe out": (DATA, holds_a_probe),
    "with a report that is not acknowledged": (DATA, waits_for_an_acknowledgement),
    "at a manager that is full": (DATA, finds_no_room),
    "after its Goodbye": (DATA, says(HELLO, encode(Goodbye()))),
    "at the control socket": (CONTROL, says()),
    "subscribed": (CONTROL, says(HELLO, encode(Subscribe(2, None)))),
}
CIRCUITS: Final = 12  # then another manager: each look goes over all of them
LIVES: Final = 8  # a client takes so many messages that may mean anything, before another one


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Hundreds of thousands of refusals are logged, and kept for the report of a failure."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def beside(frame: bytes) -> Iterator[list[bytes]]:
    """Every truncation of a frame, then every change of each of its bytes."""
    yield [frame, *truncations(frame)]
    for place in range(len(frame)):
        yield list(changes_at(frame, place))


def is_message(frame: bytes, allowed: Set[type[Message]]) -> bool:
    try:
        decode(frame, allowed)
    except Malformed:
        return False
    return True


# -- the manager -----------------------------------------------------------------------------------


class Station:
    """A peer that is always in the same state when it says something, beside a healthy client."""

    def __init__(self, state: str, file: Path) -> None:
        self._socket, self._prepare = STATES[state]
        self._file = file
        self.messages = self.others = 0
        self._begin()

    def _begin(self) -> None:
        self.side = ManagerSide()
        self._meet()

    def _meet(self) -> None:
        self._peer = Peer(self._socket, b"bad-%d" % self.messages)
        self._prepare(self.side, self._peer)
        session = self.side.actor.session_of(self._peer)
        if session is not None:
            session.reports = FIRST_REPORT - 1
        self._state = self._look()

    def _look(self) -> object:
        session = self.side.actor.session_of(self._peer)
        subscribed = self._peer in self.side.actor._subscribers
        full = self.side.actor.full
        if session is None:
            return subscribed if self._socket == CONTROL else full or None
        circuit = self.side.actor._circuits.get("payments")
        probes = 0 if circuit is None else len(circuit._probes)
        waits = bool(self.side.actor._acks._waiting)
        has = session.token, session.reports, list(session.granted), session.requests
        return (*has, probes, waits)

    def feed(self, frames: list[bytes], state_matters_only: bool) -> None:
        """Say all these, each in the state; what is no message, many at a time."""
        allowed = TO_CONTROL if self._socket == CONTROL else TO_DATA
        messages, others = [], []
        for frame in frames:
            (messages if is_message(frame, allowed) else others).append(frame)
        if not state_matters_only:
            for start in range(0, len(others), MAX_FRAMES):
                self.side.feed(self._peer, others[start : start + MAX_FRAMES])
            self.others += len(others)
        # Who has no session can do nothing but greet: the others, too, many at a time.
        group = MAX_FRAMES if self._state is None else 1
        hellos = [frame for frame in messages if group > 1 and frame[1] == KINDS[Hello]]
        rest = [frame for frame in messages if frame not in hellos] if hellos else messages
        groups = [rest[start : start + group] for start in range(0, len(rest), group)]
        self.messages += len(messages)
        for together in (*groups, *([frame] for frame in hellos)):
            self.side.feed(self._peer, together)
            if self.side.actor.stopping or len(self.side.actor._names) > CIRCUITS:
                self.retire()
                self._begin()
            elif self._look() != self._state:
                self.side.end_others()
                self._meet()

    def retire(self) -> None:
        """See that a successor goes on where the manager stands, and that its client works."""
        self.side.check_journal()
        if not self.side.taken:
            self.side.still_works()

    def check_file(self) -> None:
        """The same of a successor that reads a file."""
        self.side.check_file(self._file)


@pytest.mark.parametrize("state", STATES)
def test_g12_no_frame_beside_a_message_harms_a_client_of_the_manager(
    state: str, tmp_path: Path
) -> None:
    station = Station(state, tmp_path / "journal")
    for frame in (*FRAMES, *NOSY):
        for frames in beside(frame):
            station.feed(frames, state not in ("before its Hello", "at the control socket"))
        station.check_file()
    station.retire()
    allowed = TO_CONTROL if STATES[state][0] == CONTROL else TO_DATA
    assert station.messages > 100 * sum(is_message(frame, allowed) for frame in FRAMES)


# -- the client ------------------------------------------------------------------------------------


def greeted(side: ClientSide) -> None:
    """Both connections are there, and nobody has answered."""
    for connection in (DATA, CONTROL):
        side.connect(connection)
    for what in (ACQUIRE, ASK, FLUSH):
        side.act(what)


def at_work(side: ClientSide) -> None:
    """Welcomed, it holds permits and a lease, and waits for all sorts of things."""
    feed_client(side, CONVERSATION[:AT_WORK])
    for what in (SUCCEED, ACQUIRE, ASK, PING, SUBSCRIBE, FLUSH):
        side.act(what)


ACQUIRE, SUCCEED, ASK, PING, SUBSCRIBE, FLUSH = 0, 1, 3, 4, 6, 7  # see ClientSide.act
AT_WORK: Final = 14  # steps of the conversation: by then it has permits
CONVERSATION: Final = parse(client_seeds()[0])
STAGES: Final = {"greeted": greeted, "at work": at_work}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("connection", [DATA, CONTROL])
def test_no_frame_beside_a_message_harms_a_client(stage: str, connection: int) -> None:
    allowed = FROM_DATA if connection == DATA else FROM_CONTROL
    side, fed, lives = ClientSide(), 0, 0
    STAGES[stage](side)
    for frame in FRAMES:
        for frames in beside(frame):
            messages = [one for one in frames if is_message(one, allowed)]
            if stage == "greeted":
                kept = set(messages)
                side.feed(connection, [one for one in frames if one not in kept])
            for message in messages:
                side.feed(connection, [message])
                fed += 1
                if fed % LIVES == 0:
                    lives += 1
                    if lives % LIVES == 0:
                        side.still_works()
                    side = ClientSide()
                    STAGES[stage](side)
    side.still_works()
    assert fed > 100 * sum(is_message(frame, allowed) for frame in FRAMES)
