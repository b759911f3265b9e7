"""Group Relative Policy Optimization (arXiv:2402.03300)."""

from typing import ClassVar

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import SequenceMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.policy_gradient import PolicyGradientModule


class GRPOModule(PolicyGradientModule):
    """GRPO as a preset of `PolicyGradientModule`.

    Group-normalised advantages, token ratio with PPO clip, sequence mean.

    **Deviations** from the paper's eq. 3: no KL term.
    """

    default_algorithm: ClassVar[Algorithm] = Algorithm(
        advantage=GroupNormalized(), loss=PPOClip(), aggregation=SequenceMean()
    )
