"""Preflight: builds cheap components before anything is loaded or written, so that invalid values fail early."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from lightning_mmrl.app.algorithm import build_algorithm
from lightning_mmrl.app.judges import check_judge
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.models.adapters import check_targets
from lightning_mmrl.models.families.backbone import FamilyBackbone
from lightning_mmrl.protocols.plain import Tracker
from lightning_mmrl.registry import targets
from lightning_mmrl.registry.kinds import kind_of
from lightning_mmrl.registry.tasks import built_tasks
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.llm_judge import LlmJudge
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.settings.rollout import engine_node
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.suggestions import first_line, shown

SFT_GIVES = ("policy", "optimizer", "context", "evaluator")
RL_GIVES = (*SFT_GIVES, "engine", "rewards", "algorithm", "table")
ENCODER_GIVES = ("checkpoint", "position_rule", "audio_in_video")
DATA_GIVES = ("pipeline", "template", "feed", "validation", "monitor")
ENGINE_GIVES = ("policy", "encoder", "sampling", "template", "poll")
"""Arguments that code passes to each kind of component, in addition to the keys of its configuration."""
OPTIONAL_PARTS = {
    "correction": ("old_logprobs", "sampler_logprobs", "completion_mask"),
    "select": ("rewards", "passed", "valid"),
    "resample": ("advantages", "candidates", "step", "num_steps", "generator"),
}
"""Arguments with which each optional component of an algorithm is called."""


def preflight(config: RunSettings) -> None:
    """Checks that every `_target_` takes its arguments, and builds the cheap components; nothing is kept.

    Raises:
        ConfigError: A component refuses its values, or does not take the arguments that it will be called with.
    """
    for name in config.order:
        stage, path = config.stages[name], f"stages.{name}"
        if stage.data.module is not None:
            _check_takes(f"{path}.data.module", stage.data.module, DATA_GIVES)
        kind_of(stage, path).preflight(path, stage)
    built_tasks(config)
    _preflight_data(config)
    backbone = _check_takes("model.family.backbone", config.model.family["backbone"], ("checkpoint", "dtype"))
    family = backbone.func.__self__ if inspect.ismethod(backbone.func) else None
    if isinstance(family, type) and issubclass(family, FamilyBackbone):
        for name, adapter in ((name, stage.adapter) for name, stage in config.trained.items()):
            if adapter is not None:
                check_targets(family.linear_layers(), adapter, f"stages.{name}.adapter")
    _check_takes("model.family.encoder", config.model.family["encoder"], ENCODER_GIVES)
    preflight_engine("rollout", config.rollout)
    if config.tracking.tracker is not None:
        make = _check_takes("tracking.tracker", config.tracking.tracker, ("folder",)).func
        if isinstance(make, type) and not issubclass(make, Tracker):
            raise ConfigError(f"tracking.tracker._target_ is {make.__name__}, which lacks open_run or close; add it")
    if config.model.build is not None:
        _check_takes("model.build", config.model.build, ("directory",))


def _preflight_data(config: RunSettings) -> None:
    for key, data in config.all_data.items():
        _check_takes(f"{key}.module", data.module, DATA_GIVES)
        if data.build is not None:
            _check_takes(f"{key}.build", data.build, ("directory", "workers", "on_progress"))


def preflight_engine(path: str, node: Mapping[str, Any]) -> None:
    """Checks the arguments of an engine.

    Raises:
        ConfigError: As in `preflight`.
    """
    _check_takes(path, engine_node(node), ENGINE_GIVES)


def preflight_trained(path: str, stage: StageSettings, given: tuple[str, ...]) -> Any:
    """Builds optimizer and schedule of a stage that trains; returns the partial of its module.

    Args:
        path: Key of the stage.
        stage: The stage.
        given: Arguments that the stage passes to its module.

    Raises:
        ConfigError: As in `preflight`.
    """
    make = _check_takes(f"{path}.module", stage.module, given)
    _preflight_optimizer(f"{path}.optimizer", stage.optimizer)
    check_schedules(path, stage)
    return make


def preflight_rewards(path: str, rewards: RewardSettings | None) -> None:
    """Builds the rewards of a stage.

    Raises:
        ConfigError: As in `preflight`.
    """
    assert rewards is not None
    parts = {}
    for name, node in rewards.components.items():
        parts[name] = targets.build(node, f"{path}.rewards.components.{name}")
        _check_call(f"{path}.rewards.components.{name}", parts[name], "sample", "completion")
        if isinstance(parts[name], LlmJudge):
            check_judge(f"{path}.rewards.components.{name}", parts[name])
    WeightedReward(components=parts, settings=rewards)


def preflight_algorithm(path: str, stage: StageSettings, make: Any) -> None:
    """Builds the algorithm of an rl stage; `make` is the partial of its module.

    Raises:
        ConfigError: As in `preflight`.
    """
    algorithm = build_algorithm(stage, make, path)
    if algorithm.advantage is not None:
        _check_call(f"{path}.algorithm.advantage", algorithm.advantage, "rewards", "valid")
    _check_call(f"{path}.algorithm.loss", algorithm.loss, "inputs")
    for part, given in OPTIONAL_PARTS.items():
        if getattr(algorithm, part) is not None:
            _check_call(f"{path}.algorithm.{part}", getattr(algorithm, part), *given)


def preflight_target_loss(path: str, node: Mapping[str, Any]) -> None:
    """Builds the loss of target tokens; `path` is its key.

    Raises:
        ConfigError: As in `preflight`.
    """
    _check_call(path, targets.build(node, path), "logprobs")


def check_schedules(path: str, stage: StageSettings) -> None:
    """Tries the schedules of a stage at its first step and, if its length is known, at its last one.

    Raises:
        ConfigError: A schedule does not take its arguments, or gives a factor that is negative or not finite.
    """
    nodes = {"schedule": stage.schedule}
    if stage.algorithm is not None:
        nodes |= {f"algorithm.{part}.schedule": getattr(stage.algorithm, part).schedule for part in ("kl", "entropy")}
    for name, node in nodes.items():
        if node is not None:
            _preflight_schedule(f"{path}.{name}", node, stage.num_steps or 1)


def _check_takes(path: str, node: Mapping[str, Any], given: tuple[str, ...]) -> Any:
    """Builds the target as a partial, and checks that the partial takes the given arguments."""
    make = targets.build({**node, "_partial_": True}, path)
    try:
        inspect.signature(make).bind(**dict.fromkeys(given))
    except TypeError as error:
        raise ConfigError(
            f"{path}._target_ is {node['_target_']}, which does not fit there ({first_line(error)}); choose another one"
        ) from error
    return make


def _check_call(path: str, part: Any, *arguments: str) -> None:
    """Refuses a component that cannot be called with these arguments."""
    try:
        inspect.signature(part).bind(**dict.fromkeys(arguments))
    except TypeError as error:
        raise ConfigError(
            f"{path} is {type(part).__name__}, which does not take {' and '.join(arguments)}; choose another _target_"
        ) from error


def _preflight_optimizer(path: str, node: Mapping[str, Any]) -> None:
    if node.get("_partial_") is not True:
        raise ConfigError(
            f"{path}._partial_ is {node.get('_partial_')}; it must be true: the stage gives the parameters"
        )
    factory = targets.build(node, path)
    try:
        defaults = factory([torch.nn.Parameter(torch.zeros(1))]).defaults
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise ConfigError(f"{path}: {shown(first_line(error))}; correct this value") from error
    for key, value in defaults.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}.{key} is {value}; it must be a finite number")


def _preflight_schedule(path: str, node: Mapping[str, Any], num_steps: int) -> None:
    schedule = targets.build(node, path)
    _check_call(path, schedule, "step", "num_steps")
    for step in (0, num_steps - 1):
        factor = schedule(step, num_steps)
        if not 0 <= factor < math.inf:
            raise ConfigError(f"{path} gives {factor} at step {step}; it must be finite and at least 0")
