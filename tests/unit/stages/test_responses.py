"""Reflection and repetition apart for right and wrong answers, by hand."""

from types import SimpleNamespace

import pytest
import torch

from lightning_mmrl.protocols.ranks import ALONE, Alone
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.stages.responses import response_stats
from lightning_mmrl.types.records import Completion

TEXTS = ("Wait, no. It is 7.", "It is 7.", "so it is so it is so it is", "Wait, wait. It is 8.", "It is 8.", "Hmm.")
RIGHT = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0)
VALID = (True, True, True, True, True, False)


def collected(texts=TEXTS, right=RIGHT, valid=VALID):
    completions = tuple(Completion(text=text, num_tokens=3, truncated=False) for text in texts)
    rewards = torch.tensor([right])
    scores = SimpleNamespace(rewards=rewards, components={"math": rewards}, valid=torch.tensor([valid]))
    return SimpleNamespace(all_scores=scores, all_rollouts=SimpleNamespace(completions=completions))


def context(words=("wait", "hmm"), component="math"):
    settings = SimpleNamespace(reflection_words=list(words))
    return SimpleNamespace(settings=settings, rewards=RewardSettings(pass_component=component))


def test_shares_by_hand():
    """The third text has 9 words, 6 n-grams of four words, of which 3 are different."""
    assert response_stats(collected(), context(), ALONE) == pytest.approx(
        {
            "rollout/reflecting_right": 1 / 3,
            "rollout/reflecting_wrong": 1 / 2,
            "rollout/repetition_right": 0.5 / 3,
            "rollout/repetition_wrong": 0.0,
        }
    )


def test_without_words_nothing_is_measured():
    assert response_stats(None, context(words=()), None) == {}


def test_metrics_without_responses_are_left_out():
    found = response_stats(collected(right=(1.0,) * 6), context(), ALONE)
    assert set(found) == {"rollout/reflecting_right", "rollout/repetition_right"}
    assert response_stats(collected(valid=(False,) * 6), context(), ALONE) == {}
    unknown = response_stats(collected(), context(component="label"), ALONE)
    assert set(unknown) == {"rollout/reflecting_wrong", "rollout/repetition_wrong"}, (
        "no answer is right without its component"
    )


class _Twice(Alone):
    """Two ranks with the same responses."""

    def sum(self, values):
        return 2 * values


def test_two_ranks_are_summed_before_they_are_divided():
    assert response_stats(collected(), context(), _Twice()) == pytest.approx(
        response_stats(collected(), context(), ALONE)
    )


def test_words_are_whole_words_in_any_case():
    found = response_stats(collected(("WAIT!", "awaiting", "waiter", "wait", "x", "y")), context(), ALONE)
    assert found["rollout/reflecting_right"] == pytest.approx(1 / 3)
    assert found["rollout/reflecting_wrong"] == pytest.approx(1 / 2)
