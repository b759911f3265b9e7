"""Checks tasks, and bounds on metrics: the task of a set decides which metrics the set has."""

from collections.abc import Mapping

from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.registry.tasks import VALIDATION, task_outlines
from lightning_mmrl.settings.rules import one_of
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import StageSettings


def check_tasks(config: RunSettings) -> None:
    """Refuses tasks that cannot be built, and bounds on metrics that no set has.

    Raises:
        ConfigError: Naming the key, its value and the nearest metric.
    """
    for name, stage in config.trained.items():
        seen = config.of_stage(stage)
        _check_bounds(f"stages.{name}", stage, seen, task_outlines(seen))


def _check_bounds(path: str, stage: StageSettings, config: RunSettings, tasks: Mapping[str, Task]) -> None:
    metrics: list[str] = []
    if stage.validate_every is not None and config.data.validation is not None:
        metrics += [f"{VALIDATION}/{name}" for name in tasks[VALIDATION].validated_names()]
    if stage.stop_when is not None:
        one_of(stage.stop_when.metric, f"{path}.stop_when.metric", metrics)
    if stage.gate is not None:
        sets = config.sets(stage.evaluation_sets)
        metrics += [f"{each}/{name}" for each in sets for name in tasks[each].metric_names()]
        one_of(stage.gate.metric, f"{path}.gate.metric", metrics)
