"""Prints how the package is built, in the columns of its code review, and checks the bounds that the project set.

    python tools/house.py                 # the table
    python tools/house.py --knobs         # also each setting that a runtime class declares again
    python tools/house.py --check         # exits 1 if a bound is missed

Definitions:
- lines: physical lines of all Python files, blank lines and docstrings included; kloc: a thousand of them;
- function: any `def`, methods and nested functions included; its length runs from the `def` to its last line with the
  docstring, as in the review, and the bounds are for this length; its body is without signature and docstring;
- parameters: all but `self` and `cls`;
- circle: modules that import each other in a ring; imports inside functions count, those under TYPE_CHECKING do not;
- duplicate pair: two places with the same six lines, blank lines, comments and imports left out;
- knob: see `house_knobs`.
"""

import argparse
import ast
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from house_knobs import Knob, Redeclared, knobs_of, redeclared, stale_coincidences

ROOT = Path(__file__).parents[1]
SETTINGS_ROOMS = ("config", "app", "planning", "settings")
DUPLICATE_LINES = 6
MOST_PARAMETERS = 8

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One file: its path, its dotted module name, its lines and its syntax tree."""

    path: Path
    module: str
    lines: Sequence[str]
    tree: ast.Module


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """The measurements of a package."""

    num_lines: int
    file_lengths: Sequence[int]
    lengths: Sequence[int]
    bodies: Sequence[int]
    parameters: Sequence[int]
    documented: float
    public_documented: float
    tests_per_line: float
    duplicates: int
    circles: Sequence[Sequence[str]]
    settings_lines: int
    num_knobs: int
    knobs: Sequence[Redeclared]
    stale: Sequence[str]

    @property
    def functions_per_kloc(self) -> float:
        return 1000 * len(self.lengths) / self.num_lines

    @property
    def twice(self) -> list[Knob]:
        """Knobs that a runtime class declares again with the same meaning."""
        return list(dict.fromkeys(each.knob for each in self.knobs if each.is_twice))


def read_sources(package: Path) -> list[Source]:
    """All Python files of a package."""
    found = []
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = ".".join(path.relative_to(package.parent).with_suffix("").parts).removesuffix(".__init__")
        found.append(Source(path=path, module=name, lines=text.splitlines(), tree=ast.parse(text)))
    return found


def measure(package: Path, tests: Path, schema: Path) -> House:
    """Reads a package and measures it.

    Args:
        package: Folder of the package.
        tests: Folder of its tests.
        schema: File or folder whose classes declare the knobs.
    """
    sources = read_sources(package)
    functions = [node for source in sources for node in ast.walk(source.tree) if isinstance(node, Function)]
    public = [node for node in functions if not node.name.startswith("_")]
    num_lines = sum(len(source.lines) for source in sources)
    num_test_lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in tests.rglob("*.py"))
    rooms = [source for source in sources if source.path.relative_to(package).parts[0] in SETTINGS_ROOMS]
    trees = {source.path: source.tree for source in sources}
    return House(
        num_lines=num_lines,
        file_lengths=[len(source.lines) for source in sources if source.lines],
        lengths=[(node.end_lineno or 0) - node.lineno + 1 for node in functions],
        bodies=[_body_length(node) for node in functions],
        parameters=[_num_parameters(node) for node in functions],
        documented=_share_documented(functions),
        public_documented=_share_documented(public),
        tests_per_line=num_test_lines / num_lines,
        duplicates=count_duplicates(sources),
        circles=find_circles(imports_of(sources)),
        settings_lines=sum(len(source.lines) for source in rooms),
        num_knobs=len(knobs_of(trees, schema)),
        knobs=redeclared(trees, schema),
        stale=stale_coincidences(trees, schema),
    )


def _body_length(function: Function) -> int:
    statements = function.body if ast.get_docstring(function) is None else function.body[1:]
    return (statements[-1].end_lineno or 0) - statements[0].lineno + 1 if statements else 0


def _num_parameters(function: Function) -> int:
    arguments = function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def _share_documented(functions: Sequence[Function]) -> float:
    return sum(ast.get_docstring(node) is not None for node in functions) / max(1, len(functions))


def count_duplicates(sources: Sequence[Source]) -> int:
    """Pairs of places with the same `DUPLICATE_LINES` lines."""
    seen: Counter[tuple[str, ...]] = Counter()
    for source in sources:
        stripped = [line.strip() for line in source.lines]
        kept = [line for line in stripped if line and not line.startswith(("#", "import ", "from "))]
        seen.update(tuple(kept[at : at + DUPLICATE_LINES]) for at in range(len(kept) - DUPLICATE_LINES + 1))
    return sum(number * (number - 1) // 2 for number in seen.values())


def imports_of(sources: Sequence[Source]) -> dict[str, set[str]]:
    """The modules of the package that each module imports at run time."""
    modules = {source.module for source in sources}
    found: dict[str, set[str]] = {}
    for source in sources:
        names = {name for node in _runtime_nodes(source.tree) for name in _imported(node, modules)}
        found[source.module] = names - {source.module}
    return found


def _runtime_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """A syntax tree without what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _runtime_nodes(child)


def _imported(node: ast.AST, modules: set[str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in modules)
    elif isinstance(node, ast.ImportFrom) and node.module is not None:
        for alias in node.names:
            submodule = f"{node.module}.{alias.name}"
            if submodule in modules or node.module in modules:
                yield submodule if submodule in modules else node.module


def find_circles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """The largest sets of modules in which each reaches every other one by imports."""
    reached = {module: _reachable(module, imports) for module in imports}
    circles = {
        tuple(sorted({module, *(other for other in reached[module] if module in reached[other])}))
        for module in imports
        if module in reached[module]
    }
    return [list(circle) for circle in sorted(circles)]


def _reachable(start: str, imports: Mapping[str, set[str]]) -> set[str]:
    reached: set[str] = set()
    waiting = list(imports[start])
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += imports[module]
    return reached


def spread(values: Sequence[int]) -> tuple[float, int, int]:
    """Median, 90th percentile (the value above a tenth of them) and largest.

    >>> spread([5, 1, 2, 3, 4])
    (3, 5, 5)
    """
    ordered = sorted(values)
    return statistics.median(ordered), ordered[int(0.9 * len(ordered))], ordered[-1]


def table(house: House) -> str:
    """The review's table, one line for each column."""
    by_name = len({each.knob for each in house.knobs})
    above = sum(number > MOST_PARAMETERS for number in house.parameters)
    rows = {
        "lines": f"{house.num_lines / 1000:.1f}k",
        "file median/p90/max": _joined(house.file_lengths),
        "function median/p90/max": _joined(house.lengths),
        "body median/p90/max": _joined(house.bodies),
        "parameters mean/max (>8)": f"{statistics.mean(house.parameters):.2f}/{max(house.parameters)} ({above})",
        "functions with docstring": f"{house.documented:.0%} (public {house.public_documented:.0%})",
        "test:src": f"{house.tests_per_line:.2f}",
        "functions per kloc": f"{house.functions_per_kloc:.1f}",
        "duplicate pairs per kloc": f"{1000 * house.duplicates / house.num_lines:.1f}",
        "import circles": str(len(house.circles)),
        f"lines of {' + '.join(SETTINGS_ROOMS)}": str(house.settings_lines),
        "knobs declared twice": f"{len(house.twice)} of {house.num_knobs} ({by_name} by name alone)",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    lines += [f"circle: {' <-> '.join(circle)}" for circle in house.circles]
    return "\n".join(["| measure | value |", "|---|---|", *lines])


def _joined(values: Sequence[int]) -> str:
    return "/".join(f"{value:g}" for value in spread(values))


def missed_bounds(house: House) -> list[str]:
    """A line for each bound of the project that the package misses."""
    median, p90, _ = spread(house.lengths)
    bounds = (
        ("median length of a function", median, 10),
        ("90th percentile of the lengths of functions", p90, 20),
        ("functions per kloc", house.functions_per_kloc, 55),
        ("import circles", len(house.circles), 0),
        ("lines of the rooms for settings", house.settings_lines, 4400),
        ("knobs declared twice", len(house.twice), 0),
    )
    return [f"{name}: {found:g}, at most {most}" for name, found, most in bounds if found > most]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=ROOT / "lightning_mmrl", help="folder of the package")
    parser.add_argument("--tests", type=Path, help="folder of its tests; default: tests beside the package")
    parser.add_argument("--schema", type=Path, help="file or folder of the settings; default: found in the package")
    parser.add_argument("--knobs", action="store_true", help="list every knob that is declared again")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a bound is missed")
    options = parser.parse_args(arguments)
    package = options.package.resolve()
    places = [options.schema] if options.schema else [package / "settings", package / "config" / "schema.py"]
    schema = next((place for place in places if place.exists()), None)
    if schema is None:
        parser.error(f"no settings at {' or '.join(map(str, places))}; name them with --schema")
    house = measure(package, options.tests or package.parent / "tests", schema.resolve())
    print(table(house))
    if options.knobs:
        print("\n".join(f"{each}" for each in house.knobs))
        print("\n".join(f"house_knobs.COINCIDENCES lists {each}, which no class declares" for each in house.stale))
    missed = missed_bounds(house) if options.check else []
    for line in missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
