"""Losses of pairs of answers, by which a policy learns to prefer the chosen answer to the rejected one.

The log-probability of an answer is the sum over its tokens, and the reward of an answer is implicit in the policy:
r = beta * (log pi(y | x) - log pi_ref(y | x)), with the reference pi_ref (DPO, arXiv:2305.18290, eq. 5).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from lightning_mmrl.settings.dpo import PreferenceSettings
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.types.batches import PairLogprobs


def sigmoid_loss(margin: Float[Tensor, " M"], label_smoothing: float) -> Float[Tensor, " M"]:
    """DPO: -log sigmoid(m) for the margin m = r_chosen - r_rejected of the rewards (arXiv:2305.18290, eq. 7).

    With label smoothing s it is -(1 - s) log sigmoid(m) - s log sigmoid(-m) (conservative DPO,
    https://ericmitchell.ai/cdpo.pdf).

    >>> sigmoid_loss(torch.tensor([0.0, 2.0]), 0.0)
    tensor([0.6931, 0.1269])
    """
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def ipo_loss(difference: Float[Tensor, " M"], beta: float) -> Float[Tensor, " M"]:
    """IPO: (h - 1 / (2 beta))^2 for the difference h of the answers' log-ratios (arXiv:2310.12036, eq. 17).

    **Deviations**: log-ratios are means over the tokens of an answer, not sums, as in TRL, whose authors have this from
    the authors of the paper. Otherwise the loss would grow with the length of the answers.

    >>> ipo_loss(torch.tensor([0.0, 2.0]), 0.25)
    tensor([4., 0.])
    """
    return (difference - 1 / (2 * beta)) ** 2


def hinge_loss(margin: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Hinge: max(0, 1 - m) for the margin m of the rewards (RSO, arXiv:2309.06657, the normalized loss of SLiC).

    >>> hinge_loss(torch.tensor([0.0, 2.0]))
    tensor([1., 0.])
    """
    return torch.relu(1 - margin)


def quality_loss(chosen: Float[Tensor, " M"], rejected: Float[Tensor, " M"], shift: float) -> Float[Tensor, " M"]:
    """BCO: -log sigmoid(r_chosen - shift) - log sigmoid(shift - r_rejected) (arXiv:2404.04656; L_q of MPO).

    Args:
        chosen: Rewards of the chosen answers.
        rejected: Rewards of the rejected answers.
        shift: The mean reward of earlier answers.

    >>> quality_loss(torch.tensor([1.0]), torch.tensor([-1.0]), 0.0)
    tensor([0.6265])
    """
    return -logsigmoid(chosen - shift) - logsigmoid(shift - rejected)


def generation_loss(logprobs: Float[Tensor, " M"], tokens: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    """Minus the log-likelihood of the chosen answer per token: -log pi(y_chosen | x) / |y_chosen| (L_g of MPO).

    >>> generation_loss(torch.tensor([-6.0]), torch.tensor([4.0]))
    tensor([1.5000])
    """
    return -logprobs / tokens


def _margin(pairs: PairLogprobs, settings: PreferenceSettings) -> Float[Tensor, " M"]:
    return settings.beta * (pairs.log_ratio_chosen - pairs.log_ratio_rejected)


def _mean_difference(pairs: PairLogprobs) -> Float[Tensor, " M"]:
    return pairs.log_ratio_chosen / pairs.tokens_chosen - pairs.log_ratio_rejected / pairs.tokens_rejected


LOSSES: Mapping[str, Callable[[PairLogprobs, PreferenceSettings], Tensor]] = {
    "sigmoid": lambda pairs, settings: sigmoid_loss(_margin(pairs, settings), settings.label_smoothing),
    "ipo": lambda pairs, settings: ipo_loss(_mean_difference(pairs), settings.beta),
    "hinge": lambda pairs, settings: hinge_loss(_margin(pairs, settings)),
}
"""Maps the values of `preference.loss` to the loss of each pair."""


@dataclass(frozen=True, slots=True)
class PreferenceObjective:
    """The loss of a pair: w_p * preference + w_q * quality + w_g * generation (MPO, arXiv:2411.10442, eq. 1).

    The preference loss is DPO's by default, the quality loss BCO's, and the generation loss is that of supervised
    fine-tuning on the chosen answer, normalized by its length. The paper has the weights 0.8, 0.2 and 1.0.

    **Deviations**: the reward shift of the quality loss is the mean reward of all answers of earlier steps, as the
    paper says; the code of the paper also counts the answers of the current microbatch, so that its loss depends on the
    split into microbatches.

    Raises:
        ConfigError: A setting is out of range.

    >>> names = ("chosen", "rejected", "reference_chosen", "reference_rejected", "tokens_chosen", "tokens_rejected")
    >>> pairs = PairLogprobs(**dict(zip(names, torch.tensor([[-6.0], [-9.0], [-8.0], [-8.0], [4.0], [6.0]]))))
    >>> PreferenceObjective(PreferenceSettings(beta=1.0, generation_weight=1.0)).parts(pairs, shift=0.0)
    {'preference': tensor([0.0486]), 'generation': tensor([1.5000])}
    """

    settings: PreferenceSettings = field(default_factory=PreferenceSettings)

    def __post_init__(self) -> None:
        check_rules(self.settings, "preference")

    def parts(self, pairs: PairLogprobs, shift: float) -> dict[str, Float[Tensor, " M"]]:
        """The losses of each pair that have a weight, without their weights, by name."""
        beta = self.settings.beta
        losses = {
            "preference": LOSSES[self.settings.loss](pairs, self.settings),
            "quality": quality_loss(beta * pairs.log_ratio_chosen, beta * pairs.log_ratio_rejected, shift),
            "generation": generation_loss(pairs.chosen, pairs.tokens_chosen),
        }
        return {name: losses[name] for name in self.settings.weights}

    def total(self, parts: Mapping[str, Float[Tensor, " M"]]) -> Float[Tensor, " M"]:
        """The weighted sum of the losses of each pair."""
        weighted = [self.settings.weights[name] * losses for name, losses in parts.items()]
        return torch.stack(weighted).sum(0)


@dataclass(slots=True)
class RewardShift:
    """The mean reward of all answers so far, chosen and rejected alike, as a running mean over steps.

    >>> shift = RewardShift()
    >>> shift.add(total=3.0, count=2)
    >>> shift.add(total=0.0, count=4)
    >>> shift.mean
    0.5
    """

    mean: float = 0.0
    count: int = 0

    def add(self, total: float, count: int) -> None:
        """Adds `count` rewards with a sum of `total`."""
        if count:
            self.count += count
            self.mean += (total - self.mean * count) / self.count
