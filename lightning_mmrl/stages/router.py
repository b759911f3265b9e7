"""Sends each prompt of an RL iteration to RL, to SFT on its target, or nowhere, by its live pass rate."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_mmrl.algorithms.losses.cross_entropy import CrossEntropy
from lightning_mmrl.data.routing import standing_of
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.ops.masked import masked_sum
from lightning_mmrl.ops.packing import Budget
from lightning_mmrl.settings.algorithm import RouterSettings
from lightning_mmrl.stages.context import StageContext
from lightning_mmrl.stages.costs import Count
from lightning_mmrl.stages.experience import Experience
from lightning_mmrl.stages.microbatches import Prompts, microbatches
from lightning_mmrl.stages.rollout_table import rows_of
from lightning_mmrl.types.batches import ScoringBatch
from lightning_mmrl.types.records import Sample

RL, SFT, DROPPED = ROUTES = ("rl", "sft", "dropped")
LOSS = CrossEntropy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where a prompt goes, with the tokens of its target if that is SFT.

    `missing` says why a prompt that belongs to SFT stays in RL: there is no target that could be learned.
    """

    to: str = RL
    target: tuple[int, ...] = ()
    missing: str | None = None


class Router:
    """Switches between RL and SFT prompt by prompt, by the share of right answers among a prompt's G completions.

    Of the pass rate P of a prompt, the share of right ones among its completions with a valid score,

    - P >= solved_at_least drops the prompt;
    - else P <= unsolved_at_most sends it to SFT: its completions count nowhere, and its target is learned;
    - else, and if no score is valid or SFT has no target to learn, it goes to RL.

        loss = rl_coefficient * L_RL + sft_coefficient * L_SFT

    L_RL is the loss of the algorithm on the groups of RL, and the denominator of its aggregation counts these alone.
    L_SFT = -sum of log p over the tokens of targets / number of these tokens. Both denominators are of the whole
    optimizer step, over all microbatches and ranks, and both gradients make one step. p is as in RL: at the temperature
    of the iteration, over all tokens but the banned ones. Of a conversation the last assistant turn is the target.

    With a selection of groups, the groups of RL must pass it; a prompt of SFT has a place in the batch in any case, and
    a dropped one has none.

    This is the switch of HPT (arXiv:2509.04419): (alpha, beta) = (1, 0) if P > gamma, else (0, 1), with gamma =
    unsolved_at_most; its released scripts have 0 for Qwen and 2 of 8 for Llama. **Deviations** from HPT: the released
    code takes means over the tokens of each microbatch, of SFT and of RL apart; here each loss is a mean over the
    whole step, so that the split does not matter. Off-policy RL on demonstrations, which that code can put in the
    place of SFT, is left out. Solved prompts can be dropped.

    **Deviations** from ReLIFT (arXiv:2506.07527), which learns prompts with P = 0: it keeps them with solutions in a
    buffer, and takes a step of SFT with an optimizer of its own once the buffer holds a batch; here they are learned
    in the iteration that finds them. It has solutions collected online; here they are in the data.

    Args:
        settings: Bounds and coefficients.
        context: The stage's rewards, ranks and targets.

    Raises:
        ValueError: Prompts may go to SFT, and the context has no targets.
    """

    def __init__(self, settings: RouterSettings, context: StageContext) -> None:
        self._settings = settings
        self._context = context
        self._told = False
        if settings.unsolved_at_most is not None and context.target_tokens is None:
            raise ValueError("a router may send prompts to SFT; the context must have target_tokens for it")

    def rl_backward(self, backward: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        """Takes the RL loss of a microbatch, and passes it on with its coefficient."""
        return lambda loss: backward(self._settings.rl_coefficient * loss)

    def routes(self, experience: Experience) -> tuple[Route, ...]:
        """The route of each prompt of a scored rollout."""
        samples, component = experience.prompts.samples, self._context.rewards.pass_component
        rows = rows_of(samples, experience.rollout, experience.scores, component)
        lengths = experience.prompts.next_position.tolist()
        return tuple(self._route(row.pass_rate, row.sample, length) for row, length in zip(rows, lengths, strict=True))

    def _route(self, pass_rate: float | None, sample: Sample, length: int) -> Route:
        standing = standing_of(pass_rate, self._settings)
        if standing == "solved":
            return Route(to=DROPPED)
        if standing != "never_solved":
            return Route()
        assert self._context.target_tokens is not None
        found = self._context.target_tokens(sample, length)
        return Route(missing=found) if isinstance(found, str) else Route(to=SFT, target=tuple(found))

    def routed(self, batch: Experience, routes: Sequence[Route]) -> Experience:
        """The experience whose completions count for the prompts of RL alone, with the targets of those of SFT."""
        device = batch.trainable.device
        to_rl = torch.tensor([[route.to == RL] for route in routes]).to(device, non_blocking=True)
        width = max([1, *(len(route.target) for route in routes)])
        ids = torch.zeros(len(routes), width, dtype=torch.long)
        mask = torch.zeros(len(routes), width, dtype=torch.bool)
        for row, route in enumerate(routes):
            ids[row, : len(route.target)] = torch.tensor(route.target, dtype=torch.long)
            mask[row, : len(route.target)] = True
        return replace(
            batch,
            scores=replace(batch.scores, valid=batch.scores.valid & to_rl),
            trainable=batch.trainable & to_rl,
            targets=ScoringBatch(
                prompts=batch.prompts, completion_ids=ids.to(device), completion_mask=mask.to(device), group_size=1
            ),
        )

    def accumulate(
        self,
        policy: Policy,
        experience: Experience,
        minibatch: Sequence[int],
        *,
        prompts: Prompts,
        budget: Budget,
        count: Count,
        backward: Callable[[Tensor], None],
    ) -> dict[str, Tensor]:
        """Adds the gradient of the targets of a minibatch, microbatch by microbatch; returns their loss and number.

        Both are of all ranks, and the loss is without its coefficient.

        Args:
            policy: The policy that is updated.
            experience: The whole batch, routed.
            minibatch: This rank's prompts of the optimizer step.
            prompts: Gives the prompts of a microbatch with their media.
            budget: Of one microbatch.
            count: Takes the tokens that are computed.
            backward: Takes the loss of a microbatch.
        """
        batch, ranks = experience.targets, self._context.ranks
        assert batch is not None
        learned = learns(experience)
        rows = [row for row in minibatch if learned[row]]
        num_tokens = ranks.sum(batch.completion_mask[list(minibatch)].sum())
        total = torch.zeros((), dtype=torch.float64, device=num_tokens.device)  # also on a rank without a target
        parts = microbatches(batch, rows, budget=budget, ranks=ranks, prompts=prompts, count=count)
        for part, of_batch in parts:
            mask = part.completion_mask if of_batch is not None else torch.zeros_like(part.completion_mask)
            loss = masked_sum(LOSS(policy(part).logprobs), mask) / num_tokens.clamp(min=1)
            backward(self._settings.sft_coefficient * loss)
            total = total + loss.detach().double()
        return {"sft_loss": ranks.sum(total), "sft_tokens": num_tokens}

    def stats(self, routes: Sequence[Route]) -> dict[str, float]:
        """Shares of the routes among the prompts that all ranks sampled; says once that a target is missing."""
        own = Counter(route.to for route in routes), [route.missing for route in routes if route.missing]
        gathered = self._context.ranks.gather(own)
        counts, missing = sum((part for part, _ in gathered), Counter()), [why for _, part in gathered for why in part]
        if missing and not self._told:
            self._told = True
            self._context.say(
                f"{len(missing)} of {counts.total()} prompts are not solved and stay in RL, having no target to learn: "
                f"{missing[0]}; add it, or have algorithm.router.target write it"
            )
        shares = {f"route/{name}": counts[name] / counts.total() for name in ROUTES}
        return shares | {"route/without_target": len(missing) / counts.total()}


def learns(experience: Experience) -> list[bool]:
    """Tells for each prompt whether its target is learned."""
    if experience.targets is None:
        return [False] * len(experience.trainable)
    return experience.targets.completion_mask.any(-1).tolist()
