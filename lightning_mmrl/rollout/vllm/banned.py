# pyright: reportMissingImports=false
# vllm is an extra that the type checker's environment does not have.
"""Banned tokens inside vLLM, as a logits processor that its worker imports by name."""

from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as ProcessorOfV2


class BannedTokens(LogitsProcessor, ProcessorOfV2):
    """Gives the ids `banned_token_ids` of vLLM's `additional_config` probability zero, before normalization.

    vLLM 0.32 has two model runners, with one interface each: V2 wherever Triton works, thus on every GPU, and V1
    elsewhere. The choice falls within vLLM (`VllmConfig.use_v2_model_runner`), after the processor was named to it, and
    each runner refuses a processor of the other one. This class is of both, so each runner finds the one it wants.

    Args:
        vllm_config: VLLM's configuration.
        state: V1 gives its device; V2 gives its buffers of requests, which name theirs.
        is_pin_memory: Given by V1 alone.
    """

    def __init__(self, vllm_config: Any, state: Any, is_pin_memory: bool = False) -> None:
        device = state if isinstance(state, torch.device) else state.device
        banned = vllm_config.additional_config["banned_token_ids"]
        self._ids = torch.tensor(banned, dtype=torch.long, device=device)

    def apply(self, logits: Tensor, ctx: Any = None) -> Tensor:
        """Sets the columns of banned ids to minus infinity, in place; V2 also gives the layout of its batch."""
        return logits.index_fill_(-1, self._ids, float("-inf"))

    def is_argmax_invariant(self) -> bool:
        """False, because greedy rows are masked as well; asked by V1."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Does nothing, because all requests are treated alike; called by V1. V2 takes its own default for the same."""
