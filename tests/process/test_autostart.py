"""Nobody has to start a manager: the first use does, and there is one, whoever is killed."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import multiprocessing
import os
import pickle
import re
import runpy
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import switchgear as sg
from switchgear import launch
from switchgear.address import Address
from switchgear.client.client import Settings
from switchgear.manager import server
from switchgear.wire import PROTOCOL

from .conftest import (
    ACQUIRE_TIMEOUT,
    PATIENCE,
    end,
    ending,
    eventually,
    fail,
    has_ended,
    read_line,
    run_script,
    start_manager,
    start_script,
    stopped,
)

pytestmark = pytest.mark.process

FORK: Final = multiprocessing.get_context("fork")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    """Where the host's own manager is to be, for this test; nobody is left there after it."""
    directory = tempfile.mkdtemp(prefix="sg-")
    monkeypatch.setenv("SWITCHGEAR_DIR", directory)
    for name in ("SWITCHGEAR_ADDRESS", "SWITCHGEAR_AUTOSTART", "SWITCHGEAR_IDLE_EXIT"):
        monkeypatch.delenv(name, raising=False)
    place = Address.default()
    try:
        yield place
    finally:
        monkeypatch.setenv("SWITCHGEAR_AUTOSTART", "0")
        eventually(lambda: not end_all(place))
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def client(place: Address) -> Iterator[sg.Client]:
    """A client of the host's own manager, that starts it."""
    with sg.connect() as client:
        yield client


def processes_of(place: Address) -> list[int]:
    """The managers at an address, and what is about to become one."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if b"switchgear.manager" in words and str(place).encode() in words:
                    found.append(int(entry))
    return found


def end_all(place: Address) -> list[int]:
    pids = processes_of(place)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return pids


def kill(pid: int) -> None:
    """Kill a manager that need not be our child; returns when it has ended."""
    ended = has_ended(pid)
    os.kill(pid, signal.SIGKILL)
    eventually(ended)


def pid_at(client: sg.Client) -> int:
    """The manager that answers; on a loaded machine that may take a while."""

    def ask() -> int:
        with contextlib.suppress(sg.ManagerUnavailableError):
            return client.ping().pid
        return 0

    return eventually(ask)


def the_one_at(place: Address) -> int:
    """The only process there is, once all others have given up."""
    (pid,) = eventually(lambda: found if len(found := processes_of(place)) == 1 else None)
    return pid


def stays(place: Address, seconds: float) -> bool:
    """Whether the manager that is there now still is, seconds later."""
    with contextlib.suppress(ProcessLookupError):
        ended = has_ended(the_one_at(place))
        threading.Event().wait(seconds)  # time passing is the thing tested
        return not ended()
    return False


def log_of(place: Address) -> str:
    with contextlib.suppress(FileNotFoundError, IsADirectoryError):
        return Path(place.log_path).read_text()
    return ""


def served(place: Address) -> list[int]:
    """Those that have ever served it, as the log has them."""
    return [int(pid) for pid in re.findall(r"INFO manager (\d+) serves", log_of(place))]


# -- the first use ---------------------------------------------------------------------------------


def test_the_first_use_starts_a_manager_and_a_breaker_alone_does_not(place: Address) -> None:
    os.rmdir(place.directory)
    with sg.connect() as client:
        breaker = client.breaker("service", failure_threshold=3)
        assert not place.directory.exists()
        assert breaker.execute(int) == 0
        assert pid_at(client) == the_one_at(place)
        assert breaker.stats().config.failure_threshold == 3
    assert stat.S_IMODE(os.lstat(place.directory).st_mode) == 0o700


def test_the_first_question_on_a_fresh_host_is_answered(place: Address) -> None:
    done = run_script(
        'import switchgear as sg; print(sg.breaker("service", failure_threshold=3).stats().config)'
    )
    assert "failure_threshold=3" in done.stdout, done.stderr
    assert done.stderr == ""
    assert processes_of(place)


def test_the_calls_before_it_was_there_are_in_its_first_answer(place: Address) -> None:
    script = """
import switchgear as sg
breaker = sg.breaker("service")
for _ in range(3):
    breaker.execute(int)
try:
    breaker.execute(int, "x")
except ValueError:
    pass
stats = breaker.stats()
print(stats.total_successes, stats.total_failures)
"""
    done = run_script(script)
    assert done.stdout.split() == ["3", "1"], done.stderr


def test_the_first_question_waits_for_a_manager_that_starts_slowly(
    place: Address, tmp_path: Path
) -> None:
    slow = tmp_path / "python"
    slow.write_text(f'#!/bin/sh\nsleep 1\nexec {sys.executable} "$@"\n')
    slow.chmod(0o700)
    done = run_script(
        "import sys, switchgear as sg; sys.executable = sys.argv[1];"
        'print(sg.breaker("service").stats().total_requests)',
        str(slow),
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_the_first_call_waits_no_longer_than_any_other(place: Address) -> None:
    with sg.connect(acquire_timeout=0.05) as client:
        breaker = client.breaker("service")
        begun = time.monotonic()
        breaker.execute(int)
        took = time.monotonic() - begun
        assert client.standby.active, "it was decided here"
        pid_at(client)
    # A manager needs a fifth of a second to start; what is over the timeout is the machine's load.
    assert took < 1.0


def test_the_managers_name_carries_the_protocol(place: Address, client: sg.Client) -> None:
    pid_at(client)
    assert Path(f"{place.directory}/m{PROTOCOL}.data").is_socket()


def test_asyncio_starts_one_too(place: Address) -> None:
    script = """
import asyncio
import switchgear as sg

async def call():
    return 7

async def main():
    breaker = sg.breaker("service")
    assert await breaker.execute_async(call) == 7
    while True:
        try:
            return await asyncio.to_thread(breaker.stats)
        except sg.ManagerUnavailableError:
            pass

print(asyncio.run(main()).name)
"""
    done = run_script(script)
    assert done.stdout.strip() == "service", done.stderr


def test_events_come_from_a_manager_that_was_started_for_them(
    place: Address, client: sg.Client
) -> None:
    seen: list[sg.State] = []
    breaker = client.breaker(
        "service", failure_threshold=1, on_state_change=lambda name, old, new: seen.append(new)
    )
    pid_at(client)

    def trip() -> bool:
        with contextlib.suppress(sg.CircuitOpenError, ConnectionError):
            breaker.execute(fail)
        return sg.State.OPEN in seen

    eventually(trip)


# -- exactly one -----------------------------------------------------------------------------------

HERD = """
import os, sys
import switchgear as sg

read, write = os.pipe()
for _ in range(int(sys.argv[1])):
    if not os.fork():
        os.close(write)
        os.read(read, 1)  # which returns for all of them at once
        client = sg.connect()
        assert client.breaker("service").execute(int) == 0
        while True:
            try:
                pid = client.ping().pid
                break
            except sg.ManagerUnavailableError:
                pass
        os.write(1, b"%d\\n" % pid)
        os._exit(0)
os.close(read)
os.close(write)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


def herd(count: int) -> list[int]:
    """The managers that so many processes find which ask at the same moment."""
    done = run_script(HERD, str(count))
    assert "Traceback" not in done.stderr, done.stderr
    return [int(line) for line in done.stdout.split()]


@pytest.mark.parametrize("number", range(3))
def test_g13_many_processes_that_ask_at_once_find_one_manager(place: Address, number: int) -> None:
    found = herd(32)
    assert len(found) == 32
    assert set(found) == {the_one_at(place)}
    assert served(place) == found[:1]
    assert "already serves" not in log_of(place), "one was started, and not one for each"


def test_a_crowd_that_is_not_kept_from_starting_many_has_one_all_the_same(place: Address) -> None:
    starts = [threading.Thread(target=launch._start, args=(place,)) for _ in range(8)]
    for start in starts:
        start.start()
    for start in starts:
        start.join(PATIENCE)
    pid = the_one_at(place)
    assert served(place) == [pid]
    assert log_of(place).count(f"a manager (process {pid}) already serves") == 7


KILLER: Final = Path(__file__).parents[2] / "benchmarks" / "killer"
STEPS: Final = runpy.run_path(str(KILLER / "steps.py"))["STEPS"]


@pytest.mark.parametrize("step", STEPS)
def test_g13_a_kill_at_any_step_of_the_start_leaves_one_manager(
    place: Address, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str
) -> None:
    killed = tmp_path / "killed"
    monkeypatch.setenv("KILL", step)
    monkeypatch.setenv("KILLED", str(killed))
    paths = [str(KILLER), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    found = herd(4)
    assert killed.exists(), "nobody came to that step"
    assert len(found) == (3 if step.startswith("spawner") else 4)
    assert set(found) == {the_one_at(place)}
    assert served(place)[-1:] == found[:1]
    # Where it is the manager that was killed, it may have served before; else it goes on.
    assert len(served(place)) <= 1 + step.startswith("manager")


def test_a_spawner_that_is_stopped_with_the_lock_holds_up_nobody_for_long(
    place: Address, client: sg.Client
) -> None:
    script = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(fd, fcntl.LOCK_EX)
print("locked", flush=True)
os.read(0, 1)
"""
    with ending(start_script(script, place.spawn_path)) as holder:
        assert read_line(holder) == "locked"
        assert client.breaker("service").execute(int) == 0
        assert pid_at(client) == the_one_at(place)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_while_a_manager_is_started_keeps_nothing_of_it(place: Address) -> None:
    def look() -> None:
        names = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        sys.exit(place.spawn_path in names)

    with launch._opened(place.spawn_path, os.O_RDWR) as fd:
        child = FORK.Process(target=look)
        child.start()
        child.join(PATIENCE)
        assert child.exitcode == 0, "the lock is open in the child"
        os.fstat(fd)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_fork_waits_until_a_process_is_started(place: Address) -> None:
    begun, over = threading.Event(), threading.Event()

    def start() -> None:
        with launch._starting:
            begun.set()
            over.wait(0.2)  # time passing is the thing tested

    thread = threading.Thread(target=start)
    thread.start()
    assert begun.wait(PATIENCE)
    before = time.monotonic()
    for _ in range(2):
        child = FORK.Process(target=lambda: sys.exit(launch._starting.locked()))
        child.start()
        assert time.monotonic() - before >= 0.19
        child.join(PATIENCE)
        assert child.exitcode == 0
    thread.join(PATIENCE)
    assert not launch._starting.locked()


# -- what it has of who started it -----------------------------------------------------------------

CALLER = """
import os, signal, sys, threading
import switchgear as sg

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
os.umask(0o27)
os.dup2(os.open(os.devnull, os.O_RDONLY), 77)
os.set_inheritable(77, True)
client = sg.connect()
while True:
    try:
        pid = client.ping().pid
        break
    except sg.ManagerUnavailableError:
        pass
print(pid, os.getsid(0), flush=True)
"""


def test_a_manager_inherits_nothing_of_who_started_it(place: Address) -> None:
    # With pipes: this returns when nobody has them open any more.
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", CALLER],
        input="",
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )
    assert time.monotonic() - begun < launch.IDLE_EXIT / 2
    assert (done.returncode, done.stderr) == (0, "")
    pid, session = map(int, done.stdout.split())
    assert pid == the_one_at(place)
    names = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    assert names.count("/dev/null") == 1, names
    files = {name for name in names if name.startswith("/")}
    journal = {place.journal_path, f"{place.journal_path}-wal"}
    assert files == {"/dev/null", place.log_path, place.lock_path, *journal}
    for fd, name in ((0, "/dev/null"), (1, place.log_path), (2, place.log_path)):
        assert os.readlink(f"/proc/{pid}/fd/{fd}") == name
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    status = Path(f"/proc/{pid}/status").read_text()
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(facts["SigBlk"], 16) == 0
    assert facts["Umask"] == "0077"
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    group, sid, terminal = map(int, fields[2:5])
    assert sid not in (session, os.getsid(0), pid), "it can never get a terminal"
    assert group == sid
    assert terminal == 0


def test_who_started_a_manager_has_no_child_and_no_zombie(
    place: Address, client: sg.Client
) -> None:
    before = children()  # other tests may have left a fork server
    pid = pid_at(client)
    assert children() <= before
    kill(pid)
    assert pid_at(client) != pid
    assert children() <= before


def children() -> set[str]:
    mine = Path("/proc/self/task").iterdir()
    return {child for task in mine for child in (task / "children").read_text().split()}


def test_a_server_that_reaps_all_its_children_can_start_one(place: Address) -> None:
    script = """
import os, signal, sys
import switchgear as sg

def reap(number, frame):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass

signal.signal(signal.SIGCHLD, reap)
client = sg.connect()
client.breaker("service").execute(int)
while True:
    try:
        print(client.ping().pid)
        break
    except sg.ManagerUnavailableError:
        pass
"""
    done = run_script(script)
    assert (done.stdout.strip(), done.stderr) == (str(the_one_at(place)), "")


@pytest.mark.parametrize("closed", [(0,), (0, 1), (0, 1, 2)])
def test_a_process_with_closed_standard_streams_can_start_one(
    place: Address, tmp_path: Path, closed: tuple[int, ...]
) -> None:
    script = """
import os, sys
for fd in eval(sys.argv[1]):
    os.close(fd)
import switchgear as sg
client = sg.connect()
client.breaker("service").execute(int)
for _ in range(20):
    try:
        pid = client.ping().pid
    except sg.ManagerUnavailableError:
        continue
    with open(sys.argv[2], "w") as file:
        file.write(str(pid))
    break
"""
    done = run_script(script, repr(closed), str(tmp_path / "done"))
    assert done.returncode == 0
    assert (tmp_path / "done").read_text() == str(the_one_at(place))
    assert os.readlink(f"/proc/{the_one_at(place)}/fd/1") == place.log_path


def test_the_package_is_found_by_a_relative_path_too(place: Address) -> None:
    source = Path(sg.__file__).parents[1]
    script = "import switchgear as sg; print(sg.connect().breaker('service').stats().name)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": source.name},
        cwd=source.parent,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.stdout.strip() == "service", done.stderr + log_of(place)


def test_the_log_is_ours_alone_and_one_that_has_grown_long_is_put_aside(place: Address) -> None:
    log = Path(place.log_path)
    log.write_bytes(b"x" * 1_000_001)
    assert launch.start(place)
    assert log.with_name(f"{log.name}.1").stat().st_size == 1_000_001
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    size = log.stat().st_size
    assert 0 < size < 1000
    kill(the_one_at(place))
    assert launch.start(place)
    assert log.stat().st_size > size, "a short one goes on"


# -- who wants none --------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", ["environment", "argument", "address"])
def test_no_manager_is_started_for_who_does_not_want_one(
    place: Address, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "environment":
        monkeypatch.setenv("SWITCHGEAR_AUTOSTART", "0")
    settings: dict[str, Any] = {
        "environment": {},
        "argument": {"autostart": False},
        "address": {"address": str(place)},
    }[reason]
    os.rmdir(place.directory)
    for missing in (True, False):
        if not missing:
            place.make_directory()
        with sg.connect(**settings) as client:
            assert client.breaker("service").execute(int) == 0
            with pytest.raises(sg.ManagerUnavailableError):
                client.ping()
        assert place.directory.exists() is not missing
    assert os.listdir(place.directory) == []
    assert processes_of(place) == []


def test_the_command_looks_and_starts_none(place: Address) -> None:
    for words in (["list"], ["stats", "service"], ["reset", "service"]):
        done = subprocess.run(
            [sys.executable, "-m", "switchgear.cli", *words], capture_output=True, timeout=PATIENCE
        )
        assert done.returncode == 3
    assert processes_of(place) == []


def test_who_says_so_gets_one_at_any_address_and_whatever_the_environment_says(
    place: Address, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWITCHGEAR_AUTOSTART", "0")
    there = Address.parse(address)
    try:
        with sg.connect(address, autostart=True) as client:
            assert pid_at(client) == the_one_at(there)
    finally:
        eventually(lambda: not end_all(there))
    assert processes_of(place) == []


def test_the_hosts_own_is_also_the_one_that_the_environment_names(
    place: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWITCHGEAR_ADDRESS", f"{place.directory}/mine")
    there = Address.default()
    try:
        with sg.connect() as client:
            assert pid_at(client) == the_one_at(there)
    finally:
        monkeypatch.setenv("SWITCHGEAR_AUTOSTART", "0")
        eventually(lambda: not end_all(there))


@pytest.mark.parametrize("autostart", [0, 1, "yes"])
def test_an_autostart_that_is_none_is_refused(autostart: Any) -> None:
    with pytest.raises(sg.ConfigError, match="autostart must be True, False or None"):
        sg.connect(autostart=autostart)


def test_a_breaker_that_travels_takes_along_whether_a_manager_may_be_started(
    place: Address,
) -> None:
    for autostart in (None, False, True):
        with sg.connect(autostart=autostart) as client:
            travelled = pickle.loads(pickle.dumps(client.breaker("service")))
            assert travelled._client.settings == client.settings
            assert travelled._client.settings.autostart is autostart
            travelled._client.close()
    assert processes_of(place) == []


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_pool_of_the_default_client_finds_one_manager(place: Address, method: str) -> None:
    script = """
import multiprocessing, os, sys
import switchgear as sg

def pid_of(breaker):
    breaker.execute(int)
    while True:
        try:
            return breaker._client.ping().pid
        except sg.ManagerUnavailableError:
            pass

if __name__ == "__main__":
    breaker = sg.breaker("service")
    with multiprocessing.get_context(sys.argv[1]).Pool(4) as pool:
        print(*set(pool.map(pid_of, [breaker] * 8)))
"""
    path = place.directory / "pool.py"
    path.write_text(script)
    done = subprocess.run(
        [sys.executable, str(path), method],
        capture_output=True,
        text=True,
        timeout=PATIENCE * 2,
        check=False,
    )
    assert (done.stdout.split(), done.stderr) == ([str(the_one_at(place))], "")


# -- when it cannot be -----------------------------------------------------------------------------


def test_a_directory_that_others_may_write_to_is_refused_aloud(
    place: Address, client: sg.Client
) -> None:
    place.directory.chmod(0o777)
    with pytest.raises(sg.ConfigError, match="chmod go-w"):
        client.breaker("service").execute(int)
    assert processes_of(place) == []


@pytest.mark.parametrize("obstacle", ["spawn", "log", "lock", "data"])
def test_a_start_that_fails_is_one_line_in_the_log_and_calls_go_on(
    place: Address, caplog: pytest.LogCaptureFixture, obstacle: str
) -> None:
    blocked = Path(f"{place.path}.{obstacle}")
    blocked.mkdir()
    with sg.connect() as client:
        breaker = client.breaker("service")
        assert breaker.execute(int) == 0
        eventually(lambda: said(caplog))
        tries = log_of(place).count("switchgear: ")
        eventually(lambda: breaker.execute(lambda: True) and gone_on(client, tries, place))
        assert len(said(caplog)) == 1
        assert str(place) in said(caplog)[0]
        assert blocked.name in said(caplog)[0]
        blocked.rmdir()
        assert pid_at(client) == the_one_at(place)
    assert len(said(caplog)) == 1


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [line for line in caplog.messages if line.startswith("no manager answers at ")]


def gone_on(client: sg.Client, tries: int, place: Address) -> bool:
    """It was tried again, where one can see that from here."""
    return tries == 0 or log_of(place).count("switchgear: ") >= tries + 2


def test_a_directory_that_cannot_be_made_is_one_line_in_the_log_and_calls_go_on(
    place: Address, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (place.directory / "file").write_text("")
    monkeypatch.setenv("SWITCHGEAR_DIR", f"{place.directory}/missing/x")
    (place.directory / "missing").symlink_to("/proc/nowhere")
    with sg.connect() as client:
        breaker = client.breaker("service", failure_threshold=1)
        for _ in range(3):
            assert breaker.execute(int) == 0
        with pytest.raises(ConnectionError):
            breaker.execute(fail)
        with pytest.raises(sg.CircuitOpenError):
            breaker.execute(int)
        with pytest.raises(sg.ManagerUnavailableError):
            breaker.stats()
    assert len(said(caplog)) == 1


def test_a_wrong_idle_time_is_said(
    place: Address, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SWITCHGEAR_IDLE_EXIT", "soon")
    with sg.connect() as client:
        assert client.breaker("service").execute(int) == 0
        (line,) = eventually(lambda: said(caplog))
    assert "SWITCHGEAR_IDLE_EXIT must be more than 0 seconds, got 'soon'" in line


# -- when it is gone -------------------------------------------------------------------------------


def test_a_killed_manager_has_a_successor_without_anybodys_help(
    place: Address, client: sg.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    breaker = client.breaker("service", failure_threshold=3)
    first = pid_at(client)
    eventually(lambda: answers(breaker))
    with sg.connect(autostart=False) as other:
        for _ in range(2):
            eventually(lambda: "switchgear-starter" not in names_of_threads())
            kill(first)
            # Nobody does anything: who was connected has noticed.
            second = pid_at(other)
            assert second not in (0, first)
            first = second
    eventually(lambda: answers(breaker))
    assert breaker.stats().config.failure_threshold == 3
    assert not said(caplog)
    assert the_one_at(place) == first


def names_of_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def answers(breaker: sg.Breaker) -> bool:
    """A manager decides, and not we."""
    breaker.execute(int)
    return not breaker._client.standby.active


def test_no_call_waits_for_the_successor(place: Address) -> None:
    with sg.connect(acquire_timeout=0.2) as client:
        breaker = client.breaker("service")
        first = pid_at(client)
        eventually(lambda: answers(breaker))
        kill(first)
        waits = []
        until = time.monotonic() + 1.0
        while client.standby.active or time.monotonic() < until:
            begun = time.monotonic()
            breaker.execute(int)
            waits.append(time.monotonic() - begun)
        assert pid_at(client) != first
    assert sorted(waits)[-2] < 0.2


def test_a_stopped_manager_is_there_and_has_no_successor(place: Address) -> None:
    with sg.connect(acquire_timeout=0.1) as client:
        breaker = client.breaker("service", consistency="strict")
        pid = pid_at(client)
        eventually(lambda: answers(breaker))
        with stopped(pid), sg.connect(acquire_timeout=0.1) as late:
            for each in (breaker, late.breaker("service")):
                for _ in range(20):
                    assert each.execute(int) == 0
            with pytest.raises(sg.ManagerUnavailableError):
                late.ping()
            assert processes_of(place) == [pid]
        assert pid_at(client) == pid
    assert served(place) == [pid]


def test_one_that_many_wait_for_is_there(place: Address) -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        assert not launch.listening(place)
        listener.bind(place.data_path)
        assert not launch.listening(place), "a file alone, as a killed one leaves it"
        listener.listen(0)
        waiting = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        waiting.connect(place.data_path)
        for _ in range(3):
            assert launch.listening(place)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_starts_one_as_well(place: Address, client: sg.Client) -> None:
    breaker = client.breaker("service")
    pid = pid_at(client)
    receiver, sender = FORK.Pipe(duplex=False)
    go, told = FORK.Pipe(duplex=False)

    def child() -> None:
        go.recv()
        breaker.execute(int)
        sender.send(pid_at(client))

    process = FORK.Process(target=child)
    process.start()
    try:
        client.close()  # the parent takes no part any more
        kill(pid)
        told.send(None)
        assert receiver.poll(PATIENCE)
        successor = receiver.recv()
        assert successor != pid
        assert successor == the_one_at(place)
    finally:
        process.kill()
        process.join(PATIENCE)


# -- when nobody needs it --------------------------------------------------------------------------


def test_a_manager_that_nobody_uses_ends_and_the_next_use_starts_another(
    place: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWITCHGEAR_IDLE_EXIT", "0.5")
    with sg.connect() as client:
        first = pid_at(client)
    eventually(lambda: not processes_of(place))
    assert not os.path.exists(place.data_path)
    assert "nobody has used it for 0.5 s" in log_of(place)
    assert "Traceback" not in log_of(place)
    with sg.connect() as client:
        assert pid_at(client) != first


def test_a_manager_that_somebody_has_used_and_may_use_again_stays(
    place: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWITCHGEAR_IDLE_EXIT", "0.3")
    with sg.connect() as client:
        breaker = client.breaker("service")
        eventually(lambda: answers(breaker))
        # Who answered may have been one in its last moments, on a machine that is slow to connect.
        eventually(lambda: stays(place, 1.0))
        pid = pid_at(client)
        ended = has_ended(pid)
        assert breaker.execute(int) == 0
        assert pid_at(client) == pid
    eventually(ended)


def test_the_end_of_a_killed_client_is_the_end_of_its_use(
    place: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWITCHGEAR_IDLE_EXIT", "0.3")
    script = """
import os
import switchgear as sg
breaker = sg.breaker("service")
while True:
    try:
        breaker.stats()
        break
    except sg.ManagerUnavailableError:
        pass
print("uses it", flush=True)
os.read(0, 1)
"""
    with ending(start_script(script)) as user:
        assert read_line(user) == "uses it"
        eventually(lambda: stays(place, 0.6))  # and not who answered in its last moments
        ended = has_ended(the_one_at(place))
    eventually(ended)


def test_who_comes_while_it_ends_is_not_lost(
    place: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWITCHGEAR_IDLE_EXIT", "0.1")
    pids = set()
    for number in range(12):
        with sg.connect() as client:
            breaker = client.breaker("service")
            assert breaker.execute(int) == 0
            pids.add(pid_at(client))
            assert breaker.stats().name == "service"
        threading.Event().wait(0.09 + 0.01 * number)  # before, during and after its last moments
    assert len(pids) > 1
    assert "Traceback" not in log_of(place)


# -- when its files are gone -----------------------------------------------------------------------

# The manager's own main, only that it looks more often.
LOOKS_OFTEN = """
import sys
from switchgear.manager import run, upkeep
upkeep.LOOK_INTERVAL = 0.1
sys.exit(run.main())
"""


def start_unattended(place: Address, log: Path) -> subprocess.Popen[bytes]:
    return start_manager(
        str(place), program=("-c", LOOKS_OFTEN), log=log, options=("--idle-exit", "inf")
    )


@pytest.mark.parametrize("what", ["data", "control", "lock"])
@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_manager_whose_files_are_gone_ends_and_leaves_what_is_not_its_own(
    place: Address, tmp_path: Path, what: str, how: str
) -> None:
    path = Path(f"{place.path}.{what}")
    with ending(start_unattended(place, tmp_path / "log")) as process:
        path.unlink()
        if how == "replaced":
            path.write_text("somebody else's")
        assert process.wait(PATIENCE) == 0
    assert f"{path} was removed or replaced" in (tmp_path / "log").read_text()
    assert path.exists() is (how == "replaced")


def test_one_whose_files_were_removed_leaves_its_place_to_its_successor(
    place: Address, tmp_path: Path
) -> None:
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(ending(start_unattended(place, tmp_path / "log")))
        with stopped(first.pid):
            for path in (place.lock_path, place.journal_path, f"{place.journal_path}-wal"):
                os.unlink(path)
            second = stack.enter_context(ending(start_unattended(place, tmp_path / "second")))
        assert first.wait(PATIENCE) == 0
        with sg.connect(acquire_timeout=ACQUIRE_TIMEOUT, autostart=False) as client:
            assert client.ping().pid == second.pid
            client.breaker("service").execute(int)
            assert client.stats("service").total_successes == 1
        end(second)
        stack.enter_context(ending(start_unattended(place, tmp_path / "third")))
        with sg.connect(acquire_timeout=ACQUIRE_TIMEOUT, autostart=False) as client:
            assert client.stats("service").total_successes == 1


def test_nobody_takes_the_place_of_one_whose_lock_was_removed_as_long_as_it_lives(
    place: Address, tmp_path: Path
) -> None:
    with ending(start_unattended(place, tmp_path / "log")) as first:
        with stopped(first.pid):
            os.unlink(place.lock_path)
            refused = subprocess.run(
                [sys.executable, "-m", "switchgear.manager", "--address", str(place)],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=False,
            )
            assert refused.returncode == 2
            assert f"journal {place.journal_path} locked" in refused.stderr
        assert first.wait(PATIENCE) == 0
    with ending(start_unattended(place, tmp_path / "second")):
        pass


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_no_lock(
    place: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock = fcntl.flock
    removals = 0

    def remove_first(fd: int, operation: int) -> None:
        nonlocal removals
        if removals < 2:
            removals += 1
            os.unlink(place.lock_path)
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    fd = server._lock(place)
    try:
        assert removals == 2
        assert os.path.samestat(os.fstat(fd), os.stat(place.lock_path))
        with pytest.raises(server.AlreadyRunningError):
            server._lock(place)
    finally:
        os.close(fd)


def test_a_manager_that_nobody_can_find_is_replaced_by_one_that_is_found(place: Address) -> None:
    with sg.connect() as client:
        first = pid_at(client)
        os.unlink(place.data_path)
        os.unlink(place.control_path)
        with sg.connect() as late:  # finds nobody, and whom it starts meets the lock
            assert late.breaker("service").execute(int) == 0
            kill(first)  # as its own look would do within ten seconds
            assert pid_at(late) == the_one_at(place) != first


def test_settings_of_older_pickles_start_as_the_environment_says() -> None:
    settings = Settings(None, "local", 0.05)
    assert settings.autostart is None
