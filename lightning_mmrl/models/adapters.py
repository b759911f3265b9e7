"""LoRA (arXiv:2106.09685): low-rank layers that train next to frozen linear layers, made with peft.

An adapted layer is h = W x + b + (alpha / r) B A x. A is drawn as torch draws a linear layer and B is zero, so that a
new adapter changes nothing. With the adapter off, the model is the original one bit for bit: the reference policy needs
no weights of its own.

Only this module imports peft, and only when the first adapter is made: the import takes a second, and most stages have
no adapter.
"""

import copy
import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.model import ALL_LAYERS, AdapterSettings

if TYPE_CHECKING:
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

NAME = "default"
"""The name that peft gives an adapter by default."""

LinearLayers = Mapping[str, Mapping[str, Sequence[str]]]
"""Maps a parameter group, then a kind of linear layer, to endings of layer names; these leave out list numbers."""


class Adapter:
    """LoRA layers within a model.

    Args:
        model: The model that has the layers.
        config: The configuration that peft made the layers from.
        names: The names of the adapted layers.
    """

    def __init__(self, model: PreTrainedModel, config: "LoraConfig", names: Sequence[str]) -> None:
        self._model = model
        self._config = config
        self._layers = [cast("LoraLayer", model.get_submodule(name)) for name in names]
        self._scale = config.lora_alpha / config.r

    def parameters(self) -> list[nn.Parameter]:
        """The weights of A and B, layer by layer."""
        parts = [part for layer in self._layers for part in (layer.lora_A, layer.lora_B)]
        return [parameter for part in parts for parameter in part.parameters()]

    @contextmanager
    def off(self) -> Iterator[None]:
        """Switches the adapter off within the context; after the context, and after an error, all is as before."""
        trained = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        were_off = [layer.disable_adapters for layer in self._layers]
        try:
            for layer in self._layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer, was_off in zip(self._layers, were_off, strict=True):
                layer.enable_adapters(not was_off)
            # peft makes the layers that it enables trainable.
            for parameter, requires_grad in trained:
                parameter.requires_grad_(requires_grad)

    def merging(self, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yields the state of the plain model, with W + (alpha / r) B A in the place of every adapted weight W.

        Names and weights come one at a time, in the order of `state`; each weight of `state` is read once. Sums are
        computed in float32 at least and kept in the dtype of W; nothing else is copied, and neither `state` nor the
        model changes.

        Args:
            state: All weights of the adapted model, its own or gathered from ranks.
        """
        for key in state:
            layer, adapted, rest = key.rpartition(".base_layer.")
            if adapted and rest == "weight":
                down, up = (state[f"{layer}.{part}.{NAME}.weight"] for part in ("lora_A", "lora_B"))
                weight = state[key]
                dtype = torch.promote_types(torch.promote_types(weight.dtype, up.dtype), torch.float32)
                delta = self._scale * (up.to(dtype) @ down.to(dtype))
                yield f"{layer}.weight", (weight.to(dtype) + delta).to(weight.dtype)
            elif adapted:
                yield f"{layer}.{rest}", state[key]
            elif not key.endswith((f".lora_A.{NAME}.weight", f".lora_B.{NAME}.weight")):
                yield key, state[key]

    def save(self, directory: Path, state: Mapping[str, Tensor], *, base: str) -> None:
        """Writes the adapter alone in peft's format: `PeftModel.from_pretrained(model, directory)` reads it.

        Args:
            directory: The folder; it is created.
            state: As for `merging`.
            base: Hub id or folder of the model that the adapter belongs to.
        """
        from peft import get_peft_model_state_dict

        # Embeddings are never adapted; peft would look for the base model's embeddings on the hub.
        own = get_peft_model_state_dict(self._model, state_dict=dict(state), save_embedding_layers=False)
        directory.mkdir(parents=True, exist_ok=True)
        # Keys as they are in a PeftModel, which puts the model under `base_model.model`.
        tensors = {f"base_model.model.{key}": tensor.contiguous() for key, tensor in own.items()}
        save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
        config = copy.copy(self._config)
        config.base_model_name_or_path, config.inference_mode = base, True
        # The order of a set of strings differs between processes, and the folder's hash would differ with it.
        config.target_modules = sorted(config.target_modules or ())
        config.save_pretrained(str(directory))


def add_adapter(model: PreTrainedModel, names: Sequence[str], settings: AdapterSettings) -> Adapter:
    """Puts LoRA layers around the named linear layers, and freezes all other parameters of the model.

    Where weights are bfloat16 or float16, A and B are float32.
    """
    from peft import LoraConfig, inject_adapter_in_model

    kind = type(model)
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=list(names),
        auto_mapping={"base_model_class": kind.__name__, "parent_library": kind.__module__},
    )
    inject_adapter_in_model(config, model)
    adapted = [name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")]
    assert adapted == list(names), f"peft adapted other layers than the named ones: {set(adapted) ^ set(names)}"
    adapter = Adapter(model, config, names)
    for parameter in adapter.parameters():
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    return adapter


def chosen_layers(
    model: nn.Module, prefixes: Mapping[str, Sequence[str]], known: LinearLayers, settings: AdapterSettings, key: str
) -> list[str]:
    """The names of the linear layers that an adapter is for, in the order of the model.

    Args:
        model: The model.
        prefixes: For each parameter group, how the names of its parameters begin.
        known: The linear layers that the family names.
        settings: The groups and the layers that are wanted.
        key: The name of the settings in messages.

    Raises:
        ConfigError: A group or a target selects no layer.
    """
    check_targets(known, settings, key)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    groups = {group: [n for n in linear if n.startswith(tuple(prefixes[group]))] for group in settings.groups}
    chosen: set[str] = set()
    for target in settings.wanted:
        found = {
            name
            for group, names in groups.items()
            for ending in _endings(known[group], target)
            for name in names
            if _ends_with(name, ending) or _ends_with(_without_numbers(name), ending)
        }
        if not found:
            raise _matches_nothing(key, target, known, settings, linear)
        chosen |= found
    for group, names in groups.items():
        if chosen.isdisjoint(names):
            raise ConfigError(f"{key}.groups is {group!r}, where {key}.targets match no linear layer; leave it out")
    return [name for name in linear if name in chosen]


def check_targets(known: LinearLayers, settings: AdapterSettings, key: str) -> None:
    """Refuses targets that no model of a family can have, before a model is loaded; arguments as in `chosen_layers`.

    Raises:
        ConfigError: The family has no such group, or no such linear layer in any of the groups.
    """
    for group in settings.groups:
        if group not in known:
            raise ConfigError(f"{key}.groups is {group!r}; this family has {', '.join(sorted(known))}")
    kinds = {ALL_LAYERS, *(kind for group in settings.groups for kind in known[group])}
    endings = [ending for group in settings.groups for ending in _endings(known[group], ALL_LAYERS)]
    for target in settings.wanted:
        plain = _without_numbers(target)
        if target not in kinds and not any(_ends_with(plain, each) or _ends_with(each, plain) for each in endings):
            raise _matches_nothing(key, target, known, settings)


def _endings(kinds: Mapping[str, Sequence[str]], target: str) -> Sequence[str]:
    if target == ALL_LAYERS:
        return [ending for endings in kinds.values() for ending in endings]
    return kinds.get(target, (target,))


def _ends_with(name: str, ending: str) -> bool:
    return f".{name}".endswith(f".{ending}")


def _without_numbers(name: str) -> str:
    """The name of a layer without its place in lists.

    >>> _without_numbers("model.layers.3.mlp.0")
    'model.layers.mlp'
    """
    return re.sub(r"\.\d+(?=\.|$)", "", name)


def _matches_nothing(
    key: str, target: str, known: LinearLayers, settings: AdapterSettings, names: Sequence[str] = ()
) -> ConfigError:
    """The error for a target that matches no layer; it suggests a kind, the last word of an ending, or a given name."""
    chosen = [known[group] for group in settings.groups]
    last = [ending.rpartition(".")[2] for kinds in chosen for ending in _endings(kinds, ALL_LAYERS)]
    words = list(dict.fromkeys([ALL_LAYERS, *(kind for kinds in chosen for kind in kinds), *last]))
    close = difflib.get_close_matches(target, [*words, *names], n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(words)}"
    return ConfigError(f"{key}.targets is {target!r}, which is no linear layer of these groups; {hint}")
