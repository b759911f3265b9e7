"""Builds the rewards of a stage; no torch here, so that they can be rerun without a model."""

from lightning_mmrl.config.schema import RewardsConfig
from lightning_mmrl.registry import targets
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards, RewardPool


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
        soft_deadline_s=settings.soft_deadline_s,
        batch_budget_s=settings.batch_budget_s,
        memory_limit_mb=settings.memory_limit_mb,
        max_invalid_rate=settings.max_invalid_rate,
    )


def training_rewards(settings: RewardsConfig, path: str) -> InlineRewards | RewardPool:
    """The rewards of an RL stage, in this process or in killable workers.

    Raises:
        ConfigError: A part cannot be built or sent to a process.
        RewardError: A process cannot start.
    """
    if settings.num_workers == 0:
        return InlineRewards(build_reward(settings, path), max_invalid_rate=settings.max_invalid_rate)
    return reward_pool(settings, path)
