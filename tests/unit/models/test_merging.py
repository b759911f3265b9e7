"""An adapter merged from its files is the trained one, bit for bit, and what is no LoRA of a model is refused."""

import json

import adapted
import families
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_mmrl.errors import StageError
from lightning_mmrl.models.export import ADAPTER, export_policy

pytestmark = pytest.mark.filterwarnings("ignore:Could not find:UserWarning")
NAMES = ("adapter_config.json", "adapter_model.safetensors")


@pytest.fixture(scope="module", params=["qwen2_5_omni", "llama"])
def trained(request, tmp_path_factory):
    """Name, folder of the base, and folder of an export with a merged adapter and the adapter alone."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    base = families.build(name, folder / "base")
    encoder, policy = adapted.load(name, base, dtype=torch.float32)
    export_policy(policy, encoder, folder / "export", started_from=str(base))
    return name, base, folder / "export"


def files(folder):
    return {name: folder / name for name in NAMES}


def copied(folder, target, tensors=None, **changes):
    target.mkdir()
    config = json.loads((folder / NAMES[0]).read_text())
    (target / NAMES[0]).write_text(json.dumps({**config, **changes}))
    save_file(load_file(folder / NAMES[1]) if tensors is None else tensors, target / NAMES[1])
    return files(target)


def state(policy):
    return {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_adapter_is_the_export_bit_for_bit(trained, dtype):
    name, base, export = trained
    encoder, policy = families.load(name, base, dtype=dtype)
    policy.merge(files(export / ADAPTER), encoder.engine_prefix)
    _, wanted = families.load(name, export, dtype=dtype)
    _, before = families.load(name, base, dtype=dtype)
    if dtype == torch.float32:
        assert all(torch.equal(tensor, state(wanted)[key]) for key, tensor in state(policy).items())
    assert any(not torch.equal(tensor, state(before)[key]) for key, tensor in state(policy).items())


@pytest.mark.parametrize(
    "changes", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3, "layers.1.self_attn.v_proj": 5}}]
)
def test_peft_merges_alike(trained, tmp_path, changes):
    name, base, export = trained
    adapter = copied(export / ADAPTER, tmp_path / "a", **changes)
    encoder, policy = families.load(name, base, dtype=torch.float32)
    policy.merge(adapter, encoder.engine_prefix)
    _, other = families.load(name, base, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(other.model, str(tmp_path / "a")).merge_and_unload()
    ours = state(policy)
    for key, tensor in merged.state_dict().items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=1e-6, msg=key)


def test_an_adapter_of_the_whole_omni_model_fits_its_thinker(trained, tmp_path):
    name, base, export = trained
    encoder, policy = families.load(name, base, dtype=torch.float32)
    prefix = encoder.engine_prefix
    tensors = load_file(export / ADAPTER / NAMES[1])
    whole = {key.replace("base_model.model.", f"base_model.model.{prefix}"): each for key, each in tensors.items()}
    policy.merge(copied(export / ADAPTER, tmp_path / "a", whole), prefix)
    _, wanted = families.load(name, export, dtype=torch.float32)
    assert all(torch.equal(tensor, state(wanted)[key]) for key, tensor in state(policy).items())


def wider(tensors):
    return {key: each.repeat(1, 2) if "lora_A" in key else each for key, each in tensors.items()}


def elsewhere(tensors):
    return {key.replace("layers.0", "layers.7"): each for key, each in tensors.items()}


def half(tensors):
    return {key: each for key, each in tensors.items() if "lora_A" in key}


def magnitudes(tensors):
    key = next(iter(tensors))
    return tensors | {key.replace(".lora_A.weight", ".lora_magnitude_vector"): torch.ones(3)}


def infinite(tensors):
    return {key: each * torch.inf for key, each in tensors.items()}


@pytest.mark.parametrize(
    ("tensors", "changes", "sentence"),
    [
        (wider, {}, r"is no adapter of this \w+ model: its .* and the model's .*; give the model that it belongs to"),
        (elsewhere, {}, r"is no adapter of this \w+ model, which has no linear layer .*layers.7.*; give the model"),
        (half, {}, r"has only lora_A of .*; restore it"),
        (magnitudes, {}, r"lora_magnitude_vector, which is no part of a low-rank layer; merge the adapter with peft"),
        (infinite, {}, "is not finite once the adapter is merged; restore the file"),
        (dict, {"peft_type": "IA3"}, "has peft_type IA3, and only LORA is merged here; merge the adapter with peft"),
        (
            dict,
            {"use_dora": True},
            "has use_dora True, which is more than low-rank layers; merge the adapter with peft",
        ),
        (dict, {"modules_to_save": ["lm_head"]}, r"has modules_to_save \['lm_head'\], which is more than low-rank"),
        (dict, {"r": "8"}, "has r 8, which is no number above 0; restore it"),
        (dict, {"alpha_pattern": {"(a+)+$": 1}}, "has alpha_pattern .*, and only ends of names are read here"),
    ],
)
def test_what_is_no_lora_of_this_model_is_refused_and_changes_nothing(trained, tmp_path, tensors, changes, sentence):
    name, base, export = trained
    encoder, policy = families.load(name, base, dtype=torch.float32)
    before = state(policy)
    adapter = copied(export / ADAPTER, tmp_path / "a", tensors(load_file(export / ADAPTER / NAMES[1])), **changes)
    with pytest.raises(StageError, match=sentence):
        policy.merge(adapter, encoder.engine_prefix)
    assert all(torch.equal(tensor, before[key]) for key, tensor in state(policy).items())


def test_damaged_files_are_refused(trained, tmp_path):
    name, base, export = trained
    encoder, policy = families.load(name, base, dtype=torch.float32)
    adapter = copied(export / ADAPTER, tmp_path / "a")
    adapter[NAMES[1]].write_bytes(b"cut off")
    with pytest.raises(StageError, match=r"adapter_model.safetensors cannot be read \(.*\); restore it"):
        policy.merge(adapter, encoder.engine_prefix)
    adapter[NAMES[0]].write_text("[]")
    with pytest.raises(StageError, match=r"adapter_config.json is no configuration of an adapter; restore it"):
        policy.merge(adapter, encoder.engine_prefix)
