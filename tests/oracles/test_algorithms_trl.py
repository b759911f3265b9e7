"""Loss and gradient of TRL 1.16.0's GRPOTrainer on given log-probabilities, without generation."""

import json

import pytest
import torch

from lightning_mmrl.algorithms.losses.aggregation import ConstantLength, SequenceMean, TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.types.batches import LossInputs

MAX_TOKENS = 7
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


def built_trainer(model_folder, output_dir, loss_type):
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    arguments = GRPOConfig(
        output_dir=str(output_dir),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        per_device_train_batch_size=ROWS,
        num_generations=ROWS,
        max_completion_length=MAX_TOKENS,
        max_steps=1,
        beta=0.0,
        loss_type=loss_type,
        epsilon=0.1,
        epsilon_high=0.3,
        use_bias_correction_kl=False,
    )
    trainer = GRPOTrainer(
        model=str(model_folder),
        reward_funcs=lambda completions, **columns: [0.0] * len(completions),
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["a b"] * ROWS}),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def drawn_inputs():
    generator = torch.Generator().manual_seed(11)
    noise = torch.randn(2, ROWS, MAX_TOKENS, generator=generator)
    return LossInputs(
        logprobs=(noise[0] * 0.4 - 2).requires_grad_(),
        old_logprobs=noise[1] * 0.4 - 2,
        advantages=torch.randn(ROWS, generator=generator),
        completion_mask=torch.arange(MAX_TOKENS) < torch.tensor([7, 2, 5, 1])[:, None],
    )


@pytest.mark.parametrize(
    ("loss_type", "aggregation"),
    [("grpo", SequenceMean()), ("dapo", TokenMean()), ("dr_grpo", ConstantLength(max_tokens=MAX_TOKENS))],
)
def test_loss_and_gradient_equal_trl(loss_type, aggregation, model_folder, tmp_path):
    inputs = drawn_inputs()
    trainer = built_trainer(model_folder, tmp_path, loss_type)
    ones = torch.ones(ROWS, MAX_TOKENS)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (inputs.logprobs, ones, None)
    mask = inputs.completion_mask.long()
    theirs = trainer._compute_loss(
        trainer.model,
        {
            "prompt_ids": torch.full((ROWS, 2), 2),
            "prompt_mask": torch.ones(ROWS, 2, dtype=torch.long),
            "completion_ids": torch.full((ROWS, MAX_TOKENS), 3),
            "completion_mask": mask,
            "advantages": inputs.advantages,
            "num_items_in_batch": mask.sum(),
            "old_per_token_logps": inputs.old_logprobs,
        },
    )
    output = PPOClip(clip_low=0.1, clip_high=0.3)(inputs)
    assert 0 < output.clipped.sum() < inputs.completion_mask.sum()
    ours = aggregation.reduce(
        output.token_losses, inputs.completion_mask, aggregation.denominator(inputs.completion_mask)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    gradients = [torch.autograd.grad(loss, inputs.logprobs)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-8)
