"""Reductions of token losses, each with its denominator.

Each class implements the `Aggregation` protocol. `denominator` is additive: the stage sums it over all microbatches and
ranks of an optimizer step, and `reduce` divides by that sum. The reduced microbatches therefore add up to the loss of
the step, however the step was split. A denominator of zero means that nothing counts in the whole step; the loss is
then zero, and still attached to the graph so that every rank can run its backward pass.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.ops.masked import masked_mean, masked_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMean:
    """Mean over all counted tokens of the step (DAPO, arXiv:2503.14476, section 3.3): long completions weigh more.

    >>> mask = torch.tensor([[True, True, True], [True, False, False]])
    >>> losses = torch.tensor([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]])
    >>> TokenMean().reduce(losses, mask, TokenMean().denominator(mask))
    tensor(2.)
    """

    def denominator(self, completion_mask: Bool[Tensor, "N C"]) -> Float[Tensor, ""]:
        """Number of counted tokens."""
        return completion_mask.sum().float()

    def reduce(
        self, token_losses: Float[Tensor, "N C"], completion_mask: Bool[Tensor, "N C"], denominator: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Sum of the token losses, divided by the step's number of counted tokens."""
        return _divide(masked_sum(token_losses, completion_mask), denominator)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceMean:
    """Mean over completions of the mean over their tokens (GRPO, arXiv:2402.03300, eq. 3): all completions weigh alike.

    A completion without a counted token does not count as a sequence.

    >>> mask = torch.tensor([[True, True, True], [True, False, False]])
    >>> losses = torch.tensor([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]])
    >>> SequenceMean().reduce(losses, mask, SequenceMean().denominator(mask))
    tensor(3.)
    """

    def denominator(self, completion_mask: Bool[Tensor, "N C"]) -> Float[Tensor, ""]:
        """Number of completions with at least one counted token."""
        return completion_mask.any(-1).sum().float()

    def reduce(
        self, token_losses: Float[Tensor, "N C"], completion_mask: Bool[Tensor, "N C"], denominator: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Sum of the completions' mean losses, divided by the step's number of counted completions."""
        return _divide(masked_mean(token_losses, completion_mask, dim=-1).sum(), denominator)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantLength:
    """Token losses divided by a constant length per completion: no bias by length (Dr. GRPO, arXiv:2503.20783).

    **Deviations**: completions without a counted token leave the denominator too.

    Raises:
        ValueError: If `max_tokens` is not positive.

    >>> mask = torch.tensor([[True, True, True], [True, False, False]])
    >>> losses = torch.tensor([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]])
    >>> constant = ConstantLength(max_tokens=4)
    >>> constant.reduce(losses, mask, constant.denominator(mask))
    tensor(1.)
    """

    max_tokens: int

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(
                f"max_tokens is {self.max_tokens}; set it to the completion limit of the sampling, at least 1"
            )

    def denominator(self, completion_mask: Bool[Tensor, "N C"]) -> Float[Tensor, ""]:
        """Number of completions with at least one counted token, times `max_tokens`."""
        return completion_mask.any(-1).sum().float() * self.max_tokens

    def reduce(
        self, token_losses: Float[Tensor, "N C"], completion_mask: Bool[Tensor, "N C"], denominator: Float[Tensor, ""]
    ) -> Float[Tensor, ""]:
        """Sum of the token losses, divided by the sum of the step's denominators."""
        return _divide(masked_sum(token_losses, completion_mask), denominator)


def _divide(total: Float[Tensor, ""], denominator: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """`total / denominator`, or 0 * total for a zero denominator, with a gradient that is zero and not NaN."""
    return total / torch.where(denominator == 0, torch.inf, denominator)
