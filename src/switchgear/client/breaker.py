"""Breaker: the handle a caller holds on a circuit, and every way to put a call through it."""

from __future__ import annotations

import contextvars
import functools
import inspect
import sys
from collections.abc import Awaitable, Callable
from time import monotonic
from types import CodeType, CoroutineType, FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, TypeVar

from ..circuit import Rejection
from ..config import CircuitConfig, check_seconds
from ..errors import (
    BreakerError,
    CallCancelledError,
    CallNotPermittedError,
    CallTimeoutError,
    CapacityError,
    CircuitOpenError,
    ConfigError,
    ManagerUnavailableError,
    ProtocolError,
    TooManyRequestsError,
    UnknownCircuitError,
)
from ..states import Outcome, State
from ..stats import CircuitStats, MetricsSnapshot, StateChange
from ..wire import Error, ErrorCode, Rejected
from .events import Handler
from .lease import Lease
from .limits import Cancellable, Cancelled, NotStarted, TaskLimit, TimedOut, call_on_thread
from .permit import Permit, end
from .session import Grant

if TYPE_CHECKING:
    from .claim import Claim
    from .client import Client, Settings

P = ParamSpec("P")
R = TypeVar("R")

# The permits of the `with` blocks that this thread or task is in, last entered last. A breaker is
# shared, so the permit of a block cannot be kept on it. What entered a block is known by its frame,
# which generators leave blocks in any order by: its id, because the frame would keep alive what
# keeps it, and its code, because what enters for others, as an ExitStack does, returns at once, and
# then another frame may have the id.
_entered: Final[contextvars.ContextVar[tuple[tuple[Breaker, Permit, int, CodeType], ...]]] = (
    contextvars.ContextVar("switchgear_entered", default=())
)


class Breaker:
    """A handle on one circuit. Get it from `switchgear.breaker()`, a Client or a Manager.

    Cheap and thread-safe; any number of asyncio tasks may use it; it survives a fork and can be
    pickled, so it can be an argument to a process pool.

    Attributes:
        name: The circuit.
    """

    __slots__ = ("_client", "_config", "_gate", "name")

    def __init__(self, client: Client, name: str, config: CircuitConfig | None) -> None:
        self.name = name
        self._client = client
        self._config = config
        self._gate = client.gate(name)

    # -- calls -------------------------------------------------------------------------------------

    # execute() and execute_async() write out what acquire() and Permit do for a leased call: there
    # are no objects to be made then, and half a microsecond is all that such a call costs.

    def execute(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function with all the arguments, if the circuit lets it through.

        Returns:
            What the function returned.

        Raises:
            CircuitOpenError: The circuit is open; the function was not called.
            TooManyRequestsError: It is half-open and all permits are out; likewise.
            ManagerUnavailableError: No manager answered, under manager_loss="reject"; likewise.
                CapacityError, if it has no room for this process or this circuit.
            CallTimeoutError: It ran past `options(timeout=)`; it may run on, on its own thread.
            CallCancelledError: The token of `options(cancel=)` fired; likewise.
            RuntimeError: There was no thread for a call with `options()`; it was not called.
            BaseException: Whatever the function raised, itself.
        """
        lease = self._gate.lease
        start = monotonic()
        if start >= lease.term.until:
            if start < lease.rejects_until:
                raise lease.reject(start)
            return self._execute_unleased(function, args, kwargs)
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            end(lease, error, monotonic() - start)
            raise
        if type(result) is CoroutineType:
            _refuse_coroutine(lease, result)
        lease.successes.append(monotonic() - start)
        if not lease.noted:
            lease.rouse()
        return result

    def _execute_unleased(
        self, function: Callable[..., R], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> R:
        permit = self.acquire()
        try:
            result = function(*args, **kwargs)
        except BaseException as error:
            permit.end(error)
            raise
        if isinstance(result, CoroutineType):
            _refuse_coroutine(permit, result)
        permit.end(None)
        return result

    async def execute_async(
        self, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """Await the function, called with all the arguments, if the circuit lets it through.

        As `execute`, but on a timeout or a cancellation the task is cancelled, as by
        `asyncio.timeout`, and nothing runs on.
        """
        lease = self._gate.lease
        start = monotonic()
        if start >= lease.term.until:
            if start < lease.rejects_until:
                raise lease.reject(start)
            return await self._execute_unleased_async(function, args, kwargs)
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            end(lease, error, monotonic() - start)
            raise
        lease.successes.append(monotonic() - start)
        if not lease.noted:
            lease.rouse()
        return result

    async def _execute_unleased_async(
        self, function: Callable[..., Awaitable[R]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> R:
        permit = await self.acquire_async()
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            permit.end(error)
            raise
        permit.end(None)
        return result

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """Decorate a function, sync or async: each call of it goes through the circuit.

        Raises:
            TypeError: It is a generator function, whose call does nothing yet; put `with breaker:`
                in its body.
        """
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(
                "a breaker cannot decorate a generator; use `with breaker:` in its body"
            )
        if inspect.iscoroutinefunction(function):
            call_async = functools.wraps(function)(self._decorate_async(function))
            return call_async

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return self.execute(function, *args, **kwargs)

        return call

    def _decorate_async(self, function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        # execute_async() written out once more: to await it would cost a third of a call.
        gate = self._gate

        async def call(*args: Any, **kwargs: Any) -> Any:
            lease = gate.lease
            start = monotonic()
            if start >= lease.term.until:
                return await self.execute_async(function, *args, **kwargs)
            try:
                result = await function(*args, **kwargs)
            except BaseException as error:
                end(lease, error, monotonic() - start)
                raise
            lease.successes.append(monotonic() - start)
            if not lease.noted:
                lease.rouse()
            return result

        return call

    def options(
        self, *, timeout: float | None = None, cancel: Cancellable | None = None
    ) -> Breaker:
        """The same breaker, for calls that may be stopped.

        Args:
            timeout: Seconds a call may take; then the caller gets CallTimeoutError and it counts as
                a failure. Sync code runs on a thread of its own and is left behind there; asyncio
                code is cancelled.
            cancel: A CancelToken, or anything with `is_set()`, an Event for one; when it fires the
                caller gets CallCancelledError, and the call counts for nothing.

        Raises:
            ConfigError: The timeout is not more than 0 s and finite, or the token is none.
        """
        if timeout is not None:
            check_seconds("timeout", timeout)
        if cancel is not None and not callable(getattr(cancel, "is_set", None)):
            raise ConfigError(f"cancel must be a CancelToken or an Event, got {cancel!r}")
        if timeout is None and cancel is None:
            return self
        return _LimitedBreaker(self._client, self.name, self._config, timeout, cancel)

    # -- permits -----------------------------------------------------------------------------------

    def acquire(self) -> Permit:
        """Get the right to run one call; its holder says how the call ended.

        Raises:
            CircuitOpenError, TooManyRequestsError, ManagerUnavailableError: As `execute`.
        """
        permit = self._unasked_permit()
        if permit is not None:
            return permit
        link = self._client.link()
        if link is None:
            return self._permit(None)
        return self._permit(link.acquire(self.name, self._client.settings.acquire_timeout))

    async def acquire_async(self) -> Permit:
        """The same, without blocking the event loop."""
        permit = self._unasked_permit()
        if permit is not None:
            return permit
        link = self._client.link()
        if link is None:
            return self._permit(None)
        timeout = self._client.settings.acquire_timeout
        return self._permit(await link.acquire_async(self.name, timeout))

    def _unasked_permit(self) -> Permit | None:
        """What the lease decides, which may be to reject; None: ask."""
        lease = self._gate.lease
        now = monotonic()
        if now < lease.term.until:
            return Permit(self.name, lease)
        if now < lease.rejects_until:
            raise lease.reject(now)
        return None

    def _permit(self, claim: Claim | None) -> Permit:
        answer = None if claim is None else claim.answer
        standby = self._client.standby
        if (standby.active or self.name in standby.alone) and isinstance(answer, (Grant, Rejected)):
            standby.end(self.name)
        if isinstance(answer, Grant):
            return Permit(self.name, claim)
        if isinstance(answer, Rejected):
            raise _rejection(self.name, answer)
        if isinstance(answer, Error) and answer.code not in _LIKE_NO_MANAGER:
            raise error_of(answer, self.name, self._client.address)
        alone = isinstance(answer, Error) and answer.code is ErrorCode.TOO_MANY_CIRCUITS
        if alone:
            self._client.note_no_room(self.name)
        match self._client.settings.manager_loss:
            case "local":
                return self._standby_permit(alone)
            case "allow":
                return Permit(self.name, None)
        if isinstance(answer, Error) and answer.code is not ErrorCode.DEADLINE_PASSED:
            raise error_of(answer, self.name, self._client.address)
        raise ManagerUnavailableError(self._client.address)

    def _standby_permit(self, alone: bool) -> Permit:
        config = self._client.config_of(self.name)
        permit = self._client.standby.acquire(self.name, config, self._gate, alone=alone)
        if isinstance(permit, Rejection):
            raise _rejection(self.name, permit)
        return Permit(self.name, permit)

    def __enter__(self) -> Permit:
        frame = sys._getframe(1)
        permit = self.acquire()
        _entered.set((*_entered.get(), (self, permit, id(frame), frame.f_code)))
        return permit

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(error, sys._getframe(1))

    async def __aenter__(self) -> Permit:
        frame = sys._getframe(1)  # the one that awaits us
        permit = await self.acquire_async()
        _entered.set((*_entered.get(), (self, permit, id(frame), frame.f_code)))
        return permit

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(error, sys._getframe(1))

    def _leave(self, error: BaseException | None, frame: FrameType) -> None:
        entered = _entered.get()
        key, code = id(frame), frame.f_code
        found = -1
        for place in range(len(entered) - 1, -1, -1):
            breaker, _, entered_by, entered_in = entered[place]
            if breaker is self:
                if entered_by == key and entered_in is code:
                    found = place
                    break
                if found < 0:
                    found = place  # unless this frame has entered one
        if found >= 0:
            _entered.set(entered[:found] + entered[found + 1 :])
            entered[found][1].end(error)
        elif error is None:
            raise BreakerError(
                f"a block of circuit {self.name!r} was left in another context than it was entered "
                f"in; use acquire() there"
            )
        # Else that one matters more to the caller. The permit went back with its context.

    # -- the circuit -------------------------------------------------------------------------------

    @property
    def config(self) -> CircuitConfig:
        """What this handle declares; for one that declares nothing, what the manager has.

        Raises:
            ManagerUnavailableError: It had to be asked, and did not answer.
        """
        return self._config if self._config is not None else self.stats().config

    @property
    def state(self) -> State:
        """The circuit's state, from the manager; as `stats`."""
        return self.stats().state

    def stats(self) -> CircuitStats:
        """The circuit's numbers, after every outcome that this process has handed over.

        Raises:
            ManagerUnavailableError: No manager answered. CapacityError, if it has no room for this
                process or this circuit.
        """
        return self._client.stats(self.name)

    def metrics(self) -> MetricsSnapshot:
        """The circuit's metrics; as `stats`."""
        return self._client.metrics(self.name)

    def history(self) -> tuple[StateChange, ...]:
        """The circuit's last 16 changes, oldest first; as `stats`."""
        return self._client.history(self.name)

    def reset(self) -> None:
        """Close the circuit by hand, from any state; totals stay. As `stats`."""
        self._client.reset(self.name)

    def on_state_change(self, handler: Handler) -> Callable[[], None]:
        """Have `handler(name, old, new)` called after every change of state, in this process.

        The callbacks of a process run one after the other on a thread of their own, in the order in
        which the manager changed the states. One that raises is logged, and holds up nothing. In a
        forked child they go on with its first use of a breaker.

        Returns:
            A function that ends it.
        """
        return self._client.on_state_change(self.name, handler)

    def __reduce__(self) -> tuple[Callable[..., Breaker], tuple[object, ...]]:
        client = self._client
        return _restore, (client.settings, self.name, self._config, None, client.token)

    def __repr__(self) -> str:
        return f"<Breaker {self.name!r} at {self._client.address}>"


class _LimitedBreaker(Breaker):
    """A breaker whose calls may be stopped; see `Breaker.options`."""

    __slots__ = ("_cancel", "_timeout")

    def __init__(
        self,
        client: Client,
        name: str,
        config: CircuitConfig | None,
        timeout: float | None,
        cancel: Cancellable | None,
    ) -> None:
        super().__init__(client, name, config)
        self._timeout = timeout
        self._cancel = cancel

    def execute(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        self._check_token()
        permit = self.acquire()
        call = functools.partial(function, *args, **kwargs)
        try:
            result = call_on_thread(call, self._timeout, self._cancel)
        except TimedOut:
            self._time_out(permit)
        except Cancelled:
            permit.release()
            raise CallCancelledError(self.name) from None
        except NotStarted as missed:
            permit.release()  # which says nothing about the service
            raise missed.error from None
        except BaseException as error:
            permit.end(error)
            raise
        if isinstance(result, CoroutineType):
            _refuse_coroutine(permit, result)
        permit.end(None)
        return result

    async def execute_async(
        self, function: Callable[P, Awaitable[R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        self._check_token()
        permit = await self.acquire_async()
        limit = TaskLimit(self._timeout, self._cancel)
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            reason = limit.end(error)
            if reason is TimedOut:
                self._time_out(permit)
            if reason is Cancelled:
                permit.release()
                raise CallCancelledError(self.name) from None
            permit.end(error)
            raise
        limit.end(None)
        if limit.reason is TimedOut:  # it took its cancellation for no more than a hint
            permit.failure(CallTimeoutError(self.name, self._timeout or 0.0))
        else:
            permit.end(None)
        return result

    def _decorate_async(self, function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self.execute_async(function, *args, **kwargs)

        return call

    def _time_out(self, permit: Permit) -> NoReturn:
        assert self._timeout is not None
        error = CallTimeoutError(self.name, self._timeout)
        permit.failure(error)
        raise error from None

    def _check_token(self) -> None:
        if self._cancel is not None and self._cancel.is_set():
            raise CallCancelledError(self.name)

    def __enter__(self) -> Permit:
        raise ConfigError("a with block cannot be stopped; use execute() with options()")

    async def __aenter__(self) -> Permit:
        raise ConfigError("a with block cannot be stopped; use execute() with options()")

    def __reduce__(self) -> tuple[Callable[..., Breaker], tuple[object, ...]]:
        if self._cancel is not None:
            raise TypeError("a breaker with options(cancel=) cannot be pickled")
        client = self._client
        return _restore, (client.settings, self.name, self._config, self._timeout, client.token)


def _restore(
    settings: Settings,
    name: str,
    config: CircuitConfig | None,
    timeout: float | None = None,
    token: str = "",
) -> Breaker:
    from .client import original  # not above: it imports us

    # A second client of one process would go on with its lease after a failure of the first (G7).
    client = original(token, settings)
    client.declare(name, config)
    return Breaker(client, name, config).options(timeout=timeout)


# Refusals that do not make the service behind the circuit any less available.
_LIKE_NO_MANAGER: Final = frozenset(
    {ErrorCode.DEADLINE_PASSED, ErrorCode.TOO_MANY_CLIENTS, ErrorCode.TOO_MANY_CIRCUITS}
)


def error_of(error: Error, name: str, address: str) -> BreakerError:
    """The exception for the manager's refusal of something about a circuit."""
    if error.code in (ErrorCode.TOO_MANY_CLIENTS, ErrorCode.TOO_MANY_CIRCUITS):
        return CapacityError(address, error.text)
    if error.code is ErrorCode.UNKNOWN_CIRCUIT:
        return UnknownCircuitError(name)
    return ProtocolError(f"the manager refused: {error.text} ({error.code.name})")


def _rejection(name: str, answer: Rejected | Rejection) -> CallNotPermittedError:
    kind = CircuitOpenError if answer.state is State.OPEN else TooManyRequestsError
    return kind(name, answer.state, answer.retry_after, answer.last_error)


def _refuse_coroutine(owed: Permit | Lease, result: Any) -> NoReturn:
    """A coroutine has not run yet: to count it as a success would hide every failure."""
    result.close()
    if isinstance(owed, Permit):
        owed.release()
    else:
        owed.report(Outcome.NEUTRAL)
    raise TypeError("execute() was given a coroutine function; use execute_async()")
