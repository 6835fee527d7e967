"""Bytes that are no message, addresses at which nobody can live, calls that make no sense.

While something bad goes on, a bystander goes on calling: its calls must all succeed and its totals
must be exact (G12).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

import switchgear as sg
from switchgear.wire import (
    KINDS,
    TO_CONTROL,
    TO_DATA,
    Acquire,
    Batch,
    Declare,
    ErrorCode,
    GetList,
    GetMetrics,
    GetStats,
    Goodbye,
    Granted,
    Hello,
    Missed,
    Ping,
    Pong,
    Report,
    Reported,
    Reset,
    Subscribe,
    Sync,
    Synced,
    Welcome,
)

from .conftest import ACQUIRE_TIMEOUT, PATIENCE, connect, eventually, run_script, wait_readable

pytestmark = pytest.mark.process

MALFORMED: Final = ErrorCode.MALFORMED
UNKNOWN_KIND: Final = ErrorCode.UNKNOWN_KIND
BAD_CONFIG: Final = ErrorCode.BAD_CONFIG

CONFIG: Final = (5, 2, 30_000_000, 1, 60_000_000, 0, 0)
STRICT: Final = (*CONFIG[:-1], 1)  # so that an answer comes alone, without a lease
LATER: Final = 2**62  # on the manager's clock: a deadline that does not pass
CALLS_AFTERWARDS: Final = 10  # of a bystander, before it is believed to be undisturbed

numbers = itertools.count(1)


# -- a peer that may send anything, and one that does no wrong -------------------------------------


def pack(*values: object) -> bytes:
    """One frame, made without the code under test."""
    packed: bytes = msgpack.packb(values)
    return packed


class Peer:
    """A socket of ours at one of the manager's two; it sends what it is told to."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.connect(f"ipc://{path}")
        self.token = os.urandom(16)
        self.epoch = 0

    def send(self, *frames: bytes) -> None:
        """Send one ZeroMQ message."""
        assert self.socket.poll(PATIENCE * 1000, zmq.POLLOUT), "no manager to write to"
        self.socket.send_multipart(frames)

    def receive(self, count: int) -> list[tuple[Any, ...]]:
        """The next answers, however the manager puts them together; no more than were asked for."""
        answers: list[tuple[Any, ...]] = []
        while len(answers) < count:
            assert self.socket.poll(PATIENCE * 1000), f"no answer after {answers}"
            frames = self.socket.recv_multipart()
            answers += [msgpack.unpackb(frame, use_list=False) for frame in frames]
        assert len(answers) == count
        return answers

    def ask(self, *frames: bytes) -> tuple[Any, ...]:
        """Send frames as one message and return the one answer to them."""
        self.send(*frames)
        return self.receive(1)[0]

    def refusal(self, *frames: bytes) -> tuple[int, int, int]:
        """Send frames and return kind, ref and code of the Error they are answered with."""
        number, kind, ref, code, text = self.ask(*frames)
        assert number == 3
        assert isinstance(text, str)
        assert text
        return kind, ref, code

    def hello(self) -> int:
        """Greet, and return the number of reports that the manager has of us."""
        welcome = self.ask(pack(KINDS[Hello], next(numbers), 1, 1, self.token, os.getpid(), 0))
        assert (welcome[0], welcome[2]) == (KINDS[Welcome], 1)
        self.epoch = welcome[3]
        reports: int = welcome[6]
        return reports

    def declare(self, name: str) -> None:
        assert self.ask(pack(KINDS[Declare], next(numbers), name, STRICT))[0] == 11

    def acquire(self, name: str) -> int:
        """A permit's number."""
        granted = self.ask(pack(KINDS[Acquire], next(numbers), name, LATER))
        assert granted[0] == KINDS[Granted]
        permit: int = granted[2]
        return permit

    def report(self, number: int, name: str, permit: int) -> bytes:
        """The frame of a success."""
        return pack(KINDS[Report], number, name, self.epoch, permit, 1, 0, 1250, None)

    def assert_alive(self) -> None:
        """The next thing heard is the answer to a request made now: there was no other."""
        number = next(numbers)
        assert self.ask(pack(KINDS[Sync], number))[:2] == (KINDS[Synced], number)


class ControlPeer(Peer):
    def assert_alive(self) -> None:
        number = next(numbers)
        assert self.ask(pack(KINDS[Ping], number))[:2] == (KINDS[Pong], number)


@pytest.fixture(scope="module")
def manager() -> Iterator[sg.Manager]:
    """One manager for all of it: what harmed it in one test would show in the others."""
    with sg.Manager(acquire_timeout=ACQUIRE_TIMEOUT) as manager:
        yield manager


@pytest.fixture(scope="module")
def path(manager: sg.Manager) -> str:
    return manager.address.removeprefix("ipc://")


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as context:
        yield context


@pytest.fixture
def meet(context: zmq.Context[zmq.Socket[bytes]], path: str) -> Iterator[Callable[[], Peer]]:
    """Makes peers at the data socket that have not said Hello."""
    with contextlib.ExitStack() as met:

        def make() -> Peer:
            peer = Peer(context, f"{path}.data")
            met.callback(peer.socket.close)
            return peer

        yield make


@pytest.fixture
def stranger(meet: Callable[[], Peer]) -> Peer:
    """One of them."""
    return meet()


@pytest.fixture
def peer(stranger: Peer) -> Peer:
    """One that has said it."""
    assert stranger.hello() == 0
    return stranger


@pytest.fixture
def control(context: zmq.Context[zmq.Socket[bytes]], path: str) -> Iterator[ControlPeer]:
    peer = ControlPeer(context, f"{path}.control")
    with peer.socket:
        assert peer.hello() == 0
        yield peer


@pytest.fixture
def circuit() -> str:
    """A name that nobody else uses."""
    return f"circuit-{next(numbers)}"


@pytest.fixture(autouse=True)
def bystander(request: pytest.FixtureRequest) -> Iterator[None]:
    """Somebody who does no wrong, in every test of the wire: nothing may happen to it."""
    if "stranger" not in request.fixturenames and "control" not in request.fixturenames:
        yield
        return
    manager: sg.Manager = request.getfixturevalue("manager")
    with undisturbed(manager):
        yield


@contextlib.contextmanager
def undisturbed(manager: sg.Manager) -> Iterator[None]:
    """Have a client call all the while, and then see that nothing happened to it."""
    done, stop = [0], threading.Event()
    errors: list[BaseException] = []
    with connect(manager.address) as client:
        breaker = client.breaker(f"bystander-{next(numbers)}", failure_threshold=1)

        def call() -> None:
            try:
                # Not at every chance: who sends what is wrong has this same interpreter to do it.
                while not stop.wait(0.001):
                    breaker.execute(count)
            except BaseException as error:
                errors.append(error)

        def count() -> None:
            done[0] += 1

        thread = threading.Thread(target=call)
        thread.start()
        try:
            eventually(lambda: done[0] or errors)
            yield
            enough = done[0] + CALLS_AFTERWARDS
            eventually(lambda: done[0] >= enough or errors)
        finally:
            stop.set()
            thread.join(PATIENCE)
        assert errors == []
        stats = breaker.stats()
        assert (stats.state, stats.generation) == (sg.State.CLOSED, 1)
        assert (stats.total_requests, stats.total_successes) == (done[0], done[0])
        assert (stats.total_failures, stats.total_neutral, stats.total_rejected) == (0, 0, 0)
        assert stats.in_flight == 0
        assert breaker.metrics().stale_reports == 0
        assert client.ping().pid == manager.pid


# -- bytes that are no message ---------------------------------------------------------------------

NO_MESSAGE: Final = {
    "a byte that msgpack does not use": b"\xc1",
    "another protocol": b"GET / HTTP/1.1\r\nHost: here\r\n\r\n",
    "noise": bytes(range(255, 155, -1)),
    "a message and one byte more": pack(17, 7) + b"\0",
    "two messages in a frame": pack(17, 7) + pack(17, 8),
    "no array": msgpack.packb(7),
    "a map": msgpack.packb({0: 17, 1: 7}),
    "a map inside": pack(17, 7, {1: 2}),
    "an extension": pack(17, 7, msgpack.ExtType(5, b"x")),
    "a timestamp": pack(17, msgpack.Timestamp(1, 0)),
    "an empty array": pack(),
    "a kind that is text": pack("17", 7),
    "a kind that is a float": pack(17.0, 7),
    "a kind that is not a number": pack(float("nan"), 7),
    "a kind that is a boolean": pack(True, 7),
    "a kind that is nil": pack(None, 7),
    "an array of 4 billion, said to follow": b"\xdd\xff\xff\xff\xff",
    "4 billion bytes, said to follow": b"\x92\x11\xc6\xff\xff\xff\xff",
    "arrays 60,000 deep": b"\x91" * 60_000,
    "text that is not UTF-8": b"\x94\x0c\x07\xa2\xff\xfe\x01",
    "text of 3,000 bytes": pack(12, 7, "x" * 3000, LATER),
    "70 kB of nothing": bytes(70_000),
    "70 kB of a message": pack(17, 7, b"\0" * 70_000),
    "70 kB of a message that is good but for that": pack(17, 7, *["x" * 2048] * 34),
    "a frame of one byte too many": bytes(64 * 1024 + 1),
    "a frame of the largest size": bytes(64 * 1024),
}


@pytest.mark.parametrize("frame", NO_MESSAGE.values(), ids=NO_MESSAGE)
def test_bytes_that_are_no_message_are_refused_and_harm_nobody(
    peer: Peer, control: ControlPeer, frame: bytes
) -> None:
    for sender in (peer, control):
        assert sender.refusal(frame) == (0, 0, MALFORMED)
        sender.assert_alive()


def test_an_empty_frame_is_answered_with_a_call_for_a_hello_and_harms_nobody(
    peer: Peer, control: ControlPeer
) -> None:
    for sender in (peer, control):
        assert sender.refusal(b"") == (0, 0, ErrorCode.NO_SESSION)
        sender.assert_alive()


def test_a_message_of_the_largest_size_is_taken(peer: Peer, control: ControlPeer) -> None:
    for sender, kind in ((peer, KINDS[Sync]), (control, KINDS[Ping])):
        frame = pack(kind, 7, *["x" * 2048] * 31, "x" * (64 * 1024 - 31 * 2051 - 8))
        assert len(frame) == 64 * 1024
        assert sender.ask(frame)[:2] == (kind + 1, 7)


def test_a_message_cut_short_anywhere_is_refused(peer: Peer, circuit: str) -> None:
    whole = pack(KINDS[Report], 1, circuit, 1_700_000_000_000_000, 5, 1, 1, 25, "TimeoutError: é")
    for length in range(1, len(whole)):
        assert peer.refusal(whole[:length]) == (0, 0, MALFORMED)
    peer.assert_alive()


def test_a_frame_above_a_mebibyte_costs_its_sender_the_connection_and_nobody_else(
    meet: Callable[[], Peer], stranger: Peer, circuit: str
) -> None:
    stranger.hello()
    stranger.declare(circuit)
    other = meet()
    other.hello()
    permit = other.acquire(circuit)
    expected = [zmq.EVENT_DISCONNECTED, zmq.EVENT_HANDSHAKE_SUCCEEDED]
    watched = stranger.socket.get_monitor_socket(sum(expected))
    stranger.socket.send(bytes(1024 * 1024 + 1))
    for event in expected:
        assert watched.poll(PATIENCE * 1000), f"{event!r} did not come"
        assert recv_monitor_message(watched)["event"] == event
    stranger.socket.disable_monitor()
    watched.close()
    # Connected anew by ZeroMQ, it is somebody the manager has not met.
    assert stranger.refusal(pack(KINDS[Acquire], 7, circuit, LATER)) == (
        KINDS[Acquire],
        7,
        ErrorCode.NO_SESSION,
    )
    assert stranger.hello() == 0
    stranger.assert_alive()
    other.send(other.report(1, circuit, permit))
    assert other.receive(1)[0][:2] == (KINDS[Reported], 1)


def test_a_socket_that_does_not_speak_zeromq_harms_nobody(stranger: Peer, path: str) -> None:
    for suffix in ("data", "control"):
        with socket.socket(socket.AF_UNIX) as plain:
            plain.connect(f"{path}.{suffix}")
            plain.settimeout(PATIENCE)
            assert plain.recv(4096)[:1] == b"\xff", "that is how ZeroMQ greets"
            with contextlib.suppress(ConnectionError):  # it may hang up on us half-way
                plain.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
            stranger.hello()
            stranger.assert_alive()


# -- fields of the wrong type or range -------------------------------------------------------------

NAN, INF = float("nan"), float("inf")

# The message, and the ref that its Error has; the kind is the message's own.
WRONG_FIELDS: Final[list[tuple[tuple[object, ...], int]]] = [
    ((1, 1, 1, b"x" * 15, 1), 1),
    ((1, 1, 1, b"x" * 17, 1), 1),
    ((1, 1, 1, "x" * 16, 1), 1),
    ((1, 1, 1, None, 1), 1),
    ((1, "1", 1, b"x" * 16, 1), 0),
    ((1,), 0),
    ((10, 7), 7),
    ((10, 7, "x"), 7),
    ((10, 7, b"x", None), 7),
    ((10, 7, "x", 5), 7),
    ((10, 7, "x", CONFIG[:6]), 7),
    ((10, 7, "x", ("5", *CONFIG[1:])), 7),
    ((10, 7, "x", (5.0, *CONFIG[1:])), 7),
    ((10, 7, "x", (True, *CONFIG[1:])), 7),
    ((10, 7, "x", (5, 2, NAN, *CONFIG[3:])), 7),
    ((10, 7, "x", (5, 2, INF, *CONFIG[3:])), 7),
    ((10, 7, "x", (5, 2, -INF, *CONFIG[3:])), 7),
    ((10, 7, "x", (5, 2, -1, *CONFIG[3:])), 7),
    ((10, 7, "x", (5, 2, 10**15 + 1, *CONFIG[3:])), 7),
    ((10, 7, "x", (*CONFIG[:4], NAN, 0, 0)), 7),
    ((10, 7, "x", (*CONFIG[:5], 2, 0)), 7),
    ((10, 7, "x", (*CONFIG[:6], "leased")), 7),
    ((12, 7), 7),
    ((12, "7", "x", LATER), 0),
    ((12, -7, "x", LATER), 0),
    ((12, 2**63, "x", LATER), 0),
    ((12, True, "x", LATER), 0),
    ((12, NAN, "x", LATER), 0),
    ((12, 7, 5, LATER), 7),
    ((12, 7, None, LATER), 7),
    ((12, 7, ("x",), LATER), 7),
    ((12, 7, "x", NAN), 7),
    ((12, 7, "x", INF), 7),
    ((12, 7, "x", 1.5), 7),
    ((12, 7, "x", None), 7),
    ((12, 7, "x", -1), 7),
    ((12, 7, "x", 2**63), 7),
    ((15, 1, "x", 1, 1, 3, 0, None), 1),
    ((15, 1, "x", 1, 1, True, 0, None), 1),
    ((15, 1, "x", 1, 1, 0, NAN, None), 1),
    ((15, 1, "x", 1, 1, 0, INF, None), 1),
    ((15, 1, "x", 1, 1, 0, 10**15 + 1, None), 1),
    ((15, 1, "x", 1, 1, 1, 0, "y" * 513), 1),
    ((15, 1, "x", 1, 1, 1, 0, b"y"), 1),
    ((15, 1, "x", 1, 1, 0, 0), 1),
    ((17,), 0),
    ((17, None), 0),
]
WRONG_CONTROL_FIELDS: Final[list[tuple[tuple[object, ...], int]]] = [
    ((30,), 0),
    ((30, NAN), 0),
    ((32, 7), 7),
    ((32, 7, None), 7),
    ((34, 7, 1.5), 7),
    ((36, 7, None), 7),
    ((38, 7, ("x",)), 7),
    ((40, 7, -1), 7),
    ((40, 7, NAN), 7),
    ((43, "now"), 0),
]


def test_a_field_of_the_wrong_type_or_range_is_refused_with_its_reference(
    peer: Peer, control: ControlPeer
) -> None:
    for sender, table in ((peer, WRONG_FIELDS), (control, WRONG_CONTROL_FIELDS)):
        for message, ref in table:
            refusal = sender.refusal(pack(*message))
            assert (message, refusal) == (message, (message[0], ref, MALFORMED))
        sender.assert_alive()
    assert peer.hello() == 0, "a report was taken in"


BAD_NAMES: Final = ["", "x" * 129, "é" * 65, "a\x1bb", "a\nb", "a\0b", "a\u202eb", "a\u2028b"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_too_long_or_not_printable_is_refused(
    manager: sg.Manager, peer: Peer, control: ControlPeer, name: str
) -> None:
    circuits = set(manager.breakers())
    assert peer.refusal(pack(10, 7, name, None)) == (10, 7, BAD_CONFIG)
    assert peer.refusal(pack(12, 7, name, LATER)) == (12, 7, BAD_CONFIG)
    assert peer.refusal(pack(15, 1, name, 1, 1, 1, 0, 0, None)) == (15, 1, BAD_CONFIG)
    assert peer.refusal(pack(22, 1, name, 1, 1, 0, 0, 0, ())) == (22, 1, BAD_CONFIG)
    for kind in (32, 34, 38):
        assert control.refusal(pack(kind, 7, name)) == (kind, 7, BAD_CONFIG)
    if name:  # an empty one asks for the first page
        assert control.refusal(pack(36, 7, name)) == (36, 7, BAD_CONFIG)
    assert set(manager.breakers()) == circuits
    assert peer.hello() == 0


@pytest.mark.parametrize("name", ["x" * 128, "é" * 64])
def test_a_name_at_its_limit_is_taken(peer: Peer, control: ControlPeer, name: str) -> None:
    peer.declare(name)
    assert control.ask(pack(KINDS[GetStats], 7, name))[3][0] == name


@pytest.mark.parametrize(
    ("place", "value"),
    [(0, 0), (0, 10**9 + 1), (1, 0), (1, 10**9 + 1), (2, 0), (3, 0), (3, 10**9 + 1), (4, 0)],
)
def test_a_config_out_of_its_range_is_refused_and_the_one_in_force_stays(
    peer: Peer, control: ControlPeer, circuit: str, place: int, value: int
) -> None:
    config = (*CONFIG[:place], value, *CONFIG[place + 1 :])
    assert peer.refusal(pack(10, 7, circuit, config)) == (10, 7, BAD_CONFIG)
    assert control.refusal(pack(32, 8, circuit)) == (32, 8, ErrorCode.UNKNOWN_CIRCUIT)
    in_force = (3, *CONFIG[1:])
    assert peer.ask(pack(10, 8, circuit, in_force))[3] == in_force
    assert peer.refusal(pack(10, 9, circuit, config)) == (10, 9, BAD_CONFIG)
    assert control.ask(pack(32, 9, circuit))[3][15] == in_force


# -- messages in the wrong place -------------------------------------------------------------------


def test_a_kind_that_does_not_exist_is_refused(peer: Peer, control: ControlPeer) -> None:
    for sender in (peer, control):
        for kind in (0, 4, 24, 29, 47, 99, 2**63 - 1):
            assert sender.refusal(pack(kind, 7, "x")) == (kind, 7, UNKNOWN_KIND)
        for kind in (-1, 2**63, 2**64 - 1):  # no number that the answer could repeat
            assert sender.refusal(pack(kind, 7, "x")) == (0, 7, UNKNOWN_KIND)
        assert sender.refusal(pack(99)) == (99, 0, UNKNOWN_KIND)
        assert sender.refusal(pack(99, "x")) == (99, 0, UNKNOWN_KIND)
        sender.assert_alive()


def test_a_message_of_the_other_socket_or_the_other_way_is_refused(
    manager: sg.Manager, peer: Peer, control: ControlPeer
) -> None:
    good: dict[type, tuple[object, ...]] = {
        Declare: ("x", None),
        Acquire: ("x", LATER),
        Report: ("x", 1, 1, 1, 0, 0, None),
        Batch: ("x", 1, 1, 0, 0, 0, ()),
        Missed: ("x", 1, 0, 0, 0, (), None),
        GetStats: ("x",),
        GetMetrics: ("x",),
        GetList: ("",),
        Reset: ("x",),
        Subscribe: (None,),
    }
    circuits = set(manager.breakers())
    for sender, allowed in ((peer, TO_DATA), (control, TO_CONTROL)):
        for message, kind in KINDS.items():
            if message not in allowed:
                frame = pack(kind, 7, *good.get(message, ()))
                assert sender.refusal(frame) == (kind, 7, UNKNOWN_KIND)
        sender.assert_alive()
    assert set(manager.breakers()) == circuits
    assert peer.hello() == 0


# -- messages at the wrong time --------------------------------------------------------------------


@pytest.mark.parametrize(("lowest", "highest"), [(2, 9), (0, 0), (2, 1), (2**63 - 1, 2**63 - 1)])
def test_a_hello_without_our_version_is_refused_and_opens_no_session(
    stranger: Peer, control: ControlPeer, lowest: int, highest: int
) -> None:
    frame = pack(KINDS[Hello], 7, lowest, highest, os.urandom(16), 1, 0)
    for sender in (stranger, control):
        assert sender.refusal(frame) == (KINDS[Hello], 7, ErrorCode.WRONG_PROTOCOL)
    assert stranger.refusal(pack(10, 7, "x", None)) == (10, 7, ErrorCode.NO_SESSION)
    stranger.hello()
    stranger.assert_alive()


def test_a_message_before_hello_or_after_goodbye_is_refused(stranger: Peer, circuit: str) -> None:
    frames = {
        Declare: pack(10, 7, circuit, None),
        Acquire: pack(12, 7, circuit, LATER),
        Report: pack(15, 7, circuit, 1, 1, 1, 0, 0, None),
        Batch: pack(22, 7, circuit, 1, 1, 1, 0, 0, ()),
        Missed: pack(23, 7, circuit, 1, 0, 0, 0, (), None),
        Sync: pack(17, 7),
    }
    assert set(frames) == TO_DATA - {Hello, Goodbye}
    for _ in range(2):
        for message, frame in frames.items():
            assert stranger.refusal(frame) == (KINDS[message], 7, ErrorCode.NO_SESSION)
        assert stranger.refusal(pack(KINDS[Goodbye])) == (19, 0, ErrorCode.NO_SESSION)
        assert stranger.hello() == 0
        stranger.assert_alive()
        stranger.send(pack(KINDS[Goodbye]))


def test_a_circuit_that_nobody_has_declared_is_refused(
    peer: Peer, control: ControlPeer, circuit: str
) -> None:
    unknown = ErrorCode.UNKNOWN_CIRCUIT
    assert peer.refusal(pack(12, 7, circuit, LATER)) == (12, 7, unknown)
    assert peer.refusal(pack(15, 1, circuit, peer.epoch - 1, 1, 1, 0, 0, None)) == (15, 1, unknown)
    assert peer.hello() == 1, "such a report is taken in"
    for kind in (32, 34, 38):
        assert control.refusal(pack(kind, 7, circuit)) == (kind, 7, unknown)


def test_an_acquire_after_its_deadline_gets_no_permit(
    peer: Peer, control: ControlPeer, circuit: str
) -> None:
    peer.declare(circuit)
    frame = pack(KINDS[Acquire], next(numbers), circuit, 0)
    assert peer.refusal(frame)[2] == ErrorCode.DEADLINE_PASSED
    assert counts(control, circuit) == (0, 0, 0)


def counts(control: ControlPeer, circuit: str) -> tuple[int, int, int]:
    """Requests that were decided, successes, permits that are out."""
    stats = control.ask(pack(KINDS[GetStats], next(numbers), circuit))[3]
    return stats[2], stats[3], stats[9]


def test_a_permit_that_was_never_issued_is_refused(
    peer: Peer, control: ControlPeer, circuit: str
) -> None:
    peer.declare(circuit)
    for number, permit in enumerate((0, 2**62, 2**63 - 1), 1):
        refusal = peer.refusal(peer.report(number, circuit, permit))
        assert refusal == (15, number, ErrorCode.UNKNOWN_PERMIT)
    assert counts(control, circuit) == (0, 0, 0)
    assert peer.hello() == 3, "such a report is taken in"


def test_a_permit_of_another_circuit_is_refused_and_stays_out(
    peer: Peer, control: ControlPeer, circuit: str
) -> None:
    peer.declare(circuit)
    peer.declare(f"{circuit}-b")
    permit = peer.acquire(circuit)
    refusal = peer.refusal(peer.report(1, f"{circuit}-b", permit))
    assert refusal == (15, 1, ErrorCode.UNKNOWN_PERMIT)
    assert counts(control, circuit)[1:] == (0, 1)
    assert peer.ask(peer.report(2, circuit, permit))[:2] == (KINDS[Reported], 2)
    assert counts(control, circuit)[1:] == (1, 0)


def test_a_permit_of_another_session_is_refused_and_stays_with_its_holder(
    meet: Callable[[], Peer], peer: Peer, control: ControlPeer, circuit: str
) -> None:
    holder = meet()
    holder.hello()
    holder.declare(circuit)
    permit = holder.acquire(circuit)
    refusal = peer.refusal(peer.report(1, circuit, permit))
    assert refusal == (15, 1, ErrorCode.FOREIGN_PERMIT)
    assert counts(control, circuit)[1:] == (0, 1)
    assert holder.ask(holder.report(1, circuit, permit))[:2] == (KINDS[Reported], 1)
    assert counts(control, circuit)[1:] == (1, 0)


def test_a_report_that_comes_twice_counts_once(
    peer: Peer, control: ControlPeer, circuit: str
) -> None:
    peer.declare(circuit)
    frame = peer.report(1, circuit, peer.acquire(circuit))
    assert peer.ask(frame)[:2] == (KINDS[Reported], 1)
    for _ in range(3):
        assert peer.refusal(frame) == (15, 1, ErrorCode.DUPLICATE_REPORT)
    second = peer.report(2, circuit, peer.acquire(circuit))
    peer.send(second, second, pack(KINDS[Sync], 9))
    answers = [answer[0] for answer in peer.receive(3)]
    assert answers == [KINDS[Reported], 3, KINDS[Synced]]
    assert counts(control, circuit)[1:] == (2, 0)


def test_the_permit_of_a_report_that_was_taken_in_is_gone(
    peer: Peer, control: ControlPeer, circuit: str
) -> None:
    peer.declare(circuit)
    permit = peer.acquire(circuit)
    assert peer.ask(peer.report(1, circuit, permit))[:2] == (KINDS[Reported], 1)
    refusal = peer.refusal(peer.report(2, circuit, permit))
    assert refusal == (15, 2, ErrorCode.UNKNOWN_PERMIT)
    assert counts(control, circuit)[1:] == (1, 0)


def test_a_report_that_comes_too_early_is_refused_and_its_number_stays_free(
    peer: Peer, control: ControlPeer, circuit: str
) -> None:
    peer.declare(circuit)
    permits = [peer.acquire(circuit) for _ in range(2)]
    for number in (0, 2, 3, 2**63 - 1):
        refusal = peer.refusal(peer.report(number, circuit, permits[1]))
        code = ErrorCode.OUT_OF_ORDER if number else ErrorCode.DUPLICATE_REPORT
        assert refusal == (15, number, code)
    assert counts(control, circuit)[1:] == (0, 2)
    for number, permit in enumerate(permits, 1):
        assert peer.ask(peer.report(number, circuit, permit))[:2] == (KINDS[Reported], number)
    assert counts(control, circuit)[1:] == (2, 0)


# -- many frames in one message --------------------------------------------------------------------


def test_frames_after_the_64th_are_dropped(peer: Peer, control: ControlPeer) -> None:
    for sender, kind in ((peer, KINDS[Sync]), (control, KINDS[Ping])):
        sender.send(*(pack(kind, number) for number in range(100)))
        assert [answer[1] for answer in sender.receive(64)] == list(range(64))
        sender.assert_alive()


@pytest.mark.parametrize("count", [2_063, 2_064, 2_065, 30_000])
def test_what_comes_behind_a_message_of_very_many_frames_is_answered(
    peer: Peer, control: ControlPeer, count: int
) -> None:
    for sender, kind in ((peer, KINDS[Sync]), (control, KINDS[Ping])):
        sender.send(*[pack(kind, 1)] * count)
        sender.send(pack(kind, 2))
        assert [answer[1] for answer in sender.receive(65)] == [1] * 64 + [2]
        sender.assert_alive()


MANY_FRAMES: Final = """
import sys, zmq
from switchgear.address import Address
from switchgear.manager.server import Server
from switchgear.manager.sessions import CONTROL, DATA
from switchgear.wire import Ping, encode
place = Address.parse(sys.argv[1])
server = Server(place)
context = zmq.Context()
for socket, path in ((DATA, place.data_path), (CONTROL, place.control_path)):
    client = context.socket(zmq.DEALER)
    client.connect(f"ipc://{path}")
    client.send_multipart([encode(Ping(1))] * 30_000)
    server._sockets[socket].poll(20_000)
    takes = 1
    while not server._take(socket, 0.0):
        server._sockets[socket].poll(20_000)
    while socket in server._unread:
        server._take(socket, 0.0)
        takes += 1
    print(takes > 10)
    client.close(linger=0)
server._close()
"""


def test_the_frames_that_a_message_has_too_many_are_not_dropped_all_in_one_turn(
    address: str,
) -> None:
    done = run_script(MANY_FRAMES, address)
    assert (done.stdout, done.stderr) == ("True\nTrue\n", "")


def test_a_hundred_bad_frames_in_one_message_harm_nobody(peer: Peer, control: ControlPeer) -> None:
    for sender in (peer, control):
        sender.send(*[b"\xc1"] * 100)
        assert [answer[:4] for answer in sender.receive(64)] == [(3, 0, 0, MALFORMED)] * 64
        sender.assert_alive()


def test_a_bad_frame_harms_nothing_before_or_behind_it(peer: Peer, circuit: str) -> None:
    peer.send(
        pack(KINDS[Declare], 7, circuit, STRICT),
        b"\xc1",
        pack(99, 8),
        pack(KINDS[Acquire], 9, circuit, LATER),
        pack(KINDS[Acquire], 10, circuit, NAN),
        pack(KINDS[Sync], 11),
    )
    answers = [(answer[0], answer[1:4] if answer[0] == 3 else ()) for answer in peer.receive(6)]
    assert answers == [
        (11, ()),
        (3, (0, 0, MALFORMED)),
        (3, (99, 8, UNKNOWN_KIND)),
        (13, ()),
        (3, (12, 10, MALFORMED)),
        (18, ()),
    ]


def test_a_peer_that_does_not_read_its_refusals_holds_up_nobody(
    meet: Callable[[], Peer], peer: Peer
) -> None:
    deaf = meet()
    for _ in range(300):
        deaf.send(*[b"\xc1"] * 64)
    peer.assert_alive()
    deaf.socket.close()
    peer.assert_alive()


# -- addresses -------------------------------------------------------------------------------------

ADDRESSES: Final = {
    "": "absolute",
    "relative/m": "absolute",
    "ipc://relative/m": "absolute",
    "./m": "absolute",
    "/tmp/": "file",
    "/tmp/a\0b": "absolute path of a file",
    "tcp://127.0.0.1:5555": "file path",
    "inproc://m": "file path",
    "@abstract": "file path",
    "ipc://@abstract": "file path",
    "/tmp/" + "x" * 100: "too long.* at most 107",
    "ipc:///tmp/" + "é" * 50: "too long.* at most 107",
    "/tmp/\udcff": "UTF-8",
}


@pytest.mark.parametrize(("address", "said"), ADDRESSES.items())
def test_an_address_that_is_none_is_refused_on_both_sides(
    monkeypatch: pytest.MonkeyPatch, address: str, said: str
) -> None:
    for make in (sg.connect, sg.Manager):
        with pytest.raises(sg.ConfigError, match=said) as caught:
            make(address)
        assert "an address" in str(caught.value) or "the address" in str(caught.value)
    if address and "\0" not in address:  # neither can be in the environment
        monkeypatch.setenv("SWITCHGEAR_ADDRESS", address)
        with pytest.raises(sg.ConfigError, match=said), connect() as client:
            client.ping()


@pytest.mark.parametrize("address", [7, b"/tmp/m", Path("/tmp/m")])
def test_an_address_that_is_no_string_is_refused(address: Any) -> None:
    for make in (sg.connect, sg.Manager):
        with pytest.raises(sg.ConfigError, match="string"):
            make(address)


def test_the_longest_path_that_a_socket_can_have_works(address: str) -> None:
    directory = Path(address.removeprefix("ipc://")).parent
    longest = f"{directory}/{'x' * (107 - len(f'{directory}/.control'))}"
    with sg.Manager(longest) as manager, connect(longest, acquire_timeout=5.0) as client:
        assert client.ping().pid == manager.pid
    with pytest.raises(sg.ConfigError, match="too long"):
        connect(f"{longest}x")


def writable_by_all(directory: Path) -> None:
    directory.chmod(0o777)


def writable_by_group(directory: Path) -> None:
    directory.chmod(0o720)


def a_file(directory: Path) -> None:
    directory.rmdir()
    directory.touch()


def a_link(directory: Path) -> None:
    directory.rename(f"{directory}.elsewhere")
    directory.symlink_to(f"{directory}.elsewhere")


def of_another_user(directory: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(directory, 12345, -1)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (writable_by_all, r"others may write.*mode 0777.*run: chmod go-w {}$"),
        (writable_by_group, r"others may write.*mode 0720.*run: chmod go-w {}$"),
        (a_file, r"the socket directory {} is not a directory$"),
        (a_link, r"the socket directory {} is not a directory$"),
        (of_another_user, r"the socket directory {} belongs to uid 12345, not to us"),
    ],
)
def test_a_socket_directory_that_is_not_safe_is_refused_on_both_sides(
    address: str, spoil: Callable[[Path], None], said: str
) -> None:
    directory = Path(address.removeprefix("ipc://")).parent / "sockets"
    directory.mkdir(mode=0o700)
    spoil(directory)
    assert_refused(f"{directory}/m", said.format(directory))
    assert directory.is_file() or list(directory.iterdir()) == []


def test_a_socket_directory_that_cannot_be_is_refused_on_both_sides(address: str) -> None:
    file = Path(address.removeprefix("ipc://"))
    file.touch()
    said = f"the socket directory {file}/sockets: Not a directory"
    assert_refused(f"{file}/sockets/m", said)


def assert_refused(address: str, said: str) -> None:
    """Every way in says the same, and none waits for anything."""
    with sg.connect(address, manager_loss="allow") as client:
        breaker = client.breaker("x")
        for use in (client.ping, client.breakers, breaker.stats, breaker.acquire):
            with pytest.raises(sg.ConfigError, match=said):
                use()
        ran: list[int] = []
        with pytest.raises(sg.ConfigError, match=said):
            breaker.execute(ran.append, 1)
        assert ran == []
    with pytest.raises(sg.ConfigError, match=f"the manager did not start: .*{said}"):
        sg.Manager(address).start()
    for module, arguments in (("switchgear.manager", []), ("switchgear.cli", ["serve"])):
        command = [sys.executable, "-m", module, *arguments, "--address", address]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "Traceback" not in ended.stderr


def test_something_in_the_place_of_a_socket_or_the_lock_is_refused(address: str) -> None:
    path = Path(address.removeprefix("ipc://"))
    for suffix in ("data", "control"):
        in_the_way = path.with_suffix(f".{suffix}")
        in_the_way.mkdir()
        with pytest.raises(sg.ConfigError, match=f"cannot listen at {in_the_way}"):
            sg.Manager(address).start()
        in_the_way.rmdir()
    path.with_suffix(".lock").unlink()
    path.with_suffix(".lock").symlink_to("/nowhere")
    with pytest.raises(sg.ConfigError, match=r"did not start: .*symbolic links.*lock"):
        sg.Manager(address).start()


def test_a_directory_of_nobodys_is_a_manager_that_is_not_there(address: str) -> None:
    nowhere = f"{address}/not/there/m"
    with connect(nowhere) as client, pytest.raises(sg.ManagerUnavailableError) as caught:
        client.ping()
    assert caught.value.address == nowhere


# -- the environment -------------------------------------------------------------------------------


def test_the_environment_says_where_the_hosts_manager_is(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    directory = str(Path(address.removeprefix("ipc://")).parent)
    for variable in ("SWITCHGEAR_ADDRESS", "SWITCHGEAR_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(variable, raising=False)
    client = connect()  # looked up when it is used, not before
    assert client.address == f"ipc:///tmp/switchgear-{os.getuid()}/m1"
    for variable, value, expected in (
        ("XDG_RUNTIME_DIR", directory, f"ipc://{directory}/switchgear/m1"),
        ("SWITCHGEAR_DIR", f"{directory}/", f"ipc://{directory}/m1"),
        ("SWITCHGEAR_ADDRESS", f"{directory}/mine", f"ipc://{directory}/mine"),
    ):
        monkeypatch.setenv(variable, value)
        assert client.address == expected
        with started_without_an_address(), connect() as other:
            assert other.breaker("x").execute(lambda: 1) == 1
            assert Path(f"{expected.removeprefix('ipc://')}.data").is_socket()
    for variable in ("SWITCHGEAR_ADDRESS", "SWITCHGEAR_DIR"):
        monkeypatch.setenv(variable, "")  # as good as not set
    assert client.address == f"ipc://{directory}/switchgear/m1"
    client.close()


@contextlib.contextmanager
def started_without_an_address() -> Iterator[None]:
    """A manager that looks for its place in the environment."""
    read, write = os.pipe()
    command = [sys.executable, "-m", "switchgear.manager", "--log-level", "WARNING"]
    process = subprocess.Popen([*command, "--ready-fd", str(write)], pass_fds=(write,))
    os.close(write)
    try:
        assert wait_readable(read), "the manager said nothing"
        assert os.read(read, 1000) == b"ready"
        yield
    finally:
        os.close(read)
        process.terminate()
        assert process.wait(PATIENCE) == 0


@pytest.mark.parametrize("variable", ["SWITCHGEAR_DIR", "XDG_RUNTIME_DIR"])
def test_a_directory_from_the_environment_must_fit_too(
    monkeypatch: pytest.MonkeyPatch, address: str, variable: str
) -> None:
    directory = Path(address.removeprefix("ipc://")).parent
    for name in ("SWITCHGEAR_ADDRESS", "SWITCHGEAR_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    (directory / "switchgear").mkdir()
    for unsafe in (directory, directory / "switchgear"):
        unsafe.chmod(0o777)
    for value, said in (
        ("relative", "absolute"),
        ("x" * 120, "absolute"),
        (f"/{'x' * 120}", "too long"),
        (str(directory), "run: chmod go-w"),
    ):
        monkeypatch.setenv(variable, value)
        with pytest.raises(sg.ConfigError, match=said), connect() as client:
            client.ping()


# -- calls with nonsense ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "said"),
    [("nonsense", "'local', 'allow' or 'reject'"), (None, "'reject'")],
)
def test_a_manager_loss_that_is_none_is_refused(loss: Any, said: str) -> None:
    for make in (sg.connect, sg.Manager):
        with pytest.raises(sg.ConfigError, match=said):
            make("/tmp/m", manager_loss=loss)


@pytest.mark.parametrize("timeout", [0, 0.0, -1, NAN, INF, -INF, 2e9, "1", None, True])
def test_an_acquire_timeout_out_of_its_range_is_refused(timeout: Any) -> None:
    for make in (sg.connect, sg.Manager):
        with pytest.raises(sg.ConfigError, match=r"acquire_timeout must be .* seconds"):
            make("/tmp/m", acquire_timeout=timeout)


def test_a_bad_declaration_is_refused_before_anything_is_sent(
    manager: sg.Manager, circuit: str
) -> None:
    good = sg.CircuitConfig()
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: manager.breaker(circuit, no_such=1), "no setting 'no_such'; there are failure_th"),
        (lambda: manager.breaker(circuit, good, failure_threshold=3), "not both"),
        (lambda: manager.breaker(circuit, {"failure_threshold": 3}), "CircuitConfig"),  # type: ignore[arg-type]
        (lambda: manager.breaker(circuit, 5), "CircuitConfig"),  # type: ignore[arg-type]
        (lambda: manager.breaker(circuit, failure_threshold=True), "failure_threshold"),
        (lambda: manager.breaker(circuit, open_timeout=NAN), "open_timeout"),
        (lambda: manager.breaker(circuit, lost_permit="never"), "lost_permit"),
    ]
    for call, said in calls:
        with pytest.raises(sg.ConfigError, match=said):
            call()
    assert circuit not in manager.breakers()
    with pytest.raises(sg.UnknownCircuitError):
        manager.client.stats(circuit)


@pytest.mark.parametrize("handler", [7, "print", (print,)])
def test_a_callback_that_is_no_function_is_refused_and_declares_nothing(
    manager: sg.Manager, circuit: str, handler: Any
) -> None:
    with pytest.raises(TypeError, match="takes a function"):
        manager.breaker(circuit, on_state_change=handler)
    assert circuit not in manager.breakers()
    breaker = manager.breaker(circuit)
    with pytest.raises(TypeError, match="takes a function"):
        breaker.on_state_change(handler)
    assert breaker.execute(lambda: 1) == 1


def test_a_refused_option_leaves_the_breaker_as_it_was(manager: sg.Manager, circuit: str) -> None:
    breaker = manager.breaker(circuit)
    bad: list[dict[str, Any]] = [{"timeout": NAN}, {"timeout": 0}, {"timeout": -1}, {"cancel": 1}]
    for options in bad:
        with pytest.raises(sg.ConfigError, match=next(iter(options))):
            breaker.options(**options)
    assert breaker.execute(lambda: 1) == 1
    assert breaker.stats().total_successes == 1


def test_a_refused_decoration_counts_nowhere(manager: sg.Manager, circuit: str) -> None:
    breaker = manager.breaker(circuit)

    def rows() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="with breaker:"):
        breaker(rows)
    assert breaker.stats().total_requests == 0
