"""Values that carry no tensors: samples, media references, scores, stage specifications and results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_mmrl.settings.stage import StageSettings

MediaKind = Literal["image", "video", "audio"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn of a conversation; `<image>`, `<video>` and `<audio>` tags mark where media go.

    >>> Message(role="user", content="<video><audio>Which emotion?").role
    'user'
    """

    role: Role
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaRef:
    """A media file below the dataset's `media_root`, with an optional time span in seconds."""

    kind: MediaKind
    path: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One line of a manifest.

    `media` lists references in the order of their tags in `messages`; all of one kind keep the manifest's order.
    `extras` holds every further manifest column and is passed on to rewards.
    """

    id: str
    messages: tuple[Message, ...]
    media: tuple[MediaRef, ...] = ()
    solution: str | None = None
    speaker: str | None = None
    split: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One sampled answer as rewards and evaluation see it.

    `text` has any pre-filled opening (such as `<think>`) prepended. `truncated` is True when the length limit, not an
    end-of-sequence token, ended it.
    """

    text: str
    num_tokens: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The reward of one completion.

    `total` is the weighted sum of `components`. With `valid=False` a verifier failed: the row is left out of its
    group's statistics and of the loss, and never counts as zero. `reason` says why. `failed` names the component that
    failed; it is None if the component is unknown, or if no component failed.
    """

    total: float
    components: Mapping[str, float]
    valid: bool = True
    reason: str | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """A stage as the orchestrator sees it: its name, its place in the order, and its settings.

    `content` is the resolved configuration that determines the outcome, from dotted keys to values. `digest` is the
    hash of this content and of the digests of the stages that the stage builds on; a finished stage is reused only
    while its digest is unchanged. `evaluation` is the hash of the settings with which the stage's handoff is evaluated.
    """

    name: str
    index: int
    settings: StageSettings
    digest: str
    content: Mapping[str, Any] = field(default_factory=dict)
    evaluation: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The outcome of a stage's training.

    `metrics` are the last values keyed `<group>/<name>`. Of `num_steps` steps, `num_skipped` were skipped in whole or
    in one of their updates, because a number was not finite. `changed` says whether any weight differs from the start;
    None: unknown.
    """

    metrics: Mapping[str, float]
    num_steps: int
    num_skipped: int = 0
    changed: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """The result of a finished stage.

    `handoff` is the folder the next stage starts from, relative to the run directory. `handoff_digest` is the hash of
    its files. `handoff_seal` is the hash of its seal, which also covers the facts that the handoff states about itself.
    `metrics` are final values keyed `<stage>/<group>/<name>`; `seconds` maps a phase (train, evaluate) to wall time.
    `num_steps`, `num_skipped` and `changed` are as in `Training`. A field that a manifest lacks is None.
    """

    name: str
    handoff: str
    handoff_digest: str
    input_digest: str
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    tracking_id: str | None = None
    num_steps: int | None = None
    num_skipped: int | None = None
    changed: bool | None = None
    handoff_seal: str | None = None
