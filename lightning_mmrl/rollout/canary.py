"""Checks that an engine samples from the policy: the same tokens, the same log-probabilities, the same media.

An engine that has a copy of the weights can silently differ from the policy: a push may miss a tensor, encoder outputs
of old weights may stay in a cache (trl issue 7198), or media may never reach the model. The first two show as a
difference between the log-probabilities of engine and trainer. The last one shows as no difference between a prompt
with and without its media.
"""

import math
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
from lightning_mmrl.rollout.bounds import USUAL, Bounds
from lightning_mmrl.types.batches import MediaInputs, PromptBatch, Rollout, ScoringBatch


class ProvableEngine(RolloutEngine, Protocol):
    """An engine that also gives the distribution of the first token."""

    def first_logprobs(self, prompts: PromptBatch) -> list[Mapping[int, float]]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The differences between the log-probabilities of an engine and of the trainer, in nats.

    Attributes:
        median: Median over all compared tokens.
        high: The quantile that the bounds name.
        largest: The largest one.
        num_tokens: Number of compared tokens.
        doubt: What was found in one sentence, if something is outside its bound without being gross.
    """

    median: float
    high: float
    largest: float
    num_tokens: int
    doubt: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """Compares an engine with the policy whose weights it was given.

    A **gross** difference ends the run at once: a quantile of the differences is several times its bound
    (`bounds.Bounds`), a greedy token is one that the trainer finds far less likely, or media do not reach the model. A
    **doubtful** one, above its bound but not gross, is only warned of, and the next push is compared as well.
    `patience` doubtful comparisons in a row end the run. In float32 every difference outside its bound is gross.

    Attributes:
        every: Pushes between two comparisons. The engine is also compared at the start and after the first push; with
            0, only then and after a doubt.
        num_prompts: Number of prompts for a comparison; they are taken from the next iteration.
        max_new_tokens: Maximum number of tokens of each completion.
        tolerance: Bound in nats of the 99th percentile of the differences in half precision, where the median has a
            tenth of it, and of all differences otherwise. None: by the type of the passes, 0.5 for bfloat16 and 1e-4
            for float32 (`bounds.USUAL`).
        patience: Doubtful comparisons in a row that end the run.

    Raises:
        ValueError: `patience` is below 1.
    """

    every: int = 50
    num_prompts: int = 8
    max_new_tokens: int = 32
    tolerance: float | None = None
    patience: int = 3

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise ValueError(f"rollout.canary.patience is {self.patience}; it must be at least 1")

    def due(self, num_pushes: int) -> bool:
        """Whether to compare after so many pushes in this stage, including the push at its start.

        >>> [number for number in range(1, 120) if Canary().due(number)]
        [1, 2, 52, 102]
        """
        return num_pushes <= 2 or (self.every > 0 and (num_pushes - 2) % self.every == 0)

    def bounds(self, dtype: torch.dtype) -> Bounds:
        """The bounds for passes of a type."""
        usual = USUAL[dtype]
        return usual if self.tolerance is None else usual.with_high(self.tolerance)

    @torch.no_grad()
    def check(self, engine: ProvableEngine, trainer: RolloutEngine, policy: Policy, prompts: PromptBatch) -> Comparison:
        """Compares, and returns the differences, with the doubt if there is one.

        Args:
            engine: The engine to be checked.
            trainer: Samples with the policy itself.
            policy: The policy with the trainer's weights.
            prompts: Prompts whose media are inputs of the towers.

        Raises:
            RolloutError: The engine samples other tokens, gives them grossly different log-probabilities, or ignores
                media.
        """
        prompts = prompts.select(list(range(min(self.num_prompts, len(prompts.samples)))))
        bounds = self.bounds(policy.compute_dtype)
        # Compared without dropout; afterwards mode and counters are as before.
        training, media = policy.training, policy.media
        before = media.tower_prompts, media.cache_hits
        policy.eval()
        try:
            found = self._compare_logprobs(engine, policy, prompts, bounds)
            token_doubt = self._compare_tokens(engine, trainer, policy, prompts, bounds)
            for kind, key in media.backbone.tower_inputs.items():
                _require_sense(engine, kind, key, prompts)
        finally:
            policy.train(training)
            media.tower_prompts, media.cache_hits = before
        return replace(found, doubt=found.doubt or token_doubt)

    def _compare_logprobs(
        self, engine: RolloutEngine, policy: Policy, prompts: PromptBatch, bounds: Bounds
    ) -> Comparison:
        seeds = [[row] for row in range(len(prompts.samples))]
        rollout = engine.generate(prompts, group_size=1, seeds=seeds, max_new_tokens=self.max_new_tokens)
        mask = rollout.completion_mask
        gaps = (_scored(policy, prompts, rollout) - rollout.sampler_logprobs).abs().nan_to_num(torch.inf)
        median, high = bounds.quantiles(gaps[mask])
        found = Comparison(median=median, high=high, largest=float(gaps[mask].max()), num_tokens=int(mask.sum()))
        excess = max(median / bounds.median, high / bounds.high, 0 if math.isfinite(found.largest) else math.inf)
        if excess <= 1:
            return found
        worst = int((gaps.masked_fill(~mask, 0).sum(-1) / mask.sum(-1)).argmax())
        name = _named(prompts, worst, policy.media.backbone.tower_inputs)
        said = (
            f"the engine's log-probabilities are up to {found.largest:.3g} nats from the trainer's, for sample {name} "
            f"above all; over {found.num_tokens} tokens the median is {median:.3g} and the "
            f"{_ordinal(bounds.quantile)} {high:.3g}, where at most {bounds.median:.3g} and {bounds.high:.3g} are "
            "usual (rollout.canary.tolerance)"
        )
        if excess > bounds.gross:
            raise RolloutError(said)
        return replace(found, doubt=said)

    def _compare_tokens(
        self, engine: RolloutEngine, trainer: RolloutEngine, policy: Policy, prompts: PromptBatch, bounds: Bounds
    ) -> str | None:
        """Greedy tokens may first differ only where the trainer finds both equally likely, within twice the bound."""
        limit, seeds = self.max_new_tokens, [[row] for row in range(len(prompts.samples))]
        theirs = engine.generate(prompts, group_size=1, seeds=seeds, greedy=True, max_new_tokens=limit)
        own = trainer.generate(prompts, group_size=1, seeds=seeds, greedy=True, max_new_tokens=limit)
        scored, inputs, doubt = _scored(policy, prompts, theirs), policy.media.backbone.tower_inputs, None
        for row in range(len(prompts.samples)):
            wanted, got = (each.completion_ids[row][each.completion_mask[row]].tolist() for each in (own, theirs))
            pairs = zip(wanted, got, strict=False)
            place = next((place for place, (first, second) in enumerate(pairs) if first != second), None)
            if place is None:
                continue
            gap = float(own.sampler_logprobs[row, place] - scored[row, place])
            said = (
                f"the engine's greedy token {place + 1} for sample {_named(prompts, row, inputs)} is {got[place]}, the "
                f"trainer's {wanted[place]} is {gap:.3g} nats likelier"
            )
            if gap > 2 * bounds.gross * bounds.high:
                raise RolloutError(said)
            doubt = said if gap > 2 * bounds.high else doubt
        return doubt


def _require_sense(engine: ProvableEngine, kind: str, key: str, prompts: PromptBatch) -> None:
    """Refuses an engine whose probabilities do not change when media of a kind are blanked."""
    media = prompts.media
    assert isinstance(media, MediaInputs), "an engine that is compared has towers of its own"
    rows = [row for row in range(len(prompts.samples)) if _tells(media.select([row]), key)]
    if not rows:
        return
    shown, media = prompts.select(rows), media.select(rows)
    inputs = media.tensors[key]
    # Silence is a constant spectrogram at its floor; bytes of zero are black.
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


def _ordinal(quantile: float) -> str:
    """A quantile in words, for messages."""
    return "maximum" if quantile == 1 else f"{100 * quantile:g}th percentile"


def _named(prompts: PromptBatch, row: int, inputs: Mapping[Any, str]) -> str:
    """The name of a sample and the kinds of its media, for messages."""
    kinds = [kind for kind, key in inputs.items() if prompts.select([row]).media.counts.get(key)]
    return f"{prompts.samples[row].id} ({' and '.join(kinds) or 'text'})"
