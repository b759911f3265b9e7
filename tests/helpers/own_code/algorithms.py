"""Parts of an algorithm of a user's own: one class each, called as the package's own are."""

from dataclasses import dataclass

import torch

from lightning_mmrl.types.batches import CorrectionOutput
from own_code.calls import CALLS


@dataclass(frozen=True, kw_only=True)
class Centered:
    """An advantage: the reward minus a baseline that is given."""

    baseline: float = 0.5

    def __call__(self, rewards, valid):
        CALLS["advantage"] += 1
        return torch.where(valid, rewards - self.baseline, torch.zeros_like(rewards))


@dataclass(frozen=True, kw_only=True)
class TokenSum:
    """An aggregation: the sum over the tokens of a step."""

    def denominator(self, completion_mask):
        return torch.ones(())

    def reduce(self, token_losses, completion_mask, denominator):
        CALLS["aggregation"] += 1
        return (token_losses * completion_mask).sum() / denominator


@dataclass(frozen=True, kw_only=True)
class NoCorrection:
    """A correction: weights of one."""

    def __call__(self, old_logprobs, sampler_logprobs, completion_mask):
        CALLS["correction"] += 1
        ones = torch.ones_like(old_logprobs)
        clipped = torch.zeros_like(completion_mask)
        return CorrectionOutput(weights=ones, ratios=ones, clipped=clipped, counted=completion_mask)


@dataclass(frozen=True, kw_only=True)
class KeepAll:
    """A selection: every group."""

    def __call__(self, rewards, passed, valid):
        CALLS["selection"] += 1
        return torch.ones(len(rewards), dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class DrawOnce:
    """A resampling: every completion once."""

    def __call__(self, advantages, candidates, *, step, num_steps, generator):
        CALLS["resampling"] += 1
        return candidates.to(advantages)


@dataclass(frozen=True, kw_only=True)
class Halving:
    """A schedule, of a learning rate or of a coefficient: half in each step."""

    def __call__(self, step, num_steps):
        CALLS["schedule"] += 1
        return 0.5**step


class Signed(torch.optim.Optimizer):
    """An optimizer: steps of one size along the sign of the gradient."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        CALLS["optimizer"] += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(group["lr"] * parameter.grad.sign())
