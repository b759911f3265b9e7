"""Scores a rollout; where rewards have processes of their own, the trainer does other work in the meantime."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.rewards.pool import RewardPool
from lightning_mmrl.stages.costs import CostMeter
from lightning_mmrl.stages.experience import Experience
from lightning_mmrl.stages.failures import refuse_failures
from lightning_mmrl.stages.scores import REWARD_TYPE, RewardSource, completion_groups, score_rollout, score_tensors
from lightning_mmrl.types.batches import Rollout, Scores

Work = Callable[[Experience], Experience]
"""Adds to an experience what takes completions, and of their scores only which are valid."""


def pending_scores(rollout: Rollout) -> Scores:
    """The scores that stand for those of a rollout until they are known: valid, and zero."""
    shape, device = (-1, rollout.group_size), rollout.completion_ids.device
    zeros = torch.zeros(len(rollout.completions), dtype=REWARD_TYPE, device=device).reshape(shape)
    return Scores(rewards=zeros, valid=torch.ones_like(zeros, dtype=torch.bool), components={}, details=())


def scored(
    experience: Experience,
    rewards: RewardSource,
    *,
    costs: CostMeter,
    ranks: Ranks,
    rank_local: Callable[[], AbstractContextManager[None]],
    meanwhile: Work | None = None,
) -> Experience:
    """Gives an experience its scores; what `trainable` says of a completion holds only if its score is valid.

    Other work is done while processes score. It takes for granted that every score is valid, as nearly always, since
    it decides what is packed together. If a score of any rank is not, its results are dropped, and the caller does the
    work again: so the numbers are the same, bit for bit, as if the work had come after the scores.

    Args:
        experience: Its scores are `pending_scores`.
        rewards: Scores the completions.
        costs: Measures the phase `score`, which is the wait for the scores if other work was done.
        ranks: The processes that train together.
        rank_local: Entered around the wait, see `StageContext`.
        meanwhile: Other work; all ranks have some, or none has.

    Raises:
        RewardError: More than `rewards.max_invalid_rate` of all scores are invalid, or no process can score.
    """
    samples, rollout = experience.prompts.samples, experience.rollout
    if meanwhile is not None and isinstance(rewards, RewardPool):
        with rewards.scoring(samples, completion_groups(rollout)) as wait:
            worked = meanwhile(experience)
            with costs.phase("score"), costs.meeting(rank_local()):
                scores = score_tensors(wait(), rollout.completion_ids.device)
    else:
        worked = experience
        with costs.phase("score"), costs.meeting(rank_local()):
            scores = score_rollout(rewards, samples, rollout)
    refuse_failures(scores, rewards.max_invalid_rate, ranks)
    if worked is not experience and ranks.any([not bool(scores.valid.all())])[0]:
        worked = experience
    return replace(worked, scores=scores, trainable=worked.trainable & scores.valid)


def untruncated(rollout: Rollout) -> Tensor:
    """True [B, G] for completions that ended by themselves."""
    ended = torch.tensor([not completion.truncated for completion in rollout.completions])
    return ended.to(rollout.completion_ids.device).reshape(-1, rollout.group_size)
