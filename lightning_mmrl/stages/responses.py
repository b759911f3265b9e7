"""Reflection and repetition in sampled responses, apart for right and wrong answers; metrics, no rewards."""

from functools import lru_cache

import torch

from lightning_mmrl.evaluation.responses import phrase_pattern
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.rewards.repetition import repeated_share
from lightning_mmrl.stages.collect import Collected
from lightning_mmrl.stages.context import StageContext

NGRAM = 4
"""Words of an n-gram whose repetitions count, as in the reward `Repetition`."""
_pattern = lru_cache(phrase_pattern)


def response_stats(collected: Collected, context: StageContext, ranks: Ranks) -> dict[str, float]:
    """How many responses reflect and how much they repeat, for right and for wrong answers; a collective.

    - `rollout/reflecting_right` and `_wrong`: the share of these responses with at least one of the stage's
      `reflection_words`. If reflection helped, it would be higher among right answers; RL-with-Cold-Start
      (arXiv:2505.22334) finds that its rate and accuracy are unrelated.
    - `rollout/repetition_right` and `_wrong`: their mean share of repeated n-grams, 0 to 1.

    An answer is right if the pass component of the rewards is at least 1. Invalid scores count nowhere, and a metric
    without responses is left out. Without `reflection_words` there are no such metrics and nothing is computed.
    """
    words = context.settings.reflection_words
    if not words:
        return {}
    scores, pattern = collected.all_scores, _pattern(tuple(words))
    passed = scores.components.get(context.rewards.pass_component, torch.zeros_like(scores.rewards)) >= 1.0
    sums = torch.zeros(2, 3, dtype=torch.float64)  # of wrong and right ones: number, reflecting, repeated shares
    rows = zip(
        collected.all_rollouts.completions, passed.flatten().tolist(), scores.valid.flatten().tolist(), strict=True
    )
    for completion, right, valid in rows:
        if valid:
            text = completion.text
            reflects = float(pattern.search(text) is not None)
            sums[int(right)] += torch.tensor((1.0, reflects, repeated_share(text, NGRAM)), dtype=torch.float64)
    stats = {}
    for name, (number, reflecting, repeated) in zip(("wrong", "right"), ranks.sum(sums).tolist(), strict=True):
        if number:
            stats[f"rollout/reflecting_{name}"] = reflecting / number
            stats[f"rollout/repetition_{name}"] = repeated / number
    return stats
