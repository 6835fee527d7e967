"""Checked by mypy, never run: what a type checker must conclude about the public API."""

from collections.abc import Callable, Coroutine
from typing import Any

from typing_extensions import assert_type

import switchgear as sg


def fetch(url: str, *, timeout: float) -> bytes:
    return url.encode()


async def fetch_async(url: str, *, timeout: float) -> bytes:
    return url.encode()


def execute_keeps_the_return_type(breaker: sg.Breaker) -> None:
    assert_type(breaker.execute(fetch, "url", timeout=1.0), bytes)
    assert_type(breaker.options(timeout=1.0).execute(fetch, "url", timeout=1.0), bytes)
    breaker.execute(fetch, 1, timeout=1.0)  # type: ignore[arg-type]  # the arguments are checked
    breaker.execute(fetch, "url")  # type: ignore[call-arg]


async def execute_async_too(breaker: sg.Breaker) -> None:
    assert_type(await breaker.execute_async(fetch_async, "url", timeout=1.0), bytes)


async def decorators_keep_the_signature(breaker: sg.Breaker) -> None:
    decorated = breaker(fetch)
    assert_type(decorated("url", timeout=1.0), bytes)
    decorated(1, timeout=1.0)  # type: ignore[arg-type]
    awaited: Callable[..., Coroutine[Any, Any, bytes]] = breaker(fetch_async)
    assert_type(await awaited("url"), bytes)


def the_rest_has_types(breaker: sg.Breaker) -> None:
    assert_type(breaker.state, sg.State)
    assert_type(breaker.stats(), sg.CircuitStats)
    assert_type(breaker.metrics(), sg.MetricsSnapshot)
    with breaker.acquire() as permit:
        assert_type(permit, sg.Permit)
    unsubscribe: Callable[[], None] = breaker.on_state_change(lambda name, old, new: None)
    unsubscribe()
