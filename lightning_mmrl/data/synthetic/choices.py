"""Multiple choice for generated tasks: options in random order, with letters or without."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from lightning_mmrl.data.synthetic.task import Plan

Choice = TypeVar("Choice")

LETTERS = ("A", "B", "C", "D")


def shuffled(right: str, wrong: Sequence[str], letter: str, rng: np.random.Generator) -> list[str]:
    """Return the options in random order, except that the right one has the given letter.

    >>> shuffled("left", ["right"], "B", np.random.default_rng(0))
    ['right', 'left']
    """
    options = [wrong[int(place)] for place in rng.permutation(len(wrong))]
    options.insert(LETTERS.index(letter), right)
    return options


def lettered(question: str, options: Sequence[str]) -> str:
    r"""Return a question with a line for each option.

    >>> lettered("Where?", ["left", "right"])
    'Where?\nA) left\nB) right'
    """
    return "\n".join([question, *(f"{letter}) {text}" for letter, text in zip(LETTERS, options, strict=False))])


def listed(question: str, options: Sequence[str]) -> str:
    """Return a question with its options in one sentence, as an answer that names no letter needs them.

    >>> listed("Where?", ["left", "right", "above"])
    'Where? left, right or above?'
    """
    return f"{question} {', '.join(options[:-1])} or {options[-1]}?"


def in_turn(plan: Plan, choices: Sequence[Choice]) -> Choice:
    """Return one of several choices, such as texts of the right option: each equally often for each kind and letter."""
    return choices[plan.serial % len(choices)]
