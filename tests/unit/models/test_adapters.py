"""An adapter is where it should be, trains alone, is left out and merged exactly, and peft itself reads it."""

import copy
import json

import adapted
import families
import pytest
import torch
from peft import AutoPeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import nn

from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.models.adapters import check_targets, chosen_layers
from lightning_mmrl.models.export import ADAPTER, export_checkpoint, export_policy
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.ranks import Alone
from lightning_mmrl.settings.model import AdapterSettings

pytestmark = pytest.mark.filterwarnings(
    # peft 0.21 looks for a tokenizer beside the adapter, then on the hub, which is offline.
    "ignore:Could not find:UserWarning"
)


@pytest.fixture(scope="module", params=families.each())
def family(request, tmp_path_factory):
    return request.param, families.build(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def omni_folder(tmp_path_factory):
    return families.build("qwen2_5_omni", tmp_path_factory.mktemp("omni"))


def trainable(policy):
    return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


def adapted_layers(policy):
    return {name for name, module in policy.model.named_modules() if isinstance(module, LoraLayer)}


def chosen(policy, **settings):
    backbone = policy._backbone
    known = backbone.linear_layers()
    return chosen_layers(backbone.model, backbone.parameter_groups, known, AdapterSettings(**settings), "adapter")


def linear_below(policy, path):
    below = policy.model.get_submodule(path).named_modules()
    return {f"{path}.{name}" for name, module in below if isinstance(module, nn.Linear)}


def test_all_is_every_linear_layer_of_a_group_and_the_head_is_in_none(family):
    _, policy = families.load(*family)
    backbone = policy._backbone
    paths = {"text": backbone.text_at, **backbone.towers_at}
    assert set(backbone.linear_layers()) == set(paths)
    for group, path in paths.items():
        everything = linear_below(policy, path)
        assert set(chosen(policy, groups=(group,))) == everything
        kinds = backbone.linear_layers()[group]
        parts = [set(chosen(policy, groups=(group,), targets=(kind,))) for kind in kinds]
        assert all(parts)
        assert sum(map(len, parts)) == len(everything)  # kinds do not overlap
        assert set.union(*parts) == everything
    assert "lm_head" in {name for name, module in policy.model.named_modules() if isinstance(module, nn.Linear)}


def test_the_text_model_is_adapted_and_towers_only_if_they_are_asked_for(family):
    _, policy = families.load(*family)
    backbone = policy._backbone
    decoder = linear_below(policy, backbone.text_at)
    num_trained = policy.adapt(AdapterSettings(r=4, alpha=8))
    assert adapted_layers(policy) == decoder
    assert num_trained == sum(p.numel() for p in policy.parameters() if p.requires_grad)
    assert not policy.media.towers_train
    for group in backbone.towers_at:
        _, other = families.load(*family)
        other.adapt(AdapterSettings(groups=(group,)))
        path = backbone.towers_at[group]
        assert all(name.startswith(f"{path}.") for name in adapted_layers(other))
        assert other.media.towers_train


def test_endings_of_names_choose_layers(omni_folder):
    _, policy = families.load("qwen2_5_omni", omni_folder)
    layers = [f"model.layers.{index}.self_attn" for index in range(2)]
    assert chosen(policy, targets=("q_proj",)) == [f"{layer}.q_proj" for layer in layers]
    both = chosen(policy, targets=("layers.1.self_attn.v_proj", "self_attn.q_proj"))
    assert both == [f"{layers[0]}.q_proj", f"{layers[1]}.q_proj", f"{layers[1]}.v_proj"]
    assert len(chosen(policy, targets=("q_proj",), groups=("text", "audio"))) == 4


REFUSALS = [
    ({"targets": ("q_prj",)}, "adapter.targets is 'q_prj', which is no linear layer of these groups; did you mean 'q_"),
    ({"targets": ("attn",)}, "adapter.targets is 'attn', which is no linear layer .*; did you mean 'attention'"),
    ({"targets": ("projector",)}, "adapter.targets is 'projector', which is no linear layer"),
    (
        {"targets": ("lm_head",)},
        "adapter.targets is 'lm_head', which is no linear layer of these groups; known are all",
    ),
    ({"targets": ("embed_tokens",)}, "adapter.targets is 'embed_tokens', which is no linear layer"),
    ({"targets": ("qkv",), "groups": ("text", "vision")}, "adapter.targets is 'qkv', which is no linear layer"),
    ({"groups": ("sound",)}, "adapter.groups is 'sound'; this family has audio, text, vision"),
]
LATER = [
    (
        {"targets": ("layers.7.mlp.up_proj",)},
        "'layers.7.mlp.up_proj', .*; did you mean 'model.layers.[01].mlp.up_proj'",
    ),
    (
        {"targets": ("projector",), "groups": ("vision", "text")},
        "adapter.groups is 'text', where adapter.targets match",
    ),
]


@pytest.mark.parametrize(("settings", "message"), [*REFUSALS, *LATER])
def test_what_selects_no_layer_is_refused_and_nothing_is_changed(settings, message, omni_folder):
    _, policy = families.load("qwen2_5_omni", omni_folder)
    before = trainable(policy)
    with pytest.raises(ConfigError, match=message):
        policy.adapt(AdapterSettings(**settings))
    assert policy.adapter is None
    assert trainable(policy) == before
    assert adapted_layers(policy) == set()


@pytest.mark.parametrize(("settings", "message"), REFUSALS)
def test_most_of_it_is_refused_before_there_is_a_model(settings, message):
    known = families.FAMILIES["qwen2_5_omni"].backbone.linear_layers()
    with pytest.raises(ConfigError, match=message):
        check_targets(known, AdapterSettings(**settings), "adapter")
    for settings, _ in LATER:
        check_targets(known, AdapterSettings(**settings), "adapter")


def test_a_second_adapter_is_refused(omni_folder):
    _, policy = adapted.load("qwen2_5_omni", omni_folder)
    with pytest.raises(ConfigError, match=r"stages\.x\.adapter: this policy has an adapter already"):
        policy.adapt(AdapterSettings(), "stages.x.adapter")


def with_gradients(policy, batch):
    policy.zero_grad()
    policy(batch).logprobs.square().sum().backward()
    return {name for name, parameter in policy.named_parameters() if parameter.grad is not None}


def test_gradients_are_in_the_adapter_and_nowhere_else(family):
    name, folder = family
    encoder, policy = adapted.load(name, folder)
    found = with_gradients(policy, adapted.batch(name, encoder))
    expected = {
        f"model.{layer}.{part}.default.weight" for layer in adapted_layers(policy) for part in ("lora_A", "lora_B")
    }
    assert found == trainable(policy) == expected
    assert all(parameter.grad.any() for parameter in policy.adapter.parameters())
    # The same pass reaches every group of a model without an adapter.
    _, plain = families.load(name, folder)
    reached = with_gradients(plain, adapted.batch(name, encoder))
    for prefixes in plain._backbone.parameter_groups.values():
        assert any(key.removeprefix("model.").startswith(prefixes) for key in reached)


def test_gradients_reach_the_adapters_of_towers(family):
    name, folder = family
    towers = tuple(families.FAMILIES[name].backbone.towers_at)
    if not towers:
        pytest.skip("a text model has no towers")
    encoder, policy = adapted.load(name, folder, groups=towers)
    found = with_gradients(policy, adapted.batch(name, encoder))
    assert found == trainable(policy)
    assert all(".lora_" in key for key in found)
    assert sum(bool(parameter.grad.any()) for parameter in policy.adapter.parameters()) == len(found)


def test_a_new_adapter_changes_nothing_and_a_trained_one_does(family):
    name, folder = family
    encoder, policy = families.load(name, folder, dtype=torch.float32)
    batch = adapted.batch(name, encoder)
    base = adapted.logprobs(policy, batch)
    policy.adapt(AdapterSettings(r=4, alpha=8))
    assert torch.equal(adapted.logprobs(policy, batch), base)
    adapted.train(policy)
    assert (adapted.logprobs(policy, batch) - base).abs().max() > 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_without_its_adapter_a_policy_is_its_base_bit_for_bit(family, dtype):
    name, folder = family
    encoder, base = families.load(name, folder, dtype=dtype)
    groups = tuple(base._backbone.parameter_groups)
    _, policy = adapted.load(name, folder, dtype=dtype, groups=groups)
    batch = adapted.batch(name, encoder)
    trained, expected = adapted.logprobs(policy, batch), adapted.logprobs(base, batch)
    with policy.reference():
        found = policy(batch).logprobs
        with policy.reference():
            pass
        assert torch.equal(policy(batch).logprobs, expected)
    assert not found.requires_grad
    assert torch.equal(found, expected)
    assert not torch.equal(trained, expected)
    assert torch.equal(adapted.logprobs(policy, batch), trained)


def test_an_adapter_is_on_again_after_an_error_and_trains_as_before(omni_folder):
    encoder, policy = adapted.load("qwen2_5_omni", omni_folder)
    batch = adapted.batch("qwen2_5_omni", encoder)
    first = policy.adapter.parameters()[0]
    first.requires_grad_(False)  # what does not train must not begin to
    trained, before = adapted.logprobs(policy, batch), trainable(policy)
    with pytest.raises(KeyError), policy.reference():
        raise KeyError
    assert trainable(policy) == before
    assert torch.is_grad_enabled()
    assert torch.equal(adapted.logprobs(policy, batch), trained)


def test_a_policy_without_an_adapter_has_no_reference(omni_folder):
    _, policy = families.load("qwen2_5_omni", omni_folder)
    with pytest.raises(RuntimeError, match="a policy without an adapter has no reference"), policy.reference():
        pass


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_merged_model_is_the_adapted_one(family, dtype, tolerance, tmp_path):
    name, folder = family
    groups = tuple(families.FAMILIES[name].backbone.linear_layers())
    encoder, policy = adapted.load(name, folder, dtype=dtype, groups=groups)
    export_policy(policy, encoder, tmp_path / "export", started_from=str(folder))
    again, merged = families.load(name, tmp_path / "export", dtype=dtype)
    batch = adapted.batch(name, again)
    ours = adapted.logprobs(policy, batch)
    torch.testing.assert_close(adapted.logprobs(merged, batch), ours, rtol=0, atol=tolerance)
    _, base = families.load(name, folder, dtype=dtype)
    assert (adapted.logprobs(base, batch) - ours).abs().max() > 0.01
    assert adapted_layers(merged) == set()
    assert merged.model.state_dict().keys() == base.model.state_dict().keys()


def test_peft_itself_loads_the_adapter_onto_the_base(family, tmp_path):
    """By the adapter's folder alone, which names base and class."""
    name, folder = family
    encoder, policy = adapted.load(name, folder, dtype=torch.float32)
    export_policy(policy, encoder, tmp_path / "export", started_from=str(folder))
    config = json.loads((tmp_path / "export" / ADAPTER / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(folder)
    assert (config["r"], config["lora_alpha"], config["inference_mode"]) == (4, 8, True)
    assert config["target_modules"] == sorted(config["target_modules"])
    loaded = AutoPeftModel.from_pretrained(str(tmp_path / "export" / ADAPTER))
    plain = Policy(
        families.FAMILIES[name].backbone(loaded.get_base_model()), banned_token_ids=encoder.banned_token_ids()
    )
    assert adapted_layers(plain) == adapted_layers(policy)
    batch = adapted.batch(name, encoder)
    assert torch.equal(adapted.logprobs(plain, batch), adapted.logprobs(policy, batch))
    # An adapter that was not found would leave the base, and its logprobs.
    with loaded.disable_adapter():
        assert not torch.equal(adapted.logprobs(plain, batch), adapted.logprobs(policy, batch))


def test_an_export_leaves_the_policy_as_it_is_bit_for_bit(family, tmp_path):
    name, folder = family
    encoder, policy = adapted.load(name, folder, dtype=torch.float32)
    batch = adapted.batch(name, encoder)
    before, trained, scored = copy.deepcopy(policy.state_dict()), trainable(policy), adapted.logprobs(policy, batch)
    export_policy(policy, encoder, tmp_path, started_from="base")
    assert policy.state_dict().keys() == before.keys()
    assert all(torch.equal(policy.state_dict()[key], value) for key, value in before.items())
    assert trainable(policy) == trained
    assert torch.equal(adapted.logprobs(policy, batch), scored)
    # What peft does to merge and to undo that is another matter.
    for module in policy.modules():
        if isinstance(module, LoraLayer):
            module.merge()
            module.unmerge()
    assert not all(torch.equal(policy.state_dict()[key], value) for key, value in before.items())


def test_a_policy_without_an_adapter_exports_its_weights_alone(omni_folder, tmp_path):
    encoder, policy = families.load("qwen2_5_omni", omni_folder, dtype=torch.float32)
    export_policy(policy, encoder, tmp_path / "one", started_from="base")
    export_checkpoint(policy.model, encoder, tmp_path / "two")
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert contents[0] == contents[1]
    assert not (tmp_path / "one" / ADAPTER).exists()


def test_an_adapter_that_overflows_in_the_merge_is_not_exported(omni_folder, tmp_path):
    """Each of its weights is finite, their product is not."""
    encoder, policy = adapted.load("qwen2_5_omni", omni_folder, dtype=torch.float32)
    for parameter in policy.adapter.parameters():
        parameter.data.fill_(torch.finfo(parameter.dtype).max / 2)
    with pytest.raises(StageError, match="is not finite once the adapter is merged into it"):
        export_policy(policy, encoder, tmp_path / "out", started_from="base")
    assert not list(tmp_path.glob("out/*.safetensors"))


class OfTwo(Alone):
    """One of two ranks, and a list that both add to: what they gather."""

    def __init__(self, rank, gathered):
        self.rank, self.gathered = rank, gathered

    def gather(self, item):
        self.gathered.append(item)
        return self.gathered


def test_an_overflow_in_the_merge_is_raised_on_the_ranks_that_do_not_write(omni_folder, tmp_path):
    """They have no weights to look at, and would wait for the first one for ever."""
    encoder, policy = adapted.load("qwen2_5_omni", omni_folder, dtype=torch.float32)
    for values, wrong in ((1e-3, False), (torch.finfo(torch.float32).max / 2, True)):
        for parameter in policy.adapter.parameters():
            parameter.data.fill_(values)
        gathered, sentences = [], []
        for rank in (0, 1):
            where = {"started_from": "base", "ranks": OfTwo(rank, gathered)}
            try:
                export_policy(policy, encoder, tmp_path / f"{wrong}{rank}", **where)
            except StageError as error:
                sentences.append(str(error))
        assert len(sentences) == 2 * wrong
        assert len({*sentences}) == wrong
    assert [path.parent.name for path in tmp_path.rglob("model.safetensors")] == ["False0"]


def test_two_exports_are_the_same_files(omni_folder, tmp_path):
    for name in ("one", "two"):
        torch.manual_seed(3)  # A is random
        encoder, policy = adapted.load("qwen2_5_omni", omni_folder, dtype=torch.float32)
        export_policy(policy, encoder, tmp_path / name, started_from="base")
    for path in (tmp_path / "one" / ADAPTER).iterdir():
        assert path.read_bytes() == (tmp_path / "two" / ADAPTER / path.name).read_bytes()


def test_half_precision_weights_are_adapted_in_float32_and_merged_into_their_own(omni_folder, tmp_path):
    encoder, policy = adapted.load("qwen2_5_omni", omni_folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in policy.adapter.parameters()} == {torch.float32}
    export_policy(policy, encoder, tmp_path, started_from="base")
    key = "model.layers.0.self_attn.q_proj"
    merged = load_file(tmp_path / "model.safetensors")[f"thinker.{key}.weight"]
    own = load_file(tmp_path / ADAPTER / "adapter_model.safetensors")
    down, up = (own[f"base_model.model.{key}.{part}.weight"].double() for part in ("lora_A", "lora_B"))
    weight = policy.model.get_submodule(f"{key}.base_layer").weight
    assert merged.dtype == torch.bfloat16
    assert not torch.equal(merged, weight)
    torch.testing.assert_close(merged.double(), weight.double() + 2 * up @ down, rtol=2**-8, atol=1e-7)


def test_dropout_is_a_reason_not_to_share_prompts(omni_folder):
    _, policy = families.load("qwen2_5_omni", omni_folder)
    policy.adapt(AdapterSettings(dropout=0.1))
    assert policy.sharing_refusal == "dropout of 0.1 would draw one noise for all completions of a prompt"
    _, policy = families.load("qwen2_5_omni", omni_folder)
    policy.adapt(AdapterSettings(dropout=0.1, groups=("vision",)))  # prompts have one noise anyway
    assert policy.sharing_refusal is None


def test_dropout_draws_its_own_noise_for_each_completion(omni_folder):
    encoder, policy = adapted.load("qwen2_5_omni", omni_folder, dropout=0.3)
    batch = adapted.batch("qwen2_5_omni", encoder)
    same = {
        "completion_ids": batch.completion_ids[:1].expand(len(batch.completion_ids), -1),
        "completion_mask": batch.completion_mask[:1].expand(len(batch.completion_ids), -1),
    }
    repeated = type(batch)(prompts=batch.prompts, group_size=batch.group_size, **same)
    first = adapted.logprobs(policy, repeated)
    assert not torch.equal(first[0], first[1])
    policy.eval()
    evaluated = adapted.logprobs(policy, repeated)
    torch.testing.assert_close(evaluated[0], evaluated[1], rtol=0, atol=1e-12)


def test_the_state_of_a_policy_comes_back_with_its_adapter_in_place(family):
    name, folder = family
    encoder, policy = adapted.load(name, folder, dtype=torch.float32)
    _, other = families.load(name, folder, dtype=torch.float32)
    other.adapt(AdapterSettings(r=4, alpha=8))
    batch = adapted.batch(name, encoder)
    assert not torch.equal(adapted.logprobs(other, batch), adapted.logprobs(policy, batch))
    other.load_state_dict(policy.state_dict())
    assert torch.equal(adapted.logprobs(other, batch), adapted.logprobs(policy, batch))
    assert trainable(other) == trainable(policy)
