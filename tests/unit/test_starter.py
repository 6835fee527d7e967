"""Who starts managers, with a start and a connection that the test makes up: what is tried, when,
and what is said of it. The pauses are real, and milliseconds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from switchgear.address import Address
from switchgear.client import starter
from switchgear.client.starter import Starter
from switchgear.errors import BreakerError

PLACE = Address("/tmp/nowhere/m")
PATIENCE = 20.0


class World:
    """A connection, and what becomes of starts."""

    def __init__(self) -> None:
        self.online = False
        self.starts = 0
        self.at_once = 0
        self.fails = False
        self.comes_up_after = 1  # that many starts; 0: never
        self.hold = threading.Event()
        self.hold.set()
        self.changed = threading.Condition()

    def start(self, address: Address) -> bool:
        assert address == PLACE
        with self.changed:
            self.at_once += 1
            assert self.at_once == 1, "two threads are at it"
            self.starts += 1
            self.changed.notify_all()
        self.hold.wait(PATIENCE)
        with self.changed:
            self.at_once -= 1
            if self.fails:
                raise BreakerError("there is no room")
            if self.starts == self.comes_up_after:
                self.online = True
        return True

    def wait_for(self, true: Callable[[], bool]) -> None:
        with self.changed:
            assert self.changed.wait_for(true, PATIENCE)


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def subject(world: World) -> Starter:
    return Starter(PLACE, world, world.start, first_pause=0.001)


def settle() -> None:
    """Wait until no thread is at it any more."""
    for thread in threading.enumerate():
        if thread.name == "switchgear-starter":
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_it_tries_until_the_connection_is_up_and_ends_then(world: World, subject: Starter) -> None:
    world.comes_up_after = 4
    subject.wake()
    settle()
    assert world.starts == 4


def test_a_connection_that_is_up_needs_nobody(world: World, subject: Starter) -> None:
    world.online = True
    subject.wake()
    settle()
    assert world.starts == 0


def test_only_one_thread_is_at_it_however_many_wake_it(world: World, subject: Starter) -> None:
    world.hold.clear()
    subject.wake()
    world.wait_for(lambda: world.starts == 1)
    for _ in range(20):
        subject.wake()
        subject.lost()
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("switchgear-starter") == 1
    world.hold.set()
    settle()


def test_a_start_that_fails_is_said_once_until_the_connection_was_up(
    world: World, subject: Starter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    expected = f"no manager answers at {PLACE}: there is no room"
    for outages in (1, 2):
        world.online, world.fails, world.starts = False, True, 0
        subject.wake()
        world.wait_for(lambda: world.starts >= 4)
        assert caplog.messages == [expected] * outages
        assert subject.failing
        world.comes_up_after = 0
        world.fails = False
        world.online = True
        settle()
        assert not subject.failing


def test_one_that_is_there_and_does_not_answer_is_said_in_the_end(
    world: World, subject: Starter, caplog: pytest.LogCaptureFixture
) -> None:
    world.comes_up_after = starter._TRIES + 3
    subject.wake()
    settle()
    assert caplog.messages == [
        f"no manager answers at {PLACE}: there is one, stopped or overloaded"
    ]


def test_one_that_comes_up_in_time_is_nothing_to_tell(
    world: World, subject: Starter, caplog: pytest.LogCaptureFixture
) -> None:
    world.comes_up_after = starter._TRIES
    subject.wake()
    settle()
    assert caplog.messages == []


def test_pauses_grow_and_news_ends_them(world: World) -> None:
    subject = Starter(PLACE, world, world.start, first_pause=3600.0)
    world.comes_up_after = 3
    subject.wake()
    for number in (1, 2):
        world.wait_for(lambda number=number: world.starts >= number)  # type: ignore[misc]
        subject.lost()
    settle()
    assert world.starts == 3


def test_who_is_closed_starts_nothing_any_more(world: World) -> None:
    subject = Starter(PLACE, world, world.start, first_pause=3600.0)
    world.comes_up_after = 0
    subject.wake()
    world.wait_for(lambda: world.starts == 1)
    subject.close()
    settle()
    subject.wake()
    subject.lost()
    settle()
    assert world.starts == 1


def test_a_thread_that_cannot_be_had_is_said_and_harms_nobody(
    world: World,
    subject: Starter,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        subject.wake()
        subject.wake()
    assert caplog.messages == [f"no manager answers at {PLACE}: can't start new thread"]
    subject.wake()
    settle()
    assert world.starts == 1
