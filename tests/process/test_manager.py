"""The manager's life: how it begins, how it ends, and what calls do without it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import zmq

import switchgear as sg
from switchgear.address import Address
from switchgear.wire import FROM_DATA, MAX_FRAMES, PROTOCOL, Hello, Sync, Welcome, decode, encode

from .conftest import (
    ACQUIRE_TIMEOUT,
    PATIENCE,
    connect,
    cpu_seconds,
    end,
    ending,
    eventually,
    fail,
    half_open,
    has_ended,
    read_line,
    run_script,
    start_manager,
    start_script,
    stopped,
    trip,
)

pytestmark = pytest.mark.process


# -- begin and end ---------------------------------------------------------------------------------


def test_a_manager_ends_with_its_block_and_leaves_nothing_behind() -> None:
    with sg.Manager(acquire_timeout=ACQUIRE_TIMEOUT) as manager:
        assert manager.pid is not None
        place = Address.parse(manager.address)
        for path in (place.data_path, place.control_path):
            assert stat.S_IMODE(os.lstat(path).st_mode) == 0o600
        assert stat.S_IMODE(os.lstat(place.directory).st_mode) == 0o700
        assert manager.breaker("service").execute(int) == 0
        ended = has_ended(manager.pid)
        assert not ended()
    assert ended()
    assert not place.directory.exists()


def test_a_manager_ends_with_its_block_when_an_exception_leaves_it() -> None:
    ended: list[Callable[[], bool]] = []

    def use(manager: sg.Manager) -> None:
        assert manager.pid is not None
        ended.append(has_ended(manager.pid))
        raise KeyError

    with pytest.raises(KeyError), sg.Manager() as manager:
        use(manager)
    assert ended[0]()


def test_a_manager_can_be_started_once_only(manager: sg.Manager) -> None:
    with pytest.raises(sg.BreakerError, match="before"):
        manager.start()
    assert manager.breaker("service").execute(int) == 0


HOLDER = """
import os, sys, time
import switchgear as sg

manager = sg.Manager(acquire_timeout=5.0).start()
manager.breaker("service").execute(int)
forked = 0
if sys.argv[1] == "fork":
    forked = os.fork()
    if not forked:
        os.read(0, 1)  # live on until the test has seen enough
        os._exit(0)
print(manager.pid, forked, flush=True)
os.read(0, 1)
"""


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("forked", ["fork", "alone"])
def test_a_manager_ends_with_its_parent_however_that_ends(forked: str) -> None:
    with ending(start_script(HOLDER, forked)) as parent:
        pid, child = map(int, read_line(parent).split())
        ended = has_ended(pid)
        parent.kill()
        parent.wait(PATIENCE)
        eventually(ended)
        assert parent.stdin is not None
        if child:
            child_ended = has_ended(child)
            assert not child_ended(), "the forked child was to outlive its parent"
            parent.stdin.close()
            eventually(child_ended)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_manager_in_good_order(address: str, number: signal.Signals) -> None:
    place = Address.parse(address)
    with ending(start_manager(address)) as process:
        with Peer(place.data_path) as peer:
            peer.send(Hello(1, PROTOCOL, PROTOCOL, b"p" * 16, 1, 0))
            assert isinstance(peer.receive(), Welcome)
            # A message is taken as a whole, so by its first answer it had come before the signal.
            peer.send(*(Sync(number) for number in range(MAX_FRAMES)))
            answers = [peer.receive()]
            process.send_signal(number)
            answers += [peer.receive() for _ in range(MAX_FRAMES - 1)]
        assert [answer.request for answer in answers] == list(range(MAX_FRAMES))
        assert process.wait(PATIENCE) == 0
    assert not os.path.exists(place.data_path)
    assert not os.path.exists(place.control_path)


def test_shutdown_ends_a_manager_in_good_order(address: str) -> None:
    with ending(start_manager(address)) as process:
        with connect(address) as client:
            client.shutdown()
        assert process.wait(PATIENCE) == 0
    assert not os.path.exists(Address.parse(address).data_path)


class Peer:
    """A bare connection to one of a manager's sockets."""

    def __init__(self, path: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(f"ipc://{path}")

    def send(self, *messages: Any) -> None:
        self._socket.send_multipart([encode(message) for message in messages])

    def receive(self) -> Any:
        assert self._socket.poll(PATIENCE * 1000), "no answer"
        return decode(self._socket.recv(), FROM_DATA)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()
        self._context.term()


# -- one manager an address ------------------------------------------------------------------------


def test_g13_a_second_manager_is_refused_and_the_first_is_undisturbed(address: str) -> None:
    with sg.Manager(address, acquire_timeout=ACQUIRE_TIMEOUT) as manager:
        breaker = manager.breaker("service")
        breaker.execute(int)
        with pytest.raises(sg.ConfigError, match=f"process {manager.pid}.*already serves"):
            sg.Manager(address).start()
        command = [sys.executable, "-m", "switchgear.manager", "--address", address]
        second = subprocess.run(
            command, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert second.returncode == 1
        assert f"a manager (process {manager.pid}) already serves {address}" in second.stderr
        assert "Traceback" not in second.stderr
        breaker.execute(int)
        assert breaker.stats().total_successes == 2
        with connect(address) as client:
            assert client.ping().pid == manager.pid


def test_a_manager_takes_the_place_of_one_that_was_killed(address: str) -> None:
    with ending(start_manager(address)) as process:
        process.kill()
        process.wait(PATIENCE)
    assert os.path.exists(Address.parse(address).data_path), "a killed one cannot clear up"
    with sg.Manager(address, acquire_timeout=ACQUIRE_TIMEOUT) as manager:
        assert manager.breaker("service").execute(int) == 0


# -- nobody there ----------------------------------------------------------------------------------


@pytest.mark.parametrize("directory", ["there", "missing"])
def test_a_call_without_a_manager_says_how_to_start_one(address: str, directory: str) -> None:
    if directory == "missing":
        os.rmdir(Address.parse(address).directory)
    with connect(address, acquire_timeout=0.2) as client:
        breaker = client.breaker("service")
        begun = time.monotonic()
        with pytest.raises(sg.ManagerUnavailableError) as caught:
            breaker.execute(int)
        first = time.monotonic() - begun
        assert first < 5.0
        assert caught.value.address == address
        assert isinstance(caught.value, ConnectionError)
        assert f"switchgear serve --address {address}" in str(caught.value)
        if directory == "there":
            assert first >= 0.2
        begun = time.monotonic()
        for _ in range(50):
            with pytest.raises(sg.ManagerUnavailableError):
                breaker.execute(int)
        assert time.monotonic() - begun < 50 * 0.2, "only the first call of an outage waits"
        with pytest.raises(sg.ManagerUnavailableError):
            breaker.stats()
        with pytest.raises(sg.ManagerUnavailableError):
            breaker.reset()


def test_a_call_finds_a_manager_that_was_started_later(address: str) -> None:
    with connect(address, acquire_timeout=0.05) as client:
        breaker = client.breaker("service", failure_threshold=3)
        with pytest.raises(sg.ManagerUnavailableError):
            breaker.execute(int)
        with ending(start_manager(address)):
            assert eventually(lambda: works(breaker))
            assert breaker.stats().config.failure_threshold == 3


def works(breaker: sg.Breaker) -> bool:
    try:
        breaker.execute(int)
    except sg.ManagerUnavailableError:
        return False
    return True


def test_allow_runs_calls_unprotected_without_a_manager(address: str) -> None:
    with sg.connect(address, manager_loss="allow", acquire_timeout=0.05) as client:
        breaker = client.breaker("service", failure_threshold=1)
        assert breaker.execute(int, "7") == 7
        for _ in range(3):
            with pytest.raises(ConnectionError):
                breaker.execute(fail)
        with breaker as permit:
            assert permit.operation is None
        with pytest.raises(sg.ManagerUnavailableError):
            breaker.stats()


def test_allow_still_obeys_a_manager_that_is_there(address: str) -> None:
    with (
        ending(start_manager(address)),
        sg.connect(address, manager_loss="allow", acquire_timeout=ACQUIRE_TIMEOUT) as client,
    ):
        breaker = client.breaker("service", failure_threshold=1, open_timeout=600.0)
        trip(breaker)
        with pytest.raises(sg.CircuitOpenError):
            breaker.execute(int)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"manager_loss": "never"}, "manager_loss"),
        ({"acquire_timeout": 0}, "acquire_timeout"),
        ({"acquire_timeout": float("inf")}, "acquire_timeout"),
        ({"acquire_timeout": "1"}, "acquire_timeout"),
        ({"address": 7}, "address"),
    ],
)
def test_a_setting_out_of_its_range_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(sg.ConfigError, match=said):
        connect(**settings)
    with pytest.raises(sg.ConfigError, match=said):
        sg.Manager(**settings)


# -- killed and stopped ----------------------------------------------------------------------------


def test_a_client_goes_on_with_the_manager_that_comes_after_a_killed_one(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(address, acquire_timeout=0.2) as client:
        breaker = client.breaker("service", failure_threshold=3, consistency="strict")
        with ending(start_manager(address)) as first:
            eventually(lambda: works(breaker))
            held = breaker.acquire()
            first.kill()
            first.wait(PATIENCE)
            held.success()  # counted by the next one
            with pytest.raises(sg.ManagerUnavailableError):
                breaker.execute(int)
            with pytest.raises(sg.ManagerUnavailableError):
                breaker.execute(int)
        with ending(start_manager(address)):
            # What the first one knew, and the outcome that nobody had yet.
            client.flush(PATIENCE)
            stats = client.breakers()["service"]
            assert stats.config.failure_threshold == 3
            assert (stats.total_successes, stats.total_requests) == (2, 2)
            eventually(lambda: works(breaker))
            assert held.verdict is sg.Verdict.COUNTED
            stats = breaker.stats()
            assert (stats.total_successes, stats.in_flight) == (3, 0)
            assert breaker.metrics().stale_reports == 0
    assert caplog.text.count("does not answer") == 1
    assert caplog.text.count("answers again") == 1


def test_events_go_on_where_they_were_when_the_manager_is_killed(address: str) -> None:
    seen: list[sg.State] = []
    with connect(address) as client:
        breaker = client.breaker("service", failure_threshold=1, open_timeout=600.0)
        with ending(start_manager(address)) as first:
            breaker.on_state_change(lambda name, old, new: seen.append(new))
            trip(breaker)
            assert eventually(lambda: seen) == [sg.State.OPEN]
            end(first)
        with ending(start_manager(address)):
            # Whether it is subscribed again by then or not: it asks for what it has missed.
            breaker.reset()
            trip(breaker)
            eventually(lambda: len(seen) > 2)
        assert seen == [sg.State.OPEN, sg.State.CLOSED, sg.State.OPEN]


def test_an_embedded_manager_that_is_killed_is_replaced_and_one_that_was_told_to_end_is_not(
    manager: sg.Manager, caplog: pytest.LogCaptureFixture
) -> None:
    breaker = manager.breaker("service", failure_threshold=1, open_timeout=600.0)
    trip(breaker)
    for _ in range(3):
        before = manager.pid
        assert before is not None
        os.kill(before, signal.SIGKILL)
        eventually(lambda: manager.pid != before)  # noqa: B023  # it is called at once
        assert eventually(lambda: answers(manager)) == manager.pid
        assert breaker.state is sg.State.OPEN
    assert caplog.text.count("was killed; another one takes its place") == 3
    last = manager.pid
    assert last is not None
    ended = has_ended(last)
    manager.client.shutdown()
    eventually(ended)
    assert not answers(manager)
    assert manager.pid == last


def answers(manager: sg.Manager) -> int | None:
    try:
        return manager.client.ping().pid
    except sg.ManagerUnavailableError:
        return None


@pytest.mark.parametrize("after", [0.0, 0.02, 0.05, 0.1, 0.2])
def test_a_manager_that_is_stopped_while_it_is_replaced_leaves_nothing(after: float) -> None:
    manager = sg.Manager().start()
    path = Path(manager.address.removeprefix("ipc://"))
    assert manager.pid is not None
    os.kill(manager.pid, signal.SIGKILL)
    threading.Event().wait(after)  # a moment of its start, and no condition to wait for
    manager.stop()
    assert manager.pid is not None
    assert not Path(f"/proc/{manager.pid}").exists()
    assert not path.parent.exists()


def test_a_stopped_manager_costs_a_call_no_more_than_its_timeout(manager: sg.Manager) -> None:
    assert manager.pid is not None
    watching = manager.breaker("service", failure_threshold=3, consistency="strict")
    watching.execute(int)
    with connect(manager.address, acquire_timeout=0.2) as client:
        breaker = client.breaker("service")
        eventually(lambda: works(breaker))
        with stopped(manager.pid):
            begun = time.monotonic()
            with pytest.raises(sg.ManagerUnavailableError):
                breaker.execute(int)
            assert 0.2 <= time.monotonic() - begun < 5.0
            begun = time.monotonic()
            for _ in range(20):
                with pytest.raises(sg.ManagerUnavailableError):
                    breaker.execute(int)
            assert time.monotonic() - begun < 20 * 0.2
        assert eventually(lambda: works(breaker))
        eventually(lambda: watching.stats().in_flight == 0)


def test_a_permit_granted_to_who_had_left_goes_back(manager: sg.Manager) -> None:
    assert manager.pid is not None
    watching = manager.breaker("service", failure_threshold=1, open_timeout=0.05)
    half_open(watching)
    with connect(manager.address, acquire_timeout=0.1) as client:
        breaker = client.breaker("service")
        assert client.ping()
        eventually(lambda: released(breaker))
        for _ in range(5):
            with stopped(manager.pid), pytest.raises(sg.ManagerUnavailableError):
                breaker.acquire()
            eventually(lambda: released(breaker))
            eventually(lambda: watching.stats().in_flight == 0)
    assert watching.state is sg.State.HALF_OPEN
    assert watching.metrics().permits_lost == 0


def released(breaker: sg.Breaker) -> bool:
    try:
        breaker.acquire().release()
    except (sg.ManagerUnavailableError, sg.CallNotPermittedError):
        return False
    return True


# -- what it costs to do nothing -------------------------------------------------------------------


def test_an_idle_client_and_an_idle_manager_use_no_processor_time(manager: sg.Manager) -> None:
    assert manager.pid is not None
    script = """
import os, sys
import switchgear as sg
client = sg.connect(sys.argv[1], acquire_timeout=5.0)
breaker = client.breaker("service", on_state_change=print)
for _ in range(10):
    breaker.execute(int)
breaker.stats()
print("idle", flush=True)
os.read(0, 1)
"""
    with ending(start_script(script, manager.address)) as client:
        assert read_line(client) == "idle"
        settle = threading.Event()
        settle.wait(0.2)  # the last acknowledgement, the nap of the I/O thread
        before = [cpu_seconds(pid) for pid in (client.pid, manager.pid)]
        settle.wait(2.0)  # time passing is the thing measured
        after = [cpu_seconds(pid) for pid in (client.pid, manager.pid)]
    # The clock's tick is 10 ms: one is noise, and a thread that polls has some.
    assert [b - a for a, b in zip(before, after, strict=True)] == pytest.approx(
        [0.0, 0.0], abs=0.02
    )


# -- odd surroundings ------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [(0,), (0, 1), (0, 1, 2)])
def test_a_process_with_closed_standard_streams_can_have_a_manager(
    tmp_path: Path, closed: tuple[int, ...]
) -> None:
    script = """
import os, sys
for fd in eval(sys.argv[1]):
    os.close(fd)
import switchgear as sg
with sg.Manager(acquire_timeout=5.0) as manager:
    breaker = manager.breaker("service", failure_threshold=1)
    breaker.execute(int)
    successes = breaker.stats().total_successes
with open(sys.argv[2], "w") as file:
    file.write(str(successes))
"""
    done = run_script(script, repr(closed), str(tmp_path / "done"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "done").read_text() == "1"


def test_a_manager_can_be_started_in_a_thread_that_ends(address: str) -> None:
    managers: list[sg.Manager] = []
    manager = sg.Manager(address, acquire_timeout=ACQUIRE_TIMEOUT)
    thread = threading.Thread(target=lambda: managers.append(manager.start()))
    thread.start()
    thread.join(PATIENCE)
    try:
        assert managers == [manager]
        assert manager.breaker("service").execute(int) == 0
    finally:
        manager.stop()


def test_a_manager_that_cannot_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(sg.ConfigError, match="socket directory"):
        sg.Manager(f"{tmp_path}/file/m").start()


def test_a_manager_starts_whatever_modules_are_in_the_directory_of_the_application(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("types", "random", "logging", "zmq"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the application has loaded me')")
    monkeypatch.chdir(tmp_path)
    with sg.Manager() as manager:
        assert manager.breaker("service").execute(int) == 0


def test_ctrl_c_is_for_the_application_and_not_for_its_manager() -> None:
    script = """
import select, signal
import switchgear as sg
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
with sg.Manager(acquire_timeout=5.0) as manager:
    breaker = manager.breaker("service")
    try:
        print("ready", flush=True)
        while not select.select([0], [], [], 0.1)[0]:
            pass  # a signal that comes just before a wait is heard only after it
    except KeyboardInterrupt:
        breaker.execute(int)
        print(breaker.stats().total_successes, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with ending(process):
        assert read_line(process) == "ready"
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does; the group is the test's own
        assert read_line(process) == "1"
        assert process.wait(PATIENCE) == 0


GREETED_IN_A_LONG_TURN = """
import sys, time
import zmq
from switchgear.address import Address
from switchgear.manager.server import Server
from switchgear.manager.sessions import DATA
from switchgear.wire import FROM_DATA, Hello, decode, encode, to_micros

place = Address.parse(sys.argv[1])
server = Server(place)
turn_began = time.monotonic() - 1.0
client = zmq.Context().socket(zmq.DEALER)
client.connect(f"ipc://{place.data_path}")
sent_at = time.monotonic()
client.send(encode(Hello(1, 1, 1, bytes(16), 0, 0)))
while not server._take(DATA, turn_began):
    server._sockets[DATA].poll(20_000)
    server._unread.add(DATA)
welcome = decode(client.recv(), FROM_DATA)
print(to_micros(sent_at) <= welcome.clock <= to_micros(time.monotonic()))
"""


def test_a_greeting_is_answered_with_a_time_between_its_sending_and_its_answer(
    address: str,
) -> None:
    # By that a client tells whether the manager's clock is its own.
    assert run_script(GREETED_IN_A_LONG_TURN, address).stdout == "True\n"


NO_ROOM: Final = """
import errno, os, sys
from switchgear.address import Address
from switchgear.manager import server
def full(fd, data):
    raise OSError(getattr(errno, sys.argv[2]), "full")
write, os.write = os.write, full
lock = server._lock(Address.parse(sys.argv[1]))
try:
    server._lock(Address.parse(sys.argv[1]))
except server.AlreadyRunningError as error:
    print(error)
"""


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
def test_a_full_disk_keeps_no_manager_from_its_address(address: str, error: str) -> None:
    done = run_script(NO_ROOM, address, error)
    assert (done.stdout.count("(process unknown) already serves"), done.stderr) == (1, "")


def test_a_manager_that_cannot_be_started_leaves_no_descriptor_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spawn(*_: Any, **options: Any) -> None:
        raise OSError("no process left")

    monkeypatch.setattr("switchgear.manager.process.spawn", spawn)
    before = set(os.listdir("/proc/self/fd"))
    manager = sg.Manager()
    with pytest.raises(OSError, match="no process left"):
        manager.start()
    assert set(os.listdir("/proc/self/fd")) == before


DRAINS: Final = """
import sys, time
from switchgear.address import Address
from switchgear.config import CircuitConfig
from switchgear.manager.server import Server
from switchgear.manager.sessions import DATA, Peer
from switchgear.states import Outcome, State
from switchgear.wire import Declare, Hello, Report
server = Server(Address.parse(sys.argv[1]))
now, peer = time.monotonic(), Peer(DATA, b"x")
config = CircuitConfig(failure_threshold=1, open_timeout=0.01)
failure = Report(1, "a", server._actor.epoch, None, 1, Outcome.FAILURE, 1, None)
for message in (Hello(1, 1, 1, bytes(16), 1, 0), Declare(2, "a", config), failure):
    server._actor.receive(peer, message, now)
circuit = server._actor._circuits["a"]
assert circuit.state is State.OPEN
# Something comes all the time, so that it does not end by itself before its limit.
server._take = lambda socket, now: int(circuit.state is State.OPEN)
server._drain()
print(circuit.state.value)
server._close()
"""


def test_time_passes_for_circuits_while_a_manager_answers_what_came_before_its_end(
    address: str,
) -> None:
    done = run_script(DRAINS, address)
    assert (done.stdout, done.stderr) == ("half-open\n", "")


def test_readiness_is_said_when_the_sockets_answer_and_not_before(address: str) -> None:
    with ending(start_manager(address)), Peer(Address.parse(address).data_path) as peer:
        peer.send(Hello(1, PROTOCOL, PROTOCOL, b"p" * 16, 1, 0))
        assert isinstance(peer.receive(), Welcome)


def test_a_manager_that_is_gone_costs_one_call_the_timeout_and_the_others_nothing(
    address: str,
) -> None:
    process = start_manager(address)
    with connect(address, acquire_timeout=0.5) as client:
        breaker = client.breaker("service", consistency="strict")
        eventually(lambda: _allowed(breaker))
        end(process)
        waits = []
        for _ in range(20):
            start = time.monotonic()
            with pytest.raises(sg.ManagerUnavailableError):
                breaker.execute(int)
            waits.append(time.monotonic() - start)
    assert waits[0] >= 0.5 * 0.99
    assert sorted(waits)[-2] < 0.5  # all but the first were decided without waiting


def _allowed(breaker: sg.Breaker) -> bool:
    try:
        breaker.execute(int)
    except sg.ManagerUnavailableError:
        return False
    return True


def test_an_outcome_reported_while_no_manager_lives_is_counted_by_the_next(address: str) -> None:
    with connect(address) as client:
        breaker = client.breaker("service")
        with ending(start_manager(address)) as first:
            permits = [breaker.acquire() for _ in range(5)]
            end(first)
        for permit in permits:
            permit.success()
        with ending(start_manager(address)):
            client.flush(PATIENCE)
            assert breaker.stats().total_successes == 5


def test_an_outage_is_one_line_in_the_log_and_its_end_another(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        ending(start_manager(address)) as process,
        connect(address, acquire_timeout=0.3) as client,
    ):
        breaker = client.breaker("service", consistency="strict")
        eventually(lambda: _allowed(breaker))
        caplog.clear()
        with stopped(process.pid):
            for _ in range(20):
                with pytest.raises(sg.ManagerUnavailableError):
                    breaker.execute(int)
        eventually(lambda: _allowed(breaker))
        eventually(lambda: len(caplog.messages) >= 2)
        assert caplog.messages == [
            f"the manager at {address} does not answer",
            f"the manager at {address} answers again",
        ]
