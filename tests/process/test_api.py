"""Every way to put a call through a breaker, on a manager that lives."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import inspect
import itertools
import pickle
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from typing import Any

import pytest

import switchgear as sg

from .conftest import ACQUIRE_TIMEOUT, connect, eventually, fail, half_open, stopped, trip

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def manager() -> Iterator[sg.Manager]:
    """One manager for all of them: to start one is most of what such a test takes."""
    with sg.Manager(acquire_timeout=ACQUIRE_TIMEOUT) as manager:
        yield manager


@pytest.fixture
def name() -> str:
    """A circuit of the test's own."""
    return f"service-{next(_numbers)}"


_numbers = itertools.count(1)


@pytest.fixture
def breaker(manager: sg.Manager, name: str) -> sg.Breaker:
    return manager.breaker(name, failure_threshold=2, success_threshold=1, open_timeout=0.05)


@pytest.fixture
def slow_to_heal(manager: sg.Manager, name: str) -> sg.Breaker:
    """A breaker that stays open for as long as a test lasts."""
    return manager.breaker(name, failure_threshold=2, open_timeout=600.0)


def totals(breaker: sg.Breaker) -> tuple[int, int, int, int]:
    """Successes, failures, neutral outcomes, rejections."""
    stats = breaker.stats()
    assert stats.in_flight == 0
    return (
        stats.total_successes,
        stats.total_failures,
        stats.total_neutral,
        stats.total_rejected,
    )


def echo(*args: object, **kwargs: object) -> tuple[tuple[object, ...], dict[str, object]]:
    return args, kwargs


async def echo_async(
    *args: object, **kwargs: object
) -> tuple[tuple[object, ...], dict[str, object]]:
    return echo(*args, **kwargs)


# -- execute ---------------------------------------------------------------------------------------


def test_execute_passes_every_argument_on_and_returns_the_result(breaker: sg.Breaker) -> None:
    result = breaker.execute(echo, 1, 2, timeout=3, function=4, name=5, cancel=6, self=7)
    assert result == ((1, 2), {"timeout": 3, "function": 4, "name": 5, "cancel": 6, "self": 7})
    assert totals(breaker) == (1, 0, 0, 0)


def test_execute_async_passes_every_argument_on_and_returns_the_result(breaker: sg.Breaker) -> None:
    result = asyncio.run(breaker.execute_async(echo_async, 1, timeout=3, function=4, self=7))
    assert result == ((1,), {"timeout": 3, "function": 4, "self": 7})
    assert totals(breaker) == (1, 0, 0, 0)


def test_execute_with_options_passes_every_argument_on(breaker: sg.Breaker) -> None:
    limited = breaker.options(timeout=600.0)
    assert limited.execute(echo, 1, timeout=3) == ((1,), {"timeout": 3})
    assert asyncio.run(limited.execute_async(echo_async, 1, timeout=3)) == ((1,), {"timeout": 3})
    assert totals(breaker) == (2, 0, 0, 0)


def test_an_exception_comes_out_as_the_object_that_was_raised(breaker: sg.Breaker) -> None:
    error = KeyError("gone")
    error.__cause__ = ValueError("because")

    def raise_it() -> None:
        raise error

    async def raise_it_async() -> None:
        raise error

    ways: list[Callable[[], object]] = [
        lambda: breaker.execute(raise_it),
        lambda: breaker.options(timeout=600.0).execute(raise_it),
        lambda: asyncio.run(breaker.execute_async(raise_it_async)),
        lambda: asyncio.run(breaker.options(timeout=600.0).execute_async(raise_it_async)),
    ]
    for way in ways:
        error.__traceback__ = None
        with pytest.raises(KeyError) as caught:
            way()
        assert caught.value is error
        assert isinstance(caught.value.__cause__, ValueError)
        frames = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert frames[-1] in ("raise_it", "raise_it_async")
        breaker.reset()
    assert totals(breaker) == (0, 4, 0, 0)


@pytest.mark.parametrize(
    "kind", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError]
)
def test_an_exception_that_stops_the_caller_is_neutral_and_gives_the_probe_back(
    breaker: sg.Breaker, kind: type[BaseException]
) -> None:
    half_open(breaker)
    error = kind()

    def stop() -> None:
        raise error

    for limited in (breaker, breaker.options(timeout=600.0)):
        with pytest.raises(kind) as caught:
            limited.execute(stop)
        assert caught.value is error
    with pytest.raises(kind) as caught, breaker:
        stop()
    assert caught.value is error
    assert breaker.state is sg.State.HALF_OPEN
    assert totals(breaker) == (0, 2, 3, 0)
    assert breaker.execute(echo) == ((), {})
    assert breaker.state is sg.State.CLOSED


def test_a_task_cancelled_from_outside_is_neutral_and_gives_the_probe_back(
    breaker: sg.Breaker,
) -> None:
    half_open(breaker)

    async def run(limited: sg.Breaker) -> None:
        begun = asyncio.Event()

        async def hang() -> None:
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(limited.execute_async(hang))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for limited in (breaker, breaker.options(timeout=600.0, cancel=sg.CancelToken())):
        asyncio.run(run(limited))
    assert breaker.state is sg.State.HALF_OPEN
    assert totals(breaker) == (0, 2, 2, 0)
    breaker.execute(echo)
    assert breaker.state is sg.State.CLOSED


def test_a_task_cancelled_while_it_waits_for_a_permit_leaves_none_out(
    breaker: sg.Breaker, manager: sg.Manager
) -> None:
    async def run() -> None:
        for turns in range(20):
            task = asyncio.create_task(breaker.execute_async(echo_async))
            for _ in range(turns % 5):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    asyncio.run(run())
    eventually(lambda: breaker.stats().in_flight == 0)


def test_a_coroutine_function_given_to_execute_is_a_type_error(breaker: sg.Breaker) -> None:
    for limited in (breaker, breaker.options(timeout=600.0)):
        with pytest.raises(TypeError, match="execute_async"):
            limited.execute(echo_async)
    assert totals(breaker) == (0, 0, 2, 0)


def test_an_open_circuit_rejects_and_says_why(slow_to_heal: sg.Breaker, name: str) -> None:
    trip(slow_to_heal)
    ran: list[int] = []
    with pytest.raises(sg.CircuitOpenError) as caught:
        slow_to_heal.execute(ran.append, 1)
    assert not ran
    error = caught.value
    assert (error.name, error.state) == (name, sg.State.OPEN)
    assert error.retry_after is not None
    assert 500.0 < error.retry_after <= 600.0
    assert error.last_error == "ConnectionError: down"
    assert f"{name!r} is open" in str(error)
    with pytest.raises(sg.CircuitOpenError):
        asyncio.run(slow_to_heal.execute_async(echo_async))
    with pytest.raises(sg.CircuitOpenError), slow_to_heal:
        ran.append(2)
    assert not ran
    assert totals(slow_to_heal) == (0, 2, 0, 3)


def test_a_half_open_circuit_rejects_what_is_too_many_and_says_so(
    breaker: sg.Breaker, name: str
) -> None:
    half_open(breaker)
    with breaker.acquire():
        with pytest.raises(sg.TooManyRequestsError) as caught:
            breaker.execute(echo)
        error = caught.value
        assert (error.name, error.state, error.retry_after) == (
            name,
            sg.State.HALF_OPEN,
            None,
        )
        assert error.last_error == "ConnectionError: down"
        assert isinstance(error, sg.CallNotPermittedError)
        assert "permits are out" in str(error)
    assert breaker.state is sg.State.CLOSED


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize(
    ("error", "last_error"),
    [
        (Unprintable(), "Unprintable"),
        (ValueError("a\udcffb"), "ValueError: a?b"),
        (ValueError("é€\U0001f600"), "ValueError: é€\U0001f600"),
        (ValueError("x" * 5000), f"ValueError: {'x' * 5000}"[:512]),
        (ValueError("\U0001f600" * 5000), f"ValueError: {chr(0x1F600) * 5000}"[:512]),
        (ValueError("a\x00\x1b[31mb"), "ValueError: a\x00\x1b[31mb"),
        (ValueError(), "ValueError"),
    ],
)
def test_whatever_an_exception_says_it_is_counted_and_kept(
    breaker: sg.Breaker, error: Exception, last_error: str
) -> None:
    def raise_it() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        breaker.execute(raise_it)
    assert caught.value is error
    stats = breaker.stats()
    assert (stats.total_failures, stats.last_error) == (1, last_error)
    assert len(last_error) <= 512


# -- decorator -------------------------------------------------------------------------------------


def test_a_decorated_function_keeps_its_signature_and_is_protected(breaker: sg.Breaker) -> None:
    def charge(card: str, *, amount: int = 1) -> str:
        """Charge a card."""
        if amount < 0:
            raise ConnectionError("down")
        return f"{card} {amount}"

    protected = breaker(charge)
    assert protected("visa", amount=2) == "visa 2"
    assert inspect.signature(protected) == inspect.signature(charge)
    assert (protected.__name__, protected.__doc__) == ("charge", "Charge a card.")
    assert inspect.unwrap(protected) is charge
    assert not inspect.iscoroutinefunction(protected)
    with pytest.raises(ConnectionError):
        protected("visa", amount=-1)
    assert totals(breaker) == (1, 1, 0, 0)


def test_a_decorated_coroutine_function_stays_one_and_is_protected(breaker: sg.Breaker) -> None:
    async def charge(card: str, *, amount: int = 1) -> str:
        """Charge a card."""
        if amount < 0:
            raise ConnectionError("down")
        return f"{card} {amount}"

    protected: Callable[..., Awaitable[str]] = breaker(charge)
    assert inspect.iscoroutinefunction(protected)
    assert inspect.signature(protected) == inspect.signature(charge)
    assert inspect.unwrap(protected) is charge

    async def run() -> None:
        assert await protected("visa", amount=2) == "visa 2"
        with pytest.raises(ConnectionError):
            await protected("visa", amount=-1)

    asyncio.run(run())
    assert totals(breaker) == (1, 1, 0, 0)


def test_a_decorated_method_gets_its_self(breaker: sg.Breaker) -> None:
    class Gateway:
        fee = 7

        @breaker
        def charge(self, amount: int) -> int:
            return amount + self.fee

    assert Gateway().charge(1) == 8
    assert totals(breaker) == (1, 0, 0, 0)


def test_options_can_decorate(breaker: sg.Breaker) -> None:
    never = threading.Event()

    @breaker.options(timeout=0.05)
    def hang() -> None:
        never.wait()

    with pytest.raises(sg.CallTimeoutError):
        hang()
    never.set()
    assert totals(breaker) == (0, 1, 0, 0)


def test_a_generator_function_cannot_be_decorated(breaker: sg.Breaker) -> None:
    def count() -> Iterator[int]:
        yield 1

    async def count_async() -> Any:
        yield 1

    for function in (count, count_async):
        with pytest.raises(TypeError, match="generator"):
            breaker(function)


# -- blocks ----------------------------------------------------------------------------------------


def test_a_block_is_a_call(breaker: sg.Breaker, name: str) -> None:
    with breaker as permit:
        assert permit.name == name
        assert breaker.stats().in_flight == 1
    with pytest.raises(ConnectionError), breaker:
        fail()
    assert totals(breaker) == (1, 1, 0, 0)


def test_blocks_of_one_breaker_nest_and_each_ends_its_own_permit(
    manager: sg.Manager, name: str
) -> None:
    breaker = manager.breaker(name, consistency="strict")
    with breaker as outer:
        with pytest.raises(ConnectionError), breaker:
            fail()
        with breaker as inner:
            assert inner.operation != outer.operation
            assert breaker.stats().in_flight == 2
        assert breaker.stats().in_flight == 1
    assert totals(breaker) == (2, 1, 0, 0)


def test_generators_that_are_left_in_the_order_they_were_entered_end_their_own_permits(
    slow_to_heal: sg.Breaker,
) -> None:
    def block() -> Generator[sg.Permit, None, None]:
        with slow_to_heal as permit:
            yield permit

    first, second = block(), block()
    permits = [next(first), next(second)]
    with pytest.raises(ConnectionError):
        first.throw(ConnectionError())
    assert [permit._ended for permit in permits] == [True, False]
    assert slow_to_heal.stats().total_failures == 1
    next(second, None)
    assert totals(slow_to_heal) == (1, 1, 0, 0)


def test_a_late_failure_of_a_generator_moves_no_probe_that_another_one_holds(  # G6
    breaker: sg.Breaker,
) -> None:
    def block() -> Generator[None, None, None]:
        with breaker:
            yield

    late = block()
    next(late)
    half_open(breaker)
    probe = block()
    next(probe)
    with pytest.raises(ConnectionError):
        late.throw(ConnectionError())
    assert breaker.state is sg.State.HALF_OPEN
    next(probe, None)
    assert breaker.state is sg.State.CLOSED


def test_async_generators_end_their_own_permits_in_any_order(breaker: sg.Breaker) -> None:
    async def block() -> AsyncGenerator[sg.Permit, None]:
        async with breaker as permit:
            yield permit

    async def run() -> None:
        first, second = block(), block()
        permits = [await anext(first), await anext(second)]
        with pytest.raises(ConnectionError):
            await first.athrow(ConnectionError())
        assert [permit._ended for permit in permits] == [True, False]
        with suppress(StopAsyncIteration):
            await anext(second)

    asyncio.run(run())
    assert totals(breaker) == (1, 1, 0, 0)


def test_blocks_that_an_exit_stack_holds_end_last_in_first_out(breaker: sg.Breaker) -> None:
    with ExitStack() as outer, ExitStack() as inner:
        permits = [outer.enter_context(breaker), inner.enter_context(breaker)]
        with breaker:
            pass
        assert [permit._ended for permit in permits] == [False, False]
        inner.close()
        assert [permit._ended for permit in permits] == [False, True]
    assert totals(breaker) == (3, 0, 0, 0)


@pytest.mark.filterwarnings("ignore:a permit for circuit:ResourceWarning")
def test_a_block_left_in_another_context_says_so_but_not_instead_of_an_error(
    breaker: sg.Breaker,
) -> None:
    @contextmanager
    def dependency() -> Iterator[None]:
        with breaker:
            yield

    def elsewhere(function: Callable[..., object], *args: object) -> object:
        return contextvars.copy_context().run(function, *args)

    block, error = dependency(), ConnectionError()
    elsewhere(block.__enter__)
    assert not elsewhere(block.__exit__, ConnectionError, error, None)  # it goes on
    block = dependency()
    elsewhere(block.__enter__)
    with pytest.raises(sg.BreakerError, match="another context"):
        elsewhere(block.__exit__, None, None, None)
    assert breaker.stats().in_flight == 0


def test_an_ending_inside_the_block_is_the_one_that_counts(breaker: sg.Breaker) -> None:
    with breaker as permit:
        permit.failure("a wrong answer")
    assert totals(breaker) == (0, 1, 0, 0)


def test_async_blocks_of_interleaved_tasks_each_end_their_own_permit(breaker: sg.Breaker) -> None:
    async def run() -> None:
        first_in, second_out = asyncio.Event(), asyncio.Event()

        async def first() -> None:
            async with breaker:
                first_in.set()
                await second_out.wait()

        async def second() -> None:
            await first_in.wait()
            with pytest.raises(ConnectionError):
                async with breaker:
                    fail()
            second_out.set()

        await asyncio.gather(first(), second())

    asyncio.run(run())
    assert totals(breaker) == (1, 1, 0, 0)


def test_async_blocks_nest(breaker: sg.Breaker) -> None:
    async def run() -> None:
        async with breaker as outer:
            async with breaker as inner:
                assert inner.operation != outer.operation
            with pytest.raises(ConnectionError), breaker:
                fail()
            task = asyncio.create_task(one_more())
            await task

    async def one_more() -> None:
        async with breaker:
            await asyncio.sleep(0)

    asyncio.run(run())
    assert totals(breaker) == (3, 1, 0, 0)


def test_blocks_in_several_threads_each_end_their_own_permit(breaker: sg.Breaker) -> None:
    barrier = threading.Barrier(4)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with breaker:
                barrier.wait(20.0)
                if number == 0:
                    fail()
        except ConnectionError as error:
            errors.append(error)

    run_threads([lambda number=number: work(number) for number in range(4)])
    assert len(errors) == 1
    assert totals(breaker) == (3, 1, 0, 0)


def test_a_block_cannot_be_stopped(breaker: sg.Breaker) -> None:
    with pytest.raises(sg.ConfigError, match="execute"), breaker.options(timeout=1.0):
        pass


def run_threads(functions: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
        assert not thread.is_alive()


# -- permits ---------------------------------------------------------------------------------------


def test_a_permit_has_three_endings(breaker: sg.Breaker) -> None:
    breaker.acquire().success()
    breaker.acquire().failure(ValueError("no"))
    breaker.acquire().release()
    assert totals(breaker) == (1, 1, 1, 0)
    assert breaker.stats().last_error == "ValueError: no"
    breaker.acquire().success()
    breaker.acquire().failure("in words")
    assert breaker.stats().last_error == "in words"
    breaker.acquire().success()
    breaker.acquire().failure()
    assert totals(breaker) == (3, 3, 1, 0)
    assert breaker.stats().last_error is None


def test_a_permit_acquired_in_a_task_has_them_too(breaker: sg.Breaker) -> None:
    async def run() -> None:
        (await breaker.acquire_async()).success()
        (await breaker.acquire_async()).failure(ValueError("no"))
        (await breaker.acquire_async()).release()
        async with await breaker.acquire_async():
            pass

    asyncio.run(run())
    assert totals(breaker) == (2, 1, 1, 0)


def test_a_permit_ends_exactly_once(breaker: sg.Breaker) -> None:
    endings: list[Callable[[sg.Permit], None]] = [
        sg.Permit.success,
        sg.Permit.failure,
        sg.Permit.release,
    ]
    for first in endings:
        permit = breaker.acquire()
        first(permit)
        for second in endings:
            with pytest.raises(sg.BreakerError, match="ended before"):
                second(permit)
        breaker.reset()
    assert totals(breaker) == (1, 1, 1, 0)


def test_a_permit_is_a_context_manager(breaker: sg.Breaker) -> None:
    with breaker.acquire():
        pass
    with pytest.raises(ConnectionError), breaker.acquire():
        fail()
    with pytest.raises(KeyboardInterrupt), breaker.acquire():
        raise KeyboardInterrupt
    with breaker.acquire() as permit:
        permit.release()
    assert totals(breaker) == (1, 1, 2, 0)


def test_a_flushed_permit_has_its_verdict(manager: sg.Manager, breaker: sg.Breaker) -> None:
    counted = breaker.acquire()
    assert counted.verdict is None
    late = breaker.acquire()
    counted.success()
    manager.client.flush()
    assert counted.verdict is sg.Verdict.COUNTED
    breaker.reset()
    late.failure()
    manager.client.flush()
    assert late.verdict is sg.Verdict.STALE
    assert breaker.metrics().stale_reports == 1


def test_permits_are_numbered_in_the_order_of_the_manager(manager: sg.Manager, name: str) -> None:
    breaker = manager.breaker(name, consistency="strict")
    operations: list[int] = []
    for _ in range(5):
        with breaker.acquire() as permit:
            assert permit.operation is not None
            operations.append(permit.operation)
    assert operations == sorted(set(operations))


def test_a_dropped_permit_goes_back_with_a_warning(breaker: sg.Breaker, name: str) -> None:
    half_open(breaker)
    permit = breaker.acquire()
    assert breaker.stats().in_flight == 1
    with pytest.warns(ResourceWarning, match=f"{name!r} was dropped"):
        del permit
    assert totals(breaker) == (0, 2, 1, 0)
    assert breaker.state is sg.State.HALF_OPEN


# -- options(timeout=) -----------------------------------------------------------------------------


def test_a_call_past_its_timeout_is_a_failure_and_its_late_result_is_dropped(
    breaker: sg.Breaker, name: str
) -> None:
    go_on = threading.Event()
    begun = time.monotonic()
    with pytest.raises(sg.CallTimeoutError) as caught:
        breaker.options(timeout=0.05).execute(go_on.wait)
    assert time.monotonic() - begun >= 0.05
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.name, caught.value.timeout) == (name, 0.05)
    assert breaker.stats().last_error == f"CallTimeoutError: {caught.value}"
    go_on.set()
    assert threads_are_gone()
    assert totals(breaker) == (0, 1, 0, 0)


def threads_are_gone() -> bool:
    return eventually(
        lambda: not any(thread.name == "switchgear-call" for thread in threading.enumerate())
    )


def test_a_late_exception_is_dropped_too(breaker: sg.Breaker) -> None:
    go_on = threading.Event()

    def hang() -> None:
        go_on.wait()
        raise ValueError("late")

    with pytest.raises(sg.CallTimeoutError):
        breaker.options(timeout=0.05).execute(hang)
    go_on.set()
    assert threads_are_gone()  # and the test's own thread hook has seen no exception
    assert totals(breaker) == (0, 1, 0, 0)


def test_a_task_past_its_timeout_is_cancelled_and_a_failure(breaker: sg.Breaker, name: str) -> None:
    seen: list[BaseException] = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            seen.append(error)
            raise

    async def run() -> None:
        with pytest.raises(sg.CallTimeoutError) as caught:
            await breaker.options(timeout=0.05).execute_async(hang)
        assert (caught.value.name, caught.value.timeout) == (name, 0.05)
        await asyncio.sleep(0)  # the task goes on: the cancellation was used up

    asyncio.run(run())
    assert isinstance(seen[0], asyncio.CancelledError)
    assert totals(breaker) == (0, 1, 0, 0)


def test_a_timeout_that_is_not_reached_changes_nothing(breaker: sg.Breaker) -> None:
    limited = breaker.options(timeout=600.0)
    assert limited.execute(echo) == ((), {})
    with pytest.raises(ConnectionError):
        limited.execute(fail)
    assert totals(breaker) == (1, 1, 0, 0)


def test_a_timed_call_sees_the_callers_context_variables(breaker: sg.Breaker) -> None:
    request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id")
    request_id.set("r1")

    async def get_async() -> str:
        return request_id.get()

    async def run() -> str:
        return await breaker.options(timeout=600.0).execute_async(get_async)

    assert breaker.options(timeout=600.0).execute(request_id.get) == "r1"
    assert asyncio.run(run()) == "r1"


def test_a_call_that_no_thread_can_be_had_for_counts_for_nothing(
    breaker: sg.Breaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = RuntimeError("can't start new thread")

    def start(thread: threading.Thread) -> None:
        raise error

    ran: list[int] = []
    breaker.execute(int)  # so that the package has the threads of its own
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError) as caught:
            breaker.options(timeout=600.0).execute(ran.append, 1)
    assert caught.value is error
    assert not ran
    assert totals(breaker) == (1, 0, 1, 0)
    with pytest.raises(RuntimeError):  # and one that the service raises is its failure
        breaker.options(timeout=600.0).execute(raise_error, error)
    assert totals(breaker) == (1, 1, 1, 0)


def raise_error(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "1", True])
def test_a_timeout_out_of_its_range_is_refused(breaker: sg.Breaker, timeout: Any) -> None:
    with pytest.raises(sg.ConfigError, match="timeout"):
        breaker.options(timeout=timeout)


# -- options(cancel=) ------------------------------------------------------------------------------

TOKENS: list[Callable[[], Any]] = [sg.CancelToken, threading.Event]


def fire(token: sg.CancelToken | threading.Event) -> None:
    if isinstance(token, sg.CancelToken):
        token.cancel()
    else:
        token.set()


@pytest.mark.parametrize("make", TOKENS)
def test_a_fired_token_cancels_a_call_and_counts_for_nothing(
    breaker: sg.Breaker, make: Callable[[], Any], name: str
) -> None:
    half_open(breaker)
    token, begun, go_on = make(), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        go_on.wait()

    def fire_when_begun() -> None:
        begun.wait()
        fire(token)

    thread = threading.Thread(target=fire_when_begun)
    thread.start()
    with pytest.raises(sg.CallCancelledError) as caught:
        breaker.options(cancel=token).execute(hang)
    thread.join()
    go_on.set()
    assert caught.value.name == name
    assert breaker.state is sg.State.HALF_OPEN
    assert totals(breaker) == (0, 2, 1, 0)


@pytest.mark.parametrize("make", TOKENS)
def test_a_fired_token_cancels_a_task_and_counts_for_nothing(
    breaker: sg.Breaker, make: Callable[[], Any]
) -> None:
    half_open(breaker)

    async def run() -> None:
        token, cancelled = make(), asyncio.Event()

        async def hang() -> None:
            threading.Thread(target=fire, args=(token,)).start()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise

        with pytest.raises(sg.CallCancelledError):
            await breaker.options(cancel=token).execute_async(hang)
        assert cancelled.is_set()
        await asyncio.sleep(0)

    asyncio.run(run())
    assert breaker.state is sg.State.HALF_OPEN
    assert totals(breaker) == (0, 2, 1, 0)


@pytest.mark.parametrize("make", TOKENS)
def test_a_token_that_fired_before_never_calls_the_function(
    breaker: sg.Breaker, make: Callable[[], Any]
) -> None:
    token, ran = make(), []
    fire(token)

    async def run() -> None:
        ran.append(2)

    with pytest.raises(sg.CallCancelledError):
        breaker.options(cancel=token, timeout=600.0).execute(ran.append, 1)
    with pytest.raises(sg.CallCancelledError):
        asyncio.run(breaker.options(cancel=token).execute_async(run))
    assert not ran
    assert breaker.stats().total_successes == 0
    assert breaker.stats().in_flight == 0


def test_a_token_that_does_not_fire_changes_nothing(breaker: sg.Breaker) -> None:
    token = sg.CancelToken()
    assert breaker.options(cancel=token).execute(echo) == ((), {})
    assert asyncio.run(breaker.options(cancel=token).execute_async(echo_async)) == ((), {})
    token.cancel()
    assert token.is_set()
    assert totals(breaker) == (2, 0, 0, 0)


@pytest.mark.parametrize("make", TOKENS)
def test_a_token_that_fires_as_a_call_ends_cancels_nothing_afterwards(
    breaker: sg.Breaker, make: Callable[[], Any]
) -> None:
    async def run() -> None:
        token = make()

        async def fire_and_return() -> str:
            fire(token)
            return "done"

        assert await breaker.options(cancel=token).execute_async(fire_and_return) == "done"
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # what was queued has run by now

    asyncio.run(run())
    assert totals(breaker) == (1, 0, 0, 0)


@pytest.mark.parametrize("make", TOKENS)
def test_a_token_that_fires_as_a_call_begins_cancels_nothing_afterwards(
    breaker: sg.Breaker, make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    token = make()

    async def acquire_and_fire(self: sg.Breaker) -> sg.Permit:
        permit = await acquire(self)
        fire(token)
        return permit

    async def run() -> None:
        assert await breaker.options(cancel=token).execute_async(echo_async) == ((), {})
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # as above

    acquire = sg.Breaker.acquire_async
    monkeypatch.setattr(sg.Breaker, "acquire_async", acquire_and_fire)
    asyncio.run(run())
    assert totals(breaker) == (1, 0, 0, 0)


@pytest.mark.filterwarnings("ignore:a permit for circuit:ResourceWarning")
def test_a_loop_that_was_closed_under_a_call_keeps_a_token_from_no_other_call(
    breaker: sg.Breaker,
) -> None:
    token, begun, go_on = sg.CancelToken(), threading.Event(), threading.Event()
    caught: list[BaseException] = []

    async def never() -> None:
        begun.set()
        await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    abandoned = loop.create_task(breaker.options(cancel=token).execute_async(never))
    while not begun.is_set():
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    begun.clear()

    def hang() -> None:
        begun.set()
        go_on.wait()

    def call() -> None:
        try:
            breaker.options(cancel=token).execute(hang)
        except sg.CallCancelledError as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert begun.wait(20.0)
    try:
        token.cancel()
    finally:
        thread.join(5.0)
        go_on.set()
        thread.join(20.0)
    assert len(caught) == 1
    abandoned._log_destroy_pending = False  # type: ignore[attr-defined]  # it is, on purpose


def test_what_is_no_token_is_refused(breaker: sg.Breaker) -> None:
    with pytest.raises(sg.ConfigError, match="cancel"):
        breaker.options(cancel=object())  # type: ignore[arg-type]  # the point of it


# -- callbacks -------------------------------------------------------------------------------------


def test_a_callback_that_raises_changes_no_result_and_stops_no_other(
    breaker: sg.Breaker, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    seen: list[tuple[str, sg.State, sg.State]] = []

    def burst(name: str, old: sg.State, new: sg.State) -> None:
        raise SystemExit("never mind")

    breaker.on_state_change(burst)
    breaker.on_state_change(lambda name, old, new: seen.append((name, old, new)))
    trip(breaker)
    eventually(lambda: len(seen) == 2)
    assert breaker.execute(echo) == ((), {})
    eventually(lambda: len(seen) == 3)
    assert seen == [
        (name, sg.State.CLOSED, sg.State.OPEN),
        (name, sg.State.OPEN, sg.State.HALF_OPEN),
        (name, sg.State.HALF_OPEN, sg.State.CLOSED),
    ]
    assert f"callback of circuit {name!r} raised" in caplog.text


def test_a_callback_that_blocks_holds_up_no_call(breaker: sg.Breaker) -> None:
    called, go_on = threading.Event(), threading.Event()

    def block(name: str, old: sg.State, new: sg.State) -> None:
        called.set()
        go_on.wait()

    breaker.on_state_change(block)
    trip(breaker)
    assert called.wait(20.0)
    eventually(lambda: breaker.state is sg.State.HALF_OPEN)
    for _ in range(100):
        breaker.execute(echo)
    assert totals(breaker)[0] == 100
    go_on.set()


def test_a_callback_may_use_the_breaker(breaker: sg.Breaker) -> None:
    results: list[object] = []

    def use(name: str, old: sg.State, new: sg.State) -> None:
        if new is sg.State.OPEN:
            breaker.reset()
            results.append(breaker.execute(echo))

    breaker.on_state_change(use)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            breaker.execute(fail)
    assert eventually(lambda: results) == [((), {})]
    assert breaker.state is sg.State.CLOSED


def test_a_callback_given_to_breaker_is_called_and_a_removed_one_is_not(
    manager: sg.Manager, name: str
) -> None:
    first, second = threading.Event(), threading.Event()
    breaker = manager.breaker(
        name,
        failure_threshold=1,
        open_timeout=600.0,
        on_state_change=lambda name, old, new: first.set(),
    )
    unsubscribe = breaker.on_state_change(lambda name, old, new: second.set())
    unsubscribe()
    unsubscribe()  # once more changes nothing
    trip(breaker)
    assert first.wait(20.0)
    assert not second.is_set()


# -- numbers and configuration ---------------------------------------------------------------------


def test_a_process_finds_every_call_of_its_own_in_the_totals_at_once(
    slow_to_heal: sg.Breaker,
) -> None:
    for number in range(1, 51):
        slow_to_heal.execute(echo)
        assert slow_to_heal.stats().total_successes == number
        assert slow_to_heal.metrics().requests_successful == number


def test_stats_say_what_happened(slow_to_heal: sg.Breaker, name: str) -> None:
    slow_to_heal.execute(echo)
    before = slow_to_heal.stats()
    assert (before.state, before.consecutive_successes, before.last_error) == (
        sg.State.CLOSED,
        1,
        None,
    )
    trip(slow_to_heal)
    with pytest.raises(sg.CircuitOpenError):
        slow_to_heal.execute(echo)
    stats = slow_to_heal.stats()
    assert (stats.name, stats.state) == (name, sg.State.OPEN)
    assert (stats.total_requests, stats.total_successes, stats.total_failures) == (4, 1, 2)
    assert (stats.total_rejected, stats.in_flight) == (1, 0)
    assert stats.generation == before.generation + 1
    assert stats.last_error == "ConnectionError: down"
    assert stats.last_error_at is not None
    assert before.state_changed_at < stats.state_changed_at
    assert abs((datetime.now(timezone.utc) - stats.last_error_at).total_seconds()) < 60.0
    assert stats.retry_after is not None
    assert stats.config == slow_to_heal.config
    metrics = slow_to_heal.metrics()
    assert (metrics.requests_total, metrics.requests_rejected) == (3, 1)
    assert metrics.transitions == {
        sg.State.CLOSED: 0,
        sg.State.OPEN: 1,
        sg.State.HALF_OPEN: 0,
    }
    assert metrics.min_latency is not None
    assert metrics.max_latency is not None
    assert 0.0 <= metrics.min_latency <= metrics.max_latency < 60.0


def test_a_latency_is_the_time_the_function_took(breaker: sg.Breaker) -> None:
    never = threading.Event()
    breaker.execute(never.wait, 0.1)
    metrics = breaker.metrics()
    assert metrics.max_latency is not None
    assert 0.1 <= metrics.max_latency < 10.0


def test_reset_closes_and_keeps_the_totals(slow_to_heal: sg.Breaker) -> None:
    trip(slow_to_heal)
    slow_to_heal.reset()
    assert slow_to_heal.state is sg.State.CLOSED
    assert slow_to_heal.stats().consecutive_failures == 0
    assert totals(slow_to_heal) == (0, 2, 0, 0)
    assert slow_to_heal.execute(echo) == ((), {})


def test_states_read_as_people_write_them(breaker: sg.Breaker) -> None:
    assert str(breaker.state) == "closed"
    half_open(breaker)
    assert str(breaker.state) == "half-open"


def test_a_new_config_replaces_the_old_one_and_keeps_the_counts(
    manager: sg.Manager, name: str
) -> None:
    old = manager.breaker(name, failure_threshold=3)
    with pytest.raises(ConnectionError):
        old.execute(fail)
    new = manager.breaker(name, failure_threshold=2, open_timeout=600.0)
    assert new.config.failure_threshold == 2
    stats = old.stats()
    assert (stats.config, stats.consecutive_failures) == (new.config, 1)
    with pytest.raises(ConnectionError):
        old.execute(fail)
    assert new.state is sg.State.OPEN


def test_a_breaker_without_a_config_keeps_the_managers(manager: sg.Manager, name: str) -> None:
    manager.breaker(name, failure_threshold=7).execute(echo)
    with connect(manager.address, acquire_timeout=5.0) as client:
        breaker = client.breaker(name)
        assert breaker.config.failure_threshold == 7
        breaker.execute(echo)
        assert breaker.stats().config.failure_threshold == 7
    assert manager.breaker("another").config == sg.CircuitConfig()


def test_a_whole_config_can_be_given(manager: sg.Manager, name: str) -> None:
    config = sg.CircuitConfig(failure_threshold=9, open_timeout=1.5, lost_permit="ignore")
    breaker = manager.breaker(name, config)
    assert breaker.config is config
    assert breaker.stats().config == config


@pytest.mark.parametrize(
    ("arguments", "fields", "said"),
    [
        (("x",), {"failure_threshold": 0}, "failure_threshold"),
        (("x",), {"open_timeout": float("nan")}, "open_timeout"),
        (("x",), {"no_such": 1}, "no_such"),
        (("x", sg.CircuitConfig()), {"failure_threshold": 3}, "not both"),
        (("x", {"failure_threshold": 3}), {}, "CircuitConfig"),
        (("",), {}, "name"),
        (("x" * 129,), {}, "128"),
        (("a\x1bb",), {}, "printable"),
        ((7,), {}, "name"),
    ],
)
def test_a_declaration_out_of_its_range_is_refused(
    manager: sg.Manager, arguments: tuple[Any, ...], fields: dict[str, Any], said: str
) -> None:
    before = list(manager.breakers())
    with pytest.raises(sg.ConfigError, match=said) as caught:
        manager.breaker(*arguments, **fields)
    assert isinstance(caught.value, ValueError)
    assert list(manager.breakers()) == before


def test_breakers_lists_every_circuit_by_name(manager: sg.Manager) -> None:
    before = list(manager.breakers())
    names = [f"listed-{number:03}" for number in range(60)]  # more than one page of the answer
    for name in reversed(names):
        manager.breaker(name)
    listed = manager.breakers()
    assert list(listed) == sorted(before + names)
    assert all(stats.name == name for name, stats in listed.items())


def test_a_client_can_look_at_circuits_it_has_not_declared(
    manager: sg.Manager, breaker: sg.Breaker, name: str
) -> None:
    trip(breaker)
    with connect(manager.address, acquire_timeout=5.0) as client:
        assert client.stats(name).total_failures == 2
        assert client.metrics(name).requests_failed == 2
        client.reset(name)
        pong = client.ping()
        assert (pong.pid, pong.circuits) == (manager.pid, len(client.breakers()))
        with pytest.raises(sg.UnknownCircuitError) as caught:
            client.stats("no such")
        assert caught.value.name == "no such"
        assert isinstance(caught.value, LookupError)
    assert breaker.state is sg.State.CLOSED


def test_reading_moves_nothing(manager: sg.Manager, breaker: sg.Breaker) -> None:
    breaker.execute(echo)
    first = breaker.stats()
    for _ in range(5):
        breaker.metrics()
        manager.breakers()
    assert breaker.stats() == first


def test_a_closed_client_refuses_calls(manager: sg.Manager, name: str) -> None:
    client = connect(manager.address, acquire_timeout=5.0)
    breaker = client.breaker(name)
    breaker.execute(echo)
    client.close()
    client.close()
    with pytest.raises(sg.BreakerError, match="closed"):
        breaker.execute(echo)


def test_a_closed_client_gives_back_what_it_held(manager: sg.Manager, name: str) -> None:
    watching = manager.breaker(name, failure_threshold=1, open_timeout=0.05)
    half_open(watching)
    client = connect(manager.address, acquire_timeout=4.0)
    permit = client.breaker(name).acquire()
    assert watching.stats().in_flight == 1
    client.close()
    assert watching.stats().in_flight == 0
    with pytest.raises(sg.TooManyRequestsError), watching.acquire(), watching:
        pass
    permit.release()  # harmless: nobody hears of it


def test_a_call_that_runs_while_its_client_is_closed_keeps_its_result(
    manager: sg.Manager, name: str
) -> None:
    client = connect(manager.address, acquire_timeout=4.0)
    breaker = client.breaker(name)
    begun, go_on = threading.Event(), threading.Event()
    results: list[object] = []

    def work() -> str:
        begun.set()
        go_on.wait()
        return "done"

    thread = threading.Thread(target=lambda: results.append(breaker.execute(work)))
    thread.start()
    assert begun.wait(20.0)
    client.close()
    go_on.set()
    thread.join(20.0)
    assert results == ["done"]


def test_closing_a_client_frees_whoever_waits_for_an_answer(manager: sg.Manager, name: str) -> None:
    assert manager.pid is not None
    client = connect(manager.address, acquire_timeout=60.0)
    breaker = client.breaker(name, consistency="strict")
    breaker.execute(echo)
    client.flush()
    caught: list[BaseException] = []

    def call() -> None:
        try:
            breaker.execute(echo)
        except sg.BreakerError as error:
            caught.append(error)

    with stopped(manager.pid):
        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        link = client.link()
        assert link is not None
        eventually(lambda: link._session.waiting)
        client.close()
        for thread in threads:
            thread.join(20.0)
            assert not thread.is_alive()
    assert len(caught) == 3


def test_a_breaker_pickles_within_its_process(breaker: sg.Breaker) -> None:
    restored = pickle.loads(pickle.dumps(breaker.options(timeout=600.0)))
    assert restored.execute(echo) == ((), {})
    assert (restored.name, restored.config) == (breaker.name, breaker.config)
    assert totals(breaker) == (1, 0, 0, 0)
    with pytest.raises(TypeError, match="cancel"):
        pickle.dumps(breaker.options(cancel=sg.CancelToken()))


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda breaker: pickle.loads(pickle.dumps(breaker))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_a_copy_of_a_breaker_goes_on_with_its_client_until_that_is_closed(  # G7
    manager: sg.Manager, name: str, again: Callable[[sg.Breaker], sg.Breaker]
) -> None:
    with connect(manager.address) as other, connect(manager.address) as client:
        other.breaker(name)  # with the same settings
        breaker = client.breaker(name, failure_threshold=1, open_timeout=600.0)
        copies = [again(breaker), again(breaker.options(timeout=600.0))]
        assert [one._client for one in copies] == [client, client]
        for one in (*copies, breaker):
            one.execute(echo)
        with pytest.raises(ConnectionError):
            breaker.execute(fail)
        for one in copies:
            with pytest.raises(sg.CircuitOpenError):
                one.execute(echo)
    later = again(breaker)
    with later._client:
        assert later.state is sg.State.OPEN


def test_an_acquire_timeout_at_the_end_of_its_range_works(manager: sg.Manager, name: str) -> None:
    with connect(manager.address, acquire_timeout=1e9) as client:
        breaker = client.breaker(name)
        assert breaker.execute(echo) == ((), {})
        assert breaker.options(timeout=1e9).execute(echo) == ((), {})
        assert asyncio.run(breaker.execute_async(echo_async)) == ((), {})
        assert totals(breaker) == (3, 0, 0, 0)


def test_a_generator_may_hold_a_block_open(breaker: sg.Breaker) -> None:
    def lines() -> Generator[int, None, None]:
        with breaker:
            yield 1
            yield 2

    assert list(lines()) == [1, 2]
    left = lines()
    assert next(left) == 1
    left.close()
    assert totals(breaker) == (1, 0, 1, 0)
