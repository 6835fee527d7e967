"""A manager's process: the real actor and a journal, and around them what `server.py` does.

It takes one message a turn, because more at once would only mean fewer moments to die at.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from switchgear.manager.actor import Actor, Send
from switchgear.manager.sessions import DATA, Peer, Session
from switchgear.manager.unsaved import Changes, Saved
from switchgear.wire import TO_CONTROL, TO_DATA, Error, Hello, Malformed, decode

from .network import Connection, Network
from .oracle import WITNESS, Oracle
from .world import IDLE, Idle, World

if TYPE_CHECKING:
    from .processes import Process

RETRY: Final = 0.2  # seconds until a journal that cannot be written is tried again
REST_MAX: Final = 0.25  # seconds that a busy journal rests; as in server.py
GRACE: Final = 0.005  # seconds until a dead process's permits come back, at the most


class Killed(Exception):
    """The manager is no more; it was in the middle of writing something.

    Attributes:
        written: That is in the journal all the same.
    """

    def __init__(self, *, written: bool) -> None:
        super().__init__(written)
        self.written = written


class Journal(Protocol):
    """Where a manager writes down what its successor must know. Survives it.

    Attributes:
        failing: It could not be written, and is not until it is reopened and begun again.
    """

    @property
    def failing(self) -> bool: ...

    def succeed(self, epoch: int, utc_offset: float) -> Saved | None:
        """A new manager opens it: what has its predecessor left?"""

    def begin(self, epoch: int, origin: int, utc_offset: float, everything: Changes) -> None:
        """See `switchgear.manager.journal.Journal.begin`. Raises Killed, as `write`."""

    def write(self, changes: Changes) -> None:
        """Write all or nothing. Raises Killed where the manager was to die over it."""

    def reopen(self) -> bool:
        """Try again; False: in vain."""

    def doom(self, chance: float) -> None:
        """Have the manager die over what it writes next, early or late in it."""

    def spare(self) -> None:
        """Have nobody die over it who was to."""

    def fill(self, chance: float) -> None:
        """Have no room for what is written next, early or late in it, nor for anything else."""

    def clear(self) -> None:
        """There is room again."""


class Manager:
    """One life of a manager.

    Args:
        epoch: Which one.
        world: Where it is.
        network: Whom it talks to.
        oracle: Who watches it.
        journal: What its predecessors have left.
        skew: Its clock less the others', seconds.
        utc_offset: Its clock's distance from the time of day, seconds.
        busy: The chance that its journal rests after a write.

    Raises:
        Killed: Over the beginning of its journal.
    """

    def __init__(
        self,
        epoch: int,
        world: World,
        network: Network,
        oracle: Oracle,
        journal: Journal,
        skew: float,
        utc_offset: float,
        busy: float,
    ) -> None:
        self.dead = False
        self.stopped = False
        self._world = world
        self._network = network
        self._oracle = oracle
        self._journal = journal
        self._skew = skew
        self._busy = busy
        self._rests_until = 0.0
        self._wakes_at = float("inf")
        self._unread: deque[tuple[Connection, bytes]] = deque()  # while it is stopped
        self._met: set[bytes] = set()  # sessions whose process's end it would be told
        self.actor = Actor(epoch, epoch, utc_offset)
        now = world.now + skew
        saved = journal.succeed(epoch, utc_offset)
        if saved is not None:
            self.actor.restore(saved, now)
        oracle.manager_begins(self.actor, now, saved)
        self._begin_journal()
        oracle.subscribed(self.actor, now)
        self._plan()

    def _begin_journal(self) -> None:
        actor = self.actor
        try:
            self._journal.begin(actor.epoch, actor.origin, actor.utc_offset, actor.everything())
        except Killed as death:
            if death.written:
                self._oracle.wrote_everything()
            raise
        if self._journal.failing:
            self._fall_behind()
        else:
            self._oracle.wrote_everything()

    def _fall_behind(self) -> None:
        self._oracle.falls_behind()
        self._world.after(self._world.between(0.0, RETRY), self._catch_up)

    def _catch_up(self) -> Idle | None:
        if self.dead or not self._journal.failing:
            return IDLE
        if self.stopped or not self._journal.reopen():
            self._world.after(RETRY, self._catch_up)
            return IDLE
        return self._turn(self._begin_journal)

    # -- turns -------------------------------------------------------------------------------------

    def arrive(self, connection: Connection, frame: bytes) -> Idle | None:
        """A message has come."""
        if self.dead:
            return IDLE
        if self.stopped:
            self._unread.append((connection, frame))
            return IDLE
        return self._turn(self._take, connection, frame)

    def _turn(self, happens: Callable[..., None], *args: object) -> None:
        """Do what is to be done, then save; it may be the last that this manager does."""
        try:
            happens(*args)
            self._save()
        except Killed:
            self._oracle.life.manager_died("over the journal")
        else:
            self._plan()

    def _take(self, connection: Connection, frame: bytes) -> None:
        world, actor = self._world, self.actor
        world.witness(frame)
        now = world.now + self._skew
        self._tick(now)
        try:
            message = decode(frame, TO_DATA if connection.socket == DATA else TO_CONTROL)
        except Malformed as wrong:  # the empty frame that a connection begins with
            refusal = Error(wrong.kind, wrong.ref, wrong.code, wrong.text)
            self._send([Send(connection.peer, refusal)], now)
            return
        if world.tracing:
            world.note(f"{connection.process} >", message)
        if type(message) is Hello and connection.socket == DATA:
            self._met.add(message.session)
        sends = actor.receive(connection.peer, message, now)
        self._oracle.took(connection.peer, message, now, sends)
        self._send(sends, now)

    def _tick(self, now: float) -> None:
        deadline = self.actor.next_deadline
        if deadline is not None and deadline <= now:
            sends = self.actor.tick(now)
            self._oracle.ticked(now, sends)
            self._send(sends, now)

    def _wake(self, due: float) -> Idle | None:
        if self.dead or due != self._wakes_at:
            return IDLE
        self._wakes_at = float("inf")
        if self.stopped:
            return IDLE
        return self._turn(self._tick, self._world.now + self._skew)

    def _plan(self) -> None:
        """Wake up when there is something to do."""
        deadline = self.actor.next_deadline
        if deadline is None:
            return
        due = deadline - self._skew
        if due < self._rests_until and deadline == self.actor.save_by:
            due = self._rests_until  # timers that are due earlier come with a message, or late
        due = max(due, self._world.now)
        if due + self._skew < deadline:
            due += 1e-6  # what rounding took from it; a clock would come back to it, too
        if due < self._wakes_at:
            self._wakes_at = due
            self._world.at(due, self._wake, due)

    def _save(self) -> None:
        world, actor = self._world, self.actor
        if world.now < self._rests_until:
            return
        save_by = actor.save_by
        if save_by is None or save_by > world.now + self._skew:
            return
        self._write(actor.save(), self._oracle.wrote_all)
        if world.chance() < self._busy:
            self._rests_until = world.now + world.between(0.0, REST_MAX)
        now = world.now + self._skew
        self._send(actor.saved(now), now)

    def _send(self, sends: list[Send], now: float) -> None:
        if not sends:
            return
        if self.actor.news:
            self._write(self.actor.take_news(), self._oracle.wrote_news)
        for peer, group in itertools.groupby(sends, key=lambda send: send.peer):
            if peer is not WITNESS:
                self._send_together(peer, list(group), now)

    def _send_together(self, peer: Peer, sends: list[Send], now: float) -> None:
        failed = self._network.send(peer, [send.message for send in sends])
        if failed is None:
            for send in sends:
                self._oracle.told(peer, send.message)
            return
        for send in sends:
            undone = self.actor.undelivered(send, now, gone=failed)
            self._oracle.undelivered(peer, send.message, now, undone, gone=failed)
            self._send(undone, now)

    def _write(self, changes: Changes, written: Callable[[], None]) -> None:
        if self._journal.failing:
            return
        try:
            self._journal.write(changes)
        except Killed as death:
            if death.written:
                written()
            raise
        if self._journal.failing:
            self._fall_behind()
        else:
            written()

    # -- what happens to it ------------------------------------------------------------------------

    def bury(self, process: Process) -> object:
        """A process has ended, and nothing of it is left on its way."""
        session = self.actor.session(process.token)
        if self.dead or session is None or process.token not in self._met:
            return IDLE
        if self.stopped:
            self._world.after(GRACE, self.bury, process)
            return IDLE
        return self._turn(self._bury, session, self._world.now + self._skew)

    def _bury(self, session: Session, now: float) -> None:
        self._tick(now)
        sends = self.actor.died(session, now)
        self._oracle.process_died(session.token, now, sends)
        self._send(sends, now)

    def go_on(self) -> object:
        """It was stopped, and runs again."""
        if self.dead or not self.stopped:
            return IDLE
        self.stopped = False
        unread, self._unread = self._unread, deque()
        for connection, frame in unread:
            self._world.after(0.0, self.arrive, connection, frame)
        self._network.listen(self)
        self._plan()
        return None

    def end(self) -> None:
        """End in good order: save all, and answer what waits for it."""
        now = self._world.now + self._skew
        self._write(self.actor.save(), self._oracle.wrote_all)
        self._send(self.actor.last_words(), now)

    def set_time_of_day(self, utc_offset: float) -> None:
        """Somebody has set the wall clock."""
        self.actor.utc_offset = utc_offset
