"""The parts that all stages and evaluations of a run share, built from its configuration on first use."""

import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers.utils import logging as transformers_logging

from lightning_mmrl.config.specs import flattened
from lightning_mmrl.curriculum.changes import changed_keys
from lightning_mmrl.curriculum.lineage import facts_if_sealed
from lightning_mmrl.data.exclusions import EXCLUSIONS, Exclusions
from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.guard import GuardedDecoder
from lightning_mmrl.data.pipeline import MediaPipeline
from lightning_mmrl.errors import ConfigError, DataError, StageError
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.files import folder_beside, follow_umask, read_json, write_json, writing
from lightning_mmrl.machine import explain_in_threads
from lightning_mmrl.models.encoders import MediaEncoder, tower_fingerprint
from lightning_mmrl.models.feature_cache import FeatureCache
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.tensors import PromptEncoder, RolloutEngine
from lightning_mmrl.registry import targets
from lightning_mmrl.registry.families import stored_family
from lightning_mmrl.registry.tasks import VALIDATION, built_tasks
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.settings.data import PromptSettings
from lightning_mmrl.settings.model import BUILD, AdapterSettings, ModelSettings
from lightning_mmrl.settings.rollout import engine_node
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import NodeSettings, TrainerSettings
from lightning_mmrl.stages.answers import AnswerEvaluator
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.training.group import RankGroup
from lightning_mmrl.training.monitor import ConsoleMonitor
from lightning_mmrl.types.media import decisive
from lightning_mmrl.types.records import StageSpec
from lightning_mmrl.types.redaction import redacted_tree


@dataclass(frozen=True)
class Assembly:
    """The parts that all stages and evaluations of a run share, and the processes that run them together."""

    config: RunSettings
    console: ConsoleProgress
    group: RankGroup = field(default_factory=RankGroup)
    callbacks: Callable[[str], Sequence[Any]] = lambda stage: ()
    """Further callbacks of the Trainer of each stage that trains or samples, by the stage's name."""

    def of_stage(self, stage: NodeSettings) -> "Assembly":
        """Returns the parts for one stage, with its own dataset and prompt."""
        parts = replace(self, config=self.config.of_stage(stage))
        for name in ("monitor", "exclusions"):
            parts.__dict__[name] = getattr(self, name)  # one of each for the whole run
        return parts

    def title(self, spec: StageSpec) -> str:
        """The title of a stage in messages and progress."""
        return f"stage {spec.index + 1} of {len(self.config.order)} {spec.name}"

    @cached_property
    def template(self) -> PromptTemplate:
        """The prompt template."""
        return PromptTemplate(self.config.prompt)

    @cached_property
    def matcher(self) -> LabelMatcher | None:
        """The closed label set, if there is one."""
        labels = tuple(self.config.data.labels)
        return LabelMatcher(labels=labels) if labels else None

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """The task of the validation and of each evaluation set, by name."""
        return built_tasks(self.config)

    @property
    def data_root(self) -> Path:
        """The dataset's folder."""
        return Path(self.config.data.root)

    @cached_property
    def monitor(self) -> ConsoleMonitor:
        """Shows progress with the data, and writes down which samples are left out."""
        path = Path(self.config.output_dir) / self.config.run_name / "quarantine.jsonl"
        return ConsoleMonitor(self.console, path if self.group.leads else None)

    @cached_property
    def exclusions(self) -> Exclusions:
        """Which samples the run leaves out."""
        directory = Path(self.config.output_dir) / self.config.run_name
        return Exclusions(directory / EXCLUSIONS, decides=self.group.leads)

    @property
    def decoder(self) -> GuardedDecoder:
        """The workers that decode media."""
        media = self.config.data.media
        return GuardedDecoder(
            workers=media.decode_workers, deadline_s=media.decode_deadline_s, memory_mb=media.decode_memory_mb
        )

    def pipeline(self, encoder: PromptEncoder) -> MediaPipeline:
        """Returns the pipeline that turns media into tensors for one encoder."""
        media = self.config.data.media
        return MediaPipeline(
            encoder=encoder,
            settings=media,
            cache=MediaCache(Path(media.cache_dir), media.cache_limit_gb),
            decoder=self.decoder,
        )

    def encoder(self, checkpoint: Path | str) -> PromptEncoder:
        """The encoder of a checkpoint."""
        model = self.config.model
        return targets.build(
            model.family["encoder"],
            "model.family.encoder",
            checkpoint=str(checkpoint),
            position_rule=model.position_rule,
            audio_in_video=model.audio_in_video,
        )

    def policy(
        self,
        checkpoint: Path | str,
        encoder: PromptEncoder,
        temperature: float,
        trainer: TrainerSettings | None = None,
    ) -> Policy:
        """The policy of a checkpoint; `trainer` says how a stage computes, None: as the run does."""
        dtype = getattr(torch, self.config.model.dtype)
        computes = getattr(torch, (trainer or self.config.trainer).computes(self.config.model.dtype))
        node = self.config.model.family["backbone"]
        backbone = targets.build(node, "model.family.backbone", checkpoint=str(checkpoint), dtype=dtype)
        settings, banned = self.config.model, encoder.banned_token_ids()
        policy = Policy(
            backbone, banned_token_ids=banned, temperature=temperature, settings=settings, compute_dtype=computes
        )
        if settings.sharing and policy.sharing_refusal is not None:
            self.console.say(f"each completion is scored with a copy of its prompt: {policy.sharing_refusal}")
        return policy

    def adapt(self, policy: Policy, config: AdapterSettings, stage: str) -> None:
        """Puts a stage's adapter into its policy, and tells the user what that changes."""
        refusal = policy.sharing_refusal
        num_trained = policy.adapt(config, f"stages.{stage}.adapter")
        self.console.say(f"stage {stage} trains an adapter of {num_trained} parameters; all weights stay as they are")
        if policy.sharing_refusal != refusal:
            self.console.say(f"each completion is scored with a copy of its prompt: {policy.sharing_refusal}")

    def feature_cache(self, stage: str, media: MediaEncoder) -> FeatureCache | None:
        """Returns the cache of tower outputs; None if no cache is configured, there is no tower, or a tower trains."""
        settings = self.config.model.feature_cache
        if settings is None or not media.backbone.towers:
            return None
        if media.towers_train:
            self.console.say(
                f"stage {stage} trains a media tower or its projector, so it does not use model.feature_cache"
            )
            return None
        towers = tower_fingerprint(media.backbone)
        return FeatureCache(settings, towers=towers)

    def with_prompt(self, prompt: PromptSettings) -> "Assembly":
        """Returns the parts with another prompt, such as the prompt of an evaluation set."""
        return replace(self, config=replace(self.config, prompt=prompt))

    def evaluator(self, policy: Policy, encoder: PromptEncoder, engine: RolloutEngine | None = None) -> AnswerEvaluator:
        """Returns the evaluator that judges greedy answers by the dataset's task.

        Args:
            policy: The policy.
            encoder: Its encoder.
            engine: An engine that completes no prefill; None for the policy itself, which does.
        """
        return AnswerEvaluator(
            engine=self.engine(policy, encoder, self.config.evaluation.max_new_tokens) if engine is None else engine,
            task=self.tasks[VALIDATION],
            rank_local=self.group.interruption.rank_local,
            template=None if engine is None else self.template,
        )

    def engine(self, policy: Policy, encoder: PromptEncoder, max_new_tokens: int) -> HFEngine:
        """Returns the engine of evaluations: the policy itself generates the answers, with the drafts of `rollout`."""
        sampling, node = SamplingSettings(max_new_tokens=max_new_tokens), self.config.rollout.get("speculation")
        return HFEngine.of(
            policy,
            encoder=encoder,
            sampling=sampling,
            speculation=None if node is None else targets.build(node, "rollout.speculation"),
            template=self.template,
            poll=self.group.interruption.poll,
        )

    def rollout_engine(
        self,
        policy: Policy,
        encoder: PromptEncoder,
        sampling: SamplingSettings,
        own: tuple[str, Any] = ("rollout", None),
    ) -> RolloutEngine:
        """Builds the engine that a stage samples with.

        `own` is the key and the node of the stage's own engine; if the node is None, the run's engine is built.
        """
        key, node = own if own[1] is not None else ("rollout", self.config.rollout)
        make = targets.build({**engine_node(node), "_partial_": True}, key)
        poll = self.group.interruption.poll
        return make(policy, encoder=encoder, sampling=sampling, template=self.template, poll=poll)

    def base_checkpoint(self) -> Path:
        """Returns `base_folder`, after checking its files if it is a stage's handoff.

        Raises:
            StageError: The folder is a handoff with missing or changed files.
            DiskError: As in `base_folder`.
        """
        folder = self.base_folder()
        facts_if_sealed(folder)
        return folder

    def starting_point(self, spec: StageSpec) -> Path:
        """Returns the checkpoint of a stage that starts from no other stage: the one it names, or the base model.

        Raises:
            StageError: The stage's own checkpoint is a path, and no Hugging Face folder is there.
            DiskError: As in `base_folder`.
        """
        name = spec.settings.checkpoint
        if name is None:
            return self.base_folder()
        folder = Path(name)
        if not (folder / "config.json").is_file() and (
            folder.exists() or folder.is_absolute() or len(folder.parts) != 2
        ):
            raise StageError(
                f"stages.{spec.name}.checkpoint is {name}, which is no Hugging Face folder; give a stage's handoff "
                "folder or a hub id"
            )
        return folder

    def base_folder(self) -> Path:
        """Returns the folder or hub id of the base model, after building the folder if the configuration says how.

        A record beside a built folder holds the `model.build` that built it. A folder without a record is used as it
        is.

        Raises:
            ConfigError: The folder was built with other values of `model.build`.
            DiskError: The disk refuses the folder; the unfinished folder is removed.
        """
        model = self.config.model
        checkpoint, config_file = Path(model.checkpoint), "config.json"
        if model.build is None:
            return checkpoint
        record = checkpoint.with_name(f"{checkpoint.name}.build.json")
        if not (checkpoint / config_file).is_file():
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(checkpoint.with_name(checkpoint.name + ".lock")):
                if not (checkpoint / config_file).is_file():  # otherwise another process was first
                    self._build_base(checkpoint, record)
        if record.is_file():
            check_built(model, checkpoint, read_json(record, f"remove it and {checkpoint}, to build the model again"))
        return checkpoint

    def _build_base(self, checkpoint: Path, record: Path) -> None:
        model = self.config.model
        self.console.say(f"building the base model in {checkpoint}")
        with writing(checkpoint), folder_beside(checkpoint, made=False) as partial:
            targets.build(model.build, "model.build", directory=partial)
            follow_umask(partial)
            write_json(record, {"digest": model.build_digest, "build": redacted_tree(dict(model.build))})
            os.replace(partial, checkpoint)

    def ensure_data(self) -> None:
        """Calls the generator of each dataset that has `build` in the configuration.

        The generators of this package keep a dataset that exists; one of your own must do so too.

        Raises:
            DataError: The folder does not exist and nothing builds it.
        """
        for key, data in self.config.all_data.items():
            if data.build is not None:
                targets.build(
                    data.build,
                    f"{key}.build",
                    directory=Path(data.root),
                    workers=self.config.data.media.decode_workers,
                    on_progress=partial(self.console.update, f"making {key}"),
                )
            elif not Path(data.root).is_dir():
                raise DataError(f"{key}.root {data.root} does not exist; point it at the folder of your manifests")

    def facts(self) -> dict[str, Any]:
        """Returns facts, as plain values, that a user of a handoff needs to prompt the model as it was trained."""
        return {
            "prompt": asdict(self.config.prompt),
            "media": decisive(self.config.data.media),
            "labels": list(self.config.data.labels),
            "family": stored_family(self.config.model.family),
            "dtype": self.config.model.dtype,
            "position_rule": self.config.model.position_rule,
            "audio_in_video": self.config.model.audio_in_video,
            "max_new_tokens": self.config.evaluation.max_new_tokens,
            **self.tasks[VALIDATION].described(),
        }


def check_built(model: ModelSettings, checkpoint: Path, record: Any) -> None:
    """Refuses a folder that was built with other values than the configured ones.

    Raises:
        ConfigError: The values differ; the message names them.
    """
    known = isinstance(record, dict) and isinstance(record.get("build"), dict)
    if known and record.get("digest") == model.build_digest:
        return
    now = redacted_tree(dict(model.build))
    changes = changed_keys(flattened(record["build"]), flattened(now)) if known else ["its record is damaged"]
    raise ConfigError(
        f"model.checkpoint {checkpoint} was built with other values of model.build ({'; '.join(changes)}); give "
        f"model.checkpoint another name, such as {checkpoint.parent / ('NAME-' + BUILD)}, or remove the folder"
    )


def quiet_libraries() -> None:
    """Keeps libraries from writing between the lines of our progress."""
    explain_in_threads()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # MLflow shows a traceback for each failure of its database; our tracking reports each in one line and continues.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    # lightning 2.6 walks data loaders with torch's old pytree test.
    warnings.filterwarnings(
        "ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning
    )
