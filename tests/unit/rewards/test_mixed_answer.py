r"""Golds of several kinds, each judged by its own judge; verdicts by hand."""

import pytest

from lightning_mmrl.errors import ConfigError, RewardError
from lightning_mmrl.evaluation.tasks.mathematics import Mathematics
from lightning_mmrl.evaluation.tasks.multiple_choice import MultipleChoice
from lightning_mmrl.rewards.choice_answer import ChoiceAnswer
from lightning_mmrl.rewards.mixed_answer import MixedAnswer
from lightning_mmrl.rewards.text_answer import TextAnswer
from lightning_mmrl.types.records import Completion, Message, Sample

OPTIONS = ["12 cm", "1/2", "the red car", "7"]


def sample(solution, question="What is it?", **extras):
    return Sample(id="q", messages=(Message(role="user", content=question),), solution=solution, extras=extras)


def tagged(answer):
    return written(f"<think>so</think><answer>{answer}</answer>")


def written(text, truncated=False):
    return Completion(text=text, num_tokens=9, truncated=truncated)


@pytest.mark.parametrize(
    ("solution", "kind"),
    [
        *(("A", "choice"), ("(A)", "choice"), ("A.", "choice"), (r"$\boxed{A}$", "choice"), ("B) a red car", "choice")),
        *(("12 cm", "mathematics"), (r"$\frac{1}{2}$", "mathematics"), ("x = 5", "mathematics"), ("5", "mathematics")),
        *(("A = 12", "mathematics"), ("a", "mathematics"), ("[0, 4)", "mathematics"), ("50%", "mathematics")),
        *(("left", "text"), ("yes", "text"), ("the red car", "text"), ("AB", "text"), ("I", "mathematics")),
    ],
)
def test_the_solution_says_which_judge_reads_it(solution, kind):
    assert MixedAnswer().check_gold(sample(solution)) == kind
    assert MixedAnswer()(sample(solution), tagged(solution)) == 1.0


@pytest.mark.parametrize(
    ("solution", "letter"), [("12 cm", "A"), ("the red car", "C"), ("7", "D"), ("B", "B"), ("b", "B")]
)
def test_a_solution_among_the_options_is_a_choice(solution, letter):
    of = sample(solution, options=OPTIONS)
    assert MixedAnswer().check_gold(of) == "choice"
    assert MixedAnswer()(of, tagged(letter)) == MixedAnswer()(of, tagged(solution)) == 1.0


@pytest.mark.parametrize(
    ("answer", "earned"),
    [
        *(
            ("B", 1.0),
            ("1/2", 1.0),
            ("0.5", 1.0),
            (r"$\frac{2}{4}$", 1.0),
            ("B) 1/2", 1.0),
            ("The answer is 0.5.", 1.0),
        ),
        *(("A", 0.0), ("C", 0.0), ("12 cm", 0.0), ("0.12 m", 0.0), ("0.25", 0.0), ("B) 12 cm", 0.0), ("B or 0.5", 0.0)),
        *(("A) 1/2", 0.0), ("the red car", 0.0), ("not 1/2", 0.0), ("", 0.0)),
    ],
)
def test_a_choice_may_be_answered_by_its_value_but_not_by_two_choices(answer, earned):
    assert MixedAnswer()(sample("B", options=OPTIONS), tagged(answer)) == earned


def test_the_value_of_an_option_that_is_no_mathematics_is_its_text_alone():
    of = sample("C", options=OPTIONS)
    answers = ("The red car.", "red car", "car", "red", "7")
    assert [MixedAnswer()(of, tagged(answer)) for answer in answers] == [1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("solution", [None, "", "...", "?"])
def test_only_a_blank_solution_is_unreadable(solution):
    with pytest.raises(RewardError, match=r"^sample 'q' has the solution .*; write the text of the answer$"):
        MixedAnswer().check_gold(sample(solution))


@pytest.mark.parametrize(
    ("answer", "earned"),
    [
        *(("left", 1.0), ("LEFT.", 1.0), ("It is left.", 1.0), ("**left**", 1.0), (r"$\text{left}$", 1.0)),
        *(
            ("not left", 0.0),
            ("left or right", 0.0),
            ("right", 0.0),
            ("left?", 0.0),
            ("to the left", 1.0),
            ("to the right", 0.0),
            ("", 0.0),
        ),
    ],
)
def test_texts_by_hand(answer, earned):
    assert TextAnswer()(sample("left"), tagged(answer)) == earned


@pytest.mark.parametrize(
    ("steps", "text", "letter"),
    [
        (("letter",), "Since the car is red and small, B fits", None),
        (("letter", "lone_letter"), "Since the car is red and small, B fits", "B"),
        (("lone_letter",), "The bad cab", None),
        (("lone_letter",), "A red car, so B", "B"),
        (("lone_letter",), "A and B are close, so B", None),
        (("lone_letter",), "It is not B", None),
        (("last_letter",), "A is far. B is near. So it is B", "B"),
        (("last_letter",), "A is far. So it is B or C", None),
        (("last_letter",), "It is A. It is not B", None),
        (("last_letter",), "No letter at all", None),
        (("last_letter",), "So C. I hope this helps!", "C"),
        (("text",), "The red car", "C"),
        (("text",), "B", None),
        (("text", "last_letter"), "7", "D"),
    ],
)
def test_steps_by_hand(steps, text, letter):
    judge = ChoiceAnswer(steps=steps, reading="tag_or_text")
    assert judge.choice(sample("A", options=OPTIONS), written(text)) == letter


def test_a_letter_beside_the_text_of_another_option_names_none():
    of = sample("C", options=OPTIONS)
    assert [ChoiceAnswer()(of, tagged(answer)) for answer in ("C) the red car", "C", "C) 1/2")] == [1.0, 1.0, 0.0]
    unknown = sample("C")
    assert ChoiceAnswer()(unknown, tagged("C) 1/2")) == 1.0, "without options nothing speaks against it"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((), "name at least one"),
        (("text", "text"), "each once"),
        (("leter",), r"^steps has 'leter'; did you mean 'letter'\?"),
    ],
)
def test_steps_that_cannot_be_taken_are_refused(steps, message):
    with pytest.raises(ConfigError, match=message):
        MixedAnswer(steps=steps)


def test_the_published_orders_differ_where_the_papers_do():
    """MM-Eureka reads one lone letter, VisualThinker-R1-Zero the last one, and the default neither."""
    text = "The first picture, A, is larger. I see the second one, so my choice would have to be B"
    orders = (("text", "letter"), ("letter", "lone_letter"), ("text", "last_letter"))
    judges = [MixedAnswer(steps=steps, reading="tag_or_text") for steps in orders]
    assert [judge(sample("B"), written(text)) for judge in judges] == [0.0, 0.0, 1.0]
    lone = "I see the second one, so my choice would have to be B"
    assert [judge(sample("B"), written(lone)) for judge in judges] == [0.0, 1.0, 1.0]


@pytest.mark.parametrize("reading", ["tag", "boxed", "tag_or_boxed"])
def test_an_evaluation_reads_where_its_judge_reads(reading):
    text = r"<think>so</think>It is $\boxed{A}$."
    choice = MultipleChoice(reader=ChoiceAnswer(reading=reading)).judge(sample("A"), written(text))
    answer = Mathematics(verifier=MixedAnswer(reading=reading)).judge(sample("A"), written(text))
    reads = reading != "tag"
    assert (choice.predicted == "A", choice.valid_format) == (reads, reads)
    assert (answer.predicted, answer.valid_format) == ("A" if reads else None, reads)
    assert choice.scores["accuracy"] == answer.scores["accuracy"] == float(reads)


def test_prose_of_choices_refuses_contradictions_too():
    judge = ChoiceAnswer(reading="prose")
    assert [
        judge(sample("B"), written(text)) for text in ("It is B.", "It is A. It is B.", "It is B. So it is B.")
    ] == [
        1.0,
        0.0,
        1.0,
    ]
