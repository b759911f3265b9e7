"""Every kind of stage trains adapters of every family, and the handoffs of a curriculum hold both of its forms."""

import json
from functools import partial

import families
import omni
import one_step
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from small_runs import SMALL
from transformers import Qwen2_5OmniThinkerForConditionalGeneration

from lightning_mmrl.cli.main import main
from lightning_mmrl.curriculum.artifacts import write_artifact
from lightning_mmrl.curriculum.handoff import check_handoff
from lightning_mmrl.errors import StageError
from lightning_mmrl.models.export import export_policy
from lightning_mmrl.settings.model import AdapterSettings
from lightning_mmrl.stages.grpo import GRPOModule
from lightning_mmrl.stages.rloo import RLOOModule
from lightning_mmrl.stages.sft import SFTModule


def stage(kind, name, encoder, policy, folder):
    """A module with one step to do, and its batch."""
    common = one_step.settings(folder)
    if kind is SFTModule:
        return SFTModule(policy, **common), one_step.targets(name, encoder)
    engine = omni.engine(encoder, policy, max_new_tokens=8)
    return kind(policy, engine, one_step.rewards(), **common), families.prompts(name, encoder)


@pytest.mark.parametrize("kind", [SFTModule, GRPOModule, RLOOModule])
@pytest.mark.parametrize("name", families.each())
def test_a_step_of_any_stage_moves_the_adapter_alone(name, kind, tmp_path):
    encoder, policy = families.load(name, families.build(name, tmp_path / "base"), dtype=torch.float32)
    policy.adapt(AdapterSettings(r=4, alpha=8))
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    one_step.fit(*stage(kind, name, encoder, policy, tmp_path), tmp_path)
    moved = {key for key, value in policy.state_dict().items() if not torch.equal(value, before[key])}
    # A stays where it is in the first step, since B is zero.
    assert moved == {key for key in before if ".lora_B." in key}


def handed_over(folder, seed):
    """A step of SFT on a base that lies in a run folder, and the digest of what it hands over."""
    name = "qwen2_5_omni"
    base = families.build(name, folder / "base")
    encoder, policy = families.load(name, base, dtype=torch.float32)
    torch.manual_seed(seed)  # A is random
    policy.adapt(AdapterSettings(r=4, alpha=8))
    one_step.fit(*stage(SFTModule, name, encoder, policy, folder), folder)
    export = partial(export_policy, policy, encoder, started_from=str(base))
    return write_artifact(folder / "handoff", export, {})


def test_the_digest_of_an_adapter_does_not_depend_on_where_the_run_lies(tmp_path):
    folders = [tmp_path / "here", tmp_path / "there" / "and_further"]
    one, same = (handed_over(folder, seed=3) for folder in folders)
    assert one == same
    configs = [json.loads((folder / "handoff" / "adapter" / "adapter_config.json").read_bytes()) for folder in folders]
    assert [config["base_model_name_or_path"] for config in configs] == [str(folder / "base") for folder in folders]
    assert handed_over(tmp_path / "other", seed=4) != one


def weights_of(folder):
    """The thinker's weights by their names in the policy; a handoff has the layout of a full model."""
    weights = load_file(folder / "model.safetensors")
    return {name.removeprefix("thinker."): tensor for name, tensor in weights.items()}


CURRICULUM = (
    *SMALL,
    "experiment=quickstart_lora",
    "order=[cold_start,reason]",
    "data.validation_limit=4",
    "evaluation.limit=8",
    "evaluation.ablations=[]",
    "evaluation.max_new_tokens=8",
    "tracking=none",
    "stages.cold_start.data.batch_size=4",
    "stages.cold_start.num_steps=2",
    "stages.reason.num_steps=2",
    "stages.reason.validate_every=2",
    "stages.reason.data.batch_size=2",
    "stages.reason.algorithm.group_size=2",
    "stages.reason.sampling.max_new_tokens=8",
    "stages.reason.optimizer.lr=1e-2",
)


@pytest.mark.slow
def test_a_curriculum_hands_over_the_merged_model_and_the_adapter(tmp_path, capsys):
    """SFT and RL with an adapter, from the command line."""
    places = (f"output_dir={tmp_path}/runs", f"data.root={tmp_path}/clips")
    adapter = "stages.cold_start.adapter={r: 4, alpha: 8, targets: attention}"
    assert main(["train", *CURRICULUM, *places, adapter]) == 0
    assert "stage cold_start trains an adapter of" in capsys.readouterr().err
    run = tmp_path / "runs" / "quickstart_lora"
    (base_model,) = (path for path in (tmp_path / "runs" / "models").glob("tiny_omni-seed0-*") if path.is_dir())
    starts = [base_model, run / "stages" / "00-cold_start" / "handoff"]
    for start, name in zip(starts, ("00-cold_start", "01-reason"), strict=True):
        handoff = run / "stages" / name / "handoff"
        files = check_handoff(handoff)["files"]
        assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(files)
        config = json.loads((handoff / "adapter" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == str(start)
        base = Qwen2_5OmniThinkerForConditionalGeneration.from_pretrained(start)
        assert all(key.startswith("thinker.") for key in load_file(handoff / "model.safetensors"))
        merged = weights_of(handoff)
        plain = PeftModel.from_pretrained(base, str(handoff / "adapter")).merge_and_unload().state_dict()
        changed = 0
        for key, value in weights_of(start).items():
            torch.testing.assert_close(merged[key], plain[key], rtol=0, atol=1e-6)
            changed += not torch.equal(merged[key], value)
        # So short a curriculum earns no reward: its RL stage hands over what it started from.
        assert changed == {"00-cold_start": 4 * 3, "01-reason": 0}[name]
    (handoff / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(StageError, match=r"adapter_config\.json is missing or changed"):
        check_handoff(handoff)
