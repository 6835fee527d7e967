"""Imports point down only, and what decides knows no clock, no socket, no thread, no chance.

The imports are read, not run: a module that is not there yet breaks nothing, an import inside a
function or under TYPE_CHECKING counts like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest
from pure import PURE

import switchgear

SOURCE: Final = Path(switchgear.__file__).parent
PACKAGE: Final = "switchgear"

# From the ground up. A module imports from the floors below its own; a folder is one floor, in
# which its modules may import each other.
FLOORS: Final = [
    ["states"],
    ["errors"],
    ["config"],
    ["stats"],
    ["circuit"],
    ["wire"],
    ["address", "processes", "transport"],
    ["launch"],
    ["manager", "client"],
    ["exporters", "testing"],
    [""],  # the package's own __init__: the public names
    ["cli"],
    ["__main__"],
]
FLOOR_OF: Final = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}

# manager and client never meet, but Manager in process.py hands out a client.
DOORS: Final = {("manager.process", "client")}

IMPURE: Final = {
    *("socket", "time", "threading", "random", "zmq", "asyncio", "select", "os", "subprocess"),
}


class Arrow(NamedTuple):
    """One import: which module, at which line, imports what."""

    module: str  # of ours, without the package's name; "" is the package itself
    line: int
    target: str  # as `module` if `ours`, else the top-level name
    ours: bool


def modules(source: Path) -> dict[str, Path]:
    found = {}
    for path in sorted(source.rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def arrows(source: Path) -> Iterator[Arrow]:
    ours = modules(source)
    for module, path in ours.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    base = absolute(module, base, node.level, path.name == "__init__.py")
                # `from .a import b` may mean the module a.b, and else means a.
                names = [
                    longer if longer.removeprefix(f"{PACKAGE}.") in ours else base
                    for longer in (f"{base}.{alias.name}" for alias in node.names)
                ]
            else:
                continue
            for name in names:
                top, _dot, rest = name.partition(".")
                is_ours = top == PACKAGE
                yield Arrow(module, node.lineno, rest if is_ours else top, is_ours)


def absolute(module: str, base: str, level: int, is_package: bool) -> str:
    here = [PACKAGE, *filter(None, module.split("."))]
    up = level - 1 if is_package else level
    return ".".join([*here[: len(here) - up], *filter(None, [base])])


def room(module: str) -> str:
    return module.partition(".")[0]


def upward(source: Path) -> list[str]:
    """Every import that points up, or between two rooms of one floor."""
    wrong = []
    for module, line, target, ours in arrows(source):
        here, there = room(module), room(target)
        if not ours or here == there or (module, there) in DOORS:
            continue
        if here not in FLOOR_OF or there not in FLOOR_OF or FLOOR_OF[there] >= FLOOR_OF[here]:
            wrong.append(f"{module or '__init__'}:{line} imports {target or 'the package itself'}")
    return wrong


def impure(source: Path) -> list[str]:
    """Every import of a pure module that lets the world in, directly or through one of ours."""
    wrong = []
    ours = modules(source)
    for module, line, target, is_ours in arrows(source):
        if module not in PURE:
            continue
        packages = {name for name in ours if ours[name].name == "__init__.py"}
        lets_in = target not in PURE | packages if is_ours else target in IMPURE
        if lets_in:
            wrong.append(f"{module}:{line} imports {target}")
    return wrong


def homeless(source: Path) -> list[str]:
    return [module for module in modules(source) if room(module) not in FLOOR_OF]


# -- the source --------------------------------------------------------------------------------


def test_every_import_points_down() -> None:
    assert upward(SOURCE) == []


def test_what_decides_imports_nothing_that_touches_the_world() -> None:
    assert impure(SOURCE) == []


def test_every_module_has_a_floor() -> None:
    assert homeless(SOURCE) == []


def test_the_reader_finds_the_modules_and_imports_that_are_there() -> None:
    assert {"", "states", "errors", "config", "stats", "circuit"} <= set(modules(SOURCE))
    found = {(arrow.module, arrow.target) for arrow in arrows(SOURCE)}
    assert {("errors", "states"), ("circuit", "stats"), ("stats", "datetime")} <= found


# -- the tests above can fail ------------------------------------------------------------------


def planted(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("states.py", "from .errors import BreakerError"),
        ("errors.py", "from switchgear.config import CircuitConfig"),
        ("config.py", "from . import stats"),
        ("stats.py", "import switchgear.circuit"),
        ("circuit.py", "from .wire import Message"),
        ("circuit.py", "def f() -> None:\n    from .manager import actor"),
        ("config.py", "if TYPE_CHECKING:\n    from .circuit import Circuit"),
        ("wire.py", "from .client.session import Session"),
        ("manager/actor.py", "from ..client.session import Session"),
        ("manager/server.py", "from switchgear.client import link"),
        ("manager/__init__.py", "from ..client import link"),
        ("manager/__init__.py", "from .. import client"),
        ("client/breaker.py", "from ..manager.process import Manager"),
        ("client/process.py", "from ..manager import actor"),
        ("manager/process.py", "from ..cli.main import main"),
        ("client/link.py", "import switchgear"),
        ("client/link.py", "from .. import breaker"),
        ("errors.py", "from . import BreakerError"),
        ("testing/fakes.py", "from ..cli import main"),
        ("__init__.py", "from .cli import main"),
        ("circuit.py", "from .novelty import anything"),
    ],
)
def test_an_import_that_points_up_or_across_is_found(tmp_path: Path, name: str, text: str) -> None:
    there = {
        "__init__.py": "",
        "circuit.py": "",
        "config.py": "",
        "stats.py": "",
        "client/__init__.py": "",
        "client/link.py": "",
        "manager/__init__.py": "",
        "manager/actor.py": "",
    }
    assert len(upward(planted(tmp_path, there | {name: text}))) == 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("errors.py", "from .states import State"),
        ("circuit.py", "from .stats import LatencyWindow\nfrom . import config"),
        ("wire.py", "import msgpack\nfrom switchgear.circuit import Permit"),
        ("manager/actor.py", "from .leases import Leases\nfrom ..wire import Message"),
        ("manager/__init__.py", "from .process import Manager"),
        ("manager/process.py", "from ..client.link import connect\nimport switchgear.client"),
        ("client/session.py", "from ..circuit import Circuit\nfrom . import permit"),
        ("cli/main.py", "import switchgear\nfrom ..manager import server"),
        ("testing.py", "from .client import breaker\nfrom .manager import actor"),
        ("__init__.py", "from .client.breaker import Breaker\nfrom .errors import BreakerError"),
        ("__main__.py", "from .cli.main import main"),
    ],
)
def test_an_import_that_points_down_is_let_through(tmp_path: Path, name: str, text: str) -> None:
    there = {
        "config.py": "",
        "cli/__init__.py": "",
        "client/__init__.py": "",
        "client/permit.py": "",
        "manager/__init__.py": "",
        "manager/server.py": "",
    }
    assert upward(planted(tmp_path, there | {name: text})) == []


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_that_lets_the_world_in_is_found(tmp_path: Path, module: str) -> None:
    name = module.replace(".", "/") + ".py"
    for number, world in enumerate(sorted(IMPURE)):
        for text in (f"import {world}", f"import {world} as w", f"from {world} import x"):
            source = planted(tmp_path / str(number), {name: f"import math\n{text}\n"})
            assert impure(source) == [f"{module}:2 imports {world}"]


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("circuit.py", "import os.path", 1),
        ("circuit.py", "import math, time", 1),
        ("circuit.py", "def f() -> None:\n    import time", 1),
        ("manager/actor.py", "from .server import Server", 1),
        ("manager/leases.py", "from . import journal", 1),
        ("client/session.py", "from .link import Link", 1),
        ("manager/actor.py", "from .leases import Leases", 0),
        ("manager/server.py", "import time, zmq", 0),
        ("client/link.py", "import socket", 0),
        ("stats.py", "from datetime import datetime", 0),
        ("wire.py", "import msgpack", 0),
        ("config.py", "from .timeouts_of_ours import x", 1),
    ],
)
def test_purity_is_found_out_through_our_own_modules_too(
    tmp_path: Path, name: str, text: str, found: int
) -> None:
    there = {"manager/__init__.py": "", "manager/journal.py": "", "client/__init__.py": ""}
    assert len(impure(planted(tmp_path, there | {name: text}))) == found


def test_a_module_without_a_floor_is_found(tmp_path: Path) -> None:
    files = {"novelty.py": "", "attic/thing.py": "", "client/anything.py": "", "wire.py": ""}
    assert homeless(planted(tmp_path, files)) == ["attic.thing", "novelty"]
