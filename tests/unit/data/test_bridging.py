"""Descriptions become questions without media, and answers become traces that sound as if they saw."""

import pytest

from lightning_mmrl.data.bridging import broken_rule, reworded, text_question, trace_of
from lightning_mmrl.data.rollout_table import RolloutRow
from lightning_mmrl.settings.bridge import BridgeSettings
from lightning_mmrl.types.records import Completion, MediaRef, Message, Sample, Score

PROMPT = Sample(
    id="dots-1",
    messages=(Message(role="user", content="<image>How many dots?"), Message(role="assistant", content="3")),
    media=(MediaRef(kind="image", path="1.png"),),
    solution="3",
)


def row(*texts, truncated=()):
    completions = tuple(
        Completion(text=text, num_tokens=2, truncated=place in truncated) for place, text in enumerate(texts)
    )
    return RolloutRow(
        sample=PROMPT,
        completions=completions,
        scores=tuple(Score(total=0.0, components={"label": 0.0}) for _ in texts),
        policy_version=0,
    )


def bridge(**changes):
    return BridgeSettings(kind="bridge", **changes)


def test_a_question_has_the_description_and_no_media_no_target_and_the_gold_in_its_own_column():
    question = text_question(row("Three red dots."), bridge(wording="Seen: {description} Asked: {question}!"))
    assert question.messages == (Message(role="user", content="Seen: Three red dots. Asked: How many dots?!"),)
    assert (question.id, question.media, question.solution) == ("dots-1", (), "3")


@pytest.mark.parametrize(
    ("texts", "truncated", "expected"),
    [
        (("a", "b"), (0,), "b"),
        ((" ", "b"), (), "b"),
        (("a",), (0,), "no_description"),
        (("<image> a",), (), "unwritable"),
        (("{question} a",), (), "{question} a"),
    ],
)
def test_the_first_whole_description_is_taken(texts, truncated, expected):
    found = text_question(row(*texts, truncated=truncated), bridge())
    assert (found if isinstance(found, str) else found.messages[0].content.partition("\n\n")[0]) == expected


@pytest.mark.parametrize(
    ("text", "rule", "expected"),
    [
        ("abc", {"fewest_characters": 3}, None),
        ("abc", {"fewest_characters": 4}, "too_short"),
        ("abc", {"most_characters": 3}, None),
        ("abc", {"most_characters": 2}, "too_long"),
        ("The DESCRIPTION is wrong", {"forbid": ["description is"]}, "forbidden"),
        ("The description", {"forbid": ["descriptions"]}, None),
    ],
)
def test_a_rule_leaves_traces_out(text, rule, expected):
    assert broken_rule(text, bridge(**rule)) == expected
    found = trace_of(PROMPT, text, bridge(**rule))
    assert (found if isinstance(found, str) else None) == expected


@pytest.mark.parametrize(
    ("text", "phrases", "expected"),
    [
        ("The description says so.", {"the description": "the image"}, "The image says so."),
        ("the description, the descriptions", {"the description": "the image"}, "the image, the descriptions"),
        ("as the description says", {"the description": "it", "the description says": "seen"}, "as seen"),
        ("a b", {"a": "b", "b": "a"}, "b a"),
        ("cost $5 (of it)", {"$5 (": "nothing ("}, "cost nothing (of it)"),
        ("nothing", {}, "nothing"),
    ],
)
def test_phrases_are_replaced_once_and_whole(text, phrases, expected):
    assert reworded(text, phrases) == expected


def test_a_trace_has_its_media_back():
    trace = trace_of(PROMPT, "The description has <answer>3</answer>", bridge(reword={"the description": "the image"}))
    target = Message(role="assistant", content="The image has <answer>3</answer>")
    assert trace == Sample(id="dots-1#bridge", messages=(PROMPT.messages[0], target), media=PROMPT.media, solution="3")
    assert trace_of(PROMPT, "<image>", bridge()) == "unwritable"
