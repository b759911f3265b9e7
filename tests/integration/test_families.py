"""Every family learns from targets and from rewards, and comes back from its export with the same log-probabilities."""

from types import SimpleNamespace

import families
import omni
import one_step
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Qwen2_5OmniThinkerForConditionalGeneration

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.models.export import export_checkpoint
from lightning_mmrl.settings.algorithm import AlgorithmSettings
from lightning_mmrl.stages.algorithm import Algorithm
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.stages.sft import SFTModule
from lightning_mmrl.types.batches import ScoringBatch

GROUP = 4
STOCK = dict.fromkeys(families.TEXT, AutoModelForCausalLM) | {
    "qwen2_5_omni": Qwen2_5OmniThinkerForConditionalGeneration,
    "qwen2_5_vl": AutoModelForImageTextToText,
    "qwen2_vl": AutoModelForImageTextToText,
    "qwen3_vl": AutoModelForImageTextToText,
}

each_family = pytest.mark.parametrize("name", families.each())


def scoring_of(batch):
    return ScoringBatch(
        prompts=batch.prompts, completion_ids=batch.completion_ids, completion_mask=batch.completion_mask, group_size=1
    )


def moved_groups(policy, before):
    """The parameter groups in which a parameter has changed."""
    changed = [name for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])]
    groups = policy._backbone.parameter_groups
    return {group for group, prefixes in groups.items() if any(name.startswith(prefixes) for name in changed)}


def weights(policy):
    return {name: parameter.detach().clone() for name, parameter in policy.model.named_parameters()}


@pytest.fixture
def model(name, tmp_path):
    encoder, policy = families.load(name, families.build(name, tmp_path / "base"), dtype=torch.float32)
    return SimpleNamespace(encoder=encoder, policy=policy)


@each_family
def test_an_sft_step_teaches_every_part_and_the_export_comes_back(name, model, tmp_path):
    encoder, policy = model.encoder, model.policy
    batch = one_step.targets(name, encoder)
    scoring, before = scoring_of(batch), weights(policy)
    with torch.no_grad():
        first = policy(scoring).logprobs.sum().item()
    one_step.fit(SFTModule(policy, **one_step.settings(tmp_path)), batch, tmp_path)
    assert moved_groups(policy, before) == set(policy._backbone.parameter_groups)
    with torch.no_grad():
        trained = policy(scoring).logprobs
    assert trained.sum().item() > first

    export_checkpoint(policy.model, encoder, tmp_path / "export")
    again, reloaded = families.load(name, tmp_path / "export", dtype=torch.float32)
    assert reloaded.model.config.tie_word_embeddings == policy.model.config.tie_word_embeddings
    assert again.fingerprint == encoder.fingerprint
    assert again.banned_token_ids() == encoder.banned_token_ids()
    same = one_step.targets(name, again)
    assert torch.equal(same.prompts.input_ids, batch.prompts.input_ids)
    with torch.no_grad():
        assert torch.equal(reloaded(scoring_of(same)).logprobs, trained)
        _, base = families.load(name, tmp_path / "base", dtype=torch.float32)
        assert not torch.equal(base(scoring).logprobs, trained)


def grpo(encoder, policy, folder):
    """The stage, and its engine."""
    engine = omni.engine(encoder, policy, max_new_tokens=8)
    module = GRPOModule(
        policy,
        engine,
        one_step.rewards(),
        **one_step.settings(folder),
        algorithm=Algorithm(
            advantage=GroupNormalized(),
            loss=PPOClip(),
            aggregation=TokenMean(),
            settings=AlgorithmSettings(group_size=GROUP),
        ),
    )
    return module, engine


@each_family
def test_a_grpo_iteration_moves_what_is_not_frozen(name, model, tmp_path):
    encoder, policy = model.encoder, model.policy
    frozen = sorted(set(policy._backbone.parameter_groups) - {"text"})
    policy.freeze(frozen)
    module, engine = grpo(encoder, policy, tmp_path)
    before = weights(policy)
    one_step.fit(module, families.prompts(name, encoder), tmp_path)
    assert moved_groups(policy, before) == {"text"}
    assert module.latest["rollout/groups_with_signal"] == 1.0
    assert module.latest["train/approx_kl"] == 0.0
    assert engine.version == 1


TEXT_FAMILIES = ("qwen2", "qwen3", "llama")


def part_of(name):
    """The part that a parameter belongs to, by the names in transformers' classes."""
    if ".merger." in f".{name}" or ".deepstack_merger_list." in name or name.startswith("audio_tower.proj."):
        return "projector"
    return "tower" if name.startswith(("visual.", "model.visual.", "audio_tower.")) else "text"


def moved_parts(policy, before):
    return {part_of(name) for name, p in policy.model.named_parameters() if not torch.equal(p, before[name])}


PARTS = {
    "towers alone": (lambda towers: [f"{tower}_tower" for tower in towers], {"projector", "text"}),
    "towers with projectors": (lambda towers: towers, {"text"}),
    "projectors alone": (lambda towers: ["projector"], {"tower", "text"}),
    "all but projectors": (lambda towers: [*(f"{tower}_tower" for tower in towers), "text"], {"projector"}),
}


@pytest.mark.parametrize("how", PARTS)
@pytest.mark.parametrize("name", families.each([name for name in families.FAMILIES if name not in TEXT_FAMILIES]))
def test_towers_and_projectors_are_frozen_apart(name, how, model, tmp_path):
    """In SFT and in RL; the first case is R1-Omni's, and the second is its control, in which no projector moves."""
    groups, moved = PARTS[how]
    towers = sorted(set(model.policy._backbone.parameter_groups) - {"text"})
    num_frozen = model.policy.freeze(groups(towers))
    frozen = [p.numel() for name, p in model.policy.model.named_parameters() if part_of(name) not in moved]
    assert num_frozen == sum(frozen)
    sft = SFTModule(model.policy, **one_step.settings(tmp_path))
    module, _ = grpo(model.encoder, model.policy, tmp_path)
    for each, batch in (
        (sft, one_step.targets(name, model.encoder)),
        (module, families.prompts(name, model.encoder)),
    ):
        before = weights(model.policy)
        one_step.fit(each, batch, tmp_path)
        assert moved_parts(model.policy, before) == moved


@pytest.mark.parametrize("name", TEXT_FAMILIES)
def test_a_model_without_towers_has_no_projector(model):
    for group in ("projector", "vision_tower"):
        with pytest.raises(ConfigError, match=f"unknown group '{group}'; this family has text$"):
            model.policy.freeze([group])


@each_family
def test_plain_transformers_loads_the_export(name, model, tmp_path):
    """Under the class that a user of the checkpoint would take, with every weight found and none left over."""
    export_checkpoint(model.policy.model, model.encoder, tmp_path / "export")
    stock, report = STOCK[name].from_pretrained(tmp_path / "export", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours, theirs = model.policy.model.state_dict(), stock.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
