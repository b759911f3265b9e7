"""The task of each evaluation set and of the validation."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.evaluation.sampled import SAMPLED, SampledAnswers
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.registry import targets
from lightning_mmrl.settings.data import DataSettings
from lightning_mmrl.settings.run import RunSettings, data_key

VALIDATION = "validation"
"""Name of the validation among the sets; no evaluation set may have it."""
CLOSED_LABELS = "lightning_mmrl.evaluation.tasks.closed_labels.ClosedLabels"


def built_tasks(config: RunSettings) -> dict[str, Task]:
    """Builds the tasks of the validation and of each evaluation set, by name; sets of one dataset share its task.

    The validation has the task of `config.data`, which `RunSettings.of_stage` replaces by the dataset of a stage.

    Raises:
        ConfigError: A task cannot be built, or its target is no task.
    """
    return _tasks(config, targets.build)


def task_outlines(config: RunSettings) -> dict[str, Task]:
    """Builds the tasks only to read the names of their metrics: nested nodes, such as a verifier, are left out.

    Verifiers take long to import, and `mmrl plan` needs none.
    """
    return _tasks(config, _outline)


def task_of_result(name: str, tasks: Mapping[str, Task]) -> Task:
    """Returns the task of a result by its name.

    That is the task of the set; for a variant (`test-silent`) the task of the set before the last hyphen; and the task
    of the validation for a set that the configuration no longer has. A result of sampled answers that the configuration
    no longer asks for has at least the metrics of one answer.
    """
    if name in tasks:
        return tasks[name]
    whole, _, variant = name.rpartition("-")
    task = tasks.get(whole) or tasks[VALIDATION]
    return SampledAnswers(whole=task, num_answers=1) if variant == SAMPLED else task


def _tasks(config: RunSettings, build: Callable[[Mapping[str, Any], str], Any]) -> dict[str, Task]:
    key = next(key for key, data in config.all_data.items() if data is config.data)
    found = {VALIDATION: _checked(_node_of(config.data), f"{key}.task", build)}
    shared: dict[str | None, Task] = {None: found[VALIDATION]} if config.dataset(None) is config.data else {}
    for name, each in config.evaluation.sets.items():
        if each.task is not None:
            found[name] = _checked(each.task, f"evaluation.sets.{name}.task", build)
        else:
            if each.dataset not in shared:
                key = f"{data_key(each.dataset)}.task"
                shared[each.dataset] = _checked(_node_of(config.dataset(each.dataset)), key, build)
            found[name] = shared[each.dataset]
    if num := config.evaluation.samples:
        sampled = {
            f"{name}-{SAMPLED}": SampledAnswers(whole=found[name], num_answers=num) for name in config.evaluation.sets
        }
        return found | sampled
    return found


def _node_of(data: DataSettings) -> Mapping[str, Any]:
    """Returns the node of the dataset's task; by default, answers are one label of the dataset's closed set."""
    if data.task is not None:
        return data.task
    lexicon = None if data.cue_lexicon is None else str(Path(data.root) / data.cue_lexicon)
    return {"_target_": CLOSED_LABELS, "labels": data.labels, "cue_lexicon": lexicon}


def _checked(node: Mapping[str, Any], path: str, build: Callable[[Mapping[str, Any], str], Any]) -> Task:
    task = build(node, path)
    if not isinstance(task, Task):
        raise ConfigError(f"{path}._target_ is {node['_target_']}, which is no Task; derive it from that class")
    return task


def _outline(node: Mapping[str, Any], path: str) -> Any:
    plain = {key: value for key, value in node.items() if not (isinstance(value, Mapping) and "_target_" in value)}
    return targets.build(plain, path, **dict.fromkeys(node.keys() - plain.keys()))
