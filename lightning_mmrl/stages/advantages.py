"""From rewards to advantages: a penalty in the reward, and statistics over the completions of all ranks."""

from jaxtyping import Float
from torch import Tensor

from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.protocols.tensors import AdvantageEstimator
from lightning_mmrl.stages.join import gather_rows
from lightning_mmrl.types.batches import Experience, Scores


def penalized_rewards(
    experience: Experience, scores: Scores, kl: KLPenalty, coefficient: float
) -> Float[Tensor, "B G"]:
    """Rewards minus coefficient times the divergence of each completion, summed over its tokens.

    An experience without the log-probabilities that this needs leaves the rewards as they are.
    """
    old, reference = experience.old_logprobs, experience.reference_logprobs
    if not kl.in_reward or old is None or reference is None:
        return scores.rewards
    mask = experience.rollout.completion_mask & scores.valid.reshape(-1, 1)
    divergence = kl(old, old, reference.to(old.dtype), mask).sum(-1).reshape(scores.rewards.shape)
    return scores.rewards - coefficient * divergence.to(scores.rewards.dtype)


def shared_advantages(
    estimator: AdvantageEstimator, rewards: Float[Tensor, "B G"], scores: Scores, ranks: Ranks
) -> Float[Tensor, "B G"]:
    """Advantages of this rank's completions among those of all ranks; each rank computes all and keeps its own.

    Statistics of the batch are therefore, bit for bit, what one process with all prompts computes.
    """
    everyone, own = gather_rows(ranks, rewards, scores.valid)
    return estimator(*(column.to(rewards.device) for column in everyone))[own]
