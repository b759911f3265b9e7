"""What an engine needs of the stages that sample with it, and of this machine."""

from importlib.util import find_spec
from typing import Any

from lightning_mmrl.config.schema import RootConfig
from lightning_mmrl.errors import ConfigError

VLLM = "lightning_mmrl.rollout.vllm"
"""Module of the engine that samples with vLLM."""


def check_rollout(config: RootConfig) -> None:
    """Refuses what the run's engine cannot do, before anything is loaded.

    Raises:
        ConfigError: There is no engine, or a stage asks it for what it cannot do.
    """
    node: Any = config.rollout
    if not isinstance(node, dict) or "_target_" not in node:
        raise ConfigError(f"rollout is {node!r}; it must be an engine: choose one with rollout=hf or rollout=vllm")
    if not str(node["_target_"]).startswith(f"{VLLM}."):
        return
    for name in config.order:
        sampling = config.stages[name].sampling
        if sampling is not None and sampling.top_p != 1:
            raise ConfigError(
                f"stages.{name}.sampling.top_p is {sampling.top_p}, and with rollout=vllm it must be 1: vLLM's "
                "log-probabilities are of what top_p leaves"
            )


def require_engine(config: RootConfig) -> None:
    """Refuses to start what this machine cannot run.

    Raises:
        ConfigError: The engine is vLLM's, and vllm is not installed.
    """
    if str(config.rollout["_target_"]).startswith(f"{VLLM}.") and find_spec("vllm") is None:
        raise ConfigError(
            "rollout is vllm, which is not installed; run uv pip install -e '.[vllm]' (on a CPU: make quickstart "
            "ROLLOUT=vllm has an environment of its own for it), or take rollout=hf"
        )
