"""Refuses rollouts that are no engines, and values that an engine cannot use."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.rollout.vllm.readiness import engines, is_vllm
from lightning_mmrl.settings.rollout import POLICY_ITSELF, RolloutSettings, lag_of
from lightning_mmrl.settings.rules import check_rules, require
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.speculation import SpeculationSettings

CORRECTION = "lightning_mmrl.algorithms.corrections.importance.ImportanceCorrection"


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
            _check_graphs(config, key, engine)
            check_rules(_keys_of(engine, key), key)
    _check_lag(config)
    for name in config.order:
        stage = config.stages[name]
        own, sampling = engines(config).get(f"stages.{name}.rollout", config.rollout), stage.sampling
        if sampling is not None and is_vllm(own) and sampling.top_p != 1:
            raise ConfigError(
                f"stages.{name}.sampling.top_p is {sampling.top_p}, and with rollout=vllm it must be 1: vLLM's "
                "log-probabilities are of what top_p leaves"
            )


def _keys_of(engine: Mapping[str, Any], key: str) -> RolloutSettings:
    """The keys of an engine's node that belong to no engine."""
    lag = lag_of(engine)
    require(isinstance(lag, int) and not isinstance(lag, bool), f"{key}.lag", repr(lag), "an integer")
    return RolloutSettings(lag=lag)


def _check_lag(config: RunSettings) -> None:
    """Refuses stages that cannot be sampled ahead, if the run asks for it."""
    for key, engine in engines(config).items():
        if key != "rollout" and isinstance(engine, Mapping) and lag_of(engine):
            raise ConfigError(f"{key}.lag is {lag_of(engine)}; it must be 0: only stages that train sample ahead")
    lag, wanted = lag_of(config.rollout), "rollout.lag above 0"
    if not lag:
        return
    if config.rollout["_target_"] != POLICY_ITSELF:
        raise ConfigError(
            f"rollout.lag is {lag}, and only rollout=hf samples ahead, in a process of its own; take rollout=hf, or "
            "set rollout.lag=0"
        )
    for name, stage in config.trained.items():
        algorithm, path = stage.algorithm, f"stages.{name}"
        if algorithm is None:
            continue
        if algorithm.correction is None:
            raise ConfigError(
                f"{path}.algorithm.correction is null, and {wanted} needs one for the difference between the weights "
                f"that sample and those that are updated; add +{path}.algorithm.correction._target_={CORRECTION}"
            )
        rule = f"1 with {wanted}: further prompts would be sampled by other weights"
        require(algorithm.max_samplings == 1, f"{path}.algorithm.max_samplings", algorithm.max_samplings, rule)
        rule = f"null with {wanted}: the correction does not reach the critic's loss"
        require(algorithm.critic is None, f"{path}.algorithm.critic", "set", rule)
        rule = f"32-true or bf16-mixed with {wanted}: the engine process converts no weights"
        require(stage.trainer.precision != "64-true", f"{path}.trainer.precision", "64-true", rule)
        rule = f"auto or ddp with {wanted}: each rank's engine process holds all weights"
        require(not stage.trainer.shards, f"{path}.trainer.strategy", stage.trainer.strategy, rule)


def _check_graphs(config: RunSettings, key: str, engine: Mapping[str, Any]) -> None:
    """Refuses steps that are captured where none can be: with drafts, with copies of prompts and of sharded weights."""
    graphs, wanted = engine.get("cuda_graphs", False), f"with {key}.cuda_graphs=true"
    require(isinstance(graphs, bool), f"{key}.cuda_graphs", repr(graphs), "true or false")
    if not graphs or is_vllm(engine):
        return
    drafts = (engine.get("speculation") or {}).get("max_draft", 0)
    rule = f"0 {wanted}: the number of drafts decides the shapes of a pass"
    require(drafts == 0, f"{key}.speculation.max_draft", drafts, rule)
    rule = f"true {wanted}: copies of prompts grow with each step"
    require(config.model.sharing, "model.sharing", "false", rule)
    for name, stage in config.trained.items():
        rule = f"auto or ddp {wanted}: weights that are gathered for a rollout lie elsewhere in each"
        require(not stage.trainer.shards, f"stages.{name}.trainer.strategy", stage.trainer.strategy, rule)


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
