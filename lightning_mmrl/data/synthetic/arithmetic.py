"""A text task on digits such as "What is 3 + 4 - 2?"; validation and test share no problem with another split."""

from functools import lru_cache
from itertools import product

from lightning_mmrl.data.synthetic.task import Plan, Problem, Task, random_stream

LABELS = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
NUM_HELD_OUT = 36
"""Number of problems per result that only the validation split uses; the test split has as many of its own."""

DigitProblem = tuple[int, str, int, str, int]


def compose(plan: Plan) -> Problem:
    """Pose a problem whose result is the label; a split repeats problems only after it has used all of them."""
    problems = problems_of(plan.label, plan.split)
    order = random_stream(plan.task, plan.seed, int(plan.label)).permutation(len(problems))
    a, first, b, second, c = problems[order[plan.serial % len(problems)]]
    between = _result(a, first, b)
    return Problem(
        question=f"What is {a} {first} {b} {second} {c}?",
        thought=f"{between} {second} {c}",
        facts={"between": between},
    )


def problems_of(label: str, split: str) -> tuple[DigitProblem, ...]:
    """Return the problems (a, sign, b, sign, c) that a split may use for a result; the same for every seed.

    >>> len(problems_of("7", "test"))
    36
    """
    everything = _all_problems(label)
    if split == "validation":
        return everything[:NUM_HELD_OUT]
    if split == "test":
        return everything[NUM_HELD_OUT : 2 * NUM_HELD_OUT]
    return everything[2 * NUM_HELD_OUT :]


@lru_cache
def _all_problems(label: str) -> tuple[DigitProblem, ...]:
    """Return every problem with this result and no negative intermediate result, in a fixed random order."""
    found: list[DigitProblem] = []
    for a, first, b, second, c in product(range(10), "+-", range(10), "+-", range(10)):
        between = _result(a, first, b)
        if between >= 0 and _result(between, second, c) == int(label):
            found.append((a, first, b, second, c))
    order = random_stream("arithmetic problems", 0, int(label)).permutation(len(found))
    return tuple(found[index] for index in order)


def _result(a: int, sign: str, b: int) -> int:
    return a + b if sign == "+" else a - b


ARITHMETIC = Task(name="arithmetic", labels=LABELS, compose=compose)
"""Sums and differences of three digits as text; the label is the result."""
