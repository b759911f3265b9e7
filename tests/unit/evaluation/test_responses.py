import pytest

from lightning_mmrl.evaluation.responses import ResponseStats, reflection_rate, response_stats
from lightning_mmrl.types.records import Completion


def responses(lengths, truncated=0):
    return [
        Completion(text="Wait." if length > 90 else "", num_tokens=length, truncated=index < truncated)
        for index, length in enumerate(lengths)
    ]


def test_figures_of_a_hundred_responses():
    stats = response_stats(responses(range(1, 101), truncated=3))
    assert stats == ResponseStats(num_responses=100, length_mean=50.5, length_p95=95, truncated=0.03, reflecting=0.1)


@pytest.mark.parametrize(("lengths", "p95"), [([7], 7), ([1, 2], 2), (range(1, 20), 19), (range(1, 21), 19)])
def test_the_percentile_is_a_length_that_occurs(lengths, p95):
    assert response_stats(responses(lengths)).length_p95 == p95


def test_no_responses_have_no_figures():
    assert response_stats([]) is None
    assert reflection_rate([]) == 0.0


@pytest.mark.parametrize("text", ["Wait, no.", "WAIT", "Let me re-examine it.", "so, on second thought, sad"])
def test_reflection_is_found(text):
    assert reflection_rate([text]) == 1.0


@pytest.mark.parametrize("text", ["", "She waits.", "waiting", "await", "a hmmm", "the checker"])
def test_other_words_are_none(text):
    assert reflection_rate([text]) == 0.0


def test_own_phrases():
    assert reflection_rate(["c++ (again)", "c"], phrases=["c++ (again)"]) == 0.5
