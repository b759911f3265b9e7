"""Every prompt that is shipped: where its instruction stands, which tags it names, and how its answers are read."""

from functools import cache

import pytest

from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.prompts.reading import READINGS, find_answer
from lightning_mmrl.prompts.scanner import TAGS
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.types.records import Completion, Message

NAMES = sorted(path.stem for path in configs_dir().glob("prompt/*.yaml"))
THINK, ANSWER = TAGS[:2], TAGS[2:]
BOX = "\\boxed{"
TABLE = {
    # Name: where the instruction stands, what it names, the reading that fits, and an answer as it asks for one.
    "plain": ((), (), "tag", None),
    "brief": (("suffix",), (), "prose", "It is 7."),
    "r1_omni": (("suffix",), TAGS, "tag", "<think>so</think><answer>7</answer>"),
    "r1_omni_labels": (("suffix",), ANSWER, "tag", "<answer>7</answer>"),
    "metis_rise": (("system",), (*TAGS, BOX), "tag_or_boxed", "<think>so</think><answer>So $\\boxed{7}$.</answer>"),
    "mm_eureka": (("system",), TAGS, "tag_or_text", "<think>so</think><answer>7</answer>"),
    "mm_eureka_v1": (("prefix",), TAGS, "tag_or_text", "<think>so</think><answer>7</answer>"),
    "mm_eureka_zero": (("system",), (*TAGS, BOX), "tag_or_boxed", "<think>so</think><answer>\\boxed{7}</answer>"),
    "boxed": (("system",), (BOX,), "boxed", "3 + 4 is $\\boxed{7}$."),
    "think_boxed": (("suffix",), (*THINK, BOX), "boxed_tag_phrase", "<think>so</think>$\\boxed{7}$"),
    "visualthinker": (("prefill", "raw"), TAGS, "tag_or_text", "<think>so</think><answer>7</answer>"),
    "visualthinker_instruct": (("suffix",), TAGS, "tag_or_text", "<think>so</think><answer>7</answer>"),
    "sokoban": (("system",), TAGS, "tag", "<think>so</think><answer>7</answer>"),
}


@cache
def shipped(name):
    """The texts of a prompt."""
    return compose([f"prompt={name}"]).prompt


def test_every_shipped_prompt_is_in_the_table():
    assert set(TABLE) == set(NAMES)


@pytest.mark.parametrize("name", TABLE)
def test_a_prompt_stands_where_its_paper_has_it_and_names_its_tags_alone(name):
    parts, names, reading, answer = TABLE[name]
    settings = shipped(name)
    texts = {part: text for part, text in vars(settings).items() if text}
    assert tuple(sorted(texts)) == parts
    written = "".join(texts.values())
    assert {mark for mark in (*TAGS, BOX) if mark in written} == set(names)
    assert reading in READINGS
    if answer is not None:
        expected = "It is 7." if name == "brief" else "7"
        assert find_answer(Completion(text=answer, num_tokens=9, truncated=False), reading).text == expected


@pytest.mark.parametrize("name", TABLE)
def test_a_prompt_leaves_the_question_and_its_media_as_they_are(name):
    template = PromptTemplate(shipped(name))
    asked = template.apply((Message(role="user", content="<image>Which?"),))[-1].content
    assert asked.startswith("<image>")
    assert "Which?" in asked


def test_prompts_of_two_systems_differ():
    written = {name: tuple(vars(shipped(name)).values()) for name in TABLE}
    assert len(set(written.values())) == len(TABLE)
