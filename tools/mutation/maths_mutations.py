"""Every small mistake that the formulas of a file could hold: its source with one edit at a time."""

import ast
import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

BINARY = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
COMPARE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
}
NAMES = {
    "minimum": "maximum",
    "maximum": "minimum",
    "min": "max",
    "max": "min",
    "amin": "amax",
    "amax": "amin",
    "sum": "mean",
    "mean": "sum",
    "any": "all",
    "all": "any",
    "masked_sum": "masked_mean",
    "masked_mean": "masked_sum",
    "std": "var",
    "exp": "expm1",
    "expm1": "exp",
    "sqrt": "square",
    "square": "sqrt",
    "group_mean": "group_std",
    "group_std": "group_mean",
}
"""Of functions and methods that are called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One edit of one file; `scope` is the function, method or class whose body it lies in, empty outside of them."""

    path: str
    line: int
    scope: str
    on_import: bool
    before: str
    after: str
    source: str

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line}: {self.before} -> {self.after}"

    @property
    def key(self) -> tuple[str, str, str]:
        return self.path, self.scope, self.after

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.path}\n{self.source}".encode()).hexdigest()


def mutants_of(path: str, source: str) -> list[Mutant]:
    """Every mutant of a file whose source differs from all before it."""
    tree = ast.parse(source)
    nodes = [node for node in ast.walk(tree) if hasattr(node, "lineno")]
    skipped, classes, functions = _without_effect(tree), _classes(tree), _functions(tree)
    unchanged = ast.unparse(tree)
    known = {unchanged}
    found = []
    for place, node in enumerate(nodes):
        if id(node) in skipped:
            continue
        for edit in _edits(node):
            changed = copy.deepcopy(tree)
            edit([each for each in ast.walk(changed) if hasattr(each, "lineno")][place])
            text = ast.unparse(ast.fix_missing_locations(changed))
            if text not in known:
                known.add(text)
                before, after = _changed_line(unchanged, text)
                where = {"path": path, "line": getattr(node, "lineno", 0), "on_import": id(node) not in functions}
                scope = functions.get(id(node), classes.get(id(node), ""))
                found.append(Mutant(**where, scope=scope, before=before, after=after, source=text))
    return sorted(found, key=lambda mutant: mutant.line)


def _changed_line(before: str, after: str) -> tuple[str, str]:
    """An unparsed statement is one line."""
    pairs = zip(before.splitlines(), after.splitlines(), strict=True)
    ((old, new),) = [(old.strip(), new.strip()) for old, new in pairs if old != new]
    return old, new


def _without_effect(tree: ast.Module) -> set[int]:
    """Nodes of annotations, decorators, imports, messages and docstrings."""
    roots: list[ast.AST] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            roots += [*node.decorator_list, *([node.returns] if node.returns else [])]
        elif isinstance(node, ast.ClassDef):
            roots += [*node.decorator_list, *node.bases]
        elif isinstance(node, ast.arg | ast.AnnAssign):
            roots += [node.annotation] if node.annotation else []
        elif isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.JoinedStr):
            roots.append(node)
    return {id(inner) for root in roots for inner in ast.walk(root)}


def _classes(tree: ast.Module) -> dict[int, str]:
    return {id(inner): node.name for node in tree.body if isinstance(node, ast.ClassDef) for inner in ast.walk(node)}


def _functions(tree: ast.Module) -> dict[int, str]:
    """Which function or method each node lies in the body of; defaults and decorators lie in none."""
    scopes = [("", tree.body), *((f"{node.name}.", node.body) for node in tree.body if isinstance(node, ast.ClassDef))]
    functions = [
        (f"{prefix}{node.name}", node) for prefix, body in scopes for node in body if isinstance(node, ast.FunctionDef)
    ]
    return {id(inner): name for name, node in functions for statement in node.body for inner in ast.walk(statement)}


_Edit = Callable[[Any], None]


def _edits(node: ast.AST) -> Iterator[_Edit]:
    """Functions that make each edit, given the same node of a copy of the tree."""
    if isinstance(node, ast.BinOp):
        if type(node.op) in BINARY:
            yield _set("op", BINARY[type(node.op)]())
        if isinstance(node.op, ast.BitAnd):
            yield _to(lambda same: same.left)
            yield _to(lambda same: same.right)
    elif isinstance(node, ast.UnaryOp) and ast.unparse(node) != "-1":  # the last of two dimensions is the second
        yield _to(lambda same: same.operand)
    elif isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            if type(operator) in COMPARE:
                others = [*node.ops[:place], COMPARE[type(operator)](), *node.ops[place + 1 :]]
                yield _set("ops", others)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield _set("value", not node.value if isinstance(node.value, bool) else node.value + 1)
    elif isinstance(node, ast.Call):
        yield from _edits_of_call(node)


def _edits_of_call(node: ast.Call) -> Iterator[_Edit]:
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in NAMES:
        key = "attr" if isinstance(function, ast.Attribute) else "id"
        yield lambda same: setattr(same.func, key, NAMES[name])
    if name == "where" and len(node.args) == 3:
        yield lambda same: _swap(same.args, 1, 2)
    if name == "clamp" and len(node.args) == 2:
        yield lambda same: _swap(same.args, 0, 1)
    if name in ("clamp", "detach") and isinstance(function, ast.Attribute):
        yield _to(lambda same: same.func.value)


def _swap(items: list[ast.expr], first: int, second: int) -> None:
    items[first], items[second] = items[second], items[first]


def _set(name: str, value: object) -> _Edit:
    return lambda node: setattr(node, name, value)


def _to(pick: Callable[[Any], ast.expr]) -> _Edit:
    """Turns a node into a node below it, in place."""

    def edit(node: Any) -> None:
        chosen = pick(node)
        node.__class__, node.__dict__ = chosen.__class__, chosen.__dict__

    return edit
