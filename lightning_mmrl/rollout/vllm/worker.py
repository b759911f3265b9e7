"""Code that runs inside vLLM: in the worker of this process, or in a server's worker, which imports it by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.vllm.exchange import opened, stored_weights
from lightning_mmrl.rollout.vllm.settings import first_line

POSITIONS = "given_positions"
"""Field of a medium that holds the positions of the whole prompt, as `EnginePrompt.positions`."""


def reload(worker: Any, weights: Iterator[tuple[str, Tensor]]) -> dict[str, Any]:
    """Loads weights into a worker's model and reports the outcome.

    Returns:
        `num_read`: the number of weights received; `refused`: the refused weight with the reason, or None; `missing`:
        names of parameters that got no weight. After a refusal the model is partly old, partly new. No further push may
        follow, since layers that still wait for a part of a fused weight would take it from that push.
    """
    model = worker.model_runner.get_model()
    if getattr(model, "half_loaded", False):
        return {"num_read": 0, "refused": "all: an earlier push ended halfway; start vLLM again", "missing": []}
    load, loaded, read = model.load_weights, set[str](), list[str]()

    def noting(weights: Iterator[tuple[str, Tensor]]) -> set[str]:
        found = load(weights)
        loaded.update(found)
        return found

    def named() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            read.append(f"{name} {tuple(tensor.shape)}")
            yield name, tensor

    wanted, refused = {name for name, _ in model.named_parameters()}, None
    model.load_weights, model.half_loaded = noting, True
    try:
        worker.reload_weights(weights_iterator=named())
        model.half_loaded = False
    except (ValueError, RuntimeError, AssertionError, KeyError, OSError, SafetensorError) as error:
        refused = f"{read[-1] if read else 'the first'}: {first_line(error)}"
    finally:
        del model.load_weights
    missing = sorted(wanted - loaded) if refused is None else []
    return {"num_read": len(read), "refused": refused, "missing": missing}


class WorkerExtension:
    """Further methods of a server's workers (`--worker-extension-cls`), called by name over HTTP."""

    model_runner: Any

    def mmrl_use_given_positions(self) -> None:
        """Makes the worker take positions from the prompts' media."""
        take_given_positions(self)

    def mmrl_load_files(self, folder: str, owner: int) -> dict[str, Any]:
        """Loads weights, one at a time, from a folder that the user `owner` wrote; returns the report of `reload`."""
        try:
            with opened(Path(folder), owner) as held:
                return reload(self, stored_weights(held))
        except RolloutError as error:
            return {"num_read": 0, "refused": f"all: {error}", "missing": []}


def take_given_positions(worker: Any) -> None:
    """Makes a worker take a prompt's positions from its media instead of computing them again.

    vLLM's own positions agree with the rule `previous_maximum` (tests/engine_vllm), except for the markers around a
    clip that is interleaved with its sound: transformers and the released models put the markers of each side at one
    position. A second call changes nothing.
    """
    model = worker.model_runner.get_model()
    if not hasattr(model, "get_mrope_input_positions") or "get_mrope_input_positions" in vars(model):
        return
    own = model.get_mrope_input_positions

    def positions(input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        if not mm_features:
            return own(input_tokens, mm_features)
        # The prompt's own length counts: Model Runner V2 adds a preempted request again with prompt and output.
        given = mm_features[0].data[POSITIONS].data
        length = given.shape[-1] - 1
        delta = int(given[0, -1]) - length
        sampled = torch.arange(length, len(input_tokens)) + delta
        return torch.cat([given[:, :-1], sampled.expand(len(given), -1)], dim=1), delta

    model.get_mrope_input_positions = positions
