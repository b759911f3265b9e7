"""Builds the algorithm of an RL stage from its settings."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lightning_mmrl.algorithms.penalties.entropy import EntropyBonus
from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.algorithms.schedules import WarmupConstant
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry import targets
from lightning_mmrl.settings.stage import StageSettings
from lightning_mmrl.stages.algorithm import Algorithm


def build_algorithm(stage: StageSettings, make: Callable[..., Any], path: str) -> Algorithm:
    """Builds the algorithm of an RL stage; parts that are null come from the preset of the stage's module."""
    assert stage.algorithm is not None
    settings, preset = stage.algorithm, make.func.default_algorithm  # type: ignore[attr-defined]
    if settings.critic is not None and preset.settings.critic is None:
        raise ConfigError(
            f"{path}.algorithm.critic is set, and {path}.module trains none; set it to null, or take "
            f"algorithm@{path}=ppo"
        )
    path = f"{path}.algorithm"
    parts = ("advantage", "loss", "aggregation", "correction", "select", "resample")
    built = {part: targets.optional(getattr(settings, part), f"{path}.{part}", getattr(preset, part)) for part in parts}
    schedules = {
        name: targets.optional(getattr(settings, name).schedule, f"{path}.{name}.schedule", WarmupConstant())
        for name in ("kl", "entropy")
    }
    return Algorithm(
        **built,
        kl=KLPenalty(settings.kl, schedules["kl"]),
        entropy=EntropyBonus(settings.entropy, schedules["entropy"]),
        settings=replace(settings, critic=settings.critic or preset.settings.critic),
    )
