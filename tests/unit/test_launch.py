"""What a manager's process is started with."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path

import pytest

import switchgear
from switchgear import launch
from switchgear.address import Address
from switchgear.errors import BreakerError, ConfigError

PLACE = Address("/tmp/nowhere/m")
PACKAGE = str(Path(switchgear.__file__).parents[1])


def test_the_command_line_is_ours_and_says_where() -> None:
    assert launch.command(PLACE, "--x", "1") == [
        *(sys.executable, "-m", "switchgear.manager", "--address", "ipc:///tmp/nowhere/m"),
        *("--x", "1"),
    ]


@pytest.mark.parametrize("executable", ["", None])
def test_without_a_python_there_is_no_command(
    monkeypatch: pytest.MonkeyPatch, executable: str | None
) -> None:
    monkeypatch.setattr(sys, "executable", executable)
    with pytest.raises(ConfigError, match="without a Python"):
        launch.command(PLACE)


def test_a_frozen_program_is_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(ConfigError, match="without a Python"):
        launch.command(PLACE)


@pytest.mark.parametrize(
    ("inherited", "expected"),
    [
        (None, [PACKAGE]),
        ("", [PACKAGE]),
        ("/a:/b", [PACKAGE, "/a", "/b"]),
        ("ours:./lib::", [PACKAGE, f"{os.getcwd()}/ours", f"{os.getcwd()}/lib"]),
        (PACKAGE, [PACKAGE]),
    ],
)
def test_the_path_has_this_package_first_and_means_the_same_in_any_directory(
    monkeypatch: pytest.MonkeyPatch, inherited: str | None, expected: list[str]
) -> None:
    if inherited is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", inherited)
    assert launch.environment()["PYTHONPATH"].split(os.pathsep) == expected


def test_what_is_started_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWITCHGEAR_AUTOSTART", "1")
    assert launch.environment()["SWITCHGEAR_AUTOSTART"] == "0"


@pytest.mark.parametrize(
    ("text", "seconds"), [("", 60.0), ("0.5", 0.5), ("90", 90.0), ("inf", float("inf"))]
)
def test_the_idle_time_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    monkeypatch.setenv("SWITCHGEAR_IDLE_EXIT", text)
    assert launch.idle_exit() == seconds


@pytest.mark.parametrize("text", ["0", "-1", "nan", "-inf", "soon", "1,5"])
def test_an_idle_time_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SWITCHGEAR_IDLE_EXIT", text)
    with pytest.raises(ConfigError, match=f"SWITCHGEAR_IDLE_EXIT .* {text!r}"):
        launch.idle_exit()


@pytest.mark.parametrize(
    "parts", [[b"ready"], [b"re", b"ady"], [b"something went ", b"wrong"], [b""]]
)
def test_the_first_word_is_all_that_is_said_until_the_end(parts: list[bytes]) -> None:
    read, write = os.pipe()
    for part in parts:
        os.write(write, part)
    os.close(write)
    assert launch.first_word(read, 20.0) == b"".join(parts)
    os.close(read)


def test_ready_is_heard_while_others_have_the_pipe_open_and_silence_ends() -> None:
    read, write = os.pipe()
    assert launch.first_word(read, 0.01) == b""
    os.write(write, launch.READY)
    assert launch.first_word(read, 20.0) == launch.READY
    os.close(write)
    os.close(read)


@pytest.mark.parametrize(
    ("said", "listening", "started"),
    [(b"ready", False, True), (b"taken: by 7", True, True), (b"taken: by 7", False, False)],
)
def test_what_a_manager_says_is_understood(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: bytes, listening: bool, started: bool
) -> None:
    stand_in(monkeypatch, said)
    monkeypatch.setattr(launch, "listening", lambda address: listening)
    assert launch._start(Address(f"{tmp_path}/m")) is started


@pytest.mark.parametrize(
    ("said", "reason"), [(b"no room", "no room; its log"), (b"", "it ended, or said nothing")]
)
def test_what_went_wrong_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: bytes, reason: str
) -> None:
    stand_in(monkeypatch, said)
    with pytest.raises(BreakerError, match=reason):
        launch._start(Address(f"{tmp_path}/m"))


def stand_in(monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """Have something else started that says so."""

    def command(address: Address, *options: str) -> list[str]:
        script = f"import os; os.write({options[-1]}, {said!r})"
        return [sys.executable, "-I", "-S", "-c", script]

    monkeypatch.setattr(launch, "command", command)


@pytest.mark.parametrize("lives", [True, False])
def test_a_manager_that_lets_nobody_in_is_there_as_long_as_it_holds_its_lock(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lives: bool
) -> None:
    place = Address(f"{tmp_path}/m")
    Path(f"{place.data_path}.shut").touch()
    started: list[Address] = []
    monkeypatch.setattr(launch, "_start", lambda address: bool(started.append(address)))
    with open(place.lock_path, "w") as lock:
        if lives:
            fcntl.flock(lock, fcntl.LOCK_EX)
        assert launch.start(place) is lives
    assert started == ([] if lives else [place])
