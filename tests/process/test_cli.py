"""The command, as people and scripts run it: in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import pytest

import switchgear as sg

from .conftest import PATIENCE, connect, end, ending, eventually, read_line, trip

pytestmark = pytest.mark.process

COMMAND: Final = (sys.executable, "-m", "switchgear.cli")

STATS: Final = {field.name for field in fields(sg.CircuitStats)}
METRICS: Final = {field.name for field in fields(sg.MetricsSnapshot)}
CONFIG: Final = {field.name for field in fields(sg.CircuitConfig)}

# Moves a cursor, rings, clears, colours, begins a C1 sequence, deletes, and turns text around.
HOSTILE: Final = "a\x1b[2J\x07\r\n\x9b31m\x7f\u202eb"


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the command to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        env={**os.environ, **environment},
    )


def done(*arguments: str) -> str:
    """What a command that succeeds prints; it has nothing to complain about."""
    ended = run(*arguments)
    assert (ended.returncode, ended.stderr) == (0, b"")
    return ended.stdout.decode()


def done_json(*arguments: str) -> Any:
    return json.loads(done(*arguments, "--json"))


def complaint(code: int, *arguments: str) -> str:
    """What a command that fails says: on stderr, in a line, and nothing on stdout; with --json
    also as a document on stdout."""
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout) == (code, b"")
    said = ended.stderr.decode()
    assert said.startswith("switchgear: ")
    assert said.count("\n") == 1
    as_json = run(*arguments, "--json")
    assert (as_json.returncode, as_json.stderr) == (code, ended.stderr)
    document = json.loads(as_json.stdout)
    assert set(document) == {"error", "message"}
    assert said == f"switchgear: {document['message']}\n"
    return f"{document['error']}: {document['message']}"


@contextlib.contextmanager
def serving(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """`serve`, for the block; its announcement must be read before the manager is used."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--json", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    with ending(process):
        yield process


def announcement(process: subprocess.Popen[bytes]) -> Any:
    """The document that `serve --json` prints once it is ready: one line."""
    return json.loads(read_line(process))


@pytest.fixture
def at(manager: sg.Manager) -> tuple[str, str]:
    """The arguments that lead to the manager."""
    return "--address", manager.address


# -- list ------------------------------------------------------------------------------------------


def test_list_of_nothing_says_so(at: tuple[str, str]) -> None:
    assert done("list", *at) == "no circuits\n"
    assert done_json("list", *at) == []


def test_list_shows_every_circuit_in_a_line_under_a_heading(
    manager: sg.Manager, at: tuple[str, str]
) -> None:
    trip(manager.breaker("payments", failure_threshold=2, open_timeout=600.0))
    manager.breaker("mail").execute(int)
    heading, mail, payments = done("list", *at).splitlines()
    names = ["NAME", "STATE", "REQUESTS", "FAILED", "REJECTED", "IN", "FLIGHT", "RETRY", "LAST"]
    assert heading.split() == [*names, "ERROR"]
    assert mail.split() == ["mail", "closed", "1", "0", "0", "0", "-", "-"]
    assert payments.split()[:6] == ["payments", "open", "2", "2", "0", "0"]
    assert payments.endswith(" s  ConnectionError: down")
    for title in ("STATE", "REQUESTS", "LAST ERROR"):
        place = heading.index(title)
        assert all(line[place - 1] == " " != line[place] for line in (mail, payments))


def test_list_of_a_hundred_circuits_has_them_all_in_order(
    manager: sg.Manager, at: tuple[str, str]
) -> None:
    names = [f"service-{number:03}" for number in range(100)]  # five pages of the answer
    for name in reversed(names):
        manager.breaker(name)
    assert len(manager.breakers()) == 100
    assert [line.split()[0] for line in done("list", *at).splitlines()] == ["NAME", *names]
    listed = done_json("list", *at)
    assert [stats["name"] for stats in listed] == names
    assert all(set(stats) == STATS for stats in listed)


# -- stats and reset -------------------------------------------------------------------------------


def test_stats_as_json_has_every_field_of_stats_config_and_metrics(
    manager: sg.Manager, at: tuple[str, str]
) -> None:
    breaker = manager.breaker("payments", failure_threshold=2, open_timeout=600.0)
    breaker.execute(int)
    trip(breaker)
    document = done_json("stats", "payments", *at)
    assert set(document) == STATS | {"metrics", "history"}
    assert set(document["config"]) == CONFIG
    assert set(document["metrics"]) == METRICS
    assert document["metrics"]["transitions"] == {"closed": 0, "open": 1, "half-open": 0}
    stats, metrics = breaker.stats(), breaker.metrics()
    assert document["name"] == "payments"
    assert document["state"] == "open"
    assert document["last_error"] == "ConnectionError: down"
    for field in ("total_requests", "total_successes", "total_failures", "generation"):
        assert document[field] == getattr(stats, field)
    for field in ("last_error_at", "state_changed_at"):
        at_then = datetime.fromisoformat(document[field])
        assert at_then.tzinfo is not None
        assert abs((at_then - getattr(stats, field)).total_seconds()) < 1.0
    assert stats.retry_after is not None
    assert stats.retry_after <= document["retry_after"] <= 600.0
    assert document["config"]["open_timeout"] == 600.0
    assert document["metrics"]["max_latency"] == metrics.max_latency
    (change,) = breaker.history()
    assert (change.old, change.new, change.cause) == (sg.State.CLOSED, sg.State.OPEN, "failures")
    assert document["history"] == [
        {
            **{"version": change.version, "generation": stats.generation, "cause": "failures"},
            **{"old": "closed", "new": "open", "at": change.at.isoformat()},
        }
    ]
    assert f"{change.at.isoformat()}  closed -> open  failures" in done("stats", "payments", *at)


def test_a_command_whose_output_is_closed_succeeds_in_silence(
    manager: sg.Manager, at: tuple[str, str]
) -> None:
    shell = ("sh", "-c", '"$@" >&-', "sh")
    for words in (("list",), ("list", "--json")):
        ended = subprocess.run(
            [*shell, *COMMAND, *words, *at], capture_output=True, timeout=PATIENCE, check=False
        )
        assert (ended.returncode, ended.stderr) == (0, b"")


def test_stats_of_a_circuit_nobody_has_called_has_nothing_in_place_of_what_never_was(
    manager: sg.Manager, at: tuple[str, str]
) -> None:
    manager.breaker("payments").stats()  # the first use declares it
    document = done_json("stats", "payments", *at)
    for field in ("last_error", "last_error_at", "retry_after"):
        assert document[field] is None
    lines = dict(line.split(None, 1) for line in done("stats", "payments", *at).splitlines())
    assert (lines["last_error"], lines["retry_after"], lines["avg_latency"]) == ("-", "-", "-")


def test_stats_for_people_has_a_line_for_each_number(
    manager: sg.Manager, at: tuple[str, str]
) -> None:
    trip(manager.breaker("payments", failure_threshold=2, open_timeout=600.0))
    lines = dict(line.split(None, 1) for line in done("stats", "payments", *at).splitlines())
    assert set(lines) >= STATS - {"config"}
    assert (lines["name"], lines["state"], lines["total_failures"]) == ("payments", "open", "2")
    assert lines["last_error"] == "ConnectionError: down"
    assert lines["entered"] == "closed 0, open 1, half-open 0"
    assert "failure_threshold=2" in lines["config"]
    assert lines["max_latency"].endswith(" ms")


def test_reset_closes_the_circuit_and_shows_it(manager: sg.Manager, at: tuple[str, str]) -> None:
    breaker = manager.breaker("payments", failure_threshold=2, open_timeout=600.0)
    trip(breaker)
    assert done("reset", "payments", *at) == "payments: closed, generation 3\n"
    assert breaker.state is sg.State.CLOSED
    trip(breaker)
    document = done_json("reset", "payments", *at)
    assert set(document) == STATS
    assert (document["state"], document["generation"]) == ("closed", 5)
    assert document["total_failures"] == 4, "a reset keeps the totals"
    assert breaker.execute(int) == 0


# -- what a circuit says is anybody's --------------------------------------------------------------


def test_control_characters_of_an_error_do_not_reach_the_terminal(
    manager: sg.Manager, at: tuple[str, str]
) -> None:
    breaker = manager.breaker("payments")

    def fail_badly() -> None:
        raise ValueError(HOSTILE)

    with pytest.raises(ValueError, match="a"):
        breaker.execute(fail_badly)
    assert breaker.stats().last_error == f"ValueError: {HOSTILE}"
    for command in (("list",), ("stats", "payments"), ("reset", "payments")):
        for text in (done(*command, *at), done(*command, *at, "--json")):
            assert all(character.isprintable() or character == "\n" for character in text)
    assert "ValueError: a [2J" in done("list", *at)
    (listed,) = done_json("list", *at)
    assert listed["last_error"] == f"ValueError: {HOSTILE}", "programs get it as it is"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_that_does_not_know_a_character_gets_the_rest(
    manager: sg.Manager, at: tuple[str, str], encoding: str
) -> None:
    name = "zahlungen-ü-支払い"
    manager.breaker(name).stats()  # the first use declares it
    shown = name.encode(encoding, "backslashreplace")
    for command in (("list",), ("stats", name), ("reset", name)):
        ended = run(*command, *at, PYTHONIOENCODING=encoding, PYTHONUTF8="1")
        assert (ended.returncode, ended.stderr) == (0, b"")
        assert shown in ended.stdout
        ended = run(*command, *at, "--json", PYTHONIOENCODING=encoding, PYTHONUTF8="1")
        document = json.loads(ended.stdout)
        assert (document[0] if command == ("list",) else document)["name"] == name


# -- exit codes ------------------------------------------------------------------------------------


def test_an_unknown_circuit_is_refused_with_1(at: tuple[str, str]) -> None:
    for command in ("stats", "reset"):
        said = complaint(1, command, "payments", *at)
        assert said == "UnknownCircuitError: the manager knows no circuit 'payments'"


@pytest.mark.parametrize("name", ["", "x" * 129, "a\x1b[2Jb", "a\nb", "\udcff"])
def test_a_name_out_of_its_range_is_wrong_usage_and_cannot_move_the_cursor(
    at: tuple[str, str], name: str
) -> None:
    for command in ("stats", "reset"):
        said = complaint(2, command, name, *at)
        assert said.startswith("ConfigError: a circuit's name must be ")
        assert said.isprintable()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("no-such",),
        ("stats",),
        ("reset",),
        ("list", "x"),
        ("list", "--no-such"),
        ("serve", "x"),
    ],
)
def test_wrong_usage_is_2_and_explained_on_stderr(arguments: tuple[str, ...]) -> None:
    ended = run(*arguments)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert ended.stderr.startswith(b"usage: switchgear")


@pytest.mark.parametrize("address", ["relative/m", "tcp://127.0.0.1:5555", "/tmp/" + "x" * 120, ""])
def test_an_address_that_is_none_is_wrong_usage(address: str) -> None:
    for command in (("list",), ("stats", "x"), ("reset", "x"), ("serve",)):
        said = complaint(2, *command, "--address", address)
        assert said.startswith("ConfigError: ")
        assert " address " in said


def test_a_socket_directory_that_others_can_write_to_is_wrong_usage(address: str) -> None:
    directory = Path(address.removeprefix("ipc://")).parent
    directory.chmod(0o777)
    for command in (("list",), ("stats", "x"), ("reset", "x"), ("serve",)):
        said = complaint(2, *command, "--address", address)
        assert said.endswith(f"run: chmod go-w {directory}")
    assert list(directory.iterdir()) == []


def test_no_manager_is_3_and_says_how_to_start_one(address: str) -> None:
    directory = Path(address.removeprefix("ipc://")).parent
    for place, command in (
        (f"{directory}/nowhere/m", ("list",)),
        (f"{directory}/nowhere/m", ("stats", "x")),
        (f"{directory}/nowhere/m", ("reset", "x")),
        (f"{directory}/m", ("list",)),  # here it has to wait in vain
    ):
        said = complaint(3, *command, "--address", place)
        assert said.startswith("ManagerUnavailableError: no breaker manager answers at ipc:///")
        assert f"`switchgear serve --address ipc://{place}`" in said


def test_help_is_0_and_names_every_command() -> None:
    said = done("--help")
    assert all(command in said for command in ("serve", "list", "stats", "reset", "exit codes"))


# -- serve -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_announces_itself_once_it_answers_and_ends_with_0_on_a_signal(
    address: str, number: signal.Signals
) -> None:
    path = Path(address.removeprefix("ipc://"))
    with serving("--address", address) as process:
        assert announcement(process) == {"address": address, "pid": process.pid}
        for suffix in ("data", "control"):
            assert stat.S_IMODE(path.with_suffix(f".{suffix}").stat().st_mode) == 0o600
        with connect(address) as client:
            assert client.ping().pid == process.pid
            assert client.breaker("x").execute(int) == 0
        process.send_signal(number)
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (0, b"")
        assert b"Traceback" not in err
        assert {entry.name for entry in path.parent.iterdir()} == {"m.lock", "m.journal"}
    assert complaint(3, "list", "--address", address)


def test_serve_ends_with_0_on_a_signal_right_after_its_announcement(address: str) -> None:
    for _ in range(5):
        with serving("--address", address) as process:
            announcement(process)
            process.terminate()
            assert process.wait(PATIENCE) == 0


def test_serve_without_json_prints_nothing_on_stdout(address: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, "serve", "--address", address], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with ending(process), connect(address) as client:
        eventually(lambda: answers(client))
        process.terminate()
        out, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, out) == (0, b"")
        assert f"serves {address}".encode() in err
        assert b"has stopped" in err


def answers(client: sg.Client) -> bool:
    with contextlib.suppress(sg.ManagerUnavailableError):
        return client.ping().pid > 0
    return False


def test_a_second_serve_on_an_address_is_refused_and_leaves_the_first_undisturbed(
    address: str,
) -> None:
    with (
        serving("--address", address) as first,
        connect(address) as client,
    ):
        announcement(first)
        breaker = client.breaker("x", failure_threshold=1)
        with breaker.acquire():
            said = complaint(1, "serve", "--address", address)
        assert said == (
            f"AlreadyRunningError: a manager (process {first.pid}) already serves {address}"
        )
        assert breaker.execute(int) == 0
        stats = breaker.stats()
        assert (stats.total_requests, stats.total_successes) == (2, 2)
        assert client.ping().pid == first.pid
        with connect(address) as newcomer:
            assert newcomer.stats("x").total_successes == 2
        assert first.poll() is None


def test_serve_takes_the_place_of_one_that_was_killed(address: str) -> None:
    with serving("--address", address) as first:
        announcement(first)
        end(first)
    with serving("--address", address) as second:
        assert announcement(second)["pid"] == second.pid
        assert done("list", "--address", address) == "no circuits\n"


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("SWITCHGEAR_ADDRESS", "{}/mine", "{}/mine"),
        ("SWITCHGEAR_DIR", "{}", "{}/m1"),
        ("XDG_RUNTIME_DIR", "{}", "{}/switchgear/m1"),
    ],
)
def test_without_an_address_every_command_goes_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, address: str, variable: str, value: str, expected: str
) -> None:
    directory = str(Path(address.removeprefix("ipc://")).parent)
    for name in ("SWITCHGEAR_ADDRESS", "SWITCHGEAR_DIR", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value.format(directory))
    with serving() as process:
        assert announcement(process)["address"] == f"ipc://{expected.format(directory)}"
        with connect() as client:
            client.breaker("x").execute(int)
        assert [stats["name"] for stats in done_json("list")] == ["x"]
        assert done_json("stats", "x")["total_successes"] == 1
        assert done("reset", "x") == "x: closed, generation 2\n"
