"""Preference learning from pairs of answers: DPO, and MPO as a weighted sum of losses."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.algorithms.losses.preference import PreferenceObjective, RewardShift
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.models.integrity import check_targets
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.reference import Reference
from lightning_mmrl.ops.masked import masked_sum
from lightning_mmrl.settings.dpo import DpoSettings
from lightning_mmrl.settings.sft import microbatches_of
from lightning_mmrl.stages.accumulating import AccumulatingModule
from lightning_mmrl.stages.answers import AnswerEvaluator
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.experience import encoded
from lightning_mmrl.stages.microbatches import budget_of, microbatches
from lightning_mmrl.stages.optimize import fixed_logprobs
from lightning_mmrl.types.batches import PairLogprobs, ScoringBatch, SftBatch
from lightning_mmrl.types.costs import SCORE


class DPOModule(AccumulatingModule):
    """Learns to prefer the chosen answer of each pair: loss = sum of the losses of pairs / number of pairs.

    Sum and number are taken over all microbatches and ranks of an optimizer step, so that neither loss nor gradient
    depends on the split. The two answers of a pair share their prompt and its media, and are always in one microbatch.
    The reference is the policy that the stage started from: a frozen copy, or the policy with its adapter off. Towers
    that do not train run once for policy and reference.

    Args:
        policy: The model to train.
        optimizer: Optimizer and schedule.
        context: The stage's name, length, seed and folder; its settings are `DpoSettings`.
        evaluator: Judges greedy answers on the validation split, if there is one.

    Raises:
        ConfigError: The stage is of another kind.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        optimizer: OptimizerSettings,
        context: StageContext,
        evaluator: AnswerEvaluator | None = None,
    ) -> None:
        super().__init__(policy, optimizer=optimizer, context=context, evaluator=evaluator)
        settings = context.settings
        if not isinstance(settings, DpoSettings):
            raise ConfigError(
                f"stages.{context.name}.module is {type(self).__name__}, which learns pairs, and the stage is "
                f"{settings.kind}; take stage/dpo"
            )
        self.objective = PreferenceObjective(settings.preference)
        self.shift = RewardShift()
        self._reference = Reference(policy, context.sharding)
        self._rewards = 0.0, 0  # sum and number of the rewards of the current step

    def training_step(self, batch: SftBatch, batch_idx: int) -> Tensor:
        """One optimizer step over one batch of pairs; returns the loss of its last microbatch, with a graph."""
        check_targets(batch, self.policy.media.backbone.placeholder_ids)
        self.policy.zero_grad()
        with self.costs.phase("encode"):
            scoring, shift = self._encoded(batch.scoring), self.shift.mean
        with self.costs.phase("reference"):
            reference = self._reference_logprobs(scoring)
        num_pairs = int(self._ranks.sum(torch.tensor(len(reference) // 2, device=reference.device)))
        found: list[dict[str, Tensor]] = []

        def loss_of(part: ScoringBatch, rows: Tensor | None) -> Tensor:
            logprobs = self.policy(part).logprobs
            if rows is None:
                return masked_sum(logprobs, torch.zeros_like(part.completion_mask))
            pairs = pair_logprobs(logprobs, reference[rows], part.completion_mask)
            losses = self.objective.parts(pairs, shift)
            found.append(pair_sums(pairs, losses))
            return self.objective.total(losses).sum() / num_pairs

        loss = self.add_up(scoring, loss_of, batch.samples, batch_idx + 1, whole=True)
        sums = self._ranks.sum(torch.stack([torch.stack(list(each.values())) for each in found]).sum(0)).tolist()
        self._report_pairs(dict(zip(found[0], sums, strict=True)), num_pairs)
        return loss

    def _report_pairs(self, sums: Mapping[str, float], num_pairs: int) -> None:
        """Reports means over the pairs of a step, and keeps the sum of their rewards."""
        settings, rewards = self.objective.settings, ("reward_chosen", "reward_rejected")
        means = {name: amount / num_pairs for name, amount in sums.items()}
        means |= {name: settings.beta * means[name] for name in rewards}
        means["reward_margin"] = means["reward_chosen"] - means["reward_rejected"]
        if "quality" in settings.weights:
            means["reward_shift"] = self.shift.mean
        self._rewards = sum(means[name] for name in rewards) * num_pairs, 2 * num_pairs
        self.report_step({f"train/{name}": mean for name, mean in means.items()})

    def _encoded(self, batch: ScoringBatch) -> ScoringBatch:
        """The batch with the outputs of the towers, if these do not train and so are those of the reference too."""
        if self.policy.media.towers_train:
            return batch
        return replace(batch, prompts=encoded(self.policy, batch.prompts, differentiable=False)[0])

    def _reference_logprobs(self, batch: ScoringBatch) -> Float[Tensor, "N C"]:
        """The log-probabilities of all tokens under the policy that the stage started from."""
        budget, rows = budget_of(microbatches_of(self._context.settings)), range(len(batch.prompts.samples))
        found = torch.zeros(batch.completion_mask.shape, device=batch.completion_mask.device)
        with self._reference.entered() as frozen:
            count = self.costs.counting(SCORE)
            parts = microbatches(batch, rows, budget=budget, ranks=self._ranks, whole=True, count=count)
            logprobs = fixed_logprobs(frozen, found, parts)
            self.costs.take_counters(frozen, updates=False)
            return logprobs

    def on_step_taken(self) -> None:
        """Adds the rewards of the step to their mean."""
        self.shift.add(*self._rewards)

    def on_fit_start(self) -> None:
        """Places the reference policy on the policy's device, sharded alike."""
        mesh = self.device_mesh
        self._reference.place(None if mesh is None else mesh["data_parallel"], self._ranks)

    def stage_state(self) -> dict[str, Any]:
        """The state that every such stage has, and the mean reward so far."""
        return super().stage_state() | {"reward_shift": {"mean": self.shift.mean, "count": self.shift.count}}

    def load_stage_state(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `stage_state` returned."""
        super().load_stage_state(state)
        self.shift = RewardShift(**state["reward_shift"])


def pair_logprobs(
    logprobs: Float[Tensor, "N C"], reference: Float[Tensor, "N C"], mask: Bool[Tensor, "N C"]
) -> PairLogprobs:
    """Sums over the tokens of answers; rows 2i and 2i + 1 are the chosen and the rejected answer of pair i."""
    own, fixed = masked_sum(logprobs, mask, dim=-1), masked_sum(reference.to(logprobs.dtype), mask, dim=-1)
    tokens = mask.sum(-1).to(logprobs.dtype)
    return PairLogprobs(
        chosen=own[::2],
        rejected=own[1::2],
        reference_chosen=fixed[::2],
        reference_rejected=fixed[1::2],
        tokens_chosen=tokens[::2],
        tokens_rejected=tokens[1::2],
    )


def pair_sums(pairs: PairLogprobs, parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over pairs from which metrics are made; rewards are without their factor beta."""
    values = {
        **{f"{name}_loss": losses for name, losses in parts.items()},
        "reward_chosen": pairs.log_ratio_chosen,
        "reward_rejected": pairs.log_ratio_rejected,
        "pair_accuracy": pairs.log_ratio_chosen > pairs.log_ratio_rejected,
        "logprob_chosen": pairs.chosen,
        "logprob_rejected": pairs.rejected,
        "drift_chosen": pairs.log_ratio_chosen / pairs.tokens_chosen,
        "drift_rejected": pairs.log_ratio_rejected / pairs.tokens_rejected,
    }
    return {name: each.detach().double().sum() for name, each in values.items()}
