"""Life without a manager, seen from real processes: `manager_loss="local"`."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq

import switchgear as sg
from switchgear.address import Address
from switchgear.manager.actor import Actor, Send
from switchgear.manager.sessions import DATA, Peer
from switchgear.wire import TO_DATA, Hello, Message, Report, decode, encode

from .conftest import PATIENCE, connect, end, ending, eventually, fail, start_manager, stopped

pytestmark = pytest.mark.process

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def client(address: str) -> Iterator[sg.Client]:
    """A client whose calls wait for the manager 0.2 s at most."""
    with sg.connect(address, manager_loss="local", acquire_timeout=0.2) as client:
        yield client


def runs(breaker: sg.Breaker) -> bool:
    try:
        breaker.execute(int)
    except sg.CallNotPermittedError:
        return False
    return True


def answers(breaker: sg.Breaker) -> bool:
    """A manager decides, and not we."""
    return runs(breaker) and not breaker._client.standby.active


@pytest.mark.parametrize("consistency", ["leased", "strict"])
def test_g9_calls_go_on_when_the_manager_is_killed_and_only_the_first_one_waits(
    address: str, client: sg.Client, consistency: str
) -> None:
    breaker = client.breaker("service", consistency=consistency)
    with ending(start_manager(address)) as manager:
        eventually(lambda: answers(breaker))
        end(manager)
        waits = []
        eventually(lambda: (timed(breaker, waits), client.standby.active)[1])
        for _ in range(50):
            timed(breaker, waits)
    waits.sort()
    assert waits[-1] >= 0.2 * 0.9
    assert waits[-2] < 0.2


@pytest.mark.parametrize("consistency", ["leased", "strict"])
def test_a_circuit_that_was_open_lets_one_probe_through_when_its_time_is_over(
    address: str, client: sg.Client, consistency: str
) -> None:
    breaker = client.breaker(
        "service", failure_threshold=1, open_timeout=0.3, consistency=consistency
    )
    with ending(start_manager(address)) as manager:
        eventually(lambda: answers(breaker))
        with pytest.raises(ConnectionError):
            breaker.execute(fail)
        assert not runs(breaker)
        end(manager)
    probe = eventually(lambda: acquired(breaker))
    assert not runs(breaker)
    probe.success()
    assert runs(breaker)


def acquired(breaker: sg.Breaker) -> sg.Permit | None:
    try:
        return breaker.acquire()
    except sg.CallNotPermittedError:
        return None


def timed(breaker: sg.Breaker, waits: list[float]) -> None:
    begun = time.monotonic()
    breaker.execute(int)
    waits.append(time.monotonic() - begun)


def test_a_circuit_nobody_has_ever_heard_of_is_protected_too(client: sg.Client) -> None:
    breaker = client.breaker("service", failure_threshold=2, open_timeout=600.0)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            breaker.execute(fail)
    with pytest.raises(sg.CircuitOpenError) as caught:
        breaker.execute(pytest.fail, "it ran")
    assert caught.value.last_error == "ConnectionError: down"

    async def nothing() -> None:
        pytest.fail("it ran")

    with pytest.raises(sg.CircuitOpenError):
        asyncio.run(breaker.execute_async(nothing))


@pytest.mark.parametrize("consistency", ["leased", "strict"])
def test_an_open_circuit_stays_open_when_its_manager_is_killed(
    address: str, client: sg.Client, consistency: str
) -> None:
    breaker = client.breaker(
        "service", failure_threshold=1, open_timeout=600.0, consistency=consistency
    )
    with ending(start_manager(address)) as manager:
        eventually(lambda: answers(breaker))
        with pytest.raises(ConnectionError):
            breaker.execute(fail)
        with pytest.raises(sg.CircuitOpenError):
            breaker.execute(int)
        end(manager)
    for _ in range(3):
        with pytest.raises(sg.CircuitOpenError) as caught:
            breaker.execute(pytest.fail, "it ran")
        assert caught.value.retry_after == pytest.approx(600.0, abs=60.0)


def test_what_was_counted_meanwhile_reaches_the_next_manager_once(
    address: str, client: sg.Client
) -> None:
    breaker = client.breaker("service", failure_threshold=10, open_timeout=600.0)
    for number in range(100):
        if number % 10 == 9:
            with pytest.raises(ConnectionError):
                breaker.execute(fail)
        else:
            breaker.execute(int)
    straddling = breaker.acquire()
    with ending(start_manager(address)):
        while not answers(breaker):
            pass
        straddling.failure("late")
        client.flush(PATIENCE)
        calls = breaker.stats().total_successes
        stats = breaker.stats()
        assert stats.total_failures == 11
        assert (stats.state, stats.consecutive_failures) == (sg.State.CLOSED, 0)
        assert stats.last_error == "late"
        assert straddling.verdict is sg.Verdict.STALE
        assert calls >= 90
        assert stats.total_requests == calls + 11


def test_what_was_counted_meanwhile_is_told_without_another_call(
    address: str, client: sg.Client
) -> None:
    breaker = client.breaker("service")
    for _ in range(10):
        breaker.execute(int)

    def counted(other: sg.Client) -> int:
        stats = other.breakers().get("service")
        return 0 if stats is None else stats.total_successes

    with ending(start_manager(address)), connect(address) as other:
        eventually(lambda: counted(other) == 10)


def test_the_configuration_is_the_managers_where_this_process_has_declared_none(
    address: str, client: sg.Client
) -> None:
    breaker = client.breaker("service")
    with ending(start_manager(address)) as manager:
        with sg.connect(address) as other:
            declared = other.breaker("service", failure_threshold=2, consistency="strict")
            eventually(lambda: answers(declared))
        eventually(lambda: answers(breaker))
        end(manager)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            breaker.execute(fail)
    with pytest.raises(sg.CircuitOpenError):
        breaker.execute(pytest.fail, "it ran")


def test_threads_share_the_local_circuit(client: sg.Client) -> None:
    breaker = client.breaker("service", failure_threshold=5, open_timeout=600.0)
    outcomes: list[str | None] = []

    def call() -> str | None:
        try:
            breaker.execute(fail)
        except ConnectionError:
            return "failed"
        except sg.CircuitOpenError:
            return "rejected"

    def work() -> None:
        outcomes.extend(call() for _ in range(20))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(outcomes) == 80
    assert 5 <= outcomes.count("failed") <= 5 + 3  # and those already under way


def test_a_forked_child_hands_over_its_own_calls_and_not_its_parents(
    address: str, client: sg.Client
) -> None:
    breaker = client.breaker("service", failure_threshold=1_000)
    for _ in range(10):
        breaker.execute(int)
    with ending(start_manager(address)):
        child = FORK.Process(target=answers, args=(breaker,))
        child.start()
        child.join(PATIENCE)
        assert child.exitcode == 0
        eventually(lambda: answers(breaker))
        client.flush(PATIENCE)
        assert breaker.stats().total_successes in range(12, 12 + 2_000)
        assert breaker.metrics().stale_reports >= 10


def test_a_stopped_manager_is_stood_in_for_and_then_asked_again(
    address: str, client: sg.Client
) -> None:
    breaker = client.breaker("service", consistency="strict", failure_threshold=1_000)
    with ending(start_manager(address)) as manager:
        eventually(lambda: answers(breaker))
        with stopped(manager.pid):
            for _ in range(20):
                breaker.execute(int)
            assert client.standby.active
        eventually(lambda: answers(breaker))
        client.flush(PATIENCE)
        assert breaker.stats().total_successes >= 21
        assert breaker.stats().in_flight == 0


@pytest.mark.parametrize("consistency", ["leased", "strict"])
def test_logging_that_raises_costs_no_call_its_result_and_ends_no_thread(
    address: str, client: sg.Client, monkeypatch: pytest.MonkeyPatch, consistency: str
) -> None:
    def handle(record: logging.LogRecord) -> None:
        said.append(record.getMessage())
        raise ValueError("the pipe is gone")

    said: list[str] = []
    breaker = client.breaker("service", consistency=consistency)
    with ending(start_manager(address)) as manager:
        eventually(lambda: answers(breaker))
        monkeypatch.setattr(logging.getLogger("switchgear"), "handle", handle)
        with stopped(manager.pid):
            eventually(lambda: runs(breaker) and client.standby.active)
        eventually(lambda: not client.standby.active)  # without a call: the thread sees to it
    assert [message.partition("m ")[2] for message in said] == ["does not answer", "answers again"]


def test_an_idle_process_asks_again_when_its_outcomes_are_not_acknowledged(address: str) -> None:
    """The manager here is an actor that saves nothing, so it acknowledges nothing either."""
    actor, heard = Actor(1), Counter[type[Message]]()

    def serve() -> None:
        if router.poll(10):
            sender, *frames = router.recv_multipart()
            peer = Peer(DATA, sender)
            for frame in filter(None, frames):  # an empty one says that a connection is new
                message = decode(frame, TO_DATA)
                heard[type(message)] += 1
                answer(actor.receive(peer, message, time.monotonic()))

    def answer(sends: list[Send]) -> None:
        for send in sends:
            router.send_multipart([send.peer.address, encode(send.message)])

    def served(look: Callable[[], bool]) -> bool:
        serve()
        return look()

    Address.parse(address).make_directory()
    with (
        zmq.Context() as context,
        context.socket(zmq.ROUTER) as router,
        sg.connect(address, acquire_timeout=PATIENCE) as client,
        ThreadPoolExecutor(1) as caller,
    ):
        router.bind(f"ipc://{Address.parse(address).data_path}")
        # Its own turn reports a failure, while the thread that would ask again sleeps.
        call = caller.submit(client.breaker("a").execute, fail)
        eventually(lambda: served(call.done))
        eventually(lambda: served(lambda: heard[Report] == 1))
        assert heard[Hello] == 1
        eventually(lambda: served(lambda: heard[Hello] == 2))
        actor.save()
        answer(actor.saved(time.monotonic()))
        client.flush()
        assert heard[Report] == 1
