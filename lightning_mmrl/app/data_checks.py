"""Checks every sample that a run will need before anything trains, without decoding and without weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning_mmrl.app.gold_checks import gold_check, task_check
from lightning_mmrl.app.stages import data_module, data_sources
from lightning_mmrl.curriculum.artifacts import sealed
from lightning_mmrl.curriculum.graph import SOURCES
from lightning_mmrl.data.answer_columns import RowError
from lightning_mmrl.data.datamodules import balance_labels
from lightning_mmrl.data.exchanges import turns_check
from lightning_mmrl.data.label_findings import label_findings
from lightning_mmrl.data.manifest import NOT_KEPT, Indexing
from lightning_mmrl.data.samples import RowCheck, samples_of
from lightning_mmrl.data.schema import LoadedManifest
from lightning_mmrl.data.sources import load_source, place_of
from lightning_mmrl.data.written_targets import of_targets, with_targets
from lightning_mmrl.errors import DataError, StageError
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.evaluation.tasks.mathematics import Mathematics
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.plain import GoldReader
from lightning_mmrl.registry import targets
from lightning_mmrl.registry.kinds import kind_of
from lightning_mmrl.registry.tasks import VALIDATION, built_tasks
from lightning_mmrl.rewards.hard_format_result import HardFormatResult
from lightning_mmrl.rewards.label_answer import LabelAnswer
from lightning_mmrl.settings.data import DataSettings, SourceSettings
from lightning_mmrl.settings.lessons import Lesson, lesson_of, with_target
from lightning_mmrl.settings.run import EvaluationSetSettings, RunSettings
from lightning_mmrl.settings.stage import NodeSettings, StageSettings
from lightning_mmrl.types.records import WEIGHTS, ArtifactType, Sample, StageSpec

FACTS_OF_DATA: Mapping[ArtifactType, Sequence[str]] = {
    "manifest": ("manifest", "media_root", "counts"),
    "table": ("media_root", "counts"),
}
"""Facts that the seal of each type of data must hold: the name of the manifest, the folder of the media, the counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One use of a manifest in a run.

    Attributes:
        source: The manifest, in its folder.
        seen: The configuration as this use sees it: with its own dataset and prompt.
        media: Folder of its media.
        num_samples: How many samples are used, counted from the beginning of the manifest; None for all.
        supervised: True if each sample must have a target.
        lesson: Which targets are learned from a sample.
        by_label: True if a reward, a balance or an evaluation reads solutions as labels; otherwise solutions may be
            free answers.
        checks: Functions that take the manifest's name and its samples, and raise a DataError for samples that do not
            serve the use. The outcome of a `RowCheck` is kept with the index of a large manifest.
    """

    source: SourceSettings | EvaluationSetSettings
    seen: RunSettings
    media: Path
    num_samples: int | None
    supervised: bool
    lesson: Lesson
    by_label: bool
    checks: tuple[Callable[[str, Sequence[Sample]], object], ...]

    @property
    def key(self) -> tuple[Path, Path, str | None]:
        """The manifest as `load_source` takes it."""
        return self.source.path, self.media, self.source.format

    @property
    def target(self) -> str | None:
        """The text of the answers to learn, if they are written from columns."""
        return self.source.target if isinstance(self.source, SourceSettings) else None


def indexing_of(config: RunSettings, on_progress: Callable[[str, int, int], object] | None = None) -> Indexing:
    """How large manifests are indexed: beside the media, and with the processes that decode them."""
    media = config.data.media
    return Indexing(
        folder=Path(media.cache_dir),
        workers=media.decode_workers,
        on_progress=on_progress or NOT_KEPT.on_progress,
    )


def check_data(config: RunSettings, on_progress: Callable[[str, int, int], object] | None = None) -> list[str]:
    """Checks the data of all stages, of the validation and of all evaluation sets, so that faults show early.

    Whether a model family reads a kind of media is checked when a stage is built and its encoder is loaded.

    Args:
        config: The configuration.
        on_progress: As in `Indexing`.

    Returns:
        Sentences on how files of other formats were understood, and about labels that look like mistakes; each begins
        with the name of the manifest.

    Raises:
        DataError: A manifest is missing, a line of it is wrong, or a sample does not serve its use.
    """
    return _checked(uses(config), indexing_of(config, on_progress))


def check_made(config: RunSettings, specs: Sequence[StageSpec], made: StageSpec, folders: Mapping[str, Path]) -> None:
    """Checks that data made by one stage serve the stages that read them.

    Args:
        config: The configuration.
        specs: All stages.
        made: The stage that made the data.
        folders: The folders of its artifacts.

    Raises:
        DataError: A sample does not serve its use.
        StageError: The seal of an artifact lacks a fact.
    """
    for spec in specs:
        edges = {key: edge for key, edge in spec.inputs.items() if key != WEIGHTS and edge.type in FACTS_OF_DATA}
        own = {key: edge for key, edge in edges.items() if edge.stage == made.name}
        read = {key: folders[edge.artifact] for key, edge in own.items()}
        for key, folder in read.items():
            facts = sealed(folder)
            counts = facts.get("counts", {})
            lacking = [fact for fact in FACTS_OF_DATA[own[key].type] if fact not in facts]
            for fact in lacking or ([] if "kept" in counts else ["counts.kept"]):
                kind = made.settings.kind
                raise StageError(f"{folder} does not say {fact!r}; its kind of stage, {kind}, must give this fact")
        sources = data_sources(spec, read, config)
        filled = {name: sources[name] for name in sources if f"{SOURCES}{name}" in read}
        if filled:
            path, stage = f"stages.{spec.name}", config.stages[spec.name]
            own = _uses_of_stage(path, stage, config.of_stage(stage), filled)
            _checked(own, indexing_of(config))


def _checked(found: Sequence[Use], indexing: Indexing) -> list[str]:
    read: dict[tuple[Path, Path, str | None], LoadedManifest] = {}
    labeled: dict[tuple[Path, Path, str | None], str] = {}
    for use in found:
        labeled |= {use.key: use.source.manifest} if use.by_label else {}
        if use.key not in read:
            whole = [each for each in found if each.key == use.key and each.num_samples is None]
            at_once = [
                of_targets(check, each.target)
                for each in whole
                for check in each.checks
                if isinstance(check, RowCheck) and not check.slow
            ]
            read[use.key] = load_source(*use.key, indexing=indexing, checks=at_once)
        try:
            samples = with_targets(read[use.key].samples[: use.num_samples], use.target)
            for check in use.checks:
                check(use.source.manifest, samples)
        except RowError as error:
            reason = str(error).removeprefix(f"{use.source.manifest}: ")
            raise DataError(f"{place_of(error.sample_id, *use.key)}: {reason}") from error
    warnings = []
    for key, loaded in read.items():
        warnings += loaded.notes
        if key in labeled:
            labels = loaded.samples.solutions().counts()
            warnings += [f"{labeled[key]}: {finding}" for finding in label_findings(labels)]
    return list(dict.fromkeys(warnings))


def uses(config: RunSettings) -> list[Use]:
    """Returns each use of a manifest that exists before the run: by stages in order, and evaluation sets last."""
    tasks, found = built_tasks(config), []

    def validation_of(data: DataSettings) -> EvaluationSetSettings:
        return EvaluationSetSettings(manifest=data.validation or "").located(data)

    def evaluated(
        each: EvaluationSetSettings, seen: RunSettings, limit: int | None, task: Task | None, *more: Any
    ) -> Use:
        turns = turns_check(PromptTemplate(seen.prompt), supervised=False)
        return Use(
            source=each,
            seen=seen,
            media=each.media_folder,
            num_samples=limit,
            supervised=False,
            lesson="turns",
            by_label=isinstance(task, ClosedLabels),
            checks=() if task is None else (*more, turns, *_task_checks(task)),
        )

    for name in config.order:
        stage, path = config.stages[name], f"stages.{name}"
        seen = config.of_stage(stage)
        found += _uses_of_stage(path, stage, seen, stage.data.located(seen.data))
        if isinstance(stage, StageSettings) and stage.validate_every and seen.data.validation is not None:
            module, task = data_module(path, stage, config), built_tasks(seen)[VALIDATION]
            limit = seen.data.validation_limit
            found.append(evaluated(validation_of(seen.data), seen, limit, task, module.check_kinds))
    for data in config.all_data.values():
        if data.validation is not None:
            # Even if no stage validates: the run records every manifest that its configuration names.
            found.append(evaluated(validation_of(data), replace(config, data=data), None, None))
    for name, each in config.sets().items():
        seen = replace(config, prompt=config.prompt_of(each))
        found.append(evaluated(each, seen, config.evaluation.limit, tasks[name]))
    return found


def _uses_of_stage(
    path: str, stage: NodeSettings, config: RunSettings, sources: Mapping[str, SourceSettings]
) -> list[Use]:
    """Returns a use for each source of a stage that has a manifest; `config` is as the stage sees it."""
    supervised, lesson = kind_of(stage, path).supervised, lesson_of(stage)
    template, labels = PromptTemplate(config.prompt), tuple(config.data.labels)
    matcher = LabelMatcher(labels=labels) if labels else None
    module = data_module(path, stage, config)
    checks = [module.check_kinds, turns_check(template, supervised=supervised, lesson=lesson)]
    if stage.data.balance is not None:
        checks.append(partial(balance_labels, matcher=matcher))
    # A stage that learns or checks given answers takes no solution from them; rewards of others read it.
    nodes = {} if stage.rewards is None or supervised else stage.rewards.components
    rewards = [targets.build(node, f"{path}.rewards.components.{name}") for name, node in nodes.items()]
    judges = [reward.result if isinstance(reward, HardFormatResult) else reward for reward in rewards]
    by_label = any(isinstance(judge, LabelAnswer) for judge in judges)
    settings = stage.rewards
    checks += [
        labels_check(reward.matcher)
        if isinstance(reward, LabelAnswer)
        else gold_check(f"{path}.rewards.components.{name}", reward, settings)
        for name, reward in zip(nodes, rewards, strict=True)
        if isinstance(reward, GoldReader) and settings is not None
    ]
    if not isinstance(stage, StageSettings):
        checks.append(partial(_check_new_ids, path=path, found={}))
    return [
        Use(
            source=source,
            seen=config,
            media=source.media_folder,
            num_samples=source.limit,
            supervised=supervised,
            lesson=lesson,
            by_label=by_label or stage.data.balance is not None,
            checks=tuple(checks),
        )
        for source in (with_target(stage, each) for each in sources.values())
        if source.manifest
    ]


def _check_new_ids(manifest: str, samples: Sequence[Sample], path: str, found: dict[str, str]) -> None:
    """Refuses an id that occurs in two sources; `found` maps the ids of earlier sources to their manifests."""
    ids = list(samples_of(samples).ids())
    for name in ids:
        if name in found:
            raise DataError(
                f"{path}.data: {found[name]} and {manifest} both have the id {name!r}, and a table has each id once; "
                "rename it, or sample the sources in two stages"
            )
    found |= dict.fromkeys(ids, manifest)


def labels_check(matcher: LabelMatcher) -> RowCheck:
    """Checks that each solution names a label."""
    known = {"labels": list(matcher.labels), "synonyms": matcher.synonyms, "max_characters": matcher.max_characters}
    return RowCheck(test=matcher.truth, inputs={"check": "labels", **known})


def _task_checks(task: Task) -> list[Callable[[str, Sequence[Sample]], object]]:
    """The checks of a task. Of closed labels and mathematics it is known what decides the outcome, so it is kept."""
    if type(task) is Mathematics:
        return [task_check(task)]
    if type(task) is not ClosedLabels:
        return [task.check]
    return [lambda manifest, samples: task.lexicon, labels_check(task.matcher)]
