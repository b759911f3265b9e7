"""Traces answer the prompt of their id, and those of another dataset are refused."""

import pytest

from lightning_mmrl.curriculum.experts.traces import Traces
from lightning_mmrl.errors import DataError
from lightning_mmrl.protocols.experts import ExpertRequest
from lightning_mmrl.types.records import Message, Sample


def sample(name, *answers, text="1 + 1 = ?", solution=None):
    turns = (Message(role="user", content=text), *(Message(role="assistant", content=answer) for answer in answers))
    return Sample(id=name, messages=turns, solution=solution)


def texts(traces, key, num_draws=4):
    turns = (Message(role="user", content="?"),)
    answers = traces.ask([ExpertRequest(key=key, turns=turns, draw=draw) for draw in range(num_draws)])
    assert [answer.key for answer in answers] == [key] * num_draws
    return [answer.text or answer.problem for answer in answers]


def test_each_draw_is_another_trace_of_the_prompt():
    traces = Traces(
        [sample("a", "one two"), sample("a#3", "three"), sample("b", "four"), sample("a#x#1", "five")], "data"
    )
    assert texts(traces, "a") == ["one two", "three", "no_trace", "no_trace"]
    assert texts(traces, "a#x", 2) == ["five", "no_trace"]
    assert texts(traces, "c", 1) == ["no_trace"]
    assert traces.ask([ExpertRequest(key="a", turns=(Message(role="user", content="?"),))])[0].num_tokens == 2


def test_traces_of_no_prompt_are_counted():
    traces = Traces([sample("a", "2"), sample("b", "2"), sample("c#1", "2")], "data")
    traces.check(sample("a"))
    assert traces.num_strangers == 2
    traces.check(sample("c"))
    traces.refuse_strangers()
    assert traces.num_strangers == 1


@pytest.mark.parametrize(
    ("prompt", "sentence"),
    [
        (sample("a", text="1 + 2 = ?"), "data: trace 'a' has the question '1 . 1 = .', and the prompt of this id"),
        (sample("a", solution="3"), "data: trace 'a' has the solution '2', and the prompt of this id in the table '3'"),
    ],
)
def test_another_question_or_solution_is_another_dataset(prompt, sentence):
    traces = Traces([sample("a", "2", solution="2")], "data")
    with pytest.raises(DataError, match=sentence):
        traces.check(prompt)


def test_a_prompt_may_have_a_target_and_other_whitespace():
    traces = Traces([sample("a", "2", text="1 + 1\n= ?")], "data")
    traces.check(sample("a", "two", text=" 1 + 1 = ?"))


def test_no_match_at_all_is_another_dataset():
    traces = Traces([sample("x", "2"), sample("y", "2")], "data")
    traces.check(sample("a"))
    with pytest.raises(DataError, match="none of 2 traces, such as 'x', has the id of a prompt in the table"):
        traces.refuse_strangers()


def test_a_trace_without_an_answer_is_refused():
    with pytest.raises(DataError, match="data: trace 'a' has no answer; let its last turn be the assistant's"):
        Traces([sample("a")], "data")
