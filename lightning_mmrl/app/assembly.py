"""The parts that all stages and evaluations of a run share, built from its configuration on first use."""

import json
import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers.utils import logging as transformers_logging

from lightning_mmrl.config.schema import AdapterConfig, RootConfig, SamplingConfig, StageDataConfig, TrainerConfig
from lightning_mmrl.curriculum.lineage import facts_if_sealed
from lightning_mmrl.data.datamodules import Source, ValidationFeed
from lightning_mmrl.data.exclusions import EXCLUSIONS, Exclusions
from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.guard import GuardedDecoder
from lightning_mmrl.data.pipeline import MediaPipeline
from lightning_mmrl.data.prepared import Quarantined
from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.consistency import CueLexicon
from lightning_mmrl.files import dispensable, folder_beside, follow_umask, writing
from lightning_mmrl.models.adapters import AdapterSettings
from lightning_mmrl.models.encoders import MediaEncoder, tower_fingerprint
from lightning_mmrl.models.feature_cache import FeatureCache
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.tensors import PromptEncoder, RolloutEngine
from lightning_mmrl.registry import targets
from lightning_mmrl.registry.families import stored_family
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.stages.answers import Examiner
from lightning_mmrl.training.console import ConsoleProgress
from lightning_mmrl.training.group import RankGroup
from lightning_mmrl.training.trainer import TrainerSettings
from lightning_mmrl.types.media import MediaSettings


@dataclass(frozen=True)
class Assembly:
    """The parts that all stages and evaluations of a run share, and the processes that run them together."""

    config: RootConfig
    console: ConsoleProgress
    group: RankGroup = field(default_factory=RankGroup)

    @cached_property
    def trainer_settings(self) -> TrainerSettings:
        """Device and precision of evaluations."""
        return trainer_settings(self.config.trainer)

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

    @cached_property
    def monitor(self) -> "ConsoleMonitor":
        """Shows and writes down what happens to the data."""
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
        """How media become tensors for one encoder."""
        return MediaPipeline(
            encoder=encoder,
            settings=self.media_settings,
            cache=MediaCache(Path(self.config.data.media.cache_dir)),
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

    def policy(self, checkpoint: Path | str, encoder: PromptEncoder, temperature: float) -> Policy:
        """The policy of a checkpoint."""
        dtype = getattr(torch, self.config.model.dtype)
        node = self.config.model.family["backbone"]
        backbone = targets.build(node, "model.family.backbone", checkpoint=str(checkpoint), dtype=dtype)
        banned, sharing = encoder.banned_token_ids(), self.config.model.sharing
        policy = Policy(backbone, banned_token_ids=banned, temperature=temperature, sharing=sharing)
        if sharing and policy.sharing_refusal is not None:
            self.console.say(f"each completion is scored behind a copy of its prompt: {policy.sharing_refusal}")
        return policy

    def adapt(self, policy: Policy, config: AdapterConfig, stage: str) -> None:
        """Puts a stage's adapter into its policy, and says what that changes."""
        refusal = policy.sharing_refusal
        num_trained = policy.adapt(adapter_settings(config), f"stages.{stage}.adapter")
        self.console.say(f"stage {stage} trains an adapter of {num_trained} parameters; all weights stay as they are")
        if policy.sharing_refusal != refusal:
            self.console.say(f"each completion is scored behind a copy of its prompt: {policy.sharing_refusal}")

    def feature_cache(self, stage: str, media: MediaEncoder) -> FeatureCache | None:
        """Where a stage keeps the outputs of its towers: nowhere if there is no cache, no tower, or one that trains."""
        settings = self.config.model.feature_cache
        if settings is None or not media.backbone.towers:
            return None
        if media.towers_train:
            self.console.say(f"stage {stage} trains a media tower, so it does not use model.feature_cache")
            return None
        towers = tower_fingerprint(media.backbone)
        return FeatureCache(Path(settings.directory), max_bytes=settings.max_bytes, towers=towers)

    def examiner(self, policy: Policy, encoder: PromptEncoder) -> Examiner:
        """Greedy answers, judged."""
        engine = self.engine(policy, encoder, self.config.evaluation.max_new_tokens)
        apart = self.group.interruption.rank_local
        return Examiner(engine=engine, matcher=self.matcher, lexicon=self.lexicon, apart=apart)

    def engine(self, policy: Policy, encoder: PromptEncoder, max_new_tokens: int) -> HFEngine:
        """Answers of the policy itself."""
        return HFEngine.of(policy, encoder=encoder, max_new_tokens=max_new_tokens, **self._engine_settings())

    def rollout_engine(self, policy: Policy, encoder: PromptEncoder, sampling: SamplingConfig) -> RolloutEngine:
        """What RL stages sample with."""
        make = targets.build({**self.config.rollout, "_partial_": True}, "rollout")
        limits = {"max_new_tokens": sampling.max_new_tokens, "top_p": sampling.top_p}
        return make(policy, encoder=encoder, **limits, **self._engine_settings())

    def _engine_settings(self) -> dict[str, Any]:
        return {"prefill": self.template.prefill, "poll": self.group.interruption.poll}

    def base_checkpoint(self) -> Path:
        """As `base_folder`, after a check of its files if it is a stage's handoff.

        Raises:
            StageError: It is a handoff that is not whole, or not what its stage left.
            DiskError: As `base_folder`.
        """
        folder = self.base_folder()
        facts_if_sealed(folder)
        return folder

    def base_folder(self) -> Path:
        """The folder or hub id of the base model, built first if the configuration says how.

        Raises:
            DiskError: The disk refuses the folder; what was begun is removed.
        """
        checkpoint = Path(self.config.model.checkpoint)
        if self.config.model.build is not None and not (checkpoint / "config.json").is_file():
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(checkpoint.with_name(checkpoint.name + ".lock")):
                self._build_base(checkpoint)
        return checkpoint

    def _build_base(self, checkpoint: Path) -> None:
        if (checkpoint / "config.json").is_file():
            return  # another run of the same seed was first
        self.console.say(f"building the base model in {checkpoint}")
        with writing(checkpoint), folder_beside(checkpoint, made=False) as partial:
            targets.build(self.config.model.build, "model.build", directory=partial)
            follow_umask(partial)
            os.replace(partial, checkpoint)

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
            on_progress=lambda done, total: self.console.update("generating samples", done, total),
        )

    def validation_feed(self) -> ValidationFeed | None:
        """What stages are validated on, if anything."""
        data, batch_size = self.config.data, self.config.evaluation.batch_size
        if data.validation is None:
            return None
        return ValidationFeed(
            root=self.data_root, manifest=data.validation, limit=data.validation_limit, batch_size=batch_size
        )

    def facts(self) -> dict[str, Any]:
        """What a user of a handoff must know to prompt it as it was trained: plain values alone."""
        return {
            "prompt": asdict(self.config.prompt),
            "media": asdict(self.media_settings),
            "labels": list(self.config.data.labels),
            "family": stored_family(self.config.model.family),
            "dtype": self.config.model.dtype,
            "position_rule": self.config.model.position_rule,
            "audio_in_video": self.config.model.audio_in_video,
            "max_new_tokens": self.config.evaluation.max_new_tokens,
        }


@dataclass(frozen=True)
class ConsoleMonitor:
    """Implements `DataMonitor`: progress on the console, left-out samples there and in a file, if there is one.

    A notice that several stages would give alike is given once.
    """

    console: ConsoleProgress
    path: Path | None
    told: set[tuple[str, ...]] = field(default_factory=set)

    def progress(self, description: str, done: int, total: int) -> None:
        """Shows how far decoding is."""
        self.console.update(description, done, total)

    def quarantine(self, manifest: str, num_usable: int, left_out: Sequence[Quarantined]) -> None:
        """Names the first samples that were left out, and writes each down once for the whole run."""
        news = (manifest, *(item.sample_id for item in left_out))
        if self.path is None or news in self.told:
            return
        self.told.add(news)
        total = num_usable + len(left_out)
        self.console.say(f"{manifest}: {len(left_out)} of {total} samples left out, all named in {self.path}")
        for item in left_out[:3]:
            self.console.say(f"  {item.sample_id}: {item.reason}")
        rows = [json.dumps({"manifest": manifest, **asdict(item)}) for item in left_out]
        known = map(_without_reason, self.path.read_text(encoding="utf-8").splitlines()) if self.path.exists() else ()
        new = {_without_reason(row): row for row in rows}
        for old in known:
            new.pop(old, None)
        with dispensable(f"lists of left-out samples ({self.path.name})", self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(row + "\n" for row in new.values())

    def warn(self, manifest: str, warnings: Sequence[str]) -> None:
        """Says what decoders find odd, each once; of many the first."""
        new = [text for text in warnings if (text,) not in self.told]
        self.told.update((text,) for text in new)
        if self.path is None:
            return
        for text in new[:_MAX_WARNINGS]:
            self.console.say(f"{manifest}: warning: {text}")
        if len(new) > _MAX_WARNINGS:
            rest = len(new) - _MAX_WARNINGS
            self.console.say(f"{manifest}: {rest} more such warnings; mmrl data validate shows all")


_MAX_WARNINGS = 10


def _without_reason(row: str) -> str:
    """The part of a quarantine line that names manifest and sample; quotes within a text are escaped."""
    return row.partition(', "reason": ')[0]


def adapter_settings(config: AdapterConfig) -> AdapterSettings:
    """The settings of an adapter; one target may stand for a list of one."""
    targets = config.targets if isinstance(config.targets, list) else [config.targets]
    return AdapterSettings(**{**asdict(config), "targets": tuple(targets), "groups": tuple(config.groups)})


def trainer_settings(config: TrainerConfig) -> TrainerSettings:
    """The settings of a trainer; the cap on steps is the stage's business."""
    values = asdict(config)
    del values["max_steps"]
    return TrainerSettings(**values)


def training_sources(config: RootConfig, data: StageDataConfig) -> tuple[Source, ...]:
    """What a stage trains on: its sources, or its manifest as the only one."""
    root = Path(config.data.root)
    if data.manifest:
        return (Source(name=data.manifest, root=root, manifest=data.manifest, limit=data.limit),)
    return tuple(
        Source(
            name=name,
            root=Path(source.root) if source.root else root,
            manifest=source.manifest,
            weight=source.weight,
            limit=source.limit or data.limit,
        )
        for name, source in data.sources.items()
    )


def quiet_libraries() -> None:
    """Keeps libraries from writing between the lines of our progress."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It shows the traceback of each failure of its database; tracking says in a line what failed, and goes on.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=r".*does not have many workers.*")
    # lightning 2.6 walks data loaders with torch's old pytree test.
    warnings.filterwarnings(
        "ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", category=FutureWarning
    )
