"""Client: a process's way to one manager. Breakers, statistics and resets go through it."""

from __future__ import annotations

import atexit
import contextlib
import logging
import math
import os
import secrets
import sys
import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, TypeVar, get_args

from .. import launch
from ..address import Address
from ..circuit import Totals
from ..config import CircuitConfig, check_name, check_seconds
from ..errors import (
    BreakerError,
    ConfigError,
    ManagerUnavailableError,
)
from ..stats import CircuitStats, MetricsSnapshot, StateChange
from ..wire import (
    Error,
    GetHistory,
    GetList,
    GetMetrics,
    GetStats,
    HistoryOf,
    ListOf,
    Message,
    MetricsOf,
    Ping,
    Pong,
    Reset,
    ResetDone,
    Shutdown,
    StatsOf,
    Stopping,
)
from .breaker import Breaker, error_of
from .events import Dispatcher, Handler, Handlers, check_handler
from .lease import Gate
from .link import Link
from .logs import log
from .standby import Standby
from .starter import Starter

ManagerLoss = Literal["local", "allow", "reject"]

ACQUIRE_TIMEOUT: Final = 0.05  # seconds a call waits for the manager at most
CONTROL_TIMEOUT: Final = 1.0  # seconds for statistics, resets and the like
START_TIMEOUT: Final = 5.0  # the same where a manager has to be started first
OPEN_AGAIN: Final = 1.0  # seconds until a process that has run out of descriptors tries again

M = TypeVar("M", bound=Message)


class Settings(NamedTuple):
    """What tells one client from another. Checked when built by `of`."""

    address: Address | None  # None: the host's own, looked up when it is first used
    manager_loss: ManagerLoss
    acquire_timeout: float
    autostart: bool | None = None  # None: as the environment says when it is first used

    @classmethod
    def of(
        cls,
        address: str | None,
        manager_loss: str,
        acquire_timeout: float,
        autostart: bool | None = None,
    ) -> Settings:
        """Check the values.

        Raises:
            ConfigError: One is out of its range.
        """
        if manager_loss not in get_args(ManagerLoss):
            raise ConfigError(
                f"manager_loss must be 'local', 'allow' or 'reject', got {manager_loss!r}"
            )
        check_seconds("acquire_timeout", acquire_timeout)
        if autostart is not None and type(autostart) is not bool:
            raise ConfigError(f"autostart must be True, False or None, got {autostart!r}")
        place = None if address is None else Address.parse(address)
        loss: Any = manager_loss  # just checked
        return cls(place, loss, acquire_timeout, autostart)

    @property
    def may_start(self) -> bool:
        """A manager may be started where there is none."""
        if self.autostart is not None:
            return self.autostart
        return self.address is None and os.environ.get("SWITCHGEAR_AUTOSTART") != "0"


class Client:
    """A process's way to one manager; `switchgear.connect()` makes one.

    Cheap until it is used: the first call opens the connection. Thread-safe, usable from asyncio,
    and it survives a fork: parent and child each go on, the child with a connection of its own.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._handlers = Handlers()
        self._configs: dict[str, CircuitConfig | None] = {}
        self._gates: dict[str, Gate] = {}
        self.standby = Standby(self._hand_over)
        self._link: Link | None = None
        self._starter: Starter | None = None  # of the link; None: no manager may be started
        self._dispatcher: Dispatcher | None = None
        self._starting = threading.RLock()  # a signal handler may come out of anything here
        self._opening = False  # somebody who holds that is at it
        self._complained = False
        self._open_at = -math.inf  # not before then, on our clock
        self._exhausted = False  # as last logged
        self._no_room: set[str] = set()  # circuits that were logged
        self._closed = False
        self.token = secrets.token_hex(8)  # of this client and of what a fork makes of it
        _by_token[self.token] = self
        _alive.add(self)

    @property
    def closed(self) -> bool:
        """`close` was called."""
        return self._closed

    @property
    def address(self) -> str:
        """Where the manager is; for the host's own, as the environment says now."""
        return str(self._place())

    def breaker(
        self,
        name: str,
        config: CircuitConfig | None = None,
        *,
        on_state_change: Handler | None = None,
        **fields: Any,
    ) -> Breaker:
        """A handle on a circuit of this name, for this process and every other.

        With a config, or fields of one, the manager's circuit gets that config. Without any it
        keeps the one it has; if nobody has declared it yet, it gets the defaults.

        Args:
            name: 1 to 128 bytes of printable characters.
            config: All values at once.
            on_state_change: See `Breaker.on_state_change`.
            **fields: Some values; see CircuitConfig.

        Raises:
            ConfigError: The name or a value is out of its range, or both ways are mixed.
            TypeError: The callback is no function.
        """
        check_name(name)
        if fields:
            if config is not None:
                raise ConfigError("give a CircuitConfig or single values, not both")
            config = _config_of(fields)
        elif config is not None and not isinstance(config, CircuitConfig):
            raise ConfigError(f"config must be a CircuitConfig, got {config!r}")
        if on_state_change is not None:
            check_handler(on_state_change)
        breaker = Breaker(self, name, config)
        self.declare(name, config)
        if on_state_change is not None:
            breaker.on_state_change(on_state_change)
        return breaker

    def declare(self, name: str, config: CircuitConfig | None) -> None:
        """Remember a circuit for the next connection, and tell the manager if there is one now."""
        if config is None and name in self._configs:
            return
        self._configs[name] = config
        link = self._link
        if link is not None and link.pid == os.getpid():
            link.declare(name, config)

    def gate(self, name: str) -> Gate:
        """What the breakers on a circuit look at before a call."""
        return self._gates.setdefault(name, Gate())

    def breakers(self) -> dict[str, CircuitStats]:
        """Every circuit the manager has, by name, sorted.

        Raises:
            ManagerUnavailableError: No manager answered.
        """
        circuits = tuple(self._configs)
        found: dict[str, CircuitStats] = {}
        more, after = True, ""
        while more:
            page = self._ask(partial(_get_list, after), ListOf, circuits)
            found.update((stats.name, stats) for stats in page.circuits)
            more, after = page.more, next(reversed(found), "")
        return found

    def stats(self, name: str) -> CircuitStats:
        """One circuit's numbers, after every outcome that this process has handed over.

        Raises:
            ManagerUnavailableError: No manager answered.
            UnknownCircuitError: Nobody has declared it.
        """
        return self._ask(lambda n: GetStats(n, name), StatsOf, self._own(name), name).stats

    def metrics(self, name: str) -> MetricsSnapshot:
        """One circuit's metrics; as `stats`."""
        answer = self._ask(lambda n: GetMetrics(n, name), MetricsOf, self._own(name), name)
        return answer.metrics

    def history(self, name: str) -> tuple[StateChange, ...]:
        """The last 16 changes of one circuit, oldest first; as `stats`."""
        answer = self._ask(lambda n: GetHistory(n, name), HistoryOf, self._own(name), name)
        return answer.changes

    def reset(self, name: str) -> None:
        """Close one circuit by hand; its totals stay. As `stats`."""
        self._ask(lambda n: Reset(n, name), ResetDone, self._own(name), name)

    def ping(self) -> Pong:
        """Whether the manager is there: its process and how many circuits it has.

        Raises:
            ManagerUnavailableError: No manager answered.
        """
        return self._ask(Ping, Pong)

    def shutdown(self) -> None:
        """Have the manager end, in good order.

        Raises:
            ManagerUnavailableError: No manager answered.
        """
        self._ask(Shutdown, Stopping)

    def flush(self, timeout: float = CONTROL_TIMEOUT) -> None:
        """Wait until the manager has taken in every outcome that this process has handed over.

        Raises:
            ManagerUnavailableError: It did not within `timeout` seconds; nothing is lost by that.
        """
        link = self._told_link()
        if link is not None and not link.flush(timeout):
            raise ManagerUnavailableError(self.address)

    def on_state_change(self, name: str, handler: Handler) -> Callable[[], None]:
        """See `Breaker.on_state_change`."""
        check_handler(handler)
        remove = self._handlers.add(name, handler)
        link = self.link()
        if link is None or not link.subscribe(self.settings.acquire_timeout):
            level = logging.INFO if self.settings.may_start else logging.WARNING
            log.log(level, "no manager at %s yet: its events come when it is there", self.address)
        return remove

    def link(self) -> Link | None:
        """The connection of this process, opened if need be; None where no manager can be.

        If it is not up, that is a reason to start a manager, and somebody else is at it then.

        Raises:
            BreakerError: The client is closed.
            ConfigError: The socket directory is unfit.
        """
        link = self._link
        if link is not None and link.pid == os.getpid():
            if not link.online and self._starter is not None:
                self._starter.wake()
            return link
        return self._open()

    def close(self) -> None:
        """Flush what was handed over, give back what is held, and close the connection."""
        self._closed = True
        with _sharing:
            if _shared.get(self.settings) is self:
                _shared.pop(self.settings, None)
        self.disconnect()

    def disconnect(self) -> None:
        """Close the connection of this process; the next use opens another one."""
        with self._starting:
            link = self._told_link()
            starter, dispatcher = self._starter, self._dispatcher  # a handler may open others
            self._link = None
            if link is None:
                return
            if starter is not None:
                starter.close()
            if dispatcher is not None:
                dispatcher.close()
            if not link.close(self.settings.acquire_timeout):
                log.warning("the manager at %s has not taken in every outcome", self.address)

    def forget_link(self) -> None:
        """In a forked child: leave the parent's connection alone, and open one when it is used."""
        if self._link is not None:
            _inherited.append((self._link, self._dispatcher))
        self._link = None
        self._starter = None
        self._starting = threading.RLock()
        self._opening = False
        self._close_gates()
        self.standby = Standby(self._hand_over)  # what the parent has counted is its own

    def _open(self) -> Link | None:
        with self._starting:
            if self._closed:
                raise BreakerError("this client is closed")
            if self._opening:
                return None  # we are a signal handler, and what it interrupts is at it
            try:
                self._opening = True  # before the look: a handler may have opened one just now
                link = self._link
                if link is not None and link.pid == os.getpid():
                    return link
                return self._connect(link)
            finally:
                self._opening = False

    def _connect(self, last: Link | None) -> Link | None:
        """Open a connection; one that there was is another process's."""
        place = self._place()
        may_start = self.settings.may_start
        try:
            place.check_directory()
        except FileNotFoundError:
            if not may_start or not self._make_directory(place):
                return None  # and no socket of somebody else's that comes there later
        if time.monotonic() < self._open_at:
            return None
        if last is not None:
            _inherited.append((last, self._dispatcher))
            self._close_gates()
        _close_at_exit()
        self._dispatcher = Dispatcher(self._handlers)
        on_loss = self._on_loss if may_start else None
        try:
            link = Link(place, self._gates, self._dispatcher.put, self.standby.end, on_loss)
        except OSError as error:
            self._open_at = time.monotonic() + OPEN_AGAIN
            self._note_exhausted(error)
            return None
        self._exhausted = False
        self._starter = Starter(place, link) if may_start else None
        if self._starter is not None and not launch.listening(place):
            self._starter.wake()
        for name, config in list(self._configs.items()):
            link.declare(name, config)
        if self._handlers:
            link.subscribe(self.settings.acquire_timeout)
        self._link = link
        if self._closed:  # by a signal handler meanwhile
            self.disconnect()
            raise BreakerError("this client is closed")
        return link

    def _make_directory(self, place: Address) -> bool:
        """Where a manager is to be started. False: that cannot be, and calls go on without."""
        try:
            place.make_directory()
        except ConfigError as error:
            if not self._complained:
                self._complained = True
                log.warning("no manager answers at %s: %s", place, error)
            return False
        return True

    def _on_loss(self) -> None:
        if self._starter is not None:
            self._starter.lost()

    def config_of(self, name: str) -> CircuitConfig:
        """A circuit's configuration, as far as this process knows."""
        return self.gate(name).config or self._configs.get(name) or CircuitConfig()

    def _told_link(self) -> Link | None:
        """The connection, if this process has one, and all that was counted here is given to it."""
        link = self._link
        if link is None or link.pid != os.getpid():
            return None
        if self.standby.active:
            self.standby.tell()
        return link

    def note_no_room(self, name: str) -> None:
        """The manager has refused a circuit: say so, once."""
        if name not in self._no_room:
            self._no_room.add(name)
            log.warning("the manager at %s has no room for circuit %r", self.address, name)

    def _note_exhausted(self, error: OSError) -> None:
        if not self._exhausted:
            log.warning("cannot connect to the manager at %s: %s", self.address, error)
        self._exhausted = True

    def _hand_over(self, name: str, totals: Totals) -> None:
        link = self._link
        if link is not None and link.pid == os.getpid():
            link.report_totals(name, totals)

    def _close_gates(self) -> None:
        """Leases are of a connection: without it, every call asks for one."""
        for gate in list(self._gates.values()):
            gate.close()

    def _place(self) -> Address:
        # Not earlier: a server may load the application before it starts the manager.
        return self.settings.address or Address.default()

    def _own(self, name: str) -> tuple[str, ...]:
        """The circuit, if this client has declared it: then the manager must know it first."""
        check_name(name)
        return (name,) if name in self._configs else ()

    def _ask(
        self,
        build: Callable[[int], Message],
        expected: type[M],
        circuits: tuple[str, ...] = (),
        name: str = "",
    ) -> M:
        link = self.link()
        self._told_link()
        answer = None if link is None else link.ask(build, self._patience(link), circuits)
        if isinstance(answer, expected):
            return answer
        if isinstance(answer, Error):
            raise error_of(answer, name, self.address)
        raise ManagerUnavailableError(self.address)

    def _patience(self, link: Link) -> float:
        """How long to wait for an answer, seconds."""
        starter = self._starter
        if link.online or starter is None or starter.failing or launch.listening(self._place()):
            return CONTROL_TIMEOUT
        return START_TIMEOUT

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client of {self.address}>"


def connect(
    address: str | None = None,
    *,
    manager_loss: ManagerLoss = "local",
    acquire_timeout: float = ACQUIRE_TIMEOUT,
    autostart: bool | None = None,
) -> Client:
    """A client of the manager at an address.

    Nothing is sent before the first use, so a manager may be started later.

    Args:
        address: `ipc:///path` or `/path`, as the manager was given; None means the host's own, see
            `Address.default`.
        manager_loss: What a call does when no manager answers: "reject" raises
            ManagerUnavailableError, "allow" runs it unprotected, "local" lets this process's own
            circuit breaker decide, from what it last heard of it until the manager is back.
        acquire_timeout: Seconds a call waits for the manager at most, finite.
        autostart: Whether to start a manager where there is none, when it is used: in the
            background, one for all who ask, on its own from then on. None: only the host's own, and
            unless `SWITCHGEAR_AUTOSTART` is 0.

    Raises:
        ConfigError: A value is out of its range.
    """
    return Client(Settings.of(address, manager_loss, acquire_timeout, autostart))


def shared(settings: Settings) -> Client:
    """The one client of this process with these settings, made if need be."""
    with _sharing:
        client = _shared.get(settings)
        # A signal handler may have made one while we were making ours.
        return _shared.setdefault(settings, Client(settings)) if client is None else client


def original(token: str, settings: Settings) -> Client:
    """The client that a breaker was pickled with, if it is this process's; else the shared one."""
    client = _by_token.get(token)
    return shared(settings) if client is None or client.closed else client


def share(client: Client) -> None:
    """Let breakers that arrive pickled use this client rather than one of their own."""
    with _sharing:
        _shared.setdefault(client.settings, client)


def breaker(
    name: str,
    config: CircuitConfig | None = None,
    *,
    on_state_change: Handler | None = None,
    **fields: Any,
) -> Breaker:
    """A breaker on the process's default client; see `Client.breaker`."""
    client = shared(Settings.of(None, "local", ACQUIRE_TIMEOUT))
    return client.breaker(name, config, on_state_change=on_state_change, **fields)


def _get_list(after: str, number: int) -> GetList:
    return GetList(number, after)


def _config_of(fields: dict[str, Any]) -> CircuitConfig:
    known = CircuitConfig.__dataclass_fields__
    for field in fields:
        if field not in known:
            raise ConfigError(f"there is no setting {field!r}; there are {', '.join(known)}")
    return CircuitConfig(**fields)


# -- the process's clients, across fork and exit ---------------------------------------------------

_alive: weakref.WeakSet[Client] = weakref.WeakSet()
_by_token: weakref.WeakValueDictionary[str, Client] = weakref.WeakValueDictionary()
_shared: dict[Settings, Client] = {}
_sharing = threading.RLock()
# What a forked child inherited and must neither use nor let be collected: it belongs to the parent.
_inherited: list[object] = []


def _after_fork() -> None:
    global _sharing
    _sharing = threading.RLock()
    for client in list(_alive):
        client.forget_link()


def _close_at_exit() -> None:
    """See that this process hands over what it has, however it ends in good order.

    A multiprocessing child leaves without `atexit`; it runs the finalizers of its own module. A
    child of a Celery worker leaves without either; it sends a signal of Celery's.
    """
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util.Finalize(None, _disconnect_all, exitpriority=100)
    celery = sys.modules.get("celery.signals")
    if celery is not None:
        celery.worker_process_shutdown.connect(_disconnect_all, weak=False)


def _disconnect_all(**about: object) -> None:
    for client in list(_alive):
        with contextlib.suppress(Exception):  # nobody is left to hear of it
            client.disconnect()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_disconnect_all)
