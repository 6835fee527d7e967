"""The shell around the actor: two sockets, the timers, the signals, and one loop.

One process, one thread. What is decided is decided in `actor`; here bytes come in and go out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import operator
import os
import resource
import select
import signal
import time
from collections import deque
from collections.abc import Callable
from types import FrameType
from typing import Final

import zmq

from ..address import Address
from ..errors import ConfigError
from ..transport import READABLE, drop_rest, events_of, receive_frames, send_frames
from ..wire import (
    MAX_FRAME,
    MAX_FRAMES,
    TO_CONTROL,
    TO_DATA,
    Error,
    Goodbye,
    Hello,
    Malformed,
    Message,
    decode,
    encode,
)
from .actor import Actor, Send
from .doors import LOOK_AGAIN, Door, identity
from .journal import Journal
from .limits import MAX_CIRCUITS, MAX_CLIENTS, Limits
from .peers import Peers
from .sessions import CONTROL, DATA, Peer
from .upkeep import Upkeep

log = logging.getLogger("switchgear.manager")

_BATCH: Final = 128  # messages taken from one socket before the other one gets a look
_DROPPED: Final = 2_000  # frames in one turn of a message that has too many: a millisecond or two
_LAST_SECONDS: Final = 1.0  # for what comes after the order to stop
_QUIET_MS: Final = 50  # without a message, and there is none left that came before it
_QUEUE: Final = 1_000  # messages that may wait for one peer that does not read; a few 100 KiB
_LINGER_MS: Final = 500  # for the last answers, once the loop has ended
_POLL_MAX_MS: Final = 2**31 - 1  # poll() takes a C int: 24 days, then it is called again
_CLOCK_SLACK: Final = 0.01  # seconds the wall clock may drift before timestamps follow it
_GRACE: Final = 0.001  # seconds for what a process sent before its end; see _bury
_GRACE_MAX: Final = 5.0  # where there is always more to read: better late than one of it lost
_REST: Final = 50  # times as long as the journal took, others have their turn; but never more than
_REST_MAX: Final = 0.25  # seconds, because leases are renewed by what waits for it
_HANDSHAKE_MS: Final = 5_000  # for ZeroMQ's greeting; then a connection is closed
_SILENT: Final = 60.0  # seconds after which a client that cannot be watched may have ended

_NOBLOCK: Final = int(zmq.NOBLOCK)  # a plain int: see transport
_GREETINGS: Final = frozenset({Hello, Goodbye})
_peer_of: Final = operator.attrgetter("peer")


class AlreadyRunningError(ConfigError):
    """Another manager holds the address."""


class Server:
    """Binds an address and serves it until it is told to stop.

    Args:
        address: Where to listen; the directory is made if need be.
        until: File descriptors that end the server when they become readable, orderly.
        idle_exit: Seconds; for a server that nobody looks after. It ends when it was not used for
            so long, and when its files were removed or replaced.
        max_clients: How many it takes on; fewer where it may have too few descriptors.
        max_circuits: The same of circuits.

    Raises:
        AlreadyRunningError: A manager serves this address.
        ConfigError: The directory is unfit, see `Address.make_directory`, or a socket's path is.
    """

    def __init__(
        self,
        address: Address,
        until: tuple[int, ...] = (),
        idle_exit: float | None = None,
        *,
        max_clients: int = MAX_CLIENTS,
        max_circuits: int = MAX_CIRCUITS,
    ) -> None:
        if idle_exit is not None and not idle_exit > 0:
            raise ConfigError(f"idle_exit must be more than 0 seconds, got {idle_exit!r}")
        self._address = address
        self._lock = _lock(address)
        self._limits = limits = Limits.of(_raise_file_limit(), max_clients, max_circuits)
        now = time.monotonic()
        self._actor = Actor(
            time.time_ns() // 1000,
            os.getpid(),
            time.time() - now,
            max_clients=limits.clients,
            max_circuits=limits.circuits,
        )
        self._journal = Journal(address.journal_path)
        self._rests_until = 0.0  # the journal does, while there is something else to do
        self._resume(now)
        self._context = zmq.Context(io_threads=1)
        self._doors: list[Door] = []
        self._sockets = (
            self._bind(address.data_path, limits.connections),
            self._bind(address.control_path, limits.questions),
        )
        self._cleared_at = now - _SILENT
        self._upkeep = None if idle_exit is None else Upkeep(idle_exit, self._lost, now)
        self._wakeup_read, self._wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._ends = {self._wakeup_read, *until}
        self._peers = Peers()
        self._ended: deque[tuple[float, bytes]] = deque()  # when it was seen, and whose process
        self._descriptors = {int(socket.fd): n for n, socket in enumerate(self._sockets)}
        # The sockets that may hold a message, whatever their descriptors say: those signal once,
        # and a send may take the signal.
        self._unread = {DATA, CONTROL}
        self._oversized: set[int] = set()  # in the middle of a message with too many frames
        self._poll = select.poll()  # and not zmq.Poller, which asks each socket several times over
        doors = [door.fileno() for door in self._doors]
        for fd in (*self._descriptors, *self._ends, self._peers.fileno(), *doors):
            self._poll.register(fd, select.POLLIN)

    def _resume(self, now: float) -> None:
        """Go on where a predecessor stood, if there was one."""
        saved = self._journal.open(self._actor.utc_offset)
        if saved is not None:
            self._actor.restore(saved, now)
            log.info("goes on with %d circuits of manager %d", len(saved.circuits), saved.epoch)
        self._begin_journal()

    def _begin_journal(self) -> None:
        actor = self._actor
        self._journal.begin(actor.epoch, actor.origin, actor.utc_offset, actor.everything())

    def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Run until a signal, a Shutdown message or a descriptor of `until` says to end.

        Must be called in the main thread: SIGTERM and SIGINT mean an orderly stop.

        Args:
            ready: Called once the sockets answer.
        """
        self._catch_signals()
        log.info("manager %d serves %s", os.getpid(), self._address)
        log.info("up to %d clients, up to %d circuits", *self._limits[:2])
        ready()
        try:
            while not self._actor.stopping:
                self._turn()
            self._drain()
        finally:
            self._close()
        log.info("manager %d has stopped", os.getpid())

    def _turn(self) -> None:
        self._wait()
        now = time.monotonic()
        self._correct_clock(now)
        self._send(self._actor.tick(now), now)
        for socket in (CONTROL, DATA):  # control first: an operator gets an answer under load
            if socket in self._unread:
                self._take(socket, now)
        if self._ended:
            self._bury(now)
        if self._upkeep is not None and not self._unread:
            reason = self._upkeep.reason_to_end(self._actor.idle_since, now)
            if reason is not None:
                log.info("manager %d ends: %s", os.getpid(), reason)
                self._actor.stopping = True
        self._save(now)

    def _save(self, now: float) -> None:
        """Save what is to be saved by now, and acknowledge what that was waited for.

        Somebody may wait for it, but others for their turn: as long as there is more to read, it
        takes no more than a small share of the time.
        """
        retry_at = self._journal.retry_at
        if retry_at is not None and retry_at <= now and self._journal.reopen(now):
            self._begin_journal()
        save_by = self._actor.save_by
        if save_by is None or save_by > now or (self._unread and now < self._rests_until):
            return
        began = time.monotonic()
        self._journal.write(self._actor.save())
        ended = time.monotonic()
        self._rests_until = ended + min(_REST * (ended - began), _REST_MAX)
        self._send(self._actor.saved(now), now)

    def _deadline(self) -> float | None:
        """When there is something to do at the latest, if nothing arrives."""
        deadlines = [self._actor.next_deadline, self._journal.retry_at]
        if self._ended:
            deadlines.append(self._ended[0][0] + _GRACE)
        if self._upkeep is not None:
            deadlines.append(self._upkeep.next_deadline(self._actor.idle_since))
        if any(door.shut for door in self._doors):
            deadlines.append(time.monotonic() + LOOK_AGAIN)
        return min((each for each in deadlines if each is not None), default=None)

    def _wait(self) -> None:
        """Until something has arrived, a deadline has come, or it is time to end."""
        deadline = self._deadline()
        if self._unread:
            timeout = 0
        elif deadline is None:
            timeout = None
        else:
            # Rounded up: waking a little early would only mean to wait again.
            timeout = max(0, int((deadline - time.monotonic()) * 1000 + 1))
            timeout = min(timeout, _POLL_MAX_MS)
        look = False
        for fd, _ in self._poll.poll(timeout):
            if fd in self._ends:
                self._actor.stopping = True
            elif fd == self._peers.fileno():
                seen = time.monotonic()
                self._ended += [(seen, session) for session in self._peers.ended()]
            elif fd in self._descriptors:
                self._unread.add(self._descriptors[fd])
            else:
                look = True
        if look or any(door.shut for door in self._doors):
            self._look_at_doors()

    def _look_at_doors(self) -> None:
        for door in self._doors:
            door.look()

    def _take(self, socket: int, now: float) -> int:
        """Answer what has arrived on one socket, in order, up to a limit; say how many it was."""
        source = self._sockets[socket]
        count = 0
        if socket in self._oversized and not self._drop_rest(socket):
            return 1
        with contextlib.suppress(zmq.Again):
            while count < _BATCH:
                # To look first costs half of what the exception does; but not for each of many.
                if count < 2 and not events_of(source) & READABLE:
                    break
                peer = Peer(socket, source.recv(_NOBLOCK))
                count += 1
                if socket == DATA and self._actor.session_of(peer) is None:
                    frames = self._meet(peer, now)
                else:
                    frames = receive_frames(source, MAX_FRAMES)
                    self._handle(peer, frames, now)
                if len(frames) == MAX_FRAMES and not self._drop_rest(socket):
                    return count
        if count < _BATCH:
            self._unread.discard(socket)  # it held nothing when we looked, after the last send
        return count

    def _drop_rest(self, socket: int) -> bool:
        """Drop what a message has beyond its limit, or some of it: the rest has another turn."""
        done = drop_rest(self._sockets[socket], _DROPPED)
        if done:
            self._oversized.discard(socket)
        else:
            self._oversized.add(socket)
            self._unread.add(socket)
        return done

    def _meet(self, peer: Peer, now: float) -> list[bytes]:
        """Take what comes from an unknown connection, and with it who is there."""
        source = self._sockets[DATA]
        first = source.recv(_NOBLOCK, copy=False)
        frames = [first.bytes]
        if first.more:
            frames += receive_frames(source, MAX_FRAMES - 1)
        self._handle(peer, frames, now, first)
        return frames

    def _handle(
        self, peer: Peer, frames: list[bytes], now: float, first: zmq.Frame | None = None
    ) -> None:
        sends: list[Send] = []
        for frame in frames:
            sends += self._answer(peer, frame, now, first)
        self._send(sends, now)

    def _answer(
        self, peer: Peer, frame: bytes, now: float, first: zmq.Frame | None = None
    ) -> list[Send]:
        try:
            message = decode(frame, TO_DATA if peer.socket == DATA else TO_CONTROL)
        except Malformed as wrong:
            log.debug("refused a message: %s", wrong)
            return [Send(peer, Error(wrong.kind, wrong.ref, wrong.code, wrong.text))]
        if type(message) in _GREETINGS:
            return self._greet(peer, message, now, first)
        return self._actor.receive(peer, message, now)

    def _greet(
        self, peer: Peer, message: Message, now: float, first: zmq.Frame | None
    ) -> list[Send]:
        """Somebody comes or goes: have them watched, or no longer."""
        self._look_at_doors()  # where there is one there may be a crowd, too many for one turn
        if self._actor.full:
            self._clear_out(now)
        before = self._actor.session_of(peer)
        # The turn may have begun before a Hello was sent, and then our clock would not pass for the
        # client's own. It moves no circuit, so for these the time is still the turn's.
        instant = self._clock() if type(message) is Hello else now
        sends = self._actor.receive(peer, message, instant)
        session = self._actor.session_of(peer)
        if session is before:
            return sends
        if session is None:
            assert before is not None
            self._peers.forget(before.token)  # it has taken leave
        elif before is not None:
            self._peers.share(session.token, before.token)
        elif not self._peers.meet(session.token, first, session.started):
            sends += self._actor.died(session, now)
        return sends

    def _clear_out(self, now: float) -> None:
        """Forget clients whose end nobody would tell, and who may have ended long ago.

        One that has not greets again, and has lost nothing: nothing of it was on its way.
        """
        if now < self._cleared_at + _SILENT:
            return
        self._cleared_at = now
        for session in self._actor.silent(now - _SILENT):
            if not self._peers.watches(session.token):
                self._send(self._actor.give_up(session, now), now)

    def _bury(self, now: float) -> None:
        """Take back what belongs to processes that have ended, and after what they had sent.

        That may still be on its way through ZeroMQ's own thread, so they get a moment; or behind
        what others have sent, and so the socket must have been seen empty after it.
        """
        grace = _GRACE_MAX if DATA in self._unread else _GRACE
        while self._ended and self._ended[0][0] + grace <= now:
            _, token = self._ended.popleft()
            session = self._actor.session(token)
            if session is None or self._peers.watches(token):
                continue  # its Goodbye was on the way; or a new connection, and whose end is told
            held = len(session.granted)
            # With a probe goes the recovery of a circuit; a pool kills its workers all the time.
            probes = any(granted.deadline is not None for granted in session.granted.values())
            level = logging.WARNING if probes else logging.INFO
            log.log(level, "process %d died; permits that come back: %d", session.pid, held)
            self._send(self._actor.died(session, now), now)

    def _send(self, sends: list[Send], now: float) -> None:
        """Send all; what goes to one peer in a row goes as one ZeroMQ message."""
        if not sends:
            return
        if self._actor.news:  # nobody is told what a crash could still forget
            self._journal.write(self._actor.take_news())
        for peer, group in itertools.groupby(sends, key=_peer_of):
            batch = list(group)
            failed = self._try_send(peer, batch)
            if failed is not None:
                gone = failed == zmq.EHOSTUNREACH
                for send in batch:
                    self._send(self._actor.undelivered(send, now, gone=gone), now)

    def _try_send(self, peer: Peer, batch: list[Send]) -> int | None:
        """Send one ZeroMQ message; an error number says the peer is gone, or does not read."""
        frames = [peer.address, *(encode(send.message) for send in batch)]
        self._unread.add(peer.socket)
        try:
            send_frames(self._sockets[peer.socket], frames)
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            log.debug("dropped %d messages: %s", len(batch), error)
            return error.errno
        return None

    def _drain(self) -> None:
        """Answer what was sent before the stop.

        It may still be on its way through ZeroMQ's own thread, so the end is when nothing has come
        for a moment; a limit keeps busy clients from delaying it.
        """
        arrival = select.poll()
        for fd in self._descriptors:
            arrival.register(fd, select.POLLIN)
        limit = time.monotonic() + _LAST_SECONDS
        while (now := time.monotonic()) < limit:
            self._send(self._actor.tick(now), now)
            if not self._take(CONTROL, now) + self._take(DATA, now) and not arrival.poll(_QUIET_MS):
                break
        self._journal.write(self._actor.save())
        self._send(self._actor.last_words(), now)

    def _clock(self) -> float:
        return time.monotonic()

    def _correct_clock(self, now: float) -> None:
        offset = time.time() - now
        if abs(offset - self._actor.utc_offset) > _CLOCK_SLACK:
            self._actor.utc_offset = offset
            self._journal.correct(offset)

    def _lost(self) -> str | None:
        """Which of our files is not there any more; who looks for us would not find us."""
        lost = [door.path for door in self._doors if door.lost]
        if identity(self._address.lock_path) != identity(self._lock):
            lost.append(self._address.lock_path)
        return f"{lost[0]} was removed or replaced" if lost else None

    def _bind(self, path: str, descriptors: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(zmq.ROUTER)
        # Every option before bind: set later, it would not count for this endpoint.
        socket.setsockopt(zmq.LINGER, _LINGER_MS)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.SNDHWM, _QUEUE)
        socket.setsockopt(zmq.RCVHWM, _QUEUE)
        socket.setsockopt(zmq.MAXMSGSIZE, 16 * MAX_FRAME)
        socket.setsockopt(zmq.BACKLOG, self._limits.backlog)
        socket.setsockopt(zmq.HANDSHAKE_IVL, _HANDSHAKE_MS)
        door = Door(self._context, socket, path, descriptors)
        self._doors.append(door)
        mask = os.umask(0o177)
        try:
            socket.bind(f"ipc://{path}")
        except zmq.ZMQError as error:
            reason = os.strerror(error.errno or 0)
            raise ConfigError(f"cannot listen at {path}: {reason}; see what is there") from error
        finally:
            os.umask(mask)
        door.bound()
        return socket

    def _catch_signals(self) -> None:
        def stop(number: int, frame: FrameType | None) -> None:
            self._actor.stopping = True

        signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # who started us may have blocked some
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)

    def _close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._peers.close()
        self._journal.close()
        for door in self._doors:
            door.close()
        for socket in self._sockets:  # not before: nobody could tell a new file of that number
            socket.close()
        self._context.term()
        for fd in (self._wakeup_read, self._wakeup_write, self._lock):
            os.close(fd)


def _lock(address: Address) -> int:
    """Become the one manager of an address: `ipc` lets a second one bind and steal the path.

    The lock goes with the process, however it ends, and we never remove the file: whoever waits
    for the lock waits for the same file.
    """
    address.make_directory()
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        fd = os.open(address.lock_path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise AlreadyRunningError(
                f"a manager (process {pid}) already serves {address}"
            ) from None
        if identity(address.lock_path) == identity(fd):
            break
        os.close(fd)  # somebody has removed it since we opened it: who comes next has another one
    os.ftruncate(fd, 0)
    try:
        os.write(fd, f"{os.getpid()}\n".encode())
    except OSError as error:
        # The number is only for who finds us here; without it is better than not at all.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
    return fd


def _raise_file_limit() -> int:
    """Be allowed as many descriptors as can be, and say how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 2**20
