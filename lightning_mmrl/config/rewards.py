"""Builds the rewards of a stage; no torch here, so that they can be rerun without a model."""

from lightning_mmrl.config import targets
from lightning_mmrl.config.schema import RewardsConfig
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import RewardPool


def build_reward(settings: RewardsConfig, path: str) -> WeightedReward:
    """The weighted sum of the configured parts; `path` is the key of the settings.

    Raises:
        ConfigError: A part cannot be built.
    """
    parts = {name: targets.build(node, f"{path}.parts.{name}") for name, node in settings.parts.items()}
    return WeightedReward(parts=parts, weights=settings.weights)


def reward_pool(settings: RewardsConfig, path: str) -> RewardPool:
    """The rewards in killable processes with their deadlines, also where training would score in its own process.

    Raises:
        ConfigError: A part cannot be built or sent to a process.
        RewardError: A process cannot start.
    """
    return RewardPool(
        build_reward(settings, path),
        num_workers=max(1, settings.num_workers),
        deadline_s=settings.deadline_s,
        batch_budget_s=settings.batch_budget_s,
    )
