"""A value that breaks its key's rule is refused with key, value and rule."""

import math
import re
from dataclasses import dataclass
from typing import Any

import pytest

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.settings.setting import setting, target


@dataclass
class Inner:
    """A section."""

    count: int = setting(1, at_least=1)


@dataclass
class Outer:
    """One key for every form of rule."""

    count: int = setting(2, at_least=2)
    maybe: int | None = setting(None, at_least=1)
    rate: float = setting(1.0, above=0)
    norm: float = setting(1.0, above=0, infinite=True)
    share: float = setting(0.5, at_least=0, at_most=1)
    part: float = setting(0.5, at_least=0, below=1)
    plain: float = setting(0.0)
    clip: float | None = setting(0.2, above=0)
    name: str = setting("a", texts=False)
    choice: str = setting("a", choices=("alpha", "a"))
    several: list[str] = setting(factory=list, choices=("alpha", "beta"))
    node: Any = setting(factory=lambda: {"_target_": "x"}, node=True)
    optional: Any = target(None)
    inner: Inner | None = None
    named: dict[str, Inner] = setting(factory=dict)


REFUSED = [
    ("count", 1, "count is 1; it must be at least 2"),
    ("maybe", 0, "maybe is 0; it must be at least 1, or null"),
    ("rate", 0.0, "rate is 0.0; it must be above 0 and finite"),
    ("rate", math.inf, "rate is inf; it must be above 0 and finite"),
    ("norm", math.nan, "norm is nan; it must be above 0"),
    ("share", 1.5, "share is 1.5; it must be from 0 to 1"),
    ("share", math.nan, "share is nan; it must be from 0 to 1"),
    ("part", 1.0, "part is 1.0; it must be at least 0 and below 1"),
    ("plain", math.inf, "plain is inf; it must be a finite number"),
    ("clip", 0.0, "clip is 0.0; it must be above 0 and finite, or null"),
    ("name", " ", "name is ' '; it must be a name or path"),
    ("choice", "alpa", "choice is 'alpa', which is no choice; did you mean 'alpha'?"),
    ("several", ["alpha", "bta"], "several is 'bta', which is no choice; did you mean 'beta'?"),
    ("node", None, "node is None; it must be a node with a _target_"),
    ("optional", 5, "optional is 5; it must be null or a node with a _target_"),
    ("inner", Inner(count=0), "inner.count is 0; it must be at least 1"),
    ("named", {"one": Inner(), "two": Inner(count=0)}, "named.two.count is 0; it must be at least 1"),
]
TAKEN = [
    ("maybe", None),
    ("norm", math.inf),
    ("share", 1),
    ("clip", None),
    ("several", []),
    ("optional", {"_target_": "y"}),
    ("node", {"_target_": "y"}),
    ("inner", Inner()),
    ("name", "???"),
]


@pytest.mark.parametrize(("key", "value", "sentence"), REFUSED)
@pytest.mark.parametrize("path", ["", "a.b"])
def test_a_value_that_breaks_a_rule_is_refused_with_its_key(key, value, sentence, path):
    with pytest.raises(ConfigError, match=rf"^{re.escape(f'{path}.' if path else '')}{re.escape(sentence)}$"):
        check_rules(Outer(**{key: value}), path)


@pytest.mark.parametrize(("key", "value"), TAKEN)
def test_other_values_are_taken(key, value):
    check_rules(Outer(**{key: value}))


def test_a_field_that_is_left_out_is_not_looked_at():
    check_rules(Outer(count=0), leave_out=["count"])
