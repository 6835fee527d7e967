"""Processes that are killed, stopped or end: what they held, and what the manager keeps of them.

A permit comes back by its deadline in the end; in most of these tests that is an hour away.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Literal

import pytest
import zmq

import switchgear as sg
from switchgear.address import Address
from switchgear.manager.peers import _knows_pidfds
from switchgear.wire import (
    FROM_CONTROL,
    FROM_DATA,
    MAX_FRAMES,
    PROTOCOL,
    Event,
    Hello,
    Ping,
    Pong,
    Subscribe,
    Welcome,
    decode,
    encode,
)

from .conftest import (
    ACQUIRE_TIMEOUT,
    PATIENCE,
    end,
    ending,
    eventually,
    half_open,
    read_line,
    start_manager,
    start_script,
    stopped,
    wait_readable,
)

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]

HOUR: Final = 3600.0
AT_ONCE: Final = 1.0  # seconds in which a permit of a dead process is back, on loaded machines too
KINDS: Final = ["fork", "spawn", "forkserver", "thread", "asyncio", "grandchild"]
LostPermit = Literal["failure", "ignore"]


# -- who holds a permit ----------------------------------------------------------------------------


def hold(kind: str, breaker: sg.Breaker, count: int, pipe: Connection) -> None:
    """Acquire permits the way that `kind` says, say so, and do nothing ever after."""

    def acquire() -> None:
        permits = [breaker.acquire() for _ in range(count)]
        pipe.send(os.getpid())
        live_on(permits)

    async def acquire_async() -> None:
        permits = [await breaker.acquire_async() for _ in range(count)]
        pipe.send(os.getpid())
        await asyncio.Event().wait()
        del permits

    def live_on(permits: list[sg.Permit]) -> None:
        threading.Event().wait()
        del permits

    if kind == "thread":
        thread = threading.Thread(target=acquire)
        thread.start()
        thread.join()
    elif kind == "asyncio":
        asyncio.run(acquire_async())
    elif kind == "grandchild":
        permits = [breaker.acquire() for _ in range(count)]
        child = os.fork()  # which has a copy of every descriptor, the connection's too
        if not child:
            with contextlib.suppress(EOFError):
                pipe.recv()
            os._exit(0)
        pipe.send(child)
        live_on(permits)
    else:
        acquire()


@contextlib.contextmanager
def holder(kind: str, breaker: sg.Breaker, count: int = 1) -> Iterator[Any]:
    """A process that holds permits, of which it may have left a child behind."""
    method = kind if kind in ("fork", "forkserver") else "spawn"
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=hold, args=(kind, breaker, count, theirs), daemon=True)
    process.start()
    theirs.close()
    child: int | None = None
    try:
        assert ours.poll(PATIENCE), "nobody says that he holds a permit"
        pid = ours.recv()
        if pid != process.pid:
            child = os.pidfd_open(pid)
        yield process
        if child is not None:
            assert not wait_readable(child, patience=0), "the child was to outlive its parent"
    finally:
        process.kill()
        ours.close()  # first: a child that it left holds its end of what join() looks at
        process.join(PATIENCE)
        if child is not None:
            assert wait_readable(child)
            os.close(child)


def fragile(
    manager: sg.Manager | sg.Client, lost_permit: LostPermit = "ignore", **fields: Any
) -> sg.Breaker:
    """A circuit that is half-open soon after a failure, and closed again after one success."""
    values = {
        "failure_threshold": 1,
        "success_threshold": 1,
        "open_timeout": 0.05,
        "permit_timeout": HOUR,
        "consistency": "strict",
    }
    breaker = manager.breaker("service", **(values | {"lost_permit": lost_permit} | fields))
    breaker.stats()  # it is declared
    return breaker


def admits(breaker: sg.Breaker) -> bool:
    try:
        breaker.execute(int)
    except sg.CallNotPermittedError:
        return False
    return True


def causes(address: str) -> list[str]:
    """Why the circuits changed so far, oldest first."""
    with raw(Address.parse(address).control_path) as socket:
        socket.send_multipart([encode(Subscribe(1, 0)), encode(Ping(2))])
        heard: list[Any] = []
        while not any(isinstance(message, Pong) for message in heard):
            assert socket.poll(PATIENCE * 1000), "no answer"
            heard += [decode(frame, FROM_CONTROL) for frame in socket.recv_multipart()]
    return [event.cause for event in heard if isinstance(event, Event)]


@contextlib.contextmanager
def raw(path: str) -> Iterator[zmq.Socket[bytes]]:
    """A bare connection to one of a manager's sockets."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(f"ipc://{path}")
        yield socket


# -- G5: the permits of a process that is killed ---------------------------------------------------


@pytest.mark.parametrize("lost_permit", ["failure", "ignore"])
@pytest.mark.parametrize("kind", KINDS)
def test_g5_the_probe_of_a_killed_process_is_granted_to_another(
    manager: sg.Manager, kind: str, lost_permit: LostPermit
) -> None:
    breaker = fragile(manager, lost_permit)
    half_open(breaker)
    with holder(kind, breaker) as process:
        with pytest.raises(sg.TooManyRequestsError):
            breaker.execute(int)
        os.kill(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: admits(breaker))
        # No timer brings it back: the next one is an hour away. How fast it is `make bench` says.
        assert time.monotonic() - killed < AT_ONCE
    stats, metrics = breaker.stats(), breaker.metrics()
    assert (stats.in_flight, metrics.permits_lost, metrics.stale_reports) == (0, 1, 0)
    assert (stats.total_successes, stats.total_failures, stats.total_neutral) == (1, 1, 0)
    reopened = ["lost_permit", "timeout"] if lost_permit == "failure" else []
    assert causes(manager.address) == ["failures", "timeout", *reopened, "successes"]


@pytest.mark.parametrize("kind", ["spawn", "grandchild"])
def test_g5_the_permits_of_a_killed_process_leave_a_closed_circuit_as_it_was(
    manager: sg.Manager, kind: str
) -> None:
    breaker = fragile(manager, "failure")
    mine = breaker.acquire()
    with holder(kind, breaker, count=3) as process:
        assert breaker.stats().in_flight == 4
        os.kill(process.pid, signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: breaker.stats().in_flight == 1)
        assert time.monotonic() - killed < AT_ONCE
    stats = breaker.stats()
    assert (stats.state, stats.generation, stats.total_requests) == (sg.State.CLOSED, 1, 4)
    assert breaker.metrics().permits_lost == 3
    mine.failure("down")
    assert breaker.stats().total_failures == 1


def test_g5_only_the_dead_lose_their_permits(manager: sg.Manager) -> None:
    breaker = fragile(manager, max_concurrent_requests=3)
    half_open(breaker)
    with holder("fork", breaker) as one, holder("fork", breaker), holder("fork", breaker):
        os.kill(one.pid, signal.SIGKILL)
        mine = eventually(lambda: acquired(breaker))
        with pytest.raises(sg.TooManyRequestsError):
            breaker.acquire()
        assert breaker.metrics().permits_lost == 1
        mine.release()


def acquired(breaker: sg.Breaker) -> sg.Permit | None:
    try:
        return breaker.acquire()
    except sg.CallNotPermittedError:
        return None


@pytest.mark.parametrize("clients", [1, 3])
def test_g5_a_process_loses_the_permits_of_all_its_clients(
    manager: sg.Manager, clients: int
) -> None:
    breaker = fragile(manager)
    with ending(start_script(CLIENTS, manager.address, str(clients))) as process:
        assert read_line(process) == "hold"
        assert breaker.stats().in_flight == clients
        process.kill()
        eventually(lambda: breaker.stats().in_flight == 0)
    assert breaker.metrics().permits_lost == clients


CLIENTS: Final = """
import os, sys
import switchgear as sg
clients = [sg.connect(sys.argv[1], acquire_timeout=5.0) for _ in range(int(sys.argv[2]))]
permits = [client.breaker("service").acquire() for client in clients]
print("hold", flush=True)
os.read(0, 1)
"""


def test_g5_a_manager_in_a_pid_namespace_of_its_own_tells_its_clients_apart(address: str) -> None:
    """To it all of them are process 0."""
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], check=False).returncode:
        pytest.skip("no pid namespace to be had")
    if not _knows_pidfds():
        pytest.skip("this kernel has no SO_PEERPIDFD")
    with (
        ending(start_manager(address, within=unshare)),
        sg.connect(address, acquire_timeout=ACQUIRE_TIMEOUT) as client,
    ):
        breaker = fragile(client)
        with holder("spawn", breaker) as first, holder("spawn", breaker, count=2):
            assert breaker.stats().in_flight == 3
            os.kill(first.pid, signal.SIGKILL)
            eventually(lambda: breaker.stats().in_flight == 2)
            assert breaker.metrics().permits_lost == 1
        eventually(lambda: breaker.stats().in_flight == 0)


# -- what it did before ----------------------------------------------------------------------------

# A manager that waits so long for ZeroMQ's thread, which has what the dead had sent, that no
# machine is too slow. How long it takes to read, where others send too, is as it is.
PATIENT_MANAGER: Final = """
import sys
from switchgear.manager import run, server
server._GRACE = 1.0
sys.exit(run.main())
"""

# Holds a probe. Told to, it sends much and, behind it, that its call succeeded; then holds still.
LAST_WORDS: Final = """
import os, sys, zmq
from switchgear.states import Outcome
from switchgear.wire import *
from switchgear.wire import FROM_DATA, PROTOCOL, decode, encode
context = zmq.Context()
socket = context.socket(zmq.DEALER)
socket.connect("ipc://" + sys.argv[1])
def ask(message):
    socket.send(encode(message))
    return decode(socket.recv(), FROM_DATA)
epoch = ask(Hello(1, PROTOCOL, PROTOCOL, b"dead" * 4, os.getpid(), 0)).epoch
granted = ask(Acquire(2, "service", 2**62))
print("hold", flush=True)
os.read(0, 1)
for number in range(3, 163):  # the kernel keeps no more of them
    socket.send(encode(Sync(number)))
report = (granted.operation, granted.generation, Outcome.SUCCESS, 1000, None)
socket.send(encode(Report(1, "service", epoch, *report)))
socket.close(linger=-1)
context.term()  # it is all with the kernel now
print("sent", flush=True)
os.read(0, 1)
"""


@pytest.mark.parametrize("others", [0, 400], ids=["alone", "behind_400_messages_of_others"])
def test_what_a_process_had_sent_before_it_was_killed_counts(address: str, others: int) -> None:
    path = Address.parse(address).data_path
    with (
        ending(start_manager(address, program=["-c", PATIENT_MANAGER])) as manager,
        sg.connect(address, acquire_timeout=ACQUIRE_TIMEOUT) as client,
        raw(path) as other,
    ):
        breaker = fragile(client, "failure")
        half_open(breaker)
        with ending(start_script(LAST_WORDS, path)) as process:
            assert read_line(process) == "hold"
            with stopped(manager.pid):
                for _ in range(others):
                    other.send_multipart([encode(Ping(1))] * MAX_FRAMES)
                assert process.stdin is not None
                process.stdin.write(b"x")
                assert read_line(process) == "sent"
                end(process)
        eventually(lambda: breaker.stats().in_flight == 0)
        assert breaker.stats().state is sg.State.CLOSED
        assert breaker.stats().total_successes == 1
        assert breaker.metrics().permits_lost == 0


# -- sessions that change hands --------------------------------------------------------------------

# Holds a permit under each token, all over one connection.
TOKENS: Final = """
import os, sys, zmq
from switchgear.wire import *
from switchgear.wire import PROTOCOL, encode
socket = zmq.Context().socket(zmq.DEALER)
socket.connect("ipc://" + sys.argv[1])
frames = []
for number, token in enumerate(sys.argv[3:]):
    hello = Hello(2 * number, PROTOCOL, PROTOCOL, token.encode() * 16, os.getpid(), 0)
    frames += [encode(hello), encode(Acquire(2 * number + 1, "service", 2**62))]
if sys.argv[2] == "together":
    socket.send_multipart(frames)
else:
    for frame in frames:
        socket.send(frame)
print("hold", flush=True)
os.read(0, 1)
"""


@pytest.mark.parametrize("sent", ["together", "alone"])
def test_a_session_that_takes_over_a_connection_by_another_token_ends_with_the_process_too(
    manager: sg.Manager, sent: str
) -> None:
    breaker = fragile(manager)
    path = Address.parse(manager.address).data_path
    with ending(start_script(TOKENS, path, sent, "a", "b", "c")) as process:
        assert read_line(process) == "hold"
        eventually(lambda: breaker.stats().in_flight == 3)
        process.kill()
        eventually(lambda: breaker.stats().in_flight == 0)
    assert breaker.metrics().permits_lost == 3


def test_a_session_that_was_adopted_outlives_the_process_that_it_was_of(address: str) -> None:
    path = Address.parse(address).data_path
    with (
        ending(start_manager(address, program=["-c", PATIENT_MANAGER])) as manager,
        sg.connect(address, acquire_timeout=ACQUIRE_TIMEOUT) as client,
        raw(path) as heir,
    ):
        breaker = fragile(client)
        with ending(start_script(TOKENS, path, "alone", "a")) as process:
            assert read_line(process) == "hold"
            eventually(lambda: breaker.stats().in_flight == 1)
            with stopped(manager.pid):
                end(process)
                heir.send(encode(Hello(1, PROTOCOL, PROTOCOL, b"a" * 16, os.getpid(), 0)))
        with holder("spawn", breaker, count=2) as other:  # whose end is told later
            os.kill(other.pid, signal.SIGKILL)
            eventually(lambda: breaker.metrics().permits_lost >= 2)
        assert breaker.metrics().permits_lost == 2
        assert breaker.stats().in_flight == 1


# -- what the manager keeps of the dead ------------------------------------------------------------


def test_the_dead_are_forgotten_so_that_their_token_begins_anew(manager: sg.Manager) -> None:
    breaker = fragile(manager)
    with ending(start_script(TOKEN, manager.address)) as process:
        token = read_line(process)
        process.kill()
        eventually(lambda: breaker.metrics().permits_lost == 1)
    with raw(Address.parse(manager.address).data_path) as socket:
        socket.send(encode(Hello(1, PROTOCOL, PROTOCOL, bytes.fromhex(token), os.getpid(), 0)))
        assert socket.poll(PATIENCE * 1000), "no answer"
        welcome = decode(socket.recv(), FROM_DATA)
    assert isinstance(welcome, Welcome)
    assert welcome.reports == 0


TOKEN: Final = """
import os, sys
import switchgear as sg
client = sg.connect(sys.argv[1], acquire_timeout=5.0)
breaker = client.breaker("service")
breaker.execute(int)
breaker.stats()  # the manager has taken the call's report in
permit = breaker.acquire()
print(client._link._session._token.hex(), flush=True)
os.read(0, 1)
"""

# Forks clients in batches; each makes a call and holds a permit when it is killed.
MANY: Final = """
import os, signal, sys
import switchgear as sg
for order in iter(sys.stdin.readline, ""):
    said, say = os.pipe()
    children = []
    for _ in range(int(order)):
        child = os.fork()
        if not child:
            client = sg.connect(sys.argv[1], acquire_timeout=10.0)
            client.breaker("leased").execute(int)
            permit = client.breaker("service").acquire()
            os.write(say, b"x")
            signal.pause()
        children.append(child)
    for _ in children:
        assert os.read(said, 1)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os.close(said)
    os.close(say)
    print("done", flush=True)
"""


def test_clients_that_are_killed_leave_nothing_in_the_manager(manager: sg.Manager) -> None:
    breaker = fragile(manager)
    manager.breaker("leased")
    pid = manager.pid
    assert pid is not None
    with ending(start_script(MANY, manager.address)) as process:

        def kill_clients(count: int) -> None:
            lost = breaker.metrics().permits_lost
            for _ in range(count // 20):
                assert process.stdin is not None
                process.stdin.write(b"20\n")
                assert read_line(process) == "done"
            eventually(lambda: breaker.metrics().permits_lost == lost + count)

        descriptors = count_descriptors(pid)
        kill_clients(200)  # what grows once grows now
        eventually(lambda: count_descriptors(pid) == descriptors)
        before = resident(pid)
        kill_clients(600)
        eventually(lambda: count_descriptors(pid) == descriptors)
        assert resident(pid) - before < 600 * 512  # bytes; a session that stays takes more
    assert breaker.stats().in_flight == 0


def test_clients_that_take_leave_leave_nothing_while_their_process_lives(
    manager: sg.Manager,
) -> None:
    assert manager.pid is not None
    manager.breaker("service").execute(int)
    descriptors = count_descriptors(manager.pid)
    for _ in range(20):
        with sg.connect(manager.address, acquire_timeout=ACQUIRE_TIMEOUT) as client:
            client.breaker("service").execute(int)
    eventually(lambda: count_descriptors(manager.pid or 0) == descriptors)


def count_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def resident(pid: int) -> int:
    """Bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# -- who is not dead -------------------------------------------------------------------------------


def succeed_when_told(breaker: sg.Breaker, pipe: Connection) -> None:
    permit = breaker.acquire()
    pipe.send("holds")
    pipe.recv()
    permit.success()
    breaker.stats()
    pipe.send(permit.verdict)


def test_a_stopped_holder_loses_its_probe_by_permit_timeout_and_reports_too_late(
    manager: sg.Manager,
) -> None:
    breaker = fragile(manager, permit_timeout=2.0)
    half_open(breaker)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=succeed_when_told, args=(breaker, theirs), daemon=True)
    process.start()
    try:
        assert ours.poll(PATIENCE)
        assert ours.recv() == "holds"
        assert process.pid is not None
        with stopped(process.pid):
            eventually(lambda: breaker.metrics().permits_lost == 1)
            mine = breaker.acquire()  # held to the end of the test, which has two seconds for it
        ours.send("go on")
        assert ours.poll(PATIENCE)
        assert ours.recv() is sg.Verdict.EXPIRED
        stats = breaker.stats()
        assert (stats.state, stats.in_flight) == (sg.State.HALF_OPEN, 1)
        mine.success()
        process.join(PATIENCE)
        assert process.exitcode == 0
    finally:
        process.kill()
        process.join(PATIENCE)
        ours.close()
        theirs.close()
    assert breaker.metrics().permits_lost == 1


# -- who takes leave, and what the log says --------------------------------------------------------

LEAVES: Final = """
import multiprocessing, os, sys
import switchgear as sg

def call(breaker):
    breaker.execute(int)
    global kept
    kept = breaker, breaker.acquire()

def main():
    breaker = sg.connect(sys.argv[1], acquire_timeout=5.0).breaker("service")
    if sys.argv[2] == "itself":
        call(breaker)
    else:
        context = multiprocessing.get_context(sys.argv[2])
        child = context.Process(target=call, args=(breaker,))
        child.start()
        child.join()
        assert child.exitcode == 0

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("how", ["itself", "fork", "spawn"])
def test_who_ends_without_close_takes_leave_and_the_log_knows_only_the_dead(
    address: str, tmp_path: Path, how: str
) -> None:
    log, script = tmp_path / "log", tmp_path / "leaves.py"
    script.write_text(LEAVES)
    with (
        ending(start_manager(address, log=log)),
        sg.connect(address, acquire_timeout=ACQUIRE_TIMEOUT) as client,
    ):
        breaker = fragile(client)
        subprocess.run([sys.executable, str(script), address, how], timeout=PATIENCE, check=True)
        eventually(lambda: breaker.stats().in_flight == 0)
        stats = breaker.stats()
        assert (stats.total_successes, stats.total_neutral) == (1, 1)
        assert breaker.metrics().permits_lost == 0
        assert "died" not in log.read_text()

        with holder("spawn", breaker, count=2) as closed:
            os.kill(closed.pid, signal.SIGKILL)
            eventually(lambda: breaker.metrics().permits_lost == 2)
        half_open(breaker)
        with holder("spawn", breaker) as process:
            os.kill(process.pid, signal.SIGKILL)
            eventually(lambda: breaker.metrics().permits_lost == 3)
        lines = [line for line in log.read_text().splitlines() if "died" in line]
        (line,) = [line for line in lines if "WARNING" in line]  # of a probe, and of nothing else
        assert f"process {process.pid} died; permits that come back: 1" in line
        assert any(f"process {closed.pid} died; permits that come back: 2" in one for one in lines)
