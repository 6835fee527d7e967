"""Tens of thousands of frames that are no messages leave nothing behind (G12)."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from long_lives import LIVES, MOST, MOST_BLOCKS


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Each refusal is logged, and kept for the report of a failure."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("side", LIVES)
def test_g12_tens_of_thousands_of_bad_frames_leave_nothing_behind(side: str) -> None:
    grown = LIVES[side]()
    assert grown.sizes == {}
    assert grown.blocks < MOST_BLOCKS
    assert grown.memory < MOST
