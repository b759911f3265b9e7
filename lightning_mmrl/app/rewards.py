"""Builds the rewards of a stage without torch, so that they can be run again without a model."""

from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning_mmrl.app.judges import Judges, opened_all
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry import targets
from lightning_mmrl.rewards.asked import AskedRewards
from lightning_mmrl.rewards.compose import WeightedReward
from lightning_mmrl.rewards.llm_judge import LlmJudge
from lightning_mmrl.rewards.pool import InlineRewards, RewardPool, Scorer
from lightning_mmrl.settings.algorithm import RewardSettings

if TYPE_CHECKING:
    from lightning_mmrl.app.assembly import Assembly

Rewards = InlineRewards | RewardPool | AskedRewards


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
        ConfigError: A part cannot be built or sent to a process, or is a judge, which is asked and not run.
        RewardError: A process cannot start.
    """
    reward = build_reward(settings, path)
    for name in settings.components:
        if name in reward.components and isinstance(reward.components[name], LlmJudge):
            raise ConfigError(
                f"{path}.components.{name} asks a model; leave it out by {path}.components.{name}=null, or judge the "
                "answers of the run by `mmrl judge`"
            )
    return _computed(reward, replace(settings, num_workers=max(1, settings.num_workers)))


def training_rewards(settings: RewardSettings, path: str, parts: "Assembly") -> Rewards:
    """Returns the rewards of a stage: in this process or in killable workers, and with the judges that it asks.

    Args:
        settings: The rewards.
        path: Their key, such as `stages.reason.rewards`.
        parts: The parts of the run.

    Raises:
        ConfigError: A part cannot be built or sent to a process, or a judge cannot be asked.
        RewardError: A process cannot start.
    """
    reward = build_reward(settings, path)
    judges = {name: each for name, each in reward.components.items() if isinstance(each, LlmJudge)}
    if not judges:
        return _computed(reward, settings)
    others = {name: each for name, each in reward.components.items() if name not in judges}
    own = replace(
        settings,
        components={name: settings.components[name] for name in others},
        weights={name: settings.weights[name] for name in others},
    )
    with ExitStack() as resources:
        asked = opened_all(judges, Judges.of_run(parts), path, resources)
        inner = _computed(WeightedReward(components=others, settings=own), own) if others else None
        return AskedRewards(inner=inner, judges=asked, settings=settings, closing=resources.pop_all())


def _computed(reward: Scorer, settings: RewardSettings) -> Any:
    return InlineRewards(reward, settings) if settings.num_workers == 0 else RewardPool(reward, settings)
