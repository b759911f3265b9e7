"""Sizes, spelling and documentation of the package and its tools, read from their source."""

import ast
import re
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lightning_mmrl"
MODULES = sorted(PACKAGE.rglob("*.py"))
TOOLS = sorted((ROOT / "tools").rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_MEDIAN_LINES, MAX_PARAMETERS = 400, 80, 17, 8

each_module = pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
each_source = pytest.mark.parametrize("path", [*MODULES, *TOOLS], ids=lambda path: str(path.relative_to(ROOT)))


def functions(source: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return function.end_lineno - function.lineno + 1


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    arguments = function.args
    names = [argument.arg for argument in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
    return len([name for name in names if name not in ("self", "cls")])


def oversized(source: str) -> list[str]:
    """Everything that breaks a budget in one file."""
    found = []
    if len(source.splitlines()) > MAX_FILE_LINES:
        found.append(f"file has {len(source.splitlines())} lines")
    for function in functions(source):
        if num_lines(function) > MAX_FUNCTION_LINES:
            found.append(f"{function.name} has {num_lines(function)} lines")
        if num_parameters(function) > MAX_PARAMETERS:
            found.append(f"{function.name} has {num_parameters(function)} parameters")
    return found


def misspelled(source: str) -> list[str]:
    """Lines that are not ASCII, put work off, or waive the complexity rules."""
    pattern = re.compile(
        r"[^\x00-\x7f]|\b(TODO|FIXME|XXX)\b|ruff: noqa|noqa(?!:)|noqa:.*\b(C901|PLR)|pyright: (basic|ignore$)"
    )
    return [f"{number}: {line.strip()}" for number, line in enumerate(source.splitlines(), 1) if pattern.search(line)]


def without_doctest(source: str) -> list[str]:
    """Public functions and classes, other than protocols and errors, whose docstring shows no example."""
    kinds = (ast.FunctionDef, ast.ClassDef)
    public = [node for node in ast.parse(source).body if isinstance(node, kinds) and not node.name.startswith("_")]
    ours = [
        node for node in public if not (isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases))
    ]
    return [node.name for node in ours if ">>>" not in (ast.get_docstring(node) or "")]


@each_source
def test_files_and_functions_keep_their_budget(path):
    assert oversized(path.read_text()) == []


@each_source
def test_source_is_ascii_and_finished(path):
    assert misspelled(path.read_text()) == []


@each_source
def test_modules_say_what_they_are(path):
    source = path.read_text()
    assert not source.strip() or ast.get_docstring(ast.parse(source)), "a module that is not empty needs a docstring"


@pytest.mark.parametrize("folder", ["ops", "algorithms"])
def test_public_maths_shows_an_example(folder):
    missing = {path.name: without_doctest(path.read_text()) for path in (PACKAGE / folder).rglob("*.py")}
    assert {name: found for name, found in missing.items() if found} == {}


def test_the_median_function_is_short():
    lengths = [num_lines(function) for path in MODULES for function in functions(path.read_text())]
    assert len(lengths) > 20
    assert median(lengths) <= MAX_MEDIAN_LINES


def test_no_module_is_a_drawer_for_everything():
    assert [path for path in MODULES if path.stem in ("utils", "util", "helpers", "common", "misc")] == []


def test_the_checks_find_what_they_look_for():
    assert oversized("x = 1\n" * 401) == ["file has 401 lines"]
    assert oversized("def f():\n" + "    pass\n" * 80) == ["f has 81 lines"]
    assert oversized("def f(self, a, b, c, d, e, f, g, h): ...") == []
    assert oversized("def f(a, b, c, d, e, f, g, *, h, i): ...") == ["f has 9 parameters"]
    for line in ("x = '\u00e9'", "# TO" + "DO later", "x  # no" + "qa", "x  # no" + "qa: C901", "# ruff: no" + "qa"):
        assert misspelled(line), line
    assert not misspelled("np.random.seed(0)  # noqa: NPY002  with its reason")
    assert without_doctest("def f(): ...\nclass _A: ...\nclass B(Protocol): ...") == ["f"]
