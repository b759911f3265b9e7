"""Proximal Policy Optimization with a critic (arXiv:1707.06347)."""

from dataclasses import replace
from typing import ClassVar

from lightning.pytorch.utilities.types import OptimizerLRScheduler

from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.models.critic import Critic
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.context import clip_gradients
from lightning_mmrl.stages.media import IterationMedia
from lightning_mmrl.stages.optimize import Minibatch
from lightning_mmrl.stages.policy_gradient import PolicyGradientModule
from lightning_mmrl.stages.values import (
    CriticSettings,
    accumulate_value_loss,
    score_values,
    token_rewards,
    value_stats,
    with_advantages,
)
from lightning_mmrl.types.batches import Experience, PromptBatch, Scores


class PPOModule(PolicyGradientModule):
    """`PolicyGradientModule` with advantages of single tokens, from a critic that is trained beside the policy.

    Values are taken once per rollout, before the first update; a completion's reward is at its last token, a divergence
    in the reward at each of its tokens; advantages and returns by generalized advantage estimation. Completions that
    do not count (a failed verifier, truncation where that is masked) are in no value, advantage or loss.

    The critic (`models.critic.Critic`) starts as a copy of the policy and has an optimizer of its own. Both are in the
    state that an unfinished stage continues from. Neither is in the handoff: the critic of a next stage starts anew.

    Arguments are those of `PolicyGradientModule`.

    **Deviations** from the paper's eq. 9: policy and critic share no weights, so there is no value coefficient; values
    are clipped, as in its code; no KL penalty and no entropy bonus unless the algorithm has them.
    """

    default_algorithm: ClassVar[Algorithm] = Algorithm(
        advantage=None, loss=PPOClip(), aggregation=TokenMean(), critic=CriticSettings()
    )

    def prepare_beside(self, policy: Policy) -> None:
        """The critic, from the policy as the stage starts."""
        self.critic = Critic(policy, share_frozen=self._context.sharding is None)
        self._critic_media: IterationMedia | None = None

    @property
    def critic_settings(self) -> CriticSettings:
        """Those of the algorithm."""
        assert self.algorithm.critic is not None
        return self.algorithm.critic

    def configure_model(self) -> None:
        """Spreads policy and critic over the ranks."""
        super().configure_model()
        mesh, sharding = self.device_mesh, self._context.sharding
        if mesh is not None and sharding is not None:
            sharding.apply(self.critic.trunk, mesh["data_parallel"], self._ranks)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The policy's optimizer and schedule, and the same for the critic at its own rate."""
        settings = replace(self._optimizer, learning_rate=self.critic_settings.learning_rate)
        optimizer, scheduler = self._optimizer.build(self.policy, self._context)
        critic_optimizer, critic_scheduler = settings.build(self.critic, self._context)
        return [optimizer, critic_optimizer], [scheduler, critic_scheduler]

    def estimate(self, experience: Experience, raw: PromptBatch, scores: Scores, iteration: int) -> Experience:
        """Adds values, returns and advantages of tokens; towers that train are the critic's own, and see `raw`."""
        update, trunk = self.algorithm.update, self.critic.trunk
        with self._timed("values"):
            prompts = raw if trunk.media.towers_train else experience.prompts
            media = IterationMedia.of(trunk, prompts, one_update=update.on_policy)
            values = score_values(
                self.critic, experience, budget=update.budget, ranks=self._ranks, prompts=media.prompts.select
            )
        self._critic_media = media
        coefficient, _ = self._coefficients(iteration)
        rewards = token_rewards(experience, scores, self.algorithm.kl, coefficient)
        return with_advantages(experience, rewards, values, settings=self.critic_settings, ranks=self._ranks)

    def optimize(self, experience: Experience, media: IterationMedia, iteration: int) -> dict[str, float]:
        """The optimizer steps of one iteration, and what the values were worth before them."""
        before = value_stats(experience, self._ranks)
        update = super().optimize(experience, media, iteration)
        if "train/value_loss" in update:
            update["train/critic_learning_rate"] = self._optimizers()[0][1].param_groups[0]["lr"]
        return before | update

    def gradients_beside(
        self, experience: Experience, minibatch: Minibatch
    ) -> tuple[dict[str, float], dict[str, float]]:
        """The critic's gradients on the values of a minibatch."""
        settings, media, ranks = self.critic_settings, self._critic_media, self._ranks
        assert media is not None
        optimizer = self._optimizers()[0][1]
        optimizer.zero_grad()
        stats = accumulate_value_loss(
            self.critic,
            experience,
            minibatch,
            loss=settings.loss,
            budget=self.algorithm.update.budget,
            ranks=ranks,
            prompts=media.scored,
            backward=self.manual_backward,
        )
        media.finish()
        ranks.sum_gradients(self.critic.parameters())
        norm = clip_gradients(self.critic.parameters(), settings.max_grad_norm)
        checked = {"critic's loss": stats["value_loss"], "critic's gradient norm": norm}
        return stats | {"critic_grad_norm": norm}, checked
