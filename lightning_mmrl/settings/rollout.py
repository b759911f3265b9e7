"""Keys of `rollout` that belong to no engine."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_mmrl.settings.setting import setting

POLICY_ITSELF = "lightning_mmrl.rollout.hf.HFEngine.of"
"""Target of an engine that is the policy itself."""


@dataclass
class RolloutSettings:
    """How an rl stage uses its engine; these keys stand beside the engine's own ones."""

    lag: int = setting(0, at_least=0)
    """Iterations that are sampled ahead, while earlier ones train: the completions of an iteration are of the weights
    `lag` updates before its own. 0: sampling and training take turns. Above 0 an rl stage needs an
    algorithm.correction."""


KEYS = ("lag",)


def lag_of(node: Mapping[str, Any]) -> int:
    """The lag of an engine's node.

    >>> lag_of({"_target_": "lightning_mmrl.rollout.hf.HFEngine.of", "lag": 1}), lag_of({})
    (1, 0)
    """
    return node.get("lag", RolloutSettings.lag)


def engine_node(node: Mapping[str, Any]) -> dict[str, Any]:
    """An engine's node without the keys that belong to no engine."""
    return {key: value for key, value in node.items() if key not in KEYS}
