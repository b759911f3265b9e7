"""Checks that an engine samples from the policy: the same tokens, the same log-probabilities, the same media.

An engine that has a copy of the weights can silently differ from the policy: a push may miss a tensor, encoder outputs
of old weights may stay in a cache (trl issue 7198), or media may never reach the model. The first two show as a
difference between the log-probabilities of engine and trainer. The last one shows as no difference between a prompt
with and without its media.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.models.families.media_keys import AUDIO_FEATURES, AUDIO_MASK
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.tensors import RolloutEngine
from lightning_mmrl.types.batches import MediaInputs, PromptBatch, Rollout, ScoringBatch

TOLERANCES = {torch.float64: 1e-4, torch.float32: 1e-4}
"""By the dtype of the passes, the largest difference in nats between two log-probabilities of one token."""
COARSE = 0.5
"""The largest difference for all other dtypes, whose kernels round differently; it was not measured on a GPU."""


class ProvableEngine(RolloutEngine, Protocol):
    """An engine that also gives the distribution of the first token."""

    def first_logprobs(self, prompts: PromptBatch) -> list[Mapping[int, float]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """Compares an engine with the policy whose weights it was given.

    Attributes:
        every: Pushes between two comparisons. The engine is also compared at the start and after the first push; with
            0, only then.
        num_prompts: Number of prompts for a comparison; they are taken from the next iteration.
        max_new_tokens: Maximum number of tokens of each completion.
        tolerance: Largest difference of a token's log-probabilities in nats; None: 1e-4 for float32 weights, 0.5 for
            bfloat16 and float16.
    """

    every: int = 50
    num_prompts: int = 4
    max_new_tokens: int = 16
    tolerance: float | None = None

    def due(self, num_pushes: int) -> bool:
        """Whether to compare after so many pushes in this stage, including the push at its start.

        >>> [number for number in range(1, 120) if Canary().due(number)]
        [1, 2, 52, 102]
        """
        return num_pushes <= 2 or (self.every > 0 and (num_pushes - 2) % self.every == 0)

    @torch.no_grad()
    def check(self, engine: ProvableEngine, trainer: RolloutEngine, policy: Policy, prompts: PromptBatch) -> float:
        """Compares, and returns the largest difference of a token's log-probabilities in nats.

        Args:
            engine: The engine to be checked.
            trainer: Samples with the policy itself.
            policy: The policy with the trainer's weights.
            prompts: Prompts whose media are inputs of the towers.

        Raises:
            RolloutError: The engine samples other tokens, gives them other log-probabilities, or ignores media.
        """
        prompts = prompts.select(list(range(min(self.num_prompts, len(prompts.samples)))))
        usual = TOLERANCES.get(policy.compute_dtype, COARSE)
        bound = usual if self.tolerance is None else self.tolerance
        # Without dropout; afterwards mode and counters are as before.
        training, media = policy.training, policy.media
        before = media.tower_prompts, media.cache_hits
        policy.eval()
        try:
            largest = self._compare_logprobs(engine, policy, prompts, bound)
            self._compare_tokens(engine, trainer, policy, prompts, bound)
            for kind, key in media.backbone.tower_inputs.items():
                _require_sense(engine, kind, key, prompts)
        finally:
            policy.train(training)
            media.tower_prompts, media.cache_hits = before
        return largest

    def _compare_logprobs(self, engine: RolloutEngine, policy: Policy, prompts: PromptBatch, bound: float) -> float:
        inputs = policy.media.backbone.tower_inputs
        seeds = [[row] for row in range(len(prompts.samples))]
        rollout = engine.generate(prompts, group_size=1, seeds=seeds, max_new_tokens=self.max_new_tokens)
        gaps = (_scored(policy, prompts, rollout) - rollout.sampler_logprobs).abs().amax(-1)
        worst = int(gaps.nan_to_num(torch.inf).argmax())
        gap = float(gaps[worst])
        if not gap <= bound:
            raise RolloutError(
                f"the engine's log-probabilities are up to {gap:.3g} nats from the trainer's, for sample "
                f"{_named(prompts, worst, inputs)}; they may differ by {bound:.3g} (rollout.canary.tolerance)"
            )
        return gap

    def _compare_tokens(
        self, engine: RolloutEngine, trainer: RolloutEngine, policy: Policy, prompts: PromptBatch, bound: float
    ) -> None:
        """Greedy tokens may first differ only where the trainer finds both equally likely, within twice the bound."""
        limit, seeds = self.max_new_tokens, [[row] for row in range(len(prompts.samples))]
        theirs = engine.generate(prompts, group_size=1, seeds=seeds, greedy=True, max_new_tokens=limit)
        own = trainer.generate(prompts, group_size=1, seeds=seeds, greedy=True, max_new_tokens=limit)
        scored, inputs = _scored(policy, prompts, theirs), policy.media.backbone.tower_inputs
        for row in range(len(prompts.samples)):
            wanted, got = (each.completion_ids[row][each.completion_mask[row]].tolist() for each in (own, theirs))
            pairs = zip(wanted, got, strict=False)
            place = next((place for place, (first, second) in enumerate(pairs) if first != second), None)
            if place is None:
                continue
            gap = float(own.sampler_logprobs[row, place] - scored[row, place])
            if gap > 2 * bound:
                name = _named(prompts, row, inputs)
                raise RolloutError(
                    f"the engine's greedy token {place + 1} for sample {name} is {got[place]}, the "
                    f"trainer's {wanted[place]} is {gap:.3g} nats likelier"
                )


def _require_sense(engine: ProvableEngine, kind: str, key: str, prompts: PromptBatch) -> None:
    """Refuses an engine whose probabilities do not change when media of a kind are blanked."""
    media = prompts.media
    assert isinstance(media, MediaInputs), "an engine that is compared has towers of its own"
    rows = [row for row in range(len(prompts.samples)) if _tells(media.select([row]), key)]
    if not rows:
        return
    shown, media = prompts.select(rows), media.select(rows)
    inputs = media.tensors[key]
    # Silence is a constant spectrogram at its floor; a frame of the processors' mean color is constant zero.
    nothing = torch.full_like(inputs, float(inputs.min())) if kind == "audio" else torch.zeros_like(inputs)
    media = replace(media, tensors={**media.tensors, key: nothing}, keys=())
    with_it, without = engine.first_logprobs(shown), engine.first_logprobs(replace(shown, media=media))
    for row, (first, second) in enumerate(zip(with_it, without, strict=True)):
        if first == second:
            name = _named(shown, row, {kind: key})
            raise RolloutError(
                f"the engine gives the same probabilities with and without {kind} for sample {name}: "
                f"the {kind} does not reach its model"
            )


def _tells(media: MediaInputs, key: str) -> bool:
    """Whether a prompt has media of a kind that are not constant: blanking a silent sound would change nothing."""
    if not any(media.counts.get(key, ())):
        return False
    values = media.tensors[key]
    if key == AUDIO_FEATURES:
        values = values.transpose(1, 2)[media.tensors[AUDIO_MASK].bool()]
    return bool(values.min() < values.max())


def _scored(policy: Policy, prompts: PromptBatch, rollout: Rollout) -> Float[Tensor, "B C"]:
    """The trainer's log-probabilities of an engine's samples, one completion per prompt."""
    ids, mask = rollout.completion_ids, rollout.completion_mask
    return policy(ScoringBatch(prompts=prompts, completion_ids=ids, completion_mask=mask, group_size=1)).logprobs


def _named(prompts: PromptBatch, row: int, inputs: Mapping[Any, str]) -> str:
    """The name of a sample and the kinds of its media, for messages."""
    kinds = [kind for kind, key in inputs.items() if prompts.select([row]).media.counts.get(key)]
    return f"{prompts.samples[row].id} ({' and '.join(kinds) or 'text'})"
