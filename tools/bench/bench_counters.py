"""Counts what a step computes: decoder tokens, attention pairs, tower patches, head rows, prefills, decode steps."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "linear", "matmul"}
ATTENTION = "_scaled_dot_product"


class Counters:
    """Implements `Counting` on a stock model, which all variants have inside; nothing in backward counts but `again`.

    - `lm_tokens`: tokens through the decoder; `lm_tokens_again`: once more inside backward (checkpointing).
    - `prefills`: prompts computed without gradients, that is their tokens over the prompt's length; `decode_steps`:
      passes without gradients of at most one token per completion.
    - `tower_runs`: calls of the vision tower; `tower_patches`: patches through it.
    - `attention_pairs`: queries times keys that the attention kernels of the first decoder layer were given, half of
      them where causal; not seen if attention is no kernel but products.
    - `head_rows`: rows multiplied with the head's weights, seen where a product takes the storage of those weights.

    Args:
        tower: The vision tower.
        layer: The decoder's first layer.
        head: The weights from states to logits [V, D].
        prompt_length: Tokens of a prompt.
        group_size: Completions of a step.
    """

    def __init__(
        self, *, tower: nn.Module, layer: nn.Module, head: Tensor, prompt_length: int, group_size: int
    ) -> None:
        self._tower, self._layer, self._head = tower, layer, head
        self._prompt_length, self._group_size = prompt_length, group_size
        self._counts: Counter[str] = Counter()
        self._handles: list[Any] = []
        self._operations = _Operations(head, self._counts)

    def start(self) -> None:
        """Counts from here on."""
        self._counts = Counter()
        self._operations = _Operations(self._head, self._counts)
        self._handles = [
            self._layer.register_forward_pre_hook(self._enter_layer, with_kwargs=True),
            self._layer.register_forward_hook(self._leave_layer),
            self._tower.register_forward_pre_hook(self._enter_tower, with_kwargs=True),
        ]
        self._operations.__enter__()

    def stop(self) -> dict[str, int]:
        """The counts since `start`."""
        self._operations.__exit__(None, None, None)
        for handle in self._handles:
            handle.remove()
        counts = dict(self._counts)
        for total, unit, name in (
            ("prefilled_tokens", self._prompt_length, "prefills"),
            ("head_elements", len(self._head), "head_rows"),
        ):
            if total in counts:
                counts[name] = counts.pop(total) // unit
        return counts

    def _enter_layer(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        num_tokens = states.shape[0] * states.shape[1]
        self._operations.in_layer = True
        if in_backward():
            self._counts["lm_tokens_again"] += num_tokens
            return
        self._counts["lm_tokens"] += num_tokens
        if not torch.is_grad_enabled():
            if num_tokens <= self._group_size:
                self._counts["decode_steps"] += 1
            else:
                self._counts["prefilled_tokens"] += num_tokens

    def _leave_layer(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._operations.in_layer = False

    def _enter_tower(self, tower: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        pixels = args[0] if args else kwargs["hidden_states"]
        if not in_backward():
            self._counts["tower_runs"] += 1
            self._counts["tower_patches"] += len(pixels)


def counters_of(model: Any, *, prompt_length: int, group_size: int) -> Counters:
    """Counts the work of a stock Qwen2.5-VL."""
    inner = model.model
    return Counters(
        tower=inner.visual,
        layer=inner.language_model.layers[0],
        head=model.lm_head.weight,
        prompt_length=prompt_length,
        group_size=group_size,
    )


class _Operations(TorchDispatchMode):
    """Sees every operation: products that read the head's storage, and attention kernels of the first layer."""

    def __init__(self, head: Tensor, counts: Counter[str]) -> None:
        super().__init__()
        self._storage = head.untyped_storage().data_ptr()
        self._counts = counts
        self.in_layer = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if in_backward():
            return out
        if name in PRODUCTS and any(map(self._is_head, args)):
            self._counts["head_elements"] += out.numel()
        elif self.in_layer and name.startswith(ATTENTION):
            self._counts["attention_pairs"] += _num_pairs(func, args, kwargs or {})
        return out

    def _is_head(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.untyped_storage().data_ptr() == self._storage


def _num_pairs(func: Any, args: Any, kwargs: Mapping[str, Any]) -> int:
    given = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)}
    query, key = given["query"], given["key"]
    rows, num_queries, num_keys = query.shape[0], query.shape[-2], key.shape[-2]
    causal = given.get("is_causal", kwargs.get("is_causal", False))
    hidden = num_queries * (num_queries - 1) // 2 if causal else 0
    return rows * (num_queries * num_keys - hidden)


def in_backward() -> bool:
    """True inside autograd's backward pass, where checkpointing computes states again."""
    return torch._C._current_graph_task_id() != -1
