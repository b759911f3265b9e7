"""Builds the rewards of a stage without torch, so that they can be run again without a model."""

from dataclasses import replace

from lightning_mmrl.registry import targets
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.pool import InlineRewards, RewardPool
from lightning_mmrl.settings.algorithm import RewardSettings


def build_reward(settings: RewardSettings, path: str) -> WeightedReward:
    """Builds the weighted sum of the configured components; `path` is the key of the settings.

    Raises:
        ConfigError: A part cannot be built.
    """
    components = {name: targets.build(node, f"{path}.components.{name}") for name, node in settings.components.items()}
    return WeightedReward(components=components, settings=settings)


def reward_pool(settings: RewardSettings, path: str) -> RewardPool:
    """Returns the rewards in killable processes with deadlines, even if training would score in its own process.

    Raises:
        ConfigError: A part cannot be built or sent to a process.
        RewardError: A process cannot start.
    """
    own = replace(settings, num_workers=max(1, settings.num_workers))
    return RewardPool(build_reward(settings, path), own)


def training_rewards(settings: RewardSettings, path: str) -> InlineRewards | RewardPool:
    """Returns the rewards of a stage that samples, in this process or in killable workers.

    Raises:
        ConfigError: A part cannot be built or sent to a process.
        RewardError: A process cannot start.
    """
    if settings.num_workers == 0:
        return InlineRewards(build_reward(settings, path), settings)
    return reward_pool(settings, path)
