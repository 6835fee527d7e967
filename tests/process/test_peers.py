"""Peers: who has connected, by what the kernel says, and that their end is told. Real processes.

Each test of the way that is taken is run twice: the kernel is asked for the pidfd of a connection,
and, as before Linux 6.5, for that of a process number.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import resource
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any, Final

import pytest
import zmq

from switchgear.manager import peers as module
from switchgear.manager.peers import Peers
from switchgear.processes import start_of

from .conftest import PATIENCE, end, read_line, start_script, wait_readable

pytestmark = pytest.mark.process

KNOCKER: Final = """
import os, sys, zmq
context, sockets = zmq.Context(), []
while (order := os.read(0, 1)) != b"":
    if order == b"k":
        socket = context.socket(zmq.DEALER)
        socket.connect(sys.argv[1])
        socket.send(b"knock")
        sockets.append(socket)
    else:
        child = os.fork()
        if child:
            print(child, flush=True)
        os.read(0, 1)  # both wait until there is nobody who could write
        os._exit(0)
"""


class Room:
    """A ROUTER that they knock at, and the Peers under test."""

    def __init__(self, directory: str) -> None:
        self.peers = Peers()
        self.path = f"ipc://{directory}/room"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(self.path)
        self._knockers: list[subprocess.Popen[bytes]] = []
        self.empty = self.descriptors

    @property
    def descriptors(self) -> int:
        """How many pidfds are open."""
        return sum(is_pidfd(int(fd)) for fd in open_descriptors())

    def knocker(self) -> subprocess.Popen[bytes]:
        """A process that does nothing unasked."""
        process = start_script(KNOCKER, self.path)
        self._knockers.append(process)
        return process

    def hear(self, knocker: subprocess.Popen[bytes]) -> zmq.Frame:
        """Have it connect and send something; what was sent."""
        assert knocker.stdin is not None
        knocker.stdin.write(b"k")
        assert self._socket.poll(PATIENCE * 1000), "nobody knocked"
        self._socket.recv()
        return self._socket.recv(copy=False)

    def meet(self, session: bytes, knocker: subprocess.Popen[bytes]) -> None:
        """A session of a process that lives."""
        assert self.peers.meet(session, self.hear(knocker), start_of(knocker.pid))
        assert self.peers.watches(session)

    def ended(self) -> list[bytes]:
        """Wait until something has ended."""
        assert wait_readable(self.peers.fileno()), "nobody's end was told"
        return sorted(self.peers.ended())

    def nobody_ended(self) -> bool:
        return not wait_readable(self.peers.fileno(), patience=0) and not self.peers.ended()

    def close(self) -> None:
        for knocker in self._knockers:
            end(knocker)
        self.peers.close()
        self._socket.close()
        self._context.term()


def open_descriptors() -> list[str]:
    with os.scandir("/proc/self/fd") as entries:
        found = [entry.name for entry in entries]
    return [fd for fd in found if os.path.lexists(f"/proc/self/fd/{fd}")]


def is_pidfd(fd: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
        return any(line.startswith("Pid:") for line in info)
    return False


@pytest.fixture(params=["by connection", "by number"])
def room(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """Peers that ask the kernel one way or the other."""
    if request.param == "by number":
        monkeypatch.setattr(module, "_peer_pidfd", lambda pid, frame: None)
    elif not module._knows_pidfds():
        pytest.skip("this kernel has no SO_PEERPIDFD")
    with a_room() as room:
        yield room


@pytest.fixture
def any_room() -> Iterator[Room]:
    """Peers that ask the kernel as they do."""
    with a_room() as room:
        yield room


@contextlib.contextmanager
def a_room() -> Iterator[Room]:
    with tempfile.TemporaryDirectory(prefix="sg-") as directory:
        room = Room(directory)
        try:
            yield room
        finally:
            room.close()
        assert room.descriptors == room.empty, "a pidfd was left open"


def kill(knocker: subprocess.Popen[bytes]) -> None:
    knocker.kill()
    knocker.wait(PATIENCE)


# -- the end of a process --------------------------------------------------------------------------


def test_the_end_of_a_process_is_told_once_for_each_of_its_sessions(room: Room) -> None:
    one, other = room.knocker(), room.knocker()
    room.meet(b"1a", one)
    room.meet(b"1b", one)
    room.meet(b"2", other)
    assert room.nobody_ended()
    kill(one)
    assert room.ended() == [b"1a", b"1b"]
    assert room.nobody_ended()
    assert not room.peers.watches(b"1a")
    assert room.peers.watches(b"2")
    kill(other)
    assert room.ended() == [b"2"]


def test_a_forked_child_that_keeps_the_connection_open_hides_nothing(room: Room) -> None:
    knocker = room.knocker()
    room.meet(b"1", knocker)
    assert knocker.stdin is not None
    knocker.stdin.write(b"f")
    child = os.pidfd_open(int(read_line(knocker)))
    try:
        assert room.nobody_ended()
        kill(knocker)
        assert room.ended() == [b"1"]
        assert not wait_readable(child, patience=0), "the child was to outlive its parent"
        knocker.stdin.close()
        assert wait_readable(child)
    finally:
        os.close(child)


def test_a_zombie_has_ended(room: Room) -> None:
    knocker = room.knocker()
    frame, started = room.hear(knocker), start_of(knocker.pid)
    knocker.kill()
    os.waitid(os.P_PID, knocker.pid, os.WEXITED | os.WNOWAIT)
    assert room.peers.meet(b"1", frame, started)
    assert room.ended() == [b"1"]


def test_who_has_ended_and_was_buried_before_it_is_met_is_not_watched_for_ever(room: Room) -> None:
    knocker = room.knocker()
    frame, started = room.hear(knocker), start_of(knocker.pid)
    kill(knocker)
    if room.peers.meet(b"1", frame, started):  # a late kernel has a pidfd of the dead, too
        assert room.ended() == [b"1"]
    assert not room.peers.watches(b"1")


# -- somebody else's number ------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "alive"), [(-1, False), (0, True), (1, True), (None, True)])
def test_by_number_who_was_started_later_than_it_says_is_another(
    any_room: Room, monkeypatch: pytest.MonkeyPatch, shift: int | None, alive: bool
) -> None:
    monkeypatch.setattr(module, "_peer_pidfd", lambda pid, frame: None)
    knocker = any_room.knocker()
    frame = any_room.hear(knocker)
    says = 0 if shift is None else start_of(knocker.pid) + shift
    assert any_room.peers.meet(b"1", frame, says) is alive
    assert any_room.peers.watches(b"1") is alive


def test_a_connection_that_is_another_process_by_now_is_not_asked(
    any_room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its descriptor was closed and used again: what is there is not what the frame came from."""
    one, other = any_room.knocker(), any_room.knocker()
    frame = any_room.hear(one)
    monkeypatch.setattr(module, "_pid_of", lambda frame: other.pid)
    assert any_room.peers.meet(b"2", frame, start_of(other.pid))
    kill(one)
    assert any_room.nobody_ended()
    kill(other)
    assert any_room.ended() == [b"2"]


def test_a_number_that_was_used_again_does_not_prolong_a_life(
    any_room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = any_room.knocker(), any_room.knocker()
    frame, started = any_room.hear(old), start_of(old.pid)
    any_room.meet(b"new", new)
    monkeypatch.setattr(module, "_pid_of", lambda frame: new.pid)
    kill(old)
    assert not any_room.peers.meet(b"old", frame, min(started, start_of(new.pid) - 1))
    assert any_room.peers.watches(b"new")
    assert not any_room.peers.watches(b"old")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ESRCH])
def test_a_kernel_that_knows_no_pidfd_for_this_connection_alone_says_that_it_has_ended(
    any_room: Room, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    if not module._knows_pidfds():
        pytest.skip("this kernel has no SO_PEERPIDFD")
    knocker = any_room.knocker()
    frame = any_room.hear(knocker)
    ask = module._ask_for_pidfd
    asked: list[socket.socket] = []

    def refuse_once(connection: socket.socket) -> int:
        asked.append(connection)
        if len(asked) == 1:
            raise OSError(code, "no such process")
        return ask(connection)

    monkeypatch.setattr(module, "_ask_for_pidfd", refuse_once)
    # Its number belongs to a process that lives, and says nothing about when it was started.
    assert not any_room.peers.meet(b"1", frame, 0)
    assert len(asked) == 2


def test_a_kernel_that_knows_no_pidfd_for_any_connection_is_asked_by_number(
    any_room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(connection: socket.socket) -> int:
        raise OSError(errno.EINVAL, "no such option")

    monkeypatch.setattr(module, "_ask_for_pidfd", refuse)
    knocker = any_room.knocker()
    any_room.meet(b"1", knocker)
    kill(knocker)
    assert any_room.ended() == [b"1"]


# -- sessions that come and go ---------------------------------------------------------------------


def test_who_is_forgotten_is_not_told_of_and_leaves_no_descriptor(room: Room) -> None:
    knocker = room.knocker()
    for session in (b"1", b"2"):
        room.meet(session, knocker)
    assert room.descriptors == room.empty + 2
    room.peers.forget(b"1")
    room.peers.forget(b"1")
    room.peers.forget(b"unknown")
    assert room.descriptors == room.empty + 1
    kill(knocker)
    assert room.ended() == [b"2"]
    assert room.descriptors == room.empty


def test_a_session_that_comes_again_is_watched_where_it_came_from_last(room: Room) -> None:
    one, other = room.knocker(), room.knocker()
    for knocker in (one, one, other):
        room.meet(b"1", knocker)
        assert room.descriptors == room.empty + 1
    kill(one)
    assert room.nobody_ended()
    kill(other)
    assert room.ended() == [b"1"]


def test_a_session_that_comes_again_from_a_process_that_has_ended_is_watched_no_more(
    any_room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_peer_pidfd", lambda pid, frame: None)
    knocker = any_room.knocker()
    any_room.meet(b"1", knocker)
    assert not any_room.peers.meet(b"1", any_room.hear(knocker), start_of(knocker.pid) - 1)
    assert not any_room.peers.watches(b"1")
    assert any_room.descriptors == any_room.empty


def test_two_sessions_of_one_connection_end_together_and_are_forgotten_alone(room: Room) -> None:
    knocker = room.knocker()
    room.meet(b"1", knocker)
    room.peers.share(b"2", b"1")
    room.peers.share(b"3", b"2")
    room.peers.share(b"4", b"unknown")
    assert not room.peers.watches(b"4")
    room.peers.forget(b"1")
    kill(knocker)
    assert room.ended() == [b"2", b"3"]


# -- nobody can be watched -------------------------------------------------------------------------


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    gc.collect()  # or the garbage of other tests gives some back in the middle
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, open_descriptors())) + 2, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                fillers.append(os.dup(0))
        yield
    finally:
        for filler in fillers:
            os.close(filler)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_a_descriptor_nobody_is_watched_and_one_line_says_so(
    room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    knocker = room.knocker()
    frames = [room.hear(knocker) for _ in range(3)]
    room.meet(b"0", knocker)
    caplog.set_level(logging.INFO)
    with no_descriptor_left():
        for number, frame in enumerate(frames[:2], start=1):
            assert room.peers.meet(b"%d" % number, frame, 0)
        room.peers.share(b"9", b"0")
    assert len(caplog.records) == 1
    assert "deadline" in caplog.text
    assert [room.peers.watches(b"%d" % number) for number in (0, 1, 2, 9)] == [
        True,
        False,
        False,
        False,
    ]
    assert room.peers.meet(b"3", frames[2], 0)  # there are some again
    with no_descriptor_left():
        assert room.peers.meet(b"4", frames[2], 0)
    assert len(caplog.records) == 2
    kill(knocker)
    assert room.ended() == [b"0", b"3"]


def test_without_pidfds_nobody_is_watched_and_one_line_says_so(
    any_room: Room, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_peer_pidfd", lambda pid, frame: None)
    monkeypatch.delattr(os, "pidfd_open")
    knocker = any_room.knocker()
    for session in (b"1", b"2"):
        assert any_room.peers.meet(session, any_room.hear(knocker), start_of(knocker.pid))
        assert not any_room.peers.watches(session)
    assert any_room.peers.meet(b"3", None, 0)
    assert len(caplog.records) == 1


def test_a_number_of_another_namespace_is_not_looked_up(
    any_room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(module, "_peer_pidfd", lambda pid, frame: None)
    monkeypatch.setattr(module, "_pid_of", lambda frame: 0)
    monkeypatch.setattr(os, "pidfd_open", opened.append)
    assert any_room.peers.meet(b"1", any_room.hear(any_room.knocker()), 1)
    assert not any_room.peers.watches(b"1")
    assert opened == []


def test_a_frame_that_says_nothing_of_its_sender_has_no_number() -> None:
    assert module._pid_of(zmq.Frame(b"made here")) == 0
