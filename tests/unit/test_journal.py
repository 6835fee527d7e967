"""The journal: what was written is what a successor gets, whatever has become of the file."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import shutil
import signal
import sqlite3
import stat
import time
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final, Protocol

import pytest
from harness import Memory

from switchgear.circuit import Counts, Standing, Totals
from switchgear.config import MAX_SECONDS, CircuitConfig
from switchgear.errors import ConfigError
from switchgear.manager import journal as module
from switchgear.manager.actor import Actor
from switchgear.manager.journal import FORMAT, Journal
from switchgear.manager.sessions import SavedSession
from switchgear.manager.unsaved import Changes, Saved
from switchgear.states import State
from switchgear.wire import HISTORY, Event

NOTHING: Final = Changes([], [], [], [], [])
OFFSET: Final = 1_000_000.0  # of Unix time to the clock
LATER: Final = 1e6  # on a clock; more than a machine of a test has been running
CONFIG: Final = CircuitConfig(failure_threshold=7, open_timeout=0.25, lost_permit="ignore")
STANDING: Final = Standing(CONFIG, State.OPEN, 4, 130.5, 100.25, (1, 2, 3))
CLOSED: Final = Standing(CircuitConfig(), State.CLOSED, 1, None, 7.0, (0, 0, 0))
COUNTS: Final = Counts(
    4, 0, 0, Totals(10, 9, 8, 7, array("d", [0.5, 0.25]), "OSError: é\n\0"), 3, 2, 99.5
)
SESSION: Final = SavedSession(b"0123456789abcdef", 4711, 12345, 17)


def event(version: int, name: str = "a") -> Event:
    at = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=timezone.utc)
    return Event(version, 10, name, State.CLOSED, State.OPEN, "failures", 2, at)


SOME: Final = Changes([("a", STANDING), ("b", CLOSED)], [event(1)], [("a", COUNTS)], [SESSION], [])


class Book(Protocol):
    """What both journals can do."""

    def write(self, changes: Changes) -> None: ...

    def successor(self) -> Saved: ...


class InMemory:
    """The one of the tests."""

    def __init__(self) -> None:
        self._memory = Memory()

    def write(self, changes: Changes) -> None:
        self._memory.write(changes)

    def successor(self) -> Saved:
        return self._memory.read(5, 3)


class InFile:
    """The real one. A successor of a manager that was killed finds what is there at that moment."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._copies = 0
        self._journal = Journal(str(directory / "journal"))
        assert self._journal.open(OFFSET) is None
        self._journal.begin(5, 3, OFFSET, NOTHING)

    def write(self, changes: Changes) -> None:
        self._journal.write(changes)

    def successor(self) -> Saved:
        self._copies += 1
        copy = str(self._directory / f"copy{self._copies}")
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                Path(copy + suffix).write_bytes((self._directory / f"journal{suffix}").read_bytes())
        saved = open_journal(copy)
        assert saved is not None
        return saved

    def close(self) -> None:
        self._journal.close()


def open_journal(path: str | Path) -> Saved | None:
    """What is in a file; it is closed again."""
    journal = Journal(str(path))
    saved = journal.open(OFFSET)
    journal.close()
    return saved


@pytest.fixture(params=["memory", "file"])
def book(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Book]:
    if request.param == "memory":
        yield InMemory()
    else:
        in_file = InFile(tmp_path)
        yield in_file
        in_file.close()


# -- what both do ----------------------------------------------------------------------------------


def test_what_was_written_is_what_a_successor_gets(book: Book) -> None:
    book.write(SOME)
    circuits = {"a": (STANDING, COUNTS), "b": (CLOSED, None)}
    assert book.successor() == Saved(5, 3, circuits, [SESSION], [event(1)])


def test_a_session_with_the_largest_numbers_of_the_wire_crosses(book: Book) -> None:
    said = SESSION._replace(pid=2**63 - 1, started=2**63 - 1)
    book.write(SOME._replace(sessions=[said]))
    assert book.successor().sessions == [said]


def test_a_circuit_that_opens_late_for_the_longest_time_crosses(book: Book) -> None:
    longest = replace(CONFIG, open_timeout=MAX_SECONDS)
    standing = STANDING._replace(config=longest, half_open_at=LATER + MAX_SECONDS)
    book.write(SOME._replace(standings=[("a", standing), ("b", CLOSED)]))
    assert book.successor().circuits["a"] == (standing, COUNTS)


def test_nothing_is_there_before_anything_was_written(book: Book) -> None:
    assert book.successor() == Saved(5, 3, {}, [], [])
    book.write(NOTHING)
    assert book.successor() == Saved(5, 3, {}, [], [])


def test_the_last_that_was_written_of_each_thing_counts(book: Book) -> None:
    book.write(SOME)
    moved = STANDING._replace(state=State.HALF_OPEN, half_open_at=None, generation=5)
    counted = COUNTS._replace(permits_lost=33)
    reported = SESSION._replace(reports=18)
    book.write(Changes([("a", moved)], [event(2)], [], [], []))
    assert book.successor().circuits["a"] == (moved, COUNTS)
    book.write(Changes([], [], [("a", counted)], [reported], []))
    saved = book.successor()
    assert saved.circuits == {"a": (moved, counted), "b": (CLOSED, None)}
    assert (saved.sessions, saved.events) == ([reported], [event(1), event(2)])


def test_a_circuit_and_its_counts_may_come_in_one(book: Book) -> None:
    book.write(Changes([("a", STANDING)], [], [("a", COUNTS)], [], []))
    assert book.successor().circuits == {"a": (STANDING, COUNTS)}


def test_a_session_that_has_ended_is_gone_and_may_come_again(book: Book) -> None:
    other = SESSION._replace(token=b"f" * 16)
    book.write(Changes([], [], [], [SESSION, other], []))
    book.write(Changes([], [], [], [], [SESSION.token, b"nobody's token.."]))
    assert book.successor().sessions == [other]
    book.write(SOME)
    assert sorted(book.successor().sessions) == [SESSION, other]


def test_of_each_circuit_the_last_events_are_kept_and_no_more(book: Book) -> None:
    rare = [event(1, "rare")]
    often = [event(version) for version in range(2, 2 + 3 * HISTORY)]
    book.write(Changes([], rare, [], [], []))
    for one in often:
        book.write(Changes([], [one], [], [], []))
    assert book.successor().events == rare + often[-HISTORY:]


# -- the file --------------------------------------------------------------------------------------


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "m.journal"


@pytest.fixture
def written(path: Path) -> Path:
    """A file as a manager leaves it that stops in good order."""
    write_file(path)
    return path


def write_file(path: Path, changes: Changes = SOME) -> None:
    journal = Journal(str(path))
    assert journal.open(OFFSET) is None
    journal.begin(5, 3, OFFSET, changes)
    journal.close()


def aside(path: Path) -> list[Path]:
    """What was put aside, oldest first."""
    return sorted(path.parent.glob(f"{path.name}.2*"))


def begins_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A manager finds nothing of use, says so once, and what it writes from now on is there."""
    journal = Journal(str(path))
    with caplog.at_level(logging.INFO, "switchgear.manager"):
        assert journal.open(OFFSET) is None
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    (kept,) = [file for file in aside(path) if not file.name.endswith("-wal")]
    assert str(kept) in record.getMessage()
    journal.begin(9, 9, OFFSET, SOME)
    assert journal.retry_at is None
    # As after a kill: it is in the file, or beside it, and the connection is not closed.
    for suffix in ("", "-wal"):
        Path(f"{path}.killed{suffix}").write_bytes(Path(f"{path}{suffix}").read_bytes())
    journal.close()
    for found in (open_journal(f"{path}.killed"), open_journal(path)):
        assert found is not None
        assert (found.epoch, found.circuits["a"]) == (9, (STANDING, COUNTS))


def execute(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db:
        for statement in statements:
            db.execute(statement)
        db.commit()


def test_a_file_is_made_that_nobody_else_can_read(path: Path) -> None:
    mask = os.umask(0)
    try:
        journal = Journal(str(path))
        assert journal.open(OFFSET) is None
        journal.begin(1, 1, OFFSET, SOME)
    finally:
        os.umask(mask)
    files = sorted(path.parent.iterdir())
    assert [file.name for file in files] == ["m.journal", "m.journal-wal"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    journal.close()
    assert list(path.parent.iterdir()) == [path]


GOLDEN: Final = {
    "life": "boot TEXT, utc_offset REAL, epoch INTEGER, origin INTEGER",
    "circuits": "name TEXT, config TEXT, state TEXT, generation INTEGER, half_open_at REAL, "
    "state_changed_at REAL, closed INTEGER, opened INTEGER, half_opened INTEGER, "
    "counted_generation INTEGER, consecutive_successes INTEGER, consecutive_failures INTEGER, "
    "successes INTEGER, failures INTEGER, neutral INTEGER, rejected INTEGER, "
    "permits_lost INTEGER, stale_reports INTEGER, last_error TEXT, last_error_at REAL, "
    "durations BLOB",
    "sessions": "token BLOB, pid INTEGER, started INTEGER, reports INTEGER",
    "events": "name TEXT, slot INTEGER, version INTEGER, message BLOB",
}


def test_another_form_of_the_file_has_another_number(written: Path) -> None:
    with contextlib.closing(sqlite3.connect(written)) as db:
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE sql NOT NULL")]
        found = {
            table: ", ".join(
                f"{row[1]} {row[2]}" for row in db.execute(f"PRAGMA table_info({table})")
            )
            for table in tables
        }
        config, state = db.execute("SELECT config, state FROM circuits WHERE name = 'a'").fetchone()
    assert (FORMAT, found) == (1, GOLDEN)
    assert state == "open"
    assert config == (
        '{"failure_threshold": 7, "success_threshold": 2, "open_timeout": 0.25, '
        '"max_concurrent_requests": 1, "permit_timeout": 60.0, "lost_permit": "ignore", '
        '"consistency": "leased"}'
    )


def test_a_new_life_replaces_all_that_was_there(written: Path) -> None:
    journal = Journal(str(written))
    assert journal.open(OFFSET) is not None
    journal.begin(6, 3, OFFSET, Changes([("c", CLOSED)], [event(2)], [], [], []))
    journal.close()
    assert open_journal(written) == Saved(6, 3, {"c": (CLOSED, None)}, [], [event(2)])


def test_events_of_a_restored_circuit_go_on_in_their_slots(path: Path) -> None:
    write_file(path, Changes([], [event(version) for version in range(1, 11)], [], [], []))
    for life in range(6, 9):
        journal = Journal(str(path))
        saved = journal.open(OFFSET)
        assert saved is not None
        journal.begin(life, 3, OFFSET, NOTHING._replace(events=saved.events))
        version = saved.events[-1].version
        for number in range(1, 11):
            journal.write(NOTHING._replace(events=[event(version + number)]))
        journal.close()
    found = open_journal(path)
    assert found is not None
    assert [each.version for each in found.events] == list(range(41 - HISTORY, 41))


# -- another boot ----------------------------------------------------------------------------------


def test_after_a_boot_instants_move_to_the_new_clock_and_no_session_is_left(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    half_open_at = now + 0.2  # of open_timeout 0.25
    # The old clock is ahead of the new one by 1000 seconds.
    standing = STANDING._replace(half_open_at=half_open_at + 1_000, state_changed_at=2_000.0)
    counts = COUNTS._replace(last_error_at=1_500.0)
    os.unlink(written)
    write_file(written, SOME._replace(standings=[("a", standing)], counts=[("a", counts)]))
    monkeypatch.setattr(module, "_boot", lambda: "another")
    journal = Journal(str(written))
    found = journal.open(OFFSET + 1_000.0)
    assert found is not None
    moved, counted = found.circuits["a"]
    assert moved.half_open_at == pytest.approx(half_open_at)
    assert (moved.state_changed_at, counted and counted.last_error_at) == (1_000.0, 500.0)
    assert (found.sessions, found.events) == ([], [event(1)])
    journal.close()


def test_after_a_boot_an_open_circuit_stays_so_for_a_whole_open_timeout_at_most(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_boot", lambda: "another")
    journal = Journal(str(written))
    found = journal.open(OFFSET - 1e8)  # the time of day was set back by years
    assert found is not None
    until = found.circuits["a"][0].half_open_at
    assert until == pytest.approx(time.monotonic() + CONFIG.open_timeout, abs=1.0)
    journal.close()


def test_after_a_boot_instants_move_by_the_time_of_day_as_it_was_corrected(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    journal = Journal(str(path))
    assert journal.open(0.0) is None
    journal.begin(5, 3, 0.0, NOTHING)  # before the machine knew the time of day
    standing = STANDING._replace(half_open_at=now + 1_000.2, state_changed_at=now)
    journal.write(SOME._replace(standings=[("a", standing)]))
    journal.correct(OFFSET)
    journal.close()
    monkeypatch.setattr(module, "_boot", lambda: "another")
    journal = Journal(str(path))
    found = journal.open(OFFSET + 1_000.0)
    assert found is not None
    moved = found.circuits["a"][0]
    assert moved.half_open_at == pytest.approx(now + 0.2)  # of open_timeout 0.25
    assert moved.state_changed_at == pytest.approx(now - 1_000.0)
    journal.close()


@pytest.mark.parametrize("offset", [0.0, OFFSET])
@pytest.mark.parametrize("off_by", [-2e11, -4e9, 4e9, 2e11])
def test_a_time_of_day_that_is_wrong_by_decades_makes_no_journal_damaged(
    written: Path, offset: float, off_by: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(written, f"UPDATE life SET utc_offset = {offset + off_by}")
    monkeypatch.setattr(module, "_boot", lambda: "another")
    journal = Journal(str(written))
    found = journal.open(offset)
    assert found is not None
    standing, counts = found.circuits["a"]
    assert counts is not None
    assert counts.last_error_at is not None
    for at in (standing.state_changed_at, counts.last_error_at):
        assert at + offset >= 0.0  # as the wire has it
    everything = NOTHING._replace(
        standings=[(name, each[0]) for name, each in found.circuits.items()],
        counts=[(name, each[1]) for name, each in found.circuits.items() if each[1] is not None],
    )
    journal.begin(6, 3, offset, everything)
    journal.close()
    found_again = open_journal(written)
    assert found_again is not None
    assert found_again.circuits == found.circuits


def test_in_one_boot_instants_stay_and_the_time_of_day_has_no_say(written: Path) -> None:
    journal = Journal(str(written))
    found = journal.open(OFFSET - 1e8)
    assert found is not None
    assert found.circuits["a"] == (STANDING, COUNTS)
    journal.close()


# -- files that are of no use ----------------------------------------------------------------------


def test_an_empty_file_is_a_new_one(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.touch()
    write_file(path)
    assert open_journal(path) is not None
    assert (aside(path), caplog.records) == ([], [])


def test_a_log_without_its_file_is_not_read(
    path: Path, written: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(str(path))
    journal.open(OFFSET)
    journal.begin(6, 3, OFFSET, SOME)
    wal = Path(f"{path}-wal").read_bytes()
    journal.close()
    path.unlink()
    Path(f"{path}-wal").write_bytes(wal)
    assert open_journal(path) is None


@pytest.mark.parametrize("size", [15, 16, 99, 100, 512, 4095, 4096, 5000, 8192, -4096])
def test_a_file_that_was_cut_off_is_put_aside(
    written: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    whole = written.read_bytes()
    written.write_bytes(whole[:size])
    begins_anew(written, caplog)
    assert aside(written)[0].read_bytes() == whole[:size]


@pytest.mark.parametrize(
    "text", [b"two lines\n\n", b"not a database" * 1_000, bytes(10_000), b"\xff" * 100]
)
def test_a_file_of_something_else_is_put_aside_as_it_is(
    path: Path, text: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(text)
    begins_anew(path, caplog)
    assert aside(path)[0].read_bytes() == text


@pytest.mark.parametrize("statement", ["PRAGMA user_version = 2", "CREATE TABLE theirs (x)"])
def test_a_database_that_is_no_journal_or_a_later_one_is_put_aside_as_it_is(
    path: Path, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    execute(path, statement)
    before = path.read_bytes()
    begins_anew(path, caplog)
    assert "format" in caplog.text
    assert aside(path)[0].read_bytes() == before


def test_every_page_that_was_overwritten_is_noticed_or_does_no_harm(path: Path) -> None:
    """Some bytes nobody can tell from others; whatever is read can be gone on with."""
    write_file(path)
    whole = path.read_bytes()
    noticed = 0
    for place in range(0, len(whole), 512):
        path.write_bytes(whole[:place] + b"\xa5" * 64 + whole[place + 64 :])
        saved = open_journal(path)
        noticed += saved is None
        if saved is not None:
            goes_on(saved)
    assert noticed > 3


def goes_on(saved: Saved) -> None:
    actor = Actor(1, utc_offset=OFFSET)
    actor.restore(saved, LATER)
    actor.tick(LATER)
    actor.check()
    for circuit in actor._circuits.values():
        circuit.stats(LATER, OFFSET)
        circuit.metrics()


DAMAGES: Final = [
    "DROP TABLE sessions",
    "ALTER TABLE circuits DROP COLUMN rejected",
    *(
        f"UPDATE life SET {change}"
        for change in (
            "boot = 'other', utc_offset = 'noon'",
            "boot = 'other', utc_offset = 9e999",
            "epoch = 'x'",
            "epoch = -1",
            "epoch = 9223372036854775807",
            "epoch = 2.5",
            "origin = x'00'",
            "origin = epoch + 1",
        )
    ),
    *(
        f"UPDATE circuits SET {change} WHERE name = 'a'"
        for change in (
            "name = ''",
            "name = x'ff'",
            "name = 'two' || char(10) || 'lines'",
            "config = 'no json'",
            "config = '[]'",
            "config = '7'",
            "config = '{\"failure_threshold\": 0}'",
            "config = '{\"colour\": 1}'",
            "config = x'ff'",
            "config = CAST(x'ff' AS TEXT)",
            "state = 'ajar'",
            "state = 'closed'",
            "state = 1",
            "generation = 'x'",
            "generation = -1",
            "half_open_at = NULL",
            "half_open_at = 'soon'",
            "half_open_at = 9e999",
            "half_open_at = -9e999",
            "half_open_at = 2.1e9",
            "state_changed_at = 'now'",
            "state_changed_at = 1e300",
            "closed = 'x'",
            "opened = -1",
            "half_opened = 0.5",
            "counted_generation = 'x'",
            "consecutive_successes = 'x'",
            "consecutive_failures = NULL",
            "successes = 9223372036854775807",
            "failures = -1",
            "neutral = 'x'",
            "rejected = NULL",
            "permits_lost = 'x'",
            "stale_reports = 1.5",
            "last_error = x'00'",
            "last_error = printf('%513c', 'x')",
            "last_error_at = 'x'",
            "last_error_at = 9e999",
            "durations = NULL",
            "durations = 'text'",
            "durations = x'00'",
            "durations = x'000000000000f07f'",
            "durations = x'000000000000f87f'",
        )
    ),
    *(
        f"UPDATE sessions SET {change}"
        for change in ("token = x'00'", "token = '0123456789abcdef'", "pid = 'x'", "started = -1")
    ),
    "UPDATE sessions SET reports = 'x'",
    "UPDATE sessions SET reports = 9223372036854775807",
    "UPDATE events SET name = 'b'",
    "UPDATE events SET version = 2",
    "UPDATE events SET message = x'c1'",
    "UPDATE events SET message = 'text'",
    "UPDATE events SET message = NULL",
    "UPDATE events SET message = x'93" + "1f0100'",  # a Pong, cut short
]


@pytest.mark.parametrize("statement", DAMAGES)
def test_whatever_no_manager_would_have_written_is_put_aside(
    written: Path, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    try:
        execute(written, "PRAGMA ignore_check_constraints = ON", statement)
    except sqlite3.IntegrityError:
        return  # SQLite itself sees to it
    begins_anew(written, caplog)


def test_what_is_put_aside_takes_the_place_of_nothing(path: Path) -> None:
    for number in range(4):
        path.write_bytes(b"garbage %d" % number)
        assert open_journal(path) is None
    assert {file.read_bytes() for file in aside(path)} == {b"garbage %d" % n for n in range(4)}


# -- files that are out of reach -------------------------------------------------------------------


def refused(path: Path) -> str:
    journal = Journal(str(path))
    with pytest.raises(ConfigError) as caught:
        journal.open(OFFSET)
    journal.close()
    assert aside(path) == []
    return str(caught.value)


def test_a_directory_or_a_link_in_its_place_is_refused(path: Path, tmp_path: Path) -> None:
    path.mkdir()
    assert "directory" in refused(path)
    path.rmdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.touch()
    path.symlink_to(elsewhere)
    assert str(path) in refused(path)
    assert elsewhere.read_bytes() == b""


def test_without_its_directory_it_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "gone" / "m.journal")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to what is read-only")
def test_a_file_that_may_not_be_written_is_refused(written: Path) -> None:
    written.chmod(0o400)
    assert "denied" in refused(written)


@pytest.mark.parametrize("mode", ["EXCLUSIVE", "IMMEDIATE"])
def test_a_file_that_another_program_has_locked_is_refused_and_not_put_aside(
    written: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOCK_PATIENCE", 0.05)
    with contextlib.closing(sqlite3.connect(written, isolation_level=None)) as db:
        db.execute(f"BEGIN {mode}")
        assert "locked" in refused(written)
        db.execute("ROLLBACK")
    assert open_journal(written) is not None


def test_nobody_can_lock_it_while_a_manager_has_it(written: Path) -> None:
    journal = Journal(str(written))
    assert journal.open(OFFSET) is not None
    with (
        contextlib.closing(sqlite3.connect(written, timeout=0.01)) as db,
        pytest.raises(sqlite3.OperationalError, match="locked"),
    ):
        db.execute("SELECT * FROM life").fetchall()
    journal.close()


# -- files that cannot be written ------------------------------------------------------------------


class Disk:
    """SQLite's connections, which fail where they are told to."""

    def __init__(self) -> None:
        self.fails: str | None = None  # whatever begins with this does
        self.opened = 0

    def connect(self, *arguments: Any, **options: Any) -> sqlite3.Connection:
        self.opened += 1
        if self.fails == "connect":
            raise sqlite3.OperationalError("unable to open database file")
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
                disk.look_at(statement)
                return super().execute(statement, *values)

            def executemany(self, statement: str, *values: Any) -> sqlite3.Cursor:
                disk.look_at(statement)
                return super().executemany(statement, *values)

        return sqlite3.connect(*arguments, factory=Connection, **options)

    def look_at(self, statement: str) -> None:
        if self.fails is not None and statement.strip().startswith(self.fails):
            raise sqlite3.OperationalError("database or disk is full")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()

    class Module:
        Error, Connection, connect = sqlite3.Error, sqlite3.Connection, disk.connect

    monkeypatch.setattr(module, "sqlite3", Module)
    return disk


PLACES: Final = ["BEGIN", "INSERT INTO circuits", "UPDATE circuits", "INSERT OR", "COMMIT"]


@pytest.mark.parametrize("place", PLACES)
def test_a_write_that_fails_leaves_all_as_it_was_and_is_logged_once(
    path: Path, disk: Disk, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(str(path))
    assert journal.open(OFFSET) is None
    journal.begin(5, 3, OFFSET, SOME)
    assert journal.retry_at is None
    disk.fails = place
    counts = COUNTS._replace(permits_lost=99)
    more = Changes([("c", CLOSED)], [event(2)], [("a", counts)], [SESSION], [])
    began = time.monotonic()
    journal.write(more)
    assert journal.retry_at is not None
    assert began + 1.0 <= journal.retry_at <= time.monotonic() + 1.0
    journal.write(more)  # there is nothing to be done
    journal.close()
    assert len(caplog.records) == 1
    disk.fails = None
    circuits = {"a": (STANDING, COUNTS), "b": (CLOSED, None)}
    # What was told since is not in it, so nobody may go on as if it were.
    assert open_journal(path) == Saved(5, None, circuits, [SESSION], [event(1)])
    assert open_journal(path) == Saved(5, None, circuits, [SESSION], [event(1)])
    journal = Journal(str(path))
    assert journal.open(OFFSET) is not None
    journal.begin(6, 6, OFFSET, SOME)
    journal.close()
    assert open_journal(path) == Saved(6, 6, circuits, [SESSION], [event(1)])


def test_a_successor_knows_that_more_was_told_where_there_was_no_room_to_make_a_file(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(path)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    journal = Journal(str(path))
    assert journal.open(OFFSET) is not None
    journal.begin(6, 3, OFFSET, SOME)
    disk.fails = "BEGIN"
    with monkeypatch.context() as room:
        room.setattr(os, "open", full)
        journal.write(NOTHING._replace(events=[event(2)]))
    disk.fails = None
    found = open_journal(path)
    assert found is not None
    assert (found.epoch, found.origin) == (6, None)
    journal = Journal(str(path))
    assert journal.open(OFFSET) is not None
    journal.begin(7, 7, OFFSET, SOME)
    journal.close()
    found = open_journal(path)
    assert found is not None
    assert (found.epoch, found.origin) == (7, 7)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("place", ["connect", "PRAGMA", *PLACES, "DELETE"])
def test_it_is_tried_again_ever_more_seldom_and_said_only_once_that_it_works(
    path: Path, disk: Disk, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    journal = Journal(str(path))
    assert journal.open(OFFSET) is None
    disk.fails = place if place in PLACES else "BEGIN"
    journal.begin(5, 3, OFFSET, SOME)
    disk.fails = place
    waits = []
    for _ in range(8):
        at = journal.retry_at
        assert at is not None
        now = max(at, time.monotonic())
        if journal.reopen(now):
            journal.begin(5, 3, OFFSET, SOME)
            now = time.monotonic()
        again = journal.retry_at
        assert again is not None
        waits.append(again - now)
    assert waits == pytest.approx([2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0, 30.0], abs=0.5)
    assert len(caplog.records) == 1
    disk.fails = None
    assert journal.reopen(time.monotonic())
    journal.begin(6, 3, OFFSET, SOME)
    assert journal.retry_at is None
    assert [record.getMessage().split(" ")[-1] for record in caplog.records[1:]] == ["again"]
    disk.fails = "COMMIT"  # and when it fails anew, that is said, and it is soon tried again
    journal.write(SOME)
    assert len(caplog.records) == 3
    assert journal.retry_at == pytest.approx(time.monotonic() + 1.0, abs=0.5)
    journal.close()
    disk.fails = None
    saved = open_journal(path)
    assert saved is not None
    assert (saved.epoch, saved.origin) == (6, None)


def test_a_disk_that_is_full_from_the_beginning_is_done_without(
    path: Path, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.fails = "BEGIN"
    write_file(path)
    disk.fails = "PRAGMA"
    assert open_journal(path) is None
    assert len(caplog.records) == 2
    assert aside(path) == []


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT"])
def test_where_no_file_can_be_made_for_want_of_room_it_is_done_without(
    path: Path, disk: Disk, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(getattr(errno, error), "full")

    monkeypatch.setattr(os, "open", full)
    disk.fails = "PRAGMA"
    journal = Journal(str(path))
    assert journal.open(OFFSET) is None
    assert journal.retry_at is not None


def test_when_its_directory_is_gone_it_is_tried_again_in_vain_and_then_not(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    journal = Journal(str(directory / "m.journal"))
    assert journal.open(OFFSET) is None
    journal._give_up(sqlite3.OperationalError("disk I/O error"))
    shutil.rmtree(directory)
    assert not journal.reopen(time.monotonic())
    directory.mkdir()
    assert journal.reopen(time.monotonic())
    journal.begin(6, 3, OFFSET, SOME)
    journal.close()
    assert open_journal(directory / "m.journal") is not None


# -- a real full disk, and real kills --------------------------------------------------------------


def in_a_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Have a forked child do some work; its process, and a pipe that it writes to."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    try:
        work(write)
    finally:
        os._exit(1)


def read_all(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


ROUNDS: Final = 100
SLOTS: Final = 5  # circuits in each change


def change(number: int) -> Changes:
    """One of which a part would be seen."""
    counts = COUNTS._replace(permits_lost=number)
    standing = STANDING._replace(generation=number)
    names = [f"c{place}" for place in range(SLOTS)]
    return Changes(
        [(name, standing) for name in names],
        [event(number)],
        [(name, counts) for name in names],
        [SESSION._replace(reports=number)],
        [],
    )


def write_for_ever(path: Path, say: int) -> None:
    journal = Journal(str(path))
    saved = journal.open(OFFSET)
    number, epoch, events = 1, 1, [event(1)]
    if saved is not None:
        number, epoch, events = saved.sessions[0].reports, saved.epoch + 1, saved.events
    journal.begin(epoch, 1, OFFSET, change(number)._replace(events=events))
    while True:
        number += 1
        journal.write(change(number))
        os.write(say, b"%d\n" % number)


def test_a_kill_at_any_moment_leaves_all_of_a_change_or_nothing_of_it(path: Path) -> None:
    told = 0
    for number in range(ROUNDS):
        child, pipe = in_a_child(lambda say: write_for_ever(path, say))
        for _ in range(1 + number % 7):
            assert os.read(pipe, 4_096)
        time.sleep(0.000_37 * (number % 10))  # so each time at another point
        os.kill(child, signal.SIGKILL)
        said = read_all(pipe).split()
        os.waitpid(child, 0)
        saved = open_journal(path)
        assert saved is not None
        (session,) = saved.sessions
        counted = {counts and counts.permits_lost for _, counts in saved.circuits.values()}
        stand = {standing.generation for standing, _ in saved.circuits.values()}
        assert counted == stand == {session.reports}
        assert saved.events[-1].version == session.reports
        assert session.reports >= max([told, *map(int, said)])  # what it has told us is there
        assert saved.epoch <= number + 1  # a life that was not begun was not told to anybody
        told = session.reports
    assert told > ROUNDS
    assert aside(path) == []


def write_on_a_full_disk(path: Path, say: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    journal = Journal(str(path))
    assert journal.open(OFFSET) is None
    journal.begin(1, 1, OFFSET, change(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    number = 1
    while journal.retry_at is None:
        number += 1
        journal.write(change(number))
    os.write(say, b"%d\n" % (number - 1))
    many = [SESSION._replace(token=b"%016d" % each) for each in range(10_000)]
    for _ in range(5):
        if journal.reopen(journal.retry_at):
            journal.begin(2, 1, OFFSET, change(number)._replace(sessions=many))
        assert journal.retry_at is not None
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert journal.reopen(journal.retry_at)
    os.write(say, b"done\n")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_disk_that_is_full_leaves_what_was_written_before(path: Path) -> None:
    child, pipe = in_a_child(lambda say: write_on_a_full_disk(path, say))
    number, done = read_all(pipe).split()
    os.waitpid(child, 0)
    assert done == b"done"
    saved = open_journal(path)
    assert saved is not None
    assert [session.reports for session in saved.sessions] == [int(number)]
    assert {standing.generation for standing, _ in saved.circuits.values()} == {int(number)}


def test_the_log_of_a_damaged_file_is_kept_with_it(path: Path) -> None:
    log = Path(f"{path}-wal")
    path.write_bytes(b"\xff" * 10_000)
    log.write_bytes(b"what was not yet moved into it")
    assert open_journal(path) is None
    kept, kept_log = aside(path)
    assert (kept.read_bytes(), kept_log.name) == (b"\xff" * 10_000, f"{kept.name}-wal")
    assert kept_log.read_bytes() == b"what was not yet moved into it"
