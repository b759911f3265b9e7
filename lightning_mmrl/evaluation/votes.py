"""Estimates from n sampled answers to a question: the best of k, and the vote of k, for every k up to n.

Both are averages over all subsets of k of the n answers, which estimate without bias what k fresh answers would get
(U-statistics; Hoeffding, Annals of Mathematical Statistics 19, 1948). Neither is computed from k answers drawn again.
"""

from collections.abc import Hashable, Sequence
from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import NDArray

Polynomial = NDArray[np.float64]
"""Coefficients of x^0 to x^n; that of x^k counts subsets of k answers."""


def powers_of_two(most: int) -> list[int]:
    """The powers of two up to `most`.

    >>> powers_of_two(12)
    [1, 2, 4, 8]
    """
    return [1 << exponent for exponent in range(most.bit_length())]


def best_of(scores: Sequence[float], k: int) -> float:
    """The mean, over all subsets of k of n answers, of the best score in the subset.

    With scores s_1 <= ... <= s_n it is sum_i s_i C(i - 1, k - 1) / C(n, k), since s_i is the best of C(i - 1, k - 1)
    subsets. If c answers score 1 and the others 0, this is pass@k, 1 - C(n - c, k) / C(n, k) (arXiv:2107.03374, eq. 1).

    >>> best_of([0.0, 1.0, 0.0, 0.0], 2), 1 - comb(3, 2) / comb(4, 2)
    (0.5, 0.5)
    """
    ranked = enumerate(sorted(scores))
    return sum(score * comb(below, k - 1) for below, score in ranked) / comb(len(scores), k)


def vote_of(answers: Sequence[Hashable | None], scores: Sequence[float]) -> list[float]:
    """For k = 1 to n, the mean over all subsets of k of n answers of the score of the answer with the most votes.

    An answer that is None could not be read: it has no vote, and a subset of such answers alone scores 0. Where several
    answers of a subset share the most votes, the subset gets the mean of their scores. That is the expectation over a
    fair draw among them; so the result is deterministic, and neither the order of the answers nor their spelling favors
    one of them. An answer's score is the mean of the scores with which it occurs.

    The subsets are counted with polynomials in x: m equal answers give C(m, j) x^j. For each number of votes t that may
    win, `ways[s]` counts the choices in which s answers have t votes and all others fewer; `credit[s]` is the same sum,
    weighted with the scores of these s answers.

    >>> vote_of(["sad", "sad", "happy"], [1.0, 1.0, 0.0])[1:] == [(1 + 0.5 + 0.5) / 3, 1.0]
    True
    """
    found: dict[Hashable, list[float]] = {}
    for answer, score in zip(answers, scores, strict=True):
        if answer is not None:
            found.setdefault(answer, []).append(score)
    counted = sorted((len(each), sum(each) / len(each)) for each in found.values())
    return list(_vote_of(len(answers), tuple(counted)))


@lru_cache(maxsize=4096)
def _vote_of(num_answers: int, counted: tuple[tuple[int, float], ...]) -> tuple[float, ...]:
    total = np.zeros(num_answers + 1)
    num_unread = num_answers - sum(count for count, _ in counted)
    for votes in range(1, max((count for count, _ in counted), default=0) + 1):
        total += _won_with(votes, num_answers, num_unread, counted)
    subsets = [comb(num_answers, k) for k in range(num_answers + 1)]
    return tuple(float(value) / count for value, count in zip(total[1:], subsets[1:], strict=True))


def _won_with(votes: int, num_answers: int, num_unread: int, counted: tuple[tuple[int, float], ...]) -> Polynomial:
    """The scores of the winners, summed over all subsets in which the winners have `votes` votes each."""
    size = num_answers + 1
    most_tied = num_answers // votes
    ways, credit = np.zeros((most_tied + 1, size)), np.zeros((most_tied + 1, size))
    ways[0, : num_unread + 1] = [comb(num_unread, j) for j in range(num_unread + 1)]
    for count, score in counted:
        fewer = [float(comb(count, j)) for j in range(min(votes, count + 1))]
        tied_ways, tied_credit = np.zeros_like(ways), np.zeros_like(credit)
        if count >= votes:
            chances = float(comb(count, votes))
            tied_ways[1:, votes:] = chances * ways[:-1, :-votes]
            tied_credit[1:, votes:] = chances * (credit + score * ways)[:-1, :-votes]
        ways = _times(ways, fewer) + tied_ways
        credit = _times(credit, fewer) + tied_credit
    return sum((credit[tied] / tied for tied in range(1, most_tied + 1)), np.zeros(size))


def _times(polynomials: Polynomial, factor: Sequence[float]) -> Polynomial:
    """Each row times a polynomial with these first coefficients."""
    product = np.zeros_like(polynomials)
    for power, coefficient in enumerate(factor):
        product[:, power:] += coefficient * polynomials[:, : polynomials.shape[1] - power]
    return product
