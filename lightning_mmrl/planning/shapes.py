"""Reads the sizes of a model from its `config.json` without torch: parameters by group, blocks and vocabulary.

A model is up to three stacks of equal blocks: the decoder (text) and its media towers (vision, audio), which are also
the groups of `freeze`. The formulas follow the modules of transformers; tests compare every count with the real modules
of every released model on the meta device. A dense text model of a family that is not listed here is assumed to have
Llama's layers, because most such models have the same keys.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.planning.stacks import Linear, Stack, gated
from lightning_mmrl.planning.towers import DEFAULTS, TIED_BY_TEXT, TOWERS

_SIZES = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
"""Keys that every text model has."""
NOT_DENSE = re.compile(r".*(expert|moe|mamba|ssm|linear_|lora_rank|_config$)")
"""Keys of a config.json that no plain text model has: for experts, for other kinds of attention, and for parts with
settings of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """The stacks of a model by parameter group, the decoder under `text`, and its vocabulary.

    `assumed` names the family of a model that is taken to have Llama's layers; None for families that are listed.
    `positions` is the longest sequence that it knows; None if that is not said.
    """

    stacks: Mapping[str, Stack]
    vocabulary: int
    tied: bool
    assumed: str | None = None
    positions: int | None = None

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
        """Parameters of FSDP2's root unit: embedding, last norm and head."""
        return self.text.rest

    @property
    def largest_unit(self) -> int:
        """Parameters of FSDP2's largest unit except the root: a block, or a tower without its blocks."""
        towers = [stack.rest for group, stack in self.stacks.items() if group != "text"]
        return max([*(stack.block for stack in self.stacks.values()), *towers])


def read_shape(checkpoint: str, sizes: Mapping[str, Any] | None = None) -> ModelShape | None:
    """Returns the shape of the model in a local folder, or of a hub id with given sizes; None if both are missing.

    Args:
        checkpoint: The folder or hub id.
        sizes: `model.known_sizes`; they apply only to the checkpoint that they name.

    Raises:
        ValueError: The model is of no family whose sizes are known, or its config.json does not have the family's form.
    """
    file = Path(checkpoint) / "config.json"
    try:
        if file.is_file():
            return shape_of(json.loads(file.read_text(encoding="utf-8")))
        return shape_of(sizes) if sizes and sizes.get("checkpoint") == checkpoint else None
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"its config.json is not as its family's are ({error})") from error


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """Returns the shape that a `config.json` describes; for an omni model, the shape of its thinker.

    The settings of the text model may be nested or flat.

    Raises:
        ValueError: The model is neither of a listed family nor a dense text model.
    """
    config = config.get("thinker_config") or config
    family = config.get("model_type")
    is_listed = family in TOWERS
    if not is_listed:
        _require_dense(config, family)
    defaults = DEFAULTS.get(str(family), {"text": {}})
    text = {**defaults["text"], **(config.get("text_config") or config)}
    tied = bool(config.get("tie_word_embeddings") or (family in TIED_BY_TEXT and text.get("tie_word_embeddings")))
    stacks = {
        group: build({**defaults[group], **(config.get(f"{group}_config") or {})})
        for group, build in TOWERS.get(str(family), {}).items()
    }
    layers = str(text.get("model_type", family)).partition("_")[0]
    stacks["text"] = _decoder(text, layers=layers, tied=tied)
    return ModelShape(
        stacks=stacks,
        vocabulary=text["vocab_size"],
        tied=tied,
        assumed=None if is_listed else str(family),
        positions=text.get("max_position_embeddings"),
    )


def _require_dense(config: Mapping[str, Any], family: object) -> None:
    """Refuses a model that has more than a decoder of Llama's form.

    Raises:
        ValueError: The configuration lacks a key of a text model, or has one of another kind of model.
    """
    other = [key for key, value in config.items() if value and NOT_DENSE.match(key)]
    missing = [key for key in _SIZES if key not in config]
    if other or missing:
        reason = f"it has {other[0]}" if other else f"it has no {missing[0]}"
        raise ValueError(f"model_type is {family!r}, and {reason}; known are dense text models and {', '.join(TOWERS)}")


def _decoder(text: Mapping[str, Any], *, layers: str, tied: bool) -> Stack:
    """Returns Llama's layers; Qwen2 adds biases of queries, keys and values, Qwen3 norms of query and key heads."""
    width, inner, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    head = text.get("head_dim") or width // heads
    queries, keys = heads * head, (text.get("num_key_value_heads") or heads) * head
    normed_heads, bias = layers.startswith("qwen3"), bool(text.get("attention_bias"))
    names = (
        ("q_proj", width, queries, "first"),
        ("k_proj", width, keys, "first"),
        ("v_proj", width, keys, "first"),
        ("o_proj", queries, width, "attention"),
    )
    attention = [
        Linear(
            name=f"self_attn.{name}",
            kind="attention",
            reads=reads,
            inputs=inputs,
            outputs=outputs,
            bias=reads == "first" if layers == "qwen2" else bias,
        )
        for name, inputs, outputs, reads in names
    ]
    embeddings = (1 if tied else 2) * text["vocab_size"] * width
    return Stack(
        path="model.layers",
        depth=text["num_hidden_layers"],
        width=width,
        inner=inner,
        heads=heads,
        queries=queries,
        keys=keys,
        linears=(*attention, *gated(width, inner, bias=bool(text.get("mlp_bias")))),
        norm_parameters=2 * width + (2 * head if normed_heads else 0),
        rms_norms=True,
        inner_copies=3,
        rest=embeddings + width,
        normed_heads=normed_heads,
    )
