"""Multiple choice: letters and texts of options, by hand."""

import pytest

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.tasks.multiple_choice import MultipleChoice
from lightning_mmrl.prompts.options import options_of
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.types.records import Completion, Message, Sample

TASK = MultipleChoice(reader=ChoiceAnswer(choices="ABCD"))
QUESTION = "What is it?\nA) a red car\nB. E. coli\n(C) None of the above\nD: 7"


def sample(solution="B", question=QUESTION, **extras):
    return Sample(id="q", messages=(Message(role="user", content=question),), solution=solution, extras=extras)


def predicted(answer, of=None):
    text = f"<think>so</think><answer>{answer}</answer>"
    return TASK.judge(of or sample(), Completion(text=text, num_tokens=9, truncated=False)).predicted


def test_options_are_lines_of_the_question_or_a_column():
    assert options_of(sample()) == {"A": "a red car", "B": "E. coli", "C": "None of the above", "D": "7"}
    assert options_of(sample(options=["x", "y"])) == {"A": "x", "B": "y"}
    assert options_of(sample(question="Which?")) == {}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("The answer is B.", "B"),
        ("a red car", "A"),
        ("A RED CAR.", "A"),
        ("E. coli", "B"),
        ("None of the above", "C"),
        ("a blue car", None),
        ("a red", None),
        ("A or B", None),
        ("B?", None),
        ("E", None),
    ],
)
def test_answers_by_hand(answer, letter):
    assert predicted(answer) == letter


def test_a_text_of_two_options_names_none_of_them():
    assert predicted("same thing", sample(options=["same thing", "same thing"])) is None
    assert predicted("same thing", sample(options=["same thing", "another one"])) == "A"


def test_a_single_letter_is_never_a_text():
    assert predicted("A", sample(options=["B", "A"])) == "A"


def test_the_solution_may_be_a_text():
    assert TASK.truth(sample("E. coli")) == "B"
    with pytest.raises(DataError, match=r"^m\.jsonl: sample 'q' has the solution 'E', .*widen the choices"):
        TASK.check("m.jsonl", [sample("E")])


def test_metrics_by_hand():
    texts = (
        "<think>x</think><answer>B</answer>",
        "<answer>E. coli</answer>",
        "<think>x</think><answer>A</answer>",
        "B",
    )
    found = [TASK.judge(sample(), Completion(text=text, num_tokens=9, truncated=False)) for text in texts]
    assert TASK.metrics(found) == {"accuracy": 2 / 4, "valid_format": 2 / 4, "unparseable": 1 / 4}
