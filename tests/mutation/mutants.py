"""Mutants of a module: each is its source with one small thing wrong that a test should notice.

The operators are mutmut's and cosmic-ray's, and statements left out. mutmut itself leaves alone
what is decorated, so every property, and what runs at import, so the tables of the wire; cosmic-ray
starts an interpreter for each mutant, and all tests in it.

What is left alone, because no test should depend on it: docstrings and annotations, which nothing
reads (but for the wire's, which are fields: they are left out one by one); `check()` methods, which
are asserts for tests; other asserts, which are there for the type checker; `__slots__`, which only
save memory; type variables and aliases; and the wording of errors.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import Final, NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Key(NamedTuple):
    """What a mutant is known by; it survives changes elsewhere in the module."""

    module: str
    where: str  # the qualified name of the innermost definition; "" is the module itself
    line: str  # the line's source
    mutation: str  # "before -> after"
    place: int  # among those that would be called the same


class Mutant(NamedTuple):
    """One change of the tree of a module, that can be made and taken back."""

    key: Key
    first: int  # the statement's lines
    last: int
    function: str | None  # the outermost function or method whose body it is in
    body: range  # the lines of that
    change: Callable[[], Callable[[], None]]  # makes it, and returns what takes it back


SWAPS: Final[dict[type[ast.AST], type[ast.AST]]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.Div,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
NAMES: Final = {"min": "max", "max": "min", "any": "all", "all": "any"}
# What is wrong, in a few words, by what a mutation says; the first that fits.
KINDS: Final = {
    kind: re.compile(pattern)
    for kind, pattern in {
        "argument -> None": r"argument .* -> None in ",
        "keyword -> left out": r"argument .* -> left out in ",
        "comparison": r"(Lt|LtE|Gt|GtE|Eq|NotEq|Is|IsNot|In|NotIn) -> \w+( #\d+)? in ",
        "and, or": r"(And|Or) -> (And|Or)( #\d+)? in ",
        "arithmetic": r"(Add|Sub|Mult|Div|FloorDiv|Mod|Pow|BitAnd|BitOr) -> \w+( #\d+)? in ",
        "statement -> pass": r".* -> pass$",
        "value -> None": r".* -> = None$",
        "+= -> =": r".* -> =$",
        "return -> None": r"return .* -> return None$",
        "break, continue": r"(break|continue) -> ",
        "case -> never": r"case .* -> no$",
        "lambda -> None": r"lambda.* -> (None|0)$",
        "constant": r"-?[\d.e+]+ -> -?[\d.e+]+$|(True|False) -> |.* -> 'XX\.\.\.XX'$",
        "min, max, any, all": r"(min|max|any|all) -> (min|max|any|all)$",
        "condition -> not": r".* -> not$",
        "not, - -> left out": r"(not |-|~).* -> ",
    }.items()
}
NAMES_ONLY: Final = {"TypeVar", "NewType"}  # calls whose result only annotations use


def kind_of(mutation: str) -> str:
    """What kind of mistake it is: one of KINDS."""
    return next(kind for kind, pattern in KINDS.items() if pattern.match(mutation))


class Module:
    """The source of one module, and its mutants in the order of the text.

    Args:
        name: As in `manager.actor`.
        path: Its file.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        text = path.read_text(encoding="utf-8")
        self._lines = text.splitlines()
        self._tree = ast.parse(text, str(path))
        self._seen: dict[tuple[str, ...], int] = {}
        self._bodies: dict[str, range] = {}
        self.mutants = list(self._block(self._tree, "", None))

    def compiled(self, mutant: Mutant) -> CodeType:
        """The module's code with one mutant in it."""
        take_back = mutant.change()
        try:
            return compile(ast.fix_missing_locations(self._tree), str(self.path), "exec")
        finally:
            take_back()

    # -- where mutants are -------------------------------------------------------------------------

    def _block(self, parent: ast.AST, where: str, function: str | None) -> Iterator[Mutant]:
        for field in ("body", "orelse", "finalbody", "handlers", "cases"):
            block = getattr(parent, field, None)
            for statement in block if isinstance(block, list) else ():
                yield from self._statement(statement, where, function, parent, field)

    def _statement(
        self, node: ast.AST, where: str, function: str | None, parent: ast.AST, field: str
    ) -> Iterator[Mutant]:
        if _is_left_alone(node):
            return
        if isinstance(node, (*Function.__args__, ast.ClassDef)):
            inner = f"{where}.{node.name}" if where else node.name
            yield from self._expressions(node, where if function else inner, function)
            if not isinstance(node, ast.ClassDef) and function is None:
                function = inner
                self._bodies[inner] = range(node.body[0].lineno, (node.end_lineno or 0) + 1)
            yield from self._block(node, inner, function)
            return
        for change, mutation in self._of_statement(node, parent, field):
            yield self._mutant(node, node, mutation, where, function, change)
        yield from self._expressions(node, where, function)
        yield from self._block(node, where, function)

    def _expressions(self, node: ast.AST, where: str, function: str | None) -> Iterator[Mutant]:
        for name, value in ast.iter_fields(node):
            if name in _NOT_EXPRESSIONS or (name == "annotation" and value is not None):
                continue
            for place, child in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(child, ast.AST) and not isinstance(child, (ast.stmt, ast.arg)):
                    slot = (node, name, place if isinstance(value, list) else None)
                    yield from self._expression(child, slot, node, where, function)

    def _expression(
        self, node: ast.AST, slot: _Slot, statement: ast.AST, where: str, function: str | None
    ) -> Iterator[Mutant]:
        if isinstance(statement, ast.Raise) and isinstance(node, (ast.JoinedStr, ast.Constant)):
            return  # the wording of an error
        if isinstance(statement, ast.Raise) and isinstance(node, ast.Call):
            return  # and what it is made of
        if isinstance(statement, ast.Expr) and statement.value is node and _is_text(node):
            return  # a docstring
        for new, mutation in _of_expression(node, slot):
            change = _replacing(slot, new)
            yield self._mutant(node, statement, mutation, where, function, change)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "format_spec") or isinstance(node, ast.JoinedStr):
                continue
            for place, child in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(child, ast.AST):
                    below = (node, name, place if isinstance(value, list) else None)
                    yield from self._expression(child, below, statement, where, function)

    def _mutant(
        self,
        node: ast.AST,
        statement: ast.AST,
        mutation: str,
        where: str,
        function: str | None,
        change: Callable[[], Callable[[], None]],
    ) -> Mutant:
        line = getattr(node, "lineno", None) or getattr(statement, "lineno", 0)
        text = self._lines[line - 1].strip()
        place = self._seen[where, text, mutation] = self._seen.get((where, text, mutation), -1) + 1
        first, last = _reach(statement)
        key = Key(self.name, where, text, mutation, place)
        body = self._bodies[function] if function else range(0)
        return Mutant(key, min(first, line), max(last, line), function, body, change)

    # -- what is wrong with a statement ------------------------------------------------------------

    def _of_statement(
        self, node: ast.AST, parent: ast.AST, field: str
    ) -> Iterator[tuple[Callable[[], Callable[[], None]], str]]:
        place = getattr(parent, field).index(node)
        slot = (parent, field, place)
        text = _short(node)

        def instead(new: ast.AST) -> Callable[[], Callable[[], None]]:
            return _replacing(slot, ast.copy_location(new, node))

        match node:
            case ast.Expr(value=ast.Constant() | ast.Yield()):
                pass
            case ast.Expr() | ast.Delete() | ast.Raise() | ast.AugAssign():
                yield instead(ast.Pass()), f"{text} -> pass"
            case ast.Assign() | ast.AnnAssign(value=ast.expr()):
                yield instead(ast.Pass()), f"{text} -> pass"
                if not isinstance(node.value, ast.Constant):  # those are changed by themselves
                    none = ast.Constant(None)
                    yield _replacing((node, "value", None), none), f"{text} -> = None"
            case ast.AnnAssign() if self.name == "wire":
                yield instead(ast.Pass()), f"{text} -> pass"
            case ast.Return(value=ast.expr()):
                if not (isinstance(node.value, ast.Constant) and node.value.value in _ENDS):
                    yield instead(ast.Return()), f"{text} -> return None"
            case ast.Return():
                yield instead(ast.Pass()), "return -> pass"
            case ast.Break():
                yield instead(ast.Continue()), "break -> continue"
            case ast.Continue():
                yield instead(ast.Break()), "continue -> break"
            case ast.match_case() if not _is_wildcard(node):
                never = ast.Constant(False)
                yield _replacing((node, "guard", None), never), f"case {_short(node.pattern)} -> no"
        if isinstance(node, ast.AugAssign):
            new = ast.Assign([node.target], node.value)
            yield instead(new), f"{text} -> ="


_ENDS: Final = (None, False)  # returned; False is changed by itself
_Slot = tuple[ast.AST, str, "int | None"]
_NOT_EXPRESSIONS: Final = frozenset(
    {"body", "orelse", "finalbody", "handlers", "cases", "returns", "type_params", "pattern"}
)


def _of_expression(node: ast.AST, slot: _Slot) -> Iterator[tuple[ast.AST, str]]:
    parent, field, place = slot
    if type(node) in SWAPS:
        new = SWAPS[type(node)]()
        around = _short(parent)
        which = f" #{place}" if place else ""
        yield new, f"{type(node).__name__} -> {type(new).__name__}{which} in {around}"
    if field in ("test", "ifs") and not _is_negated_by_a_swap(node):
        yield _not(node), f"{_short(node)} -> not"
    match node:
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand, f"{_short(node)} -> {_short(node.operand)}"
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value), f"{node.value} -> {not node.value}"
        case ast.Constant(value=int()):
            yield ast.Constant(node.value + 1), f"{node.value} -> {node.value + 1}"
            yield ast.Constant(node.value - 1), f"{node.value} -> {node.value - 1}"
        case ast.Constant(value=float()):
            yield ast.Constant(node.value + 1), f"{node.value} -> {node.value + 1}"
        case ast.Constant(value=str()):
            yield ast.Constant(f"XX{node.value}XX"), f"{node.value!r} -> 'XX...XX'"
        case ast.Name(id=name) if name in NAMES and field == "func":
            yield ast.Name(NAMES[name], ast.Load()), f"{name} -> {NAMES[name]}"
        case ast.Call():
            yield from _of_call(node)
        case ast.Lambda(body=body):
            new = ast.Constant(0) if _is_none(body) else ast.Constant(None)
            yield ast.Lambda(node.args, new), f"{_short(node)} -> {_short(new)}"


def _of_call(node: ast.Call) -> Iterator[tuple[ast.AST, str]]:
    for place, argument in enumerate(node.args):
        if not _is_none(argument) and not isinstance(argument, ast.Starred):
            args = [*node.args[:place], ast.Constant(None), *node.args[place + 1 :]]
            new = ast.Call(node.func, args, node.keywords)
            yield new, f"argument {_short(argument)} -> None in {_short(node)}"
    for place, keyword in enumerate(node.keywords):
        if keyword.arg is not None:
            keywords = [*node.keywords[:place], *node.keywords[place + 1 :]]
            new = ast.Call(node.func, node.args, keywords)
            yield new, f"argument {_short(keyword)} -> left out in {_short(node)}"


# -- trees -----------------------------------------------------------------------------------------


def _replacing(slot: _Slot, new: ast.AST) -> Callable[[], Callable[[], None]]:
    parent, field, place = slot

    def change() -> Callable[[], None]:
        before = getattr(parent, field)
        after = new if place is None else [*before[:place], new, *before[place + 1 :]]
        setattr(parent, field, after)
        return lambda: setattr(parent, field, before)

    return change


def _is_left_alone(node: ast.AST) -> bool:
    match node:
        case ast.Import() | ast.ImportFrom() | ast.Assert():
            return True
        case ast.FunctionDef(name="check"):
            return True
        case ast.ClassDef(bases=bases):
            return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in bases)
        case ast.Assign(targets=[ast.Name(id="__slots__")]):
            return True
        case ast.Assign(value=ast.Call(func=ast.Name(id=name))):
            return name in NAMES_ONLY
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Subscript(value=ast.Name(id=of))):
            return name[0].isupper() and of not in ("Literal", "Annotated")
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.BinOp(op=ast.BitOr())):
            return name[0].isupper() and not name.isupper()
    return False


def _reach(statement: ast.AST) -> tuple[int, int]:
    """The lines of a statement, without those of the statements within."""
    if isinstance(statement, ast.match_case):
        return statement.pattern.lineno, statement.pattern.end_lineno or 0
    first, last = getattr(statement, "lineno", 0), getattr(statement, "end_lineno", 0)
    for field in ("body", "cases"):
        block = getattr(statement, field, None)
        if isinstance(block, list) and block:
            last = max(first, getattr(block[0], "lineno", last + 1) - 1)
    return first, last


def _not(node: ast.AST) -> ast.AST:
    return ast.UnaryOp(ast.Not(), node)


def _is_negated_by_a_swap(node: ast.AST) -> bool:
    match node:
        case ast.UnaryOp(op=ast.Not()):
            return True
        case ast.Compare(
            ops=[ast.Eq() | ast.NotEq() | ast.Is() | ast.IsNot() | ast.In() | ast.NotIn()]
        ):
            return True
    return False


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _is_wildcard(case: ast.match_case) -> bool:
    return isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
