"""What the fuzzing would notice: bugs are planted, and each is found within a few scripts."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest
from frames import FRAMES, truncations
from long_lives import LIVES, MOST_BLOCKS
from manager_side import HEALTHY, LEASED, STRICT, ManagerSide
from scripts import SEEDS, Do, Step, mutate, pack, run_client_side, run_manager_side

from switchgear.client import link
from switchgear.client.session import Session
from switchgear.config import MAX_SECONDS, CircuitConfig
from switchgear.manager import journal, server
from switchgear.manager.actor import Actor, Send
from switchgear.manager.sessions import CONTROL, DATA, Peer
from switchgear.states import Outcome
from switchgear.wire import (
    Acquire,
    Declare,
    Error,
    ErrorCode,
    Hello,
    Malformed,
    Message,
    Report,
    Reset,
    encode,
)

SCRIPTS: Final = 400  # that a bug may go unnoticed; most are found by the first few


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def some_scripts(side: str) -> Iterator[bytes]:
    """The seeds, each frame cut short, and then what comes of them by chance."""
    seeds, random = SEEDS[side](), Random(1)
    yield from seeds
    for frame in FRAMES[:3]:
        for cut in truncations(frame):
            yield pack([Step(1, Do.KILL), Step(0, Do.KILL), Step(0, Do.FEED, cut)])
    while True:
        script = random.choice(seeds)
        for _ in range(random.randrange(1, 6)):
            script = mutate(script, random)
        yield script


@functools.cache
def fed(side: str) -> list[bytes]:
    """So many of them; to be made before there is a bug."""
    return list(itertools.islice(some_scripts(side), SCRIPTS))


def noticed(run: Callable[[bytes], object], scripts: list[bytes]) -> bool:
    """Some script fails."""
    try:
        for script in scripts:
            run(script)
    except Exception:
        return True
    return False


Plant = Callable[[pytest.MonkeyPatch], None]


def a_decoder_that_lets_a_type_error_out(patch: pytest.MonkeyPatch) -> None:
    for module in (server, link):
        real = module.decode

        def decode(frame: bytes, allowed: Any, real: Any = real) -> Message:
            if len(frame) == 9:
                raise TypeError("unhashable")
            return real(frame, allowed)  # type: ignore[no-any-return]

        patch.setattr(module, "decode", decode)


def after_each_frame(
    patch: pytest.MonkeyPatch, meddle: Callable[[Actor, bytes, list[Send]], list[Send]]
) -> None:
    """Have something else done to the manager, and to its answers, whenever it took a frame."""
    real = server.Server._answer

    def answer(self: server.Server, peer: Peer, frame: bytes, now: float, first: Any = None) -> Any:
        return meddle(self._actor, frame, real(self, peer, frame, now, first))

    patch.setattr(server.Server, "_answer", answer)


def a_refusal_that_disconnects_everybody(patch: pytest.MonkeyPatch) -> None:
    def meddle(actor: Actor, frame: bytes, sends: list[Send]) -> list[Send]:
        if any(isinstance(send.message, Error) for send in sends):
            for other in list(actor._connected):
                actor._disconnect(other)
        return sends

    after_each_frame(patch, meddle)


def an_entry_left_behind_for_each_bad_frame(patch: pytest.MonkeyPatch) -> None:
    def meddle(actor: Actor, frame: bytes, sends: list[Send]) -> list[Send]:
        for send in sends:
            if isinstance(send.message, Error) and send.message.code is ErrorCode.MALFORMED:
                actor._subscribers[Peer(CONTROL, frame)] = 0.0
        return sends

    after_each_frame(patch, meddle)


def a_refusal_of_more_than_one_message(patch: pytest.MonkeyPatch) -> None:
    after_each_frame(patch, lambda actor, frame, sends: sends * 5 if len(sends) == 1 else sends)


def a_reset_of_the_wrong_circuit(patch: pytest.MonkeyPatch) -> None:
    real = Actor._reset

    def reset(self: Actor, message: Reset, peer: Peer, now: float) -> Any:
        first = Reset(message.request, self._names[0])
        return real(self, first if message.name in self._circuits else message, peer, now)

    patch.setattr(Actor, "_reset", reset)


def a_goodbye_that_gives_back_everybodys_permits(patch: pytest.MonkeyPatch) -> None:
    real = Actor._goodbye

    def goodbye(self: Actor, message: Any, peer: Peer, now: float) -> Any:
        sends = real(self, message, peer, now)
        for held in list(self._permits.values()):
            sends += self._give_back(held, now)
        return sends

    patch.setattr(Actor, "_goodbye", goodbye)


def a_journal_that_forgets_what_stands(patch: pytest.MonkeyPatch) -> None:
    real = Actor.take_news

    def take_news(self: Actor) -> Any:
        return real(self)._replace(events=[])

    patch.setattr(Actor, "take_news", take_news)


def a_text_that_does_not_fit_into_its_field(patch: pytest.MonkeyPatch) -> None:
    real = Malformed.__init__

    def init(self: Malformed, kind: int, ref: int, code: ErrorCode, text: str) -> None:
        real(self, kind, ref, code, text * 20)

    patch.setattr(Malformed, "__init__", init)


MANAGER_BUGS: Final[list[Plant]] = [
    a_decoder_that_lets_a_type_error_out,
    a_refusal_that_disconnects_everybody,
    an_entry_left_behind_for_each_bad_frame,
    a_refusal_of_more_than_one_message,
    a_reset_of_the_wrong_circuit,
    a_goodbye_that_gives_back_everybodys_permits,
    a_journal_that_forgets_what_stands,
    a_text_that_does_not_fit_into_its_field,
]


def test_without_a_bug_nothing_is_noticed() -> None:
    assert not noticed(run_manager_side, fed("manager"))
    assert not noticed(run_client_side, fed("client"))


@pytest.mark.parametrize("plant", MANAGER_BUGS, ids=lambda plant: plant.__name__)
def test_a_bug_of_the_manager_is_noticed(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = fed("manager")
    plant(monkeypatch)
    assert noticed(run_manager_side, scripts)


def a_client_that_loses_a_report_with_each_bad_frame(patch: pytest.MonkeyPatch) -> None:
    real = link.Link._take

    def take(self: link.Link, connection: int, frame: bytes, now: float) -> None:
        real(self, connection, frame, now)
        if len(frame) < 3:
            self._session._reports._queue.clear()
            self._session._last_number += 1

    patch.setattr(link.Link, "_take", take)


def a_session_that_forgets_who_has_asked(patch: pytest.MonkeyPatch) -> None:
    real = Session._refused

    def refused(self: Session, connection: int, error: Error, now: float) -> None:
        real(self, connection, error, now)
        self._asked.clear()

    patch.setattr(Session, "_refused", refused)


CLIENT_BUGS: Final[list[Plant]] = [
    a_decoder_that_lets_a_type_error_out,
    a_client_that_loses_a_report_with_each_bad_frame,
    a_session_that_forgets_who_has_asked,
]


@pytest.mark.parametrize("plant", CLIENT_BUGS, ids=lambda plant: plant.__name__)
def test_a_bug_of_the_client_is_noticed(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    scripts = fed("client")
    plant(monkeypatch)
    assert noticed(run_client_side, scripts)


def test_a_report_of_anothers_permit_that_is_believed_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def report(message: Report, session: object, peer: Peer, now: float) -> Any:
        held = side.actor._permits[message.permit or 0]  # and whose is it?
        side.actor._take_back(held)
        held.circuit.report(held.permit, message.outcome, now)
        return []

    side = ManagerSide()
    peer = Peer(DATA, b"bad")
    hello = next(frame for frame in FRAMES if frame[1] == 1)
    side.feed(peer, [hello])
    theirs = next(grant for name, grant in side.permits if name == STRICT)
    foreign = Report(1, STRICT, theirs.epoch, theirs.permit, 1, Outcome.SUCCESS, 0, None)
    side.feed(peer, [encode(foreign)])
    monkeypatch.setattr(side.actor, "_report", report)
    with pytest.raises(AssertionError):
        side.feed(peer, [encode(foreign._replace(number=2))])


def test_a_circuit_that_moves_though_nobody_named_it_is_noticed() -> None:
    side = ManagerSide()
    side.actor._circuits[LEASED].report_leased(1, Outcome.NEUTRAL, side.now)
    with pytest.raises(AssertionError):
        side.feed(Peer(DATA, b"bad"), [b"\xc1"])
    assert side.actor.session_of(HEALTHY[DATA]) is not None


@pytest.mark.parametrize("limit", ["_LARGEST_SAID", "MAX_SECONDS"])
def test_a_journal_that_takes_what_the_wire_allows_for_damage_is_noticed(
    limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = ManagerSide()
    longest = CircuitConfig(failure_threshold=1, open_timeout=MAX_SECONDS)
    failure = Report(1, "a", 0, None, 1, Outcome.FAILURE, 0, None)
    said = (Hello(1, 1, 1, bytes(16), 2**63 - 1, 0), Declare(2, "a", longest), Acquire(3, "a", 0))
    side.feed(Peer(DATA, b"bad"), [encode(message) for message in (*said, failure)])
    side.actor._circuits["a"].report_leased(1, Outcome.FAILURE, side.now)
    side.check_file(tmp_path / "sound")
    monkeypatch.setattr(journal, limit, getattr(journal, limit) // 2)
    with pytest.raises(AssertionError):
        side.check_file(tmp_path / "planted")


def one_that_keeps_some_of_each_refusal(patch: pytest.MonkeyPatch) -> None:
    def init(self: Malformed, *args: Any) -> None:
        real(self, *args)
        kept.append(bytes(LEAK))

    real, kept = Malformed.__init__, []
    patch.setattr(Malformed, "__init__", init)


def a_manager_that_remembers_who_was_refused(patch: pytest.MonkeyPatch) -> None:
    def meddle(actor: Actor, frame: bytes, sends: list[Send]) -> list[Send]:
        actor._armed.update({f"refused {send.peer}": 0.0 for send in sends})
        return sends

    after_each_frame(patch, meddle)


LEAK: Final = 100  # bytes, with each frame


@pytest.mark.parametrize("side", LIVES)
def test_a_leak_of_a_hundred_bytes_a_frame_is_noticed(
    side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_that_keeps_some_of_each_refusal(monkeypatch)
    assert LIVES[side]().blocks > MOST_BLOCKS


def test_an_entry_left_behind_with_each_frame_of_a_long_life_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a_manager_that_remembers_who_was_refused(monkeypatch)
    assert LIVES["manager"]().sizes
