"""The thread of the callbacks, and who starts it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Final

import pytest

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
