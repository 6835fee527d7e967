"""Every exception a caller of switchgear can see.

    BreakerError
    ├── CallNotPermittedError        the call was not run; wait `retry_after`, or fall back
    │   ├── CircuitOpenError         the circuit is open
    │   └── TooManyRequestsError     half-open, and every permit is out
    ├── CallTimeoutError             the call ran past options(timeout=); also a TimeoutError
    ├── CallCancelledError           the token of options(cancel=) fired
    ├── ManagerUnavailableError      no manager answered; also a ConnectionError
    │   └── CapacityError            one did: it has no room for this process, or this circuit
    ├── UnknownCircuitError          the manager has no circuit of that name; also a LookupError
    ├── ProtocolError                what came over the wire made no sense
    └── ConfigError                  a value out of its range; also a ValueError

Facts are attributes and `str()` builds the sentence. Every class hands its constructor's arguments
to `Exception.__init__` unchanged and in order: that is what makes it pickle, attributes and all,
out of a pool worker.
"""

from __future__ import annotations

from .states import State


class BreakerError(Exception):
    """The root of everything switchgear raises on its own account."""


class CallNotPermittedError(BreakerError):
    """The breaker did not let the call through; the function was not run.

    Attributes:
        name: The circuit.
        state: Its state when the call was refused.
        retry_after: Seconds until the circuit admits a probe; None when that is not known.
        last_error: The last failure the circuit was told of, as "Type: message", or None.
    """

    def __init__(
        self,
        name: str,
        state: State,
        retry_after: float | None = None,
        last_error: str | None = None,
    ) -> None:
        super().__init__(name, state, retry_after, last_error)

    # The facts are what the exception was made of, and are kept nowhere else: an open circuit may
    # reject a million calls a second, and attributes of its own would double what one costs.

    @property
    def name(self) -> str:
        """See the class."""
        name: str = self.args[0]
        return name

    @property
    def state(self) -> State:
        """See the class."""
        state: State = self.args[1]
        return state

    @property
    def retry_after(self) -> float | None:
        """See the class."""
        retry_after: float | None = self.args[2]
        return retry_after

    @property
    def last_error(self) -> str | None:
        """See the class."""
        last_error: str | None = self.args[3]
        return last_error

    def __str__(self) -> str:
        text = f"circuit {self.name!r} is {self.state}"
        if self.state is State.HALF_OPEN:
            text += " and all its permits are out"
        if self.retry_after is not None:
            text += f"; retry after {self.retry_after:.3f} s"
        if self.last_error is not None:
            text += f"; last error: {self.last_error}"
        return text


class CircuitOpenError(CallNotPermittedError):
    """The circuit is open: the service has failed too often, and its rest is not over."""


class TooManyRequestsError(CallNotPermittedError):
    """The circuit is half-open and as many probes as it admits are in flight."""


class CallTimeoutError(BreakerError, TimeoutError):
    """The call ran past its `options(timeout=)`.

    Attributes:
        name: The circuit.
        timeout: The limit it ran past, seconds.
    """

    def __init__(self, name: str, timeout: float) -> None:
        super().__init__(name, timeout)
        self.name = name
        self.timeout = timeout

    def __str__(self) -> str:
        return f"the call through circuit {self.name!r} ran past its timeout of {self.timeout:g} s"


class CallCancelledError(BreakerError):
    """The token given as `options(cancel=)` fired before the call was over.

    Attributes:
        name: The circuit.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"the call through circuit {self.name!r} was cancelled by its token"


class ManagerUnavailableError(BreakerError, ConnectionError):
    """No manager answered in time.

    Attributes:
        address: Where it was looked for.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address

    def __str__(self) -> str:
        return (
            f"no breaker manager answers at {self.address}; start one with `switchgear serve "
            f"--address {self.address}`, or from the application with `with switchgear.Manager()`"
        )


class CapacityError(ManagerUnavailableError):
    """The manager has no room: for another process, or for another circuit.

    Who has a way to do without the manager takes it now, too; and an operator has something to do.

    Attributes:
        address: The manager's.
        reason: What there is no room for, as the manager says it.
    """

    def __init__(self, address: str, reason: str) -> None:
        # Not super(): OSError, which is in between, takes two arguments for a number and a text.
        BreakerError.__init__(self, address, reason)
        self.address = address
        self.reason = reason

    def __str__(self) -> str:
        return f"the breaker manager at {self.address} is full: {self.reason}"


class UnknownCircuitError(BreakerError, LookupError):
    """The manager has no circuit of that name: nobody has declared it.

    Attributes:
        name: The circuit that was asked for.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"the manager knows no circuit {self.name!r}"


class ProtocolError(BreakerError):
    """What came over the wire made no sense, or the other side said so of what we sent."""


class ConfigError(BreakerError, ValueError):
    """A value is out of its range; the message names the field, the value and the range."""
