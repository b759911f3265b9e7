"""A task for a bridge from a model that sees to one that reasons: dots in pictures, and descriptions of such pictures.

- `dots`: a picture of up to nine dots and the question how many they are; the column `description` counts each color.
- `text`: a description and the same question, without a picture. Its thoughts are as a writer has who only reads.
  One third of them say that he cannot see and one third look twice, so that a bridge has phrases to replace, traces to
  leave out, and traces of several lengths.

No arrangement of dots is in a held-out split and in another split. All 55 descriptions are in all splits.
"""

from dataclasses import replace

from lightning_mmrl.data.synthetic import arithmetic
from lightning_mmrl.data.synthetic.counting import QUESTION
from lightning_mmrl.data.synthetic.numbers import DOTS, TEXT, compose_dots
from lightning_mmrl.data.synthetic.pictures import save_png
from lightning_mmrl.data.synthetic.task import Medium, Plan, Problem, Task

THOUGHTS = (
    "the description shows {sum}",
    "the description shows {sum}. wait, {sum}",
    "I cannot see it, but the description shows {sum}",
)


def compose(plan: Plan) -> Problem:
    """Draw dots, or describe some in text."""
    return _compose_text(plan) if plan.question_type == TEXT else _compose_picture(plan)


def description_of(red: int, blue: int) -> str:
    """Describe a picture.

    >>> description_of(3, 4)
    '3 red and 4 blue dots.'
    """
    return f"{red} red and {blue} blue dots."


def _compose_picture(plan: Plan) -> Problem:
    problem = compose_dots(plan)
    described = {"description": description_of(problem.facts["red"], problem.facts["blue"])}
    return replace(problem, facts={**problem.facts, **described})


def _compose_text(plan: Plan) -> Problem:
    total = int(plan.label)
    red = int(plan.generator().integers(total + 1))
    description = description_of(red, total - red)
    return Problem(
        question=f"{description}\n\n{QUESTION.removeprefix('<image>')}",
        thought=THOUGHTS[plan.serial % len(THOUGHTS)].format(sum=f"{red} + {total - red}"),
        facts={"red": red, "blue": total - red, "description": description},
    )


DESCRIBED = Task(
    name="described",
    labels=arithmetic.LABELS,
    compose=compose,
    medium=Medium(column="images", suffix=".png", save=save_png),
    kinds={DOTS: arithmetic.LABELS, TEXT: arithmetic.LABELS},
    sizes={"cold_start": 2400, "train": 1600, "validation": 360, "test": 720},
)
"""Dots as PNG files and descriptions as text in equal parts; the label is the number of dots."""
