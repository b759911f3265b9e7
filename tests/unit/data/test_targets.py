"""Targets of conversations, by hand."""

from dataclasses import replace

import omni
import pytest
import words

from lightning_mmrl.data.exchanges import exchanges
from lightning_mmrl.data.prepared import PreparedSet, TargetTokens
from lightning_mmrl.data.targets import encoded_exchanges
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.settings.data import PromptSettings
from lightning_mmrl.types.records import Message, Sample

ROLES = {"s": "system", "u": "user", "a": "assistant"}


def sample(*turns):
    """A conversation; each turn begins with the first letter of its role."""
    messages = tuple(Message(role=ROLES[turn[0]], content=turn) for turn in turns)
    return Sample(id="talk", messages=messages)


THREE = sample("u1", "a1", "u2", "a2", "u3", "a3")


def told(found):
    """Contents of the prompts, and the targets."""
    return [("|".join(turn.content for turn in each.turns), each.target) for each in found]


def test_every_assistant_turn_is_a_target_after_the_turns_before_it():
    found = exchanges(THREE, PromptTemplate(), supervised=True)
    assert told(found) == [("u1", "a1"), ("u1|a1|u2", "a2"), ("u1|a1|u2|a2|u3", "a3")]


def test_the_last_one_alone_and_none_at_all():
    assert told(exchanges(THREE, PromptTemplate(), supervised=True, lesson="last_turn")) == [("u1|a1|u2|a2|u3", "a3")]
    assert told(exchanges(THREE, PromptTemplate(), supervised=False)) == [("u1|a1|u2|a2|u3", None)]
    assert told(exchanges(sample("s", "u", "a"), PromptTemplate(), supervised=True)) == [("s|u", "a")]


def test_an_assistant_turn_that_answers_nobody_is_no_target():
    found = exchanges(sample("s", "a0", "u1", "a1", "a2", "u3", "a3"), PromptTemplate(), supervised=True)
    assert told(found) == [("s|a0|u1", "a1"), ("s|a0|u1|a1|a2|u3", "a3")]


def test_each_prompt_has_the_template_around_it():
    template = PromptTemplate(PromptSettings(system="S", suffix="!", prefill="a"))
    found = exchanges(sample("u1", "a1", "u2", "a2"), template, supervised=True)
    assert told(found) == [("S|u1!", "1"), ("S|u1|a1|u2!", "2")]


def test_what_an_earlier_target_lacks_is_told_with_the_way_out():
    template = PromptTemplate(PromptSettings(prefill="a2"))
    with pytest.raises(DataError, match=r"^sample talk: the assistant turn 'a1' does not start .*mask_history=true"):
        exchanges(sample("u1", "a1", "u2", "a2"), template, supervised=True)
    assert len(exchanges(sample("u1", "a1", "u2", "a2"), template, supervised=True, lesson="last_turn")) == 1
    with pytest.raises(DataError, match=r"clear the prefill$"):
        exchanges(sample("u1", "a1"), template, supervised=True)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return omni.load(omni.build(tmp_path_factory.mktemp("targets") / "omni"))[0]


def spoken(encoder, found):
    """Prompt, tokens after it and their mask, as texts."""
    texts = []
    for each in found:
        runs, before = [], None
        for token, counts in zip(each.ids, each.mask, strict=True):
            if counts != before:
                runs.append((counts, []))
            runs[-1][1].append(token)
            before = counts
        prompt = encoder.tokenizer.decode(each.prompt["input_ids"])
        texts.append((prompt, [(counts, encoder.tokenizer.decode(ids)) for counts, ids in runs]))
    return texts


CHAT = sample("user angry", "angry", "u assistant", "angry angry", "u3", "a3")
FIRST = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nuser angry<|im_end|>\n"
ASKED = "<|im_start|>assistant\n"


def encode(encoder, conversation, media=(), **prompt):
    template = PromptTemplate(PromptSettings(**prompt))
    return encoded_exchanges(encoder, template.settings, exchanges(conversation, template, supervised=True), media)


def test_the_loss_mask_of_three_turns_by_hand(encoder):
    [found] = encode(encoder, CHAT)
    [(prompt, runs)] = spoken(encoder, [found])
    assert prompt == FIRST + ASKED
    assert runs == [
        (True, "angry<|im_end|>"),
        (False, f"\n<|im_start|>user\nu assistant<|im_end|>\n{ASKED}"),
        (True, "angry angry<|im_end|>"),
        (False, f"\n<|im_start|>user\nu3<|im_end|>\n{ASKED}"),
        (True, "a3<|im_end|>"),
    ]
    whole = encoder.tokenizer(prompt + "".join(text for _, text in runs)).input_ids
    assert [*found.prompt["input_ids"].tolist(), *found.ids] == whole


def test_the_last_target_follows_the_tokens_that_its_own_prompt_has(encoder):
    [found] = encode(encoder, CHAT)
    template = PromptTemplate()
    [alone] = encoded_exchanges(
        encoder, template.settings, exchanges(CHAT, template, supervised=True, lesson="last_turn"), ()
    )
    together = [*found.prompt["input_ids"].tolist(), *found.ids]
    assert together == [*alone.prompt["input_ids"].tolist(), *alone.ids]
    assert alone.mask == [True] * len(alone.ids)


def test_a_suffix_that_only_the_last_question_has_gives_each_target_its_own_prompt(encoder):
    found = encode(encoder, CHAT, suffix="?")
    prompts, runs = zip(*spoken(encoder, found), strict=True)
    assert [prompt.count("?") for prompt in prompts] == [1, 1, 1]
    assert [text for [(counts, text)] in runs if counts] == ["angry<|im_end|>", "angry angry<|im_end|>", "a3<|im_end|>"]


def test_a_template_that_shortens_history_gives_each_target_its_own_prompt(encoder, monkeypatch):
    """As templates do that leave the thoughts of earlier turns out."""
    render = type(encoder).render

    def forgetful(self, messages):
        return render(self, [replace(turn, content=turn.content.replace("angry angry", "angry")) for turn in messages])

    monkeypatch.setattr(type(encoder), "render", forgetful)
    first, second = spoken(encoder, encode(encoder, CHAT))
    assert [text for counts, text in first[1] if counts] == ["angry<|im_end|>", "angry angry<|im_end|>"]
    assert "angry angry" not in second[0]
    assert second[1] == [(True, "a3<|im_end|>")]


def test_a_prefill_stands_before_every_target(encoder):
    conversation = sample("u1", "angry user", "u2", "angry angry")
    [(prompt, runs)] = spoken(encoder, encode(encoder, conversation, prefill="angry"))
    assert prompt.endswith(f"{ASKED}angry")
    assert runs == [
        (True, " user<|im_end|>"),
        (False, f"\n<|im_start|>user\nu2<|im_end|>\n{ASKED}angry"),
        (True, " angry<|im_end|>"),
    ]


def test_media_of_a_later_turn_need_a_prompt_of_their_own(encoder):
    picture, sound = encoder.encode_image(omni.noise_image(0)), encoder.encode_audio(omni.noise_audio(1))
    conversation = sample("u<image>", "a1", "u2", "a2", "u<audio>", "a3", "u4", "a4")
    first, second = encode(encoder, conversation, [picture, sound])
    assert (first.num_media, second.num_media) == (1, 2)
    assert [text for counts, text in spoken(encoder, [first])[0][1] if counts] == ["a1<|im_end|>", "a2<|im_end|>"]
    assert [text for counts, text in spoken(encoder, [second])[0][1] if counts] == ["a3<|im_end|>", "a4<|im_end|>"]
    assert "input_features" not in first.prompt
    assert "input_features" in second.prompt


def test_a_set_gives_the_turns_of_its_stage(root, pipeline):
    turns = [{"role": ROLES[turn[0]], "content": turn} for turn in ("u1", "a1", "u2", "a2")]
    talk = {**words.row("talk"), "messages": turns}
    samples = [replace(sample("u1", "a1", "u2", "a2"), id="talk")]
    assert [turn["content"] for turn in talk["messages"]] == [turn.content for turn in samples[0].messages]
    texts = []
    for lesson in ("turns", "last_turn"):
        found = PreparedSet(
            samples,
            media_root=root,
            pipeline=pipeline,
            template=PromptTemplate(),
            supervised=True,
            lesson=lesson,
        )
        found = words.read(found)
        assert found.later == ()
        texts.append(("".join(map(chr, found.prompt["input_ids"])), found.target_ids, found.target_mask))
    a1, a2, gap = (*map(ord, "a1"), 1), (*map(ord, "a2"), 1), tuple(map(ord, "|u2"))
    assert texts == [
        ("u1", (*a1, *gap, *a2), (True,) * 3 + (False,) * 3 + (True,) * 3),
        ("u1|a1|u2", a2, (True,) * 3),
    ]


class Letters:
    """A tokenizer of letters in the place of an encoder."""

    max_positions = 10

    def encode_target(self, text):
        return [ord(letter) for letter in text]

    def banned_token_ids(self):
        return (ord("!"),)


def test_the_target_of_a_sample_whose_prompt_was_drawn_alone_is_that_of_sft():
    tokens = TargetTokens(Letters(), PromptTemplate(PromptSettings(prefill="a")))
    assert tokens(THREE, 3) == [ord("3")]
    assert tokens(sample("u1", "a1", "u2"), 3) == "sample talk does not end with an assistant turn"
    assert tokens(sample("u1", "a!"), 3).startswith("sample talk: its target holds a token that stands for media")
    assert tokens(sample("u1", "a123456"), 4) == [ord(letter) for letter in "123456"]
    assert tokens(sample("u1", "a123456"), 5) == (
        "sample talk: its prompt and target take 11 positions, and the model has 10; shorten them"
    )
