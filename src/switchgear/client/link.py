"""The shell around the session: its connections, and the thread that watches them.

Everything that touches the session or a socket happens in a turn, and turns do not overlap: whoever
holds `_driver` runs one. Commands wait in `_inbox` for the next turn, and posting one is a single
append, so a signal handler that raises can interrupt a caller anywhere and lose nothing.

Who runs the turns? A caller that has posted something runs one at once, if nobody else is at it,
and a caller that waits for an answer watches the sockets itself. The I/O thread watches them when
no caller does. Handing each request to that thread and each answer back would be simpler, but costs
two thread switches a call: in a prototype without any logic, 1.9 times the bare round trip in place
of 1.3.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import secrets
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import zmq

from ..address import Address
from ..circuit import Totals
from ..processes import leave_signals, start_of
from ..states import Outcome
from ..transport import (
    READABLE,
    WRITABLE,
    events_of,
    have_descriptors,
    receive_frames,
    send_frames,
)
from ..wire import (
    FROM_CONTROL,
    FROM_DATA,
    MAX_FRAME,
    MAX_FRAMES,
    Event,
    Malformed,
    Message,
    Subscribed,
    decode,
    encode,
)
from .claim import Claim, Hold, TaskWaiter, ThreadWaiter, Watch
from .lease import Gate, Lease, Settled
from .logs import log
from .reports import One, Whole
from .session import DATA, Answer, Grant, Session

FLUSH_INTERVAL: Final = 0.01  # seconds that outcomes under a lease are gathered, or longer:
_SHARE: Final = 100  # times the processor time that it took to send them; never longer than
_FLUSH_MAX: Final = 0.5  # seconds, because what is sent renews the leases
_WATCH_INTERVAL: Final = 1.0  # seconds until the I/O thread looks for permits that were dropped
_NAP_MS: Final = 4  # how long the I/O thread leaves the sockets to busy callers
_QUEUE: Final = 100_000  # messages that may wait for a manager that does not read
_RECONNECT_MS: Final = 10  # the first try; then twice as long each time, up to
_RECONNECT_MAX_MS: Final = 50  # so that who starts a manager is soon connected to it
_POLL_MAX_MS: Final = 2**31 - 1  # poll() takes a C int: 24 days, then it is called again
_LINGER_MS: Final = 200  # for what is still on its way when the link closes
_DESCRIPTORS: Final = 16  # a context, a socket and a connection take less, and leave some


class _Signal:
    """Wakes a thread that waits in poll()."""

    __slots__ = ("_read", "_write")

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def fileno(self) -> int:
        return self._read

    def set(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it wakes all the same
            os.write(self._write, b"\0")

    def clear(self) -> bool:
        """Forget that it was set, and say whether it was."""
        try:
            return bool(os.read(self._read, 4096))
        except BlockingIOError:
            return False

    def __del__(self) -> None:
        if hasattr(self, "_write"):  # else there was no descriptor for it
            os.close(self._read)
            os.close(self._write)


class Link:
    """One process's connection to one manager. Thread-safe; not for use after a fork.

    Args:
        address: The manager's.
        gates: Where leases are put, by circuit; the owner adds to it.
        on_events: Called in a turn with the events that came, in order; must not block.
        on_return: Called in a turn when a manager answers again; likewise.
        on_loss: Called in a turn when permits and outcomes have nowhere to go any more; likewise.
            None: nobody starts a manager where there is none.

    Attributes:
        pid: The process it is for.
        online: All the connections it has can be written to.
        watches: On the claims whose permits may be owed.
        dropped: Those of them whose claim nobody has any more.

    Raises:
        OSError: The process has no descriptor left for it, or no thread.
    """

    def __init__(
        self,
        address: Address,
        gates: Mapping[str, Gate],
        on_events: Callable[[list[Event]], None],
        on_return: Callable[[], None],
        on_loss: Callable[[], None] | None = None,
    ) -> None:
        self.pid = os.getpid()
        self.online = False
        self.watches: dict[Hold, Watch] = {}
        self.dropped: deque[Watch] = deque()
        self._address = address
        self._on_events = on_events
        self._on_return = on_return
        self._on_loss = on_loss
        self._gates = gates
        self._session = Session(secrets.token_bytes(16), self.pid, gates, self, start_of())
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._dirty: deque[Lease] = deque()  # with outcomes to collect
        self._collect_at = 0.0  # when they may be, on our clock
        self._knock_at = math.inf  # when an answer is overdue
        self._dozes_until = math.inf  # the I/O thread, unless somebody wakes it
        self._asleep = False  # the I/O thread is, for as long as nobody wakes it
        self._driver = threading.RLock()
        self._turning: int | None = None  # the thread that runs a turn
        self._interrupted = False  # a turn was left half-way, by an exception
        self._outage = False  # as last logged
        # That there is no manager before the first one was started is nothing to tell everybody.
        self._outage_level = logging.WARNING if on_loss is None else logging.INFO
        self._away = False  # as last logged
        # Replaced and never changed, so that the I/O thread sees at a glance that there are others.
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        self._descriptors: tuple[int, ...] = ()  # theirs
        self._online: dict[int, bool] = {}
        self._watch = threading.RLock()  # held by the one caller that watches the sockets
        self._watching: int | None = None  # its thread
        self._watched = 0  # how often that ended
        self._nudge = _Signal()  # for the caller that watches
        self._wake = _Signal()  # for the I/O thread
        self._watcher = select.poll()
        self._watcher.register(self._nudge, select.POLLIN)
        self._napping = False
        self._closing = False
        self._closed = False  # the sockets are
        self._thread = threading.Thread(target=self._run, name="switchgear-io", daemon=True)
        try:
            self._context = zmq.Context(io_threads=1)
            self._thread.start()
        except (zmq.ZMQError, RuntimeError) as error:  # "can't start new thread" is a RuntimeError
            raise OSError(errno.EMFILE, str(error)) from error

    # -- what callers do ---------------------------------------------------------------------------

    def acquire(self, name: str, timeout: float) -> Claim | None:
        """Ask for a permit and wait for the answer, at most `timeout` seconds; None: it passed."""
        now = time.monotonic()
        waiter = ThreadWaiter(self, name)
        in_time = self._wait_for(
            waiter, now + timeout, self._session.acquire, waiter, name, now + timeout, now
        )
        return waiter if in_time else None

    async def acquire_async(self, name: str, timeout: float) -> Claim | None:
        """The same for a task: the event loop goes on meanwhile."""
        now = time.monotonic()
        waiter = TaskWaiter(self, name)
        in_time = await self._await(
            waiter, timeout, self._session.acquire, waiter, name, now + timeout, now
        )
        return waiter if in_time else None

    def report(
        self,
        claim: Claim,
        outcome: Outcome,
        duration: float = 0.0,
        error: str | None = None,
        settled: Settled | None = None,
    ) -> None:
        """See `Claim.report`."""
        if self.pid != os.getpid():
            return
        hold = claim.hold
        if outcome is Outcome.FAILURE and hold.name is not None:
            # What is decided from now on is to be decided with this failure counted, so ask.
            self._gates[hold.name].suspend(time.monotonic())
        args = (claim, outcome, duration, error, settled)
        if outcome is Outcome.SUCCESS and self._is_one_of_many(hold):
            self._inbox.append((self._report, args))  # it can go with the next request
            if self._asleep:
                self._wake.set()
        else:
            self._post(self._report, *args)

    def _is_one_of_many(self, hold: Hold) -> bool:
        """A strict circuit's, and no probe's: the next call asks too, and nobody waits for this."""
        probe = not isinstance(hold.answer, Grant) or hold.answer.probe
        return not probe and hold.name is not None and not self._gates[hold.name].lease.runs

    def wake(self) -> None:
        """Have the I/O thread run a turn. Does nothing in a forked child."""
        if self.pid == os.getpid() and not self._closed:
            self._wake.set()

    def rouse(self, lease: Lease) -> None:
        """See `Outlet`."""
        self._dirty.append(lease)
        if self._asleep:
            self._wake.set()

    def fail(
        self, lease: Lease, duration: float, error: str | None, settled: Settled | None
    ) -> None:
        """See `Outlet`. Does nothing in a forked child."""
        if self.pid == os.getpid():
            grant = (lease.epoch, None, lease.generation)
            self._gates[lease.name].suspend(time.monotonic())
            failure = One(lease.name, grant, Outcome.FAILURE, duration, error, settled)
            self._post(self._fail, failure, lease)

    def report_totals(self, name: str, totals: Totals) -> None:
        """See `Session.report_totals`. Does not wait."""
        self._post(self._report_totals, Whole(name, totals))

    def declare(self, name: str, config: object) -> None:
        """See `Session.declare`. Does not wait."""
        self._post(self._session.declare, name, config)

    def ask(
        self, build: Callable[[int], Message], timeout: float, circuits: tuple[str, ...] = ()
    ) -> Answer:
        """Ask on the control connection; see `Session.ask`. None: no manager answered in time."""
        waiter = ThreadWaiter(self)
        deadline = time.monotonic() + timeout
        self._wait_for(waiter, deadline, self._ask, waiter, build, circuits)
        return waiter.answer

    def subscribe(self, timeout: float) -> bool:
        """Have events collected; False: no manager answered in time, it will happen later."""
        waiter = ThreadWaiter(self)
        deadline = time.monotonic() + timeout
        self._wait_for(waiter, deadline, self._session.subscribe, waiter)
        return isinstance(waiter.answer, Subscribed)

    def flush(self, timeout: float) -> bool:
        """Wait until the manager has taken in all that was reported; False: it did not, in time."""
        waiter = ThreadWaiter(self)
        deadline = time.monotonic() + timeout
        return self._wait_for(waiter, deadline, self._flush, waiter)

    def close(self, timeout: float) -> bool:
        """Flush, take leave of the manager, end the thread. False: not everything was flushed.

        Who still waits is answered None, and so is who asks later; what is reported later is
        dropped. Nothing raises: a call may be running in another thread, and keeps its result.
        """
        flushed = self.flush(timeout)
        self._post(self._session.goodbye)
        self._closing = True
        self._wake.set()
        if not self._driver._is_owned():  # type: ignore[attr-defined]  # Condition relies on it too
            self._thread.join()
        # Else we are a signal handler in the middle of a turn, which the thread waits for.
        self._empty_inbox()
        return flushed

    def _hang_up(self) -> None:
        """What the I/O thread ends with."""
        with self._driver:
            try:
                self._turn()
            finally:
                self._closed = True
                for socket in self._sockets.values():
                    socket.close()
                self._context.term()
                self._turn()
        self._empty_inbox()

    # -- waiting -----------------------------------------------------------------------------------

    def _wait_for(
        self, waiter: ThreadWaiter, deadline: float, command: Callable[..., None], *args: object
    ) -> bool:
        """Post a command and wait for its answer; False: it was given up."""
        try:
            self._post(command, *args)
            if not waiter.answered:
                self._wait(waiter, deadline)
        except BaseException:
            self._post(self._abandon, waiter, False)
            raise
        if waiter.answered:
            return True
        self._post(self._abandon, waiter, True)
        return False

    async def _await(
        self, waiter: TaskWaiter, timeout: float, command: Callable[..., None], *args: object
    ) -> bool:
        timer = asyncio.get_running_loop().call_later(timeout, waiter.wake)
        try:
            self._post(command, *args)
            if self._napping:
                self._wake.set()
            await waiter.arrived
        except BaseException:
            self._post(self._abandon, waiter, False)
            raise
        finally:
            timer.cancel()
        if waiter.answered:
            return True
        self._post(self._abandon, waiter, True)
        return False

    def _wait(self, waiter: ThreadWaiter, deadline: float) -> None:
        me = threading.get_ident()
        if me in (self._turning, self._watching):
            return  # we are a signal handler, and who would answer us waits for us to return
        try:
            if not self._watch.acquire(blocking=False):
                waiter.wait(deadline - time.monotonic())
                return
            self._watching = me
            self._watch_until(waiter, deadline)
        finally:
            # A signal handler may have raised right after the acquire() or may raise after any
            # call, so the release comes first of all calls, and the lock knows whether it is due.
            if self._watching == me:
                self._watching = None
                self._watched += 1
            try:  # noqa: SIM105  # suppress() would be a call before it
                self._watch.release()
            except RuntimeError:
                pass
            if self._session.waiting or self._session.leasing:
                self._wake.set()  # others wait, or calls run; and nobody watches for them now

    def _watch_until(self, waiter: ThreadWaiter, deadline: float) -> None:
        # A function of its own: since Python 3.12 a signal handler that raises at the end of a loop
        # does so outside the `try` that the loop is in.
        while not waiter.answered:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            for fd, _ in self._watcher.poll(min(remaining * 1000, _POLL_MAX_MS)):
                if fd == self._nudge.fileno():
                    self._nudge.clear()
            self._drive()

    def _run(self) -> None:
        """The I/O thread: watch the sockets, but leave them alone while callers are busy."""
        leave_signals()
        wake = select.poll()
        wake.register(self._wake, select.POLLIN)
        everything = wake
        descriptors: tuple[int, ...] = ()
        while not self._closing:
            before = self._watched
            if descriptors != self._descriptors:
                descriptors = self._descriptors
                everything = select.poll()
                for fd in (self._wake.fileno(), *descriptors):
                    everything.register(fd, select.POLLIN)
            if self._napping:
                wake.poll(_NAP_MS)
            arrived = everything.poll(0 if self._napping else self._doze())
            self._asleep = False
            woken = any(fd == self._wake.fileno() for fd, _ in arrived) and self._wake.clear()
            self._napping = not woken and (self._watched != before or self._watching is not None)
            idle = not arrived and (self._napping or not (self._inbox or self.dropped))
            if idle and not self._due(time.monotonic()):
                continue  # or busy callers see to everything
            began, due_at = time.thread_time(), self._collect_at
            try:
                self._drive()
            except Exception:
                log.exception("a turn of the I/O thread failed")
            if self._collect_at > due_at:
                spent = time.thread_time() - began
                self._collect_at += max(0.0, min(_SHARE * spent, _FLUSH_MAX) - FLUSH_INTERVAL)
        self._hang_up()

    def _doze(self) -> float | None:
        """How long to wait for the sockets, milliseconds: until outcomes are to be collected."""
        self._asleep = True  # first: who leaves something after the look at it wakes us
        self._dozes_until = math.inf
        now = time.monotonic()
        remaining = self._collect_at - now
        busy = self._inbox or self.dropped
        if not busy and not self._dirty and remaining <= 0:
            until = self._session.retry_at if self._resting else self._knock_at
            if self.watches:
                until = min(until, now + _WATCH_INTERVAL)
            self._dozes_until = until
            return None if until == math.inf else max(0.0, until - now) * 1000 + 1
        self._asleep = False
        return 0 if busy else max(0.0, remaining * 1000)

    def _due(self, now: float) -> bool:
        if self._resting and now >= self._session.retry_at:
            return True
        return now >= self._knock_at or (bool(self._dirty) and now >= self._collect_at)

    @property
    def _resting(self) -> bool:
        """There is no connection, and it is for us to make one when its time has come."""
        return self._session.away and not self._sockets

    # -- turns -------------------------------------------------------------------------------------

    def _post(self, command: Callable[..., None], *args: object) -> None:
        """Have a command done in a turn: now, by us, unless somebody is at it already."""
        try:
            self._inbox.append((command, args))
            self._empty_inbox()
        except BaseException:
            self._wake.set()  # a signal handler raised: let the other thread do it
            raise

    def _drive(self) -> None:
        """Run a turn, and another one for what was posted too late for it.

        Whoever posts while we hold the driver leaves it to us, and then waits for the answer; to go
        back to the sockets with its command in the inbox would be to wait for each other.
        """
        with self._driver:
            self._turn()
        self._empty_inbox()

    def _empty_inbox(self) -> None:
        # A finalizer or a signal handler may come here in the middle of a turn of this thread.
        while self._inbox and self._turning != threading.get_ident():
            try:
                if not self._driver.acquire(blocking=False):
                    return
                self._turn()
            finally:
                try:  # noqa: SIM105
                    self._driver.release()  # the first call here, as in _wait
                except RuntimeError:
                    pass

    def _turn(self) -> None:
        """Do what was posted, take what has arrived, send what is due, answer who is answered."""
        try:
            self._turning = threading.get_ident()
            now = time.monotonic()
            if self._interrupted:
                self._interrupted = False
                self._session.resume(now)
            self._do_what_was_posted()
            if self._dirty and self._due(now):
                self._collect()
            if self._closed:
                self._session.hang_up()
            else:
                self._exchange(now)
                if now >= self._knock_at and now >= self._session.knock_at:
                    # Nothing was answered by what has arrived until now, either.
                    self._session.knock(now)
                    self._exchange(now)
            self._hand_over()
            self._knock_at = self._session.knock_at
            if self._asleep and self._knock_at < self._dozes_until:
                self._wake.set()
        except BaseException:
            self._interrupted = True
            self._turning = None
            self._wake.set()
            raise
        self._turning = None

    def _do_what_was_posted(self) -> None:
        # Done first and taken out then: what was interrupted half-way is done again.
        dropped = len(self.dropped)  # before the inbox, where their claims' reports may be
        while self._inbox:
            command, args = self._inbox[0]
            command(*args)
            del self._inbox[0]
        for _ in range(dropped):
            watch = self.dropped[0]
            self._report(watch, Outcome.NEUTRAL)
            self.watches.pop(watch.hold, None)
            del self.dropped[0]

    def _report(
        self,
        of: Claim | Watch,
        outcome: Outcome,
        duration: float = 0.0,
        error: str | None = None,
        settled: Settled | None = None,
    ) -> None:
        hold = of.hold
        if hold.owed:
            assert hold.name is not None
            assert isinstance(hold.answer, Grant)
            if outcome is Outcome.FAILURE:
                self._collect_of(hold.name)
            self._session.report(
                hold.name,
                hold.answer,
                outcome,
                duration,
                error,
                settled,
                now=time.monotonic(),
                owed=hold,
            )
            self.watches.pop(hold, None)

    def _fail(self, failure: One, source: Lease) -> None:
        self._collect_of(failure.name)
        self._session.report_failure(failure, source, now=time.monotonic())

    def _report_totals(self, totals: Whole) -> None:
        self._session.report_totals(totals, now=time.monotonic())

    def _ask(self, *args: Any) -> None:
        self._collect()
        self._session.ask(*args)

    def _flush(self, waiter: ThreadWaiter) -> None:
        self._collect()
        self._session.flush(waiter)

    def _collect(self) -> None:
        """Take the outcomes from all leases, and leave them alone for some time."""
        now = time.monotonic()
        for _ in range(len(self._dirty)):
            lease = self._dirty[0]
            lease.noted = []  # first: what is left in it from now on is for the next time
            self._session.collect(lease, now=now)
            del self._dirty[0]
        self._collect_at = now + FLUSH_INTERVAL

    def _collect_of(self, name: str) -> None:
        """Take what has ended on a circuit before a failure, so that it counts before it.

        The leases stay among those that are to be collected: something may come until then.
        """
        for place in range(len(self._dirty)):  # callers append to it meanwhile
            lease = self._dirty[place]
            if lease.name == name:
                self._session.collect(lease, now=time.monotonic())

    def _abandon(self, waiter: ThreadWaiter | TaskWaiter, timed_out: bool) -> None:
        if not waiter.answered:
            self._session.abandon(waiter, timed_out=timed_out)
        else:
            self._report(waiter, Outcome.NEUTRAL)

    def _exchange(self, now: float) -> None:
        self._keep_needed(now)
        self._send()
        self._receive(now)  # after sending, which may swallow the signal that something came
        while self._session.outbox:
            self._send()
            self._receive(now)
        if self._session.away:
            self._keep_needed(now)

    def _keep_needed(self, now: float) -> None:
        """Open the connections that are needed, and close the others."""
        away = self._session.away
        if not away and len(self._session.wanted) == len(self._sockets) == len(self._descriptors):
            return
        needed = set(self._session.needed(now))
        for connection in self._sockets.keys() - needed:
            self._disconnect(connection)
        for connection in sorted(needed - self._sockets.keys()):
            if not self._connect(connection):
                self._session.cannot_connect(connection, now)
                break
        if len(self._descriptors) != len(self._sockets):
            self._watch_sockets()

    def _connect(self, connection: int) -> bool:
        """Open a connection; False: there are no descriptors for it."""
        if not have_descriptors(_DESCRIPTORS):
            return False
        path = (self._address.data_path, self._address.control_path)[connection]
        try:
            socket = self._context.socket(zmq.DEALER)
        except zmq.ZMQError as error:  # somebody else was faster
            log.debug("cannot connect: %s", error)
            return False
        # Every option before connect: set later, it would not count for this endpoint.
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # else a later manager gets what nobody waits for
        # Each new connection begins with an empty frame, which the manager answers with NO_SESSION:
        # so we hear of one that has broken and come back while we did not get to look.
        socket.setsockopt(zmq.PROBE_ROUTER, 1)
        socket.setsockopt(zmq.SNDHWM, _QUEUE)
        socket.setsockopt(zmq.RCVHWM, _QUEUE)
        socket.setsockopt(zmq.MAXMSGSIZE, 16 * MAX_FRAME)
        socket.setsockopt(zmq.RECONNECT_IVL, _RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, _RECONNECT_MAX_MS)
        socket.connect(f"ipc://{path}")
        self._online[connection] = self.online = False
        self._sockets = {**self._sockets, connection: socket}
        return True

    def _disconnect(self, connection: int) -> None:
        socket = self._sockets[connection]
        self._sockets = {to: one for to, one in self._sockets.items() if to != connection}
        del self._online[connection]
        self.online = all(self._online.values())
        self._watch_sockets()
        socket.close()

    def _watch_sockets(self) -> None:
        """Have the caller that watches, and the I/O thread, watch those that there are now."""
        descriptors = tuple(int(socket.fd) for socket in self._sockets.values())
        for fd in self._descriptors:
            with contextlib.suppress(KeyError):  # a signal handler has raised in here before
                self._watcher.unregister(fd)
        for fd in descriptors:
            self._watcher.register(fd, select.POLLIN)
        self._descriptors = descriptors
        self._wake.set()

    def _receive(self, now: float) -> None:
        """Take what has arrived, and note which connections are up."""
        for connection, socket in self._sockets.items():
            while (events := events_of(socket)) & READABLE:
                frames = receive_frames(socket)
                now = time.monotonic()  # not the turn's: a Welcome is compared with when it came
                for frame in frames:
                    self._take(connection, frame, now)
            online = bool(events & WRITABLE)
            if online is not self._online[connection]:
                # Before it is noted, so that it is done again if a signal handler comes in between.
                if online:
                    self._session.connected(connection, now)
                else:
                    self._session.disconnected(connection)
                self._note(connection, online)

    def _note(self, connection: int, online: bool) -> None:
        self._online[connection] = online
        self.online = all(self._online.values())
        if connection == DATA and not online:
            self._outage_level = logging.WARNING
            if self._on_loss is not None:
                self._on_loss()

    def _take(self, connection: int, frame: bytes, now: float) -> None:
        try:
            message = decode(frame, FROM_DATA if connection == DATA else FROM_CONTROL)
        except Malformed as wrong:
            log.warning("ignored what the manager at %s sent: %s", self._address, wrong)
            return
        self._session.received(connection, message, now)

    def _send(self) -> None:
        """Send what is due; what goes the same way goes together."""
        if not self._session.outbox:
            return
        # Taken out first and sent then: what a signal handler loses on the way is asked for again
        # after the next Welcome, but a request that is sent late, after it was answered and its
        # permit reported, would get a permit that nobody waits for.
        outbox, self._session.outbox = self._session.outbox, []
        for connection in self._sockets:
            frames = [encode(message) for to, message in outbox if to == connection]
            if frames and not self._try_send(connection, frames):
                self._note(connection, False)
                self._session.disconnected(connection)

    def _try_send(self, connection: int, frames: list[bytes]) -> bool:
        """False: not connected, or the manager does not read. The session keeps what matters."""
        socket = self._sockets[connection]
        try:
            for start in range(0, len(frames), MAX_FRAMES):
                send_frames(socket, frames[start : start + MAX_FRAMES])
        except zmq.Again:
            return False
        return True

    def _hand_over(self) -> None:
        session = self._session
        if session.away is not self._away:
            self._away = session.away
            self._log_away()
        if session.answers:
            while session.answers:
                waiter, answer = session.answers[0]
                waiter.complete(answer)
                if isinstance(answer, Grant) and answer != waiter.answer:
                    # It asked twice, because a turn was interrupted; the second permit goes back.
                    assert isinstance(waiter, Claim)
                    assert waiter.hold.name is not None
                    session.report(waiter.hold.name, answer, Outcome.NEUTRAL, now=time.monotonic())
                    self._wake.set()  # for a turn that sends it
                del session.answers[0]
            if self._watching not in (None, threading.get_ident()):
                self._nudge.set()  # it may have been its answer, and it waits for the socket
        if session.events:
            self._on_events(session.events)
            session.events = []
        if session.lost is not self._outage:
            self._outage = session.lost
            said = "does not answer" if self._outage else "answers again"
            log.log(self._outage_level, "the manager at %s %s", self._address, said)
            if not self._outage:
                self._outage_level = logging.WARNING
                self._on_return()

    def _log_away(self) -> None:
        refusal = self._session.refusal
        if not self._away:
            log.warning("the manager at %s has let us in", self._address)
            self._on_return()
        elif refusal is None:
            log.warning("no descriptor is left to connect to the manager at %s", self._address)
        else:
            log.warning("the manager at %s has no room for us: %s", self._address, refusal.text)
