"""Dynamic fine-tuning (DFT): supervised fine-tuning whose token losses are weighed by the tokens' probabilities."""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_mmrl.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class DynamicFineTuning:
    """The loss -sg(p)^a log p of each target token, where sg stops the gradient; implements `TargetLoss`.

    DFT (arXiv:2508.05629, eq. 9) has a = 1: the gradient of a token is then minus the gradient of its probability p,
    and so the weight 1 / p that cross-entropy gives to unlikely tokens is gone. For a = 0 this is cross-entropy, bit
    for bit. Every a has the gradient of (1 - p^a) / a, the family of objectives of arXiv:2510.00526.

    p is exp of the log-probability that the stage trains: of the logits divided by the temperature of the stage's
    sampling (1 in an sft stage), over all tokens but the banned ones, which stand for media. The mean is over target
    tokens, weights do not count in its denominator.

    **Deviations**: the released code takes the mean of each microbatch and then of microbatches; here the sum over all
    microbatches and ranks is divided by their number of tokens, so that the split does not matter.

    Attributes:
        exponent: a; at least 0.

    Raises:
        ConfigError: The exponent is negative or not finite.

    >>> import torch
    >>> DynamicFineTuning()(torch.tensor([[0.5, 0.25]]).log()) * 4 / torch.tensor(2.0).log()
    tensor([[2., 2.]])
    """

    exponent: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.exponent < math.inf:
            raise ConfigError(f"exponent is {self.exponent}; it must be a finite number of at least 0")

    def __call__(self, logprobs: Float[Tensor, "N C"]) -> Float[Tensor, "N C"]:
        return -(self.exponent * logprobs.detach()).exp() * logprobs
