"""What the package logs, in an application whose logging is broken."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from switchgear.client.logs import log


class Broken(logging.Handler):
    """Notes what it is given, and raises."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        raise ValueError("the pipe is gone")


@pytest.fixture
def broken() -> Iterator[Broken]:
    handler, logger = Broken(), logging.getLogger("switchgear")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def test_a_handler_that_raises_is_not_noticed_whatever_is_logged(broken: Broken) -> None:
    log.debug("one %d", 1)
    log.warning("two")
    log.log(logging.INFO, "three %s", "words")
    error = KeyError("gone")
    try:
        raise error
    except KeyError:
        log.exception("four")
    assert [record.getMessage() for record in broken.records] == [
        "one 1",
        "two",
        "three words",
        "four",
    ]
    assert broken.records[3].exc_info is not None
    assert broken.records[3].exc_info[1] is error
    assert {record.filename for record in broken.records} == {"test_logs.py"}


def test_a_message_that_does_not_fit_its_arguments_is_not_noticed(broken: Broken) -> None:
    log.warning("%d", "no number")
    assert len(broken.records) == 1
