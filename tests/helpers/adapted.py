"""Policies with an adapter that has learned something, for tests that hold for every family."""

from typing import Any

import families
import omni
import torch

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.settings.model import AdapterSettings
from lightning_mmrl.types.batches import ScoringBatch

GROUP = 3


def load(
    name: str, checkpoint: Any, dtype: torch.dtype = torch.float64, *, spread: bool = False, **settings: Any
) -> tuple[Any, Policy]:
    """Encoder and policy with an adapter that changes what the model says; `spread` as in `omni`."""
    encoder, policy = families.load(name, checkpoint, dtype=dtype)
    if spread:
        omni.spread(policy.model)
    policy.adapt(AdapterSettings(**{"r": 4, "alpha": 8, **settings}))
    train(policy)
    return encoder, policy


def train(policy: Policy) -> None:
    """Gives every B, which is zero at first, random weights."""
    assert policy.adapter is not None
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.adapter.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def batch(name: str, encoder: Any) -> ScoringBatch:
    """Prompts with every kind of medium that the family reads, and completions of different length."""
    prompts = families.prompts(name, encoder)
    tokens, mask = omni.ragged_completions(encoder, GROUP * len(prompts.samples))
    return ScoringBatch(prompts=prompts, completion_ids=tokens, completion_mask=mask, group_size=GROUP)


def logprobs(policy: Policy, scored: ScoringBatch) -> torch.Tensor:
    """Without gradients."""
    with torch.no_grad():
        return policy(scored).logprobs
