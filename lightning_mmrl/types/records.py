"""Values that carry no tensors: samples, media references, scores, stage specifications and results."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_mmrl.settings.stage import NodeSettings
from lightning_mmrl.types.costs import StageCosts

MediaKind = Literal["image", "video", "audio"]
Role = Literal["system", "user", "assistant"]
ArtifactType = Literal["weights", "table", "manifest"]
"""`weights`: a Hugging Face folder; `table`: a rollout table; `manifest`: samples that a stage can train on."""

HANDOFF = "handoff"
"""Name of the artifact that a trained stage makes: its weights."""
WEIGHTS = "weights"
"""Name of the input that is the starting point of a stage."""


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

    `media` lists references in the order of their tags in `messages`; media of one kind keep the manifest's order.
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

    `total` is the weighted sum of `components`. With `valid=False` a verifier failed: the completion is left out of its
    group's statistics and of the loss, and never counts as zero. `reason` says why. `failed` names the component that
    failed; it is None if the component is unknown, or if no component failed.
    """

    total: float
    components: Mapping[str, float]
    valid: bool = True
    reason: str | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """An artifact of a stage that another stage reads, and the type that it must have."""

    stage: str
    artifact: str
    type: ArtifactType = "manifest"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """A stage as the orchestrator sees it: its name, its place in the order, its settings, its inputs and its outputs.

    `inputs` maps each input to the artifact that it reads. A stage that starts from the base model has no edge for its
    weights; `reads_weights` is False for a stage that reads no weights at all. `outputs` maps the name of each artifact
    to its type. `seed` decides all random numbers of the stage.
    `content` is the resolved configuration that determines the outcome, from dotted keys to values. `digest` is the
    hash of this content and of the digests of the stages that the stage builds on; a finished stage is reused only
    while its digest is unchanged. `evaluation` is the hash of the settings with which the stage's handoff is evaluated.
    """

    name: str
    index: int
    settings: NodeSettings
    inputs: Mapping[str, Edge] = field(default_factory=dict)
    outputs: Mapping[str, ArtifactType] = field(default_factory=lambda: {HANDOFF: "weights"})
    reads_weights: bool = True
    seed: int = 0
    digest: str = ""
    content: Mapping[str, Any] = field(default_factory=dict)
    evaluation: str = ""

    @property
    def trains(self) -> bool:
        """True if the stage makes weights."""
        return HANDOFF in self.outputs

    @property
    def source(self) -> str | None:
        """Name of the stage whose weights the stage starts from; None for the base model, or for no weights."""
        edge = self.inputs.get(WEIGHTS)
        return None if edge is None else edge.stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The outcome of running a stage.

    `metrics` are the last values keyed `<group>/<name>`. Of `num_steps` steps, `num_skipped` were skipped in whole or
    in one of their updates, because a number was not finite. `changed` says whether any weight differs from the start;
    None: unknown. `costs` sums up all steps; None for a stage without steps.
    """

    metrics: Mapping[str, float]
    num_steps: int
    num_skipped: int = 0
    changed: bool | None = None
    costs: StageCosts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A sealed folder that a stage made.

    `path` is relative to the run directory. `digest` is the hash of the files. `seal` is the hash of the seal, which
    also covers the facts that the folder states about itself; None if an older version wrote the folder.
    """

    path: str
    digest: str
    seal: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """The result of a finished stage.

    `artifacts` maps the name of each output to its folder. `inputs` maps each input to the digest of the files that
    were read. `metrics` are final values keyed `<stage>/<group>/<name>`; `seconds` maps a phase (train, evaluate) to
    wall time. `num_steps`, `num_skipped`, `changed` and `costs` are as in `Training`; one that a manifest lacks is
    None. `empty_inputs` maps each input that held no sample to the reason; `idle` says that nothing was left to do.
    """

    name: str
    artifacts: Mapping[str, Artifact]
    inputs: Mapping[str, str]
    metrics: Mapping[str, float]
    seconds: Mapping[str, float]
    tracking_id: str | None = None
    num_steps: int | None = None
    num_skipped: int | None = None
    changed: bool | None = None
    costs: StageCosts | None = None
    empty_inputs: Mapping[str, str] = field(default_factory=dict)
    idle: bool = False

    @property
    def handoff(self) -> Artifact | None:
        """The weights that the stage made, if it made any."""
        return self.artifacts.get(HANDOFF)

    def spent(self, measure: str) -> int | float | None:
        """The part that the stage took of a budget in `flops`, `steps` or `seconds`; None if that is not known.

        A stage that trains nothing takes no steps, and no operations if it measured no costs. Without measured costs
        the seconds are those of the whole stage but its evaluation.
        """
        trained, costs = self.handoff is not None, self.costs
        if measure == "steps":
            return (self.num_steps or 0) if trained else 0
        if costs is None and measure == "seconds":
            return self.seconds.get("train", self.seconds.get("run", 0.0))
        if costs is None:
            return None if trained and self.num_steps else 0
        return None if measure == "flops" and not costs.operations and costs.num_steps else costs.spent(measure)
