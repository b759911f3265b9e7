"""Prompts that deny the thought: what they open, which prompts have none, and that the judge reads what follows."""

from dataclasses import replace

import pytest
import yaml

from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.no_think import with_placeholder, without_thought
from lightning_mmrl.prompts.reading import READINGS, find_answer
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.settings.data import PromptSettings
from lightning_mmrl.types.records import Completion

PROMPTS = {
    path.stem: PromptSettings(**yaml.safe_load(path.read_text())) for path in (configs_dir() / "prompt").glob("*.yaml")
}
TAG, BOX = "<think></think><answer>", "<think></think>\\boxed{"
OPENED = {
    ("plain", "tag"): TAG,
    ("r1_omni", "tag"): TAG,
    ("visualthinker", "tag"): TAG,
    ("visualthinker", "tag_or_text"): TAG,
    ("visualthinker_instruct", "tag_or_text"): TAG,
    ("mm_eureka", "tag_or_text"): TAG,
    ("mm_eureka_v1", "tag_or_text"): TAG,
    ("mm_eureka_zero", "tag_or_boxed"): TAG,
    ("metis_rise", "tag_or_boxed"): TAG,
    ("sokoban", "tag"): TAG,
    ("think_boxed", "boxed_tag_phrase"): BOX,
    ("think_boxed", "boxed"): BOX,
}
REFUSED = [
    ("boxed", "boxed"),
    ("brief", "prose"),
    ("r1_omni_labels", "tag"),
    ("plain", "tag_or_text"),
    ("r1_omni", "prose"),
]


def test_every_shipped_prompt_is_listed():
    assert {name for name, _ in [*OPENED, *REFUSED]} == set(PROMPTS)


@pytest.mark.parametrize(("name", "reading"), OPENED)
def test_the_prefill_closes_an_empty_thought_and_opens_an_answer_that_is_read(name, reading):
    forced = without_thought(PROMPTS[name], reading)
    assert forced.prefill == OPENED[name, reading]
    assert replace(forced, prefill=PROMPTS[name].prefill) == PROMPTS[name]
    text = forced.prefill + ("7}" if forced.prefill == BOX else "7</answer>")
    found = find_answer(Completion(text=text, num_tokens=2, truncated=False), reading)
    assert found.text == "7"
    judged = find_answer(Completion(text=with_placeholder(text), num_tokens=2, truncated=False), reading)
    assert (judged.text, judged.valid) == ("7", True)


@pytest.mark.parametrize(("name", "reading"), REFUSED)
def test_a_prompt_without_a_thought_is_refused_in_one_sentence(name, reading):
    with pytest.raises(ConfigError, match="asks for no thought") as caught:
        without_thought(PROMPTS[name], reading)
    assert "\n" not in str(caught.value)
    assert repr(reading) in str(caught.value)


@pytest.mark.parametrize("prefill", ["<think>Look:", "</think>", "<think></think><answer>"])
def test_a_thought_that_the_prefill_has_begun_or_ended_is_refused(prefill):
    with pytest.raises(ConfigError, match="has begun or ended the thought already"):
        without_thought(PromptSettings(suffix="<think> </think>", prefill=prefill), "tag")


def test_words_before_the_thought_stay():
    assert (
        without_thought(PromptSettings(prefill="Let me see. <think>\n"), "tag").prefill
        == "Let me see. <think>\n</think><answer>"
    )


def test_every_reading_has_an_opening_or_is_refused():
    for reading in READINGS:
        try:
            prefill = without_thought(PROMPTS["r1_omni"], reading).prefill
        except ConfigError:
            assert reading == "prose"
        else:
            assert prefill in (TAG, BOX)


def test_only_the_empty_thought_is_forgiven():
    """An answer that breaks the format elsewhere is no better than one with a thought."""
    for rest in ("sad", "sad</answer> and more", "</answer>", "sad</answer><answer>sad</answer>"):
        assert not scan(with_placeholder(TAG + rest)).valid
    assert scan(with_placeholder(TAG + "sad</answer>")).valid
    assert scan(TAG + "sad</answer>").problem == "empty thought"
