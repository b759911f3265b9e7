"""Traces answer the prompt of their id, and those of another dataset are refused."""

from dataclasses import replace

import pytest

from lightning_mmrl.curriculum.experts.traces import Traces
from lightning_mmrl.errors import DataError
from lightning_mmrl.protocols.experts import ExpertRequest
from lightning_mmrl.types.records import MediaRef, Message, Sample


def sample(name, *answers, text="1 + 1 = ?", solution=None):
    turns = (Message(role="user", content=text), *(Message(role="assistant", content=answer) for answer in answers))
    return Sample(id=name, messages=turns, solution=solution)


def texts(traces, key, num_draws=4):
    turns = (Message(role="user", content="?"),)
    answers = traces.ask([ExpertRequest(key=key, turns=turns, draw=draw) for draw in range(num_draws)])
    assert [answer.key for answer in answers] == [key] * num_draws
    return [answer.text or answer.problem for answer in answers]


def traces_of(samples, *prompts):
    """Traces that all prompts have been compared with."""
    traces = Traces(samples, "data", {prompt.id for prompt in prompts})
    for prompt in prompts:
        traces.check(prompt)
    traces.settle()
    return traces


def test_each_draw_is_another_trace_of_the_prompt():
    samples = [sample("a", "one two"), sample("a#3", "three"), sample("b", "four"), sample("a#x#1", "five")]
    traces = traces_of(samples, sample("a"), sample("a#x"), sample("c"))
    assert texts(traces, "a") == ["one two", "three", "no_trace", "no_trace"]
    assert texts(traces, "a#x", 2) == ["five", "no_trace"]
    assert texts(traces, "c", 1) == ["no_trace"]
    assert traces.ask([ExpertRequest(key="a", turns=(Message(role="user", content="?"),))])[0].num_tokens == 2


def test_a_trace_with_the_very_id_of_a_prompt_is_of_no_other_prompt():
    """Such as clips that the dataset numbers by #, and the clip that they are cut from; all ask the same."""
    clips = [MediaRef(kind="video", path=f"{name}.mp4") for name in ("a", "b", "c")]
    whole, first, second = (
        replace(sample(name), media=(clip,)) for name, clip in zip(("clip", "clip#1", "clip#2"), clips, strict=True)
    )
    samples = [replace(sample(each.id, f"of {each.id}"), media=each.media) for each in (second, first)]
    traces = traces_of(samples, whole, first, second)
    assert texts(traces, "clip", 1) == ["no_trace"]
    assert texts(traces, "clip#1", 2) == ["of clip#1", "no_trace"]
    assert texts(traces, "clip#2", 2) == ["of clip#2", "no_trace"]
    # The answer of a stage to `clip`, at place 1.
    assert texts(traces_of([replace(sample("clip#1", "mine"), media=(clips[0],))], whole, first), "clip", 1) == ["mine"]


@pytest.mark.parametrize(
    ("trace", "owner"),
    [
        (sample("a#1", "x", text="1"), "a"),
        (sample("a#1", "x", text="2"), "a#1"),
        (sample("a#1", "x", text="2", solution="9"), None),
        (sample("a#1", "x", text="3"), None),
        (sample("b#1", "x"), None),
    ],
)
def test_of_two_prompts_a_trace_is_of_the_one_it_fits(trace, owner):
    prompts = [sample("a", text="1"), sample("a#1", text="2", solution="8"), sample("b"), sample("b#1")]
    if owner is None:
        fits = "both" if trace.id == "b#1" else "neither"
        with pytest.raises(
            DataError, match=f"data: trace '{trace.id}' may be of prompt .*, and it fits {fits}; rename"
        ):
            traces_of([trace], *prompts)
    else:
        traces = traces_of([trace], *prompts)
        assert {each.id for each in prompts if texts(traces, each.id, 1) == ["x"]} == {owner}


def test_an_id_with_a_hash_that_no_shorter_prompt_has_is_compared_with_its_own_prompt():
    with pytest.raises(
        DataError, match="data: trace 'a#1' has the question '1', and the prompt of this id in the table"
    ):
        traces_of([sample("a#1", "x", text="1")], sample("a#1", text="2"), sample("b"))


def test_traces_of_no_prompt_are_counted():
    traces = traces_of([sample("a", "2"), sample("b", "2"), sample("c#1", "2")], sample("a"), sample("c"))
    assert traces.num_strangers == 1


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (sample("a", text="1 + 2 = ?"), "data: trace 'a' has the question '1 . 1 = .', and the prompt of this id"),
        (sample("a", solution="3"), "data: trace 'a' has the solution '2', and the prompt of this id in the table '3'"),
    ],
)
def test_another_question_or_solution_is_another_dataset(prompt, sentence):
    with pytest.raises(DataError, match=sentence):
        traces_of([sample("a", "2", solution="2")], prompt)


def test_a_prompt_may_have_a_target_and_other_whitespace():
    traces_of([sample("a", "2", text="1 + 1\n= ?")], sample("a", "two", text=" 1 + 1 = ?"))


def test_no_match_at_all_is_another_dataset():
    with pytest.raises(DataError, match="none of 2 traces, such as 'x', has the id of a prompt in the table"):
        traces_of([sample("x", "2"), sample("y", "2")], sample("a"))


def test_a_trace_without_an_answer_is_refused():
    with pytest.raises(DataError, match="data: trace 'a' has no answer; let its last turn be the assistant's"):
        traces_of([sample("a")])
