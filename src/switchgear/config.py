"""CircuitConfig and the rules for what a caller may write down: values, durations, names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args

from .errors import ConfigError

LostPermit = Literal["failure", "ignore"]
Consistency = Literal["leased", "strict"]

MAX_COUNT: Final = 1_000_000_000
MAX_SECONDS: Final = 1_000_000_000.0  # 31 years; in microseconds it fits the wire's integers
MAX_NAME_BYTES: Final = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class CircuitConfig:
    """How one circuit behaves. Frozen; every value is checked when it is built.

    Attributes:
        failure_threshold: Consecutive failures, in the manager's order, that open a closed circuit.
        success_threshold: Consecutive successes that close a half-open circuit.
        open_timeout: Seconds the circuit stays open before it turns half-open.
        max_concurrent_requests: Calls in flight at once while half-open, on the whole host.
        permit_timeout: Seconds a half-open permit may be held before it counts as lost.
        lost_permit: What a lost half-open permit does: "failure" re-opens the circuit, "ignore"
            only makes room for the next probe.
        consistency: "leased" lets a closed circuit run calls without asking; "strict" asks
            for each one.

    Raises:
        ConfigError: A value is of the wrong type or out of its range.
    """

    failure_threshold: int = 5
    success_threshold: int = 2
    open_timeout: float = 30.0
    max_concurrent_requests: int = 1
    permit_timeout: float = 60.0
    lost_permit: LostPermit = "failure"
    consistency: Consistency = "leased"

    def __post_init__(self) -> None:
        check_count("failure_threshold", self.failure_threshold)
        check_count("success_threshold", self.success_threshold)
        check_seconds("open_timeout", self.open_timeout)
        check_count("max_concurrent_requests", self.max_concurrent_requests)
        check_seconds("permit_timeout", self.permit_timeout)
        _check_choice("lost_permit", self.lost_permit, get_args(LostPermit))
        _check_choice("consistency", self.consistency, get_args(Consistency))


def check_count(field: str, value: object) -> None:
    """Refuse, with ConfigError, what is not a whole number from 1 to MAX_COUNT."""
    # type() and not isinstance(): True is an int, and failure_threshold=True is a mistake.
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise ConfigError(
            f"{field} must be a whole number from 1 to {MAX_COUNT}, got {_shown(value)}"
        )


def check_seconds(field: str, value: object) -> None:
    """Refuse, with ConfigError, what is not a finite duration of more than 0 s."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0.0 < value <= MAX_SECONDS):  # type: ignore[operator]  # nan fails too
        raise ConfigError(
            f"{field} must be a number of seconds, more than 0 and at most {MAX_SECONDS:.0f}, "
            f"got {_shown(value)}"
        )


def check_name(name: object) -> None:
    """Refuse, with ConfigError, what cannot name a circuit.

    A name is 1 to 128 bytes of UTF-8 and every character of it can be printed: it ends up in logs,
    on terminals and as a label of metrics.
    """
    if type(name) is not str or not name:
        raise ConfigError(f"a circuit's name must be a non-empty string, got {_shown(name)}")
    if not name.isprintable():
        raise ConfigError(f"a circuit's name must be printable characters, got {_shown(name)}")
    size = len(name.encode())
    if size > MAX_NAME_BYTES:
        raise ConfigError(
            f"a circuit's name must be at most {MAX_NAME_BYTES} bytes of UTF-8, got {size}: "
            f"{_shown(name)}"
        )


def _check_choice(field: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        choices = " or ".join(repr(choice) for choice in allowed)
        raise ConfigError(f"{field} must be {choices}, got {_shown(value)}")


def _shown(value: object) -> str:
    """A value for an error message: never long, and whatever its repr() does."""
    try:
        text = repr(value)
    except Exception:  # an int of 5,000 digits, for one
        text = f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= 60 else f"{text[:60]}..."
