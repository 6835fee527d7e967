"""The documents name tests, settings and names that exist, and leave none out."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

import switchgear as sg
from switchgear.client import reports, session
from switchgear.manager import acks, actor, upkeep

ROOT = Path(__file__).parents[2]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", ["docs/guarantees.md", "docs/reliability.md"])
def test_every_test_that_a_document_names_exists(document: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", read(document)))
    sources = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("tests/**/*.py"))
    defined = set(re.findall(r"^(?:async )?def (test_\w+)", sources, re.MULTILINE))
    assert len(named) > 10
    assert named - defined == set()


def test_every_make_target_that_a_document_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    for document in ("README.md", "CONTRIBUTING.md", "docs/guarantees.md", "docs/reliability.md"):
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", read(document), re.MULTILINE))
        assert named - targets == set(), document


def test_every_guarantee_has_a_line_in_the_readme_and_in_the_guarantees() -> None:
    promises = [f"G{number}" for number in range(1, 14)]
    for document in ("README.md", "docs/guarantees.md", "docs/reliability.md"):
        assert re.findall(r"^\| (G\d+) \|", read(document), re.MULTILINE) == promises


def test_the_readme_lists_every_setting_with_its_default() -> None:
    readme = read("README.md")
    for field in fields(sg.CircuitConfig):
        row = re.search(rf"^\| `{field.name}` \| (.*?) \|", readme, re.MULTILINE)
        assert row is not None, field.name
        default = row[1].removesuffix(" s").strip("`").strip('"')
        assert default == str(field.default)


def test_the_readme_lists_every_error_but_the_roots() -> None:
    readme = read("README.md")
    errors = [name for name in sg.__all__ if name.endswith("Error")]
    missing = [name for name in errors if not re.search(rf"^\| .*`{name}`", readme, re.MULTILINE)]
    assert missing == ["BreakerError"]


def test_the_public_names_are_all_there_and_all_documented() -> None:
    public = {name for name in vars(sg) if not name.startswith("_")}
    modules = {name for name in public if type(getattr(sg, name)).__name__ == "module"}
    assert public - modules == set(sg.__all__)
    assert sorted(sg.__all__) == sg.__all__
    for name in sg.__all__:
        assert getattr(sg, name).__doc__, name


def test_the_protocol_tells_what_ours_chooses() -> None:
    rows = re.findall(
        r"^\| `([A-Z_]+)` \| ([\d.]+)(?: s)? \|", read("docs/protocol.md"), re.MULTILINE
    )
    told = {name: float(value) for name, value in rows}
    modules = (session, reports, acks, actor)
    chosen = {name: value for module in modules for name, value in vars(module).items()}
    assert len(told) > 10
    assert told == {name: chosen.get(name) for name in told}


def test_the_guarantees_tell_how_soon_a_manager_without_files_ends() -> None:
    said = "removed** or replaced ends within ten seconds"
    assert said in read("docs/guarantees.md")
    assert upkeep.LOOK_INTERVAL == 10.0
