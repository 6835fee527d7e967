"""Circuit breakers that every process of an application shares, owned by one manager process.

import switchgear as sg

with sg.Manager() as manager:
    payments = manager.breaker("payments", failure_threshold=3)
    payments.execute(charge, card, amount=12)
"""

from .client.breaker import Breaker
from .client.client import Client, breaker, connect
from .client.limits import CancelToken
from .client.permit import Permit
from .config import CircuitConfig
from .errors import (
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
from .manager.process import Manager
from .states import Outcome, State, Verdict
from .stats import CircuitStats, MetricsSnapshot, StateChange

__version__ = "0.1.0"

__all__ = [
    "Breaker",
    "BreakerError",
    "CallCancelledError",
    "CallNotPermittedError",
    "CallTimeoutError",
    "CancelToken",
    "CapacityError",
    "CircuitConfig",
    "CircuitOpenError",
    "CircuitStats",
    "Client",
    "ConfigError",
    "Manager",
    "ManagerUnavailableError",
    "MetricsSnapshot",
    "Outcome",
    "Permit",
    "ProtocolError",
    "State",
    "StateChange",
    "TooManyRequestsError",
    "UnknownCircuitError",
    "Verdict",
    "breaker",
    "connect",
]
