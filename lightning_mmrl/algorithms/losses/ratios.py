"""Ratios of token probabilities: the policy over the policy that sampled.

Each class implements the `Ratio` protocol: one value per token, 1 where the completion mask is False. Log-ratios are
clamped to +-20 before the exponential, so that one runaway token cannot overflow the loss; beyond the clamp there is
no gradient.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_mmrl.ops.kl import MAX_LOG_RATIO
from lightning_mmrl.ops.masked import masked_mean, masked_sum
from lightning_mmrl.types.batches import LossInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRatio:
    """The ratio of each token by itself: ratio_t = exp(logprob_t - old_logprob_t) (PPO, arXiv:1707.06347, section 3).

    >>> inputs = LossInputs(
    ...     logprobs=torch.tensor([[-1.0, -1.0, -9.0]]),
    ...     old_logprobs=torch.tensor([[-1.0, -2.0, -1.0]]),
    ...     advantages=torch.ones(1, 3),
    ...     completion_mask=torch.tensor([[True, True, False]]),
    ... )
    >>> TokenRatio()(inputs)
    tensor([[1.0000, 2.7183, 1.0000]])
    """

    def __call__(self, inputs: LossInputs) -> Float[Tensor, "N C"]:
        return _log_ratios(inputs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRatio:
    """The geometric mean of a completion's token ratios, at each of its tokens: exp(mean_t log ratio_t).

    The ratio of GSPO (arXiv:2507.18071, eq. 7). It needs much narrower clips: the paper takes 3e-4 and 4e-4. GSPO-token
    (section 4.3) has the same value and gradient as long as all tokens of a completion have the same advantage, as they
    do without a critic.

    >>> inputs = LossInputs(
    ...     logprobs=torch.tensor([[-1.0, -1.0, -9.0]]),
    ...     old_logprobs=torch.tensor([[-1.0, -2.0, -1.0]]),
    ...     advantages=torch.ones(1, 3),
    ...     completion_mask=torch.tensor([[True, True, False]]),
    ... )
    >>> SequenceRatio()(inputs)
    tensor([[1.6487, 1.6487, 1.0000]])
    """

    def __call__(self, inputs: LossInputs) -> Float[Tensor, "N C"]:
        return _of_completions(masked_mean(_log_ratios(inputs), inputs.completion_mask, dim=-1), inputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRatio:
    """The product of a completion's token ratios, at each of its tokens: exp(sum_t log ratio_t) (arXiv:2402.14740).

    This is RLOO's ratio: the completion is one action. With `SequenceMean` the loss equals the loss of TRL's
    `RLOOTrainer`: at ratio 1 the gradient is A * grad log p(completion), not its mean over tokens.

    >>> inputs = LossInputs(
    ...     logprobs=torch.tensor([[-1.0, -1.0, -9.0]]),
    ...     old_logprobs=torch.tensor([[-1.0, -2.0, -1.0]]),
    ...     advantages=torch.ones(1, 3),
    ...     completion_mask=torch.tensor([[True, True, False]]),
    ... )
    >>> CompletionRatio()(inputs)
    tensor([[2.7183, 2.7183, 1.0000]])
    """

    def __call__(self, inputs: LossInputs) -> Float[Tensor, "N C"]:
        return _of_completions(masked_sum(_log_ratios(inputs), inputs.completion_mask, dim=-1), inputs)


def _log_ratios(inputs: LossInputs) -> Float[Tensor, "N C"]:
    """Returns the log-ratios; zero where the mask is False, whatever is stored there: not clipped, without gradient."""
    difference = inputs.logprobs - inputs.old_logprobs
    return torch.where(inputs.completion_mask, difference, torch.zeros_like(difference))


def _of_completions(log_ratios: Float[Tensor, " N"], inputs: LossInputs) -> Float[Tensor, "N C"]:
    ratios = log_ratios.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp().unsqueeze(-1)
    return torch.where(inputs.completion_mask, ratios, torch.ones_like(ratios))
