"""The mutants that live, each with the reason why it may: survivors.toml."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Final

from mutants import Key, Module

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # which pytest and coverage need there too

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
SOURCE: Final = ROOT / "src" / "switchgear"
UNIT: Final = ROOT / "tests" / "unit"


def modules() -> list[Module]:
    """What is pure, as the test of the layers has it, and the standby, which is but for a lock."""
    sys.path.insert(0, str(UNIT))
    pure: set[str] = importlib.import_module("pure").PURE
    names = [*sorted(pure), "client.standby"]
    return [Module(name, SOURCE / f"{name.replace('.', '/')}.py") for name in names]


def read() -> dict[Key, str]:
    """Those that are listed, and why."""
    groups = tomllib.loads((HERE / "survivors.toml").read_text(encoding="utf-8"))["because"]
    return {
        Key(*mutant[:4], int(mutant[4]) if len(mutant) > 4 else 0): group["reason"]
        for group in groups
        for mutant in group["mutants"]
    }


def as_toml(key: Key) -> str:
    """As it is written in the list."""
    place = [str(key.place)] if key.place else []
    return f"    [{', '.join(quoted(text) for text in [*key[:4], *place])}],"


def quoted(text: str) -> str:
    if "'" not in text:
        return f"'{text}'"
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
