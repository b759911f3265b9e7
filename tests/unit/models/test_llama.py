"""Llama: the ways in which its released tokenizers differ from Qwen's."""

import json

import families
import omni
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_mmrl.models.families.llama import Llama, LlamaEncoder
from lightning_mmrl.types.records import Message

TURNS = (Message(role="user", content="Which emotion?"),)
TEMPLATE = "{{ bos_token }}{% for m in messages %}[{{ m.content }}]{% endfor %}"


@pytest.fixture
def folder(tmp_path):
    """A tiny Llama with a tokenizer of Llama 3's kind: it adds a first token, pads with none, and ends turns last."""
    folder = families.build("llama", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    first = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.bos_token, tokenizer.pad_token = "<|im_start|>", None
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", first)]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text())
    settings["eos_token_id"] = settings["eos_token_id"][::-1]
    file.write_text(json.dumps(settings))
    return folder


def test_a_prompt_begins_with_one_first_token(folder):
    encoder = LlamaEncoder.from_checkpoint(folder)
    first = encoder.tokenizer.bos_token_id
    assert encoder.tokenizer("angry").input_ids[0] == first, "the tokenizer adds one where it is not told otherwise"
    ids = encoder.encode_prompt(TURNS, "", [])["input_ids"].tolist()
    assert ids.count(first) == 1
    assert ids[0] == first
    chat = [{"role": "user", "content": "Which emotion?"}]
    assert ids == encoder.tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=True)["input_ids"]


def test_a_target_is_closed_by_the_end_of_a_turn_and_begins_with_its_text(folder):
    encoder = LlamaEncoder.from_checkpoint(folder)
    other, end = encoder.eos_token_ids
    assert end == encoder.tokenizer.eos_token_id != other
    ids = encoder.encode_target("angry")
    assert ids[-1] == end
    assert encoder.tokenizer.bos_token_id not in ids
    assert encoder.decode(ids) == "angry"


def test_what_pads_is_an_end(folder):
    encoder = LlamaEncoder.from_checkpoint(folder)
    assert encoder.tokenizer.pad_token_id is None
    assert encoder.pad_token_id == encoder.tokenizer.eos_token_id


def test_the_rotary_embedding_is_scaled_as_in_llama_3(tmp_path):
    """The tiny model has it, so that all conformance tests run with it."""
    folder = families.build("llama", tmp_path / "model")
    ours = Llama.from_checkpoint(folder).model.eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)(" ".join(omni.TEXT)).input_ids[:200]])
    plain = AutoModelForCausalLM.from_pretrained(folder, rope_parameters={"rope_type": "default", "rope_theta": 5e5})
    stock = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        found, same, other = (model(input_ids=ids).logits for model in (ours, stock, plain.eval()))
    assert torch.equal(found, same)
    assert (found - other).abs().max() > 1e-4
