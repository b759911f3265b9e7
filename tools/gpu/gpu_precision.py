"""Step 2: weights that move under small updates, the types that reach attention under autocast, and rotary frequencies.

AdamW moves a weight by about the learning rate. bfloat16 has 8 significant bits, so a weight of 0.02 moves by 6e-5 or
not at all, and an update of 1e-6 is lost. float32 masters take it.
"""

from typing import Any
from unittest.mock import patch

import torch
from gpu_record import Record, Setup
from gpu_worlds import Sizes, policy_of, scoring_of, text_prompts
from torch import Tensor, nn

from lightning_mmrl.models import shared_prefix
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.ops.masked import masked_mean
from lightning_mmrl.types.batches import ScoringBatch

LEARNING_RATE, STEPS = 1e-6, 250
LEAST_MOVED = 0.99
"""Share of the weights with a gradient that float32 masters must move."""
MOST_MOVED = 0.5
"""More moved bfloat16 weights than this would mean that the count is wrong: a plain optimizer moves a few percent."""
POSITION, MOST_ROTATED = 3000, 0.01
"""A position, and the radians that a frequency may be off there: float32 is off by 2e-4, bfloat16 by a radian."""
TOY_SIZES = Sizes(layers=1, depth=1, vocabulary=256)
SIZES = Sizes(layers=2, depth=1, vocabulary=8192)
"""The widths of the 3B model with few layers: the share does not depend on their number, the time does."""


def run(setup: Setup, record: Record) -> None:
    """Trains twice, looks at the types, and checks the frequencies."""
    sizes = setup.choose(toy=TOY_SIZES, large=SIZES)
    masters = share_moved(setup, policy_of(setup, dtype=torch.float32, sizes=sizes))
    record.figure("moved_share_float32_masters", masters)
    record.expect(masters >= LEAST_MOVED, f"float32 masters moved {masters:.1%} of the weights, not {LEAST_MOVED:.0%}")
    rounded = share_moved(setup, policy_of(setup, dtype=torch.bfloat16, sizes=sizes))
    record.figure("moved_share_bfloat16_weights", rounded)
    record.expect(rounded <= MOST_MOVED, f"bfloat16 weights moved {rounded:.1%}: the count of moved weights is wrong")

    found = attention_types(setup, policy_of(setup, dtype=torch.float32, sizes=sizes))
    record.figure("types_at_attention_under_autocast", " ".join(sorted(found)))
    record.expect(found == {"bfloat16"}, f"under autocast in bfloat16, attention gets {' and '.join(sorted(found))}")

    policy = policy_of(setup, dtype=torch.bfloat16, sizes=sizes)
    error = rotation_error(policy)
    record.figure("inv_freq_rotation_error_rad", error)
    record.expect(error <= MOST_ROTATED, f"rotary angles at position {POSITION} are {error:.2f} rad off")
    for name, types in frequency_types(policy).items():
        record.expect(types == torch.float32, f"{name} is {types} in a model that was loaded in bfloat16, not float32")


def share_moved(setup: Setup, policy: Policy) -> float:
    """The share of weights that differ after 250 AdamW steps, among weights that ever had a gradient.

    The policy computes in bfloat16 either way: by its weights, or under autocast.
    """
    batch = _batch(setup, policy)
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    reached = [torch.zeros_like(parameter, dtype=torch.bool) for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0, fused=True)
    for step in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast(setup.device.type, torch.bfloat16, enabled=parameters[0].dtype == torch.float32):
            loss = -masked_mean(policy(batch).logprobs, batch.completion_mask)
        loss.backward()
        if step in (0, STEPS - 1):
            for parameter, seen in zip(parameters, reached, strict=True):
                if parameter.grad is not None:
                    seen.logical_or_(parameter.grad != 0)
        optimizer.step()
    moved = sum(
        int(((parameter != old) & seen).sum()) for parameter, old, seen in zip(parameters, before, reached, strict=True)
    )
    return moved / sum(int(seen.sum()) for seen in reached)


def _batch(setup: Setup, policy: Policy) -> ScoringBatch:
    prompts = text_prompts(setup, policy, (24, 20))
    return scoring_of(setup, policy, prompts, ((8, 5, 7, 8), (8, 8, 6, 7)))


def attention_types(setup: Setup, policy: Policy) -> set[str]:
    """The types of queries, keys and values that arrive at `attend` under autocast, from float32 weights."""
    found: set[str] = set()
    attend = shared_prefix.attend

    def noting(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        found.update(str(tensor.dtype).removeprefix("torch.") for tensor in (query, key, value))
        return attend(query, key, value, *rest)

    with (
        patch.object(shared_prefix, "attend", noting),
        torch.autocast(setup.device.type, torch.bfloat16),
        torch.no_grad(),
    ):
        policy(_batch(setup, policy))
    return found


def frequency_types(policy: nn.Module) -> dict[str, torch.dtype]:
    """The types of all rotary frequencies by name."""
    return {name: buffer.dtype for name, buffer in policy.named_buffers() if name.endswith("inv_freq")}


def rotation_error(policy: Policy) -> float:
    """The largest error in radians that the decoder's rotary frequencies make at `POSITION`.

    Frequency i is theta ** (-2 i / d), here in float64 (arXiv:2104.09864, section 3.2.2). Rounded to bfloat16 the
    error is a radian and more.
    """
    config = policy.text_config
    theta, width = config.rope_parameters["rope_theta"], config.hidden_size // config.num_attention_heads
    exact = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    buffers = dict(policy.model.named_buffers())
    (name,) = (name for name in buffers if "language_model" in name and name.endswith("rotary_emb.inv_freq"))
    return float((POSITION * (buffers[name].double().cpu() - exact)).abs().max())
