"""The typed configuration; field names are the keys a user writes. Nodes of type Any carry a `_target_`."""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class FeatureCacheConfig:
    """Outputs of frozen media towers, kept on disk for later passes, stages and runs."""

    directory: str = MISSING
    """Folder of the cache; any number of runs may share it."""
    max_bytes: int = 21_474_836_480
    """Bound on the folder; what was used least recently is removed."""


@dataclass
class ModelConfig:
    """The base model: a hub id or folder, or a recipe that builds one."""

    checkpoint: str = MISSING
    """Hub id or folder of the base model."""
    family: Any = MISSING
    """The model family: `_target_` of the backbone and of the encoder."""
    build: Any = None
    """`_target_` that builds the folder `checkpoint` if it does not exist; None for a checkpoint that exists."""
    dtype: str = "float32"
    """Parameter type in memory: float32, bfloat16 or float64."""
    position_rule: str = "previous_maximum"
    """Where text goes on behind a clip: behind the largest position so far, as in the original recipe and vLLM, or
    where `transformers` puts it."""
    audio_in_video: str = "separate"
    """What `<video><audio>` is: `separate` media one after the other, or a clip and its sound `interleaved`."""
    sharing: bool = True
    """Compute a prompt once for all its completions; false scores a copy for each, to compare with: exact, but slow."""
    feature_cache: FeatureCacheConfig | None = None
    """Where stages that freeze all media towers keep the outputs of these; null: they are computed in every pass."""


@dataclass
class MediaConfig:
    """Decoding, the same in every stage and evaluation."""

    num_frames: int = 8
    max_duration_s: float = 600.0
    max_pixels: int = 16_777_216
    max_bytes: int = 268_435_456
    decode_workers: int = 2
    decode_deadline_s: float = 30.0
    decode_memory_mb: int = 1024
    """MiB that a decode worker may take on top of what it starts with (on Linux)."""
    cache_dir: str = MISSING


@dataclass
class DataConfig:
    """The dataset that stages and evaluations read from."""

    root: str = MISSING
    """Folder of the manifests; media paths are relative to it."""
    validation: str | None = None
    """Manifest evaluated during training."""
    validation_limit: int | None = None
    limit: int | None = None
    """What stages take as data.limit: first samples of their manifest only; null for all."""
    module: Any = MISSING
    """`_target_` of the DataModule: which media kinds samples may have."""
    labels: list[str] = MISSING
    """The closed label set."""
    cue_lexicon: str | None = None
    """File below root with cue phrases, for the consistency of thought and label; None for none."""
    build: Any = None
    """`_target_` that generates the dataset at `root` if it does not exist; None for data that exist."""
    media: MediaConfig = field(default_factory=MediaConfig)


@dataclass
class PromptConfig:
    """What is put around each sample's messages."""

    system: str | None = None
    suffix: str = ""
    prefill: str = ""


@dataclass
class DropoutConfig:
    """Probabilities that a training sample loses its sound or its picture."""

    silent: float = 0.0
    blank: float = 0.0


@dataclass
class SourceConfig:
    """One of several manifests that a stage mixes."""

    manifest: str = MISSING
    root: str | None = None
    """Folder of the manifest and its media; null for data.root."""
    weight: float = 1.0
    """Share of the draws, in any unit."""
    limit: int | None = None
    """Use only the first samples."""


@dataclass
class StageDataConfig:
    """What a stage trains on: one manifest, or several sources by weight."""

    manifest: str | None = None
    """File below data.root; null if there are sources."""
    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """Name to source; empty if there is a manifest."""
    module: Any = None
    """`_target_` of the DataModule; null for data.module."""
    batch_size: int = MISSING
    """Samples per optimizer step (sft) or prompts per iteration (rl)."""
    limit: int | None = None
    """Use only the first samples of the manifest."""
    balance: str | None = None
    """`label`: every label is drawn equally often; null: as the data are."""
    modality_dropout: DropoutConfig = field(default_factory=DropoutConfig)


@dataclass
class UpdateConfig:
    """How a rollout becomes optimizer steps."""

    num_epochs: int = 1
    num_minibatches: int = 1
    tokens_per_microbatch: int = 16_384
    """Tokens scored at once, a prompt counted once for its group; bounds memory, does not change the loss."""
    pairs_per_microbatch: int | None = None
    """Attention pairs scored at once; null leaves it to the tokens."""


@dataclass
class PhaseConfig:
    """What changes in an rl stage once so many iterations are done; null leaves a value as it was."""

    after: int = MISSING
    group_size: int | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None


@dataclass
class KLConfig:
    """Penalty on the divergence from the policy that the stage starts from."""

    coefficient: float = 0.0
    """0: no penalty, and no reference policy."""
    estimator: str = "k3"
    """k1, k2 or k3."""
    where: str = "loss"
    """loss: of each token; reward: subtracted, summed over a completion, before advantages are taken."""
    ratio_correction: bool = False
    """Multiply the estimates in the loss by the ratio to the policy that sampled."""
    schedule: Any = None
    """Multiplier of the coefficient by iteration, such as WarmupCosine; null: always 1."""


@dataclass
class EntropyConfig:
    """Bonus on the entropy of the policy at each token."""

    coefficient: float = 0.0
    schedule: Any = None
    """Multiplier of the coefficient by iteration; null: always 1."""


@dataclass
class CriticConfig:
    """A second model beside the policy, of whose values advantages are made (PPO)."""

    learning_rate: float = 9.0e-6
    """Of its own optimizer, which is of the stage's kind and schedule."""
    max_grad_norm: float = 1.0
    value_clip: float | None = 0.2
    """How far values may move from those at the rollout and still pay; null: any distance."""
    gamma: float = 1.0
    """Discount of a reward for each token before it."""
    gae_lambda: float = 1.0
    """1: returns as they are; 0: the value of the next token's state."""
    whiten: bool = True
    """Advantages get mean 0 and variance 1 over all tokens of the iteration on all ranks."""


@dataclass
class AlgorithmConfig:
    """A policy-gradient algorithm; null takes the module's own."""

    advantage: Any = None
    loss: Any = None
    aggregation: Any = None
    correction: Any = None
    """Weights for what the engine's probabilities differ by, such as ImportanceCorrection; null: none."""
    group_size: int = 8
    mask_truncated: bool = False
    phases: dict[str, PhaseConfig] = field(default_factory=dict)
    """Name to phase, in the order of `after`: progressive lengths and group sizes; empty for none."""
    select: Any = None
    """Which groups are trained on, such as AccuracyBand; null: all."""
    max_samplings: int = 1
    """Batches of prompts an iteration may sample until enough groups pass; 1: what does not pass is left out."""
    select_after: int = 0
    """Iterations before the first that selects."""
    resample: Any = None
    """How often each completion is trained on, such as PaperPAD; null: once."""
    kl: KLConfig = field(default_factory=KLConfig)
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    critic: CriticConfig | None = None
    """Takes the place of advantage, in a module that trains one; null: the module's own, if it does."""
    update: UpdateConfig = field(default_factory=UpdateConfig)


@dataclass
class SamplingConfig:
    """How completions are sampled."""

    temperature: float = 1.0
    top_p: float = 1.0
    """Sample from the likeliest tokens up to this probability alone; below 1 only with an algorithm.correction."""
    max_new_tokens: int = 512


@dataclass
class RewardsConfig:
    """Named reward functions and their weights; workers > 0 runs them in killable processes."""

    components: dict[str, Any] = MISSING
    weights: dict[str, float] = MISSING
    pass_component: str = "label"
    """The component that says whether an answer is right: pass rates count it."""
    num_workers: int = 0
    """Killable processes that score; 0: the training process does, without deadlines and memory limit."""
    deadline_s: float = 8.0
    """Seconds for one completion; then its process is killed and replaced."""
    soft_deadline_s: float | None = 4.0
    """Seconds after which an exception interrupts it, which costs no process; null: only deadline_s counts."""
    batch_budget_s: float = 60.0
    """Seconds for all completions of an iteration; what is left is invalid."""
    memory_limit_mb: int | None = 4096
    """Megabytes a process may take on top of what it starts with; null: no limit."""
    max_invalid_rate: float = 0.5
    """Share of invalid scores of an iteration above which the run stops; 1: never."""


@dataclass
class BoundConfig:
    """A metric held to one bound."""

    metric: str = MISSING
    """`<set>/<metric>` of the stage, such as validation/uar or test/war."""
    at_least: float | None = None
    at_most: float | None = None


@dataclass
class TrainerConfig:
    """Devices, how a stage is spread over them, and precision."""

    accelerator: str = "auto"
    devices: int = 1
    """Devices of each node."""
    num_nodes: int = 1
    strategy: str = "auto"
    """`ddp`: all weights on every device; `fsdp2`: weights, gradients and optimizer state sharded; `auto`: ddp if there
    are several devices."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass, layer by layer, in place of keeping them."""
    cpu_offload: bool = False
    """With fsdp2: keep shards and optimizer state in host memory."""
    precision: str = "32-true"
    num_threads: int | None = None
    max_steps: int | None = None
    """Cap on the steps of a stage, for debugging; null for none."""


@dataclass
class StateConfig:
    """When the state of an unfinished stage is saved, so that the same command continues it."""

    every_n_steps: int = 10
    """Optimizer steps (sft) or iterations (rl) between two states."""
    keep: int = 2
    """How many are kept; the newest ones."""
    in_background: bool = True
    """Copy the state and write the copy while training goes on; costs its size in host memory."""


@dataclass
class AdapterConfig:
    """LoRA layers that train in place of the weights: h = W x + (alpha / r) B A x."""

    r: int = 16
    """Rank of B A."""
    alpha: int = 32
    dropout: float = 0.0
    """Of x before A; above 0, completions no longer share their prompt."""
    targets: Any = "all"
    """all, attention, mlp, projector (of a tower) or endings of names of linear layers; one, or a list."""
    groups: list[str] = field(default_factory=lambda: ["text"])
    """Parameter groups that have such layers: vision, audio, text."""


@dataclass
class StageConfig:
    """One stage."""

    kind: str = MISSING
    """sft or rl."""
    module: Any = MISSING
    """`_target_` of the LightningModule."""
    start_from: str = "previous"
    """base, previous or the name of an earlier stage."""
    num_steps: int = MISSING
    """Optimizer steps (sft) or iterations (rl)."""
    data: StageDataConfig = field(default_factory=StageDataConfig)
    optimizer: Any = MISSING
    schedule: Any = MISSING
    max_grad_norm: float = 1.0
    freeze: list[str] = field(default_factory=list)
    """Parameter groups that do not train: vision, audio, text."""
    adapter: AdapterConfig | None = None
    """LoRA layers that train while all weights stay as they are; null: the weights train."""
    validate_every: int | None = None
    """Steps between validations; null for none."""
    algorithm: AlgorithmConfig | None = None
    sampling: SamplingConfig | None = None
    rewards: RewardsConfig | None = None
    rollout_table_every: int = 10
    """Iterations between two rollout tables on disk."""
    stop_when: BoundConfig | None = None
    """The stage ends at the first validation that meets this bound; null: it runs all its steps."""
    cooldown_steps: int = 0
    """Steps after that validation, over which the learning rate falls to zero."""
    max_bad_steps: int = 10
    """Steps that may be skipped because a number was not finite; one more, or more than half of all, end the run."""
    gate: BoundConfig | None = None
    """The curriculum continues after this stage only if this bound holds; null: always."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)


@dataclass
class TrackingConfig:
    """Where runs are tracked; a null uri tracks nothing."""

    uri: str | None = None
    experiment: str = "lightning_mmrl"
    loggers: list[str] = field(default_factory=list)
    """csv and tensorboard: each stage's metrics also go to its folder in this form."""


@dataclass
class EvaluationConfig:
    """What each handoff is evaluated on."""

    sets: dict[str, str] = MISSING
    """Set name to manifest."""
    limit: int | None = None
    """Use only the first samples of each set; null for all."""
    ablations: list[str] = field(default_factory=list)
    """silent and blank: evaluate every set also without sound or without picture..."""
    ablation_stages: str = "last"
    """...after the `last` stage only, or after `all`."""
    batch_size: int = 64
    max_new_tokens: int = 512
    num_resamples: int = 2000
    """Bootstrap resamples of the 95 % intervals."""


@dataclass
class RootConfig:
    """Everything `mmrl train` needs."""

    run_name: str = MISSING
    """The run's folder below output_dir."""
    trial: str | None = None
    """What a debug run is called before its run_name; such a run knows no gate and no stop_when. Null afterwards."""
    output_dir: str = "runs"
    seed: int = 0
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    stages: dict[str, StageConfig] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    rollout: Any = field(default_factory=lambda: {"_target_": "lightning_mmrl.rollout.hf.HFEngine.of"})
    """`_target_` of the engine that RL stages sample with."""
    state: StateConfig = field(default_factory=StateConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
