"""Microbatches: every completion once, within the budget, groups whole where they fit."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.ops.packing import Budget, GroupPart, pack_groups

groups = st.lists(
    st.tuples(st.integers(1, 60), st.lists(st.integers(0, 30), min_size=2, max_size=5)), min_size=1, max_size=8
)


def tokens(parts, widths, lengths):
    return sum(widths[part.prompt] + sum(lengths[part.prompt][row] for row in part.completions) for part in parts)


def pairs(parts, widths, lengths):
    total = 0.0
    for part in parts:
        width = widths[part.prompt]
        total += width**2 / 2
        total += sum(width * lengths[part.prompt][row] + lengths[part.prompt][row] ** 2 / 2 for row in part.completions)
    return total


@given(groups, st.integers(1, 300), st.one_of(st.none(), st.integers(1, 4000)))
def test_every_completion_once_within_the_budget(drawn, limit, pair_limit):
    widths, lengths = [width for width, _ in drawn], [row for _, row in drawn]
    budget = Budget(tokens=limit) if pair_limit is None else Budget(tokens=limit, pairs=pair_limit)
    packed = pack_groups(widths, lengths, budget)
    found = sorted((part.prompt, row) for parts in packed for part in parts for row in part.completions)
    assert found == sorted((i, row) for i, own in enumerate(lengths) for row, length in enumerate(own) if length)
    for parts in packed:
        assert len({part.prompt for part in parts}) == len(parts)
        alone = len(parts) == 1 and len(parts[0].completions) == 1
        assert alone or (tokens(parts, widths, lengths) <= limit and pairs(parts, widths, lengths) <= budget.pairs)


@given(groups)
def test_a_group_that_fits_is_not_split(drawn):
    widths, lengths = [width for width, _ in drawn], [row for _, row in drawn]
    budget = Budget(tokens=max(width + sum(row) for width, row in drawn))
    packed = pack_groups(widths, lengths, budget)
    prompts = [part.prompt for parts in packed for part in parts]
    assert len(prompts) == len(set(prompts))


@given(groups, st.integers(1, 200))
def test_whole_groups_are_never_split_and_share_the_budget_otherwise(drawn, limit):
    widths, lengths = [width for width, _ in drawn], [row for _, row in drawn]
    packed = pack_groups(widths, lengths, Budget(tokens=limit), whole=True)
    parts = [part for batch in packed for part in batch]
    present = {row: tuple(place for place, length in enumerate(each) if length) for row, each in enumerate(lengths)}
    assert {part.prompt: part.completions for part in parts} == {row: some for row, some in present.items() if some}
    assert len(parts) == len({part.prompt for part in parts})
    for batch in packed:
        assert len(batch) == 1 or tokens(batch, widths, lengths) <= limit


def test_a_group_that_may_be_split_would_be():
    """The negative control."""
    assert len(pack_groups([10], [[5, 5]], Budget(tokens=15))) == 2
    assert len(pack_groups([10], [[5, 5]], Budget(tokens=15), whole=True)) == 1


def test_a_split_group_has_the_fewest_parts_and_about_equal_ones():
    packed = pack_groups([100], [[50, 10, 40, 20]], Budget(tokens=165))
    assert packed == [(GroupPart(prompt=0, completions=(0, 1)),), (GroupPart(prompt=0, completions=(2, 3)),)]


def test_first_fit_decreasing_fills_the_gaps():
    packed = pack_groups([6, 6, 3, 3], [[1], [1], [0, 1], [1, 0]], Budget(tokens=11))
    assert [[part.prompt for part in parts] for parts in packed] == [[0, 2], [1, 3]]


@pytest.mark.parametrize("limit", [1, 149])
def test_pairs_bind_where_tokens_do_not(limit):
    widths, lengths = [10, 10], [[5, 0], [5, 0]]
    assert len(pack_groups(widths, lengths, Budget(tokens=1000))) == 1
    assert len(pack_groups(widths, lengths, Budget(tokens=1000, pairs=limit))) == 2


@pytest.mark.parametrize(
    ("budget", "num_batches"),
    [
        (Budget(tokens=30), 1),
        (Budget(tokens=29), 2),
        (Budget(tokens=30, pairs=225), 1),
        (Budget(tokens=30, pairs=224.5), 2),
    ],
    ids=repr,
)
def test_a_budget_may_be_used_up_and_no_more(budget, num_batches):
    """Two groups of 10 + 5 tokens and of 10^2/2 + 10 * 5 + 5^2/2 = 112.5 pairs."""
    assert len(pack_groups([10, 10], [[5, 0], [5, 0]], budget)) == num_batches


def test_parts_of_one_group_share_no_microbatch_though_both_would_fit():
    """The longest completion exceeds the budget alone, so that all of its group stand alone."""
    packed = pack_groups([4, 5], [[30, 6, 4], [4, 0]], Budget(tokens=27))
    assert [[(part.prompt, part.completions) for part in parts] for parts in packed] == [
        [(0, (0,))],
        [(0, (1,)), (1, (0,))],
        [(0, (2,))],
    ]


def test_lengths_of_other_prompts_are_refused():
    with pytest.raises(ValueError, match="shorter"):
        pack_groups([10, 10], [[5, 5]], Budget(tokens=100))


def test_nothing_to_score_is_no_microbatch():
    assert pack_groups([10], [[0, 0]], Budget(tokens=100)) == []
