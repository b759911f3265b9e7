"""Dynamic sampling of DAPO: keeps prompts whose completions earn different rewards."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.ops.groups import constant_groups


@dataclass(frozen=True, slots=True, kw_only=True)
class HasSignal:
    """Drops a group whose valid completions all earn the same reward, since its advantages are all zero.

    DAPO (arXiv:2503.14476, section 3.2, eq. 11). Groups with fewer than two valid completions are dropped as well.

    **Deviations**: the paper counts right answers, 0 < number right < G. Here rewards are compared, which is the same
    if a reward only distinguishes right from wrong. With graded rewards a group of right answers has a signal too; the
    paper's condition is then an `AccuracyBand` of, for example, 0.01 to 0.99.

    >>> import torch
    >>> rewards = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> HasSignal()(rewards, rewards > 0, torch.ones(2, 2, dtype=torch.bool))
    tensor([ True, False])
    """

    def __call__(
        self, rewards: Float[Tensor, "B G"], passed: Bool[Tensor, "B G"], valid: Bool[Tensor, "B G"]
    ) -> Bool[Tensor, " B"]:
        return ~constant_groups(rewards, valid)
