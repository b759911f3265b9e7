"""Prioritized Advantage Distillation of ReVisual-R1: completions resampled by abs(advantage), in two forms.

Both take the magnitudes a_i = |A_i| of the candidates and return how often each completion is trained on: 0 leaves it
out, 2 counts it twice in the loss and in its denominator.

The upper threshold is infinite by default. The threshold of the released code, 0.97, drops the rarest answers: with 0/1
rewards, G = 8 and the unbiased standard deviation, a right answer has |A| = 2.47, 1.62 or 1.21 if 1, 2 or 3 of the 8
are right. With it, the policy would learn neither from the right answers of a prompt with a pass rate below one half,
nor from the wrong answers of a prompt with a pass rate above one half.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperPAD:
    """PAD as in the paper: draws without replacement by a softmax whose temperature falls over the stage.

    Of N completions, E = {i: low <= a_i <= high} are eligible; k = min(ceil(rho * N), |E|) are drawn from E with
    probability exp(a_i / tau) / sum_E exp(a_j / tau), or with equal probabilities if that is NaN; an empty E gives an
    empty batch (arXiv:2506.04207, section 4.1.1; algorithm 1 of v2). tau falls linearly from `tau_first` to `tau_last`.

    Both ablations of the paper (table 4) are values of these parameters:

    - filter-only: E as it is, each completion once. With `rho=1`, k = min(N, |E|) = |E|, so the draw takes all of E.
    - subsample-only: E is everything. With `low=0` and an infinite `high`, 0 <= a_i <= inf holds for every a_i, so k =
      ceil(rho * N) are drawn by the softmax. The paper does not say whether its draw is uniform; with tau = 1e9 it is.

    **Deviations**: `high` is infinite (see the module's docstring). The paper does not say whether it draws with
    replacement; its bound of k by |E| makes sense only without. N counts valid completions that are not masked as
    truncated. The default of `low` comes from the released code; the default of `rho` is our choice.

    Raises:
        ValueError: For thresholds, a share or a temperature out of range.

    >>> advantages, candidates = torch.tensor([[2.5, -0.35, 0.0, -0.5]]), torch.ones(1, 4, dtype=torch.bool)
    >>> PaperPAD(rho=0.75)(advantages, candidates, step=0, num_steps=10, generator=torch.Generator())
    tensor([[1., 1., 0., 1.]])
    >>> PaperPAD(rho=1.0, low=0.4)(advantages, candidates, step=0, num_steps=10, generator=torch.Generator())
    tensor([[1., 0., 0., 1.]])
    """

    low: float = 0.03
    high: float = math.inf
    rho: float = 0.5
    tau_first: float = 1.0
    tau_last: float = 0.3

    def __post_init__(self) -> None:
        _check_thresholds(self.low, self.high)
        if not 0 < self.rho <= 1:
            raise ValueError(f"rho is {self.rho}; it is a share of the completions, above 0 and at most 1")
        for name, tau in (("tau_first", self.tau_first), ("tau_last", self.tau_last)):
            if not 0 < tau < math.inf:
                raise ValueError(f"{name} is {tau}; a temperature must be above 0 and finite")

    def __call__(
        self,
        advantages: Float[Tensor, "B G"],
        candidates: Bool[Tensor, "B G"],
        *,
        step: int | float,
        num_steps: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "B G"]:
        magnitudes = _magnitudes(advantages)
        eligible = candidates.flatten() & (self.low <= magnitudes) & (magnitudes <= self.high)
        rows = eligible.nonzero().flatten()
        count = min(math.ceil(self.rho * int(candidates.sum())), len(rows))
        logits = self.probabilities(magnitudes[rows], step, num_steps).log()
        # The k largest logits after adding Gumbel noise are k draws without replacement (arXiv:1903.06059, section 2).
        uniform = torch.rand(len(rows), dtype=torch.float64, generator=generator)
        drawn = rows[(logits - (-uniform.log()).log()).topk(count).indices]
        return drawn.bincount(minlength=advantages.numel()).reshape(advantages.shape).to(advantages)

    def probabilities(self, magnitudes: Float[Tensor, " E"], step: int | float, num_steps: int) -> Float[Tensor, " E"]:
        """Each eligible completion's probability of being drawn first.

        >>> PaperPAD().probabilities(torch.tensor([1.0, 2.0]), 0, 10)
        tensor([0.2689, 0.7311])
        """
        return _normalized(torch.softmax(magnitudes / self.tau(step, num_steps), dim=-1))

    def tau(self, step: int | float, num_steps: int) -> float:
        """The temperature at iteration `step`, counted from 0, of a stage with `num_steps` iterations.

        >>> [round(PaperPAD().tau(step, 8), 3) for step in (0, 1, 7)]
        [1.0, 0.9, 0.3]
        """
        progress = min(1.0, step / max(1, num_steps - 1))
        return self.tau_first + (self.tau_last - self.tau_first) * progress


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedPAD:
    """PAD as in the released code: more draws than completions, with replacement, by a power law.

    E = {i: low < a_i < high} are eligible; floor(share * N) are drawn from E with replacement and probability
    a_i^power / sum_E a_j^power, or with equal probabilities if that is NaN; an empty E keeps all completions
    (CSfufu/Revisual-R1, verl/trainer/ray_trainer.py). There is no temperature.

    **Deviations**: `high` is infinite in place of 0.97 (see the module's docstring). A completion that is drawn k times
    is computed once and counts k times; the released code computes it k times. N counts valid completions that are not
    masked as truncated.

    Raises:
        ValueError: For thresholds, a share or a power out of range.

    >>> advantages, candidates = torch.tensor([[2.5, -0.35, 0.0, -0.5]]), torch.ones(1, 4, dtype=torch.bool)
    >>> ReleasedPAD()(advantages, candidates, step=0, num_steps=10, generator=torch.Generator()).sum()
    tensor(6.)
    """

    low: float = 0.03
    high: float = math.inf
    share: float = 1.5
    power: float = 1.5

    def __post_init__(self) -> None:
        _check_thresholds(self.low, self.high)
        for name, value in (("share", self.share), ("power", self.power)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be above 0 and finite")

    def __call__(
        self,
        advantages: Float[Tensor, "B G"],
        candidates: Bool[Tensor, "B G"],
        *,
        step: int | float,
        num_steps: int,
        generator: torch.Generator,
    ) -> Float[Tensor, "B G"]:
        magnitudes = _magnitudes(advantages)
        rows = (candidates.flatten() & (self.low < magnitudes) & (magnitudes < self.high)).nonzero().flatten()
        count = int(self.share * int(candidates.sum()))
        if not len(rows) or not count:
            return candidates.to(advantages.dtype)
        drawn = self.probabilities(magnitudes[rows]).multinomial(count, replacement=True, generator=generator)
        return rows[drawn].bincount(minlength=advantages.numel()).reshape(advantages.shape).to(advantages)

    def probabilities(self, magnitudes: Float[Tensor, " E"]) -> Float[Tensor, " E"]:
        """Each eligible completion's probability of being drawn, the same in every draw.

        >>> ReleasedPAD().probabilities(torch.tensor([1.0, 4.0]))
        tensor([0.1111, 0.8889])
        """
        return _normalized(magnitudes**self.power)


def _magnitudes(advantages: Float[Tensor, "B G"]) -> Float[Tensor, " N"]:
    """Absolute values, in float64 on the CPU, where the generator draws, so that all machines draw the same."""
    return advantages.double().cpu().abs().flatten()


def _check_thresholds(low: float, high: float) -> None:
    if not 0 <= low < high:
        raise ValueError(f"low is {low} and high is {high}; they bound magnitudes, so 0 <= low < high")


def _normalized(shares: Float[Tensor, " E"]) -> Float[Tensor, " E"]:
    total = shares.sum()
    fits = bool(total > 0) and bool(total.isfinite())
    return shares / total if fits else torch.full_like(shares, 1 / max(1, len(shares)))
