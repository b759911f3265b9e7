"""The offline filter and even numbers, against counts by hand."""

from itertools import product

import pytest

from lightning_mmrl.data.filtering import column_value, evened, prompt_reason
from lightning_mmrl.data.rollout_table import RolloutRow
from lightning_mmrl.errors import DataError
from lightning_mmrl.settings.filter import EvenSettings, FilterSettings
from lightning_mmrl.types.records import Completion, Sample, Score

SCORES = {
    "r": Score(total=1.0, components={"label": 1.0}),
    "w": Score(total=0.0, components={"label": 0.0}),
    "i": Score(total=0.0, components={}, valid=False, reason="lost"),
}


def row(pattern):
    completion = Completion(text="a", num_tokens=1, truncated=False)
    return RolloutRow(
        sample=Sample(id="p", messages=()),
        completions=(completion,) * len(pattern),
        scores=tuple(SCORES[letter] for letter in pattern),
        policy_version=0,
    )


def reason(pattern, **settings):
    return prompt_reason(row(pattern), FilterSettings(kind="filter", **settings))


def test_the_filter_of_mm_eureka_drops_what_eight_answers_always_or_never_solve():
    for pattern in product("rw", repeat=8):
        number = pattern.count("r")
        expected = {0: "never_solved", 8: "always_solved"}.get(number)
        assert reason(pattern, mixed=True) == expected, pattern


@pytest.mark.parametrize(
    ("pattern", "settings", "expected"),
    [
        ("rwww", {"min_pass_rate": 0.25}, None),
        ("rwww", {"min_pass_rate": 0.26}, "below_band"),
        ("rrrw", {"max_pass_rate": 0.75}, None),
        ("rrrw", {"max_pass_rate": 0.74}, "above_band"),
        ("rrrw", {"min_pass_rate": 0.75, "max_pass_rate": 0.75}, None),
        ("www", {}, None),
        ("rrr", {}, None),
        ("iii", {}, "too_few_judged"),
        ("rwi", {"min_judged": 3}, "too_few_judged"),
        ("rwi", {"min_judged": 2}, None),
        ("ri", {"mixed": True}, "always_solved"),
        ("wi", {"mixed": True}, "never_solved"),
    ],
)
def test_both_bounds_count_as_within(pattern, settings, expected):
    assert reason(pattern, **settings) == expected


def test_each_value_is_left_as_often_as_the_rarest():
    names = [f"n{place}" for place in range(9)]
    values = ["a"] * 5 + ["b"] * 2 + [None] + ["c"]
    dropped = evened(names, values, EvenSettings(by="topic"), seed=0)
    assert dropped["n7"] == "no_value"
    kept = [value for name, value in zip(names, values, strict=True) if name not in dropped]
    assert sorted(kept) == ["a", "b", "c"]
    assert set(dropped.values()) == {"no_value", "evened_out"}
    most = evened(names, values, EvenSettings(by="topic", at_most=2), seed=0)
    assert sorted(value for name, value in zip(names, values, strict=True) if name not in most) == list("aabbc")


def test_which_rows_stay_depends_on_seed_and_names_alone():
    names, values = [f"n{place}" for place in range(20)], ["a"] * 20
    settings = EvenSettings(by="topic", at_most=5)
    one = evened(names, values, settings, seed=0)
    assert evened(names[::-1], values, settings, seed=0) == one
    assert evened(names, values, settings, seed=1) != one


def test_values_of_other_types_are_other_values():
    assert evened(["a", "b"], [1, "1"], EvenSettings(by="n"), seed=0) == {}


def test_a_column_that_no_row_has_is_refused():
    with pytest.raises(DataError, match=r"even.by is 'topci', and none of 2 rows has a value there"):
        evened(["a", "b"], [None, None], EvenSettings(by="topci"), seed=0)
    assert evened([], [], EvenSettings(by="topic"), seed=0) == {}


def test_columns_are_those_of_a_manifest():
    sample = Sample(id="a", messages=(), solution="4", extras={"topic": "sums"})
    assert [column_value(sample, name) for name in ("solution", "topic", "speaker", "none")] == [
        "4",
        "sums",
        None,
        None,
    ]
