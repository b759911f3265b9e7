"""Mismatch of sampling engine and policy: measured in every update, corrected if the algorithm asks for it."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_mmrl.algorithms.corrections.importance import ImportanceCorrection
from lightning_mmrl.ops.kl import k1, k3
from lightning_mmrl.ops.masked import masked_sum
from lightning_mmrl.types.batches import CorrectionOutput, LossInputs

MEASURE = ImportanceCorrection(cap=math.inf)
"""Measures the ratios of tokens where nothing is corrected; its weights are not used."""
MISMATCH_SUMS = ("weights", "weight", "weights_clipped", "sampler_kl_k1", "sampler_kl_k3")
"""Sums over microbatches, ranks and optimizer steps."""
MISMATCH_MAXIMA = ("weight_max", "logprob_gap_max")
"""Maxima over microbatches, ranks and optimizer steps."""


def mismatch_sums(
    found: CorrectionOutput, inputs: LossInputs, sampler_logprobs: Float[Tensor, "n C"]
) -> dict[str, Tensor]:
    """Sums of the ratios, each counted once, and of two estimates of KL(engine || policy at the rollout)."""
    old, mask = inputs.old_logprobs, inputs.completion_mask
    sampler = sampler_logprobs.to(old.dtype)
    return {
        "weights": found.counted.sum(),
        "weight": masked_sum(found.ratios, found.counted),
        "weights_clipped": (found.clipped & found.counted).sum(),
        "sampler_kl_k1": k1(sampler, old, mask).sum(),
        "sampler_kl_k3": k3(sampler, old, mask).sum(),
    }


def mismatch_maxima(
    found: CorrectionOutput, inputs: LossInputs, sampler_logprobs: Float[Tensor, "n C"]
) -> dict[str, Tensor]:
    """The largest ratio, and the largest difference between a token's two log-probabilities; 0 if nothing counts."""
    gaps = k1(sampler_logprobs.to(inputs.old_logprobs.dtype), inputs.old_logprobs, inputs.completion_mask).abs()
    ratios = torch.where(found.counted, found.ratios, torch.zeros_like(found.ratios))
    return {"weight_max": ratios.max(), "logprob_gap_max": gaps.max()}


def mismatch_stats(steps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Metrics over all tokens that an iteration's optimizer steps scored; empty if there was no step."""
    if not steps:
        return {}
    sums = {name: math.fsum(step[name] for step in steps) for name in ("tokens", *MISMATCH_SUMS)}
    tokens, weights = max(1.0, sums["tokens"]), max(1.0, sums["weights"])
    return {
        "mismatch/weight_mean": sums["weight"] / weights,
        "mismatch/weight_max": max(step["weight_max"] for step in steps),
        "mismatch/clip_fraction": sums["weights_clipped"] / weights,
        "mismatch/kl_k1": sums["sampler_kl_k1"] / tokens,
        "mismatch/kl_k3": sums["sampler_kl_k3"] / tokens,
        "mismatch/logprob_gap_max": max(step["logprob_gap_max"] for step in steps),
    }
