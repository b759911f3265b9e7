"""Mutants of formulas: which edits are made, where they lie, and how those without effect are named."""

from pathlib import Path

import mutate_maths
import pytest

ROOT = Path(__file__).parents[3]
SOURCE = '''
LIMIT = 2

class Rule:
    low: float = 0.5

    def within(self, x, mask):
        """Docstring 1 + 1."""
        if not self.low <= x < LIMIT:
            raise ValueError(f"{x + 1}")
        return (mask & (x > 0)).sum(-1)

def swapped(x, y, exact=True):
    return where(x, -y, y.clamp(0, y))
'''


def test_each_edit_is_made_once_and_says_which_function_runs_it():
    found = {}
    for mutant in mutate_maths.mutants_of("rule.py", SOURCE):
        found.setdefault((mutant.scope, mutant.on_import), set()).add(mutant.after)
    assert found == {
        ("", True): {"LIMIT = 3", "def swapped(x, y, exact=False):"},
        ("Rule", True): {"low: float = 1.5"},
        ("Rule.within", False): {
            "if self.low <= x < LIMIT:",
            "if not self.low < x < LIMIT:",
            "if not self.low <= x <= LIMIT:",
            "return (mask | (x > 0)).sum(-1)",
            "return mask.sum(-1)",
            "return (x > 0).sum(-1)",
            "return (mask & (x >= 0)).sum(-1)",
            "return (mask & (x > 1)).sum(-1)",
            "return (mask & (x > 0)).mean(-1)",
            "return (mask & (x > 0)).sum(-2)",
        },
        ("swapped", False): {
            "return where(x, y.clamp(0, y), -y)",
            "return where(x, y, y.clamp(0, y))",
            "return where(x, -y, y.clamp(y, 0))",
            "return where(x, -y, y)",
            "return where(x, -y, y.clamp(1, y))",
        },
    }


def test_what_is_without_effect_names_one_mutant_each_and_why():
    """Also after a formula has changed: an entry that names nothing, or more than one, is refused."""
    paths = sorted({path for path, *_ in mutate_maths.EQUIVALENT})
    mutants = [mutant for path in paths for mutant in mutate_maths.mutants_of(path, (ROOT / path).read_text())]
    assert len(mutate_maths._effective(mutants)) == len(mutants) - len(mutate_maths.EQUIVALENT)
    assert all(len(reason.split()) > 8 for reason in mutate_maths.EQUIVALENT.values())
    for changed in ([mutant for mutant in mutants if "cpu" not in mutant.after], mutants * 2):
        with pytest.raises(SystemExit, match="does not name one mutant each"):
            mutate_maths._effective(changed)
