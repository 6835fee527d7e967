"""What survives the manager: it is killed, stopped or cannot write, and another one goes on."""

from __future__ import annotations

import contextlib
import multiprocessing
import resource
import signal
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

import switchgear as sg
from switchgear.client.link import Link
from switchgear.transport import WRITABLE, events_of

from .conftest import (
    PATIENCE,
    connect,
    end,
    ending,
    eventually,
    fail,
    half_open,
    read_line,
    run_script,
    start_manager,
    start_script,
    stopped,
    trip,
)

pytestmark = [
    pytest.mark.process,
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
]


@pytest.fixture
def client(address: str) -> Iterator[sg.Client]:
    with connect(address) as client:
        yield client


def journal_of(address: str) -> Path:
    return Path(f"{address.removeprefix('ipc://')}.journal")


# -- G11: where circuits stand ---------------------------------------------------------------------


@pytest.mark.parametrize("consistency", ["leased", "strict"])
def test_g11_an_open_circuit_keeps_the_rest_of_its_time(
    address: str, client: sg.Client, consistency: str
) -> None:
    with ending(start_manager(address)) as first:
        breaker = client.breaker(
            "service", failure_threshold=2, open_timeout=600.0, consistency=consistency
        )
        trip(breaker)
        before = breaker.stats()
        end(first)
    with ending(start_manager(address)), connect(address) as other:
        after = other.stats("service")
        assert (after.state, after.generation) == (sg.State.OPEN, before.generation)
        assert abs(after.state_changed_at - before.state_changed_at) < timedelta(seconds=1)
        assert after.retry_after is not None
        assert before.retry_after is not None
        # Not more than it was, nor less by more than replacing the manager takes.
        assert before.retry_after - 10.0 < after.retry_after <= before.retry_after
        assert (after.total_failures, after.last_error) == (2, "ConnectionError: down")
        with pytest.raises(sg.CircuitOpenError):
            other.breaker("service").execute(pytest.fail, "it ran")


def test_g11_an_open_circuit_whose_time_passes_without_a_manager_is_half_open_then(
    address: str, client: sg.Client
) -> None:
    with ending(start_manager(address)) as first:
        breaker = client.breaker("service", failure_threshold=1, open_timeout=1.0)
        trip(breaker)
        opened = time.monotonic()
        end(first)
    eventually(lambda: time.monotonic() > opened + 1.0)
    with ending(start_manager(address)), connect(address) as other:
        assert eventually(lambda: other.stats("service")).state is sg.State.HALF_OPEN


def test_g11_a_half_open_circuit_admits_a_probe_of_the_next_manager_and_the_dead_ones_is_stale(
    address: str, client: sg.Client
) -> None:
    with ending(start_manager(address)) as first:
        breaker = client.breaker(
            "service",
            failure_threshold=1,
            success_threshold=1,
            open_timeout=0.05,
            permit_timeout=600.0,
        )
        half_open(breaker)
        probe = breaker.acquire()
        with pytest.raises(sg.TooManyRequestsError):
            breaker.acquire()
        before = breaker.stats()
        end(first)
    with ending(start_manager(address)):
        stats = eventually(lambda: client.breakers().get("service"))
        assert (stats.state, stats.in_flight) == (sg.State.HALF_OPEN, 0)
        assert stats.generation == before.generation
        probe.success()  # which would close it
        client.flush(PATIENCE)
        assert probe.verdict is sg.Verdict.STALE
        assert (breaker.state, breaker.stats().total_successes) == (sg.State.HALF_OPEN, 1)
        other = breaker.acquire()
        with pytest.raises(sg.TooManyRequestsError):
            breaker.acquire()
        other.success()
        client.flush(PATIENCE)
        assert breaker.state is sg.State.CLOSED


def test_g1_who_did_not_notice_that_the_manager_was_replaced_hears_events_again(
    address: str, client: sg.Client
) -> None:
    seen: list[tuple[sg.State, sg.State]] = []
    with ending(start_manager(address)) as first:
        breaker = client.breaker("service", failure_threshold=1)
        breaker.on_state_change(lambda name, old, new: seen.append((old, new)))
        assert breaker.state is sg.State.CLOSED
        link = client.link()
        assert link is not None
        with link._driver:  # as if this process did not get to run
            end(first)
            eventually(lambda: not reaches_somebody(link))
            second = start_manager(address)
            eventually(lambda: reaches_somebody(link))
    with ending(second), connect(address) as other:
        trip(other.breaker("service"))
        eventually(lambda: seen == [(sg.State.CLOSED, sg.State.OPEN)])


def reaches_somebody(link: Link) -> bool:
    """A manager is at the other end of every connection, whether the link knows or not."""
    return all(events_of(socket) & WRITABLE for socket in link._sockets.values())


def test_g11_configurations_totals_and_transitions_survive_without_any_client(
    address: str,
) -> None:
    config = sg.CircuitConfig(failure_threshold=3, open_timeout=0.123456, lost_permit="ignore")
    with ending(start_manager(address)) as first:
        with connect(address) as client:
            breaker = client.breaker("service", config)
            for _ in range(7):
                breaker.execute(int)
            half_open(breaker)
            metrics = breaker.metrics()
            stats = breaker.stats()
            history = breaker.history()
            assert [change.new for change in history] == [sg.State.OPEN, sg.State.HALF_OPEN]
        end(first)
    for _ in range(3):
        with ending(start_manager(address)) as manager, connect(address) as client:
            found = client.breakers()
            assert list(found) == ["service"]
            assert timeless(found["service"]) == timeless(stats)
            assert found["service"].config == config
            assert client.breaker("service").metrics() == metrics
            assert client.breaker("service").history() == history
            end(manager)


def timeless(stats: sg.CircuitStats) -> sg.CircuitStats:
    """Without what the two clocks of a manager may show a little differently in the next one."""
    return replace(stats, last_error_at=None, state_changed_at=datetime.min)


def test_g2_failures_that_were_acknowledged_count_on_in_the_next_manager(
    address: str, client: sg.Client
) -> None:
    with ending(start_manager(address)) as first:
        breaker = client.breaker("service", failure_threshold=3, open_timeout=600.0)
        for _ in range(2):
            with pytest.raises(ConnectionError):
                breaker.execute(fail)
        client.flush(PATIENCE)
        end(first)
    with ending(start_manager(address)):
        stats = eventually(lambda: client.breakers().get("service"))
        assert (stats.state, stats.consecutive_failures) == (sg.State.CLOSED, 2)
        eventually(lambda: fails(breaker))
        assert eventually(lambda: breaker.state) is sg.State.OPEN


def fails(breaker: sg.Breaker) -> bool:
    """A call fails that a manager has let run."""
    try:
        breaker.execute(fail)
    except ConnectionError:
        return True
    except sg.ManagerUnavailableError:
        return False
    return False


# -- G10: totals -----------------------------------------------------------------------------------

Counted = tuple[int, int]


def work(said: Any, address: str, consistency: str, ending_: Any, failing: int) -> None:
    """Call until told to end; say how many calls succeeded and failed, by our own count."""
    successes = failures = 0
    with sg.connect(address, acquire_timeout=0.05, manager_loss="local") as client:
        breaker = client.breaker(
            "service", failure_threshold=5, open_timeout=0.02, consistency=consistency
        )
        number = 0
        while not ending_.is_set():
            number += 1
            try:
                if number % failing:
                    breaker.execute(int)
                    successes += 1
                else:
                    breaker.execute(fail)
            except ConnectionError:
                failures += 1
            except sg.CallNotPermittedError:
                ending_.wait(0.001)
        # What it has counted by itself it hands over with the first call that a manager decides.
        while client.standby.active:
            with contextlib.suppress(sg.CallNotPermittedError):
                breaker.execute(int)
                successes += 1
        client.flush(PATIENCE)
    said.put((successes, failures))


@pytest.mark.parametrize(
    ("method", "consistency"), [("fork", "leased"), ("fork", "strict"), ("spawn", "leased")]
)
def test_g10_totals_are_what_the_workers_counted_over_kills_under_load(
    address: str, method: str, consistency: str
) -> None:
    context = multiprocessing.get_context(method)
    said, finish = context.Queue(), context.Event()
    workers = [
        context.Process(target=work, args=(said, address, consistency, finish, failing))
        for failing in (3, 7, 50)
    ]
    with contextlib.ExitStack() as stack:
        manager = start_manager(address)
        for worker in workers:
            worker.start()
            stack.callback(worker.join, PATIENCE)
            stack.callback(worker.kill)
        seen = 0
        for _ in range(5):
            seen = eventually(lambda: total(address, more_than=seen))  # noqa: B023
            end(manager)
            manager = start_manager(address)
        stack.callback(end, manager)
        eventually(lambda: total(address, more_than=seen))
        finish.set()
        counted: list[Counted] = [said.get(timeout=PATIENCE) for _ in workers]
        for worker in workers:
            worker.join(PATIENCE)
        with connect(address) as client:
            stats = client.stats("service")
        assert (stats.total_successes, stats.total_failures) == (
            sum(successes for successes, _ in counted),
            sum(failures for _, failures in counted),
        )
        assert stats.in_flight == 0
    said.close()
    said.join_thread()


def total(address: str, *, more_than: int) -> int:
    """How many calls the manager has counted, once that is a good many more; else 0."""
    try:
        with connect(address) as client:
            found = client.breakers().get("service")
    except sg.ManagerUnavailableError:
        return 0
    if found is None:
        return 0
    calls = found.total_successes + found.total_failures
    return calls if calls >= more_than + 100 else 0


def test_an_orderly_stop_and_start_keeps_everything_and_counts_nothing_twice(
    address: str, client: sg.Client
) -> None:
    with ending(start_manager(address)) as first:
        breaker = client.breaker("service")
        for _ in range(100):
            breaker.execute(int)
        held = breaker.acquire()
        first.send_signal(signal.SIGTERM)
        assert first.wait(PATIENCE) == 0
    assert [path.name for path in journal_of(address).parent.glob("*.journal*")] == ["m.journal"]
    with ending(start_manager(address)):
        held.failure("late")
        client.flush(PATIENCE)
        stats = breaker.stats()
        assert (stats.total_successes, stats.total_failures, stats.in_flight) == (100, 1, 0)
        assert (stats.consecutive_failures, breaker.metrics().stale_reports) == (1, 0)


def test_what_comes_with_the_order_to_stop_is_saved(address: str) -> None:
    with (
        ending(start_manager(address)) as first,
        connect(address) as client,
    ):
        breaker = client.breaker("service", consistency="strict")
        permits = [breaker.acquire() for _ in range(20)]
        link = client.link()
        assert link is not None
        with stopped(first.pid):
            for permit in permits:
                permit.success()
            eventually(lambda: link._session._reports.sent == 20)
            first.send_signal(signal.SIGTERM)
        assert first.wait(PATIENCE) == 0
    # The client has gone, so nobody sends anything again.
    with ending(start_manager(address)), connect(address) as other:
        assert other.stats("service").total_successes == 20


CORRECTED: Final = """
import sqlite3, sys, time
from switchgear.address import Address
from switchgear.manager.server import Server
place = Address.parse(sys.argv[1])
time_of_day = time.time
time.time = lambda: 0.0  # before the machine knows it
server = Server(place)
time.time = time_of_day
server._wait = lambda: None
server._turn()
server._close()
((offset,),) = sqlite3.connect(place.journal_path).execute("SELECT utc_offset FROM life")
print(abs(time.time() - time.monotonic() - offset) < 1.0)
"""


def test_the_journal_knows_the_time_of_day_as_it_was_corrected(address: str) -> None:
    done = run_script(CORRECTED, address)
    assert (done.stdout, done.stderr) == ("True\n", "")


SLEEPER: Final = """
import sys
import switchgear as sg
with sg.connect(sys.argv[1], acquire_timeout=10.0, manager_loss="reject") as client:
    breaker = client.breaker("service", failure_threshold=100)
    for _ in range(50):
        breaker.execute(int)
    client.flush()
    for _ in range(50):
        breaker.execute(int)
    print("called", flush=True)
    sys.stdin.readline()
    client.flush(20.0)
    print("flushed", flush=True)
    sys.stdin.readline()
"""


def test_a_client_that_was_stopped_over_the_restart_is_counted_once(address: str) -> None:
    with (
        ending(start_manager(address)) as first,
        ending(start_script(SLEEPER, address)) as sleeper,
    ):
        assert read_line(sleeper) == "called"
        with stopped(sleeper.pid):
            end(first)
            second = start_manager(address)
            with connect(address) as client:
                assert client.stats("service").total_successes >= 50
        with ending(second):
            assert sleeper.stdin is not None
            sleeper.stdin.write(b"\n")
            assert read_line(sleeper) == "flushed"
            with connect(address) as client:
                assert client.stats("service").total_successes == 100


# -- files that are of no use, or cannot be written ------------------------------------------------


def test_a_damaged_journal_is_kept_and_said_so_and_the_manager_starts(
    address: str, client: sg.Client, tmp_path: Path
) -> None:
    with ending(start_manager(address)) as first:
        trip(client.breaker("service", open_timeout=600.0))
        end(first)
    journal = journal_of(address)
    Path(f"{journal}-wal").unlink()
    journal.write_bytes(b"\xff" * 10_000)
    log = tmp_path / "log"
    with ending(start_manager(address, log=log)) as second, connect(address) as other:
        text = log.read_text()
        (kept,) = [path for path in journal.parent.glob("m.journal.2*")]
        assert kept.read_bytes() == b"\xff" * 10_000
        assert text.count(str(kept)) == 1
        trip(client.breaker("service", open_timeout=600.0))
        end(second)
    # And what the second one wrote is there.
    with ending(start_manager(address)), connect(address) as other:
        assert other.stats("service").state is sg.State.OPEN


def test_a_journal_that_another_program_has_locked_is_a_clear_error(address: str) -> None:
    with ending(start_manager(address)) as first:
        first.send_signal(signal.SIGTERM)
        first.wait(PATIENCE)
    journal = journal_of(address)
    with contextlib.closing(sqlite3.connect(journal, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(sg.ConfigError, match=r"another program has the journal .* locked"):
            sg.Manager(address).start()
    assert [path.name for path in journal.parent.glob("*.journal*")] == ["m.journal"]
    with ending(start_manager(address)):
        pass


RETRY: Final = 0.05
IMPATIENT: Final = f"""
from switchgear.manager import journal, run
journal._RETRY = journal._RETRY_MAX = {RETRY}
run.main()
"""
ROOM: Final = 12 * 1024  # bytes: so much of the log of a journal does not begin it anew


def test_g9_a_full_disk_costs_no_call_and_one_line_and_is_written_again(
    address: str, client: sg.Client, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with ending(start_manager(address, program=("-c", IMPATIENT), log=log)) as first:
        breaker = client.breaker("service", failure_threshold=3, open_timeout=600.0)
        breaker.execute(int)
        client.flush(PATIENCE)
        _, hard = resource.prlimit(first.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(first.pid, resource.RLIMIT_FSIZE, (ROOM, hard))
        eventually(lambda: call_and_flush(client, breaker) and "cannot write" in log.read_text())
        enough = time.monotonic() + 20 * RETRY  # for ten more times at least
        eventually(lambda: call_and_flush(client, breaker) and time.monotonic() > enough)
        trip(breaker)
        before = breaker.stats()
        resource.prlimit(first.pid, resource.RLIMIT_FSIZE, (hard, hard))
        eventually(lambda: "is written again" in log.read_text())
        end(first)
    text = log.read_text()
    assert text.count("cannot write the journal") == 1
    assert text.count("is written again") == 1
    with ending(start_manager(address)), connect(address) as other:
        after = other.stats("service")
        assert (after.state, after.generation) == (sg.State.OPEN, before.generation)
        assert after.total_successes == before.total_successes > 10


def call_and_flush(client: sg.Client, breaker: sg.Breaker) -> bool:
    breaker.execute(int)
    client.flush(PATIENCE)
    return True


# -- what was told is saved ------------------------------------------------------------------------

DYING: Final = """
import os, signal, time
from switchgear.manager import journal, run
write = journal.Journal.write
def die(self, changes):
    if changes.{what}:
        if "{when}" == "after":
            write(self, changes)
        time.sleep(0.3)  # for all that has been sent, if anything, to arrive
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, changes)
journal.Journal.write = die
run.main()
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_g10_nobody_is_told_of_a_report_that_is_not_saved(
    address: str, client: sg.Client, when: str
) -> None:
    program = ("-c", DYING.format(what="sessions", when=when))
    with ending(start_manager(address, program=program)) as first:
        breaker = client.breaker("service", failure_threshold=2, open_timeout=600.0)
        permit = breaker.acquire()
        permit.failure("down")
        first.wait(PATIENCE)
        assert permit.verdict is None
    with ending(start_manager(address)):
        client.flush(PATIENCE)
        stats = breaker.stats()
        assert (stats.total_failures, stats.consecutive_failures) == (1, 1)
        assert permit.verdict in (None, sg.Verdict.COUNTED)  # None: Welcome says that it was


@pytest.mark.parametrize("when", ["before", "after"])
def test_g1_nobody_is_told_of_a_transition_that_is_not_saved(
    address: str, client: sg.Client, when: str
) -> None:
    seen: list[sg.State] = []
    program = ("-c", DYING.format(what="events", when=when))
    with ending(start_manager(address, program=program)) as first:
        breaker = client.breaker(
            "service",
            failure_threshold=1,
            open_timeout=600.0,
            on_state_change=lambda name, old, new: seen.append(new),
        )
        breaker.execute(int)
        with pytest.raises(ConnectionError):
            breaker.execute(fail)
        first.wait(PATIENCE)
        assert seen == []
        with contextlib.suppress(sg.ManagerUnavailableError):
            breaker.execute(int)  # unless it had heard that the circuit is open
    with ending(start_manager(address)), connect(address) as other:
        client.flush(PATIENCE)
        assert eventually(lambda: seen) == [sg.State.OPEN]
        stats = other.stats("service")
        assert (stats.state, stats.generation, stats.total_failures) == (sg.State.OPEN, 2, 1)
        breaker.reset()
        eventually(lambda: len(seen) > 1)
    assert seen == [sg.State.OPEN, sg.State.CLOSED]
