"""Decides which stages of a curriculum are run, which are only evaluated, and which are refused."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_mmrl.curriculum.changes import describe_changes, same_content
from lightning_mmrl.curriculum.graph import with_descendants
from lightning_mmrl.curriculum.manifest import FILE, FinishedStage, Manifest
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.settings.stage import BASE
from lightning_mmrl.types.records import HANDOFF, WEIGHTS, Edge, StageSpec

Action = Literal["run", "evaluate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The choice of the stages that a call runs.

    Attributes:
        from_stage: Run this stage and all stages that build on it, even if they are finished, and later stages that
            are unfinished.
        only_stage: Run only this stage, even if it is finished; the stages that it reads from must be finished.
        until_stage: Run what is unfinished up to and including this stage; `base` evaluates the base model alone.
        allow_changes: Keep finished stages whose configuration has changed, instead of refusing the run.
    """

    from_stage: str | None = None
    only_stage: str | None = None
    until_stage: str | None = None
    allow_changes: bool = False

    @property
    def everything(self) -> bool:
        """Whether all that is unfinished runs."""
        return self.from_stage is None and self.only_stage is None and self.until_stage is None


def due_actions(stages: Sequence[StageSpec], manifest: Manifest, selection: Selection) -> dict[str, Action]:
    """Returns the action for each stage: run it, or evaluate its handoff; stages without an action are left out.

    Raises:
        ConfigError: The selection names an unknown stage, contradicts itself, or lacks a stage to start from.
    """
    names = [spec.name for spec in stages]
    flags = {
        "--from-stage": selection.from_stage,
        "--only-stage": selection.only_stage,
        "--until-stage": selection.until_stage,
    }
    given = {flag: name for flag, name in flags.items() if name is not None}
    for flag, name in given.items():
        if name not in names and (flag, name) != ("--until-stage", BASE):
            raise ConfigError(f"{flag} {name}: no such stage; order has {', '.join(names)}")
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} exclude each other; give one of them")
    if selection.until_stage is not None:
        last = -1 if selection.until_stage == BASE else names.index(selection.until_stage)
        return {name: action for name, action in _pending(stages, manifest).items() if names.index(name) <= last}
    if selection.only_stage is not None:
        due: dict[str, Action] = {selection.only_stage: "run"}
    elif selection.from_stage is not None:
        due = _from_stage(selection.from_stage, stages, manifest)
    else:
        return _pending(stages, manifest)
    ready = set(manifest.stages)
    for spec in stages:
        for edge in spec.inputs.values() if due.get(spec.name) == "run" else ():
            if edge.stage not in ready:
                reads = "starts from" if edge.artifact == HANDOFF else "reads data of"
                raise ConfigError(
                    f"stage {spec.name} {reads} {edge.stage}, which is not finished; run {edge.stage} first"
                )
        ready |= {spec.name} & due.keys()
    return due


def is_stale(spec: StageSpec, manifest: Manifest) -> bool:
    """Whether a stage is finished and one of its inputs has been replaced since then."""
    finished = manifest.stages.get(spec.name)
    if finished is None:
        return False
    for key, edge in spec.inputs.items():
        before, read = manifest.stages.get(edge.stage), finished.result.inputs.get(key)
        made = None if before is None else before.result.artifacts.get(edge.artifact)
        # A stage that read another artifact before is refused or kept as changed.
        if made is not None and read is not None and _had_edge(finished, key, edge) and made.digest != read:
            return True
    return False


def _had_edge(finished: FinishedStage, key: str, edge: Edge) -> bool:
    """Whether a finished stage read this artifact; also True if the content of a user's own kind does not say."""
    if key == WEIGHTS:
        return finished.content.get("starts_from") == edge.stage
    before = (finished.content.get(f"stage.{key}.{name}") for name in ("stage", "artifact"))
    return all(old in (None, now) for old, now in zip(before, (edge.stage, edge.artifact), strict=True))


def _from_stage(first: str, stages: Sequence[StageSpec], manifest: Manifest) -> dict[str, Action]:
    names = [spec.name for spec in stages]
    building, pending = with_descendants(first, stages), _pending(stages, manifest)
    due: dict[str, Action] = {}
    for name in names[names.index(first) :]:
        if name in building:
            due[name] = "run"
        elif name in pending:
            due[name] = pending[name]
    return due


def _pending(stages: Sequence[StageSpec], manifest: Manifest) -> dict[str, Action]:
    due: dict[str, Action] = {}
    for spec in stages:
        finished = manifest.stages.get(spec.name)
        rebuilt = any(due.get(edge.stage) == "run" for edge in spec.inputs.values())
        if finished is None or rebuilt or is_stale(spec, manifest):
            due[spec.name] = "run"
        elif spec.trains and finished.evaluation != spec.evaluation:
            due[spec.name] = "evaluate"
    return due


def changed_stages(
    stages: Sequence[StageSpec], manifest: Manifest, due: Mapping[str, Action]
) -> dict[str, Mapping[str, object]]:
    """Returns the finished stages that are kept although their configuration changed, each with the old one."""
    kept = {spec.name: manifest.stages[spec.name].content for spec in stages if spec.name in manifest.stages}
    now = {spec.name: spec.content for spec in stages}
    return {
        name: content
        for name, content in kept.items()
        if due.get(name) != "run" and not same_content(content, now[name])
    }


def refuse_lost(stages: Sequence[StageSpec], manifest: Manifest, due: Mapping[str, Action], directory: Path) -> None:
    """Refuses a run that needs an artifact which the manifest lacks.

    Needed are the inputs of stages that run, and the weights of stages that are evaluated.

    Raises:
        StageError: Naming the stage that should have made it, and the artifact.
    """
    wanted = [
        (edge.stage, edge.artifact)
        for spec in stages
        for edge in (spec.inputs.values() if due.get(spec.name) == "run" else ())
    ]
    wanted += [(name, HANDOFF) for name, action in due.items() if action == "evaluate"]
    for name, artifact in wanted:
        kept = manifest.stages.get(name) if due.get(name) != "run" else None
        if kept is not None and artifact not in kept.result.artifacts:
            raise StageError(
                f"{directory / FILE}: finished stage {name} has no {artifact}, which is needed now; the file "
                "is damaged, or the stage made none when it ran; restore the file, or run the stage again with "
                f"--from-stage {name}"
            )


def refuse_changes(stages: Sequence[StageSpec], manifest: Manifest, due: Mapping[str, Action], directory: Path) -> None:
    """Refuses finished stages that would be kept although their configuration changed.

    Raises:
        ConfigError: There are such stages; the message lists the changes.
    """
    kept = changed_stages(stages, manifest, due)
    if not kept:
        return
    names = ", ".join(f"stages.{name}" for name in kept)
    raise ConfigError(
        f"{names}: finished in {directory} with another configuration:\n"
        + "".join(f"    {line}\n" for line in describe_changes(kept, stages))
        + "undo the change, set run_name to a new name, keep what is finished with --allow-changes, or run again "
        f"with --from-stage {next(iter(kept))}"
    )
