"""Values of the selection of groups and completions that cannot work; every message names key, value and rule."""

from collections.abc import Mapping

from lightning_mmrl.config.checks.values import require
from lightning_mmrl.config.schema import AlgorithmConfig, RootConfig
from lightning_mmrl.errors import ConfigError


def check_selections(config: RootConfig) -> None:
    """Refuses what no stage can select by.

    Raises:
        ConfigError: Naming the first such key, its value and what it must be.
    """
    for name in config.order:
        stage = config.stages[name]
        if stage.algorithm is not None:
            _check_selection(f"stages.{name}.algorithm", stage.algorithm, stage.num_steps)


def _check_selection(path: str, algorithm: AlgorithmConfig, num_steps: int) -> None:
    for part in ("select", "distill"):
        node = getattr(algorithm, part)
        valid = node is None or (isinstance(node, Mapping) and "_target_" in node)
        require(valid, f"{path}.{part}", node, "null or a node with a _target_")
    if algorithm.distill is not None and algorithm.critic is not None:
        raise ConfigError(
            f"{path} has both distill and a critic; completions are drawn by advantages of their own, and a critic's "
            "are of tokens, so set one of them to null"
        )
    most, after = algorithm.max_samplings, algorithm.select_after
    require(most >= 1, f"{path}.max_samplings", most, "at least 1")
    require(0 <= after < num_steps, f"{path}.select_after", after, f"at least 0 and less than num_steps {num_steps}")
    for name, value, neutral in (("max_samplings", most, 1), ("select_after", after, 0)):
        if algorithm.select is None and value != neutral:
            raise ConfigError(
                f"{path}.{name} is {value}, and nothing is selected; set {path}.select, or {path}.{name}={neutral}"
            )
