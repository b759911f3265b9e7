"""Decides which stages of a curriculum a run trains, which it only evaluates, and which it refuses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.curriculum.spec import source_stage
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.types.records import StageSpec

Action = Literal["train", "evaluate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The choice of the stages that a call runs.

    Attributes:
        from_stage: Run this stage and all stages that build on it, even if they are finished, and later stages that
            are unfinished.
        only_stage: Run only this stage, even if it is finished; the stage that it starts from must be finished.
        allow_changes: Keep finished stages whose configuration has changed, instead of refusing the run.
    """

    from_stage: str | None = None
    only_stage: str | None = None
    allow_changes: bool = False


def due_actions(stages: Sequence[StageSpec], manifest: Manifest, selection: Selection) -> dict[str, Action]:
    """The action for each stage: train it, or evaluate its handoff; stages without an action are left out.

    Raises:
        ConfigError: The selection names an unknown stage, contradicts itself, or lacks a stage to start from.
    """
    names = [spec.name for spec in stages]
    for flag, name in (("--from-stage", selection.from_stage), ("--only-stage", selection.only_stage)):
        if name is not None and name not in names:
            raise ConfigError(f"{flag} {name}: no such stage; order has {', '.join(names)}")
    if selection.from_stage is not None and selection.only_stage is not None:
        raise ConfigError("--from-stage and --only-stage exclude each other; give one of them")
    if selection.only_stage is not None:
        due: dict[str, Action] = {selection.only_stage: "train"}
    elif selection.from_stage is not None:
        due = _from_stage(selection.from_stage, stages, manifest)
    else:
        return _pending(stages, manifest)
    ready: set[str | None] = {None, *manifest.stages}
    for spec in stages:
        source = origin(spec, stages)
        if due.get(spec.name) == "train" and source not in ready:
            raise ConfigError(f"stage {spec.name} starts from {source}, which is not finished; run {source} first")
        ready |= {spec.name} & due.keys()
    return due


def is_stale(spec: StageSpec, stages: Sequence[StageSpec], manifest: Manifest) -> bool:
    """True for a finished stage whose starting handoff has been replaced since."""
    finished, source = manifest.stages.get(spec.name), origin(spec, stages)
    before = None if source is None else manifest.stages.get(source)
    if finished is None or before is None or finished.content.get("starts_from") != source:
        return False
    return before.result.handoff_digest != finished.result.input_digest


def origin(spec: StageSpec, stages: Sequence[StageSpec]) -> str | None:
    """Name of the stage that a stage starts from, None for the base model."""
    return source_stage(spec, [each.name for each in stages])


def with_ancestors(names: Iterable[str], stages: Sequence[StageSpec]) -> set[str]:
    """The stages and all stages that they build on."""
    kept = set(names)
    for spec in reversed(stages):
        source = origin(spec, stages)
        if spec.name in kept and source is not None:
            kept.add(source)
    return kept


def _from_stage(first: str, stages: Sequence[StageSpec], manifest: Manifest) -> dict[str, Action]:
    names = [spec.name for spec in stages]
    building = {first}
    for spec in stages:
        if origin(spec, stages) in building:
            building.add(spec.name)
    pending = _pending(stages, manifest)
    due: dict[str, Action] = {}
    for name in names[names.index(first) :]:
        if name in building:
            due[name] = "train"
        elif name in pending:
            due[name] = pending[name]
    return due


def _pending(stages: Sequence[StageSpec], manifest: Manifest) -> dict[str, Action]:
    due: dict[str, Action] = {}
    for spec in stages:
        finished, source = manifest.stages.get(spec.name), origin(spec, stages)
        if finished is None or (source is not None and due.get(source) == "train") or is_stale(spec, stages, manifest):
            due[spec.name] = "train"
        elif finished.evaluation != spec.evaluation:
            due[spec.name] = "evaluate"
    return due


def changed_stages(
    stages: Sequence[StageSpec], manifest: Manifest, due: Mapping[str, Action]
) -> dict[str, Mapping[str, object]]:
    """Finished stages that are kept although their configuration has changed, each with its old configuration."""
    kept = {spec.name: manifest.stages[spec.name].content for spec in stages if spec.name in manifest.stages}
    now = {spec.name: spec.content for spec in stages}
    return {
        name: content for name, content in kept.items() if due.get(name) != "train" and dict(content) != dict(now[name])
    }
