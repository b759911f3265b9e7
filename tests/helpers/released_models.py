"""The released architectures at their published sizes, without weights: what their config.json files say."""

import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import yaml
from transformers import (
    LlamaConfig,
    Qwen2_5_VLConfig,
    Qwen2_5OmniThinkerConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3Config,
    Qwen3VLConfig,
)

from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.models.families.llama import Llama
from lightning_mmrl.models.families.qwen2 import Qwen2
from lightning_mmrl.models.families.qwen2_5_omni import OmniThinker
from lightning_mmrl.models.families.qwen2_5_vl import Qwen25VL
from lightning_mmrl.models.families.qwen2_vl import Qwen2VL
from lightning_mmrl.models.families.qwen3 import Qwen3
from lightning_mmrl.models.families.qwen3_vl import Qwen3VL
from lightning_mmrl.models.parallelize import ROOT, unit_names
from lightning_mmrl.models.policy import Policy


def text_sizes(hidden, layers, heads, kv_heads, intermediate, vocab):
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
    }


# Sizes in the released config.json files.
TEXT = {
    "0.5B": text_sizes(896, 24, 14, 2, 4864, 151936),
    "1.5B": text_sizes(1536, 28, 12, 2, 8960, 151936),
    "3B": text_sizes(2048, 36, 16, 2, 11008, 151936),
    "7B": text_sizes(3584, 28, 28, 4, 18944, 152064),
}
TEXT_3 = {
    "1.7B": {**text_sizes(2048, 28, 16, 8, 6144, 151936), "head_dim": 128},
    "4B": {**text_sizes(2560, 36, 32, 8, 9728, 151936), "head_dim": 128},
    "8B": {**text_sizes(4096, 36, 32, 8, 12288, 151936), "head_dim": 128},
}
TOWER_3 = {
    "small": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]},
    "large": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]},
}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0}}


def vision_2_5(out_hidden_size):
    sizes = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    return {**sizes, "out_hidden_size": out_hidden_size, "fullatt_block_indexes": [7, 15, 23, 31]}


def omni_config(text):
    return Qwen2_5OmniThinkerConfig(
        text_config={**text, **MROPE, "tie_word_embeddings": False},
        vision_config=vision_2_5(text["hidden_size"]),
        audio_config={
            "d_model": 1280,
            "encoder_layers": 32,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "output_dim": text["hidden_size"],
        },
        tie_word_embeddings=False,
    )


def vl_2_5_config(text, tied):
    return Qwen2_5_VLConfig(
        text_config={**text, **MROPE},
        vision_config=vision_2_5(text["hidden_size"]),
        tie_word_embeddings=tied,
    )


def vl_2_config(text):
    vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "hidden_size": text["hidden_size"]}
    return Qwen2VLConfig(text_config={**text, **MROPE}, vision_config=vision, tie_word_embeddings=True)


def text_config(text, tied):
    return Qwen2Config(**text, tie_word_embeddings=tied)


def text_3_config(text, tied):
    return Qwen3Config(**text, tie_word_embeddings=tied)


LLAMA = {**text_sizes(2048, 16, 32, 8, 8192, 128256), "head_dim": 64}
LLAMA_ROPE = {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192, "rope_theta": 500000.0}


def llama_config(text, tied):
    rope = {**LLAMA_ROPE, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return LlamaConfig(**text, tie_word_embeddings=tied, max_position_embeddings=131072, rope_scaling=rope)


def vl_3_config(text, tower, tied):
    rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True, "rope_theta": 5000000.0}
    return Qwen3VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={**tower, "num_heads": 16, "out_hidden_size": text["hidden_size"]},
        tie_word_embeddings=tied,
    )


@dataclass(frozen=True, kw_only=True)
class Released:
    """A released model: its family, configuration, published number of parameters, and whether its head is tied."""

    family: Any
    config: Any
    num_parameters: int
    tied: bool


# Published: the totals of the hub's safetensors; of an omni checkpoint, those below `thinker.` (the whole also has the
# talker and the speech decoder).
RELEASED = {
    "qwen2_5_omni_3b": Released(
        family=OmniThinker, config=omni_config(TEXT["3B"]), num_parameters=4_703_464_448, tied=False
    ),
    "qwen2_5_omni_7b": Released(
        family=OmniThinker, config=omni_config(TEXT["7B"]), num_parameters=8_931_813_888, tied=False
    ),
    "qwen2_5_vl_3b": Released(
        family=Qwen25VL, config=vl_2_5_config(TEXT["3B"], True), num_parameters=3_754_622_976, tied=True
    ),
    "qwen2_5_vl_7b": Released(
        family=Qwen25VL, config=vl_2_5_config(TEXT["7B"], False), num_parameters=8_292_166_656, tied=False
    ),
    "qwen2_vl_2b": Released(family=Qwen2VL, config=vl_2_config(TEXT["1.5B"]), num_parameters=2_208_985_600, tied=True),
    "qwen2_5_0_5b": Released(
        family=Qwen2, config=text_config(TEXT["0.5B"], True), num_parameters=494_032_768, tied=True
    ),
    "qwen2_5_1_5b": Released(
        family=Qwen2, config=text_config(TEXT["1.5B"], True), num_parameters=1_543_714_304, tied=True
    ),
    "qwen2_5_3b": Released(family=Qwen2, config=text_config(TEXT["3B"], True), num_parameters=3_085_938_688, tied=True),
    "qwen2_5_7b": Released(
        family=Qwen2, config=text_config(TEXT["7B"], False), num_parameters=7_615_616_512, tied=False
    ),
    "llama3_2_1b": Released(family=Llama, config=llama_config(LLAMA, True), num_parameters=1_235_814_400, tied=True),
    "smollm2_135m": Released(
        family=Llama,
        config=LlamaConfig(**text_sizes(576, 30, 9, 3, 1536, 49152), tie_word_embeddings=True),
        num_parameters=134_515_008,
        tied=True,
    ),
    # The hub's total for Qwen3-1.7B counts its tied head a second time.
    "qwen3_1_7b": Released(
        family=Qwen3, config=text_3_config(TEXT_3["1.7B"], True), num_parameters=1_720_574_976, tied=True
    ),
    "qwen3_4b": Released(
        family=Qwen3, config=text_3_config(TEXT_3["4B"], True), num_parameters=4_022_468_096, tied=True
    ),
    "qwen3_8b": Released(
        family=Qwen3, config=text_3_config(TEXT_3["8B"], False), num_parameters=8_190_735_360, tied=False
    ),
    "qwen3_vl_2b": Released(
        family=Qwen3VL,
        config=vl_3_config(TEXT_3["1.7B"], TOWER_3["small"], True),
        num_parameters=2_127_532_032,
        tied=True,
    ),
    "qwen3_vl_4b": Released(
        family=Qwen3VL,
        config=vl_3_config(TEXT_3["4B"], TOWER_3["small"], True),
        num_parameters=4_437_815_808,
        tied=True,
    ),
    "qwen3_vl_8b": Released(
        family=Qwen3VL,
        config=vl_3_config(TEXT_3["8B"], TOWER_3["large"], False),
        num_parameters=8_767_123_696,
        tied=False,
    ),
}


SIZES = {
    name: yaml.safe_load((configs_dir() / "model" / f"{name}.yaml").read_text())["known_sizes"] for name in RELEASED
}
"""What each preset says of its checkpoint's config.json."""


def built(name: str) -> Any:
    """The backbone of a released model, without weights; one of its own for every caller."""
    model = RELEASED[name]
    # A model keeps its configuration and writes into it, so that the next one could not be built from it.
    with torch.device("meta"):
        return model.family(model.family.declaration.model(copy.deepcopy(model.config)))


@lru_cache
def on_meta(name: str) -> Any:
    """The same one for all callers, who leave it as it was."""
    return built(name)


def policy_of(backbone: Any) -> Policy:
    """A policy around a backbone without weights."""
    with torch.device("meta"):
        return Policy(backbone, banned_token_ids=[])


def policy(name: str) -> Policy:
    """A released model as a policy of its own."""
    return policy_of(built(name))


def unit_parameters(policy: Policy) -> dict[str, list[str]]:
    """For each unit, the parameters that it gathers. Each belongs to the innermost unit around it."""
    plan: dict[str, list[str]] = {name: [] for name in unit_names(policy)}
    owners: dict[torch.nn.Parameter, str] = {}
    for path, parameter in policy.named_parameters(remove_duplicate=False):
        unit = max((name for name in plan if name == ROOT or path.startswith(f"{name}.")), key=len)
        assert owners.setdefault(parameter, unit) == unit, f"{path} belongs to {unit!r} and to {owners[parameter]!r}"
        plan[unit].append(path)
    return plan
