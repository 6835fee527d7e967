"""The thread of the callbacks, and who starts it."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from types import FrameType
from typing import Any, Final

import pytest

from switchgear.client import events
from switchgear.client.events import Dispatcher, Handlers
from switchgear.states import State
from switchgear.wire import Event

PATIENCE: Final = 20.0
EVENT: Final = Event(
    1, 1, "a", State.CLOSED, State.OPEN, "failures", 2, datetime(2026, 1, 1, tzinfo=timezone.utc)
)


class World:
    """A dispatcher with one callback, and what it was told."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.changed = threading.Condition()
        self.handlers = Handlers()
        self.handlers.add("a", self.note)
        self.dispatcher = Dispatcher(self.handlers)

    def note(self, name: str, old: State, new: State) -> None:
        with self.changed:
            self.seen.append(str(new))
            self.changed.notify_all()

    def put(self, old: State, new: State) -> None:
        self.dispatcher.put([EVENT._replace(old=old, new=new)])

    def wait_for(self, *seen: str) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.seen == list(seen), PATIENCE), self.seen


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.dispatcher.close()


def test_what_happened_while_no_thread_could_be_had_is_told_with_the_next_event(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        world.put(State.CLOSED, State.OPEN)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    world.put(State.OPEN, State.HALF_OPEN)
    world.wait_for("open", "half-open")


def test_one_thread_calls_them_although_a_handler_raised_as_it_was_started(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Exception):
        pass

    def start_and_raise(thread: threading.Thread) -> None:
        start(thread)
        threads.append(thread)
        if len(threads) == 1:
            raise Interrupted

    start = threading.Thread.start
    threads: list[threading.Thread] = []
    monkeypatch.setattr(threading.Thread, "start", start_and_raise)
    with pytest.raises(Interrupted):
        world.put(State.CLOSED, State.OPEN)
    world.wait_for("open")
    world.put(State.OPEN, State.HALF_OPEN)
    threads[1].join(PATIENCE)
    assert [thread.is_alive() for thread in threads] == [True, False]
    world.wait_for("open", "half-open")


def test_a_handler_that_is_removed_twice_takes_no_other_one_with_it() -> None:
    handlers = Handlers()
    assert not handlers
    removes = [handlers.add("a", print), handlers.add("a", print)]
    other = handlers.add("b", print)
    for _ in range(2):
        removes[0]()
    assert [len(handlers.of(name)) for name in "abc"] == [1, 1, 0]
    assert handlers
    removes[1]()
    other()
    assert not handlers
    assert handlers.of("a") == ()


def test_a_handler_may_be_added_in_the_middle_of_that_as_in_a_forked_child() -> None:
    """What holds a lock there never lets go of it in a child; here it is the thread that waits."""
    handlers, depth = Handlers(), [0]

    def interrupt(frame: FrameType, event: str, argument: object) -> Any:
        if frame.f_code.co_filename != events.__file__:
            return None
        if event == "line" and depth[0] < 100:
            depth[0] += 1
            sys.settrace(None)
            thread = threading.Thread(target=handlers.add, args=("a", print), daemon=True)
            thread.start()
            thread.join(PATIENCE / 4)
            assert not thread.is_alive()
            sys.settrace(interrupt)
        return interrupt

    def add_and_remove() -> None:
        sys.settrace(interrupt)
        try:
            handlers.add("a", print)()
        finally:
            sys.settrace(None)
        done.append(True)

    done: list[bool] = []
    thread = threading.Thread(target=add_and_remove)
    thread.start()
    thread.join(PATIENCE)
    assert done
    assert len(handlers.of("a")) == depth[0] > 0
