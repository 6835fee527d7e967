"""What must survive a kill, in a SQLite file next to the sockets.

A commit hands the data to the kernel and waits for no disk: it survives the death of this process,
whatever kills it, but not that of the machine. After a boot the file is used if it is sound; the
instants in it are moved to the new monotonic clock, and no client of then is left.

SQLite's errors end here. A file that cannot be used is put aside and said so, and one that cannot
be written is done without until it can: a breaker that forgets is better than none.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import sqlite3
import stat
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple

from ..circuit import Counts, Standing, Totals
from ..config import MAX_SECONDS, CircuitConfig, check_name
from ..errors import ConfigError, ProtocolError
from ..states import State
from ..wire import FROM_CONTROL, HISTORY, MAX_ERROR_CHARACTERS, Event, decode, encode
from .sessions import SavedSession
from .unsaved import Changes, Saved

log = logging.getLogger("switchgear.manager")

FORMAT: Final = 1  # of the file; another one is not read
_LOCK_PATIENCE: Final = 1.0  # seconds that somebody else may hold the file, to look at it
_RETRY: Final = 1.0  # seconds until a file that could not be written is tried again, then
_RETRY_MAX: Final = 30.0  # twice as long each time, up to this

_LARGEST: Final = 2**62  # of the whole numbers in it, but for
_LARGEST_SAID: Final = 2**63 - 1  # those that a client says of itself: the wire's
_LATEST: Final = 253_402_300_799.0  # seconds of Unix time: the end of the year 9999

_SCHEMA: Final = f"""
    CREATE TABLE life (
        boot TEXT NOT NULL, utc_offset REAL NOT NULL,
        epoch INTEGER NOT NULL, origin INTEGER NOT NULL);
    CREATE TABLE circuits (
        name TEXT NOT NULL PRIMARY KEY,
        config TEXT NOT NULL, state TEXT NOT NULL, generation INTEGER NOT NULL,
        half_open_at REAL, state_changed_at REAL NOT NULL,
        closed INTEGER NOT NULL, opened INTEGER NOT NULL, half_opened INTEGER NOT NULL,
        counted_generation INTEGER, consecutive_successes INTEGER, consecutive_failures INTEGER,
        successes INTEGER, failures INTEGER, neutral INTEGER, rejected INTEGER,
        permits_lost INTEGER, stale_reports INTEGER,
        last_error TEXT, last_error_at REAL, durations BLOB);
    CREATE TABLE sessions (
        token BLOB NOT NULL PRIMARY KEY,
        pid INTEGER NOT NULL, started INTEGER NOT NULL, reports INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE events (
        name TEXT NOT NULL, slot INTEGER NOT NULL,
        version INTEGER NOT NULL, message BLOB NOT NULL,
        PRIMARY KEY (name, slot)) WITHOUT ROWID;
    PRAGMA user_version = {FORMAT};
"""
_STANDING: Final = """
    INSERT INTO circuits (name, config, state, generation, half_open_at, state_changed_at,
        closed, opened, half_opened)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET config = excluded.config, state = excluded.state,
        generation = excluded.generation, half_open_at = excluded.half_open_at,
        state_changed_at = excluded.state_changed_at, closed = excluded.closed,
        opened = excluded.opened, half_opened = excluded.half_opened
"""
_COUNTS: Final = """
    UPDATE circuits SET counted_generation = ?, consecutive_successes = ?,
        consecutive_failures = ?, successes = ?, failures = ?, neutral = ?, rejected = ?,
        permits_lost = ?, stale_reports = ?, last_error = ?, last_error_at = ?, durations = ?
    WHERE name = ?
"""
_EVENT: Final = "INSERT OR REPLACE INTO events VALUES (?, ?, ?, ?)"
_SESSION: Final = "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?)"


class _UnusableError(Exception):
    """Why a file is of no use, to follow its name."""


class Journal:
    """One manager's file. Not thread-safe.

    Args:
        path: Where it is, or is to be.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._behind = f"{path}.behind"  # it is there when the file could not be written
        self._db: sqlite3.Connection | None = None  # None: it is done without
        self._slots: dict[str, Iterator[int]] = {}  # where a circuit's next event goes
        self._failing = False  # and that has been logged
        self._retry_at = 0.0
        self._patience = _RETRY

    def open(self, utc_offset: float) -> Saved | None:
        """Open the file and read what a predecessor has left; None: nothing that can be used.

        Args:
            utc_offset: What to add to a time on our clock to get seconds of Unix time.

        Raises:
            ConfigError: Another program has it locked, or it is out of our reach.
        """
        try:
            saved = _read(self._connect(), utc_offset)
            # Generations and versions that are not in it were told: they must not come again.
            behind = os.path.lexists(self._behind) or _marked(self._path)
            return saved._replace(origin=None) if saved is not None and behind else saved
        except sqlite3.Error as error:
            if _says(error, "locked"):
                self.close()
                raise ConfigError(
                    f"another program has the journal {self._path} locked; end that program"
                ) from error
            if _says(error, "unable to open", "readonly"):
                self.close()
                raise ConfigError(f"cannot open the journal {self._path}: {error}") from error
            if _says(error, "full", "disk I/O"):
                self._give_up(error)
                return None
            reason = f"is damaged ({error})"
        except _UnusableError as error:
            reason = str(error)
        self._put_aside(reason)
        try:
            self._connect()
        except sqlite3.Error as error:
            self._give_up(error)
        return None

    def begin(self, epoch: int, origin: int, utc_offset: float, everything: Changes) -> None:
        """Begin this life of the manager with all that is to be known of it so far.

        Args:
            epoch: Its epoch.
            origin: That of the first manager in its line.
            utc_offset: As in `open`.
            everything: What the file says from now on.
        """
        self._slots.clear()
        life = (_boot(), utc_offset, epoch, origin)

        def write(db: sqlite3.Connection) -> None:
            for table in ("life", "circuits", "sessions", "events"):
                db.execute(f"DELETE FROM {table}")
            db.execute("INSERT INTO life VALUES (?, ?, ?, ?)", life)
            self._write(db, everything)

        if not self._commit(write):
            return
        with contextlib.suppress(OSError):
            os.unlink(self._behind)
        with contextlib.suppress(OSError):
            _mark(self._path, behind=False)
        if self._failing:
            self._failing = False
            self._patience = _RETRY
            log.warning("the journal %s is written again", self._path)

    def write(self, changes: Changes) -> None:
        """Write some changes, all or none; they are safe when this returns.

        Unless the file cannot be written: then nothing is, until `reopen` and another `begin`.
        """
        if changes:
            self._commit(lambda db: self._write(db, changes))

    def correct(self, utc_offset: float) -> None:
        """Note that the time of day was set, or all instants in it would be off at the next boot.

        Args:
            utc_offset: As in `open`, from now on.
        """
        self._commit(lambda db: db.execute("UPDATE life SET utc_offset = ?", (utc_offset,)))

    @property
    def retry_at(self) -> float | None:
        """When to `reopen` the file, because it could not be written; None: it is."""
        return self._retry_at if self._db is None else None

    def reopen(self, now: float) -> bool:
        """Try again; False: in vain. A file that opens may still be one that cannot be written."""
        try:
            self._connect()
        except (sqlite3.Error, ConfigError, _UnusableError):
            self.close()
            self._wait(now)
            return False
        return True

    def close(self) -> None:
        """Close the file: all that was written is in it, and nothing beside it."""
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
            self._db = None

    def _connect(self) -> sqlite3.Connection:
        _create(self._path)
        db = sqlite3.connect(self._path, timeout=_LOCK_PATIENCE, isolation_level=None)
        self._db = db  # to be closed by us, whatever comes: closing takes away what is beside it
        # Alone with it, we need no shared memory beside it; and nobody can lock us out later.
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        found = db.execute("PRAGMA user_version").fetchone()[0]
        new = found == 0 and not db.execute("SELECT name FROM sqlite_master").fetchone()
        if not new and found != FORMAT:  # before a page of it is changed: it is not ours
            raise _UnusableError(f"is of format {found}, and this manager reads {FORMAT}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = OFF")
        if new:
            db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        return db

    def _commit(self, write: Callable[[sqlite3.Connection], object]) -> bool:
        if self._db is None:
            return False
        try:
            self._db.execute("BEGIN")
            write(self._db)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(error)
            return False
        return True

    def _write(self, db: sqlite3.Connection, changes: Changes) -> None:
        standings, events, counts, sessions, ended = changes
        db.executemany(_STANDING, [_standing_row(*each) for each in standings])
        db.executemany(_EVENT, [self._event_row(event) for event in events])
        db.executemany(_COUNTS, [_counts_row(*each) for each in counts])
        db.executemany(_SESSION, sessions)
        db.executemany("DELETE FROM sessions WHERE token = ?", [(token,) for token in ended])

    def _event_row(self, event: Event) -> tuple[object, ...]:
        slots = self._slots.get(event.name)
        if slots is None:
            slots = self._slots[event.name] = itertools.cycle(range(HISTORY))
        return event.name, next(slots), event.version, encode(event)

    def _give_up(self, error: sqlite3.Error) -> None:
        self.close()
        # Twice, because a full disk may have no room for a file's name, not even for one without a
        # byte in it, and there are file systems that keep no modes.
        with contextlib.suppress(OSError):
            _mark(self._path, behind=True)
        with contextlib.suppress(ConfigError):
            _create(self._behind)
        self._wait(time.monotonic())
        if not self._failing:  # one line, and not one for every time it is tried
            log.error(
                "cannot write the journal %s (%s): what happens from now on is lost with this "
                "manager, until it can be written again",
                self._path,
                error,
            )
        self._failing = True

    def _wait(self, now: float) -> None:
        self._retry_at = now + self._patience
        self._patience = min(2 * self._patience, _RETRY_MAX)

    def _put_aside(self, reason: str) -> None:
        """Keep a file that is of no use, with what was not yet moved into it."""
        aside = _free_name(f"{self._path}.{datetime.now(timezone.utc):%Y%m%dT%H%M%SZ}")
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(self._path + suffix, aside + suffix)
        self.close()  # not before, because that takes the log away
        log.error(
            "the journal %s %s: it is kept as %s, and every circuit begins anew",
            self._path,
            reason,
            aside,
        )


def _create(path: str) -> None:
    """Have a file there that is nobody else's to read."""
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    except OSError as error:
        # sqlite says so too, and without is better than not at all
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise ConfigError(f"cannot open the journal {path}: {error.strerror}") from error


def _mark(path: str, *, behind: bool) -> None:
    """Note on the file itself whether more was told than is in it, in a bit that has no meaning."""
    mode = stat.S_IMODE(os.stat(path).st_mode) & ~stat.S_IXUSR
    os.chmod(path, mode | stat.S_IXUSR if behind else mode)


def _marked(path: str) -> bool:
    return bool(os.stat(path).st_mode & stat.S_IXUSR)


def _free_name(name: str) -> str:
    """It, or the first one like it that is not taken."""
    others = (f"{name}.{number}" for number in itertools.count(2))
    return next(each for each in itertools.chain((name,), others) if not os.path.lexists(each))


def _says(error: sqlite3.Error, *texts: str) -> bool:
    # By its text: Python 3.10 does not tell the code.
    return any(text in str(error) for text in texts)


def _boot() -> str:
    """Which life of the machine this is: another one has another monotonic clock."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()
    return ""


# -- rows ------------------------------------------------------------------------------------------


def _standing_row(name: str, standing: Standing) -> tuple[object, ...]:
    config, state, generation, half_open_at, state_changed_at, entries = standing
    text = json.dumps(asdict(config))
    return name, text, state.value, generation, half_open_at, state_changed_at, *entries


def _counts_row(name: str, counts: Counts) -> tuple[object, ...]:
    generation, successes_in_a_row, failures_in_a_row, totals, lost, stale, last_error_at = counts
    return (
        *(generation, successes_in_a_row, failures_in_a_row),
        *(totals.successes, totals.failures, totals.neutral, totals.rejected),
        *(lost, stale, totals.last_error, last_error_at),
        *(array("d", totals.durations).tobytes(), name),
    )


def _read(db: sqlite3.Connection, utc_offset: float) -> Saved | None:
    """What is in the file, its instants on our clock; None: nothing yet."""
    damage = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if damage != "ok":
        raise _UnusableError(f"is damaged ({damage})")
    life = db.execute("SELECT boot, utc_offset, epoch, origin FROM life").fetchone()
    if life is None:
        return None
    try:
        return _saved(db, life, utc_offset)
    except (TypeError, ValueError, ProtocolError) as error:
        raise _UnusableError(f"is damaged ({error})") from error


def _saved(db: sqlite3.Connection, life: tuple[Any, ...], utc_offset: float) -> Saved:
    boot, their_utc_offset, epoch, origin = life
    same_boot = boot == _boot()
    clock = None
    if not same_boot:
        shift = _number(their_utc_offset, _LATEST) - utc_offset
        clock = _Clock(shift, max(-MAX_SECONDS, -utc_offset), time.monotonic())
    if _whole(origin) > _whole(epoch):
        raise ValueError(f"manager {epoch} is in the line of {origin}, which is later")
    rows = db.execute("SELECT * FROM circuits")
    circuits = {row[0]: _circuit(row, clock) for row in rows}
    sessions = [_session(row) for row in db.execute("SELECT * FROM sessions")]
    rows = db.execute("SELECT name, version, message FROM events ORDER BY version")
    events = [_event(*row) for row in rows]
    return Saved(epoch, origin, circuits, sessions if same_boot else [], events)


class _Clock(NamedTuple):
    """Our clock, beside that of an earlier boot."""

    shift: float  # what to add to an instant on that one
    earliest: float  # instant, which is one that can be told and written again
    now: float

    def moved(self, at: float) -> float:
        """An instant on it. A time of day that was wrong by decades makes no instant damaged."""
        return min(max(at + self.shift, self.earliest), MAX_SECONDS)


def _circuit(row: tuple[Any, ...], clock: _Clock | None) -> tuple[Standing, Counts | None]:
    name, text, state, generation, half_open_at, changed_at, *entries = row[:9]
    check_name(name)
    config = CircuitConfig(**json.loads(text))
    closed, opened, half_opened = map(_whole, entries)
    if (state == State.OPEN.value) != (half_open_at is not None):
        raise ValueError(f"{name!r} is {state}, and half-open at {half_open_at}")
    until = None
    if half_open_at is not None:
        # An instant, and after it the longest open_timeout.
        until = _number(half_open_at, 2 * MAX_SECONDS)
        if clock is not None:
            # With another time of day an open circuit could stay so for years.
            until = min(clock.moved(until), clock.now + config.open_timeout)
    standing = Standing(
        config,
        State(state),
        _whole(generation),
        until,
        _instant(changed_at, clock),
        (closed, opened, half_opened),
    )
    return standing, None if row[9] is None else _counts(row[9:], clock)


def _counts(row: tuple[Any, ...], clock: _Clock | None) -> Counts:
    *numbers, error, error_at, durations = row
    counted, successes_in_a_row, failures_in_a_row, *counts = map(_whole, numbers)
    successes, failures, neutral, rejected, lost, stale = counts
    window = array("d", durations)
    for duration in window:
        _number(duration)
    if error is not None and (type(error) is not str or len(error) > MAX_ERROR_CHARACTERS):
        raise ValueError("a last error that is no text, or a long one")
    return Counts(
        generation=counted,
        consecutive_successes=successes_in_a_row,
        consecutive_failures=failures_in_a_row,
        totals=Totals(successes, failures, neutral, rejected, window, error),
        permits_lost=lost,
        stale_reports=stale,
        last_error_at=None if error_at is None else _instant(error_at, clock),
    )


def _session(row: tuple[Any, ...]) -> SavedSession:
    token, pid, started, reports = row
    if type(token) is not bytes or len(token) != 16:
        raise ValueError("a session without a token")
    said = _whole(pid, _LARGEST_SAID), _whole(started, _LARGEST_SAID)
    return SavedSession(token, *said, _whole(reports))


def _event(name: str, version: int, frame: bytes) -> Event:
    message = decode(frame, FROM_CONTROL)
    if not isinstance(message, Event) or message[0] != version or message.name != name:
        raise ValueError(f"event {version} of {name!r} is another one")
    return message


def _whole(value: object, most: int = _LARGEST) -> int:
    # Whatever is added to it later has to fit into the file, too.
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r} where a whole number was expected")
    return value


def _instant(value: object, clock: _Clock | None) -> float:
    at = _number(value)
    return at if clock is None else clock.moved(at)


def _number(value: object, most: float = MAX_SECONDS) -> float:
    if type(value) is not float or not abs(value) <= most:
        raise ValueError(f"{value!r} where a number was expected")
    return value
