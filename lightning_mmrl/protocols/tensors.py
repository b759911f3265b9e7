"""Protocols of components that work on tensors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lightning_mmrl.types.batches import (
    CorrectionOutput,
    LossInputs,
    LossOutput,
    PromptBatch,
    Rollout,
    SamplingOrder,
    TimedRollout,
)
from lightning_mmrl.types.media import DecodedAudio, DecodedImage, DecodedVideo, OwnSizes
from lightning_mmrl.types.records import MediaKind, Message


class AdvantageEstimator(Protocol):
    """Turns the rewards of B groups of G completions into advantages; invalid rows get zero.

    The estimator gets the groups of all ranks, so that batch statistics do not depend on the number of ranks.
    """

    def __call__(self, rewards: Float[Tensor, "B G"], valid: Bool[Tensor, "B G"]) -> Float[Tensor, "B G"]: ...


class GroupSelector(Protocol):
    """Says which of B groups are trained on; `passed` is True for completions whose answer is right.

    Each group is judged by itself: the other groups do not matter.
    """

    def __call__(
        self, rewards: Float[Tensor, "B G"], passed: Bool[Tensor, "B G"], valid: Bool[Tensor, "B G"]
    ) -> Bool[Tensor, " B"]: ...


class CompletionSelector(Protocol):
    """Says how many times each completion is trained on; `candidates` is True where this number may be above zero.

    The selector gets the completions of all ranks. `step` is as in `Schedule`, and all randomness
    comes from the generator.
    """

    def __call__(
        self,
        advantages: Float[Tensor, "B G"],
        candidates: Bool[Tensor, "B G"],
        *,
        step: int | float,
        num_steps: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "B G"]: ...


class Ratio(Protocol):
    """Probability ratios of policy and sampling policy, one per token; 1 where the completion mask is False."""

    def __call__(self, inputs: LossInputs) -> Float[Tensor, "N C"]: ...


class Schedule(Protocol):
    """Maps a step, counted from 0, and the total number of steps to a multiplier.

    Under a budget, a step is a share of the number of steps, and no whole number.
    """

    def __call__(self, step: int | float, num_steps: int) -> float: ...


class PolicyLoss(Protocol):
    """An unreduced policy-gradient loss."""

    def __call__(self, inputs: LossInputs) -> LossOutput: ...


class TargetLoss(Protocol):
    """The unreduced loss of target tokens; log-probabilities are 0 where nothing is scored, and so are losses."""

    def __call__(self, logprobs: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]: ...


class Correction(Protocol):
    """Importance weights of token losses, for an engine whose log-probabilities differ from the policy's."""

    def __call__(
        self,
        old_logprobs: Float[Tensor, "N C"],
        sampler_logprobs: Float[Tensor, "N C"],
        completion_mask: Bool[Tensor, "N C"],
    ) -> CorrectionOutput: ...


class Aggregation(Protocol):
    """Reduces token losses to the loss of an optimizer step.

    `denominator` is additive over microbatches and ranks. `reduce` divides by its sum over the whole step, so that the
    losses of the microbatches add up to the loss of the step, however it is split.
    """

    def denominator(self, completion_mask: Bool[Tensor, "N C"]) -> Float[Tensor, ""]: ...

    def reduce(
        self, token_losses: Float[Tensor, "N C"], completion_mask: Bool[Tensor, "N C"], denominator: Float[Tensor, ""]
    ) -> Float[Tensor, ""]: ...


class RolloutEngine(Protocol):
    """Samples completions with a copy of the policy's weights.

    `reads_features` is True if prompts may hold tower outputs in place of the towers' inputs; an engine that runs its
    own towers accepts only inputs.
    """

    @property
    def reads_features(self) -> bool: ...

    def generate(
        self,
        prompts: PromptBatch,
        *,
        group_size: int,
        seeds: Sequence[Sequence[int]],
        greedy: bool = False,
        max_new_tokens: int | None = None,
    ) -> Rollout:
        """Samples `group_size` completions for each prompt; the noise of a row depends only on `seeds[b][g]`.

        A completion has at most `max_new_tokens` tokens; None means the engine's own limit.
        """
        ...

    def load_weights(self, policy: nn.Module, version: int) -> None:
        """Loads the policy's weights; afterwards, nothing that was computed with earlier weights is used."""
        ...

    def sleep(self) -> None:
        """Frees device memory until the next push or rollout; called when the sampling of an iteration is over."""
        ...

    def close(self) -> None:
        """Frees everything; called when the stage is over or has failed."""
        ...


class QueuedEngine(Protocol):
    """Samples beside its caller, with a copy of the policy's weights; orders and pushes are done first in, first out.

    So the completions of an order are of the last weights that were pushed before it, however long that takes.
    """

    def load_weights(self, policy: nn.Module, version: int) -> None:
        """Copies the policy's weights, for all orders that follow."""
        ...

    def submit(self, order: SamplingOrder) -> int:
        """Asks for completions; returns a ticket, at once. Prompts hold the towers' inputs."""
        ...

    def wait(self, ticket: int, poll: Callable[[], None] = lambda: None) -> TimedRollout:
        """Returns what an order asked for, as often as it is called; an error that `poll` raises ends the wait.

        Raises:
            RolloutError: The engine failed.
        """
        ...

    def release(self, ticket: int) -> None:
        """Forgets what an order asked for."""
        ...

    def close(self) -> None:
        """Frees everything; called when the stage is over or has failed."""
        ...


class PromptEncoder(Protocol):
    """Turns messages and decoded media into model inputs, and token ids into text; one class per model family.

    `family` is the family's name in messages, and `media_kinds` are the kinds of media that the encoder reads: encoding
    another kind raises MediaError. `own_sizes` are the bounds of its processor, None if it reads no pictures. Encoded
    media are mappings of tensors that may be cached under `fingerprint`.
    `encode_prompt` returns `input_ids` [P], `position_ids` [3, P], `next_position` [1] and the media tensors under the
    family's own names. A prompt and its answer may take `max_positions` positions. Any of `eos_token_ids` ends an
    answer, and the first one closes targets; `banned_token_ids` are never sampled. `encode_continuation` returns the
    tokens between a closed target and the next one of a conversation, or None if the next prompt does not begin with
    the first one and its target.

    `processor` and `config` are the checkpoint's own objects of transformers. An engine that has its own model builds
    that model from `engine_config`; the names of its weights start with `engine_prefix`. `released` wraps the policy's
    model as the released checkpoints hold it, so that it is saved in their layout.
    """

    @property
    def family(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def processor(self) -> Any: ...

    @property
    def config(self) -> Any: ...

    @property
    def pad_token_id(self) -> int: ...

    @property
    def eos_token_ids(self) -> Sequence[int]: ...

    @property
    def media_kinds(self) -> frozenset[MediaKind]: ...

    @property
    def own_sizes(self) -> OwnSizes | None: ...

    @property
    def max_positions(self) -> int: ...

    @property
    def engine_prefix(self) -> str: ...

    def engine_config(self) -> Any: ...

    def released(self, model: Any) -> Any: ...

    def banned_token_ids(self) -> Sequence[int]: ...

    def encode_image(self, image: DecodedImage) -> dict[str, Tensor]: ...

    def encode_video(self, video: DecodedVideo) -> dict[str, Tensor]: ...

    def encode_audio(self, audio: DecodedAudio) -> dict[str, Tensor]: ...

    def blank_image(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def blank_video(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def silent_audio(self, encoded: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def encode_prompt(
        self, messages: Sequence[Message], prefill: str, media: Sequence[Mapping[str, Tensor]], raw: str | None = None
    ) -> dict[str, Tensor]: ...

    def encode_target(self, text: str) -> list[int]: ...

    def encode_continuation(
        self, asked: Sequence[Message], target: str, again: Sequence[Message], prefill: str
    ) -> list[int] | None: ...

    def decode(self, token_ids: Sequence[int]) -> str: ...
