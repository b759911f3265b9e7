"""Loss, gradient and advantages of TRL 1.16.0's trainers on given log-probabilities and rewards, without generation."""

import json
from dataclasses import replace

import pytest
import torch
from step_cases import drawn, experience_of, preset, taken

from lightning_mmrl.algorithms.advantages.group_normalized import GroupNormalized
from lightning_mmrl.algorithms.advantages.leave_one_out import LeaveOneOut
from lightning_mmrl.algorithms.corrections.importance import ImportanceCorrection
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.settings.algorithm import KLSettings
from lightning_mmrl.stages.advantages import shared_advantages

MAX_TOKENS = 24  # the completion limit of the quickstart
ROWS = 4
# TRL imports half of the Hugging Face stack, whose deprecations are not ours.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    words = ["<pad>", "<eos>", "a", "b", "c", "d"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(words),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen2"
    return folder


@pytest.fixture(scope="module")
def trainers(model_folder, tmp_path_factory):
    """One trainer of each kind; a test sets what it needs."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    found = {}
    for kind, config, trainer in (("grpo", GRPOConfig, GRPOTrainer), ("rloo", RLOOConfig, RLOOTrainer)):
        arguments = config(
            output_dir=str(tmp_path_factory.mktemp(kind)),
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            report_to="none",
            per_device_train_batch_size=ROWS,
            num_generations=ROWS,
            max_completion_length=MAX_TOKENS,
            max_steps=1,
            beta=0.0,
        )
        found[kind] = trainer(
            model=str(model_folder),
            reward_funcs=lambda completions, **columns: [0.0] * len(completions),
            args=arguments,
            train_dataset=Dataset.from_dict({"prompt": ["a b"] * ROWS}),
        )
        found[kind].model.train()
        found[kind].current_gradient_accumulation_steps = 1
        found[kind].pad_to_multiple_of = None
    return found


def scored(trainer, table, beta=0.0):
    """Advantages by TRL's trainer; an invalid reward is NaN, which TRL gives completions nobody could score."""
    lengths = table.mask.sum(-1).tolist()
    ids = [[3] * length for length in lengths]
    rewards = torch.where(table.valid, table.rewards, torch.nan).reshape(-1, 1)
    answers = [[2]] * len(ids), ids, ["a"] * len(ids)
    sampler = [row[:length].tolist() for row, length in zip(table.sampler, lengths, strict=True)]
    grpo = (answers[0], answers[1], None, answers[2], sampler, {}, None, None)
    trainer._generate = lambda prompts: grpo if hasattr(trainer, "loss_type") else answers
    trainer._calculate_rewards = lambda *args: rewards
    tables = iter((table.old, table.reference))
    width = max(lengths)
    ones = torch.ones(len(ids), width)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (next(tables)[:, :width], ones, None)
    trainer.num_generations, trainer.beta, trainer.ref_model = table.size, beta, object()
    return trainer._generate_and_score_completions([{"prompt": "a"}] * len(ids))


def compared(trainer, table, inputs):
    """TRL's loss and gradient at the table's log-probabilities."""
    logprobs = table.logprobs.clone().requires_grad_()
    width = inputs["completion_mask"].shape[1]
    ones = torch.ones(len(logprobs), width)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (logprobs[:, :width], ones, None)
    loss = trainer._compute_loss(trainer.model, inputs)
    return loss.item(), torch.autograd.grad(loss, logprobs)[0]


def full_table(seed, size):
    """All valid, since TRL counts completions without a score in its denominators; one completion has full width."""
    table = drawn(seed, size, all_valid=True)
    table.mask[0] = True
    return replace(table, truncated=torch.zeros_like(table.truncated))


SETTINGS = {
    "grpo": {"loss_type": "grpo"},
    "grpo_token_mean": {"loss_type": "dapo"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "gspo": {
        "loss_type": "grpo",
        "importance_sampling_level": "sequence",
        "epsilon_low": 3e-4,
        "epsilon_high": 4e-4,
    },
    "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
}
DEFAULTS = {
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "importance_sampling_level": "token",
    "scale_rewards": "group",
}


def set_up(trainer, name, monkeypatch, *, delta=None, correction=False):
    for key, value in (DEFAULTS | SETTINGS[name]).items():
        monkeypatch.setattr(trainer, key, value)
    monkeypatch.setattr(trainer.args, "delta", delta)
    monkeypatch.setattr(trainer.args, "use_bias_correction_kl", correction)


def step_of_trl(trainer, table, beta=0.0):
    """From rewards to the gradient, all by TRL."""
    inputs = scored(trainer, table)
    trainer.beta = beta
    inputs |= {"old_per_token_logps": table.old, "ref_per_token_logps": table.reference}
    return compared(trainer, table, inputs)


def agree(found, expected):
    (totals, gradient, _), (loss, wanted) = found, expected
    assert totals["loss"].item() == pytest.approx(loss, rel=1e-6, abs=1e-9)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_preset_is_that_of_trl_from_rewards_to_gradient(trainers, monkeypatch, name, size):
    set_up(trainers["grpo"], name, monkeypatch)
    for seed in range(2):
        table = full_table(seed, size)
        found = taken(preset(name), table)
        assert found[0]["clipped"] > 0 or name == "cispo"
        agree(found, step_of_trl(trainers["grpo"], table))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_rloo_on_whole_completions_is_that_of_trl_with_its_penalty_in_the_reward(trainers, size):
    trainer, algorithm = trainers["rloo"], preset("rloo_sequence")
    for seed in range(2):
        table = full_table(seed, size)
        expected = compared(trainer, table, scored(trainer, table, beta=algorithm.kl.settings.coefficient))
        agree(taken(algorithm, table), expected)
        plain = compared(trainer, table, scored(trainer, table))
        assert (expected[1] - plain[1]).abs().max() > 1e-5


@pytest.mark.parametrize("correction", [False, True])
def test_a_divergence_in_the_loss_is_that_of_trl(trainers, monkeypatch, correction):
    set_up(trainers["grpo"], "grpo", monkeypatch, correction=correction)
    table = full_table(5, 4)
    expected = step_of_trl(trainers["grpo"], table, beta=0.04)
    kl = KLPenalty(KLSettings(coefficient=0.04, ratio_correction=correction))
    agree(taken(replace(preset("grpo"), kl=kl), table), expected)
    other = replace(preset("grpo"), kl=replace(kl, settings=replace(kl.settings, ratio_correction=not correction)))
    assert (taken(other, table)[1] - expected[1]).abs().max() > 1e-5


@pytest.mark.parametrize("floor", [0.0, 0.6])
@pytest.mark.parametrize("mode", ["truncate", "mask"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_correction_is_that_of_trl_for_vllm(trainers, monkeypatch, level, mode, floor):
    """From the engine's log-probabilities to the gradient, by TRL; a divergence in the loss has no weight."""
    trainer = trainers["grpo"]
    set_up(trainer, "grpo", monkeypatch)
    for key, value in {"correction": True, "mode": f"{level}_{mode}", "clip_max": 1.4, "clip_min": floor}.items():
        monkeypatch.setattr(trainer, f"vllm_importance_sampling_{key}", value)
    kl, correction = (
        KLPenalty(KLSettings(coefficient=0.04)),
        ImportanceCorrection(level=level, mode=mode, cap=1.4, floor=floor),
    )
    for seed, size in ((5, 2), (6, 4)):
        table = full_table(seed, size)
        table.sampler = table.sampler.float().double()  # TRL takes the engine's in single precision
        monkeypatch.setattr(trainer, "use_vllm", True)
        inputs = scored(trainer, table)
        monkeypatch.setattr(trainer, "beta", 0.04)
        inputs |= {"old_per_token_logps": table.old, "ref_per_token_logps": table.reference}
        expected = compared(trainer, table, inputs)
        agree(taken(replace(preset("grpo"), kl=kl, correction=correction), table), expected)
        assert (taken(replace(preset("grpo"), kl=kl), table)[1] - expected[1]).abs().max() > 1e-4


@pytest.mark.parametrize("option", ["ratio_cap", "dual_clip"])
def test_both_bounds_of_the_ratio_are_the_delta_of_trl(trainers, monkeypatch, option):
    set_up(trainers["grpo"], "grpo", monkeypatch, delta=1.5)
    table = full_table(6, 4)
    expected = step_of_trl(trainers["grpo"], table)
    agree(taken(replace(preset("grpo"), loss=PPOClip(**{option: 1.5})), table), expected)
    assert (taken(preset("grpo"), table)[1] - expected[1]).abs().max() > 1e-4


@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize(
    ("estimator", "kind", "settings"),
    [
        (GroupNormalized(), "grpo", {"scale_rewards": "group"}),
        (GroupNormalized(std="batch"), "grpo", {"scale_rewards": "batch"}),
        (GroupNormalized(std=None), "grpo", {"scale_rewards": "none"}),
        (LeaveOneOut(), "rloo", {"normalize_advantages": False}),
        (LeaveOneOut(normalize=True), "rloo", {"normalize_advantages": True}),
    ],
    ids=["group", "batch", "none", "leave-one-out", "leave-one-out-normalized"],
)
def test_advantages_are_those_of_trl_also_with_completions_nobody_could_score(
    trainers, monkeypatch, estimator, kind, settings, size
):
    trainer = trainers[kind]
    for key, value in settings.items():
        monkeypatch.setattr(trainer, key, value)
    for seed in range(3):
        table = drawn(seed, size)
        scores = experience_of(table).scores
        found = shared_advantages(estimator, scores.rewards, scores.valid, ALONE)
        expected = scored(trainer, table)["advantages"].reshape(found.shape)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
        assert not table.valid.all()
