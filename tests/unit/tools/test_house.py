"""The measurements of a package, on one that is made up so that each figure can be counted by hand."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SCHEMA = """
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Root:
    steps: int = 1
    rate: float | None = None
    name: str = ""
    names: list[str] = field(default_factory=list)
    shares: dict[str, float] = field(default_factory=dict)
    loss: Any = None
    only: int = 0
    directory: str = ""
"""
RUNTIME = '''
from dataclasses import dataclass
from typing import Literal

from house_sample import other

Name = Literal["a", "b"]


@dataclass(frozen=True)
class Runtime:
    steps: int
    name: Name
    names: tuple[str, ...]
    loss: "Loss"


class Loss:
    """A loss."""

    def __init__(self, rate: float, shares: "Mapping[str, float] | None") -> None:
        """Keeps both.

        For later.
        """
        self.rate = rate
        self.shares = shares

    def _again(self) -> str:
        return other.name()


@dataclass
class Spool:
    directory: str
    only: list[int]
'''
OTHER = """
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from house_sample import runtime


def name():
    def inner():
        return "a"

    return inner()
"""


@pytest.fixture(scope="module")
def house():
    """The module; the tools folder is no package."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import house

        yield house
    finally:
        sys.path.remove(str(ROOT / "tools"))


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "house_sample"
    for place, text in {"config/schema.py": SCHEMA, "runtime.py": RUNTIME, "other.py": OTHER}.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(text.lstrip())
    (folder / "__init__.py").touch()
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text("a = 1\nb = 2\n")
    return folder


def measured(house, package):
    return house.measure(package, package.parent / "tests", package / "config" / "schema.py")


def test_lengths_count_signature_and_docstring_and_bodies_do_not(house, package):
    found = measured(house, package)

    assert sorted(found.lengths) == [2, 2, 5, 7]  # inner, _again, name, __init__
    assert sorted(found.bodies) == [1, 1, 2, 4]
    assert sorted(found.parameters) == [0, 0, 0, 2]
    assert found.documented == 1 / 4
    assert found.num_lines == sum(len(text.lstrip().splitlines()) for text in (SCHEMA, RUNTIME, OTHER))
    assert found.functions_per_kloc == pytest.approx(4000 / found.num_lines)
    assert found.tests_per_line == pytest.approx(2 / found.num_lines)
    assert found.settings_lines == len(SCHEMA.lstrip().splitlines())


def test_a_knob_is_twice_where_a_plain_value_of_it_fits(house, package):
    found = measured(house, package)

    assert found.num_knobs == 8
    assert [knob.name for knob in found.twice] == ["steps", "rate", "name", "names", "shares"]


def test_names_of_other_types_and_listed_coincidences_are_shown_and_not_counted(house, package):
    lines = {str(each) for each in measured(house, package).knobs if not each.is_twice}

    assert lines == {
        "Root.loss <- runtime.py Runtime.loss: 'Loss' (holds something else)",
        "Root.only <- runtime.py Spool.only: list[int] (holds something else)",
        "Root.directory <- runtime.py Spool.directory: str (a folder of its own, not that of the feature cache)",
    }


def test_a_helper_of_the_schema_has_no_knobs(house, package):
    schema = package / "config" / "schema.py"
    helper = "\n\n@dataclass\nclass Rule:\n    at_least: float = 0.0\n"
    schema.write_text(schema.read_text() + "\n\n@dataclass\nclass Run:\n    root: Root | None = None\n" + helper)

    assert measured(house, package).num_knobs == 9


def test_coincidences_that_no_class_declares_are_listed(house, package):
    stale = measured(house, package).stale

    assert "Spool.directory" not in stale
    assert "Linear.kind" in stale


def test_a_circle_is_of_imports_at_run_time(house, package):
    assert measured(house, package).circles == []

    (package / "other.py").write_text(OTHER.replace("if TYPE_CHECKING:", "if True:"))

    assert measured(house, package).circles == [["house_sample.other", "house_sample.runtime"]]


def test_an_import_inside_a_function_closes_a_circle(house, package):
    (package / "other.py").write_text("def name():\n    import house_sample.runtime\n")

    assert measured(house, package).circles == [["house_sample.other", "house_sample.runtime"]]


def test_duplicates_are_pairs_of_six_equal_lines(house, package):
    lines = [f"x{number} = {number}" for number in range(6)]
    (package / "first.py").write_text("\n".join(lines))
    (package / "second.py").write_text("\n\n".join(lines[:5]))
    assert measured(house, package).duplicates == 0

    (package / "second.py").write_text("\n\n".join(lines))

    assert measured(house, package).duplicates == 1


def test_the_check_names_each_missed_bound(house, package, capsys):
    assert house.main(["--package", str(package), "--check"]) == 1

    output = capsys.readouterr()
    assert output.err.splitlines() == [
        f"missed: functions per kloc: {measured(house, package).functions_per_kloc:g}, at most 55",
        "missed: knobs declared twice: 5, at most 0",
    ]
    assert "| function median/p90/max | 3.5/7/7 |" in output.out


def test_the_check_passes_without_them(house, package):
    (package / "runtime.py").write_text("x = 1\n" * 100)

    assert house.main(["--package", str(package), "--check"]) == 0
