"""Proximal Policy Optimization with a critic (arXiv:1707.06347)."""

from typing import ClassVar

from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.settings.algorithm import AlgorithmSettings, CriticSettings
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.policy_gradient import PolicyGradientModule


class PPOModule(PolicyGradientModule):
    """PPO as a preset of `PolicyGradientModule`.

    Advantages of single tokens from a critic (`stages.critic`), token ratio with PPO clip, mean over tokens.

    **Deviations** from the paper's eq. 9: policy and critic share no weights, so there is no value coefficient; values
    are clipped, as in PPO's first code; no KL penalty and no entropy bonus unless the algorithm has them.
    """

    default_algorithm: ClassVar[Algorithm] = Algorithm(
        advantage=None, loss=PPOClip(), aggregation=TokenMean(), settings=AlgorithmSettings(critic=CriticSettings())
    )
