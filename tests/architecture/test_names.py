"""Every name that is read is bound in its module, which linters skip here: shapes are written as strings."""

import ast
import builtins
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("lightning_mmrl", "tests", "tools") for path in (ROOT / folder).rglob("*.py"))
GIVEN = {*dir(builtins), "__file__", "__name__", "__doc__"}


def bound(tree):
    """Names that any statement binds, whatever its scope."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.MatchAs | ast.MatchStar):
            yield node.name


def unbound(source):
    tree = ast.parse(source)
    read = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return read - set(bound(tree)) - GIVEN


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_name_is_bound(path):
    assert unbound(path.read_text(encoding="utf-8")) == set()


def test_a_lost_import_would_show():
    assert unbound('def halve(x: "Float[Tensor, B]"):\n    return partial(x, 2)\n') == {"partial"}
