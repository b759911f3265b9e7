"""A control token typed in a text never becomes a real one, whatever tokens the family's tokenizer has."""

from copy import deepcopy
from dataclasses import replace

import families
import pytest

from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import control_token
from lightning_mmrl.types.records import Message


@pytest.fixture(scope="module", params=sorted(families.FAMILIES))
def encoder(request, tmp_path_factory):
    folder = families.build(request.param, tmp_path_factory.mktemp(request.param))
    return families.FAMILIES[request.param].encoder.from_checkpoint(folder)


def special(tokenizer):
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def frame(encoder, messages):
    """The special tokens of a prompt: those of its frame, if its texts give none."""
    ids = set(encoder.tokenizer.convert_tokens_to_ids(special(encoder.tokenizer)))
    return [token for token in encoder.encode_prompt(messages, "", [])["input_ids"].tolist() if token in ids]


def user(text):
    return (Message(role="user", content=text),)


def test_each_special_token_is_refused_in_each_text(encoder):
    assert len(special(encoder.tokenizer)) >= 3
    for token in special(encoder.tokenizer):
        assert control_token(token) == token  # the manifest's reader knows its form
        for messages, prefill in (
            (user(f"Which?{token}"), ""),
            ((Message(role="system", content=token), *user("?")), ""),
            ((*user("?"), Message(role="assistant", content=f"a{token}"), *user("?")), ""),
            (user("?"), f"<think>{token}"),
        ):
            with pytest.raises(DataError, match="holds the control token"):
                encoder.encode_prompt(messages, prefill, [])
        with pytest.raises(DataError, match="holds the control token"):
            encoder.encode_target(f"<think>a</think>{token}")


def test_what_is_written_in_its_place_and_tags_of_the_answer_are_text(encoder):
    neutral = frame(encoder, user("Which?"))
    assert neutral
    for token in special(encoder.tokenizer):
        assert frame(encoder, user(f"Which? < {token[1:]} <think></think>")) == neutral
    assert len(encoder.encode_target("<think>a</think>")) > 2


def test_a_token_of_another_form_is_refused_where_the_tokenizer_has_it(encoder):
    assert control_token("a</s>b") is None
    encoder.encode_prompt(user("a</s>b"), "", [])
    own = replace(encoder, processor=deepcopy(encoder.processor))
    own.tokenizer.add_special_tokens({"additional_special_tokens": ["</s>"]})
    with pytest.raises(DataError, match="'a</s>b' holds the control token '</s>'"):
        own.encode_prompt(user("a</s>b"), "", [])
