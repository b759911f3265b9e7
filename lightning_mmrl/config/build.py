"""From a validated configuration to the objects of a run; the only module that knows every kind of part."""

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lightning_mmrl.config import targets
from lightning_mmrl.config.schema import RootConfig, StageConfig
from lightning_mmrl.curriculum.handoff import SEAL, check_handoff
from lightning_mmrl.data.datamodules import Feed, OmniDataModule, ValidationFeed, eval_loader
from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.guard import GuardedDecoder
from lightning_mmrl.data.prepared import MediaPipeline, PreparedSet
from lightning_mmrl.data.sampler import ModalityDropout
from lightning_mmrl.errors import DataError, StageError
from lightning_mmrl.evaluation.consistency import CueLexicon
from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.models.export import export_checkpoint
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards, RewardPool
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.stages.answers import Examiner
from lightning_mmrl.stages.context import OptimizerSettings, StageContext
from lightning_mmrl.stages.evaluate import EvaluationModule
from lightning_mmrl.stages.optimize import UpdateSettings
from lightning_mmrl.stages.policy_gradient import Algorithm
from lightning_mmrl.stages.rollout_table import RolloutTable
from lightning_mmrl.tracking.lightning_logger import RunLogger
from lightning_mmrl.training.callbacks.progress import EvaluationProgress, StageProgress
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.training.job import LightningJob
from lightning_mmrl.training.trainer import TrainerSettings, evaluation_trainer, prepare_process, training_trainer
from lightning_mmrl.types.media import MediaSettings
from lightning_mmrl.types.records import StageSpec


@dataclass(frozen=True)
class Assembly:
    """The parts that all stages and evaluations of a run share."""

    config: RootConfig
    console: ConsoleProgress

    @cached_property
    def trainer_settings(self) -> TrainerSettings:
        """Device and precision."""
        return TrainerSettings(**asdict(self.config.trainer))

    @cached_property
    def template(self) -> PromptTemplate:
        """The prompt template."""
        return PromptTemplate(**asdict(self.config.prompt))

    @cached_property
    def matcher(self) -> LabelMatcher:
        """The closed label set."""
        return LabelMatcher(labels=tuple(self.config.data.labels))

    @cached_property
    def lexicon(self) -> CueLexicon | None:
        """Cue phrases, if the dataset has them."""
        name = self.config.data.cue_lexicon
        return CueLexicon.from_file(self.data_root / name) if name else None

    @property
    def data_root(self) -> Path:
        """The dataset's folder."""
        return Path(self.config.data.root)

    @cached_property
    def media_settings(self) -> MediaSettings:
        """Decoding limits and frame count."""
        media = self.config.data.media
        return MediaSettings(
            num_frames=media.num_frames,
            max_duration_s=media.max_duration_s,
            max_pixels=media.max_pixels,
            max_bytes=media.max_bytes,
        )

    def pipeline(self, encoder: Any) -> MediaPipeline:
        """How media become tensors for one encoder."""
        media = self.config.data.media
        return MediaPipeline(
            encoder=encoder,
            settings=self.media_settings,
            cache=MediaCache(Path(media.cache_dir)),
            decoder=GuardedDecoder(workers=media.decode_workers, deadline_s=media.decode_deadline_s),
            say=self.console.say,
        )

    def encoder(self, checkpoint: Path | str) -> Any:
        """The encoder of a checkpoint."""
        return targets.build(self.config.model.family["encoder"], "model.family.encoder", checkpoint=str(checkpoint))

    def policy(self, checkpoint: Path | str, encoder: Any, temperature: float) -> Policy:
        """The policy of a checkpoint."""
        dtype = getattr(torch, self.config.model.dtype)
        node = self.config.model.family["backbone"]
        backbone = targets.build(node, "model.family.backbone", checkpoint=str(checkpoint), dtype=dtype)
        return Policy(backbone, banned_token_ids=encoder.banned_token_ids(), temperature=temperature)

    def examiner(self, policy: Policy, encoder: Any) -> Examiner:
        """Greedy answers, judged."""
        engine = self.engine(policy, encoder, self.config.evaluation.max_new_tokens)
        return Examiner(engine=engine, matcher=self.matcher, lexicon=self.lexicon)

    def engine(self, policy: Policy, encoder: Any, max_new_tokens: int) -> HFEngine:
        """Rollouts with transformers."""
        return HFEngine(
            policy,
            decode=encoder.decode,
            eos_token_ids=encoder.eos_token_ids,
            pad_token_id=encoder.pad_token_id,
            max_new_tokens=max_new_tokens,
            prefill=self.template.prefill,
        )

    def base_checkpoint(self) -> Path:
        """The base model, built first if the configuration says how.

        Raises:
            StageError: The folder does not exist and nothing builds it.
        """
        checkpoint = Path(self.config.model.checkpoint)
        if self.config.model.build is not None and not (checkpoint / "config.json").is_file():
            self.console.say(f"building the base model in {checkpoint}")
            partial = checkpoint.with_name(checkpoint.name + ".tmp")
            targets.build(self.config.model.build, "model.build", directory=partial)
            os.replace(partial, checkpoint)
        return checkpoint

    def ensure_data(self) -> None:
        """Generates the dataset if the configuration says how and it does not exist.

        Raises:
            DataError: The folder does not exist and nothing builds it.
        """
        if self.config.data.build is not None:
            self._generate_data()
        elif not self.data_root.is_dir():
            raise DataError(f"data.root {self.data_root} does not exist; point it at the folder of your manifests")

    def _generate_data(self) -> None:
        targets.build(
            self.config.data.build,
            "data.build",
            directory=self.data_root,
            workers=self.config.data.media.decode_workers,
            on_progress=lambda done, total: self.console.update("generating clips", done, total),
        )

    def validation_feed(self) -> ValidationFeed | None:
        """What stages are validated on, if anything."""
        data, batch_size = self.config.data, self.config.evaluation.batch_size
        if data.validation is None:
            return None
        return ValidationFeed(manifest=data.validation, limit=data.validation_limit, batch_size=batch_size)

    def facts(self) -> dict[str, Any]:
        """What a user of a hand-over must know to prompt it as it was trained."""
        return {
            "prompt": asdict(self.config.prompt),
            "media": asdict(self.media_settings),
            "labels": list(self.config.data.labels),
            "family": self.config.model.family,
            "dtype": self.config.model.dtype,
            "max_new_tokens": self.config.evaluation.max_new_tokens,
        }


class StageBuilder:
    """Implements `StageFactory` for stages that are LightningModules."""

    def __init__(self, assembly: Assembly, specs: list[StageSpec]) -> None:
        self._assembly = assembly
        self._num_stages = len(specs)

    def __call__(self, spec: StageSpec, start_from: Path, directory: Path, run: TrackedRun) -> LightningJob:
        """Builds one stage."""
        parts, config = self._assembly, self._assembly.config
        stage = config.stages[spec.name]
        prepare_process(parts.trainer_settings, config.seed + spec.index)
        temperature = stage.sampling.temperature if stage.sampling is not None else 1.0
        encoder = parts.encoder(start_from)
        policy = parts.policy(start_from, encoder, temperature)
        policy.freeze(stage.freeze)
        datamodule = self._datamodule(spec, stage, encoder)
        resources = ExitStack()
        module = self._module(spec, stage, policy, encoder, directory, resources)
        title = f"stage {spec.index + 1} of {self._num_stages} {spec.name}"
        run.log_params(flattened(asdict(stage)))
        trainer = training_trainer(
            parts.trainer_settings,
            directory=directory,
            logger=RunLogger(run, directory),
            callbacks=[StageProgress(parts.console, title)],
            validate_every=stage.validate_every if config.data.validation else None,
            gradient_clip_val=stage.max_grad_norm if module.automatic_optimization else None,
        )
        return LightningJob(
            trainer=trainer,
            module=module,
            datamodule=datamodule,
            exporter=lambda folder: export_checkpoint(policy.model, encoder.processor, folder),  # type: ignore[arg-type]
            resources=resources,
        )

    def _datamodule(self, spec: StageSpec, stage: StageConfig, encoder: Any) -> OmniDataModule:
        parts, config = self._assembly, self._assembly.config
        feed = Feed(
            manifest=stage.data.manifest,
            batch_size=stage.data.batch_size,
            num_batches=stage.num_steps,
            seed=config.seed + spec.index,
            dropout=ModalityDropout(**asdict(stage.data.modality_dropout)),
            limit=stage.data.limit,
        )
        return OmniDataModule(
            root=parts.data_root,
            pipeline=parts.pipeline(encoder),
            template=parts.template,
            kind=spec.kind,
            feed=feed,
            validation=parts.validation_feed() if stage.validate_every else None,
            on_progress=parts.console.update,
        )

    def _module(
        self, spec: StageSpec, stage: StageConfig, policy: Policy, encoder: Any, directory: Path, resources: ExitStack
    ) -> Any:
        parts = self._assembly
        path = f"stages.{spec.name}"
        common = {
            "optimizer": OptimizerSettings(
                factory=targets.build(stage.optimizer, f"{path}.optimizer"),
                schedule=targets.build(stage.schedule, f"{path}.schedule"),
            ),
            "context": StageContext(
                name=spec.name, num_steps=stage.num_steps, seed=parts.config.seed + spec.index, directory=directory
            ),
            "examiner": parts.examiner(policy, encoder) if stage.validate_every else None,
            "policy": policy,
        }
        make = targets.build({**stage.module, "_partial_": True}, f"{path}.module")
        if spec.kind == "sft":
            return make(**common)
        assert stage.sampling is not None
        return make(
            engine=parts.engine(policy, encoder, stage.sampling.max_new_tokens),
            rewards=resources.enter_context(build_rewards(stage, path)),
            algorithm=build_algorithm(stage, make, path),
            table=RolloutTable(directory / "rollouts", every=stage.rollout_table_every),
            **common,
        )


def build_rewards(stage: StageConfig, path: str) -> InlineRewards | RewardPool:
    """The rewards of an RL stage, in this process or in killable workers."""
    assert stage.rewards is not None
    settings = stage.rewards
    parts = {name: targets.build(node, f"{path}.rewards.parts.{name}") for name, node in settings.parts.items()}
    reward = WeightedReward(parts=parts, weights=settings.weights)
    if settings.num_workers == 0:
        return InlineRewards(reward)
    return RewardPool(
        reward,
        num_workers=settings.num_workers,
        deadline_s=settings.deadline_s,
        batch_budget_s=settings.batch_budget_s,
    )


def build_algorithm(stage: StageConfig, make: Callable[..., Any], path: str) -> Algorithm:
    """The algorithm of an RL stage; null parts come from the module's preset."""
    assert stage.algorithm is not None
    settings, preset = stage.algorithm, make.func.default_algorithm  # type: ignore[attr-defined]
    update = UpdateSettings(**asdict(settings.update), max_grad_norm=stage.max_grad_norm)
    path = f"{path}.algorithm"
    return Algorithm(
        advantage=targets.optional(settings.advantage, f"{path}.advantage", preset.advantage),
        loss=targets.optional(settings.loss, f"{path}.loss", preset.loss),
        aggregation=targets.optional(settings.aggregation, f"{path}.aggregation", preset.aggregation),
        group_size=settings.group_size,
        mask_truncated=settings.mask_truncated,
        update=update,
    )


class CheckpointEvaluator:
    """Implements `Evaluator`: every configured set, and its ablations where they are asked for."""

    def __init__(self, assembly: Assembly, last_stage: str) -> None:
        self._assembly = assembly
        self._last_stage = last_stage

    def __call__(self, checkpoint: Path, directory: Path, stage: str, run: TrackedRun | None) -> Mapping[str, float]:
        """Metrics keyed `<set>/<metric>`."""
        parts, settings = self._assembly, self._assembly.config.evaluation
        if (checkpoint / SEAL).exists():
            check_handoff(checkpoint)
        elif checkpoint.is_absolute() and not checkpoint.exists():
            raise StageError(f"checkpoint {checkpoint} does not exist; give a stage's handoff folder or a hub id")
        prepare_process(parts.trainer_settings, parts.config.seed)
        encoder = parts.encoder(checkpoint)
        policy = parts.policy(checkpoint, encoder, 1.0)
        ablate = settings.ablation_stages == "all" or stage == self._last_stage
        loaders = self._loaders(encoder, ["full", *(settings.ablations if ablate else [])])
        module = EvaluationModule(
            policy,
            parts.examiner(policy, encoder),
            set_names=list(loaders),
            directory=directory,
            bootstrap=ClusterBootstrap(num_resamples=settings.num_resamples),
        )
        progress = EvaluationProgress(parts.console, f"evaluating {stage}")
        trainer = evaluation_trainer(parts.trainer_settings, directory=directory, callbacks=[progress])
        trainer.test(module, dataloaders=list(loaders.values()), verbose=False)
        if run is not None:
            run.log_artifact(directory, "evaluation")
        return {
            f"{name}/{key}": value
            for name, result in module.results.items()
            for key, value in result["metrics"].items()
        }

    def _loaders(self, encoder: Any, variants: list[str]) -> dict[str, Any]:
        parts, settings = self._assembly, self._assembly.config.evaluation
        pipeline = parts.pipeline(encoder)
        loaders = {}
        for name, manifest in settings.sets.items():
            prepared = PreparedSet.from_manifest(
                parts.data_root / manifest,
                media_root=parts.data_root,
                pipeline=pipeline,
                template=parts.template,
                supervised=False,
            )
            prepared.prepare(f"preparing {manifest}", parts.console.update)
            for variant in variants:
                loaders[name if variant == "full" else f"{name}-{variant}"] = eval_loader(
                    prepared,
                    batch_size=settings.batch_size,
                    pad_token_id=encoder.pad_token_id,
                    variant=variant,  # type: ignore[arg-type]
                )
        return loaders


def flattened(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one level of dotted keys.

    >>> flattened({"a": {"b": 1}, "c": 2})
    {'a.b': 1, 'c': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def quiet_libraries() -> None:
    """Keeps libraries from writing between the lines of our progress."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
