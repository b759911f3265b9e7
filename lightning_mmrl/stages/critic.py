"""Trains a critic beside a policy: values and advantages of a rollout, then the gradients of its minibatches."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.optim.lr_scheduler import LambdaLR

from lightning_mmrl.algorithms.losses.value_clip import ValueClip
from lightning_mmrl.models.critic import Critic
from lightning_mmrl.models.parallelize import Sharding
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.context import OptimizerSettings, StageContext, clip_gradients
from lightning_mmrl.stages.costs import CostMeter
from lightning_mmrl.stages.experience import Experience, encoded, prompts_of_update
from lightning_mmrl.stages.microbatches import budget_of, scoring_batches
from lightning_mmrl.stages.running_rewards import RunningRewards
from lightning_mmrl.stages.values import (
    accumulate_value_loss,
    score_values,
    token_rewards,
    value_stats,
    with_advantages,
)
from lightning_mmrl.types.costs import SCORE, UPDATE


class CriticTrainer:
    """The part of an iteration that an algorithm with a critic adds.

    Values are computed once per rollout, before the first update. A completion's reward is at its last token; a
    divergence that is part of the reward is at each token. Advantages and returns follow by generalized advantage
    estimation. With `normalize_rewards`, rewards are normalized first (`stages.running_rewards`). Completions that do
    not count (their verifier failed, or they are truncated and such ones are masked) get no advantages and add nothing
    to a loss.

    Args:
        critic: The critic, which is trained.
        algorithm: The algorithm of the stage; it says how the critic learns.
        ranks: The processes that train together.
        costs: Counts the passes.
    """

    def __init__(self, critic: Critic, algorithm: Algorithm, ranks: Ranks, costs: CostMeter) -> None:
        assert algorithm.settings.critic is not None
        self.critic = critic
        self.settings = algorithm.settings.critic
        self._algorithm = algorithm
        self._ranks = ranks
        self._costs = costs
        self._rewards = RunningRewards()

    def shard(self, sharding: Sharding, mesh: DeviceMesh) -> None:
        """Spreads the critic's weights over the ranks."""
        sharding.apply(self.critic.trunk, mesh, self._ranks)

    def optimizer(
        self, policy: OptimizerSettings, context: StageContext, place: Callable[[int], int | float]
    ) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The critic's optimizer and schedule: of the policy's kind, at the critic's learning rate."""
        return replace(policy, critic=self.settings).build(self.critic, context, place)

    def estimate(self, experience: Experience, kl_coefficient: float, iteration: int) -> Experience:
        """Adds values, returns and advantages of tokens; if towers train, the critic runs towers of its own."""
        trunk, update = self.critic.trunk, self._algorithm.settings.update
        inputs = experience.raw if trunk.media.towers_train else experience.prompts
        prompts, towers = encoded(trunk, inputs, differentiable=update.on_policy)
        batches = scoring_batches(
            experience,
            range(len(experience.trainable)),
            budget=budget_of(update),
            ranks=self._ranks,
            prompts=prompts.select,
            count=self._costs.counting(SCORE),
        )
        values = score_values(self.critic, experience, batches)
        self._costs.take_counters(trunk, updates=False)
        scores = experience.scores
        if self.settings.normalize_rewards:
            serials = experience.prompts.serials
            scaled = self._rewards.normalized(
                scores.rewards, scores.valid, iteration=iteration, ranks=self._ranks, serials=serials
            )
            scores = replace(scores, rewards=scaled)
        rewards = token_rewards(replace(experience, scores=scores), self._algorithm.kl, kl_coefficient)
        estimated = with_advantages(experience, rewards, values, settings=self.settings, ranks=self._ranks)
        return replace(estimated, critic_towers=towers)

    def stats(self, experience: Experience) -> dict[str, float]:
        """The metrics of a rollout that only an algorithm with a critic has."""
        stats = value_stats(experience, self._ranks)
        return stats | self._rewards.stats() if self.settings.normalize_rewards else stats

    def state_dict(self) -> dict[str, Any]:
        """The running moments of the rewards; empty if rewards are not normalized."""
        return {"rewards": self._rewards.state_dict()} if self.settings.normalize_rewards else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        if "rewards" in state:
            self._rewards.load_state_dict(state["rewards"])

    def accumulate(
        self, experience: Experience, minibatch: Sequence[int], live: Sequence[int], backward: Callable[[Tensor], None]
    ) -> dict[str, float]:
        """Computes and clips the gradients of a minibatch, and returns its statistics.

        The critic scores only the prompts in `live`. Other prompts of the minibatch cannot move the weights.
        """
        towers = experience.critic_towers
        batches = scoring_batches(
            experience,
            live,
            budget=budget_of(self._algorithm.settings.update),
            ranks=self._ranks,
            prompts=prompts_of_update(self.critic.trunk, experience, towers),
            count=self._costs.counting(UPDATE),
        )
        stats = accumulate_value_loss(
            self.critic,
            experience,
            minibatch,
            batches,
            loss=ValueClip(clip=self.settings.value_clip),
            ranks=self._ranks,
            backward=backward,
        )
        if towers is not None:
            towers.backward()
        self._costs.take_counters(self.critic.trunk, updates=True)
        self._ranks.sum_gradients(self.critic.parameters())
        return stats | {"critic_grad_norm": clip_gradients(self.critic.parameters(), self.settings.max_grad_norm)}
