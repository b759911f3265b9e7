"""Keys of a whole run; field names are the keys a user writes. Nodes of type Any carry a `_target_`."""

from collections.abc import Collection
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lightning_mmrl.settings.budget import BudgetSettings
from lightning_mmrl.settings.data import ABLATIONS, DataSettings, PromptSettings
from lightning_mmrl.settings.model import ModelSettings
from lightning_mmrl.settings.rollout import POLICY_ITSELF
from lightning_mmrl.settings.setting import REQUIRED, setting, target
from lightning_mmrl.settings.stage import NodeSettings, StageSettings, TrainerSettings

_DEFAULT = ""
"""Name under which `of_stage` keeps the run's own dataset in `datasets`; no user can give this name."""
VARIANTS = (*ABLATIONS, "no_think", "sampled")
"""Ways in which a set may be evaluated again; the result of a set `test` is then called `test-silent`, for example."""
LOGGERS = ("csv", "tensorboard")
ABLATION_STAGES = ("last", "all")
MAX_SEED = 2**31 - 1


@dataclass
class StateSettings:
    """When the state of an unfinished stage is saved, so that the same command continues it."""

    every_n_steps: int = setting(10, at_least=1)
    """Optimizer steps (sft) or iterations (rl) between two states."""
    keep: int = setting(2, at_least=1)
    """Number of states that are kept, the newest ones."""
    in_background: bool = True
    """Copy the state and write the copy while training continues; the copy takes host memory of the state's size."""


@dataclass
class TrackingSettings:
    """Where runs are tracked: in MLflow's store, by a tracker of your own, or nowhere."""

    uri: str | None = setting(None, texts=False)
    """MLflow's store: sqlite:///FILE or http(s)://HOST; null tracks nothing in MLflow."""
    tracker: Any = target(None)
    """`_target_` of a tracker (`protocols.plain.Tracker`) in MLflow's place; null for MLflow, or for no tracker
    if `uri` is null."""
    experiment: str = setting("lightning_mmrl", texts=False)
    """Name of the experiment in that store."""
    system_every_s: float | None = setting(10.0, at_least=1)
    """Seconds between two measurements of the machine, which MLflow shows as system metrics; null measures nothing."""
    loggers: list[str] = setting(factory=list, choices=LOGGERS)
    """csv and tensorboard: each stage's metrics also go to its folder in this form."""


@dataclass
class EvaluationSetSettings:
    """A set that handoffs are evaluated on; the name of a manifest alone is the short form of a set."""

    manifest: str = setting(texts=False)
    """File name of the manifest, below `root`."""
    format: str | None = setting(None, texts=False)
    """Format of the manifest, such as `verl` (docs/data.md lists them); null or `auto` recognises it by its content."""
    dataset: str | None = setting(None, texts=False)
    """Name in `datasets` of the dataset whose root and task the set has; null for `data`."""
    root: str | None = setting(None, texts=False)
    """Folder of the manifest; null for the dataset's root."""
    media_root: str | None = setting(None, texts=False)
    """Folder that media paths are relative to; null for the set's root."""
    task: Any = target(None)
    """`_target_` of the task that judges and measures answers; null for the dataset's task."""
    subject: str | None = setting(None, texts=False)
    """Column whose values split the accuracy (`by_subject`); null for `subject`."""
    prompt: PromptSettings | None = None
    """Texts around each sample; null: the evaluated stage's texts if it has the same dataset, else the run's."""

    def located(self, data: DataSettings) -> "EvaluationSetSettings":
        """The set with its folders filled in.

        Args:
            data: The dataset of a set that names no folder.
        """
        media = self.media_root or self.root or data.media_root or data.root
        return replace(self, root=self.root or data.root, media_root=media)

    @property
    def short(self) -> str | dict[str, Any]:
        """The set as a user may write it: the manifest alone if there is nothing else."""
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return self.manifest if len(given) == 1 else given

    @property
    def path(self) -> Path:
        """The path of the manifest of a located set."""
        return Path(self.root or "") / self.manifest

    @property
    def media_folder(self) -> Path:
        """The folder of the media of a located set."""
        return Path(self.media_root or "")


@dataclass
class EvaluationSettings:
    """How each handoff is evaluated."""

    sets: dict[str, EvaluationSetSettings] = setting()
    """Name to set, or to the manifest of one."""
    base: bool = True
    """Evaluate the base model before the first stage, so that the gain of this stage is known."""
    limit: int | None = setting(None, at_least=1)
    """Use only the first samples of each set; null for all."""
    ablations: list[str] = setting(factory=list, choices=ABLATIONS)
    """How every set is evaluated again: silent (without sound), blank (without picture), text_only (without both),
    shuffled_sound or shuffled_picture (with those of another sample); `all` stands for all of them."""
    no_think: bool = False
    """Also evaluate every set with answers that are forced without a thought."""
    samples: int = setting(0, at_least=0, at_most=256)
    """Also sample this many answers to each question, for pass@k and maj@k; 0 for none."""
    temperature: float = setting(1.0, above=0)
    """Temperature of these samples."""
    top_p: float = setting(1.0, above=0, at_most=1)
    """Sample them from the likeliest tokens up to this probability alone."""
    ablation_stages: str = setting("last", choices=ABLATION_STAGES)
    """Stages after which ablations, answers without a thought and samples are evaluated: the `last` one only, or
    `all`."""
    batch_size: int = setting(64, at_least=1)
    """Answers generated at once, of all ranks together, but at least one prompt."""
    max_new_tokens: int = setting(512, at_least=1)
    """Tokens of the longest answer."""
    num_resamples: int = setting(2000, at_least=1)
    """Bootstrap resamples of the 95 % intervals."""


def data_key(name: str | None) -> str:
    """Returns the key of the dataset with a name; None for `data`."""
    return "data" if name is None else f"datasets.{name}"


@dataclass
class RunSettings:
    """Everything `mmrl train` needs."""

    run_name: str = REQUIRED
    """The run's folder below output_dir; `mine/first` is a folder in a folder."""
    trial: str | None = None
    """Prefix of a debug run's `run_name`; a debug run drops gate and stop_when. Null once the name has the prefix."""
    output_dir: str = setting("runs", texts=False)
    """Folder of the runs."""
    seed: int = setting(0, at_least=0, at_most=MAX_SEED)
    """Seed of weights, data order, sampling and dropout; each stage that trains adds its place among them, and each
    other stage mixes in its name."""
    model: ModelSettings = field(default_factory=ModelSettings)
    """The base model."""
    data: DataSettings = field(default_factory=DataSettings)
    """The dataset of stages and sets that name no other."""
    datasets: dict[str, DataSettings] = field(default_factory=dict)
    """Further datasets by name; `data@datasets.NAME=OPTION` takes one from the group `data`."""
    prompt: PromptSettings = field(default_factory=PromptSettings)
    """Texts around each sample."""
    stages: dict[str, NodeSettings] = field(default_factory=dict)
    """Name to stage; `order` says which ones run."""
    order: list[str] = field(default_factory=list)
    """Names of the stages, in the order in which they run."""
    budget: BudgetSettings | None = None
    """How much the stages may cost together; null: each runs all its steps."""
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    """Devices and precision of evaluations, and of stages that say nothing else."""
    rollout: Any = field(default_factory=lambda: {"_target_": POLICY_ITSELF})
    """`_target_` of the engine that RL stages sample with."""
    state: StateSettings = field(default_factory=StateSettings)
    """States of unfinished stages."""
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    """Where runs are tracked."""
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    """Evaluation of handoffs."""

    @property
    def all_data(self) -> dict[str, DataSettings]:
        """All datasets by their keys: data, datasets.NAME."""
        return {data_key(None): self.dataset(None)} | {
            data_key(name): each for name, each in self.datasets.items() if name
        }

    @property
    def media_roots(self) -> set[str]:
        """All folders that paths of media may be relative to."""
        found = {each.media_root or each.root for each in self.all_data.values()}
        for stage in self.stages.values():
            sources = stage.data.located(self.dataset(stage.data.dataset)).values()
            found |= {str(source.media_folder) for source in sources if source.stage is None}
        return found

    def prompt_of(self, each: EvaluationSetSettings, stage: NodeSettings | None = None) -> PromptSettings:
        """Returns the texts around the samples of an evaluation set, after a stage or outside of a run."""
        if each.prompt is not None or stage is None or stage.prompt is None or each.dataset != stage.data.dataset:
            return each.prompt or self.prompt
        return stage.prompt

    def dataset(self, name: str | None) -> DataSettings:
        """Returns the dataset with a name; None stands for the run's `data`, even in a result of `of_stage`."""
        return self.datasets.get(_DEFAULT, self.data) if name is None else self.datasets[name]

    def of_stage(self, stage: NodeSettings) -> "RunSettings":
        """Returns the configuration for a stage: with the stage's own dataset and prompt in place of the run's."""
        data, datasets = self.dataset(stage.data.dataset), {**self.datasets, _DEFAULT: self.dataset(None)}
        return replace(self, data=data, datasets=datasets, prompt=stage.prompt or self.prompt)

    def sets(self, names: Collection[str] | None = None) -> dict[str, EvaluationSetSettings]:
        """The evaluation sets by name, with their folders filled in.

        Args:
            names: Names of the sets to take; None for all.
        """
        sets = self.evaluation.sets.items()
        return {name: each.located(self.dataset(each.dataset)) for name, each in sets if names is None or name in names}

    @property
    def trained(self) -> dict[str, StageSettings]:
        """The stages of the order that train, by name."""
        found = {name: self.stages[name] for name in self.order}
        return {name: stage for name, stage in found.items() if isinstance(stage, StageSettings)}
