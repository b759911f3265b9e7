"""The loss of supervised fine-tuning."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossEntropy:
    """Minus the log-probability of each target token; implements `TargetLoss`.

    >>> import torch
    >>> CrossEntropy()(torch.tensor([[-1.0, -2.0]]))
    tensor([[1., 2.]])
    """

    def __call__(self, logprobs: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        return -logprobs
