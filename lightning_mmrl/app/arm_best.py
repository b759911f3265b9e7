"""The evaluation of a run's best weights in a comparison, by `mmrl evaluate` outside of the run, asked as within it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_mmrl.app.arms import BEST, ArmRun
from lightning_mmrl.app.processes import Command
from lightning_mmrl.app.run_folder import EVALUATIONS, evaluation_lock
from lightning_mmrl.curriculum.artifacts import BEST as WEIGHTS
from lightning_mmrl.curriculum.artifacts import sealed
from lightning_mmrl.curriculum.attempt import stage_folder
from lightning_mmrl.errors import StageError
from lightning_mmrl.files import read_json, write_json
from lightning_mmrl.report.run_files import SUMMARY
from lightning_mmrl.settings.rollout import POLICY_ITSELF, engine_node
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.types.records import StageSpec

EVALUATED = "evaluated_with.json"
"""File beside the evaluations that says which weights were evaluated, and how."""


def evaluation_of_best(run: ArmRun) -> Path:
    """The folder of the evaluation of a run's best weights, whether or not it exists."""
    return run.comparison / BEST / run.name / EVALUATIONS / WEIGHTS


def best_weights(run: ArmRun) -> Path | None:
    """The best weights of a run's last trained stage; None if it keeps none."""
    last = _last(run)
    place = None if last is None else stage_folder(run.directory, last) / WEIGHTS
    return place if place is not None and place.is_dir() else None


def is_evaluated(run: ArmRun) -> bool:
    """Whether the best weights of a run, as they are now, were evaluated as is asked; True without any."""
    best = best_weights(run)
    if best is None:
        return True
    record = _record(run)
    try:
        known = record.is_file() and read_json(record, "") == _asked(run, best)
    except StageError:  # a damaged record says nothing, and the evaluation itself refuses damaged weights
        known = False
    return known and (evaluation_of_best(run) / SUMMARY).is_file()


def note_evaluated(run: ArmRun, best: Path) -> None:
    """Writes down what the evaluation that ended was one of."""
    write_json(_record(run), _asked(run, best))


def evaluation_command(run: ArmRun, best: Path) -> Command:
    """The process that evaluates the best weights of a run."""
    last = _last(run)
    assert last is not None
    assert isinstance(last.settings, StageSettings)
    overrides = (*_prompts(run.config, last.name, last.settings), *_policy_itself(run.config))
    arguments = ("evaluate", str(best), *run.command(BEST, run.name), *overrides)
    return Command(arguments=arguments, lock=evaluation_lock(evaluation_of_best(run)))


def _prompts(config: RunSettings, name: str, stage: StageSettings) -> Iterator[str]:
    """Overrides that give each set the prompt that it has after a stage, which `mmrl evaluate` does not know."""
    for key, each in config.evaluation.sets.items():
        if config.prompt_of(each, stage) == config.prompt_of(each):
            continue
        prompt = f"${{stages.{name}.prompt}}"
        if isinstance(each.short, str):  # which may be a text and no mapping of keys
            yield f"++evaluation.sets.{key}={{manifest:{json.dumps(each.short)},prompt:{prompt}}}"
        else:
            yield f"++evaluation.sets.{key}.prompt={prompt}"


def _policy_itself(config: RunSettings) -> Iterator[str]:
    """Overrides that have the model itself answer, as it does within a run, in the place of the engine of `rollout`."""
    node = engine_node(config.rollout)
    if node["_target_"] == POLICY_ITSELF:
        return
    yield from (f"~rollout.{key}" for key in node if key != "_target_")
    yield f"++rollout._target_={POLICY_ITSELF}"


def _last(run: ArmRun) -> StageSpec | None:
    return next((spec for spec in reversed(run.specs()) if spec.trains), None)


def _record(run: ArmRun) -> Path:
    return run.comparison / BEST / run.name / EVALUATED


def _asked(run: ArmRun, best: Path) -> dict[str, Any]:
    last = _last(run)
    return {"weights": sealed(best)["seal"], "evaluation": None if last is None else last.evaluation}
