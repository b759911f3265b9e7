"""Values that carry no tensors: samples, media references, scores, stage specifications and results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

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

    `total` is the weighted sum of `components`. With `valid=False` a verifier failed: the row leaves its group's
    statistics and the loss, it is never a silent zero; `reason` says what failed.
    """

    total: float
    components: Mapping[str, float]
    valid: bool = True
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """What the orchestrator knows of a stage: its name, place in the order, and where it starts from.

    `start_from` is "base" (the model the curriculum begins with), "previous" or the name of an earlier stage.
    `digest` is the hash of the stage's resolved configuration; a finished stage is reused only while it is unchanged.
    """

    name: str
    index: int
    kind: Literal["sft", "rl"]
    start_from: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What a finished stage left behind.

    `handoff` is the folder the next stage starts from, relative to the run directory; `handoff_digest` the hash of its
    weights. `metrics` are final values keyed `<stage>/<group>/<name>`; `seconds` maps a phase (train, evaluate) to wall
    time.
    """

    name: str
    handoff: str
    handoff_digest: str
    input_digest: str
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    tracking_id: str | None = None
