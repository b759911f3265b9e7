"""Estimates time and disk space of a stage from its sizes; loads no torch.

Time is the number of operations of a step over a device's stated peak, at the stated shares of the peak that training
and sampling reach (`Shares`). A pass takes two operations for each parameter of its linear layers and token, four for
each attention pair and query value. A backward pass takes, in each part of the model, as much again for the gradient of
the weights if they train, and as much again for the gradient of the inputs if anything trains in the part or below it;
attention has no weights and two inputs, so its gradient takes twice as much. Checkpointing adds a forward pass. Left
out are attention within towers, evaluations, decoding of media, rewards, states and the start.
"""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from lightning_mmrl.planning.activations import BYTES
from lightning_mmrl.planning.engines import stage_estimate
from lightning_mmrl.planning.memory import Lengths
from lightning_mmrl.planning.shapes import ModelShape
from lightning_mmrl.planning.stacks import Stack
from lightning_mmrl.settings.lessons import answers_of, compares
from lightning_mmrl.settings.model import PARAMETER_GROUPS, TOWERS, AdapterSettings, frozen_parts
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import NodeSettings, StageSettings
from lightning_mmrl.types.costs import GRADIENT, SAMPLE, SCORE, UPDATE, Counts, Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """Shares of a device's peak that training and the sampling of tokens reach; assumptions."""

    training: float
    sampling: float


ON_GPU = Shares(training=0.4, sampling=0.04)
ON_CPU = Shares(training=0.6, sampling=0.2)
MEASURED = 768
"""Rows and columns of the matrices whose product is measured on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operations:
    """Operations of one step on all devices together: of scoring with its backward pass, and of sampling."""

    training: int
    sampling: int

    def seconds(self, peak: float, shares: Shares) -> float:
        """Seconds of the step at a peak of so many operations a second."""
        return self.training / (peak * shares.training) + self.sampling / (peak * shares.sampling)


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Bytes on disk: of one state, of all states that exist at a time, and of the handoff."""

    state: int
    states: int
    handoff: int


def operations(shape: ModelShape, stage: StageSettings, lengths: Lengths) -> Operations:
    """Counts the operations of a step in which all answers are as long as they may get."""
    algorithm, prompts, group = stage.algorithm, stage.data.batch_size, answers_of(stage)
    answer = lengths.answer if stage.sampling is None else stage.sampling.max_new_tokens
    work = Work.of([lengths.prompt] * prompts, [[answer] * group] * prompts)
    towers = {
        ("audio" if name == "audio" else "video") + (GRADIENT if trains_media(stage) else ""): prompts
        * lengths.media(name)
        for name in shape.stacks
        if name != "text"
    }
    models = 1 if algorithm is None or algorithm.critic is None else 2
    updates = models * (1 if algorithm is None else algorithm.update.num_epochs)
    fixed = compares(stage) + (algorithm is not None and not algorithm.update.on_policy)
    passes = {UPDATE: [work] * updates, SCORE: [work] * fixed, SAMPLE: [] if algorithm is None else [work]}
    counts = Counts(passes={name: sum(each, Work()) for name, each in passes.items()}, rows=towers)
    return counted_operations(shape, stage, counts, recomputed=stage.trainer.activation_checkpointing)


def counted_operations(
    shape: ModelShape, stage: NodeSettings, counts: Counts, *, recomputed: bool = False
) -> Operations:
    """The operations of counted work; reading the prompts that are sampled from counts as training.

    Args:
        shape: The model.
        stage: What trains, and so has a backward pass.
        counts: The tokens, each prompt once for its completions, and the feature rows of towers.
        recomputed: Whether the forward pass is done once more for the backward pass.
    """
    text, trains = shape.text, _Trains.of(stage)
    head = 2 * shape.vocabulary * text.width
    flows = trains.anything
    linear = {SAMPLE: 1, SCORE: 1, UPDATE: 1 + flows + trains.weights("text") + (recomputed and flows)}
    both = {SAMPLE: 1, SCORE: 1, UPDATE: 1 + 2 * flows + (recomputed and flows)}  # of attention and adapters
    added = trains.adapter("text", text)

    def read(work: Work, name: str) -> int:
        rest = _attention(text, work.prompt_pairs) + added * work.prompt_tokens
        return linear[name] * _linear(text) * work.prompt_tokens + both[name] * rest

    def written(work: Work, name: str) -> int:
        rest = _attention(text, work.completion_pairs) + added * work.completion_tokens
        return linear[name] * (_linear(text) + head) * work.completion_tokens + both[name] * rest

    scored = sum(read(work, name) + written(work, name) for name, work in counts.passes.items() if name != SAMPLE)
    sampled = counts.passes.get(SAMPLE, Work())
    towers = 0
    for name, rows in counts.rows.items():
        group = "audio" if name.startswith("audio") else "vision"
        if group in shape.stacks:
            towers += rows * _tower(shape.stacks[group], group, trains if GRADIENT in name else _Trains())
    return Operations(training=scored + read(sampled, SAMPLE) + towers, sampling=written(sampled, SAMPLE))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trains:
    """What of a model trains in a stage: the parts whose weights do, or adapters."""

    parts: frozenset[str] = frozenset()
    adapters: AdapterSettings | None = None

    @classmethod
    def of(cls, stage: NodeSettings) -> "_Trains":
        if not isinstance(stage, StageSettings):
            return cls()
        if stage.adapter is not None:
            return cls(adapters=stage.adapter)
        return cls(parts=frozen_parts(PARAMETER_GROUPS) - frozen_parts(stage.freeze))

    @property
    def anything(self) -> bool:
        """Whether there is a backward pass at all; it begins at the head, above everything that could train."""
        return bool(self.parts) or self.adapters is not None

    def weights(self, part: str) -> bool:
        """Whether the weights of a part train."""
        return part in self.parts

    def reaches(self, part: str, group: str) -> bool:
        """Whether the gradient of a part's inputs is needed, for the part itself or for an adapter in its group."""
        return part in self.parts or (self.adapters is not None and group in self.adapters.groups)

    def adapter(self, group: str, stack: Stack) -> int:
        """Operations of a group's adapter for one row."""
        adapters = self.adapters
        if adapters is None or group not in adapters.groups:
            return 0
        return 2 * stack.adapter_parameters(adapters.r, adapters.wanted)


def trains_media(stage: StageSettings) -> bool:
    """Whether a gradient reaches the outputs of the towers: if any tower or projector trains."""
    trains = _Trains.of(stage)
    return any(trains.reaches(part, group) for group in TOWERS for part in (f"{group}_tower", f"{group}_projector"))


def _tower(stack: Stack, group: str, trains: _Trains) -> int:
    """Operations for one feature row of a tower, with the backward pass of what trains in it."""
    tower, projector = f"{group}_tower", f"{group}_projector"
    inner, reached = trains.weights(tower), trains.reaches(tower, group)
    blocks = (1 + inner + reached) * _linear(stack) + (1 + inner) * 2 * stack.input_products
    blocks += 3 * trains.adapter(group, stack)
    products = sum(linear.inputs * linear.outputs for linear in stack.projector)
    return stack.rows_per_token * blocks + 2 * products * (1 + trains.weights(projector) + reached)


def disk(config: RunSettings, name: str, shape: ModelShape) -> Disk:
    """Counts what a stage writes: states hold all weights and the optimizer's state, a handoff all weights."""
    stage = config.trained[name]
    parts = stage_estimate(config, stage, shape, 1, Lengths()).phases["optimizer step"]
    state = parts.get("weights", 0) + parts.get("optimizer state", 0)
    # A new state is written before the oldest one goes.
    return Disk(
        state=state,
        states=(config.state.keep + 1) * state,
        handoff=shape.parameters * BYTES[config.model.dtype],
    )


def cpu_peak() -> float:
    """Operations a second of a short matrix product in float32, on all cores."""
    import numpy as np

    one = np.ones((MEASURED, MEASURED), dtype=np.float32)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        np.matmul(one, one)
        seconds.append(time.perf_counter() - start)
    return 2 * MEASURED**3 / min(seconds)


def free_bytes(folder: Path) -> int:
    """Free bytes of the disk on which a folder is or will be."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _linear(stack: Stack) -> int:
    """Operations of a stack's blocks for one row."""
    return 2 * stack.depth * sum(linear.inputs * linear.outputs for linear in stack.linears)


def _attention(stack: Stack, pairs: int) -> int:
    """Operations of attention in all blocks for so many pairs of positions."""
    return 4 * stack.depth * stack.queries * pairs
