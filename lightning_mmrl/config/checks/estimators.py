"""Values that depend on where advantages come from: from groups of completions, or from a critic."""

import math

from lightning_mmrl.config.checks.values import require
from lightning_mmrl.config.schema import AlgorithmConfig, CriticConfig, RootConfig
from lightning_mmrl.errors import ConfigError


def check_estimators(config: RootConfig) -> None:
    """Refuses groups that are too small for their estimator, and critics that cannot work.

    Raises:
        ConfigError: Naming the first such key, its value and what it must be.
    """
    for name in config.order:
        algorithm, path = config.stages[name].algorithm, f"stages.{name}.algorithm"
        if algorithm is not None:
            _check_sizes(path, algorithm)
        if algorithm is not None and algorithm.critic is not None:
            _check_critic(f"{path}.critic", algorithm.critic)
            if algorithm.advantage is not None:
                raise ConfigError(f"{path} has both an advantage and a critic; set one of them to null")


def _check_sizes(path: str, algorithm: AlgorithmConfig) -> None:
    least, why = (2, ", so that completions can be compared") if algorithm.critic is None else (1, "")
    size = algorithm.group_size
    require(size >= least, f"{path}.group_size", size, f"at least {least}{why}")
    for name, phase in algorithm.phases.items():
        size = phase.group_size
        require(size is None or size >= least, f"{path}.phases.{name}.group_size", size, f"null or at least {least}")


def _check_critic(path: str, critic: CriticConfig) -> None:
    rate, clip = critic.learning_rate, critic.value_clip
    require(0 < rate < math.inf, f"{path}.learning_rate", rate, "above 0 and finite")
    require(critic.max_grad_norm > 0, f"{path}.max_grad_norm", critic.max_grad_norm, "above 0")
    require(clip is None or 0 < clip < math.inf, f"{path}.value_clip", clip, "above 0 and finite, or null for no clip")
    require(0 < critic.gamma <= 1, f"{path}.gamma", critic.gamma, "above 0 and at most 1")
    require(0 <= critic.gae_lambda <= 1, f"{path}.gae_lambda", critic.gae_lambda, "from 0 to 1")
