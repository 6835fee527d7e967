"""The contract's guarantees, seen from real processes. Each test names the one it can see break."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnContext
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from typing import Any, Final

import pytest

import switchgear as sg
from switchgear.address import Address
from switchgear.client.lease import Gate
from switchgear.client.link import Claim, Link
from switchgear.client.session import Grant

from .conftest import ACQUIRE_TIMEOUT, PATIENCE, connect, eventually, fail, half_open, stopped, trip

pytestmark = pytest.mark.process

# Not fork: a child is to have nothing of ours but what it is given.
CONTEXT: Final[SpawnContext] = multiprocessing.get_context("spawn")

Change = tuple[str, str]


class Processes:
    """Child processes of a test, with a queue for what they have to say."""

    def __init__(self) -> None:
        self.said: Queue[Any] = CONTEXT.Queue()
        self._all: list[Any] = []

    def start(self, function: Callable[..., None], *arguments: object) -> Any:
        process = CONTEXT.Process(target=function, args=(self.said, *arguments))
        process.start()
        self._all.append(process)
        return process

    def hear(self) -> Any:
        return self.said.get(timeout=PATIENCE)

    def join(self) -> None:
        for process in self._all:
            process.join(PATIENCE)
            assert process.exitcode == 0

    def end(self) -> None:
        for process in self._all:
            if process.is_alive():
                process.kill()
            process.join(PATIENCE)
        self.said.close()
        self.said.join_thread()


@pytest.fixture
def processes() -> Any:
    processes = Processes()
    yield processes
    processes.end()


# -- G1: one order of events for everybody ---------------------------------------------------------


def record_changes(said: Queue[Any], breaker: sg.Breaker, wanted: int) -> None:
    """Say "ready", then every change of state that was seen, once there are enough."""
    changes: list[Change] = []
    enough = threading.Event()

    def record(name: str, old: sg.State, new: sg.State) -> None:
        changes.append((str(old), str(new)))
        if len(changes) == wanted:
            enough.set()

    breaker.on_state_change(record)
    said.put("ready")
    enough.wait(PATIENCE)
    said.put(changes)


def test_g1_every_process_sees_every_change_in_the_managers_order(
    manager: sg.Manager, processes: Processes
) -> None:
    heals = sg.CircuitConfig(failure_threshold=1, success_threshold=1, open_timeout=0.05)
    stays_open = sg.CircuitConfig(failure_threshold=1, success_threshold=1, open_timeout=600.0)
    breaker = manager.breaker("service", heals)
    rounds = 10
    a_round: list[Change] = [
        ("closed", "open"),  # trip
        ("open", "half-open"),  # time
        ("half-open", "closed"),  # success
        ("closed", "open"),  # trip
        ("open", "closed"),  # reset
    ]
    for _ in range(4):
        processes.start(record_changes, breaker, rounds * len(a_round))
    for _ in range(4):
        assert processes.hear() == "ready"
    for _ in range(rounds):
        manager.breaker("service", heals)
        half_open(breaker)
        breaker.execute(int)
        manager.breaker("service", stays_open)
        trip(breaker)
        breaker.reset()
    seen = [processes.hear() for _ in range(4)]
    assert seen[0] == a_round * rounds
    assert all(changes == seen[0] for changes in seen)
    processes.join()


def test_g1_a_client_that_starts_stops_or_reads_moves_nothing(manager: sg.Manager) -> None:
    breaker = manager.breaker("service", failure_threshold=1, open_timeout=600.0)
    trip(breaker)
    before = breaker.stats()
    for _ in range(5):
        with connect(manager.address) as client:
            other = client.breaker("service")
            other.metrics()
            client.breakers()
            assert other.state is sg.State.OPEN
    after = breaker.stats()
    assert after.generation == before.generation
    assert after.state_changed_at == before.state_changed_at
    assert after.config == before.config


# -- G2: the threshold is exact --------------------------------------------------------------------


def fail_once(said: Queue[Any], breaker: sg.Breaker, barrier: Barrier, rounds: int) -> None:
    """In every round: acquire a permit, wait for the others, and report a failure."""
    for _ in range(rounds):
        said.put(breaker.state)  # who has read it runs nothing under a lease of before
        permit = breaker.acquire()
        barrier.wait(PATIENCE)
        permit.failure("down")
        said.put(breaker.state)
        barrier.wait(PATIENCE)


def test_g2_the_threshold_is_exact_across_processes(
    manager: sg.Manager, processes: Processes
) -> None:
    breaker = manager.breaker("service", failure_threshold=5, open_timeout=600.0)
    rounds = 5
    barrier = CONTEXT.Barrier(5)
    for _ in range(4):
        processes.start(fail_once, breaker, barrier, rounds)
    for _ in range(rounds):
        barrier.wait(PATIENCE)  # all four hold a permit, and report at once
        states = [processes.hear() for _ in range(8)][4:]
        assert states == [sg.State.CLOSED] * 4
        assert breaker.stats().consecutive_failures == 4
        with pytest.raises(ConnectionError):
            breaker.execute(fail)
        stats = breaker.stats()
        assert (stats.state, stats.consecutive_failures) == (sg.State.OPEN, 0)
        breaker.reset()
        barrier.wait(PATIENCE)
    processes.join()
    assert breaker.metrics().transitions[sg.State.OPEN] == rounds
    assert breaker.stats().total_failures == rounds * 5


def test_g2_a_success_between_them_starts_the_count_again(manager: sg.Manager) -> None:
    breaker = manager.breaker("service", failure_threshold=3, open_timeout=600.0)
    with connect(manager.address) as client:
        other = client.breaker("service")
        for _ in range(2):
            with pytest.raises(ConnectionError):
                breaker.execute(fail)
        assert breaker.stats().consecutive_failures == 2  # and so they are in
        other.execute(int)
        assert other.stats().consecutive_successes == 1
        for _ in range(2):
            with pytest.raises(ConnectionError):
                breaker.execute(fail)
        assert breaker.state is sg.State.CLOSED
        with pytest.raises(ConnectionError):
            other.execute(fail)
        assert other.state is sg.State.OPEN  # asked after its own failure, which counts first
        assert breaker.state is sg.State.OPEN


# -- G3: never more probes than allowed ------------------------------------------------------------


def hammer(
    said: Queue[Any], breaker: sg.Breaker, inside: Any, highest: Any, barrier: Barrier, over: Event
) -> None:
    """Call as often as possible, and count who is in the function at once."""
    admitted = rejected = 0
    moment = threading.Event()

    def work() -> None:
        with inside.get_lock():
            inside.value += 1
            highest.value = max(highest.value, inside.value)
        moment.wait(0.001)
        with inside.get_lock():
            inside.value -= 1

    barrier.wait(PATIENCE)
    while not over.is_set():
        try:
            breaker.execute(work)
            admitted += 1
        except sg.TooManyRequestsError:  # noqa: PERF203  # one try a call is the point
            rejected += 1
    said.put((admitted, rejected))


@pytest.mark.parametrize("limit", [1, 3])
def test_g3_never_more_probes_in_flight_than_allowed(
    manager: sg.Manager, processes: Processes, limit: int
) -> None:
    breaker = manager.breaker(
        "service",
        failure_threshold=1,
        success_threshold=1_000_000_000,  # so that it stays half-open
        open_timeout=0.05,
        max_concurrent_requests=limit,
    )
    half_open(breaker)
    inside, highest = CONTEXT.Value("i", 0), CONTEXT.Value("i", 0)
    barrier, over = CONTEXT.Barrier(9), CONTEXT.Event()
    for _ in range(8):
        processes.start(hammer, breaker, inside, highest, barrier, over)
    barrier.wait(PATIENCE)
    eventually(lambda: highest.value >= limit and breaker.stats().total_successes >= 300)
    over.set()
    counts = [processes.hear() for _ in range(8)]
    processes.join()
    assert highest.value == limit
    admitted, rejected = (sum(column) for column in zip(*counts, strict=True))
    stats = breaker.stats()
    assert stats.state is sg.State.HALF_OPEN
    assert (stats.total_successes, stats.total_rejected) == (admitted, rejected)
    assert stats.in_flight == 0


# -- G4: no wedge ----------------------------------------------------------------------------------


def hold_a_permit(said: Queue[Any], breaker: sg.Breaker) -> None:
    permit = breaker.acquire()
    said.put(permit.operation)
    threading.Event().wait()


@pytest.mark.parametrize("lost_permit", ["failure", "ignore"])
def test_g4_a_probe_whose_holder_goes_silent_does_not_wedge_the_circuit(
    manager: sg.Manager, processes: Processes, lost_permit: Any
) -> None:
    breaker = manager.breaker(
        "service",
        failure_threshold=1,
        success_threshold=1,
        open_timeout=0.05,
        permit_timeout=1.0,
        lost_permit=lost_permit,
    )
    half_open(breaker)
    holder = processes.start(hold_a_permit, breaker)
    assert processes.hear()
    with stopped(holder.pid):
        with pytest.raises(sg.TooManyRequestsError):
            breaker.execute(int)
        eventually(lambda: admits(breaker))
        assert breaker.state is sg.State.CLOSED
        metrics = breaker.metrics()
        assert metrics.permits_lost == 1
        opened = 2 if lost_permit == "failure" else 1
        assert metrics.transitions[sg.State.OPEN] == opened
        os.kill(holder.pid, signal.SIGKILL)
    holder.join(PATIENCE)
    assert breaker.stats().in_flight == 0
    assert admits(breaker)


def admits(breaker: sg.Breaker) -> bool:
    try:
        breaker.execute(int)
    except sg.CallNotPermittedError:
        return False
    return True


def test_g4_a_killed_holder_of_a_probe_does_not_wedge_the_circuit(
    manager: sg.Manager, processes: Processes
) -> None:
    breaker = manager.breaker(
        "service", failure_threshold=1, success_threshold=1, open_timeout=0.05, permit_timeout=0.5
    )
    half_open(breaker)
    holder = processes.start(hold_a_permit, breaker)
    assert processes.hear()
    os.kill(holder.pid, signal.SIGKILL)
    holder.join(PATIENCE)
    eventually(lambda: admits(breaker))
    assert breaker.stats().in_flight == 0


# -- G6: fencing -----------------------------------------------------------------------------------


def test_g6_a_late_success_never_closes(manager: sg.Manager) -> None:
    breaker = manager.breaker(
        "service", failure_threshold=1, success_threshold=1, open_timeout=0.05
    )
    late = breaker.acquire()
    half_open(breaker)
    late.success()
    stats = breaker.stats()
    assert (stats.state, stats.total_successes) == (sg.State.HALF_OPEN, 1)
    assert late.verdict is sg.Verdict.STALE
    assert breaker.metrics().stale_reports == 1


def test_g6_a_late_failure_never_opens_and_never_prolongs(manager: sg.Manager) -> None:
    breaker = manager.breaker("service", failure_threshold=1, open_timeout=600.0)
    late, later, latest = breaker.acquire(), breaker.acquire(), breaker.acquire()
    trip(breaker)
    before = breaker.stats()
    late.failure("late")
    after = breaker.stats()
    assert (after.state, after.total_failures) == (sg.State.OPEN, 2)
    assert before.retry_after is not None
    assert after.retry_after is not None
    assert after.retry_after < before.retry_after
    assert after.state_changed_at == before.state_changed_at
    breaker.reset()
    later.failure("late")
    assert breaker.state is sg.State.CLOSED
    assert breaker.stats().consecutive_failures == 0
    latest.success()
    assert breaker.stats().consecutive_successes == 0


def test_g6_a_report_that_comes_after_its_permit_was_lost_is_expired(manager: sg.Manager) -> None:
    breaker = manager.breaker(
        "service",
        failure_threshold=1,
        success_threshold=1,
        open_timeout=0.05,
        permit_timeout=0.1,
        lost_permit="ignore",
    )
    half_open(breaker)
    late = breaker.acquire()
    eventually(lambda: breaker.metrics().permits_lost == 1)
    late.success()
    stats = breaker.stats()
    assert late.verdict is sg.Verdict.EXPIRED
    assert (stats.state, stats.total_successes, stats.in_flight) == (sg.State.HALF_OPEN, 1, 0)


def test_g6_a_report_held_up_in_a_stopped_process_is_stale(
    manager: sg.Manager, processes: Processes
) -> None:
    breaker = manager.breaker(
        "service", failure_threshold=1, success_threshold=1, open_timeout=0.05
    )
    there, here = CONTEXT.Pipe(duplex=False)
    holder = processes.start(succeed_when_told, breaker, there)
    assert processes.hear() == "holds"
    with stopped(holder.pid):
        here.send("go on")
        half_open(breaker)
    assert processes.hear() is sg.Verdict.STALE
    assert breaker.state is sg.State.HALF_OPEN
    processes.join()


def succeed_when_told(said: Queue[Any], breaker: sg.Breaker, told: Connection) -> None:
    permit = breaker.acquire()
    said.put("holds")
    assert told.poll(PATIENCE)
    permit.success()
    breaker.stats()
    said.put(permit.verdict)


# -- G7: read your writes --------------------------------------------------------------------------


def test_g7_a_call_after_a_failure_is_decided_with_it(manager: sg.Manager) -> None:
    breaker = manager.breaker("service", failure_threshold=3, open_timeout=600.0)
    for _ in range(30):
        for _ in range(3):
            with pytest.raises(ConnectionError):
                breaker.execute(fail)
        with pytest.raises(sg.CircuitOpenError):  # at once, not soon
            breaker.execute(int)
        breaker.reset()
        assert breaker.execute(int) == 0


def test_g7_holds_between_the_threads_of_a_process(manager: sg.Manager) -> None:
    breaker = manager.breaker("service", failure_threshold=1, open_timeout=600.0)
    wrong: list[object] = []

    def call() -> None:
        try:
            wrong.append(breaker.execute(int))
        except sg.CircuitOpenError:
            pass
        except BaseException as error:
            wrong.append(error)

    for _ in range(20):
        with pytest.raises(ConnectionError):
            breaker.execute(fail)
        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        breaker.reset()
    assert wrong == []


# -- time ------------------------------------------------------------------------------------------


def test_an_open_circuit_turns_half_open_without_traffic(manager: sg.Manager) -> None:
    turned = threading.Event()
    breaker = manager.breaker(
        "service",
        failure_threshold=1,
        open_timeout=0.3,
        on_state_change=lambda name, old, new: turned.set() if new is sg.State.HALF_OPEN else None,
    )
    with pytest.raises(ConnectionError):
        breaker.execute(fail)
    begun = time.monotonic()
    assert turned.wait(PATIENCE)  # and nobody asks anything meanwhile
    assert time.monotonic() - begun > 0.2
    stats = breaker.stats()
    assert stats.state is sg.State.HALF_OPEN
    assert stats.last_error_at is not None
    assert (stats.state_changed_at - stats.last_error_at).total_seconds() >= 0.3


# -- G9: nobody waits for a manager that is there --------------------------------------------------


def test_g9_a_call_that_comes_in_the_middle_of_a_turn_is_answered(manager: sg.Manager) -> None:
    """The caller leaves its request to the thread that is in a turn, which must not forget it."""
    breaker = manager.breaker("service")
    breaker.execute(int)
    answers: list[Claim | None] = []
    threads: list[threading.Thread] = []

    def call_meanwhile(events: object) -> None:
        # In a turn of the I/O thread: let another thread ask, and go on once it has.
        thread = threading.Thread(target=lambda: answers.append(link.acquire("service", 5.0)))
        thread.start()
        threads.append(thread)
        eventually(lambda: link._inbox)

    link = Link(Address.parse(manager.address), {"service": Gate()}, call_meanwhile, lambda: None)
    try:
        link.declare("service", None)
        assert link.subscribe(5.0)
        for number in range(1, 6):
            breaker.reset()
            eventually(lambda number=number: len(threads) == number)
            threads[-1].join(PATIENCE)
            assert len(answers) == number
        assert all(claim and isinstance(claim.answer, Grant) for claim in answers), answers
    finally:
        link.close(5.0)


def test_g9_a_caller_that_comes_back_every_few_milliseconds_is_always_answered(
    manager: sg.Manager,
) -> None:
    breaker = manager.breaker("service", consistency="strict")
    pause = threading.Event()
    longest = 0.0
    for number in range(300):
        begun = time.monotonic()
        breaker.execute(int)
        longest = max(longest, time.monotonic() - begun)
        pause.wait(0.004 + 0.001 * (number % 3))  # when the last acknowledgement is due
    assert longest < ACQUIRE_TIMEOUT / 2
    assert breaker.stats().total_successes == 300
