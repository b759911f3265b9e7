"""The tiny models: what a seed and a text determine, and how their tokenizers read."""

import hashlib

import families
import omni
import pytest

from lightning_mmrl.models.tiny import build_tiny_omni, train_tokenizer


def weights(folder):
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", sorted(families.FAMILIES))
def test_seed_and_text_determine_the_model(name, tmp_path):
    family = families.FAMILIES[name]
    how = {"text": omni.TEXT, **family.sizes}
    first, again, other = (
        family.build(tmp_path / str(index), **how, seed=seed) for index, seed in enumerate((0, 0, 1))
    )
    assert weights(first) == weights(again) != weights(other)
    assert (first / "tokenizer.json").read_bytes() == (again / "tokenizer.json").read_bytes()


def test_every_digit_is_a_token():
    tokenizer = train_tokenizer(["What is 12 + 34?", "12 + 34 = 46", "12", "12", "1234"])
    digits = [tokenizer.convert_tokens_to_ids(digit) for digit in "0123456789"]
    assert tokenizer("1234").input_ids == digits[1:5]
    assert [token for token in tokenizer("12 + 34").input_ids if token in digits] == digits[1:5]


def test_unknown_words_encode_byte_by_byte_and_come_back():
    tokenizer = train_tokenizer(omni.TEXT)
    text = "Zw\u00f6lf blaue Punkte: \u4e2d 7"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    assert len(tokenizer("angry").input_ids) < len("angry")


def test_a_larger_vocabulary_is_a_parameter(tmp_path):
    words = [f"word{index:03d}x" for index in range(400)]
    assert len(train_tokenizer(words, 900)) > len(train_tokenizer(words))
    assert (build_tiny_omni(tmp_path, text=words, hidden_size=64, num_layers=1, tower_size=32) / "config.json").exists()
