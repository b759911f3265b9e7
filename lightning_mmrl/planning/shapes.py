"""Sizes of a model, read off its `config.json` without torch: parameters by group, blocks, and what a token costs.

A model is up to three stacks of equal blocks: the decoder (text) and its media towers (vision, audio), as `freeze`
groups them. The formulas follow the modules of transformers; tests compare every count with the real modules of every
released model on the meta device.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_mmrl.planning.released import DEFAULTS, RELEASED

ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A linear layer: the ending of its name, the kind that adapters know it by, its sizes and what it reads.

    It reads the output of the block's first or second norm, of its attention, or of its activation function (`inner`).
    """

    name: str
    kind: str
    reads: str
    inputs: int
    outputs: int
    bias: bool = True

    @property
    def parameters(self) -> int:
        """Number of parameters of weight and bias together."""
        return (self.inputs + self.bias) * self.outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """Equal blocks of one parameter group.

    `path` is where the blocks are. `queries` and `keys` are the widths of all query heads and of all key heads, which
    have norms of their own if `normed_heads`. `inner_copies` counts what the activation function of a block keeps for
    the backward pass, in units of `inner` values per row. `rest` is the number of the group's parameters outside of its
    blocks. `projector` lists the linear layers outside of the blocks, with their full names; its norms have
    `projector_norms` parameters. A feature row that a tower
    returns is made from `rows_per_token` of the tower's rows, and each of these from `input_values` numbers; neither
    applies to the decoder.
    """

    path: str
    depth: int
    width: int
    inner: int
    heads: int
    queries: int
    keys: int
    linears: tuple[Linear, ...]
    norm_parameters: int
    rms_norms: bool
    inner_copies: int
    rest: int
    projector: tuple[Linear, ...] = ()
    projector_norms: int = 0
    normed_heads: bool = False
    rows_per_token: int = 1
    input_values: int = 0

    @property
    def block(self) -> int:
        """Parameters of one block."""
        return sum(linear.parameters for linear in self.linears) + self.norm_parameters

    @property
    def parameters(self) -> int:
        """Number of parameters of all blocks, plus `rest`."""
        return self.depth * self.block + self.rest

    @property
    def projector_parameters(self) -> int:
        """Parameters of a tower's projector, which are part of `rest`."""
        return sum(linear.parameters for linear in self.projector) + self.projector_norms

    def adapter_parameters(self, rank: int, targets: Iterable[str]) -> int:
        """Number of LoRA parameters in all layers that `targets` match, as in `models.adapters.chosen_layers`."""
        wanted = tuple(targets)
        layers = [(f"{self.path}.{i}.{each.name}", each) for i in range(self.depth) for each in self.linears]
        layers += [(each.name, each) for each in self.projector]
        return sum(rank * (each.inputs + each.outputs) for name, each in layers if _chosen(name, each.kind, wanted))

    def adapted(self, targets: Iterable[str]) -> tuple[Linear, ...]:
        """The linear layers of a block that `targets` match in at least one block."""
        wanted = tuple(targets)
        places = [f"{self.path}.{i}" for i in range(self.depth)]
        return tuple(
            each for each in self.linears if any(_chosen(f"{at}.{each.name}", each.kind, wanted) for at in places)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The stacks of a model by parameter group, the decoder under `text`, and its vocabulary."""

    stacks: Mapping[str, Stack]
    vocabulary: int
    tied: bool

    @property
    def text(self) -> Stack:
        """The decoder with embedding and head."""
        return self.stacks["text"]

    @property
    def parameters(self) -> int:
        """Number of parameters of the whole model; a tied head is counted once."""
        return sum(stack.parameters for stack in self.stacks.values())

    @property
    def root(self) -> int:
        """Parameters of the root unit of the wrapping plan: embedding, last norm and head."""
        return self.text.rest

    @property
    def largest_unit(self) -> int:
        """Parameters of the largest unit except the root: a block, or a tower without its blocks."""
        towers = [stack.rest for group, stack in self.stacks.items() if group != "text"]
        return max([*(stack.block for stack in self.stacks.values()), *towers])


def read_shape(checkpoint: str) -> ModelShape | None:
    """The shape of a local folder or of a released model's hub id; None if nothing is known of the checkpoint.

    Raises:
        ValueError: The model is not of a supported family, or its config.json does not have the family's form.
    """
    file = Path(checkpoint) / "config.json"
    if file.is_file():
        try:
            return shape_of(json.loads(file.read_text(encoding="utf-8")))
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"its config.json is not as its family's are ({error})") from error
    return shape_of(RELEASED[checkpoint]) if checkpoint in RELEASED else None


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a `config.json` describes; for an omni model, the shape of its thinker.

    The settings of the text model may be nested or flat.

    Raises:
        ValueError: The model is not of a supported family.
    """
    config = config.get("thinker_config") or config
    family = config.get("model_type")
    if family not in _TOWERS:
        raise ValueError(f"model_type is {family!r}; known are {', '.join(_TOWERS)}")
    defaults = DEFAULTS[family]
    text = {**defaults["text"], **(config.get("text_config") or config)}
    tied = bool(config.get("tie_word_embeddings") or (family in _TIED_BY_TEXT and text.get("tie_word_embeddings")))
    stacks = {
        group: build({**defaults[group], **(config.get(f"{group}_config") or {})})
        for group, build in _TOWERS[family].items()
    }
    stacks["text"] = _decoder(text, normed_heads=family.startswith("qwen3"), tied=tied)
    return ModelShape(stacks=stacks, vocabulary=text["vocab_size"], tied=tied)


def _decoder(text: Mapping[str, Any], *, normed_heads: bool, tied: bool) -> Stack:
    """Qwen2's and Qwen3's layer; the latter has norms of query and key heads in the place of biases."""
    width, inner, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    head = text.get("head_dim") or width // heads
    queries, keys = heads * head, (text.get("num_key_value_heads") or heads) * head
    bias = bool(text.get("attention_bias")) if normed_heads else True
    names = (("q_proj", width, queries), ("k_proj", width, keys), ("v_proj", width, keys))
    attention = [
        Linear(name=f"self_attn.{name}", kind="attention", reads="first", inputs=inputs, outputs=outputs, bias=bias)
        for name, inputs, outputs in names
    ]
    last = Linear(
        name="self_attn.o_proj",
        kind="attention",
        reads="attention",
        inputs=queries,
        outputs=width,
        bias=normed_heads and bias,
    )
    embeddings = (1 if tied else 2) * text["vocab_size"] * width
    return Stack(
        path="model.layers",
        depth=text["num_hidden_layers"],
        width=width,
        inner=inner,
        heads=heads,
        queries=queries,
        keys=keys,
        linears=(*attention, last, *_gated(width, inner, bias=False)),
        norm_parameters=2 * width + (2 * head if normed_heads else 0),
        rms_norms=True,
        inner_copies=3,
        rest=embeddings + width,
        normed_heads=normed_heads,
    )


def _vision_2_5(vision: Mapping[str, Any], *, split: bool) -> Stack:
    """The tower of Qwen2.5-VL, and of Qwen2.5-Omni, which keeps queries, keys and values in layers of their own."""
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    merger = _merger("merger.mlp.0", "merger.mlp.2", width * _merged(vision), vision["out_hidden_size"])
    return _tower(
        vision,
        width=width,
        inner=inner,
        linears=(*_attention(width, split), *_gated(width, inner, bias=True)),
        rms_norms=True,
        inner_copies=3,
        rest=_patch_values(vision) * width + width + sum(linear.parameters for linear in merger),
        projector=merger,
        projector_norms=width,
    )


def _vision_2(vision: Mapping[str, Any]) -> Stack:
    """The tower of Qwen2-VL; `hidden_size` is the decoder's width there."""
    width = vision["embed_dim"]
    inner = int(width * vision["mlp_ratio"])
    merger = _merger("merger.mlp.0", "merger.mlp.2", width * _merged(vision), vision["hidden_size"])
    return _tower(
        vision,
        width=width,
        inner=inner,
        linears=(*_attention(width, split=False), *_plain("mlp.fc1", "mlp.fc2", width, inner)),
        rms_norms=False,
        inner_copies=2,
        rest=_patch_values(vision) * width + 2 * width + sum(linear.parameters for linear in merger),
        projector=merger,
        projector_norms=2 * width,
    )


def _vision_3(vision: Mapping[str, Any]) -> Stack:
    """The tower of Qwen3-VL: learned positions, and a further merger for each inner layer that feeds the decoder."""
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    merged = width * _merged(vision)
    deep = len(vision["deepstack_visual_indexes"])
    names = ("merger", *(f"deepstack_merger_list.{index}" for index in range(deep)))
    mergers = tuple(
        linear
        for name in names
        for linear in _merger(f"{name}.linear_fc1", f"{name}.linear_fc2", merged, vision["out_hidden_size"])
    )
    patches = (_patch_values(vision) + 1 + vision["num_position_embeddings"]) * width
    return _tower(
        vision,
        width=width,
        inner=inner,
        linears=(*_attention(width, split=False), *_plain("mlp.linear_fc1", "mlp.linear_fc2", width, inner)),
        rms_norms=False,
        inner_copies=1,
        rest=patches + 2 * width + 2 * merged * deep + sum(linear.parameters for linear in mergers),
        projector=mergers,
        projector_norms=2 * width + 2 * merged * deep,
    )


def _audio(audio: Mapping[str, Any]) -> Stack:
    """The sound tower of Qwen2.5-Omni: Whisper's, without a bias of keys."""
    width, inner, bins = audio["d_model"], audio["encoder_ffn_dim"], audio["num_mel_bins"]
    attention = tuple(
        Linear(name=f"self_attn.{name}", kind="attention", reads=reads, inputs=width, outputs=width, bias=bias)
        for name, reads, bias in (
            ("q_proj", "first", True),
            ("k_proj", "first", False),
            ("v_proj", "first", True),
            ("out_proj", "attention", True),
        )
    )
    projector = Linear(name="audio_tower.proj", kind="projector", reads="", inputs=width, outputs=audio["output_dim"])
    convolutions = (3 * bins + 1) * width + (3 * width + 1) * width
    return Stack(
        path="audio_tower.layers",
        depth=audio["encoder_layers"],
        width=width,
        inner=inner,
        heads=audio["encoder_attention_heads"],
        queries=width,
        keys=width,
        linears=(*attention, *_plain("fc1", "fc2", width, inner)),
        norm_parameters=4 * width,
        rms_norms=False,
        inner_copies=1,
        rest=convolutions + 2 * audio["output_dim"] + 2 * width + projector.parameters,
        projector=(projector,),
        rows_per_token=2,
        input_values=2 * bins,
    )


_TOWERS: dict[str, dict[str, Callable[[Mapping[str, Any]], Stack]]] = {
    "qwen2": {},
    "qwen3": {},
    "qwen2_vl": {"vision": _vision_2},
    "qwen2_5_vl": {"vision": partial(_vision_2_5, split=False)},
    "qwen3_vl": {"vision": _vision_3},
    "qwen2_5_omni_thinker": {"vision": partial(_vision_2_5, split=True), "audio": _audio},
}
_TIED_BY_TEXT = ("qwen2_vl", "qwen2_5_vl")
"""Families whose text settings may hold `tie_word_embeddings`, where transformers wrote it before version 5."""


def _tower(vision: Mapping[str, Any], *, width: int, rms_norms: bool, **sizes: Any) -> Stack:
    return Stack(
        path="visual.blocks",
        depth=vision["depth"],
        width=width,
        heads=vision["num_heads"],
        queries=width,
        keys=width,
        norm_parameters=(2 if rms_norms else 4) * width,
        rms_norms=rms_norms,
        rows_per_token=_merged(vision),
        input_values=_patch_values(vision),
        **sizes,
    )


def _attention(width: int, split: bool) -> tuple[Linear, ...]:
    names = [(name, width) for name in ("q", "k", "v")] if split else [("qkv", 3 * width)]
    return tuple(
        Linear(
            name=f"attn.{name}",
            kind="attention",
            reads="attention" if name == "proj" else "first",
            inputs=width,
            outputs=outputs,
        )
        for name, outputs in [*names, ("proj", width)]
    )


def _gated(width: int, inner: int, *, bias: bool) -> tuple[Linear, ...]:
    up, down = ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"
    first = [Linear(name=name, kind="mlp", reads="second", inputs=width, outputs=inner, bias=bias) for name in up]
    return (*first, Linear(name=down, kind="mlp", reads="inner", inputs=inner, outputs=width, bias=bias))


def _plain(first: str, second: str, width: int, inner: int) -> tuple[Linear, ...]:
    return (
        Linear(name=first, kind="mlp", reads="second", inputs=width, outputs=inner),
        Linear(name=second, kind="mlp", reads="inner", inputs=inner, outputs=width),
    )


def _merger(first: str, second: str, width: int, out: int) -> tuple[Linear, Linear]:
    return (
        Linear(name=f"visual.{first}", kind="projector", reads="", inputs=width, outputs=width),
        Linear(name=f"visual.{second}", kind="projector", reads="", inputs=width, outputs=out),
    )


def _merged(vision: Mapping[str, Any]) -> int:
    return vision["spatial_merge_size"] ** 2


def _patch_values(vision: Mapping[str, Any]) -> int:
    return vision["in_channels"] * vision["temporal_patch_size"] * vision["patch_size"] ** 2


def _chosen(name: str, kind: str, targets: tuple[str, ...]) -> bool:
    plain = re.sub(r"\.\d+(?=\.|$)", "", name)
    return any(
        target in (ALL, kind) or f".{name}".endswith(f".{target}") or f".{plain}".endswith(f".{target}")
        for target in targets
    )
