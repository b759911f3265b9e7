"""Two sets of scores of the same responses, compared; the expected numbers are worked out by hand."""

import math

import pytest

from lightning_mmrl.evaluation.rescoring import compare_scores
from lightning_mmrl.types.records import Score

FAILED = Score(total=0.0, components={}, valid=False, reason="broken")


def score(label, style=None):
    components = {"label": label} | ({} if style is None else {"style": style})
    return Score(total=sum(components.values()), components=components)


def test_equal_scores_have_no_changes():
    groups = [[score(1.0), score(0.0)], [FAILED, score(1.0)]]
    result = compare_scores(groups, groups, "label")
    assert (result.num_groups, result.num_responses, result.changes) == (2, 4, ())
    [label] = result.components
    assert (label.old_mean, label.new_mean, label.num_up, label.num_down) == (2 / 3, 2 / 3, 0, 0)
    assert label.correlation == pytest.approx(1.0)
    assert result.old == result.new
    # The second group has one valid response: nothing to compare it with.
    assert result.old.flat == 0.5
    assert result.old.pass_rate == (0.5 + 1.0) / 2


def test_what_float32_rounds_is_no_change():
    assert compare_scores([[score(0.10000000149011612)]], [[score(0.1)]], "label").changes == ()
    assert len(compare_scores([[score(0.1)]], [[score(0.10001)]], "label").changes) == 1


def test_changes_come_by_size_and_failures_first():
    old = [[score(0.0), score(0.0)], [score(1.0), FAILED]]
    new = [[score(0.25), score(1.0)], [FAILED, FAILED]]
    changes = compare_scores(old, new, "label").changes
    assert [(each.group, each.response, each.size) for each in changes] == [(1, 0, math.inf), (0, 1, 1.0), (0, 0, 0.25)]


def test_flips_and_correlation_leave_failures_out():
    old = [[score(1.0), score(0.0), score(1.0), FAILED]]
    new = [[score(0.0), score(1.0), FAILED, score(1.0)]]
    [label] = compare_scores(old, new, "label").components
    assert (label.num_up, label.num_down, label.correlation) == (1, 1, pytest.approx(-1.0))
    assert (label.old_mean, label.new_mean) == (2 / 3, 2 / 3)


def test_a_part_that_does_not_apply_counts_as_the_zero_that_training_wrote():
    result = compare_scores([[score(1.0, 0.0)]], [[score(1.0)]], "label")
    style = result.components[1]
    assert (style.name, style.old_mean, style.new_mean, style.num_up, style.num_down) == ("style", 0.0, None, 0, 0)
    assert result.changes == ()


def test_groups_count_by_the_variance_of_their_valid_totals():
    old = [[score(1.0), score(1.0)], [score(1.0), score(0.0)], [FAILED, FAILED], [score(1.0), FAILED]]
    result = compare_scores(old, [[score(1.0), score(0.0)]] * 4, "label")
    assert (result.old.flat, result.new.flat) == (0.75, 0.0)
    assert result.old.pass_rate == pytest.approx((1.0 + 0.5 + 1.0) / 3)
    assert (result.old.num_invalid, dict(result.old.reasons)) == (3, {"broken": 3})
    assert (result.new.num_invalid, dict(result.new.reasons)) == (0, {})


def test_a_pass_component_that_nobody_scores_has_no_rate():
    result = compare_scores([[score(1.0)]], [[score(1.0)]], "accuracy")
    assert (result.old.pass_rate, result.new.pass_rate) == (None, None)


def test_sets_of_another_shape_are_refused():
    with pytest.raises(ValueError):
        compare_scores([[score(1.0)]], [[score(1.0), score(1.0)]], "label")
