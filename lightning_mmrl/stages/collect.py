"""Builds an iteration's batch from groups that pass a selection; samples further prompts while too few pass."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.ops.transfer import on_device
from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.protocols.tensors import GroupSelector
from lightning_mmrl.settings.algorithm import AlgorithmSettings, RewardSettings
from lightning_mmrl.stages.experience import Experience
from lightning_mmrl.stages.join import join_prompts, join_rollouts, join_scores, select_rollout, select_scores
from lightning_mmrl.stages.router import DROPPED, RL, SFT, Route, Router
from lightning_mmrl.types.batches import Rollout, Scores
from lightning_mmrl.types.records import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The batch that an iteration is trained on, and everything that was sampled for it.

    Attributes:
        batch: The groups that are trained on. Groups that did not pass and only fill a place are not valid there.
        all_samples: The samples of all prompts that were sampled, in that order, rejected groups included...
        all_rollouts: ...with their completions...
        all_scores: ...and their scores.
        kept: Which of these groups passed.
        rows: Where the groups of the batch stand among all that was sampled.
        refilled: True if, on any rank, the batch has groups of a later sampling.
        num_samplings: Batches of prompts that were sampled.
        routes: Where each prompt that was sampled goes; empty without a router.
    """

    batch: Experience
    all_samples: tuple[Sample, ...]
    all_rollouts: Rollout
    all_scores: Scores
    kept: Bool[Tensor, " all"]
    rows: tuple[int, ...]
    refilled: bool
    num_samplings: int
    routes: tuple[Route, ...] = ()

    @property
    def everything(self) -> tuple[tuple[Sample, ...], Rollout, Scores]:
        """All samples, their completions and the scores of these."""
        return self.all_samples, self.all_rollouts, self.all_scores

    @property
    def serials(self) -> tuple[int, ...]:
        """The order of all samples among those of all ranks; empty if there were several samplings."""
        return self.batch.prompts.serials if self.num_samplings == 1 else ()

    @property
    def routes_taken(self) -> list[str | None]:
        """Where each prompt that was sampled went; None for one that the batch has no place for."""
        placed = set(self.rows)
        return [
            route.to if route.to == DROPPED or (row in placed and bool(self.kept[row])) else None
            for row, route in enumerate(self.routes)
        ]

    def spread(self, values: Tensor) -> Tensor:
        """Values [B, ...] of the batch, each at its place among all that was sampled; zero elsewhere."""
        whole = torch.zeros(len(self.all_samples), *values.shape[1:], dtype=values.dtype, device=values.device)
        whole[on_device(self.rows, values.device)] = values
        return whole

    def advantages(self, experience: Experience) -> Float[Tensor, "all G"] | None:
        """The advantage of each completion that was sampled; NaN for one that does not count in the loss.

        None with a critic, which gives every token its own. `experience` is the batch with advantages.
        """
        if experience.old_values is not None:
            return None
        own = experience.advantages[:, 0].reshape(experience.trainable.shape)
        return torch.where(self.spread(experience.trainable), self.spread(own), torch.nan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Says how many batches of prompts an iteration samples, and which of their groups the policy is trained on.

    As in the refill of MM-Eureka v2 (arXiv:2503.07365, algorithm 1) and the dynamic sampling of DAPO (arXiv:2503.14476,
    section 3.2), the batch of an update has a constant number of prompts, however many groups are rejected. The first
    groups that pass are taken, in the order of sampling; further ones are dropped. Nothing is kept for the next
    iteration: every group that is trained on was sampled from the policy as it is.

    When the cap (`max_samplings`) is reached, rejected groups fill the missing places, the first ones first. Their
    completions are not valid, so they count in no advantage, loss or denominator, and every rank still holds equally
    many prompts.

    Every rank fills its own share of the batch from its own share of each sampling, and all ranks sample as long as one
    of them has too few groups. Once a group is rejected, the choice therefore depends on the number of ranks.

    **Deviations**: neither paper has a cap; DAPO's released code has one, and stops the run there.

    Attributes:
        select: Which groups pass; None takes all.
        settings: How many batches of prompts may be sampled; 1 leaves rejected groups without a replacement.
        rewards: Names the component that says whether an answer is right.
        ranks: Who collects together.
        router: Sends prompts elsewhere than to RL; None for none. Groups that RL does not get need not pass.
    """

    select: GroupSelector | None = None
    settings: AlgorithmSettings = field(default_factory=AlgorithmSettings)
    rewards: RewardSettings = field(default_factory=RewardSettings)
    ranks: Ranks = ALONE
    router: Router | None = None

    def is_short(self, samplings: Sequence[Experience]) -> bool:
        """Whether too few groups pass on any rank and another batch of prompts may be sampled."""
        if len(samplings) >= self.settings.max_samplings:
            return False
        kept = self._kept(samplings, self._routes(samplings))
        return self.ranks.any([int(kept.sum()) < len(samplings[0].prompts.samples)])[0]

    def chosen(self, samplings: Sequence[Experience]) -> Collected:
        """The batch of the iteration: as many groups as the first sampling has."""
        routes = self._routes(samplings)
        kept, wanted = self._kept(samplings, routes), len(samplings[0].prompts.samples)
        passing, rejected = kept.nonzero().flatten().tolist(), (~kept).nonzero().flatten().tolist()
        rows = sorted(passing[:wanted] + rejected[: max(0, wanted - len(passing))])
        all_rollouts = join_rollouts([each.rollout for each in samplings])
        all_scores = join_scores([each.scores for each in samplings])
        rollout, scores = select_rollout(all_rollouts, rows), select_scores(all_scores, rows)
        refilled = self.ranks.any([rows != list(range(wanted))])[0]
        batch = samplings[0]
        if refilled:
            raw = join_prompts([each.raw for each in samplings])
            prompts = join_prompts([each.prompts for each in samplings])
            batch = replace(batch, raw=raw.select(rows), prompts=prompts.select(rows), towers=None)
        device = scores.valid.device
        passed = kept[rows].to(device, non_blocking=True)[:, None]
        batch = replace(
            batch,
            rollout=rollout,
            scores=replace(scores, valid=scores.valid & passed),
            trainable=torch.cat([each.trainable for each in samplings])[on_device(rows, device)] & passed,
            advantages=batch.advantages.new_zeros(rollout.completion_mask.shape),
        )
        if self.router is not None:
            nowhere = Route(to=DROPPED)
            batch = self.router.routed(batch, [routes[row] if kept[row] else nowhere for row in rows])
        return Collected(
            batch=batch,
            all_samples=tuple(sample for each in samplings for sample in each.prompts.samples),
            all_rollouts=all_rollouts,
            all_scores=all_scores,
            kept=kept,
            rows=tuple(rows),
            refilled=refilled,
            num_samplings=len(samplings),
            routes=routes,
        )

    def _routes(self, samplings: Sequence[Experience]) -> tuple[Route, ...]:
        """Where the prompts of all samplings go; empty without a router."""
        return () if self.router is None else tuple(route for each in samplings for route in self.router.routes(each))

    def _kept(self, samplings: Sequence[Experience], routes: Sequence[Route]) -> Bool[Tensor, " all"]:
        """Which groups of all samplings have a place in the batch: those that pass, and prompts that go to SFT."""
        placed = torch.cat([self._selected(each.scores) for each in samplings])
        for row, route in enumerate(routes):
            if route.to != RL:
                placed[row] = route.to == SFT
        return placed

    def _selected(self, scores: Scores) -> Bool[Tensor, " B"]:
        """Which groups pass the selection."""
        if self.select is None:
            return torch.ones(len(scores.valid), dtype=torch.bool)
        right = scores.components.get(self.rewards.pass_component, torch.zeros_like(scores.rewards)) >= 1.0
        return self.select(scores.rewards, right, scores.valid).cpu()
