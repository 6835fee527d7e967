"""A signal handler that raises interrupts a caller anywhere; nothing is lost by that."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

import pytest

import switchgear as sg
from switchgear.client import client as client_module
from switchgear.client.claim import Claim
from switchgear.client.link import Link
from switchgear.client.session import CONTROL, DATA, Session

from .conftest import ACQUIRE_TIMEOUT, PATIENCE, connect, eventually, run_script

pytestmark = [
    pytest.mark.process,
    # A permit that was interrupted between being granted and being held goes back with one.
    pytest.mark.filterwarnings("ignore:a permit for circuit:ResourceWarning"),
    pytest.mark.timeout(method="thread"),  # the other method wants SIGALRM for itself
]

INTERVAL: Final = 0.002  # seconds between two signals
DURATION: Final = 3.0  # seconds of calls under them, and longer on a slow machine: until
ENOUGH: Final = 100  # of them were interrupted, and as many were not


class Interrupted(Exception):
    """What the handler raises."""


class Train:
    """Signals that come every INTERVAL and raise in the main thread, while they are armed."""

    def __init__(self) -> None:
        self.hits = 0
        self.armed = False

    def arrive(self, number: int, frame: FrameType | None) -> None:
        if self.armed:
            self.hits += 1
            raise Interrupted


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Iterator[Train]:
    train = Train()
    # It raises in finalizers too, where nobody can catch it.
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    previous = signal.signal(signal.SIGALRM, train.arrive)
    signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)
    try:
        yield train
    finally:
        train.armed = False
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, previous)


def ends(train: Train, call: Callable[[], object]) -> bool:
    """Make the call with the train armed, and say whether it came to its end."""
    try:
        try:
            train.armed = True
            call()
        finally:
            train.armed = False
    except (Interrupted, sg.TooManyRequestsError):
        return False
    return True


def stats_of(breaker: sg.Breaker) -> sg.CircuitStats:
    """What the manager says as soon as it comes to it: the train may have left it much to do."""

    def look() -> sg.CircuitStats | None:
        try:
            return breaker.stats()
        except sg.ManagerUnavailableError:
            return None

    stats = eventually(look)
    assert stats is not None
    return stats


def call_under(train: Train, breaker: sg.Breaker) -> tuple[int, int, int]:
    """Calls begun, calls whose function ran to its end, calls that returned."""
    ran = [0]
    begun = returned = 0
    deadline = time.monotonic() + DURATION

    def work() -> None:
        ran[0] += 1

    while time.monotonic() < deadline or min(train.hits, returned) < ENOUGH:
        begun += 1
        returned += ends(train, lambda: breaker.execute(work))
    return begun, ran[0], returned


def test_no_permit_leaks_and_no_call_is_lost_under_a_train_of_signals(
    manager: sg.Manager, train: Train
) -> None:
    # So high that the failures by interrupted calls cannot open it.
    breaker = manager.breaker("service", consistency="strict", failure_threshold=1_000_000)
    assert stats_of(breaker).total_requests == 0  # and the connection is there
    begun, ran, returned = call_under(train, breaker)
    eventually(lambda: stats_of(breaker).in_flight == 0)
    stats = stats_of(breaker)
    # A call that was interrupted after its function may count as a success or as none.
    assert returned <= stats.total_successes <= ran
    assert stats.total_requests <= begun
    ended = stats.total_successes + stats.total_failures + stats.total_neutral
    assert returned <= ended <= begun
    assert stats.total_rejected == 0
    for _ in range(100):
        breaker.execute(int)
    assert breaker.stats().total_successes == stats.total_successes + 100


def test_no_probe_leaks_under_a_train_of_signals(manager: sg.Manager, train: Train) -> None:
    breaker = manager.breaker(
        "service",
        failure_threshold=1,
        success_threshold=1_000_000,
        open_timeout=0.001,
        lost_permit="ignore",
    )
    with pytest.raises(ConnectionError), breaker:
        raise ConnectionError
    eventually(lambda: breaker.state is sg.State.HALF_OPEN)
    deadline = time.monotonic() + DURATION
    admitted = 0
    while time.monotonic() < deadline or min(train.hits, admitted) < ENOUGH:
        admitted += ends(train, lambda: breaker.acquire().success())
    eventually(lambda: stats_of(breaker).in_flight == 0)
    assert breaker.metrics().permits_lost == 0


def test_a_permit_goes_back_from_an_idle_process_when_a_handler_raises_in_its_finalizer(
    manager: sg.Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(claim: Claim) -> None:
        raised.append(True)
        raise Interrupted

    raised: list[bool] = []
    monkeypatch.setattr(Claim, "__del__", raises)
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)
    with connect(manager.address) as idle:
        breaker = idle.breaker("service", consistency="strict")
        breaker.execute(int)
        idle.flush()  # so that nothing else comes from the manager
        raised.clear()
        link = idle.link()
        assert link is not None
        claim = link.acquire("service", ACQUIRE_TIMEOUT)
        eventually(lambda: link._asleep)
        del claim
        assert raised
        eventually(lambda: manager.breaker("service").stats().total_neutral == 1)
    assert manager.breaker("service").stats().in_flight == 0


def test_the_calls_of_other_threads_are_undisturbed(manager: sg.Manager, train: Train) -> None:
    breaker = manager.breaker("service", consistency="strict", failure_threshold=1_000_000)
    other = manager.breaker("other", consistency="strict")
    errors: list[BaseException] = []
    counts: list[int] = []
    over = threading.Event()

    def work() -> None:
        calls = 0
        try:
            while not over.is_set():
                other.execute(int)
                calls += 1
        except BaseException as error:
            errors.append(error)
        counts.append(calls)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    call_under(train, breaker)
    over.set()
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive()
    assert errors == []
    stats = stats_of(other)
    assert (stats.total_successes, stats.total_failures, stats.in_flight) == (sum(counts), 0, 0)
    eventually(lambda: stats_of(breaker).in_flight == 0)


def test_under_a_lease_each_call_counts_once_at_most_and_the_lease_comes_back(
    manager: sg.Manager, train: Train
) -> None:
    breaker = manager.breaker("service", failure_threshold=1_000_000)
    breaker.execute(int)
    begun, ran, returned = call_under(train, breaker)
    stats = stats_of(breaker)
    # A call interrupted in its function failed with Interrupted; after it, it may count or not.
    assert 1 + returned <= stats.total_successes <= 1 + ran
    assert stats.total_failures <= begun - returned
    # Permits that were asked for while no lease held, and came when nobody waited any more.
    eventually(lambda: stats_of(breaker).in_flight == 0)

    def runs_unasked() -> bool:
        breaker.execute(int)
        return time.monotonic() < breaker._gate.lease.term.until

    eventually(runs_unasked)  # a failure that was interrupted before its report is forgotten


# Blocks a signal that would end it, as one does who holds a lock that other processes wait for.
BLOCKS: Final = """
import os, signal, sys, threading, time
from pathlib import Path
import switchgear as sg

def blocking(thread):
    text = (thread / "status").read_text()
    blocked = int(text.partition("SigBlk:")[2].split()[0], 16)
    return bool(blocked >> signal.SIGTERM - 1 & 1)

called = threading.Event()
in_a_callback = []
def note(*change):
    in_a_callback.append(blocking(Path("/proc/thread-self")))
    called.set()

client = sg.connect(sys.argv[1], acquire_timeout=5.0)
breaker = client.breaker("service", failure_threshold=1, on_state_change=note)
breaker.execute(int)
breaker.acquire().failure("down")
assert called.wait(20.0)
ours = {thread for thread in Path("/proc/self/task").iterdir() if int(thread.name) != os.getpid()}
deadline = time.monotonic() + 5.0
while not all(map(blocking, ours)) and time.monotonic() < deadline:
    pass  # a callback's thread takes signals until it has returned
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(os.getpid(), signal.SIGTERM)
breaker.stats()
print(signal.SIGTERM in signal.sigpending(), in_a_callback)
"""


def test_a_signal_that_the_application_blocks_does_not_come_through_our_threads(
    manager: sg.Manager,
) -> None:
    done = run_script(BLOCKS, manager.address)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["True", "[False]"]


def test_a_connection_whose_greeting_a_handler_interrupts_is_greeted_all_the_same(
    manager: sg.Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted: list[int] = []

    def connected(self: Session, connection: int, now: float) -> None:
        if connection not in interrupted:
            interrupted.append(connection)
            raise Interrupted
        greet(self, connection, now)

    greet = Session.connected
    monkeypatch.setattr(Session, "connected", connected)

    def calls() -> bool:
        try:
            return breaker.execute(bool) is False and breaker.stats().total_successes > 0
        except (Interrupted, sg.ManagerUnavailableError):
            return False

    with connect(manager.address) as client:
        breaker = client.breaker("service", consistency="strict")
        eventually(calls)
    assert sorted(interrupted) == [DATA, CONTROL]


# -- handlers that use the package, where they could wait for what they interrupt ------------------


class Handler:
    """Stands in for a signal handler that comes right before a function is called, once."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.handles: Callable[[], object] | None = None
        function = getattr(owner, name)

        def interrupted(*args: object) -> object:
            handle, self.handles = self.handles, None
            if handle is not None:
                handle()
            return function(*args)

        patch.setattr(owner, name, interrupted)


def ends_by_itself(function: Callable[[], object]) -> bool:
    """Whether it does. Else its thread is left behind, and the test is to fail."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return not thread.is_alive()


def links() -> int:
    return sum(thread.name == "switchgear-io" for thread in threading.enumerate())


# What runs between the look whether there is a connection, and its being there.
@pytest.mark.parametrize(
    ("owner", "name"),
    [(client_module, "_close_at_exit"), (client_module, "Dispatcher"), (Link, "declare")],
)
def test_a_handler_may_call_while_the_first_call_connects_and_there_is_one_connection(
    manager: sg.Manager, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    before = links()
    with sg.connect(manager.address, acquire_timeout=ACQUIRE_TIMEOUT) as client:
        breaker = client.breaker("service")
        handler = Handler(monkeypatch, owner, name)
        handler.handles = lambda: breaker.execute(int)
        assert ends_by_itself(lambda: breaker.execute(int))
        assert breaker.stats().total_successes == 2
        assert links() == before + 1


def test_a_handler_may_close_a_client_while_it_connects(
    manager: sg.Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = links()
    client = connect(manager.address)
    breaker = client.breaker("service")
    caught: list[BaseException] = []

    def call() -> None:
        try:
            breaker.execute(int)
        except sg.BreakerError as error:
            caught.append(error)

    Handler(monkeypatch, Link, "declare").handles = client.close
    assert ends_by_itself(call)
    assert [str(error) for error in caught] == ["this client is closed"]
    eventually(lambda: links() == before)


def test_a_handler_may_close_a_client_in_the_middle_of_a_turn(
    manager: sg.Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = links()
    client = sg.connect(manager.address)
    breaker = client.breaker("service", consistency="strict")
    breaker.execute(int)
    results: list[int] = []
    handler = Handler(monkeypatch, Session, "acquire")
    handler.handles = client.close
    assert ends_by_itself(lambda: results.append(breaker.execute(int)))
    assert results == [0]
    eventually(lambda: links() == before)
