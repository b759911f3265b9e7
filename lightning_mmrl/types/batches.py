"""Tensor containers that flow through a stage; every shape of the project is written down here once.

Axes: `B` prompts on this rank, `G` completions per prompt, `N = B * G` (row i belongs to prompt i // G), `P` prompt
tokens (left-padded), `C` completion tokens (right-padded), `V` vocabulary. Log-probabilities are in nats.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_mmrl.settings.algorithm import PhaseSettings
from lightning_mmrl.types.records import Completion, Sample, Score


def _moved(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, _Movable):
        return value.moved(move)
    if isinstance(value, Mapping):
        return {key: _moved(item, move) for key, item in value.items()}
    return value


class _Movable:
    """Gives a frozen dataclass `.to(device)`, which Lightning needs to move it."""

    __slots__ = ()

    def to(self, device: torch.device | str) -> Self:
        """A copy with every tensor, also inside mappings, on `device`; copies of pinned ones run beside the host."""
        return self.moved(lambda tensor: tensor.to(device, non_blocking=tensor.is_pinned()))

    def pinned(self) -> Self:
        """A copy with every tensor in page-locked memory, from which a GPU copies beside the host; needs a GPU."""
        return self.moved(lambda tensor: tensor.pin_memory())

    def moved(self, move: Callable[[Tensor], Tensor]) -> Self:
        """A copy with `move(tensor)` in place of every tensor, also inside mappings."""
        moved = {field.name: _moved(getattr(self, field.name), move) for field in fields(self)}  # type: ignore[arg-type]
        return replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaInputs(_Movable):
    """The inputs of the media towers for B prompts, concatenated in prompt order; an absent kind of media has no key.

    `tensors` uses the model family's own argument names, such as `pixel_values_videos` (patches, features) or
    `input_features` (clips, mel bins, frames); patches are bytes that the backbone normalizes. `counts` maps each of
    these names to the number of rows that each prompt owns along that tensor's first axis, so that prompts can be
    selected. `keys` names the content of each prompt's media: "" where it is unknown, and () if it is unknown for all
    prompts.
    """

    tensors: Mapping[str, Tensor]
    counts: Mapping[str, tuple[int, ...]]
    keys: tuple[str, ...] = ()

    def select(self, rows: list[int]) -> "MediaInputs":
        """The media of the given prompts, in that order; names without any row are left out."""
        return _selected(self, rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFeatures(_Movable):
    """The outputs of the media towers for B prompts, concatenated in prompt order; prompts without media have none.

    `tensors` maps a kind of media to its feature rows [rows, F], `counts` to the number of rows that each prompt owns.
    A kind may have zero rows: the towers ran for the sake of other ranks, and the gradient of that kind is zero.
    `keys` is as in `MediaInputs`.
    """

    tensors: Mapping[str, Tensor]
    counts: Mapping[str, tuple[int, ...]]
    keys: tuple[str, ...] = ()

    def select(self, rows: list[int]) -> "MediaFeatures":
        """The features of the given prompts, in that order; kinds without any row are left out."""
        return _selected(self, rows)


_Media = TypeVar("_Media", MediaInputs, MediaFeatures)


def _selected(media: _Media, rows: list[int]) -> _Media:
    counts = {key: tuple(count[row] for row in rows) for key, count in media.counts.items()}
    counts = {key: count for key, count in counts.items() if any(count)}
    tensors = {}
    for key in counts:
        pieces = media.tensors[key].split(list(media.counts[key]))
        tensors[key] = torch.cat([pieces[row] for row in rows])
    return replace(media, tensors=tensors, counts=counts, keys=tuple(media.keys[row] for row in rows if media.keys))


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptBatch(_Movable):
    """B tokenized prompts with their media: the inputs of the towers, or their outputs once the towers have run.

    `position_ids` are the temporal, height and width rows of the model's rotary embedding. `next_position` is the
    position of the first completion token on all three axes. `serials` orders the prompts among those of all ranks, as
    the stage drew them; it is empty where the order is that of the ranks.
    """

    samples: tuple[Sample, ...]
    input_ids: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    position_ids: Int[Tensor, "3 B P"]
    next_position: Int[Tensor, " B"]
    media: MediaInputs | MediaFeatures
    serials: tuple[int, ...] = ()

    def select(self, rows: list[int]) -> "PromptBatch":
        """The given prompts, in that order; padding is kept."""
        index = torch.tensor(rows, dtype=torch.long).to(self.input_ids.device, non_blocking=True)
        return PromptBatch(
            samples=tuple(self.samples[row] for row in rows),
            input_ids=self.input_ids[index],
            prompt_mask=self.prompt_mask[index],
            position_ids=self.position_ids[:, index],
            next_position=self.next_position[index],
            media=self.media.select(rows),
            serials=tuple(self.serials[row] for row in rows) if self.serials else (),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SftBatch(_Movable):
    """B prompts with up to G targets each; `completion_mask` is True on the tokens that count in the loss.

    Samples that ask the same share a prompt. Row i belongs to prompt i // G, and a row without a target counts nothing.
    A batch of pairs has G = 2: the chosen answer of each prompt and then the rejected one.
    `samples` are those that the targets belong to, in the order of the rows with a target.
    """

    prompts: PromptBatch
    completion_ids: Int[Tensor, "N C"]
    completion_mask: Bool[Tensor, "N C"]
    samples: tuple[Sample, ...]

    @property
    def scoring(self) -> "ScoringBatch":
        """The targets, as a policy scores them."""
        return ScoringBatch(
            prompts=self.prompts,
            completion_ids=self.completion_ids,
            completion_mask=self.completion_mask,
            group_size=len(self.completion_ids) // len(self.prompts.input_ids),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout(_Movable):
    """G sampled completions for each of B prompts, N rows in all.

    `completion_mask` is True on sampled tokens up to and including the end-of-sequence token. `sampler_logprobs` are
    the engine's values of log_softmax(logits / T) with banned ids at minus infinity; if the engine sampled only from
    some of the tokens (top-p), their probabilities are scaled to sum to one. Where the mask is False,
    `sampler_logprobs` are zero. `policy_version` is, for each completion, the number of the last push before it was
    sampled. `decoding` has counts of passes and drafts, if the engine drafts tokens (`rollout.drafts.Tally`).
    """

    completion_ids: Int[Tensor, "N C"]
    completion_mask: Bool[Tensor, "N C"]
    sampler_logprobs: Float[Tensor, "N C"]
    completions: tuple[Completion, ...]
    group_size: int
    policy_version: Int[Tensor, " N"]
    decoding: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOrder(_Movable):
    """What an engine is asked to sample, perhaps while its caller goes on; `seeds` are [B][G].

    `limits` are those of the iteration that the completions are for: group size, longest completion and temperature.
    """

    prompts: PromptBatch
    seeds: Sequence[Sequence[int]]
    limits: PhaseSettings

    @property
    def temperature(self) -> float:
        """T of these completions."""
        assert self.limits.temperature is not None
        return self.limits.temperature

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `RolloutEngine.generate` beside the prompts."""
        limits = self.limits
        return {"group_size": limits.group_size, "seeds": self.seeds, "max_new_tokens": limits.max_new_tokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRollout(_Movable):
    """A rollout, and when it was sampled, in seconds since 1970; both times are 0 if another process sampled it."""

    rollout: Rollout
    seconds: float
    started_s: float = 0.0
    ended_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores(_Movable):
    """Rewards of a rollout; where `valid` is False, a verifier failed, and the value 0 must not be read.

    `details` are the scores as the rewards gave them, [B][G], with the reasons of failures.
    """

    rewards: Float[Tensor, "B G"]
    valid: Bool[Tensor, "B G"]
    components: Mapping[str, Float[Tensor, "B G"]]
    details: tuple[tuple[Score, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringBatch(_Movable):
    """Completions to be scored by a policy: `group_size` of them for each prompt."""

    prompts: PromptBatch
    completion_ids: Int[Tensor, "N C"]
    completion_mask: Bool[Tensor, "N C"]
    group_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOutput(_Movable):
    """Log-probabilities and entropies of given completions; both are zero where the completion mask is False."""

    logprobs: Float[Tensor, "N C"]
    entropy: Float[Tensor, "N C"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PairLogprobs(_Movable):
    """Log-probabilities of M pairs of answers, summed over the tokens of an answer, and its number of tokens.

    `reference_` values are those of the policy that the stage started from, and carry no gradient.
    """

    chosen: Float[Tensor, " M"]
    rejected: Float[Tensor, " M"]
    reference_chosen: Float[Tensor, " M"]
    reference_rejected: Float[Tensor, " M"]
    tokens_chosen: Float[Tensor, " M"]
    tokens_rejected: Float[Tensor, " M"]

    @property
    def log_ratio_chosen(self) -> Float[Tensor, " M"]:
        """The log-ratio of chosen answers to the reference: log pi - log pi_ref."""
        return self.chosen - self.reference_chosen

    @property
    def log_ratio_rejected(self) -> Float[Tensor, " M"]:
        """The log-ratio of rejected answers to the reference."""
        return self.rejected - self.reference_rejected


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs(_Movable):
    """The inputs of a policy-gradient loss; `old_logprobs` carry no gradient.

    An estimator that works on groups of completions gives all tokens of a completion the same advantage.
    """

    logprobs: Float[Tensor, "N C"]
    old_logprobs: Float[Tensor, "N C"]
    advantages: Float[Tensor, "N C"]
    completion_mask: Bool[Tensor, "N C"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossOutput(_Movable):
    """Unreduced losses, to be reduced by an aggregation.

    `clipped` is True where the clip, not the surrogate, determines the gradient. `ratios` are the probability ratios
    that the clip applies to. Where the completion mask is False, losses are 0, `clipped` is False and ratios are 1.
    """

    token_losses: Float[Tensor, "N C"]
    clipped: Bool[Tensor, "N C"]
    ratios: Float[Tensor, "N C"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionOutput(_Movable):
    """Detached importance weights of token losses, for the mismatch of sampler and trainer.

    `ratios` are the weights before they were bounded, and `clipped` is True where a bound decides. Where the completion
    mask is False, weights and ratios are 1 and `clipped` is False. `counted` is True once for each ratio: at every
    token that has its own ratio, and at the first of several tokens that share a ratio.
    """

    weights: Float[Tensor, "N C"]
    ratios: Float[Tensor, "N C"]
    clipped: Bool[Tensor, "N C"]
    counted: Bool[Tensor, "N C"]
