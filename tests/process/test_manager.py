"""The life of a manager: how it starts, how it ends, and what its clients see of that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import switchgear as sg

from .conftest import (
    ACQUIRE_TIMEOUT,
    PATIENCE,
    cpu_seconds,
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
    trip,
    wait_readable,
)

pytestmark = pytest.mark.process


# -- starting and ending ---------------------------------------------------------------------------


def test_an_embedded_manager_ends_with_its_block_and_leaves_no_file() -> None:
    with sg.Manager(acquire_timeout=ACQUIRE_TIMEOUT) as manager:
        assert manager.pid is not None
        gone = has_ended(manager.pid)
        directory = Path(manager.address.removeprefix("ipc://")).parent
        manager.breaker("service").execute(int)
        assert directory.exists()
        assert not gone()
    assert gone()
    assert not directory.exists()


def test_an_embedded_manager_ends_with_its_block_when_the_block_raises() -> None:
    gone = []
    with pytest.raises(ConnectionError):  # noqa: PT012, SIM117  # the inner block is the test
        with sg.Manager() as manager:
            assert manager.pid is not None
            gone.append(has_ended(manager.pid))
            fail()
    assert gone[0]()


PARENT = """
import os, sys, switchgear as sg
manager = sg.Manager(acquire_timeout=5.0).start()
manager.breaker("service").execute(int)
child = os.fork() if sys.argv[1] == "fork" else 0
if sys.argv[1] == "fork" and child == 0:
    sys.stdin.read()  # until the test closes it
    os._exit(0)
print(manager.pid, child, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("children", ["none", "fork"])
def test_an_embedded_manager_ends_when_its_parent_is_killed(children: str) -> None:
    with ending(start_script(PARENT, children)) as parent:
        manager, child = map(int, read_line(parent).split())
        gone = has_ended(manager)
        child_gone = has_ended(child) if child else None
        assert not gone()
        os.kill(parent.pid, signal.SIGKILL)
        eventually(gone)
        if child_gone is not None:
            assert not child_gone()  # it inherited everything, and still the manager saw the end
            os.kill(child, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_manager_in_good_order(address: str, number: signal.Signals) -> None:
    path = address.removeprefix("ipc://")
    with (
        ending(start_manager(address)) as process,
        sg.connect(address, acquire_timeout=ACQUIRE_TIMEOUT) as client,
    ):
        breaker = client.breaker("service")
        breaker.execute(int)
        client.flush()
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
        assert not Path(f"{path}.data").exists()
        assert not Path(f"{path}.control").exists()


def test_ctrl_c_at_the_terminal_is_for_the_application_and_not_for_its_manager() -> None:
    with sg.Manager() as manager:
        assert manager.pid is not None
        assert os.getpgid(manager.pid) != os.getpgid(0)
        assert os.getsid(manager.pid) != os.getsid(0)


def test_a_second_manager_is_refused_and_the_first_goes_on(address: str) -> None:
    with (
        ending(start_manager(address)) as first,
        sg.connect(address, acquire_timeout=ACQUIRE_TIMEOUT) as client,
    ):
        breaker = client.breaker("service")
        breaker.execute(int)
        command = [sys.executable, "-m", "switchgear.manager", "--address", address]
        second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        assert second.returncode == 1
        assert f"a manager (process {first.pid}) already serves {address}" in second.stderr
        with pytest.raises(sg.ConfigError, match=f"process {first.pid}.* already serves"):
            sg.Manager(address).start()
        breaker.execute(int)
        assert breaker.stats().total_successes == 2


def test_a_manager_that_was_killed_leaves_nothing_in_the_way_of_the_next(address: str) -> None:
    end(start_manager(address))
    with (
        ending(start_manager(address)),
        sg.connect(address, acquire_timeout=ACQUIRE_TIMEOUT) as client,
    ):
        client.breaker("service").execute(int)


def test_a_manager_can_be_asked_to_stop(address: str) -> None:
    with ending(start_manager(address)) as process, sg.connect(address) as client:
        assert client.ping().pid == process.pid
        client.shutdown()
        assert process.wait(PATIENCE) == 0


def test_a_manager_starts_and_serves_without_standard_streams() -> None:
    script = """
import os, switchgear as sg
for fd in (0, 1, 2):
    os.close(fd)
with sg.Manager(acquire_timeout=5.0) as manager:
    answer = manager.breaker("service").execute(int)
os._exit(40 + answer)
"""
    assert run_script(script).returncode == 40


# -- nobody there ----------------------------------------------------------------------------------


def test_connecting_to_nobody_says_how_to_start_a_manager(address: str) -> None:
    with sg.connect(address) as client:
        breaker = client.breaker("service")
        for use in (lambda: breaker.execute(int), breaker.stats, breaker.reset, client.breakers):
            with pytest.raises(sg.ManagerUnavailableError) as caught:
                use()
            assert caught.value.address == address
            assert "switchgear serve" in str(caught.value)
            assert "switchgear.Manager()" in str(caught.value)


def test_a_manager_that_is_gone_costs_one_call_the_timeout_and_the_others_nothing(
    address: str,
) -> None:
    process = start_manager(address)
    with sg.connect(address, acquire_timeout=0.5) as client:
        breaker = client.breaker("service")
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


def test_allow_runs_calls_unprotected_while_nobody_answers(address: str) -> None:
    with sg.connect(address, manager_loss="allow") as client:
        breaker = client.breaker("service", failure_threshold=1)
        for _ in range(3):
            with pytest.raises(ConnectionError):
                breaker.execute(fail)
        assert breaker.execute(int) == 0
        with breaker.acquire() as permit:
            assert permit.operation is None
        with pytest.raises(sg.ManagerUnavailableError):
            breaker.stats()


def test_a_client_that_came_first_finds_the_manager_that_comes_later(address: str) -> None:
    with sg.connect(address, acquire_timeout=ACQUIRE_TIMEOUT) as client:
        breaker = client.breaker("service", failure_threshold=7)
        with pytest.raises(sg.ManagerUnavailableError):
            breaker.stats()
        with ending(start_manager(address)):
            eventually(lambda: _allowed(breaker))
            assert breaker.stats().config.failure_threshold == 7


# -- interrupted -----------------------------------------------------------------------------------


def test_a_client_goes_on_with_the_next_manager_and_tells_it_its_config(address: str) -> None:
    with sg.connect(address, acquire_timeout=ACQUIRE_TIMEOUT) as client:
        breaker = client.breaker("service", failure_threshold=3)
        with ending(start_manager(address)) as first:
            breaker.execute(int)
            assert breaker.stats().total_successes == 1
            held = breaker.acquire()
            end(first)
        with ending(start_manager(address)):
            eventually(lambda: _allowed(breaker))
            held.success()
            client.flush(PATIENCE)
            assert held.verdict is sg.Verdict.STALE  # issued by another life of the manager
            stats = breaker.stats()
            assert (stats.total_successes, stats.config.failure_threshold) == (2, 3)
            trip(breaker)


def test_an_outcome_reported_while_no_manager_lives_is_counted_by_the_next(address: str) -> None:
    with sg.connect(address, acquire_timeout=ACQUIRE_TIMEOUT) as client:
        breaker = client.breaker("service")
        with ending(start_manager(address)) as first:
            permits = [breaker.acquire() for _ in range(5)]
            end(first)
        for permit in permits:
            permit.success()
        with ending(start_manager(address)):
            client.flush(PATIENCE)
            assert breaker.stats().total_successes == 5


def test_a_stopped_manager_costs_the_timeout_and_no_permit(address: str) -> None:
    with (
        ending(start_manager(address)) as process,
        sg.connect(address, acquire_timeout=0.3) as client,
    ):
        breaker = client.breaker("service", open_timeout=0.05, failure_threshold=1)
        eventually(lambda: _allowed(breaker))
        trip(breaker)
        eventually(lambda: breaker.state is sg.State.HALF_OPEN)
        with stopped(process.pid):
            start = time.monotonic()
            with pytest.raises(sg.ManagerUnavailableError):
                breaker.execute(int)  # a request is on its way: its permit must come back
            assert time.monotonic() - start >= 0.3 * 0.99
            for _ in range(10):
                with pytest.raises(sg.ManagerUnavailableError):
                    breaker.execute(int)
        eventually(lambda: _allowed(breaker))
        client.flush(PATIENCE)
        eventually(lambda: breaker.stats().in_flight == 0)


def test_an_outage_is_one_line_in_the_log_and_its_end_another(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        ending(start_manager(address)) as process,
        sg.connect(address, acquire_timeout=0.3) as client,
    ):
        breaker = client.breaker("service")
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


# -- at rest ---------------------------------------------------------------------------------------


def test_an_idle_client_and_an_idle_manager_use_no_processor(manager: sg.Manager) -> None:
    assert manager.pid is not None
    client = start_script(
        """
import sys, switchgear as sg
breaker = sg.connect(sys.argv[1], acquire_timeout=5.0).breaker("service")
breaker.on_state_change(lambda *change: None)
for _ in range(100):
    breaker.execute(int)
breaker.stats()
print("idle", flush=True)
sys.stdin.read()
""",
        manager.address,
    )
    with ending(client):
        assert read_line(client) == "idle"
        # Time passing is what is measured here. A loop that polls every 10 ms would use 4 ticks.
        threading.Event().wait(0.2)
        before = cpu_seconds(client.pid), cpu_seconds(manager.pid)
        threading.Event().wait(4.0)
        after = cpu_seconds(client.pid), cpu_seconds(manager.pid)
        tick = 1 / os.sysconf("SC_CLK_TCK")
        assert [end - start for start, end in zip(before, after, strict=True)] <= [tick, tick]
        assert client.stdin is not None
        client.stdin.close()
        client.stdin = None
        assert wait_readable(client.stdout.fileno()) if client.stdout else False
