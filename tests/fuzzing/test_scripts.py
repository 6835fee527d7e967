"""Sequences of frames, of breaks and of time passing: whatever comes, nobody else notices.

What `make fuzz` does for as long as one likes, for a moment, everywhere and without atheris.
"""

from __future__ import annotations

import importlib.util
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from campaign import DRIFT, SIDES, resident, runner
from frames import FRAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from scripts import SEEDS, Do, Step, mutate, pack, parse, run_client_side, run_manager_side

from switchgear import wire

some = settings(max_examples=60, deadline=None, derandomize=True, database=None)

frames = st.sampled_from(FRAMES) | st.binary(max_size=40)
steps = st.builds(
    Step,
    who=st.integers(0, 3),
    do=st.sampled_from((*[Do.FEED] * 8, Do.PASS, Do.LOSE, Do.KILL, Do.SHUT)),
    frame=frames,
    much=st.integers(0, 255),
    more=st.booleans(),
)
sequences = st.lists(steps, max_size=20).map(pack)


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Refusals are logged, and kept for the report of a failure."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# -- scripts ---------------------------------------------------------------------------------------


@some
@given(st.binary(max_size=300))
def test_any_bytes_are_a_script_and_steps_survive_being_packed(script: bytes) -> None:
    understood = parse(script)
    assert parse(pack(understood)) == understood


def test_the_seeds_use_every_message_and_are_the_same_each_time() -> None:
    for side, run in (("manager", run_manager_side), ("client", run_client_side)):
        seeds = SEEDS[side]()
        assert seeds == SEEDS[side]()
        used = set().union(*(run(seed).counted for seed in seeds))
        ways = (wire.TO_DATA | wire.TO_CONTROL, wire.FROM_DATA | wire.FROM_CONTROL)
        expected = {message.__name__ for message in ways[side == "client"]}
        assert used == expected | {"no message"}


# -- sequences -------------------------------------------------------------------------------------


@some
@given(sequences)
def test_no_sequence_of_frames_harms_a_client_of_the_manager(script: bytes) -> None:
    run_manager_side(script)


@some
@given(sequences)
def test_no_sequence_of_frames_breaks_a_client(script: bytes) -> None:
    run_client_side(script)


@pytest.mark.parametrize("side", SIDES)
def test_no_conversation_that_goes_wrong_does_harm_and_memory_stays_flat(
    side: str, tmp_path: Path
) -> None:
    random, run, seeds = Random(5), runner(side, tmp_path), SEEDS[side]()

    def wrong() -> bytes:
        script = random.choice(seeds)
        for _ in range(random.randrange(1, 10)):
            script = mutate(script, random)
        return script

    scripts = [wrong() for _ in range(300)]
    for script in scripts:
        run(script)
    before = resident()
    for script in scripts:
        run(script)
    assert resident() - before < DRIFT * len(scripts) / 20_000 + 2**20  # what may be left behind


# -- the campaign ----------------------------------------------------------------------------------


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris is not installed: the coverage-guided part is `make fuzz`",
)
@pytest.mark.parametrize("side", SIDES)
def test_the_campaign_finds_nothing_in_a_few_seconds(side: str, tmp_path: Path) -> None:
    campaign = Path(__file__).with_name("campaign.py")
    command = [sys.executable, str(campaign), "--seconds", "5", "--replays", "300"]
    ended = subprocess.run([*command, "--side", side, "--directory", str(tmp_path)], check=False)
    assert ended.returncode == 0
