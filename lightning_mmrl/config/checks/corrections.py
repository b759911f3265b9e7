"""Values about engines that sample from another distribution than the policy's; every message names key and rule."""

from collections.abc import Mapping

from lightning_mmrl.config.checks.values import require
from lightning_mmrl.config.schema import RootConfig


def check_corrections(config: RootConfig) -> None:
    """Refuses a correction that is no node, and sampling from a part of the tokens that nothing corrects for.

    Raises:
        ConfigError: Naming the first such key, its value and what it must be.
    """
    for name in config.order:
        stage, path = config.stages[name], f"stages.{name}"
        if stage.algorithm is None or stage.sampling is None:
            continue
        node, top_p = stage.algorithm.correction, stage.sampling.top_p
        valid = node is None or (isinstance(node, Mapping) and "_target_" in node)
        require(valid, f"{path}.algorithm.correction", node, "null or a node with a _target_")
        if node is None:
            rule = f"1, since without {path}.algorithm.correction the policy's probabilities are those of all tokens"
            require(top_p == 1, f"{path}.sampling.top_p", top_p, rule)
        require(0 < top_p <= 1, f"{path}.sampling.top_p", top_p, "above 0 and at most 1, which keeps all tokens")
