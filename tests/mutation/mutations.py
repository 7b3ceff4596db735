"""Mutations of formulas: one sign, factor, term, transpose, index, comparison or constant of a source is changed.

A mutation replaces the source of one expression by another that is still a program. Words are left alone: annotations,
docstrings, messages of errors and warnings, decorators.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

SIGNS = {ast.Add: ast.Sub, ast.Sub: ast.Add}
FACTORS = {ast.Mult: ast.Div, ast.Div: ast.Mult}
COMPARISONS = {ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
IN_PLACE = {"add_": "sub_", "sub_": "add_", "mul_": "div_", "div_": "mul_"}
EXTREMES = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "amin": "amax", "amax": "amin"}
WORDS = {"complaint", "warn", "warning", "info", "debug", "TypeVar", "NewType", "__repr__", "__str__"}
TEXT = (ast.JoinedStr, ast.List, ast.Tuple, ast.ListComp)


EVERYWHERE = range(1, 10**6)


@dataclass(frozen=True)
class Place:
    """Name of the function or class around an expression; the lines that reach what is computed at import."""

    name: str = "module"
    reach: range | None = EVERYWHERE

    def inside(self, node: ast.FunctionDef | ast.ClassDef) -> Place:
        name = node.name if self.name == "module" else f"{self.name}.{node.name}"
        return Place(name, None if isinstance(node, ast.FunctionDef) else EVERYWHERE)


@dataclass(frozen=True)
class Mutation:
    """One expression of a file and what replaces it: bytes ``start`` to ``stop`` of the source become ``text``.

    A test reaches it that runs one of the lines ``reach``: those of the expression; of a default value those of its
    function, and of what is computed at import all of the file.
    """

    file: str
    lines: range
    place: str
    reach: range
    kind: str
    old: str
    new: str
    start: int
    stop: int
    text: str
    repeat: int = 1

    @property
    def name(self) -> str:
        """Stays the same when lines are added elsewhere; the key of the list of equivalent mutations."""
        again = f" (no. {self.repeat})" if self.repeat > 1 else ""
        return f"{self.file}::{self.place}: {self.old} -> {self.new}{again}"

    @property
    def function(self) -> str:
        """File and function that it changes; the key of the list for a function whose mutations are all equivalent."""
        return f"{self.file}::{self.place}"

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.text.encode() + source[self.stop :]


def mutations(root: Path, folder: str) -> list[Mutation]:
    """Every mutation of the Python files of a folder, or of one file, in the order of the sources."""
    path = root / folder
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    if not files:
        raise FileNotFoundError(f"no Python file at {path}; name a folder or a file, for example sgdsde/noise")
    found = []
    for file in files:
        found += mutations_of(file.read_bytes(), file.relative_to(root).as_posix())
    return found


def mutations_of(source: bytes, file: str) -> list[Mutation]:
    """Every mutation of one source."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found: list[Mutation] = []
    seen: dict[str, int] = {}
    for place, node, kind, changed in _changes(ast.parse(source), Place(), None):
        text = ast.unparse(changed)
        mutation = Mutation(
            file=file,
            lines=range(node.lineno, node.end_lineno + 1),
            place=place.name,
            reach=place.reach or range(node.lineno, node.end_lineno + 1),
            kind=kind,
            old=ast.unparse(node),
            new=text,
            start=starts[node.lineno - 1] + node.col_offset,
            stop=starts[node.end_lineno - 1] + node.end_col_offset,
            text=text if isinstance(node, ast.stmt) else f"({text})",
        )
        seen[mutation.name] = seen.get(mutation.name, 0) + 1
        found.append(replace(mutation, repeat=seen[mutation.name]))
    return found


def sample(candidates: list[Mutation], n: int, seed: int) -> list[Mutation]:
    """At most n mutations: a kind at random, then one of its places, so that no kind crowds out the others."""
    rng = random.Random(seed)
    by_kind: dict[str, list[Mutation]] = {}
    for mutation in candidates:
        by_kind.setdefault(mutation.kind, []).append(mutation)
    chosen = []
    while by_kind and len(chosen) < n:
        kind = rng.choice(sorted(by_kind))
        chosen.append(by_kind[kind].pop(rng.randrange(len(by_kind[kind]))))
        if not by_kind[kind]:
            del by_kind[kind]
    return sorted(chosen, key=lambda mutation: (mutation.file, mutation.start, mutation.new))


def _changes(node: ast.AST, place: Place, parent: ast.AST | None) -> Iterator[tuple[Place, ast.AST, str, ast.AST]]:
    """(place, node, kind, what replaces the node), outer nodes first."""
    if _is_words(node):
        return
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        place = place.inside(node)
    for kind, changed in _changes_here(node, parent):
        yield place, node, kind, changed
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        here = place
        if isinstance(node, ast.FunctionDef) and field == "args":
            here = replace(place, reach=range(node.body[0].lineno, node.end_lineno + 1))
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _changes(child, here, node)


def _is_words(node: ast.AST) -> bool:
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import | ast.ImportFrom):
        return True
    if isinstance(node, ast.FunctionDef):
        return node.name in WORDS
    if isinstance(node, ast.Call):
        return _called(node) in WORDS
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _changes_here(node: ast.AST, parent: ast.AST | None) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node, ast.BinOp):
        yield from _of_operation(node)
    elif isinstance(node, ast.AugAssign):
        for kind, table in (("sign", SIGNS), ("factor", FACTORS)):
            if type(node.op) in table:
                yield kind, ast.AugAssign(node.target, table[type(node.op)](), node.value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and not isinstance(node.operand, ast.Constant):
        yield "sign", node.operand
    elif isinstance(node, ast.Attribute) and node.attr in ("mT", "T"):
        yield "transpose", node.value
    elif isinstance(node, ast.Call):
        yield from _of_call(node)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        if not any(isinstance(side, ast.Constant) and isinstance(side.value, str) for side in node.comparators):
            yield "comparison", ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, ast.BoolOp):
        yield "comparison", ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.Constant):
        yield from _of_constant(node, parent)


def _of_operation(node: ast.BinOp) -> Iterator[tuple[str, ast.AST]]:
    operation = type(node.op)
    if operation is ast.MatMult and not (isinstance(node.left, ast.Attribute) and node.left.attr in ("mT", "T")):
        yield "transpose", ast.BinOp(ast.Attribute(node.left, "mT", ast.Load()), ast.MatMult(), node.right)
    if any(isinstance(side, TEXT) or isinstance(getattr(side, "value", 0), str) for side in (node.left, node.right)):
        return
    for kind, table in (("sign", SIGNS), ("factor", FACTORS)):
        if operation in table:
            yield kind, ast.BinOp(node.left, table[operation](), node.right)
            yield "dropped", node.left


def _of_call(node: ast.Call) -> Iterator[tuple[str, ast.AST]]:
    name = _called(node)
    if isinstance(node.func, ast.Attribute):
        if name == "transpose":
            yield "transpose", node.func.value
        if name in IN_PLACE:
            func = ast.Attribute(node.func.value, IN_PLACE[name], ast.Load())
            yield "sign" if name in ("add_", "sub_") else "factor", ast.Call(func, node.args, node.keywords)
    if name in EXTREMES:
        other = EXTREMES[name]
        func = (
            ast.Attribute(node.func.value, other, ast.Load())
            if isinstance(node.func, ast.Attribute)
            else ast.Name(other, ast.Load())
        )
        yield "comparison", ast.Call(func, node.args, node.keywords)


def _of_constant(node: ast.Constant, parent: ast.AST | None) -> Iterator[tuple[str, ast.AST]]:
    if isinstance(node.value, bool):
        if isinstance(parent, ast.keyword):
            yield "constant", ast.Constant(not node.value)
    elif isinstance(node.value, float):
        yield "constant", ast.Constant(2 * node.value if node.value else 1.0)
    elif isinstance(node.value, int):
        in_range = isinstance(parent, ast.Call) and _called(parent) == "range"
        if in_range or isinstance(parent, ast.BinOp | ast.Compare | ast.Slice):
            yield "off by one", ast.Constant(node.value + 1)
