"""Advantages of completions: a penalty in the reward, and statistics over the completions of all ranks."""

from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.protocols.tensors import AdvantageEstimator
from lightning_mmrl.stages.experience import Experience
from lightning_mmrl.stages.join import gather_rows


def penalized_rewards(experience: Experience, kl: KLPenalty, coefficient: float) -> Float[Tensor, "B G"]:
    """Rewards minus coefficient times the divergence of each completion, summed over its tokens.

    Without the policy's or the reference's log-probabilities in the experience, the rewards stay as they are.
    """
    old, reference, scores = experience.old_logprobs, experience.reference_logprobs, experience.scores
    if not kl.in_reward or old is None or reference is None:
        return scores.rewards
    mask = experience.rollout.completion_mask & scores.valid.reshape(-1, 1)
    divergence = kl(old, old, reference.to(old.dtype), mask).sum(-1).reshape(scores.rewards.shape)
    return scores.rewards - coefficient * divergence.to(scores.rewards.dtype)


def shared_advantages(
    estimator: AdvantageEstimator,
    rewards: Float[Tensor, "B G"],
    valid: Bool[Tensor, "B G"],
    ranks: Ranks,
    serials: Sequence[int] = (),
) -> Float[Tensor, "B G"]:
    """Advantages of this rank's completions among the completions of all ranks.

    Each rank computes the advantages of all completions and keeps its own. So the statistics of the batch are bit for
    bit the statistics of one process with all prompts.
    """
    everyone, own = gather_rows(ranks, rewards, valid, serials=serials)
    return estimator(*(column.to(rewards.device, non_blocking=True) for column in everyone))[own]


def of_tokens(advantages: Float[Tensor, "B G"], completion_mask: Bool[Tensor, "N C"]) -> Float[Tensor, "N C"]:
    """Returns for each token the advantage of its completion."""
    return advantages.reshape(-1, 1).expand(completion_mask.shape)
