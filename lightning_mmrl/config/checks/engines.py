"""Refuses rollouts that are no engines, and values that an engine cannot use."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.rollout.vllm.readiness import engines, is_vllm
from lightning_mmrl.settings.rules import check_rules, require
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.speculation import SpeculationSettings


def check_engines(config: RunSettings) -> None:
    """Refuses a rollout that is no engine, drafts out of range, and sampling that the engine cannot do.

    Raises:
        ConfigError: Naming key, value and rule.
    """
    if not isinstance(config.rollout, dict) or "_target_" not in config.rollout:
        raise ConfigError(
            f"rollout is {config.rollout!r}; it must be an engine: choose one with rollout=hf or rollout=vllm"
        )
    for key, engine in engines(config).items():
        if isinstance(engine, Mapping):  # a value that is no node is refused with its rule
            _check_drafts(f"{key}.speculation", engine.get("speculation"))
    for name in config.order:
        stage = config.stages[name]
        own, sampling = engines(config).get(f"stages.{name}.rollout", config.rollout), stage.sampling
        if sampling is not None and is_vllm(own) and sampling.top_p != 1:
            raise ConfigError(
                f"stages.{name}.sampling.top_p is {sampling.top_p}, and with rollout=vllm it must be 1: vLLM's "
                "log-probabilities are of what top_p leaves"
            )


def _check_drafts(key: str, node: Any) -> None:
    """Refuses values of drafts that are no numbers or out of range."""
    if node is None:
        return
    require(isinstance(node, Mapping) and "_target_" in node, key, node, "null or a node with a _target_")
    given = [each for each in fields(SpeculationSettings) if each.name in node]
    for each in given:
        kinds, words = (int, "an integer") if each.type is int else (int | float | None, "a number or null")
        valid = isinstance(node[each.name], kinds) and not isinstance(node[each.name], bool)
        require(valid, f"{key}.{each.name}", repr(node[each.name]), words)
    check_rules(SpeculationSettings(**{each.name: node[each.name] for each in given}), key)
