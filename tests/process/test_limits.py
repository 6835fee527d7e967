"""Running out: of places for clients and circuits, of descriptors on either side, of patience."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgpack
import pytest
import zmq

import switchgear as sg
from switchgear.client.session import RETRY
from switchgear.manager.doors import Door, descriptors_in_use
from switchgear.wire import KINDS, Acquire, Declare, ErrorCode, Hello, Subscribe, Welcome

from .conftest import (
    ACQUIRE_TIMEOUT,
    PATIENCE,
    end,
    ending,
    eventually,
    fail,
    read_line,
    run_script,
    start_manager,
    start_script,
)

pytestmark = pytest.mark.process

FEW: Final = 256  # descriptors
ANSWER_AFTER: Final = 4 * RETRY  # seconds until who was refused once must have knocked again

numbers = itertools.count(1)


def start(address: str, *options: str, descriptors: int = 0) -> subprocess.Popen[bytes]:
    """A manager with options, and with no more than so many descriptors."""
    within = ("prlimit", f"--nofile={descriptors}:{descriptors}") if descriptors else ()
    return start_manager(address, within=within, program=("-m", "switchgear.manager", *options))


def client_of(address: str, **options: Any) -> sg.Client:
    """One that is in no hurry, so that what comes is the manager's word."""
    return sg.connect(address, **{"acquire_timeout": ACQUIRE_TIMEOUT, **options})


def in_use(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno >= logging.WARNING]


# -- places for clients ----------------------------------------------------------------------------


def test_who_comes_when_all_places_are_taken_is_refused_and_let_in_later(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.ExitStack() as stack:
        manager = stack.enter_context(ending(start(address, "--max-clients", "2")))
        inside = [stack.enter_context(client_of(address, manager_loss="reject")) for _ in range(2)]
        for client in inside:
            client.breaker("a", failure_threshold=1).execute(int)
            assert client.stats("a").total_requests
        full = eventually(lambda: in_use(manager.pid))
        late = stack.enter_context(client_of(address, manager_loss="reject"))
        breaker = late.breaker("a")
        for _ in range(2):
            with pytest.raises(sg.CapacityError, match="places for clients") as caught:
                breaker.execute(pytest.fail, "it ran")
            assert caught.value.address == address
        for ask in (breaker.stats, breaker.metrics, breaker.reset, late.breakers, late.ping):
            with pytest.raises(sg.CapacityError, match="places for clients"):
                ask()
        eventually(lambda: in_use(manager.pid) <= full)
        for client in inside:
            client.breaker("a").execute(int)
        assert sum("has no room for us" in line for line in warnings_in(caplog)) == 1
        inside[0].close()
        begun = time.monotonic()
        eventually(lambda: "let us in" in caplog.text)
        assert time.monotonic() - begun < ANSWER_AFTER * 2
        assert breaker.execute(int) == 0
        assert late.ping().pid == manager.pid
        assert inside[1].stats("a").total_failures == 0


def test_who_is_refused_goes_on_with_circuits_of_its_own_and_hands_over_what_they_counted(
    address: str,
) -> None:
    with ending(start(address, "--max-clients", "1")), client_of(address) as late:
        with client_of(address, manager_loss="reject") as inside:
            inside.breaker("a").execute(int)
            breaker = late.breaker("a", failure_threshold=3, open_timeout=600.0)
            for _ in range(3):
                with pytest.raises(ConnectionError, match="down"):
                    breaker.execute(fail)
            with pytest.raises(sg.CircuitOpenError):
                breaker.execute(pytest.fail, "it ran")

            async def nothing() -> None:
                pytest.fail("it ran")

            with pytest.raises(sg.CircuitOpenError):
                asyncio.run(breaker.execute_async(nothing))
            with client_of(address, manager_loss="allow") as another:
                assert another.breaker("a").execute(int) == 0
            assert inside.stats("a").total_failures == 0

        def runs() -> bool:
            with contextlib.suppress(sg.CircuitOpenError):
                return breaker.execute(int) == 0 and not late.standby.active
            return False

        eventually(runs)
        late.flush(PATIENCE)
        assert breaker.stats().total_failures == 3
        assert breaker.stats().total_rejected >= 2


def test_an_operator_is_no_client_and_is_answered_when_all_places_are_taken(address: str) -> None:
    with ending(start(address, "--max-clients", "1")), client_of(address) as inside:
        inside.breaker("a").execute(int)
        with client_of(address) as operator:
            assert list(operator.breakers()) == ["a"]


def test_a_client_whose_process_has_ended_leaves_its_place(address: str) -> None:
    script = """
import sys, switchgear as sg
breaker = sg.connect(sys.argv[1], acquire_timeout=5.0, manager_loss="reject").breaker("a")
print(breaker.execute(int), flush=True)
sys.stdin.read()
"""
    with ending(start(address, "--max-clients", "1")):
        for _ in range(3):
            with ending(start_script(script, address)) as process:
                assert read_line(process) == "0"


# -- places for circuits ---------------------------------------------------------------------------


def test_a_circuit_there_is_no_room_for_is_decided_in_the_process(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        ending(start(address, "--max-circuits", "2")) as manager,
        client_of(address) as client,
        client_of(address, manager_loss="reject") as strict,
    ):
        first = client.breaker("a", consistency="strict")
        second = client.breaker("b", consistency="strict")
        third = client.breaker("c", failure_threshold=2, open_timeout=600.0)
        assert [breaker.execute(int) for breaker in (first, second, third)] == [0, 0, 0]
        for _ in range(2):
            with pytest.raises(ConnectionError, match="down"):
                third.execute(fail)
            first.execute(int)  # the manager's answer here ends nothing there
        for _ in range(2):
            with pytest.raises(sg.CircuitOpenError):
                third.execute(pytest.fail, "it ran")
            first.execute(int)
        for ask in (third.stats, third.metrics, third.reset):
            with pytest.raises(sg.CapacityError, match="places for circuits"):
                ask()
        with pytest.raises(sg.CapacityError, match="places for circuits"):
            strict.breaker("d").execute(pytest.fail, "it ran")
        assert strict.breaker("a").execute(int) == 0
        assert list(client.breakers()) == ["a", "b"]
        assert client.ping().circuits == 2
        assert sum("no room for circuit 'c'" in line for line in warnings_in(caplog)) == 1
        assert first.stats().total_failures == 0
        end(manager)
        with ending(start(address)):

            def runs() -> bool:
                with contextlib.suppress(sg.CircuitOpenError):
                    return third.execute(int) == 0 and not client.standby.alone
                return False

            eventually(runs)
            client.flush(PATIENCE)
            assert third.stats().total_failures == 2


@pytest.mark.parametrize("by", ["option", "environment"])
@pytest.mark.parametrize("value", ["0", "-1", "many"])
def test_a_limit_that_makes_no_sense_is_refused(
    address: str, monkeypatch: pytest.MonkeyPatch, by: str, value: str
) -> None:
    command = [sys.executable, "-m", "switchgear.cli", "serve", "--address", address]
    if by == "option":
        command += [f"--max-circuits={value}"]
    else:
        monkeypatch.setenv("SWITCHGEAR_MAX_CIRCUITS", value)
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert value in done.stderr


def test_an_embedded_manager_takes_its_limits_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SWITCHGEAR_MAX_CIRCUITS", "1")
    with sg.Manager(acquire_timeout=ACQUIRE_TIMEOUT, manager_loss="reject") as manager:
        assert manager.breaker("a").execute(int) == 0
        with pytest.raises(sg.CapacityError):
            manager.breaker("b").execute(int)


# -- descriptors of the manager --------------------------------------------------------------------

CROWD: Final = """
import sys, threading, switchgear as sg
clients = [sg.connect(sys.argv[1], manager_loss="reject", acquire_timeout=10.0) for _ in range(40)]
breakers = [client.breaker("a") for client in clients]
found = []

def call(breaker):
    try:
        breaker.execute(int)
        found.append("ran")
    except Exception as error:
        found.append(type(error).__name__)

threads = [threading.Thread(target=call, args=(breaker,)) for breaker in breakers]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(found.count("ran"), found.count("CapacityError"), flush=True)
sys.stdin.read()
"""

KNOCKERS: Final = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
sockets = []
for _ in range(int(sys.argv[2])):
    sockets.append(socket.socket(socket.AF_UNIX))
    sockets[-1].connect(sys.argv[1])
print("connected", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def calling(address: str) -> Iterator[sg.Breaker]:
    """A client that calls all the while; none of its calls may fail."""
    errors: list[BaseException] = []
    stop = threading.Event()
    with client_of(address, manager_loss="reject", acquire_timeout=PATIENCE) as client:
        breaker = client.breaker("inside", consistency="strict")
        breaker.execute(int)

        def call() -> None:
            try:
                while not stop.wait(0.002):
                    breaker.execute(int)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        try:
            yield breaker
        finally:
            stop.set()
            thread.join(PATIENCE)
        assert errors == []


def test_a_crowd_does_not_end_the_manager(address: str) -> None:
    with (
        ending(start(address, descriptors=FEW)) as manager,
        calling(address) as inside,
        contextlib.ExitStack() as stack,
    ):
        processes = [stack.enter_context(ending(start_script(CROWD, address))) for _ in range(4)]
        found = [[int(word) for word in read_line(process).split()] for process in processes]
        ran, refused = (sum(column) for column in zip(*found, strict=True))
        assert ran + refused == 160
        assert 30 <= ran <= 40
        assert inside.execute(int) == 0
        for process in processes:
            end(process)
        with client_of(address, manager_loss="reject") as late:
            eventually(lambda: in_use(manager.pid) < 40)
            assert late.breaker("a").execute(int) == 0
        assert manager.poll() is None


def test_connections_that_say_nothing_shut_the_door_until_they_have_gone(
    address: str, tmp_path: Path
) -> None:
    path = address.removeprefix("ipc://")
    log = tmp_path / "log"
    within = ("prlimit", f"--nofile={FEW}:{FEW}")
    with ending(start_manager(address, within=within, log=log)) as manager, calling(address):
        knockers = []
        while os.path.exists(f"{path}.data"):
            knockers.append(start_script(KNOCKERS, f"{path}.data", "20"))
            with contextlib.suppress(AssertionError):
                eventually(
                    lambda: not os.path.exists(f"{path}.data") or in_line(knockers[-1]), PATIENCE
                )
        assert FEW // 2 < in_use(manager.pid) < FEW
        with client_of(address) as operator:
            assert operator.ping().pid == manager.pid
        with client_of(address, acquire_timeout=0.05) as late:
            assert late.breaker("a").execute(int) == 0  # it decides by itself
            assert late.standby.active
            for knocker in knockers:
                end(knocker)
            eventually(lambda: os.path.exists(f"{path}.data"))
            eventually(lambda: late.breaker("a").execute(int) == 0 and not late.standby.active)
        assert manager.poll() is None
    assert log.read_text().count("has to wait") == 1


def sleeps(pid: int) -> bool:
    """It waits for something."""
    with open(f"/proc/{pid}/stat", encoding="ascii") as file:
        return file.read().rpartition(")")[2].split()[0] == "S"


def in_line(process: subprocess.Popen[bytes]) -> bool:
    """It has said something, or ended."""
    assert process.stdout is not None
    return bool(zmq.select([process.stdout.fileno()], [], [], 0)[0])


def test_a_connection_that_never_finishes_its_handshake_is_closed(address: str) -> None:
    path = f"{address.removeprefix('ipc://')}.data"
    with ending(start(address)) as manager:
        before = in_use(manager.pid)
        with ending(start_script(KNOCKERS, path, "20")) as knockers:
            assert read_line(knockers) == "connected"
            eventually(lambda: in_use(manager.pid) >= before + 10)
            eventually(lambda: in_use(manager.pid) <= before)


def test_libzmq_accepts_nobody_as_long_as_the_queue_of_a_door_is_full(tmp_path: Path) -> None:
    """That no crowd can end a manager with many descriptors rests on this."""
    most = 1_001
    path = str(tmp_path / "d")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * most:
        pytest.skip("too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        door = Door(context, router, path, hard)
        router.bind(f"ipc://{path}")
        door.bound()
        before = descriptors_in_use() + 2  # the pipes to and from the script
        with ending(start_script(KNOCKERS, path, "1500")) as knockers:
            eventually(lambda: descriptors_in_use() >= before + most)
            looks = itertools.count()
            eventually(lambda: sleeps(knockers.pid) and next(looks) > 20)
            assert not in_line(knockers)
            assert descriptors_in_use() - before <= most + 1  # one is in, and not yet told of

            def all_are_in() -> bool:
                door.look()
                return in_line(knockers) and descriptors_in_use() - before >= 1_500

            eventually(all_are_in)
        door.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert os.listdir(tmp_path) == []


# -- descriptors of a client -----------------------------------------------------------------------

EXHAUSTED: Final = """
import logging, os, resource, sys, threading, time
import switchgear as sg
logging.basicConfig(level="WARNING", format="%(message)s")
left, loss = int(sys.argv[2]), sys.argv[3]
client = sg.connect(sys.argv[1], manager_loss=loss, acquire_timeout=5.0)
breaker = client.breaker("a")
resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))
threads, taken, found = threading.active_count(), [], []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
for _ in range(left):
    os.close(taken.pop())
for call in (lambda: breaker.execute(int), lambda: breaker.execute(int), breaker.stats):
    try:
        call()
        found.append("ran")
    except Exception as error:
        found.append(type(error).__name__)
print(*found, threading.active_count() - threads, flush=True)
while taken:
    os.close(taken.pop())
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    try:
        breaker.execute(int)
        breaker.stats()
        print("answered")
        break
    except sg.ManagerUnavailableError:
        time.sleep(0.01)
"""


@pytest.mark.parametrize("loss", ["local", "reject"])
@pytest.mark.parametrize("left", [*range(21), 40])
def test_a_process_without_descriptors_does_without_the_manager_until_it_has_some(
    manager: sg.Manager, left: int, loss: str
) -> None:
    done = run_script(EXHAUSTED, manager.address, str(left), loss)
    first, later = done.stdout.splitlines()
    *found, threads = first.split()
    assert (done.returncode, later) == (0, "answered")
    if left == 40:
        assert found == ["ran", "ran", "ran"]
        return
    call = "ran" if loss == "local" else "ManagerUnavailableError"
    assert found == [call, call, "ManagerUnavailableError"]
    assert int(threads) <= 1
    said = [line for line in done.stderr.splitlines() if "let us in" not in line]
    assert len(said) == 1


# -- peers that do not read ------------------------------------------------------------------------


class Deaf:
    """A connection that asks and never reads."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], path: str) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 1)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.connect(f"ipc://{path}")
        self.say(KINDS[Hello], 1, 1, 1, os.urandom(16), os.getpid(), 0)

    def say(self, *values: object) -> None:
        self.socket.send(msgpack.packb(values))


def resident(pid: int) -> int:
    """Bytes."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def meet(manager: sg.Manager) -> Iterator[Callable[[str], Deaf]]:
    """Makes them, at one of the manager's sockets."""
    path = manager.address.removeprefix("ipc://")
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())

        def make(suffix: str) -> Deaf:
            peer = Deaf(context, f"{path}.{suffix}")
            stack.callback(peer.socket.close)
            return peer

        yield make


def test_answers_that_nobody_reads_are_dropped_and_their_asker_greets_again(
    manager: sg.Manager, meet: Callable[[str], Deaf]
) -> None:
    peer = meet("data")
    breaker = manager.breaker("a", consistency="strict")
    breaker.execute(int)
    peer.say(KINDS[Declare], 2, "a", None)
    asked = 20_000  # more than all queues on the way hold
    for number in range(3, asked):
        peer.say(KINDS[Acquire], number, "unknown", 2**62)
    assert breaker.execute(int) == 0
    peer.say(KINDS[Acquire], asked, "a", 2**62)
    answers: list[tuple[Any, ...]] = []

    def refused() -> bool:
        while peer.socket.poll(0):
            answers.extend(msgpack.unpackb(f, use_list=False) for f in peer.socket.recv_multipart())
        peer.say(KINDS[Acquire], asked + len(answers), "a", 2**62)
        return answers[-1:] != [] and answers[-1][0] == 3 and answers[-1][3] == ErrorCode.NO_SESSION

    eventually(refused)
    assert answers[0][0] == KINDS[Welcome]
    assert len(answers) < asked
    assert breaker.stats().in_flight == 0
    assert breaker.execute(int) == 0


def test_subscribers_that_do_not_read_cost_a_bounded_memory_and_nobody_else_anything(
    manager: sg.Manager, meet: Callable[[str], Deaf]
) -> None:
    assert manager.pid is not None
    peers = [meet("control") for _ in range(50)]
    for peer in peers:
        peer.say(KINDS[Subscribe], 2, None)
    heard: list[str] = []
    breaker = manager.breaker("a", on_state_change=lambda name, old, new: heard.append(name))
    breaker.execute(int)
    before = resident(manager.pid)
    trip_and_reset = 3_000
    breaker = manager.breaker("a", failure_threshold=1, consistency="strict")
    for _ in range(trip_and_reset):
        with pytest.raises(ConnectionError, match="down"):
            breaker.execute(fail)
        breaker.reset()
    eventually(lambda: len(heard) == 2 * trip_and_reset)
    assert (
        resident(manager.pid) - before < 8 * 1024 * 1024
    )  # without a limit it would be twice that
    assert breaker.execute(int) == 0
