"""Checks every sample that a run will need before anything trains, without decoding and without weights."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning_mmrl.app.gold_checks import check_golds
from lightning_mmrl.app.stages import data_module, data_sources
from lightning_mmrl.curriculum.artifacts import sealed
from lightning_mmrl.curriculum.graph import SOURCES
from lightning_mmrl.data.datamodules import balance_labels
from lightning_mmrl.data.label_findings import label_findings
from lightning_mmrl.data.prepared import check_turns
from lightning_mmrl.data.schema import LoadedManifest
from lightning_mmrl.data.sources import load_source
from lightning_mmrl.errors import DataError, StageError
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
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
from lightning_mmrl.settings.run import EvaluationSetSettings, RunSettings
from lightning_mmrl.settings.sft import learns_last_turn
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
        supervised: True if each sample must end with a target.
        last_only: True if earlier assistant turns are no targets.
        by_label: True if a reward, a balance or an evaluation reads solutions as labels; otherwise solutions may be
            free answers.
        checks: Functions that take the manifest's name and its samples, and raise a DataError for samples that do not
            serve the use.
    """

    source: SourceSettings | EvaluationSetSettings
    seen: RunSettings
    media: Path
    num_samples: int | None
    supervised: bool
    last_only: bool
    by_label: bool
    checks: tuple[Callable[[str, Sequence[Sample]], object], ...]


def check_data(config: RunSettings) -> list[str]:
    """Checks the data of all stages, of the validation and of all evaluation sets, so that faults show early.

    Whether a model family reads a kind of media is checked when a stage is built and its encoder is loaded.

    Returns:
        Sentences on how files of other formats were understood, and about labels that look like mistakes; each begins
        with the name of the manifest.

    Raises:
        DataError: A manifest is missing, a line of it is wrong, or a sample does not serve its use.
    """
    return _checked(uses(config))


def check_made(config: RunSettings, specs: Sequence[StageSpec], made: StageSpec, folders: Mapping[str, Path]) -> None:
    """Checks that data made by one stage serve the stages that read them.

    Args:
        config: The configuration.
        specs: All stages.
        made: The stage that made the data.
        folders: The folders of its artifacts.

    Raises:
        DataError: An artifact that a stage reads holds no sample, or a sample does not serve its use.
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
            if not counts["kept"]:
                reasons = ", ".join(f"{number} {reason}" for reason, number in counts.items())
                raise DataError(
                    f"stages.{spec.name}.{key}: artifact {folder.name} of stage {made.name} has no sample ({reasons}); "
                    f"change stages.{made.name}, and run it again with --from-stage {made.name}"
                )
        names = [key.removeprefix(SOURCES) for key in read if key.startswith(SOURCES)]
        if names:
            path, stage = f"stages.{spec.name}", config.stages[spec.name]
            sources = data_sources(spec, read, config)
            _checked(_uses_of_stage(path, stage, config.of_stage(stage), {name: sources[name] for name in names}))


def _checked(found: Sequence[Use]) -> list[str]:
    read: dict[tuple[Path, Path, str | None], LoadedManifest] = {}
    labeled: dict[tuple[Path, Path, str | None], str] = {}
    for use in found:
        key = use.source.path, use.media, use.source.format
        labeled |= {key: use.source.manifest} if use.by_label else {}
        if key not in read:
            read[key] = load_source(*key)
        for check in use.checks:
            check(use.source.manifest, read[key].samples[: use.num_samples])
    warnings = []
    for key, loaded in read.items():
        warnings += loaded.notes
        if key in labeled:
            labels = Counter(sample.solution for sample in loaded.samples if sample.solution is not None)
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
        turns = partial(check_turns, template=PromptTemplate(seen.prompt), supervised=False)
        return Use(
            source=each,
            seen=seen,
            media=each.media_folder,
            num_samples=limit,
            supervised=False,
            last_only=False,
            by_label=isinstance(task, ClosedLabels),
            checks=() if task is None else (*more, turns, task.check),
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
    supervised, last_only = kind_of(stage, path).supervised, learns_last_turn(stage)
    template, labels = PromptTemplate(config.prompt), tuple(config.data.labels)
    matcher = LabelMatcher(labels=labels) if labels else None
    module = data_module(path, stage, config)
    checks = [module.check_kinds, partial(check_turns, template=template, supervised=supervised, last_only=last_only)]
    if stage.data.balance is not None:
        checks.append(partial(balance_labels, matcher=matcher))
    nodes = {} if stage.rewards is None else stage.rewards.components
    rewards = [targets.build(node, f"{path}.rewards.components.{name}") for name, node in nodes.items()]
    by_label = [reward for reward in rewards if _reads_labels(reward)]
    settings = stage.rewards
    checks += [
        partial(check_golds, path=f"{path}.rewards.components.{name}", judge=reward, settings=settings)
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
            last_only=last_only,
            by_label=bool(by_label) or stage.data.balance is not None,
            checks=tuple(checks),
        )
        for source in sources.values()
        if source.manifest
    ]


def _check_new_ids(manifest: str, samples: Sequence[Sample], path: str, found: dict[str, str]) -> None:
    """Refuses an id that occurs in two sources; `found` maps the ids of earlier sources to their manifests."""
    for sample in samples:
        if sample.id in found:
            raise DataError(
                f"{path}.data: {found[sample.id]} and {manifest} both have the id {sample.id!r}, and a table has each "
                "id once; rename it, or sample the sources in two stages"
            )
    found |= {sample.id: manifest for sample in samples}


def _reads_labels(reward: object) -> bool:
    """True for a reward on labels, also as the result of a hard format-result reward."""
    return isinstance(reward.result if isinstance(reward, HardFormatResult) else reward, LabelAnswer)
