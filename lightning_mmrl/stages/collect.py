"""What an iteration is trained on: sampled groups that pass a selection, and further prompts while too few do."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from lightning_mmrl.protocols.ranks import ALONE, Ranks
from lightning_mmrl.protocols.tensors import GroupSelector
from lightning_mmrl.stages.join import join_prompts, join_rollouts, join_scores, select_rollout, select_scores
from lightning_mmrl.stages.media import IterationMedia
from lightning_mmrl.types.batches import PromptBatch, Rollout, Scores
from lightning_mmrl.types.records import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """One batch of prompts, what was sampled for it and what that earned; `raw` are the prompts with tower inputs."""

    raw: PromptBatch
    media: IterationMedia
    rollout: Rollout
    scores: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """The batch that an iteration is trained on, and all that was sampled for it.

    Attributes:
        raw: The prompts of the batch with tower inputs.
        media: The same prompts with features. Those of a batch that moved have no gradient into the towers.
        rollout: Their completions.
        scores: Their scores; completions of a group that did not pass and only fills its place are not valid.
        samples: The samples of all that was sampled, in that order...
        sampled: ...with their completions...
        earned: ...and their scores.
        kept: Which of these groups passed.
        rows: Where the groups of the batch stand among all that was sampled.
        moved: True if the batch is not just the first one that was sampled.
        num_samplings: Batches of prompts that were sampled.
    """

    raw: PromptBatch
    media: IterationMedia
    rollout: Rollout
    scores: Scores
    samples: tuple[Sample, ...]
    sampled: Rollout
    earned: Scores
    kept: Bool[Tensor, " all"]
    rows: tuple[int, ...]
    moved: bool
    num_samplings: int

    def spread(self, values: Tensor) -> Tensor:
        """Values [B, ...] of the batch, each at its place among all that was sampled; zero elsewhere."""
        whole = torch.zeros(len(self.samples), *values.shape[1:], dtype=values.dtype, device=values.device)
        whole[list(self.rows)] = values
        return whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Collector:
    """Samples batches of prompts until as many groups pass as the batch of the iteration has prompts.

    The refill of MM-Eureka v2 (arXiv:2503.07365, algorithm 1) and the dynamic sampling of DAPO (arXiv:2503.14476,
    section 3.2): the batch of an update has a constant number of prompts, however many groups are rejected. The first
    ones that pass are taken, in the order they were sampled; those beyond the batch are dropped. Nothing is kept for
    the next iteration: all that is trained on was sampled from the policy as it is.

    When the cap is reached, rejected groups fill the missing places, the first ones first. Their completions are not
    valid, so they count in no advantage, loss or denominator, and every rank still holds equally many prompts.

    Every rank fills its own share of the batch from its own share of each sampling, and all ranks sample as long as one
    of them is short. Which groups are chosen therefore depends on the number of ranks once one is rejected.

    **Deviations**: neither paper has a cap; DAPO's released code stops the run at its own.

    Attributes:
        select: Which groups pass; None takes all.
        max_samplings: Batches of prompts that may be sampled; 1 leaves out what is rejected.
        pass_part: The reward component that says whether an answer is right.
        ranks: Who collects together.
    """

    select: GroupSelector | None = None
    max_samplings: int = 1
    pass_part: str = ""
    ranks: Ranks = ALONE

    def collect(
        self, first: PromptBatch, sample: Callable[[PromptBatch, int], Sampling], refill: Callable[[], PromptBatch]
    ) -> Collected:
        """The batch of one iteration.

        Args:
            first: The iteration's own prompts; as many are trained on.
            sample: Samples and scores prompts, given how many samplings were before.
            refill: Further prompts.
        """
        wanted = len(first.samples)
        samplings = [sample(first, 0)]
        kept = [self._passing(samplings[0].scores)]
        while len(samplings) < self.max_samplings and self.ranks.either([int(torch.cat(kept).sum()) < wanted])[0]:
            samplings.append(sample(refill(), len(samplings)))
            kept.append(self._passing(samplings[-1].scores))
        return self._joined(samplings, torch.cat(kept), wanted)

    def _passing(self, scores: Scores) -> Bool[Tensor, " B"]:
        if self.select is None:
            return torch.ones(len(scores.rewards), dtype=torch.bool)
        right = scores.components.get(self.pass_part, torch.zeros_like(scores.rewards)) >= 1.0
        return self.select(scores.rewards, right, scores.valid).cpu()

    def _joined(self, samplings: list[Sampling], kept: Bool[Tensor, " all"], wanted: int) -> Collected:
        passing, rejected = kept.nonzero().flatten().tolist(), (~kept).nonzero().flatten().tolist()
        rows = sorted(passing[:wanted] + rejected[: max(0, wanted - len(passing))])
        sampled = join_rollouts([each.rollout for each in samplings])
        earned = join_scores([each.scores for each in samplings])
        moved = self.ranks.either([rows != list(range(wanted))])[0]
        raw, media = samplings[0].raw, samplings[0].media
        if moved:
            raw = join_prompts([each.raw for each in samplings]).select(rows)
            prompts = join_prompts([each.media.prompts for each in samplings]).select(rows)
            media = IterationMedia(prompts=prompts, scored=prompts.select)
        scores = select_scores(earned, rows)
        own = kept[rows].to(scores.valid.device)
        return Collected(
            raw=raw,
            media=media,
            rollout=select_rollout(sampled, rows),
            scores=replace(scores, valid=scores.valid & own[:, None]),
            samples=tuple(sample for each in samplings for sample in each.raw.samples),
            sampled=sampled,
            earned=earned,
            kept=kept,
            rows=tuple(rows),
            moved=moved,
            num_samplings=len(samplings),
        )
