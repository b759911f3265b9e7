"""Model folders of strangers: nothing in them runs, is unpickled or leads elsewhere, and each ends in one sentence."""

import json
import os
import shutil

import families
import pytest
import torch

from lightning_mmrl.errors import StageError
from lightning_mmrl.models.folder import check_settings

FAMILY = "qwen2_5_omni"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return families.build(FAMILY, tmp_path_factory.mktemp("models") / "whole")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def load(folder):
    """What every command does with a checkpoint: the encoder, then the weights."""
    family = families.FAMILIES[FAMILY]
    encoder = family.encoder.from_checkpoint(folder)
    return encoder, family.backbone.from_checkpoint(folder)


class Touch:
    """Pickles as a command that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def evil_code(folder, name="evil.py"):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(
        f"open({str(folder.parent / 'marker')!r}, 'w').close()\n"
        "from transformers import Qwen2_5OmniThinkerConfig as Evil, Qwen2_5OmniProcessor as EvilProcessor\n"
    )


def edit(folder, name, **changes):
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **changes}))


def custom_config(folder):
    evil_code(folder)
    edit(folder, "config.json", auto_map={"AutoConfig": "evil.Evil"})


def custom_config_of_an_unknown_type(folder):
    evil_code(folder)
    edit(folder, "config.json", auto_map={"AutoConfig": "evil.Evil"}, model_type="evil")


def custom_tokenizer(folder):
    evil_code(folder)
    edit(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.EvilProcessor", None]})


def custom_processor(folder):
    evil_code(folder)
    edit(folder, "processor_config.json", auto_map={"AutoProcessor": "evil.EvilProcessor"}, processor_class="Evil")


def custom_code_of_a_part(folder):
    evil_code(folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["image_processor"] = {**settings["image_processor"], "auto_map": {"AutoImageProcessor": "evil.Evil"}}
    (folder / "processor_config.json").write_text(json.dumps(settings))


def kernel_of_the_hub(folder):
    edit(folder, "config.json", attn_implementation="somebody/kernel")


def kernel_of_a_part(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["_attn_implementation_internal"] = "somebody/kernel:attend"
    (folder / "config.json").write_text(json.dumps(config))


def setting(key, value, part=None):
    """A key of the model's settings, or of a part of them."""

    def change(folder):
        if part is None:
            edit(folder, "config.json", **{key: value})
        else:
            config = json.loads((folder / "config.json").read_text())
            edit(folder, "config.json", **{part: {**config[part], key: value}})

    return change


KERNELS = {
    "fp8": setting("quantization_config", {"quant_method": "fp8"}),
    "mxfp4": setting("quantization_config", {"quant_method": "mxfp4"}),
    "a method that there is not": setting("quantization_config", {"quant_method": "evil"}),
    "fp8 of a part": setting("quantization_config", {"quant_method": "fp8"}, "text_config"),
    "the older name": setting("compression_config", {"quant_method": "compressed-tensors"}),
    "kernels of the hub": setting("use_kernels", True),
    "kernels of a part": setting("use_kernels", 1, "text_config"),
    "a mapping of kernels": setting("kernel_config", {"kernel_mapping": {"RMSNorm": "somebody/kernel:RMSNorm"}}),
}


def another_model(folder):
    sound = {"audio_tokenizer_class": "DacModel", "audio_tokenizer_name_or_path": "../secret"}
    edit(folder, "processor_config.json", audio_tokenizer=sound)


def other_weights(folder):
    edit(folder, "config.json", transformers_weights="adapter_model.bin")


def a_class_of_another_kind(folder):
    edit(folder, "tokenizer_config.json", tokenizer_class="AutoModel")


def a_class_by_path(folder):
    edit(folder, "processor_config.json", processor_class="os.system")


def a_tokenizer_elsewhere(folder):
    (folder.parent / "secret.json").write_text("{}")
    edit(folder, "tokenizer_config.json", fast_tokenizer_files=["../secret.json"])


def a_vocabulary_elsewhere(folder):
    edit(folder, "tokenizer_config.json", vocab_file="/etc/passwd")


def an_adapter(folder):
    content = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    torch.save(Touch(folder.parent / "marker"), folder / "adapter_model.bin")


def endless_layers(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 10**9
    (folder / "config.json").write_text(json.dumps(config))


def a_pickle_alone(folder):
    (folder / "model.safetensors").unlink()
    torch.save(Touch(folder.parent / "marker"), folder / "pytorch_model.bin")


def shards_of_pickles(folder):
    a_pickle_alone(folder)
    (folder / "pytorch_model.bin").rename(folder / "pytorch_model-00001.bin")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "pytorch_model-00001.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def index_of(name):
    def change(folder):
        weights = folder / "model.safetensors"
        weights.rename(folder.parent / "secret.safetensors")
        torch.save(Touch(folder.parent / "marker"), folder / "pytorch_model.bin")
        index = {"metadata": {}, "weight_map": {"lm_head.weight": name.format(folder.parent)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def index_without_map(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text("[]")


def weights_that_are_none(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)


def nested_settings(folder):
    (folder / "config.json").write_text('{"a":' * 100_000)


def settings_that_are_none(folder):
    (folder / "config.json").write_text("[1, 2]")


def settings_of_other_types(folder):
    edit(folder, "config.json", text_config="text", vision_config=7)


CHANGES = {
    each.__name__: each
    for each in (
        custom_config,
        custom_config_of_an_unknown_type,
        custom_tokenizer,
        custom_processor,
        custom_code_of_a_part,
        kernel_of_the_hub,
        kernel_of_a_part,
        another_model,
        other_weights,
        a_class_of_another_kind,
        a_class_by_path,
        a_tokenizer_elsewhere,
        a_vocabulary_elsewhere,
        an_adapter,
        endless_layers,
        a_pickle_alone,
        shards_of_pickles,
        index_without_map,
        weights_that_are_none,
        nested_settings,
        settings_that_are_none,
        settings_of_other_types,
    )
}
CHANGES |= KERNELS
CHANGES |= {
    f"an index that names {name}": index_of(name)
    for name in ("../secret.safetensors", "{}/secret.safetensors", "pytorch_model.bin", "..", "")
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_asks_for_more_than_data_is_refused(folder, change, tmp_path):
    CHANGES[change](folder)
    with pytest.raises(StageError) as refusal:
        load(folder)
    assert str(folder) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("change", KERNELS)
def test_kernels_are_refused_before_anything_looks_for_them(folder, change):
    KERNELS[change](folder)
    with pytest.raises(StageError, match=r"config\.json asks for .* (of|from) the hub"):
        check_settings(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "tokenizer.pkl", "training_args.bin"])
def test_a_pickle_beside_the_weights_is_not_read(folder, name, tmp_path):
    torch.save(Touch(tmp_path / "marker"), folder / name)
    load(folder)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("name", ["custom_generate/generate.py", "modeling_evil.py", "__init__.py", "setup.py"])
def test_code_that_nothing_names_is_not_run(folder, name, tmp_path):
    evil_code(folder, name)
    load(folder)
    assert not (tmp_path / "marker").exists()


def test_a_folder_of_data_loads_and_so_does_one_in_shards(folder):
    _, backbone = load(folder)
    backbone.model.save_pretrained(folder, max_shard_size="200KB")
    assert (folder / "model.safetensors.index.json").is_file()
    load(folder)
