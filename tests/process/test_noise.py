"""Tens of thousands of frames beside messages, and bytes that are no ZeroMQ, at real sockets.

A client calls all the while; nothing may happen to it, and the manager must neither grow nor keep
what it is sent (G12). `NOISE=1000000` in the environment sends as many frames.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Final

import pytest
import zmq
from frames import FRAMES, mutated

import switchgear as sg
from switchgear.wire import MAX_FRAMES, TO_CONTROL, TO_DATA, Malformed, Message, Shutdown, decode

from .conftest import ACQUIRE_TIMEOUT, PATIENCE, eventually
from .test_bad_input import ControlPeer, Peer, undisturbed

pytestmark = [pytest.mark.process, pytest.mark.timeout(3600)]

FRAMES_SENT: Final = int(os.environ.get("NOISE", "20000"))  # to each socket
WARM_UP: Final = 5_000  # frames before the memory is looked at: tables have got their size then
DRIFT_KIB: Final = 10 * 1024  # that it may have grown meanwhile, whatever was sent
PLAIN: Final = 200  # connections of who does not speak ZeroMQ
GREETING: Final = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)
CLIENTS: Final = 40
ADRIFT: Final = 4  # descriptors: what the healthy client opens and closes meanwhile
SEED: Final = 8


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[sg.Manager]:
    """One with room for few: what is a message after all may declare and greet up to that."""
    monkeypatch.setenv("SWITCHGEAR_MAX_CLIENTS", str(CLIENTS))
    monkeypatch.setenv("SWITCHGEAR_MAX_CIRCUITS", "100")
    with sg.Manager(acquire_timeout=ACQUIRE_TIMEOUT) as manager:
        yield manager


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as context:
        yield context


def resident_kib(pid: int) -> int:
    """How much of a process is in memory."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0])


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def noise(random: Random) -> Iterator[bytes]:
    """Frames beside messages; but not an order to stop, which would be obeyed."""
    while True:
        frame = random.choice(FRAMES)
        for _ in range(random.randrange(1, 4)):
            frame = mutated(frame, random)
        if kind_of(frame) is not Shutdown:
            yield frame


def kind_of(frame: bytes) -> type[Message] | None:
    """What it is, after all; None: no message."""
    try:
        return type(decode(frame, TO_DATA | TO_CONTROL))
    except Malformed:
        return None


def flood(peers: list[Peer], frames: Iterator[bytes], count: int) -> int:
    """Have each send so many, and read all the answers; how many came?"""
    heard = 0
    for _ in range(count // MAX_FRAMES):
        for peer in peers:
            peer.send(*(next(frames) for _ in range(MAX_FRAMES)))
            heard += read(peer)
    return heard


def read(peer: Peer, quiet_ms: int = 0) -> int:
    """Read answers until none has come for so long; how many came?"""
    heard = 0
    while peer.socket.poll(quiet_ms):
        heard += len(peer.socket.recv_multipart())
    return heard


def test_noise_at_both_sockets_harms_nobody_and_leaves_nothing_behind(
    manager: sg.Manager, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    path, frames = manager.address.removeprefix("ipc://"), noise(Random(SEED))
    peers = [Peer(context, f"{path}.data"), ControlPeer(context, f"{path}.control")]
    with undisturbed(manager), peers[0].socket, peers[1].socket:
        heard = flood(peers, frames, WARM_UP)
        memory, opened = resident_kib(manager.pid), descriptors(manager.pid)
        heard += flood(peers, frames, FRAMES_SENT)
        heard += sum(read(peer, quiet_ms=200) for peer in peers)
        grown = resident_kib(manager.pid) - memory
        assert grown < DRIFT_KIB, f"{grown} KiB for {FRAMES_SENT} frames"
        assert descriptors(manager.pid) <= opened + CLIENTS
        assert heard > FRAMES_SENT  # most are refused, each with an answer


def test_bytes_that_are_no_zeromq_harm_nobody_and_leave_no_descriptor_behind(
    manager: sg.Manager,
) -> None:
    path, random = manager.address.removeprefix("ipc://"), Random(SEED)
    with undisturbed(manager):
        opened = descriptors(manager.pid)
        for number in range(PLAIN):
            greeting = bytearray(GREETING if number % 3 else random.randbytes(64))
            greeting[random.randrange(len(greeting))] = random.randrange(256)
            command = bytes((4, random.randrange(64))) + random.randbytes(random.randrange(64))
            with socket.socket(socket.AF_UNIX) as plain, contextlib.suppress(ConnectionError):
                plain.settimeout(PATIENCE)
                plain.connect(f"{path}.{('data', 'control')[number % 2]}")
                plain.sendall(bytes(greeting[: random.randrange(65)] if number % 5 else greeting))
                plain.sendall(command)
        eventually(lambda: descriptors(manager.pid) <= opened + ADRIFT)


def test_the_noise_that_is_sent_is_mostly_none_and_of_every_kind() -> None:
    frames = [frame for frame, _ in zip(noise(Random(SEED)), range(5_000), strict=False)]
    found = [kind_of(frame) for frame in frames]
    assert found.count(None) > len(frames) / 2
    assert set(found) == {None, *TO_DATA, *TO_CONTROL} - {Shutdown}
