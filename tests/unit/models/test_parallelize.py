"""The wrapping plan of the released sizes, without their weights: every parameter in exactly one unit."""

from collections import Counter

import pytest
from transformers import Qwen2_5_VLConfig, Qwen2_5OmniThinkerConfig

from lightning_mmrl.models.families.qwen2_5_omni import OmniThinker
from lightning_mmrl.models.families.qwen2_5_vl import Qwen25VL
from lightning_mmrl.models.parallelize import ROOT, unit_names, unit_parameters
from lightning_mmrl.models.policy import Policy

MROPE = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1000000.0}


def text(hidden, layers, heads, kv_heads, intermediate, vocab):
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocab,
        "rope_parameters": dict(MROPE),
    }


# What the released config.json files say.
TEXT = {"3B": text(2048, 36, 16, 2, 11008, 151936), "7B": text(3584, 28, 28, 4, 18944, 152064)}


def vision(out_hidden_size):
    sizes = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    return {**sizes, "out_hidden_size": out_hidden_size, "fullatt_block_indexes": [7, 15, 23, 31]}


def omni(size):
    hidden = TEXT[size]["hidden_size"]
    audio = {"d_model": 1280, "encoder_layers": 32, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
    config = Qwen2_5OmniThinkerConfig(
        text_config={**TEXT[size], "tie_word_embeddings": False},
        vision_config=vision(hidden),
        audio_config={**audio, "output_dim": hidden},
        tie_word_embeddings=False,
    )
    return Policy(OmniThinker.on_meta(config), banned_token_ids=[])


def vision_language(size):
    config = Qwen2_5_VLConfig(
        text_config=TEXT[size],
        vision_config=vision(TEXT[size]["hidden_size"]),
        tie_word_embeddings=size == "3B",
    )
    return Policy(Qwen25VL.on_meta(config), banned_token_ids=[])


# Decoder layers, then blocks of each tower, the towers and the root.
MODELS = {
    ("omni", "3B"): 36 + 32 + 32 + 2 + 1,
    ("omni", "7B"): 28 + 32 + 32 + 2 + 1,
    ("vl", "3B"): 36 + 32 + 1 + 1,
    ("vl", "7B"): 28 + 32 + 1 + 1,
}


@pytest.mark.parametrize(("family", "size"), list(MODELS))
def test_every_parameter_of_the_released_sizes_is_in_exactly_one_unit(family, size):
    policy = omni(size) if family == "omni" else vision_language(size)
    plan = unit_parameters(policy)
    assert len(plan) == MODELS[family, size]
    owners = Counter(path for paths in plan.values() for path in paths)
    every = {name for name, _ in policy.named_parameters(remove_duplicate=False)}
    assert set(owners) == every
    assert set(owners.values()) == {1}
    assert all(plan.values()), "a unit without parameters would gather nothing"


@pytest.mark.parametrize(("family", "size"), list(MODELS))
def test_no_unit_holds_a_large_part_of_the_model_but_the_embeddings(family, size):
    """What a rank holds beside its shards is the root and two units: the one in use, and the next."""
    policy = omni(size) if family == "omni" else vision_language(size)
    sizes = {name: parameter.numel() for name, parameter in policy.named_parameters()}
    plan = unit_parameters(policy)
    total = sum(sizes.values())
    largest = max(sum(sizes[path] for path in paths if path in sizes) for name, paths in plan.items() if name != ROOT)
    assert largest < 0.05 * total
    root = {path.rpartition("model.")[2] for path in plan[ROOT]}
    assert root == {"embed_tokens.weight", "norm.weight", "lm_head.weight"}


def test_inner_units_come_before_those_that_hold_them():
    """`fully_shard` gives a module what its parts have not taken."""
    names = unit_names(omni("3B"))
    assert names[-1] == ROOT
    for place, name in enumerate(names):
        assert not any(later.startswith(f"{name}.") for later in names[place + 1 :] if name)


def test_tied_embeddings_are_one_parameter_of_the_root():
    policy = vision_language("3B")
    embedding, head = "model.model.language_model.embed_tokens.weight", "model.lm_head.weight"
    assert policy.get_parameter(embedding) is policy.get_parameter(head)
    assert {embedding, head} <= set(unit_parameters(policy)[ROOT])


def test_a_parameter_that_two_units_share_is_refused():
    policy = vision_language("3B")
    layers = policy.model.model.language_model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        unit_parameters(policy)
