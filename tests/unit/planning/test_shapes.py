"""Sizes read off config.json, against the modules of every released model and of a tiny one of each family."""

import json
from dataclasses import replace

import families
import pytest
import torch
from released_models import RELEASED as MODELS
from released_models import SIZES, on_meta, unit_parameters
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5OmniThinkerConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3Config,
    Qwen3VLConfig,
)

from lightning_mmrl.config.compose import compose
from lightning_mmrl.models.parallelize import ROOT
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.planning.shapes import read_shape, shape_of
from lightning_mmrl.planning.towers import DEFAULTS
from lightning_mmrl.settings.model import AdapterSettings

each_released = pytest.mark.parametrize("name", sorted(MODELS))
each_family = pytest.mark.parametrize("name", sorted(families.FAMILIES))

CONFIGS = {
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "qwen2_vl": Qwen2VLConfig,
    "qwen2_5_vl": Qwen2_5_VLConfig,
    "qwen3_vl": Qwen3VLConfig,
    "qwen2_5_omni_thinker": Qwen2_5OmniThinkerConfig,
}


def policy_of(backbone):
    with torch.device("meta"):
        return Policy(backbone, banned_token_ids=[])


def sizes_of(policy):
    """The sizes that a shape tells, counted on the modules themselves."""
    prefixes = policy._backbone.parameter_groups
    sizes = {name: parameter.numel() for name, parameter in policy.model.named_parameters()}
    groups = {
        group: sum(size for name, size in sizes.items() if name.startswith(tuple(starts)))
        for group, starts in prefixes.items()
    }
    projectors = {
        tower: sum(size for name, size in sizes.items() if name.startswith(tuple(starts)))
        for tower, starts in policy._backbone.projectors.items()
    }
    own = {name: parameter.numel() for name, parameter in policy.named_parameters()}
    units = {unit: sum(own.get(path, 0) for path in paths) for unit, paths in unit_parameters(policy).items()}
    root = units.pop(ROOT)
    return {"groups": groups, "projectors": projectors, "root": root, "largest_unit": max(units.values())}


def said_by(shape):
    groups = {group: stack.parameters for group, stack in shape.stacks.items()}
    projectors = {group: stack.projector_parameters for group, stack in shape.stacks.items() if group != "text"}
    return {"groups": groups, "projectors": projectors, "root": shape.root, "largest_unit": shape.largest_unit}


def check_widths(shape, text):
    """Sizes that no count of parameters shows."""
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    assert shape.vocabulary == text.vocab_size
    assert shape.text.heads == text.num_attention_heads
    assert shape.text.queries == text.num_attention_heads * head
    assert shape.text.keys == text.num_key_value_heads * head


@each_released
def test_a_released_model_has_the_sizes_of_its_modules(name):
    model = compose([f"model={name}"]).model
    shape = read_shape(model.checkpoint, model.known_sizes)
    policy = policy_of(on_meta(name))
    assert said_by(shape) == sizes_of(policy)
    assert shape.parameters == MODELS[name].num_parameters
    assert shape.tied == MODELS[name].tied
    check_widths(shape, policy.text_config)


@each_released
def test_the_sizes_of_a_preset_are_of_its_checkpoint_alone(name):
    assert read_shape(SIZES[name]["checkpoint"], SIZES[name]) == shape_of(SIZES[name])
    assert read_shape("somebody/some-model", SIZES[name]) is None


@each_family
@pytest.mark.parametrize("hidden", [64, 128])
def test_a_local_folder_has_the_sizes_of_its_modules(name, hidden, tmp_path):
    family = families.FAMILIES[name]
    sizes = {**family.sizes, "hidden_size": hidden}
    folder = family.build(tmp_path / "model", text=families.omni.TEXT, **sizes)
    shape = read_shape(str(folder))
    _, policy = families.load(name, folder, dtype=torch.float32)
    assert said_by(shape) == sizes_of(policy)
    check_widths(shape, policy.text_config)
    towers = {group: policy.model.get_submodule(path) for group, path in policy._backbone.towers_at.items()}
    for group, tower in towers.items():
        blocks = tower.layers if group == "audio" else tower.blocks
        assert (shape.stacks[group].depth, shape.stacks[group].heads) == (len(blocks), 2)


ADAPTERS = (
    {},
    {"targets": ("attention",), "r": 3},
    {"targets": ("mlp", "q_proj")},
    {"targets": ("layers.1.mlp.up_proj", "down_proj")},
    {"groups": ("vision",)},
    {"groups": ("vision", "text"), "targets": ("projector", "attention")},
    {"groups": ("audio",), "targets": ("layers.0.fc1", "proj", "self_attn.k_proj")},
)
ADAPTED = [
    (name, AdapterSettings(**settings))
    for name, family in sorted(families.FAMILIES.items())
    for settings in ADAPTERS
    if set(settings.get("groups", ())) <= {"text", *family.backbone.towers_at}
]


@pytest.mark.parametrize(("name", "settings"), ADAPTED, ids=str)
def test_adapters_have_as_many_parameters_as_peft_makes(name, settings, tmp_path):
    folder = families.build(name, tmp_path / "model")
    stacks = read_shape(str(folder)).stacks
    expected = sum(stacks[group].adapter_parameters(settings.r, settings.wanted) for group in settings.groups)
    _, policy = families.load(name, folder, dtype=torch.float32)
    assert policy.adapt(settings) == expected > 0


@pytest.mark.parametrize("family", sorted(DEFAULTS))
def test_what_a_config_leaves_out_is_what_transformers_takes(family):
    config = CONFIGS[family]()
    assert config.model_type == family
    for part, values in DEFAULTS[family].items():
        section = getattr(config, f"{part}_config", config)
        assert {key: getattr(section, key) for key in values} == dict(values)


def test_a_config_may_be_flat_nested_or_of_a_whole_omni_checkpoint(tmp_path):
    nested = SIZES["qwen2_5_vl_3b"]
    flat = {**nested, **nested["text_config"]}
    del flat["text_config"]
    assert shape_of(flat) == shape_of(nested)
    tied_by_text = {**nested, "tie_word_embeddings": False, "text_config": {**nested["text_config"]}}
    assert shape_of(tied_by_text).parameters > shape_of(nested).parameters
    tied_by_text["text_config"]["tie_word_embeddings"] = True
    assert shape_of(tied_by_text) == shape_of(nested)
    thinker = SIZES["qwen2_5_omni_3b"]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_omni", "thinker_config": thinker}))
    assert read_shape(str(tmp_path)) == shape_of(thinker)


def test_another_number_of_key_heads_is_another_size():
    """A negative control: the comparisons above are of exact counts."""
    config = SIZES["qwen2_5_3b"]
    other = shape_of({**config, "num_key_value_heads": 4})
    assert other.parameters - shape_of(config).parameters == 36 * 2 * (2048 + 1) * 2 * 128


def test_what_is_not_known_is_said():
    assert read_shape("somebody/some-model") is None
    with pytest.raises(
        ValueError, match="model_type is 'mine', and it has no hidden_size; known are dense text models"
    ):
        shape_of({"model_type": "mine"})


OTHERS = {
    "num_local_experts": 8,
    "moe_intermediate_size": 512,
    "kv_lora_rank": 64,
    "linear_num_key_heads": 4,
    "vision_config": {"depth": 2},
    "quantization_config": {"bits": 4},
}


def test_a_text_model_of_another_family_is_taken_for_a_llama():
    config = {key: value for key, value in SIZES["qwen2_5_3b"].items() if key != "checkpoint"}
    found = shape_of({**config, "model_type": "mine"})
    assert found.assumed == "mine"
    assert replace(found, assumed=None) == shape_of({**config, "model_type": "llama"})
    assert shape_of(config).assumed is None


@pytest.mark.parametrize("key", OTHERS)
def test_no_other_kind_of_model_is_taken_for_a_llama(key):
    config = {**SIZES["qwen2_5_3b"], "model_type": "mine"}
    with pytest.raises(ValueError, match=f"model_type is 'mine', and it has {key}"):
        shape_of({**config, key: OTHERS[key]})
    assert shape_of({**config, key: None}) == shape_of(config)


@pytest.mark.parametrize("text", ['{"model_type": "qwen2", "hidden_size": 64}', "[]", "{", '{"thinker_config": [1]}'])
def test_a_config_without_sizes_is_refused_in_one_sentence(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError):
        read_shape(str(tmp_path))
