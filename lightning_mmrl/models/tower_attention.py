"""Attention of media towers over windows, all windows of one length in one call.

transformers calls a tower's attention once for each window and each frame of every medium, hundreds of small calls for
one prompt. Only an attention with "flash" in its name gets all windows at once, as cumulative lengths. This attention
has such a name, works on any device, and computes scaled_dot_product_attention over the same windows.
"""

from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from lightning_mmrl.errors import StageError

TOWER_ATTENTION = "lightning_mmrl_windows_like_flash"


def attention_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function that towers call, with the cumulative lengths of the windows in `cu_seq_lens_q`.

    Raises:
        StageError: The tower asks for more than towers of the allowed versions of transformers do.
    """
    wanted = ["a mask"] if attention_mask is not None else []
    wanted += [f"{key}={kwargs[key]}" for key in ("dropout", "is_causal") if kwargs.get(key)]
    if wanted:
        raise StageError(
            f"{type(module).__name__} of transformers {transformers.__version__} asks its attention for "
            f"{' and '.join(wanted)}, which whole windows do not have; `mmrl doctor` names the versions that fit"
        )
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return attend_windows(query, key, value, kwargs["cu_seq_lens_q"], kwargs.get("scaling"))[None], None


def attend_windows(
    query: Float[Tensor, "T H d"],
    key: Float[Tensor, "T H d"],
    value: Float[Tensor, "T H d"],
    boundaries: Int[Tensor, " windows+1"],
    scale: float | None,
) -> Float[Tensor, "T H d"]:
    """softmax(scale * q k) v within each window [boundaries[i], boundaries[i + 1])."""
    starts, lengths = boundaries[:-1], boundaries.diff()
    found = lengths.unique().tolist()
    if len(found) == 1:
        return _equal_windows(query, key, value, found[0], scale)
    order, parts = [], []
    for length in (length for length in found if length):
        index = (starts[lengths == length, None] + torch.arange(length, device=starts.device)).flatten()
        order.append(index)
        parts.append(_equal_windows(query[index], key[index], value[index], length, scale))
    return torch.cat(parts)[torch.cat(order).argsort()]


def _equal_windows(query: Tensor, key: Tensor, value: Tensor, length: int, scale: float | None) -> Tensor:
    query, key, value = (tensor.unflatten(0, (-1, length)).transpose(1, 2) for tensor in (query, key, value))
    return scaled_dot_product_attention(query, key, value, scale=scale).transpose(1, 2).flatten(0, 1)


AttentionInterface.register(TOWER_ATTENTION, attention_forward)


def install(tower: nn.Module) -> None:
    """Makes a tower attend to all windows of one length at once.

    The configuration is set directly: `set_attn_implementation` would look for a kernel package for a name with
    "flash".
    """
    tower.config._attn_implementation = TOWER_ATTENTION  # type: ignore[union-attr]
