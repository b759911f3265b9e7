"""Seeded sampling: the noise of a row depends only on (run seed, iteration, prompt, sample), not on its batch."""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.types.batches import PromptBatch


def row_seed(seed: int, iteration: int, prompt_id: str, sample: int, sampling: int = 0) -> int:
    """A 64-bit seed for one completion; `sampling` counts the batches of prompts in an iteration from 0.

    >>> row_seed(0, 3, "clip-1", 0) == row_seed(0, 3, "clip-1", 0)
    True
    >>> row_seed(0, 3, "clip-1", 0) in (row_seed(0, 3, "clip-1", 1), row_seed(0, 3, "clip-1", 0, sampling=1))
    False
    """
    moment = f"{iteration}.{sampling}" if sampling else f"{iteration}"
    return hashed_seed(f"{seed}/{moment}/{sample}/{prompt_id}")


def hashed_seed(key: str, num_bytes: int = 8) -> int:
    """A seed from a string of everything that it depends on."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=num_bytes).digest(), "little")


def group_seeds(
    seed: int, iteration: int, prompt_ids: Sequence[str], group_size: int, sampling: int = 0
) -> list[list[int]]:
    """Seeds [B][G] of a rollout."""
    return [
        [row_seed(seed, iteration, prompt_id, sample, sampling) for sample in range(group_size)]
        for prompt_id in prompt_ids
    ]


def uniform_noise(seeds: Sequence[int], num_tokens: int) -> Float[Tensor, "N C"]:
    """One number in [0, 1) for each row and token, float64, from a counter-based generator per row."""
    rows = [np.random.Generator(np.random.Philox(seed)).random(num_tokens) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def sample_tokens(logprobs: Float[Tensor, "N V"], noise: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Inverse-CDF sampling: the first token whose cumulative probability exceeds the noise.

    A token of probability zero is never chosen, since its cumulative probability equals the one before it. A row that
    is not finite gets the last token.
    """
    cumulative = logprobs.double().exp().cumsum(-1)
    threshold = noise.to(cumulative) * cumulative[:, -1]
    found = torch.searchsorted(cumulative, threshold[:, None], right=True).squeeze(-1)
    return found.clamp(max=logprobs.shape[-1] - 1)


def nucleus(logprobs: Float[Tensor, "N V"], top_p: float) -> Float[Tensor, "N V"]:
    """The likeliest tokens of each row up to a total probability of `top_p`, at least one; minus infinity elsewhere.

    The smallest such set (arXiv:1904.09751, section 3.1) by the rule of transformers' `TopPLogitsWarper`: a token is
    dropped if it and all less likely tokens together have a probability of at most 1 - top_p. The remaining
    probabilities are not renormalized.

    >>> nucleus(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0.7).exp()
    tensor([[0.5000, 0.3000, 0.0000]])
    """
    ascending, order = logprobs.sort(dim=-1)
    dropped = ascending.exp().cumsum(-1) <= 1 - top_p
    dropped[:, -1] = False
    return logprobs.masked_fill(dropped.scatter(-1, order, dropped), -torch.inf)


def refuse_broken(logprobs: Float[Tensor, "N C"], prompts: PromptBatch, group_size: int) -> None:
    """Refuses completions with a log-probability that is not finite.

    Raises:
        RolloutError: There is such a completion; the message names the first sample.
    """
    broken = (~logprobs.isfinite()).any(-1).nonzero().flatten().tolist()
    if broken:
        name = prompts.samples[broken[0] // group_size].id
        raise RolloutError(
            f"the model has no finite probabilities for sample {name}: its weights or the outputs of its towers are "
            "not finite, or too large; look at the learning rate that it was trained with and at this sample's media"
        )
