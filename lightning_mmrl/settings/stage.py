"""Keys of one stage, and of the devices it runs on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightning_mmrl.settings.algorithm import AlgorithmSettings, RewardSettings, SamplingSettings
from lightning_mmrl.settings.data import PromptSettings, StageDataSettings
from lightning_mmrl.settings.model import FREEZE_GROUPS, AdapterSettings
from lightning_mmrl.settings.setting import REQUIRED, setting, target

BASE, PREVIOUS = "base", "previous"
"""Values of `start_from` that name no stage."""
ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
AUTO = "auto"
SHARDED_PRECISIONS = ("32-true", "64-true", "bf16-mixed")
"""Precisions that fsdp2 runs."""
PRECISIONS = (AUTO, *SHARDED_PRECISIONS, "16-mixed")
HALF_PASSES = {"bf16-mixed": "bfloat16", "16-mixed": "float16"}
"""Precisions that compute in half precision while weights that train are kept in float32, and what they compute in."""
STRATEGIES = ("auto", "ddp", "fsdp2")
END, SKIP = "end", "skip"
"""Values of `when_empty`."""


@dataclass
class Bound:
    """A metric and the range of values that meet the bound, with both ends.

    >>> Bound(metric="validation/uar", at_least=0.7).met({"validation/uar": 0.7})
    True
    """

    metric: str = REQUIRED
    """`<set>/<metric>` of the stage, such as validation/uar or test/war."""
    at_least: float | None = setting(None)
    """Smallest value that meets the bound; null: any."""
    at_most: float | None = setting(None)
    """Largest value that meets the bound; null: any."""

    def met(self, metrics: Mapping[str, float]) -> bool:
        """True if `metrics` has this metric and its value is within the bound; NaN never is."""
        value = metrics.get(self.metric, math.nan)
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= value <= high

    def __str__(self) -> str:
        sides = [("at least", self.at_least), ("at most", self.at_most)]
        return f"{self.metric} " + " and ".join(f"{word} {value:g}" for word, value in sides if value is not None)


@dataclass
class TrainerSettings:
    """Devices, how a stage is spread over them, and precision."""

    accelerator: str = setting("auto", choices=ACCELERATORS)
    """Kind of device: auto, cpu, gpu, cuda or mps."""
    devices: int = setting(1, at_least=1)
    """Devices of each node."""
    num_nodes: int = setting(1, at_least=1)
    """Machines that take part."""
    strategy: str = setting("auto", choices=STRATEGIES)
    """`ddp`: all weights on every device; `fsdp2`: weights, gradients and optimizer state sharded; `auto`: ddp if there
    are several devices."""
    activation_checkpointing: bool = False
    """Compute activations of decoder layers and tower blocks again in the backward pass, in place of keeping them."""
    cpu_offload: bool = False
    """With fsdp2: keep shards and optimizer state in host memory."""
    precision: str = setting("32-true", choices=PRECISIONS)
    """Lightning's name of the precision: `32-true` computes in the type of the weights and `64-true` in float64;
    `bf16-mixed` and `16-mixed` compute in bfloat16 and float16, and keep weights that train in float32. `auto`:
    bf16-mixed for a bfloat16 model, 32-true for any other."""
    tokens_per_microbatch: int = setting(16_384, at_least=1)
    """Token budget of stages that give none of their own, in `tokens_per_microbatch` or `algorithm.update`."""
    gpu_memory_gb: int | None = setting(None, at_least=1)
    """Memory of each device in GB (10^9 bytes), which no stage may exceed in the plan; null: any."""
    gpu_teraflops: float | None = setting(None, above=0)
    """Stated peak of each device in 10^12 bfloat16 operations a second, for the plan's time; null: unknown."""
    num_threads: int | None = setting(None, at_least=1)
    """Threads of torch on a CPU; null leaves torch's own choice."""
    max_steps: int | None = setting(None, at_least=1)
    """Cap on the steps of a stage, or on its batches if it does not train, for debugging; null for none."""

    @property
    def world_size(self) -> int:
        """Ranks of the job."""
        return self.devices * self.num_nodes

    @property
    def shards(self) -> bool:
        """True if weights are sharded over the ranks."""
        return self.strategy == "fsdp2"

    @property
    def mixed(self) -> bool:
        """True if passes compute in half precision while weights that train are kept in float32."""
        return self.precision in HALF_PASSES

    def computes(self, dtype: str) -> str:
        """The type in which linear layers compute if weights are loaded in `dtype`.

        >>> TrainerSettings(precision="bf16-mixed").computes("float32"), TrainerSettings().computes("float32")
        ('bfloat16', 'float32')
        """
        return "float64" if self.precision == "64-true" else HALF_PASSES.get(self.precision, dtype)


@dataclass
class NodeSettings:
    """One stage of any kind."""

    kind: str = REQUIRED
    """sft, rl, dpo, sample, filter, route or bridge; or the import path of a module of your own that holds a `KIND`."""
    start_from: str = PREVIOUS
    """base, previous (the last trained stage before) or the name of an earlier trained stage."""
    checkpoint: str | None = setting(None, texts=False)
    """Folder or hub id that the stage starts from, in the place of `start_from`; null: `start_from` counts."""
    data: StageDataSettings = field(default_factory=StageDataSettings)
    """The samples that the stage reads."""
    prompt: PromptSettings | None = None
    """Texts around each sample in this stage; null for the run's `prompt`."""
    sampling: SamplingSettings | None = None
    """How completions are sampled, for stages that sample."""
    rewards: RewardSettings | None = None
    """How completions are scored, for stages that sample."""
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    """Devices and precision."""


@dataclass
class DataStageSettings(NodeSettings):
    """One stage that makes data from data and runs no model; its batch size has no effect."""

    data: StageDataSettings = field(default_factory=partial(StageDataSettings, batch_size=1))
    """The samples that the stage reads."""


@dataclass
class StageSettings(NodeSettings):
    """One stage that trains."""

    module: Any = target()
    """`_target_` of the LightningModule."""
    num_steps: int | None = setting(None, at_least=1)
    """Optimizer steps (sft, dpo) or iterations (rl); null if num_epochs says how long the stage is."""
    num_epochs: float | None = setting(None, above=0)
    """Passes over the stage's data, such as 2 or 0.5, in the place of num_steps; null: num_steps counts."""
    optimizer: Any = target()
    """`_target_` of the optimizer, a partial that gets the parameters."""
    schedule: Any = target()
    """`_target_` of the learning rate's multiplier by step."""
    max_grad_norm: float = setting(1.0, above=0, infinite=True)
    """Norm above which gradients are scaled down; infinity: never."""
    freeze: list[str] = setting(factory=list, choices=FREEZE_GROUPS)
    """Parameter groups that do not train: vision, audio (each a tower with its projector), text, vision_tower,
    audio_tower (each a tower without its projector) and projector (the projectors of all towers)."""
    adapter: AdapterSettings | None = None
    """LoRA layers that train while all weights stay as they are; null: the weights train."""
    validate_every: int | None = None
    """Steps between validations; null for none."""
    keep_best: bool = False
    """Keep the weights of the best validation too, the first one of equals, as a complete folder `best` beside the
    handoff; best is the largest headline metric of the task."""
    algorithm: AlgorithmSettings | None = None
    """The algorithm of an rl stage."""
    rollout_table_every: int = setting(10, at_least=1)
    """Iterations between two rollout tables on disk."""
    reflection_words: list[str] = setting(factory=list)
    """Words and phrases whose share of an rl stage's responses is a metric, apart for right and wrong answers, and with
    it the share of repeated n-grams; empty: no such metrics."""
    when_empty: str = setting(END, choices=(END, SKIP))
    """If other stages make all the stage's data and made no sample: `end` ends the run with the reasons; `skip` hands
    on the weights that the stage starts from."""
    stop_when: Bound | None = None
    """The stage ends at the first validation that meets this bound; null: it runs all its steps."""
    cooldown_steps: int = 0
    """Steps after that validation, over which the learning rate falls linearly to zero."""
    max_bad_steps: int = setting(10, at_least=0)
    """Steps that may be skipped because a number was not finite; one more, or more than half of all, ends the run."""
    gate: Bound | None = None
    """The curriculum continues after this stage only if this bound holds; null: always."""
    evaluation_sets: list[str] | None = None
    """Names in evaluation.sets on which the handoff is evaluated; null: all."""

    @property
    def validation_decides(self) -> bool:
        """Whether validations decide what the stage makes."""
        return self.stop_when is not None or self.keep_best

    @property
    def steps(self) -> int:
        """The number of steps of a stage whose length is known; `config.epochs` computes it for a stage with epochs."""
        assert self.num_steps is not None, "the length of a stage is known before it is built"
        return self.num_steps
