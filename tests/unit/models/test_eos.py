"""The tokens that end a completion are found wherever a folder of the hub has them, and are part of what it exports."""

import json

import families
import pytest
import torch

from lightning_mmrl.errors import StageError
from lightning_mmrl.models.export import export_checkpoint
from lightning_mmrl.models.tiny import build_tiny_omni


@pytest.fixture
def folder(tmp_path):
    return build_tiny_omni(tmp_path / "base", text=["sad"], **families.FAMILIES["qwen2_5_omni"].sizes)


@pytest.fixture
def change(folder):
    """Changes keys of a JSON file of the folder; None removes a key, and `a__b` is the key b of the part a."""

    def changed(name, **keys):
        whole = json.loads((folder / name).read_text())
        for key, value in keys.items():
            part = whole
            *path, last = key.split("__")
            for each in path:
                part = part[each]
            part.pop(last, None) if value is None else part.update({last: value})
        (folder / name).write_text(json.dumps(whole))

    return changed


def ends(folder):
    return families.FAMILIES["qwen2_5_omni"].encoder.from_checkpoint(folder).eos_token_ids


def test_the_generation_config_comes_first(folder, change):
    change("generation_config.json", eos_token_id=[7, 8])
    change("config.json", eos_token_id=9)
    assert ends(folder) == (7, 8)
    change("generation_config.json", eos_token_id=7)
    assert ends(folder) == (7,)


@pytest.mark.parametrize("missing", ["key", "file"])
def test_then_the_configuration_its_text_model_first_and_then_the_tokenizer(folder, change, missing):
    if missing == "file":
        (folder / "generation_config.json").unlink()
    change("generation_config.json", eos_token_id=None) if missing == "key" else None
    change("config.json", eos_token_id=9, text_config__eos_token_id=[5, 6])
    assert ends(folder) == (5, 6)
    change("config.json", text_config__eos_token_id=None)
    assert ends(folder) == (9,)
    change("config.json", eos_token_id=None)
    encoder = families.FAMILIES["qwen2_5_omni"].encoder.from_checkpoint(folder)
    assert encoder.eos_token_ids == (encoder.tokenizer.convert_tokens_to_ids("<|im_end|>"),)


def test_a_default_of_the_configurations_class_is_not_taken_for_an_end(tmp_path):
    """Llama's class would say 2, whatever the tokenizer holds there."""
    folder = families.build("llama", tmp_path / "base")
    (folder / "generation_config.json").unlink()
    whole = json.loads((folder / "config.json").read_text())
    whole.pop("eos_token_id", None)
    (folder / "config.json").write_text(json.dumps(whole))
    encoder = families.FAMILIES["llama"].encoder.from_checkpoint(folder)
    assert encoder.config.eos_token_id == 2
    assert encoder.eos_token_ids == (encoder.tokenizer.eos_token_id,) != (2,)


def test_a_folder_without_an_end_is_refused(folder, change):
    (folder / "generation_config.json").unlink()
    change("config.json", eos_token_id=None, text_config__eos_token_id=None)
    given = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**given, "eos_token": None}))  # its class has a default
    with pytest.raises(StageError) as error:
        ends(folder)
    assert str(error.value) == (
        f"model checkpoint '{folder}' has no end-of-sequence token: generation_config.json, config.json, the tokenizer "
        "name none; add eos_token_id to its generation_config.json"
    )


@pytest.mark.parametrize("wrong", [10**6, -1, "<|im_end|>"])
def test_an_end_beyond_the_vocabulary_is_refused(folder, change, wrong):
    change("generation_config.json", eos_token_id=None)
    change("config.json", eos_token_id=wrong, text_config__eos_token_id=None)
    with pytest.raises(StageError, match=r"is .* in config.json; it must be a token of its vocabulary of \d+$"):
        ends(folder)


def test_an_export_names_the_ends_of_training(folder, change, tmp_path):
    change("generation_config.json", eos_token_id=None)
    change("config.json", eos_token_id=None, text_config__eos_token_id=[5, 6])
    encoder, policy = families.load("qwen2_5_omni", folder, dtype=torch.float32)
    export_checkpoint(policy.model, encoder, tmp_path / "export")
    assert json.loads((tmp_path / "export" / "generation_config.json").read_text())["eos_token_id"] == [5, 6]
