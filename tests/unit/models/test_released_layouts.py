"""Folders in the layout of the hub: other names, parts that are not ours, several files, no ends; they load exactly."""

import json

import families
import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_mmrl.errors import StageError

NUM_FILES = 3
BESIDE_THE_THINKER = ("talker.model.layers.0.mlp.up_proj.weight", "token2wav.code2wav_dit_model.proj.weight")


def released_name(family, name):
    """The name of a weight in the family's released checkpoints, written down from their indices."""
    if family == "qwen2_5_omni":
        return f"thinker.{name}"
    if family in ("qwen2_vl", "qwen2_5_vl"):
        return name.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
    return name  # qwen3_vl: model.visual. and model.language_model., as in memory; text families: model. and lm_head.


def release(family, folder):
    """Rewrites a folder of this family's tiny model as its publisher lays it out; returns the weights by name."""
    _, policy = families.load(family, folder, dtype=torch.float32)
    tied = policy.model.config.tie_word_embeddings
    own = {k: v for k, v in policy.model.state_dict().items() if not (tied and k == "lm_head.weight")}
    weights = {released_name(family, name): tensor.contiguous() for name, tensor in own.items()}
    config = json.loads((folder / "config.json").read_text())
    if family == "qwen2_5_omni":
        weights |= {name: torch.ones(4, 4) for name in BESIDE_THE_THINKER}
        config = {
            "architectures": ["Qwen2_5OmniModel"], "model_type": "qwen2_5_omni", "enable_audio_output": True,
            "thinker_config": {**config, "architectures": ["Qwen2OmniNaViTThinkerForConditionalGeneration"]},
        }  # fmt: skip
        (folder / "spk_dict.pt").write_bytes(b"voices of the talker, which nobody reads here")
        (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = [names[start::NUM_FILES] for start in range(NUM_FILES)]
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{NUM_FILES:05}.safetensors"
        save_file({name: weights[name] for name in shard}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return dict(policy.model.state_dict())


@pytest.mark.parametrize("family", families.FAMILIES)
def test_a_released_layout_loads_every_weight(family, tmp_path):
    folder = families.build(family, tmp_path / "base")
    before = release(family, folder)
    encoder, policy = families.load(family, folder, dtype=torch.float32)
    assert encoder.eos_token_ids
    loaded = policy.model.state_dict()
    assert loaded.keys() == before.keys()
    assert all(torch.equal(loaded[name], before[name]) for name in before)


@pytest.mark.parametrize("family", ["qwen2_5_omni", "qwen2_5_vl", "qwen2"])
def test_a_weight_that_is_missing_from_the_files_is_not_drawn_at_random(family, tmp_path):
    """Transformers would fill it in with a warning; training would start from noise."""
    folder = families.build(family, tmp_path / "base")
    release(family, folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    name = next(
        name for name in index["weight_map"] if name.endswith("layers.0.mlp.up_proj.weight") and "talker" not in name
    )
    file = folder / index["weight_map"].pop(name)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({key: tensor for key, tensor in load_file(file).items() if key != name}, file, metadata={"format": "pt"})
    with pytest.raises(
        StageError, match=r"lacks 1 weights of its model, such as .*layers\.0\.mlp\.up_proj\.weight; restore its files$"
    ):
        families.load(family, folder, dtype=torch.float32)
