"""A tolerance above 1e-2 needs its reason as a comment on its line."""

import ast
import io
import tokenize
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
LIMIT = 1e-2
NAMES = {"rtol", "atol", "abs", "rel", "rel_tol", "abs_tol"}


def commented_lines(source: str) -> set[int]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT and len(token.string) > 10}


def tolerances(call: ast.Call) -> list[ast.expr]:
    found = [keyword.value for keyword in call.keywords if keyword.arg in NAMES]
    if ast.unparse(call.func).endswith("approx"):
        found += call.args[1:]
    return found


def loose(source: str) -> list[str]:
    """Calls with a literal tolerance above the limit and no comment beside it."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    values = [value for call in calls for value in tolerances(call)]
    numbers = [value for value in values if isinstance(value, ast.Constant) and isinstance(value.value, int | float)]
    excused = commented_lines(source)
    return [f"line {n.lineno}: {n.value}" for n in numbers if n.value > LIMIT and n.lineno not in excused]


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: str(path.relative_to(TESTS)))
def test_loose_tolerances_say_why(path):
    assert loose(path.read_text()) == []


def test_the_check_finds_what_it_looks_for():
    assert loose("assert_close(a, b, rtol=1e6, atol=1e-6)") == ["line 1: 1000000.0"]
    assert loose("assert x == approx(1.0, abs=0.5)") == ["line 1: 0.5"]
    assert loose("assert x == pytest.approx(1.0, 1)") == ["line 1: 1"]
    assert loose("assert x == approx(1.0, abs=0.5)  # a mean of 20 draws with deviation 1") == []
    assert loose("assert_close(a, b, rtol=1e-2)") == []
