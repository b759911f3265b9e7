"""A selection of answers that could keep nothing is refused by key, value and rule."""

import math
import re

import pytest

from lightning_mmrl.config.checks.answers import check_answer_selection
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.settings.selection import SelectionSettings

PATH = "stages.draw.selection"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_per_prompt": 0}, "max_per_prompt is 0; it must be at least 1"),
        ({"min_tokens": 0}, "min_tokens is 0; it must be at least 1, or null"),
        ({"max_tokens": 0}, "max_tokens is 0; it must be at least 1, or null"),
        ({"order": "short"}, "order is 'short', which is no choice; did you mean 'shortest'?"),
        ({"min_pass_rate": -0.1}, "min_pass_rate is -0.1; it must be from 0 to 1, or null"),
        ({"max_pass_rate": 12.5}, "max_pass_rate is 12.5; it must be from 0 to 1, or null"),
        ({"max_pass_rate": math.nan}, "max_pass_rate is nan; it must be from 0 to 1, or null"),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused(changes, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{PATH}.{message}')}"):
        check_rules(SelectionSettings(**changes), PATH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"min_tokens": 9, "max_tokens": 8},
            "min_tokens is 9; it must be at most stages.draw.selection.max_tokens, which is 8, or null",
        ),
        (
            {"min_pass_rate": 0.75, "max_pass_rate": 0.25},
            "min_pass_rate is 0.75; it must be at most stages.draw.selection.max_pass_rate, which is 0.25, or null",
        ),
    ],
)
def test_bounds_in_the_wrong_order_are_refused(changes, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{PATH}.{message}')}$"):
        check_answer_selection(PATH, SelectionSettings(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"min_tokens": 8, "max_tokens": 8},
        {"min_tokens": 9},
        {"max_tokens": 8},
        {"min_pass_rate": 0.5, "max_pass_rate": 0.5},
        {"min_pass_rate": 1.0},
        {"max_pass_rate": 0.0},
    ],
)
def test_other_bounds_are_accepted(changes):
    settings = SelectionSettings(**changes)
    check_rules(settings, PATH)
    check_answer_selection(PATH, settings)
