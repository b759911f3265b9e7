"""Builds the light parts of a run once before anything is loaded or written, so that their bad values show then."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch

from lightning_mmrl.app.assembly import adapter_settings
from lightning_mmrl.app.stages import build_algorithm
from lightning_mmrl.config.schema import RootConfig, StageConfig
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.models.adapters import check_targets
from lightning_mmrl.models.families.backbone import FamilyBackbone
from lightning_mmrl.registry import targets
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.suggestions import first_line, shown

SFT_GIVES = ("policy", "optimizer", "context", "examiner")
RL_GIVES = (*SFT_GIVES, "engine", "rewards", "algorithm", "table")
ENCODER_GIVES = ("checkpoint", "position_rule", "audio_in_video")
DATA_GIVES = ("pipeline", "template", "kind", "feed", "validation", "monitor")
ENGINE_GIVES = ("policy", "encoder", "max_new_tokens", "top_p", "prefill", "poll")
"""What stages give to their modules, DataModules and engines, beside the keys of the node."""
OPTIONAL_PARTS = {
    "correction": ("old_logprobs", "sampler_logprobs", "completion_mask"),
    "select": ("rewards", "passed", "valid"),
    "distill": ("advantages", "candidates", "step", "num_steps", "generator"),
}
"""What they are called with in parts of an algorithm that may be null."""


def rehearse(config: RootConfig) -> None:
    """Checks that every `_target_` takes what it will be given, and builds the light ones; nothing is kept.

    Raises:
        ConfigError: A part refuses its values, or does not do what its place asks for.
    """
    for name in config.order:
        _rehearse_stage(f"stages.{name}", config.stages[name])
    _check_takes("data.module", config.data.module, DATA_GIVES)
    backbone = _check_takes("model.family.backbone", config.model.family["backbone"], ("checkpoint", "dtype"))
    _rehearse_adapters(config, backbone.func)
    _check_takes("model.family.encoder", config.model.family["encoder"], ENCODER_GIVES)
    _check_takes("rollout", config.rollout, ENGINE_GIVES)
    if config.model.build is not None:
        _check_takes("model.build", config.model.build, ("directory",))
    if config.data.build is not None:
        _check_takes("data.build", config.data.build, ("directory", "workers", "on_progress"))


def _rehearse_stage(path: str, stage: StageConfig) -> None:
    make = _check_takes(f"{path}.module", stage.module, RL_GIVES if stage.kind == "rl" else SFT_GIVES)
    if stage.data.module is not None:
        _check_takes(f"{path}.data.module", stage.data.module, DATA_GIVES)
    _rehearse_optimizer(f"{path}.optimizer", stage.optimizer)
    _rehearse_schedule(f"{path}.schedule", stage.schedule, stage.num_steps)
    if stage.rewards is not None:
        parts = {}
        for name, node in stage.rewards.parts.items():
            parts[name] = targets.build(node, f"{path}.rewards.parts.{name}")
            _check_call(f"{path}.rewards.parts.{name}", parts[name], "sample", "completion")
        WeightedReward(parts=parts, weights=stage.rewards.weights)
    if stage.algorithm is not None:
        algorithm = build_algorithm(stage, make, path)
        if algorithm.advantage is not None:
            _check_call(f"{path}.algorithm.advantage", algorithm.advantage, "rewards", "valid")
        _check_call(f"{path}.algorithm.loss", algorithm.loss, "inputs")
        for part, given in OPTIONAL_PARTS.items():
            if getattr(algorithm, part) is not None:
                _check_call(f"{path}.algorithm.{part}", getattr(algorithm, part), *given)
        for part in ("kl", "entropy"):
            node = getattr(stage.algorithm, part).schedule
            if node is not None:
                _rehearse_schedule(f"{path}.algorithm.{part}.schedule", node, stage.num_steps)


def _rehearse_adapters(config: RootConfig, load: Any) -> None:
    """Looks for the targets of adapters among what the family has; `load` is a method of its backbone's class."""
    for name in config.order:
        adapter, family = config.stages[name].adapter, load.__self__ if inspect.ismethod(load) else None
        if adapter is not None and isinstance(family, type) and issubclass(family, FamilyBackbone):
            check_targets(family.linear_layers(), adapter_settings(adapter), f"stages.{name}.adapter")


def _check_takes(path: str, node: Mapping[str, Any], given: tuple[str, ...]) -> Any:
    """The target as a partial; it must take what it will be given."""
    make = targets.build({**node, "_partial_": True}, path)
    try:
        inspect.signature(make).bind(**dict.fromkeys(given))
    except TypeError as error:
        raise ConfigError(
            f"{path}._target_ is {node['_target_']}, which does not fit there ({first_line(error)}); choose another one"
        ) from error
    return make


def _check_call(path: str, part: Any, *arguments: str) -> None:
    """The part can be called with these arguments."""
    try:
        inspect.signature(part).bind(**dict.fromkeys(arguments))
    except TypeError as error:
        raise ConfigError(
            f"{path} is {type(part).__name__}, which does not take {' and '.join(arguments)}; choose another _target_"
        ) from error


def _rehearse_optimizer(path: str, node: Mapping[str, Any]) -> None:
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


def _rehearse_schedule(path: str, node: Mapping[str, Any], num_steps: int) -> None:
    schedule = targets.build(node, path)
    _check_call(path, schedule, "step", "num_steps")
    for step in (0, num_steps - 1):
        factor = schedule(step, num_steps)
        if not 0 <= factor < math.inf:
            raise ConfigError(f"{path} gives {factor} at step {step}; it must be finite and at least 0")
