"""Merges a LoRA adapter that lies in files of peft's format into the weights of a model.

The files are read as data alone: the configuration names no class here, and the weights are safetensors. The sum is
that of `models.adapters`: W + s B A, in float32 at least and kept in the dtype of W, where s is alpha / r, or
alpha / sqrt(r) for rsLoRA (arXiv:2312.03732).
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mmrl.errors import StageError
from lightning_mmrl.files import read_json
from lightning_mmrl.suggestions import shown

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Beginning of the names in an adapter's file: peft puts the model there."""
_KEY = re.compile(r"(.+)\.lora_([AB])\.weight")
_WITHOUT = {"use_dora": False, "lora_bias": False, "fan_in_fan_out": False, "bias": "none", "modules_to_save": None}
"""Keys of kinds of adapters that are more than W + s B A, and the value of each that adds nothing."""


def merge_adapter(model: PreTrainedModel, files: Mapping[str, Path], prefix: str = "") -> None:
    """Adds an adapter to the weights of a model, in place; nothing is changed if there is an error.

    Args:
        model: The model.
        files: The paths of `adapter_config.json` and `adapter_model.safetensors`.
        prefix: Beginning of weight names in the released model of the family, such as `thinker.`, which an adapter of
            the whole model has.

    Raises:
        StageError: A file is damaged, the adapter is of another model, or it is more than low-rank layers.
    """
    config = read_json(files[CONFIG], "restore it")
    _require_lora(config, files[CONFIG])
    try:
        tensors = load_file(files[WEIGHTS])
    except (SafetensorError, OSError) as error:
        raise StageError(f"{files[WEIGHTS]} cannot be read ({error}); restore it") from error
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key.removeprefix(PREFIX))
        if match is None:
            raise StageError(
                f"{files[WEIGHTS]} holds {key}, which is no part of a low-rank layer; merge the adapter with peft "
                "(merge_and_unload), and evaluate the merged folder"
            )
        layers.setdefault(match[1], {})[match[2]] = tensor
    if not layers:
        raise StageError(f"{files[WEIGHTS]} holds no weights; restore it")
    found = {name: _linear(model, name.removeprefix(prefix), parts, files) for name, parts in layers.items()}
    merged = {name: _merged(layer, layers[name], _scale(config, name, layers[name])) for name, layer in found.items()}
    for name, weight in merged.items():
        if not weight.isfinite().all():
            raise StageError(f"{files[WEIGHTS]}: {name} is not finite once the adapter is merged; restore the file")
    for name, layer in found.items():
        layer.weight.data = merged[name]


def _require_lora(config: Any, path: Path) -> None:
    if not isinstance(config, dict):
        raise StageError(f"{path} is no configuration of an adapter; restore it")
    kind, rank, alpha = (config.get(key) for key in ("peft_type", "r", "lora_alpha"))
    if kind != "LORA":
        raise StageError(
            f"{path} has peft_type {shown(kind)}, and only LORA is merged here; merge the adapter with peft, and "
            "evaluate the merged folder"
        )
    for key, value in {"r": rank, "lora_alpha": alpha}.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise StageError(f"{path} has {key} {shown(value)}, which is no number above 0; restore it")
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or not all(re.fullmatch(r"[\w.]+", end) for end in patterns):
        raise StageError(
            f"{path} has alpha_pattern {shown(patterns)}, and only ends of names are read here; merge the adapter with "
            "peft (merge_and_unload), and evaluate the merged folder"
        )
    for key, plain in _WITHOUT.items():
        if config.get(key) not in (plain, None, []):
            raise StageError(
                f"{path} has {key} {shown(config[key])}, which is more than low-rank layers; merge the adapter with "
                "peft (merge_and_unload), and evaluate the merged folder"
            )


def _linear(model: PreTrainedModel, name: str, parts: Mapping[str, Tensor], files: Mapping[str, Path]) -> nn.Linear:
    """The layer of a model that an adapter's layer belongs to, once their sizes are compared."""
    modules = dict(model.named_modules())
    layer, kind = modules.get(name), model.config.model_type
    other = f"{files[WEIGHTS]} is no adapter of this {kind} model"
    if not isinstance(layer, nn.Linear):
        raise StageError(f"{other}, which has no linear layer {name}; give the model that it belongs to by --base")
    if parts.keys() != {"A", "B"}:
        raise StageError(f"{files[WEIGHTS]} has only lora_{'/'.join(parts)} of {name}; restore it")
    down, up = parts["A"], parts["B"]
    if (down.dim(), up.dim()) != (2, 2) or len(down) != up.shape[1]:
        raise StageError(f"{files[WEIGHTS]}: A and B of {name} do not fit each other; restore it")
    if (len(up), down.shape[1]) != tuple(layer.weight.shape):
        sizes = f"{len(up)} x {down.shape[1]}, and the model's {' x '.join(map(str, layer.weight.shape))}"
        raise StageError(f"{other}: its {name} is {sizes}; give the model that it belongs to by --base")
    if layer.weight is model.get_input_embeddings().weight:
        raise StageError(
            f"{files[WEIGHTS]} adapts {name}, whose weight is the input embedding's as well; merge the adapter with "
            "peft, and evaluate the merged folder"
        )
    return layer


def _scale(config: Mapping[str, Any], name: str, parts: Mapping[str, Tensor]) -> float:
    """The factor of B A; ends of names may have another alpha."""
    patterns = config.get("alpha_pattern") or {}
    own = (alpha for end, alpha in patterns.items() if f".{name}".endswith(f".{end}"))
    rank = len(parts["A"])
    return next(own, config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _merged(layer: nn.Linear, parts: Mapping[str, Tensor], scale: float) -> Tensor:
    weight = layer.weight.data
    dtype = torch.promote_types(torch.promote_types(weight.dtype, parts["B"].dtype), torch.float32)
    down, up = (parts[part].to(weight.device, dtype) for part in ("A", "B"))
    return (weight.to(dtype) + scale * (up @ down)).to(weight.dtype)
