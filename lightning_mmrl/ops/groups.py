"""Statistics of the G completions of each prompt, over the entries whose verifier succeeded."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_mmrl.ops.masked import masked_mean, masked_sum


def group_mean(values: Float[Tensor, "B G"], valid: Bool[Tensor, "B G"]) -> Float[Tensor, " B"]:
    """Mean over the valid entries of each group; zero for a group without any.

    >>> group_mean(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([2.])
    """
    return masked_mean(values, valid, dim=-1)


def group_std(values: Float[Tensor, "B G"], valid: Bool[Tensor, "B G"]) -> Float[Tensor, " B"]:
    """Unbiased standard deviation over the k valid entries of each group; zero where k < 2.

    std = sqrt(sum_i (x_i - mean)^2 / (k - 1))

    >>> group_std(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([1.4142])
    """
    deviations = values - group_mean(values, valid).unsqueeze(-1)
    return (masked_sum(deviations.square(), valid, dim=-1) / (valid.sum(-1) - 1).clamp(min=1)).sqrt()


def batch_std(values: Float[Tensor, "B G"], valid: Bool[Tensor, "B G"]) -> Float[Tensor, ""]:
    """Unbiased standard deviation over the n valid entries of all groups together; zero where n < 2.

    std = sqrt(sum_i (x_i - mean)^2 / (n - 1)) with the mean over all groups

    >>> batch_std(torch.tensor([[1.0, 3.0], [5.0, 9.0]]), torch.tensor([[True, True], [True, False]]))
    tensor(2.)
    """
    deviations = values - masked_mean(values, valid)
    return (masked_sum(deviations.square(), valid) / (valid.sum() - 1).clamp(min=1)).sqrt()


def constant_groups(values: Float[Tensor, "B G"], valid: Bool[Tensor, "B G"]) -> Bool[Tensor, " B"]:
    """True for groups whose valid entries are all exactly equal, and for groups with fewer than two valid entries.

    Such a group does not tell which completion is better. A group with a valid NaN does not count as constant, so that
    the NaN shows up in later results.

    >>> valid = torch.tensor([[True, True, False], [True, True, False]])
    >>> constant_groups(torch.tensor([[0.1, 0.1, 7.0], [0.1, 0.2, 7.0]]), valid)
    tensor([ True, False])
    """
    lowest = values.masked_fill(~valid, torch.inf).amin(-1)
    highest = values.masked_fill(~valid, -torch.inf).amax(-1)
    return lowest >= highest
