"""Makes every small mistake in the formulas, one at a time, and counts those that no test notices.

    python tools/mutate_maths.py                                    all of ops/ and algorithms/
    python tools/mutate_maths.py lightning_mmrl/ops/kl.py --list    what would be changed, and nothing run

A mutant is one edit of the syntax tree: an operator or a comparison exchanged, a sign flipped, one side of a mask left
out, a constant off by one, a truth value inverted, a reduction exchanged (sum, mean, min, max, std, var), branches of
`where` or bounds of `clamp` swapped. It is written into a copy of the checkout, and a forked process, which has torch
and pytest loaded already, runs the tests of that file, then all tests of formulas; the first failure kills it. Edits
that change nothing anyone can see are named in `EQUIVALENT`, each with the reason. Exits with 1 if a mutant survives.
Killed ones are kept in --work by their source: the same command goes on with the others.
"""

import argparse
import ast
import copy
import hashlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("lightning_mmrl/ops", "lightning_mmrl/algorithms")
KEPT = ("lightning_mmrl", "tests", "configs", "pyproject.toml", "README.md")
ALL_GUARDS = ("tests/unit/ops", "tests/unit/algorithms", "tests/properties/test_algorithms_advantages.py")
MORE_GUARDS = ("tests/properties/test_algorithms_losses.py", "tests/oracles", "tests/unit/stages/test_optimize.py")
LIMIT_S = 240
"""Of one run of tests; a mutant that loops is killed by it."""

EQUIVALENT: dict[tuple[str, str], str] = {
    ("lightning_mmrl/ops/decode_attention.py", "query.device.type == 'cpu' -> query.device.type != 'cpu'"): (
        "both branches are the same function; which one runs is a matter of speed, and CUDA has the second alone"
    ),
}
"""(file, mutant as it is listed, without its line) to why it changes nothing."""

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
    """One edit of one file."""

    path: str
    line: int
    what: str
    source: str

    @property
    def name(self) -> str:
        return f"{self.path}:{self.line}: {self.what}"

    @property
    def digest(self) -> str:
        return hashlib.sha256(f"{self.path}\n{self.source}".encode()).hexdigest()


def main() -> int:
    """Runs the mutants and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", default=list(PACKAGES), help="files or folders (default: all formulas)")
    parser.add_argument("--list", action="store_true", help="say what would be changed")
    parser.add_argument("--work", type=Path, default=Path("runs/mutants"), help="verdicts (default: runs/mutants)")
    options = parser.parse_args()
    files = [file for path in options.paths for file in _files(ROOT / path)]
    mutants = [mutant for file in files for mutant in mutants_of(file.relative_to(ROOT).as_posix(), file.read_text())]
    if options.list:
        print("\n".join(mutant.name for mutant in mutants))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        survivors = _run(mutants, Path(folder), options.work.resolve())
    print(f"{len(mutants)} mutants: {len(mutants) - len(survivors)} killed or without effect, {len(survivors)} survive")
    return 1 if survivors else 0


def _files(path: Path) -> list[Path]:
    found = [path] if path.is_file() else sorted(path.rglob("*.py"))
    return [file for file in found if file.name != "__init__.py"]


def mutants_of(path: str, source: str) -> list[Mutant]:
    """Every mutant of a file whose source differs from all before it."""
    tree = ast.parse(source)
    nodes = [node for node in ast.walk(tree) if hasattr(node, "lineno")]
    skipped = _without_effect(tree)
    known = {ast.unparse(tree)}
    found = []
    for place, node in enumerate(nodes):
        if id(node) in skipped:
            continue
        for what, edit in _edits(node):
            changed = copy.deepcopy(tree)
            edit([each for each in ast.walk(changed) if hasattr(each, "lineno")][place])
            text = ast.unparse(ast.fix_missing_locations(changed))
            if text not in known:
                known.add(text)
                found.append(Mutant(path=path, line=node.lineno, what=what, source=text))
    return sorted(found, key=lambda mutant: mutant.line)


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


_Edit = tuple[str, Callable[[ast.AST], None]]


def _edits(node: ast.AST) -> Iterator[_Edit]:
    """Names of edits and what makes them, given the same node of a copy of the tree."""
    text = ast.unparse(node) if isinstance(node, ast.expr) else ""
    if isinstance(node, ast.BinOp):
        yield from _edits_of_operation(node, text)
    elif isinstance(node, ast.UnaryOp) and text != "-1":  # the last dimension of two is the same as the second
        yield f"{text} -> {ast.unparse(node.operand)}", _to(lambda same: same.operand)
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARE:
        other = COMPARE[type(node.ops[0])]()
        changed = ast.unparse(ast.Compare(left=node.left, ops=[other], comparators=node.comparators))
        yield f"{text} -> {changed}", lambda same: same.ops.__setitem__(0, other)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{text} -> {not node.value}", lambda same: setattr(same, "value", not same.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield f"{text} -> {node.value + 1}", lambda same: setattr(same, "value", same.value + 1)
    elif isinstance(node, ast.Call):
        yield from _edits_of_call(node, text)


def _edits_of_operation(node: ast.BinOp, text: str) -> Iterator[_Edit]:
    if type(node.op) in BINARY:
        other = BINARY[type(node.op)]()
        changed = ast.unparse(ast.BinOp(left=node.left, op=other, right=node.right))
        yield f"{text} -> {changed}", lambda same: setattr(same, "op", other)
    if isinstance(node.op, ast.BitAnd):
        yield f"{text} -> {ast.unparse(node.left)}", _to(lambda same: same.left)
        yield f"{text} -> {ast.unparse(node.right)}", _to(lambda same: same.right)


def _edits_of_call(node: ast.Call, text: str) -> Iterator[_Edit]:
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name in NAMES:
        key = "attr" if isinstance(function, ast.Attribute) else "id"
        yield f"{text}: {name} -> {NAMES[name]}", lambda same: setattr(same.func, key, NAMES[name])
    if name == "where" and len(node.args) == 3:
        yield f"{text}: branches swapped", lambda same: _swap(same.args, 1, 2)
    if name == "clamp" and len(node.args) == 2:
        yield f"{text}: bounds swapped", lambda same: _swap(same.args, 0, 1)
    if name in ("clamp", "detach") and isinstance(function, ast.Attribute):
        yield f"{text}: no {name}", _to(lambda same: same.func.value)


def _swap(items: list[ast.expr], first: int, second: int) -> None:
    items[first], items[second] = items[second], items[first]


def _to(pick: Callable[[ast.AST], ast.AST]) -> Callable[[ast.AST], None]:
    """Turns a node into one of those below it, in place."""

    def edit(node: ast.AST) -> None:
        chosen = pick(node)
        node.__class__, node.__dict__ = chosen.__class__, chosen.__dict__

    return edit


def _run(mutants: Sequence[Mutant], folder: Path, work: Path) -> list[Mutant]:
    work.mkdir(parents=True, exist_ok=True)
    killed = work / "killed.txt"
    known = set(killed.read_text().split()) if killed.exists() else set()
    print(f"{sum(mutant.digest in known for mutant in mutants)} of {len(mutants)} are known to be killed", flush=True)
    mutants = [mutant for mutant in mutants if mutant.digest not in known]
    for name in KEPT:
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    _load()
    os.chdir(folder)
    if _tests_fail(folder, [*ALL_GUARDS, *MORE_GUARDS]):
        raise SystemExit("the tests fail with unchanged sources; mend them first")
    survivors, start = [], time.monotonic()
    for number, mutant in enumerate(mutants, 1):
        verdict = _verdict(folder, mutant)
        if verdict == "SURVIVES":
            survivors.append(mutant)
        elif verdict == "killed":
            with killed.open("a") as lines:
                lines.write(f"{mutant.digest}\n")
        minutes = (time.monotonic() - start) / number * (len(mutants) - number) / 60
        print(f"{number}/{len(mutants)}  ETA {minutes:.0f} min  {verdict}  {mutant.name}", flush=True)
    return survivors


def _verdict(folder: Path, mutant: Mutant) -> str:
    if (mutant.path, mutant.what) in EQUIVALENT:
        return "without effect"
    path = folder / mutant.path
    before = path.read_text()
    path.write_text(mutant.source)
    try:
        for guards in _guards(folder, mutant.path):
            if _tests_fail(folder, guards):
                return "killed"
    finally:
        path.write_text(before)
    return "SURVIVES"


def _guards(folder: Path, path: str) -> list[list[str]]:
    """Tests of the file itself first: they are few, and see most."""
    own = [f"tests/unit/{Path(path).parts[1]}/test_{Path(path).stem}.py"]
    return [*([own] if (folder / own[0]).exists() else []), [path, *ALL_GUARDS], list(MORE_GUARDS)]


def _load() -> None:
    """What every fork of this process needs not load again; not what pytest would rewrite."""
    for name in ("lightning", "transformers"):
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    sys.dont_write_bytecode = True


def _tests_fail(folder: Path, guards: Sequence[str]) -> bool:
    child = os.fork()
    if child == 0:
        os._exit(_pytest(folder, guards))
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            if code not in (0, 1, 2, 3):  # 2 and 3: the mutant does not even load
                raise SystemExit(f"pytest ended with {code} for {' '.join(guards)}")
            return code != 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def _pytest(folder: Path, guards: Sequence[str]) -> int:
    import pytest

    sys.path.insert(0, str(folder))
    os.environ["CI"] = "true"  # hypothesis draws the same examples each time
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--doctest-modules", "-m", "not slow"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # what is loaded already
    return int(pytest.main([*options, *guards]))


if __name__ == "__main__":
    sys.exit(main())
