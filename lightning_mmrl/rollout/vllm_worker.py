# pyright: reportMissingImports=false
# vllm is an extra that the type checker's environment does not have.
"""What runs inside vLLM: in the worker of this process or of a server, which imports it by name."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor

POSITIONS = "given_positions"
"""Field of a medium that holds the positions of the whole prompt, as `EnginePrompt.positions`."""


class BannedTokens(LogitsProcessor):
    """The ids `banned_token_ids` of vLLM's `additional_config` are never sampled, and count in no normalizer."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        banned = vllm_config.additional_config["banned_token_ids"]
        self._ids = torch.tensor(banned, dtype=torch.long, device=device)

    def apply(self, logits: Tensor) -> Tensor:
        """Sets the columns of banned ids to minus infinity, in place."""
        return logits.index_fill_(-1, self._ids, float("-inf"))

    def is_argmax_invariant(self) -> bool:
        """Greedy rows are masked as well."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """All requests are treated alike."""


def reload(worker: Any, weights: Iterator[tuple[str, Tensor]]) -> set[str]:
    """Loads weights into a worker's model and returns the names of those that it got none for."""
    model = worker.model_runner.get_model()
    load, loaded = model.load_weights, set[str]()

    def noting(weights: Iterator[tuple[str, Tensor]]) -> set[str]:
        found = load(weights)
        loaded.update(found)
        return found

    wanted = {name for name, _ in model.named_parameters()}
    model.load_weights = noting
    try:
        worker.reload_weights(weights_iterator=weights)
    finally:
        del model.load_weights
    return wanted - loaded


def take_given_positions(worker: Any) -> None:
    """Has a worker take a prompt's positions from its media, where vLLM would compute them a second time.

    Its own agree where text goes on behind the largest position (tests/engine_vllm), but for the markers around a clip
    that is interleaved with its sound, which transformers and the released models put at one position each side.
    """
    model = worker.model_runner.get_model()
    if not hasattr(model, "get_mrope_input_positions"):
        return
    own = model.get_mrope_input_positions

    def positions(input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        if not mm_features:
            return own(input_tokens, mm_features)
        given = mm_features[0].data[POSITIONS].data
        return given[:, :-1], int(given[0, -1]) - len(input_tokens)

    model.get_mrope_input_positions = positions
