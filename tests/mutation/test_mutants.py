"""The mutants are the small mistakes they say they are, and the list of survivors is of today."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from mutants import KINDS, Module, kind_of
from survivors import modules, read

SOURCE = '''
"""What is said here is left alone."""

LIMIT: Final = 3


class Door(NamedTuple):
    wide: int = 1

    @property
    def open(self) -> bool:
        """And here."""
        return self.wide > LIMIT and not self.shut

    def check(self) -> None:
        assert self.wide


def enter(door: Door, *, hurry: bool = False) -> str:
    for step in range(2):
        if step in door:
            break
    knock(door, loud=True)
    if hurry:
        raise ValueError(f"too fast at {step}")
    return f"in {min(step, 4)}"
'''


def module(path: Path, text: str = SOURCE) -> Module:
    path.write_text(text, encoding="utf-8")
    return Module("doors", path)


def said(found: Module, where: str) -> set[str]:
    return {mutant.key.mutation for mutant in found.mutants if mutant.key.where == where}


def test_a_module_has_the_mutants_that_one_would_make_by_hand(tmp_path: Path) -> None:
    found = module(tmp_path / "doors.py")
    assert said(found, "") == {"LIMIT: Final = 3 -> pass", "3 -> 4", "3 -> 2"}
    assert said(found, "Door") == {"wide: int = 1 -> pass", "1 -> 2", "1 -> 0"}
    assert said(found, "Door.open") == {
        "return self.wide > LIMIT and (not self.shut) -> return None",
        "And -> Or in self.wide > LIMIT and (not self.shut)",
        "Gt -> GtE in self.wide > LIMIT",
        "not self.shut -> self.shut",
    }
    assert said(found, "enter") == {
        "False -> True",
        "argument 2 -> None in range(2)",
        "2 -> 3",
        "2 -> 1",
        "In -> NotIn in step in door",
        "break -> continue",
        "knock(door, loud=True) -> pass",
        "argument door -> None in knock(door, loud=True)",
        "argument loud=True -> left out in knock(door, loud=True)",
        "True -> False",
        "hurry -> not",
        "raise ValueError(f'too fast at {step}') -> pass",
        "return f'in {min(step, 4)}' -> return None",
    }


def test_every_mutant_is_another_program_and_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    found = module(tmp_path / "doors.py")
    keys = [mutant.key for mutant in found.mutants]
    assert len(set(keys)) == len(keys)
    programs = {found.compiled(mutant) for mutant in found.mutants}
    assert len(programs) == len(keys)
    assert programs == {found.compiled(mutant) for mutant in found.mutants}


def test_a_mutant_keeps_its_name_when_the_module_changes_elsewhere(tmp_path: Path) -> None:
    before = module(tmp_path / "before.py")
    after = module(tmp_path / "after.py", f"import math\n\nANSWER = 42\n{SOURCE}")
    assert {mutant.key for mutant in before.mutants} < {mutant.key for mutant in after.mutants}


def test_every_survivor_that_is_listed_is_a_mutant_and_has_a_reason() -> None:
    every = {mutant.key for found in modules() for mutant in found.mutants}
    listed = read()
    assert [key for key in listed if key not in every] == []
    assert all(reason.strip() for reason in listed.values())


def test_every_mutant_is_of_one_kind_and_of_every_kind_there_are_some() -> None:
    kinds = {kind_of(mutant.key.mutation) for module in modules() for mutant in module.mutants}
    assert kinds == set(KINDS)


EXAMPLES: Final = {
    "argument now -> None in f(now)": "argument -> None",
    "argument a=1 -> left out in f(a=1)": "keyword -> left out",
    "Lt -> LtE in a < b": "comparison",
    "And -> Or in a and b": "and, or",
    "Add -> Sub #1 in a + b": "arithmetic",
    "f() -> pass": "statement -> pass",
    "return -> pass": "statement -> pass",
    "x = f() -> = None": "value -> None",
    "x += 1 -> =": "+= -> =",
    "return x -> return None": "return -> None",
    "break -> continue": "break, continue",
    "case A() -> no": "case -> never",
    "lambda: x -> None": "lambda -> None",
    "1 -> -1": "constant",
    "0.5 -> 1.5": "constant",
    "True -> False": "constant",
    "'a' -> 'XX...XX'": "constant",
    "min -> max": "min, max, any, all",
    "a < b -> not": "condition -> not",
    "not a -> a": "not, - -> left out",
}


def test_the_kinds_are_what_they_are_called() -> None:
    assert [kind_of(mutation) for mutation in EXAMPLES] == list(EXAMPLES.values())
