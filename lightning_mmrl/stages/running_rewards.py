"""Normalizes rewards by the mean and deviation of all rewards of the stage so far."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.ops.moments import Moments
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.stages.join import gather_rows

MIN_VARIANCE = 1e-8
"""Smallest variance that a reward is divided by, as in the whitening of advantages."""


@dataclass(kw_only=True)
class RunningRewards:
    """(r - mean) / sqrt(max(variance, 1e-8)) over the valid rewards of all iterations so far, on all ranks.

    The present iteration is included, so the first one is normalized by itself. The variance is divided by the number
    of rewards.

    An iteration may be started twice: an interruption before its update saves the stage as it was before, and the
    resumed run does the iteration again. So the moments before the latest iteration are kept, and an iteration that is
    repeated counts once.

    **Deviations**: the scripts of LMM-R1 (arXiv:2503.07536) set OpenRLHF's `--normalize_reward`, which has no effect
    there: it divides by a mean of 0 and a deviation of 1 that nothing updates, and only rewards of a reward model
    (OpenRLHF issues 693 and 822). Running moments are what its users took it for.

    Attributes:
        iteration: The latest iteration that was counted; 0 before the first.
        before: The moments of the iterations before.
        moments: The moments with that iteration.
    """

    iteration: int = 0
    before: Moments = field(default_factory=Moments)
    moments: Moments = field(default_factory=Moments)

    def normalized(
        self,
        rewards: Float[Tensor, "B G"],
        valid: Bool[Tensor, "B G"],
        *,
        iteration: int,
        ranks: Ranks,
        serials: Sequence[int] = (),
    ) -> Float[Tensor, "B G"]:
        """Counts and normalizes the valid rewards of an iteration, numbered from 1; others become 0; a collective."""
        (everyone, counted), _ = gather_rows(ranks, rewards, valid, serials=serials)
        if iteration > self.iteration:
            self.iteration, self.before = iteration, self.moments
        self.moments = self.before.plus(everyone[counted].double().tolist())
        scale = max(self.moments.variance, MIN_VARIANCE) ** -0.5
        scaled = ((rewards.double() - self.moments.mean) * scale).to(rewards)
        return torch.where(valid, scaled, torch.zeros_like(rewards))

    def stats(self) -> dict[str, float]:
        """The mean and the deviation by which rewards are normalized, as metrics."""
        return {
            "rollout/running_reward_mean": self.moments.mean,
            "rollout/running_reward_std": self.moments.variance**0.5,
        }

    def state_dict(self) -> dict[str, Any]:
        """The iteration and both moments."""
        return {"iteration": self.iteration, "before": asdict(self.before), "moments": asdict(self.moments)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self.iteration = state["iteration"]
        self.before, self.moments = Moments(**state["before"]), Moments(**state["moments"])
