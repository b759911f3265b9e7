"""Log-probabilities of a rollout under the policy that the stage started from."""

from dataclasses import replace
from functools import partial

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.reference import Reference
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.costs import CostMeter
from lightning_mmrl.stages.experience import Experience
from lightning_mmrl.stages.microbatches import budget_of, scoring_batches
from lightning_mmrl.stages.optimize import rollout_logprobs
from lightning_mmrl.types.costs import SCORE


def compared(
    experience: Experience,
    policy: Policy,
    reference: Reference,
    *,
    algorithm: Algorithm,
    ranks: Ranks,
    costs: CostMeter,
) -> Experience:
    """Adds log-probabilities of the reference policy and, where the reward has a penalty, the policy's own.

    A penalty in the reward covers every completion with a valid score, also truncated ones that leave the loss.
    Towers that train are run again, since the reference has towers of its own.
    """
    budget, in_reward = budget_of(algorithm.settings.update), algorithm.kl.in_reward
    judged = replace(experience, trainable=experience.scores.valid) if in_reward else experience
    rows = range(len(experience.trainable))
    batches = partial(scoring_batches, judged, rows, budget=budget, ranks=ranks, count=costs.counting(SCORE))
    prompts = experience.raw if policy.media.towers_train else experience.prompts
    with reference.entered() as frozen:
        found = rollout_logprobs(frozen, judged, batches(prompts=prompts.select))
        costs.take_counters(frozen, updates=False)
    old = rollout_logprobs(policy, judged, batches()) if in_reward else None
    return replace(experience, reference_logprobs=found, old_logprobs=old)
