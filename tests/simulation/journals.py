"""Journals that a manager may die over: in memory, and the real file."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

from harness import Memory

from switchgear.manager.journal import Journal
from switchgear.manager.unsaved import Changes, Saved

from .managers import Killed


class Remembered:
    """What was written is what a successor gets; tests/unit/test_journal.py compares it to a file.

    Its manager dies before it is written or after that, as a transaction has no other moments.

    Attributes:
        failing: See `managers.Journal`.
    """

    def __init__(self) -> None:
        self.failing = False
        self._full = False
        self._behind = False
        self._memory = Memory()
        self._life: tuple[int, int] | None = None
        self._dies: str | None = None

    def succeed(self, epoch: int, utc_offset: float) -> Saved | None:
        """See `managers.Journal`."""
        self.failing = False
        if self._life is None:
            return None
        saved = self._memory.read(*self._life)
        return saved._replace(origin=None) if self._behind else saved

    def begin(self, epoch: int, origin: int, utc_offset: float, everything: Changes) -> None:
        """See `managers.Journal`."""
        with self._doomed():
            if self._has_room():
                self._memory = Memory()
                self._memory.write(everything)
                self._life = epoch, origin
                self._behind = False

    def write(self, changes: Changes) -> None:
        """See `managers.Journal`."""
        with self._doomed():
            if self._has_room():
                self._memory.write(changes)

    def _has_room(self) -> bool:
        if self._full:
            self.failing = self._behind = True
        return not self._full

    def reopen(self) -> bool:
        """See `managers.Journal`."""
        self.failing = self._full
        return not self._full

    @contextlib.contextmanager
    def _doomed(self) -> Iterator[None]:
        if self._dies == "before" or (self._dies is not None and self._full):
            raise Killed(written=False)
        yield
        if self._dies == "after":
            raise Killed(written=True)

    def doom(self, chance: float) -> None:
        """See `managers.Journal`."""
        self._dies = "before" if chance < 0.5 else "after"

    def spare(self) -> None:
        """See `managers.Journal`."""
        self._dies = None

    def fill(self, chance: float) -> None:
        """See `managers.Journal`."""
        self._full = True

    def clear(self) -> None:
        """See `managers.Journal`."""
        self._full = False


class Filed:
    """The real journal in a real file. Its manager dies at any statement of a transaction.

    What a killed manager leaves is a copy of the files at that moment: nothing that the dead one's
    connection would do to them afterwards comes into it.

    Args:
        folder: A place for the files, nobody else's.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._lives = 0
        self._journal: Journal | None = None
        self._dies_at: int | None = None
        self._full_at: int | None = None

    @property
    def failing(self) -> bool:
        """See `managers.Journal`."""
        return self._journal is not None and self._journal.retry_at is not None

    @property
    def _path(self) -> str:
        return os.path.join(self._folder, f"{self._lives}.journal")

    def succeed(self, epoch: int, utc_offset: float) -> Saved | None:
        """See `managers.Journal`."""
        before, dead = self._path, self._journal
        self._lives += 1
        for suffix in ("", "-wal", ".behind"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(before + suffix, self._path + suffix)
        if dead is not None:
            dead.close()
            for name in os.listdir(self._folder):
                if not name.startswith(f"{self._lives}."):
                    os.unlink(os.path.join(self._folder, name))
        self._journal = Journal(self._path)
        return self._journal.open(utc_offset)

    def begin(self, epoch: int, origin: int, utc_offset: float, everything: Changes) -> None:
        """See `managers.Journal`."""
        assert self._journal is not None
        self._do(self._journal, self._journal.begin, epoch, origin, utc_offset, everything)

    def write(self, changes: Changes) -> None:
        """See `managers.Journal`."""
        assert self._journal is not None
        self._do(self._journal, self._journal.write, changes)

    def _do(self, journal: Journal, writes: Callable[..., None], *args: object) -> None:
        real, ends = journal._db, self._ends
        if ends is None:
            writes(*args)
            return
        assert real is not None
        journal._db = doomed = _Doomed(real, *ends)  # type: ignore[assignment]  # as far as it goes
        try:
            writes(*args)
        finally:
            if journal._db is doomed:
                journal._db = real
        if self._dies_at is not None:
            raise Killed(written=True)  # it had fewer statements: it died after all of them

    @property
    def _ends(self) -> tuple[int, Exception] | None:
        """After how many statements a write ends half-way, and how."""
        if self._dies_at is not None:
            return self._dies_at, Killed(written=False)
        if self._full_at is not None:
            return self._full_at, sqlite3.OperationalError("database or disk is full")
        return None

    def reopen(self) -> bool:
        """See `managers.Journal`."""
        assert self._journal is not None
        return self._full_at is None and self._journal.reopen(0.0)

    def doom(self, chance: float) -> None:
        """See `managers.Journal`."""
        self._dies_at = int(chance * 14)  # a write has seven statements, a beginning twelve

    def spare(self) -> None:
        """See `managers.Journal`."""
        self._dies_at = None

    def fill(self, chance: float) -> None:
        """See `managers.Journal`."""
        self._full_at = int(chance * 5)  # fewer statements than any transaction has

    def clear(self) -> None:
        """See `managers.Journal`."""
        self._full_at = None

    def close(self) -> None:
        """Take the files away."""
        if self._journal is not None:
            self._journal.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class _Doomed:
    """A connection that comes as far as a certain statement."""

    def __init__(self, db: sqlite3.Connection, most: int, end: Exception) -> None:
        self._db = db
        self._left = most
        self._end = end

    def close(self) -> None:
        self._db.close()

    def execute(self, *args: Any) -> object:
        return self._do(self._db.execute, *args)

    def executemany(self, *args: Any) -> object:
        return self._do(self._db.executemany, *args)

    def _do(self, statement: Callable[..., object], *args: Any) -> object:
        if self._left == 0:
            raise self._end
        self._left -= 1
        return statement(*args)
