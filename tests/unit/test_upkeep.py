"""When an unattended manager ends: time is a number, and what it finds is said."""

from __future__ import annotations

import math

import pytest

from switchgear.manager.upkeep import LOOK_INTERVAL, Upkeep

BEGAN = 1000.0


class Files:
    """What is wrong with them, and how often somebody looked."""

    def __init__(self) -> None:
        self.wrong: str | None = None
        self.looks = 0

    def __call__(self) -> str | None:
        self.looks += 1
        return self.wrong


@pytest.fixture
def files() -> Files:
    return Files()


@pytest.mark.parametrize(
    ("idle_since", "end"),
    [
        (-math.inf, BEGAN + 5.0),  # it was never used, and did not exist before it began
        (BEGAN, BEGAN + 5.0),
        (BEGAN + 2.0, BEGAN + 7.0),
    ],
)
def test_it_ends_when_it_was_idle_for_so_long_and_not_before(
    files: Files, idle_since: float, end: float
) -> None:
    upkeep = Upkeep(5.0, files, BEGAN)
    assert upkeep.next_deadline(idle_since) == end
    assert upkeep.reason_to_end(idle_since, math.nextafter(end, 0.0)) is None
    assert upkeep.reason_to_end(idle_since, end) == "nobody has used it for 5 s"


def test_while_it_is_used_it_does_not_end(files: Files) -> None:
    upkeep = Upkeep(5.0, files, BEGAN)
    assert upkeep.reason_to_end(None, BEGAN + 1e6) is None


def test_an_infinite_idle_time_never_ends_it(files: Files) -> None:
    upkeep = Upkeep(math.inf, files, BEGAN)
    assert upkeep.reason_to_end(BEGAN, BEGAN + 1e9) is None
    assert upkeep.next_deadline(BEGAN) < math.inf, "it looks at its files all the same"


def test_it_looks_at_its_files_every_so_often_and_not_more(files: Files) -> None:
    upkeep = Upkeep(1e9, files, BEGAN)
    now = BEGAN
    for looks in range(1, 4):
        deadline = upkeep.next_deadline(None)
        assert deadline == now + LOOK_INTERVAL
        now = math.nextafter(deadline, 0.0)
        assert upkeep.reason_to_end(None, now) is None
        assert files.looks == looks - 1
        now = deadline
        assert upkeep.reason_to_end(None, now) is None
        assert files.looks == looks


def test_it_ends_when_a_file_is_gone_used_or_not(files: Files) -> None:
    files.wrong = "m.data was removed"
    for idle_since in (None, BEGAN):
        upkeep = Upkeep(1e9, files, BEGAN)
        assert upkeep.reason_to_end(idle_since, BEGAN + LOOK_INTERVAL) == "m.data was removed"
