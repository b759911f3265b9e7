"""REINFORCE Leave-One-Out (arXiv:2402.14740)."""

from typing import ClassVar

from lightning_mmrl.algorithms.advantages.leave_one_out import LeaveOneOut
from lightning_mmrl.algorithms.losses.aggregation import SequenceMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.policy_gradient import PolicyGradientModule


class RLOOModule(PolicyGradientModule):
    """RLOO as a preset of `PolicyGradientModule`.

    Leave-one-out advantages, token ratio with PPO clip, mean over completions.

    **Deviations** from the paper's eq. 4: PPO's clipped ratio in place of the plain score function (with one update per
    rollout the gradient is the same), each completion's tokens are averaged, and no KL term in the reward.
    """

    default_algorithm: ClassVar[Algorithm] = Algorithm(
        advantage=LeaveOneOut(), loss=PPOClip(), aggregation=SequenceMean()
    )
