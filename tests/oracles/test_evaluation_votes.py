"""pass@k and maj@k against all subsets counted one by one, and their means over every possible draw of the answers."""

from collections import Counter
from itertools import combinations, product
from math import comb, prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.evaluation.votes import best_of, powers_of_two, vote_of

SCORES = {"a": 1.0, "b": 0.0, "c": 0.4, "d": 0.75, None: 0.0}
drawn = st.lists(st.sampled_from(list(SCORES)), min_size=1, max_size=9)


def elected(answers):
    """The vote of a few answers: the mean score of the answers with the most votes."""
    votes = Counter(answer for answer in answers if answer is not None)
    winners = [answer for answer, count in votes.items() if count == max(votes.values())]
    return sum(SCORES[each] for each in winners) / len(winners) if winners else 0.0


def over_subsets(answers, k, value):
    found = [value([answers[place] for place in subset]) for subset in combinations(range(len(answers)), k)]
    return sum(found) / len(found)


@given(drawn)
def test_every_k_equals_the_mean_over_all_subsets(answers):
    scores = [SCORES[each] for each in answers]
    votes = vote_of(answers, scores)
    for k in range(1, len(answers) + 1):
        assert votes[k - 1] == pytest.approx(over_subsets(answers, k, elected), abs=1e-12)
        best = over_subsets(answers, k, lambda few: max(SCORES[each] for each in few))
        assert best_of(scores, k) == pytest.approx(best, abs=1e-12)


def released(n, c, k):
    """The estimator as arXiv:2107.03374 prints it, figure 3."""
    return 1.0 if n - c < k else 1.0 - np.prod(1.0 - k / np.arange(n - c + 1, n + 1))


@pytest.mark.parametrize("n", [1, 7, 64, 200])
def test_right_and_wrong_answers_give_the_published_pass_at_k(n):
    for c in {0, 1, n // 3, n - 1, n}:
        for k in {1, n // 2 or 1, n}:
            assert best_of([1.0] * c + [0.0] * (n - c), k) == pytest.approx(released(n, c, k), abs=1e-12)


@pytest.mark.parametrize("chances", [{"a": 0.5, "b": 0.3, None: 0.2}, {"a": 0.2, "b": 0.4, "c": 0.4}])
@pytest.mark.parametrize(("k", "n"), [(1, 4), (2, 4), (2, 5), (3, 5), (4, 4)])
def test_the_mean_over_all_draws_of_n_is_that_of_k_fresh_answers(chances, k, n):
    """No bias, also with ties and answers that cannot be read."""

    def mean(size, value):
        draws = product(chances, repeat=size)
        return sum(prod(chances[each] for each in draw) * value(draw) for draw in draws)

    fresh = mean(k, elected)
    assert mean(n, lambda draw: vote_of(draw, [SCORES[each] for each in draw])[k - 1]) == pytest.approx(
        fresh, abs=1e-12
    )
    best = mean(k, lambda draw: max(SCORES[each] for each in draw))
    assert mean(n, lambda draw: best_of([SCORES[each] for each in draw], k)) == pytest.approx(best, abs=1e-12)


@given(drawn, st.randoms())
def test_neither_order_nor_spelling_decides_a_tie(answers, random):
    spelled = {"a": "zz", "b": "0", "c": "m", "d": "a", None: None}
    changed = random.sample(answers, len(answers))
    before = vote_of(answers, [SCORES[each] for each in answers])
    after = vote_of([spelled[each] for each in changed], [SCORES[each] for each in changed])
    assert after == pytest.approx(before, abs=1e-12)


def test_answers_without_a_vote_are_wrong_and_never_win():
    assert vote_of([None] * 4, [0.0] * 4) == [0.0] * 4
    assert vote_of([None, None, None, "a"], [0.0, 0.0, 0.0, 1.0]) == [1 / 4, 2 / 4, 3 / 4, 1.0]


def test_many_different_answers_are_counted_exactly():
    """Of 256 answers all different, any vote is a fair draw; the number of subsets has 76 digits."""
    scores = [float(place < 64) for place in range(256)]
    assert vote_of(list(range(256)), scores) == pytest.approx([0.25] * 256, rel=1e-9)
    assert best_of(scores, 128) == pytest.approx(1 - comb(192, 128) / comb(256, 128), rel=1e-12)


def test_powers_of_two():
    assert [powers_of_two(most) for most in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2], [1, 2, 4, 8]]
