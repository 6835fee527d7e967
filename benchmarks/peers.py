"""The candidates: switchgear and its peers, behind one small protocol.

Every peer is set up as near to "five consecutive failures open it, for 30 s" as it can be, and is
called in the ways its documentation shows. Where one cannot do what is measured it says so, and the
table has a dash. Peers are small values that travel to worker processes; what they import, they
import when they make a circuit.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from measure import PATIENCE, Settings, version_of

import switchgear as sg

NEVER: Final = 3600.0  # seconds; longer than anything here lasts
ENDLESS: Final = 1_000_000_000  # successes; more than anything here has

_numbers = itertools.count(1)


def unique(stem: str) -> str:
    """A name for a circuit that nobody else has, in any process."""
    return f"{stem}-{os.getpid()}-{next(_numbers)}"


class Down(Exception):
    """What the protected function raises when it is told to fail."""


@dataclass(frozen=True)
class Thresholds:
    """What a circuit is asked for; each peer comes as near as it can."""

    failures: int = 5  # consecutive, that open it
    successes: int = 2  # consecutive, that close it
    open_timeout: float = 30.0  # seconds
    at_once: int = 1  # calls in flight at once while half-open


@dataclass(frozen=True)
class Circuit:
    """One circuit, in functions of the peer's own.

    Attributes:
        rejections: What is raised in place of a call.
        direct: `direct(function)` calls it through the circuit; None: only decorated functions can.
        decorate: `decorate(function)` returns one that goes through the circuit.
        half_open: Makes an open circuit half-open; None: its first success closes it.
        settle: Waits until what the calls left to be done later is done.
        close: Ends what the circuit has running.
    """

    rejections: tuple[type[BaseException], ...]
    direct: Callable[..., Any] | None
    decorate: Callable[[Callable[..., Any]], Callable[..., Any]]
    half_open: Callable[[], Any] | None = None
    settle: Callable[[], Any] = lambda: None
    close: Callable[[], Any] = lambda: None

    def fail(self, calls: int) -> bool:
        """Have so many calls fail; whether one was rejected, after which there are no more."""
        reached = False

        def function() -> None:
            nonlocal reached
            reached = True
            raise Down

        protected = self.decorate(function)
        for _ in range(calls):
            reached = False
            with contextlib.suppress(Down, *self.rejections):
                protected()
            if not reached:
                return True
        return False

    async def fail_async(self, calls: int) -> bool:
        """The same, for a circuit of asyncio."""
        reached = False

        async def function() -> None:
            nonlocal reached
            reached = True
            raise Down

        protected = self.decorate(function)
        for _ in range(calls):
            reached = False
            with contextlib.suppress(Down, *self.rejections):
                await protected()
            if not reached:
                return True
        return False


@dataclass(frozen=True)
class Peer:
    """A way to have circuit breakers.

    Attributes:
        package: The distribution.
        label: In tables and charts.
        storage: Where its circuits live.
        shared: Whether the processes of a host see one circuit.
        setup: How it is set up here, for those who know it better than we do.
    """

    package: ClassVar[str]
    label: ClassVar[str]
    storage: ClassVar[Literal["manager", "memory", "redis"]]
    shared: ClassVar[bool]
    setup: ClassVar[str]

    place: str = field(default="", kw_only=True)  # of the manager or the Redis server

    def make(self, name: str, thresholds: Thresholds) -> Circuit | None:
        """A circuit for sync calls, or None where the peer has none."""
        return None

    async def make_async(self, name: str, thresholds: Thresholds) -> Circuit | None:
        """A circuit for asyncio, or None where the peer has none."""
        return None


# -- ours ------------------------------------------------------------------------------------------

_clients: dict[tuple[int, str], sg.Client] = {}  # one for each process and manager


@contextlib.contextmanager
def manager() -> Iterator[sg.Manager]:
    """A manager, and when it ends this process's connection to it ends, too."""
    with sg.Manager(acquire_timeout=PATIENCE) as started:
        try:
            yield started
        finally:
            client = _clients.pop((os.getpid(), started.address), None)
            if client is not None:
                client.close()


def client_of(address: str) -> sg.Client:
    """This process's connection to the manager."""
    key = (os.getpid(), address)
    if key not in _clients:
        _clients[key] = sg.connect(address, acquire_timeout=PATIENCE)
    return _clients[key]


class Leased(Peer):
    package = "switchgear"
    label = "switchgear"
    storage = "manager"
    shared = True
    setup = "the default consistency; `failure_threshold=5, open_timeout=30`"
    consistency: ClassVar[Literal["leased", "strict"]] = "leased"

    def _breaker(self, name: str, thresholds: Thresholds) -> sg.Breaker:
        return client_of(self.place).breaker(
            name,
            failure_threshold=thresholds.failures,
            success_threshold=thresholds.successes,
            open_timeout=thresholds.open_timeout,
            max_concurrent_requests=thresholds.at_once,
            consistency=self.consistency,
        )

    def make(self, name: str, thresholds: Thresholds) -> Circuit:
        breaker = self._breaker(name, thresholds)
        return self._circuit(breaker, breaker.execute)

    async def make_async(self, name: str, thresholds: Thresholds) -> Circuit:
        breaker = self._breaker(name, thresholds)
        return self._circuit(breaker, breaker.execute_async)

    def _circuit(self, breaker: sg.Breaker, direct: Callable[..., Any]) -> Circuit:
        return Circuit(
            (sg.CallNotPermittedError,),
            direct,
            breaker,
            half_open=lambda: _until(lambda: breaker.state is sg.State.HALF_OPEN),
            settle=lambda: client_of(self.place).flush(PATIENCE),
        )


class Strict(Leased):
    label = "switchgear, strict"
    setup = 'the same with `consistency="strict"`: every call asks the manager'
    consistency = "strict"


def _until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not look():
        if time.monotonic() > deadline:
            raise RuntimeError("it does not turn half-open")
        time.sleep(0.005)


# -- pybreaker -------------------------------------------------------------------------------------


class PyBreaker(Peer):
    package = "pybreaker"
    label = "pybreaker"
    storage = "memory"
    shared = False
    setup = (
        "`CircuitBreaker(fail_max=5, reset_timeout=30, success_threshold=2)`. asyncio: none, its "
        "`call_async` is for Tornado's coroutines"
    )

    def make(self, name: str, thresholds: Thresholds) -> Circuit:
        import pybreaker

        breaker = pybreaker.CircuitBreaker(
            fail_max=thresholds.failures,
            reset_timeout=thresholds.open_timeout,
            success_threshold=thresholds.successes,
            name=name,
            state_storage=self._storage(name),
        )
        return Circuit(
            (pybreaker.CircuitBreakerError,), breaker.call, breaker, half_open=breaker.half_open
        )

    def _storage(self, name: str) -> Any:
        return None


class PyBreakerRedis(PyBreaker):
    label = "pybreaker on Redis"
    storage = "redis"
    shared = True
    setup = (
        "the same with `CircuitRedisStorage(STATE_CLOSED, client, namespace=name)`. It stores when "
        "it opened in whole seconds, rounded down, so it is open for up to a second less"
    )

    def _storage(self, name: str) -> Any:
        import pybreaker

        return pybreaker.CircuitRedisStorage(
            pybreaker.STATE_CLOSED, redis_client(self.place), namespace=name
        )


_redis_clients: dict[tuple[int, str], Any] = {}


def redis_client(path: str) -> Any:
    """This process's client of the Redis server, with its pool of connections."""
    import redis

    key = (os.getpid(), path)
    if key not in _redis_clients:
        _redis_clients[key] = redis.Redis(unix_socket_path=path)
    return _redis_clients[key]


# -- the others ------------------------------------------------------------------------------------


class CircuitBreaker(Peer):
    package = "circuitbreaker"
    label = "circuitbreaker"
    storage = "memory"
    shared = False
    setup = (
        "`CircuitBreaker(failure_threshold=5, recovery_timeout=30)`, decorated functions only: its "
        "`call()` does not look whether it is open. One success closes it"
    )

    def make(self, name: str, thresholds: Thresholds) -> Circuit:
        import circuitbreaker

        breaker = circuitbreaker.CircuitBreaker(
            failure_threshold=thresholds.failures,
            recovery_timeout=thresholds.open_timeout,
            name=name,
        )
        return Circuit((circuitbreaker.CircuitBreakerError,), None, breaker)

    async def make_async(self, name: str, thresholds: Thresholds) -> Circuit:
        return self.make(name, thresholds)


class Purgatory(Peer):
    package = "purgatory"
    label = "purgatory"
    storage = "memory"
    shared = False
    setup = (
        "`SyncCircuitBreakerFactory` and `AsyncCircuitBreakerFactory` with `default_threshold=5, "
        "default_ttl=30`, decorated functions. One success closes it"
    )

    def make(self, name: str, thresholds: Thresholds) -> Circuit:
        import purgatory
        from purgatory.domain.model import OpenedState

        factory = purgatory.SyncCircuitBreakerFactory(
            default_threshold=thresholds.failures, default_ttl=thresholds.open_timeout
        )
        return Circuit((OpenedState,), None, factory(name))

    async def make_async(self, name: str, thresholds: Thresholds) -> Circuit:
        import purgatory
        from purgatory.domain.model import OpenedState

        factory = purgatory.AsyncCircuitBreakerFactory(
            default_threshold=thresholds.failures,
            default_ttl=thresholds.open_timeout,
            uow=self._storage(),
        )
        await factory.initialize()
        return Circuit((OpenedState,), None, factory(name))

    def _storage(self) -> Any:
        return None


class PurgatoryRedis(Purgatory):
    label = "purgatory on Redis"
    storage = "redis"
    shared = True
    setup = (
        "the same with `AsyncRedisUnitOfWork(url)`. Sync: none, the sync repository of this "
        "version makes an asyncio client"
    )

    def make(self, name: str, thresholds: Thresholds) -> None:
        return None

    def _storage(self) -> Any:
        import purgatory

        return purgatory.AsyncRedisUnitOfWork(f"unix://{self.place}")


class AioBreaker(Peer):
    package = "aiobreaker"
    label = "aiobreaker"
    storage = "memory"
    shared = False
    setup = (
        "`CircuitBreaker(fail_max=5, timeout_duration=timedelta(seconds=30))`. One success closes "
        "it"
    )

    def make(self, name: str, thresholds: Thresholds) -> Circuit:
        breaker, rejections = self._breaker(name, thresholds)
        return Circuit(rejections, breaker.call, breaker)

    async def make_async(self, name: str, thresholds: Thresholds) -> Circuit:
        breaker, rejections = self._breaker(name, thresholds)
        return Circuit(rejections, breaker.call_async, breaker)

    def _breaker(self, name: str, thresholds: Thresholds) -> tuple[Any, tuple[type[Exception]]]:
        from datetime import timedelta

        import aiobreaker

        breaker = aiobreaker.CircuitBreaker(
            fail_max=thresholds.failures,
            timeout_duration=timedelta(seconds=thresholds.open_timeout),
            name=name,
            state_storage=self._storage(name),
        )
        return breaker, (aiobreaker.CircuitBreakerError,)

    def _storage(self, name: str) -> Any:
        return None


class AioBreakerRedis(AioBreaker):
    label = "aiobreaker on Redis"
    storage = "redis"
    shared = True
    setup = (
        "the same with `CircuitRedisStorage(CircuitBreakerState.CLOSED, client, namespace=name)`, "
        "whose client blocks the event loop: it supports no other"
    )

    def _storage(self, name: str) -> Any:
        from aiobreaker import CircuitBreakerState
        from aiobreaker.storage.redis import CircuitRedisStorage

        return CircuitRedisStorage(
            CircuitBreakerState.CLOSED, redis_client(self.place), namespace=name
        )


class Interlock(Peer):
    package = "interlock-cb"
    label = "interlock-cb"
    storage = "memory"
    shared = False
    setup = (
        "it trips on a rate, so `Config(failure_rate_threshold=1.0, minimum_number_of_calls=5, "
        "window_size=5, wait_duration_in_open=30, permitted_calls_in_half_open=2, "
        "max_concurrent_probes=1)`: five failures in the last five calls. `call_sync` and "
        "`call_async`, which look at nothing twice, beside the decorator"
    )

    def make(self, name: str, thresholds: Thresholds) -> Circuit:
        breaker = self._breaker(name, thresholds, self._storage())
        return Circuit(*self._ways(breaker, thresholds, breaker.call_sync), close=breaker.close)

    async def make_async(self, name: str, thresholds: Thresholds) -> Circuit:
        breaker = self._breaker(name, thresholds, self._storage_async())

        def close() -> None:
            asyncio.get_running_loop().create_task(breaker.aclose())

        return Circuit(*self._ways(breaker, thresholds, breaker.call_async), close=close)

    def _breaker(self, name: str, thresholds: Thresholds, storage: Any) -> Any:
        import interlock

        config = interlock.Config(
            failure_rate_threshold=1.0,
            minimum_number_of_calls=thresholds.failures,
            window_size=thresholds.failures,
            wait_duration_in_open=thresholds.open_timeout,
            permitted_calls_in_half_open=max(thresholds.successes, thresholds.at_once),
            max_concurrent_probes=thresholds.at_once,
        )
        return interlock.CircuitBreaker(name=name, config=config, storage=storage)

    def _ways(self, breaker: Any, thresholds: Thresholds, direct: Any) -> tuple[Any, ...]:
        import interlock

        def half_open() -> None:  # the next call makes it so
            time.sleep(thresholds.open_timeout * 1.5)

        return (interlock.CircuitOpenError,), direct, breaker, half_open

    def _storage(self) -> Any:
        return None

    def _storage_async(self) -> Any:
        return None


class InterlockRedis(Interlock):
    label = "interlock-cb on Redis"
    storage = "redis"
    shared = True
    setup = (
        "the same with `RedisStorage(client)` and `AsyncRedisStorage(client)`, polled every second "
        "as is the default. The window of failures stays with each process"
    )

    def _ways(self, breaker: Any, thresholds: Thresholds, direct: Any) -> tuple[Any, ...]:
        import interlock

        def half_open() -> Any:
            if direct == breaker.call_sync:
                _until(lambda: breaker.state is interlock.State.HALF_OPEN)
                return None
            return _until_async(lambda: breaker.state is interlock.State.HALF_OPEN)

        return (interlock.CircuitOpenError,), direct, breaker, half_open

    def _storage(self) -> Any:
        from interlock.integrations.redis import RedisStorage

        return RedisStorage(redis_client(self.place))

    def _storage_async(self) -> Any:
        import redis.asyncio
        from interlock.integrations.redis import AsyncRedisStorage

        return AsyncRedisStorage(redis.asyncio.Redis(unix_socket_path=self.place))


async def _until_async(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not look():
        if time.monotonic() > deadline:
            raise RuntimeError("it does not turn half-open")
        await asyncio.sleep(0.005)


class Hyx(Peer):
    package = "hyx"
    label = "hyx"
    storage = "memory"
    shared = False
    setup = (
        "`consecutive_breaker(failure_threshold=5, recovery_time_secs=30, recovery_threshold=2)`, "
        "decorated functions. asyncio only"
    )

    async def make_async(self, name: str, thresholds: Thresholds) -> Circuit:
        from hyx.circuitbreaker import consecutive_breaker
        from hyx.circuitbreaker.exceptions import BreakerFailing

        def half_open() -> None:  # the next call makes it so
            time.sleep(thresholds.open_timeout * 1.5)

        def decorate(function: Callable[[], Awaitable[Any]]) -> Callable[[], Awaitable[Any]]:
            return breaker(function)

        breaker = consecutive_breaker(
            failure_threshold=thresholds.failures,
            recovery_time_secs=thresholds.open_timeout,
            recovery_threshold=thresholds.successes,
        )
        return Circuit((BreakerFailing,), None, decorate, half_open)


OURS: Final[tuple[type[Peer], ...]] = (Leased, Strict)
OTHERS: Final[tuple[type[Peer], ...]] = (
    PyBreaker,
    CircuitBreaker,
    AioBreaker,
    Interlock,
    Purgatory,
    Hyx,
    PyBreakerRedis,
    AioBreakerRedis,
    InterlockRedis,
    PurgatoryRedis,
)


def candidates(settings: Settings, address: str, *kinds: type[Peer]) -> list[Peer]:
    """Those of the kinds, or of all, that this machine has; ours at this address."""
    found: list[Peer] = []
    for kind in kinds or (*OURS, *OTHERS):
        if issubclass(kind, Leased):
            found.append(kind(place=address))
        elif settings.peers and version_of(kind.package) is not None:
            if kind.storage != "redis":
                found.append(kind())
            elif settings.redis is not None:
                found.append(kind(place=settings.redis))
    return found
