"""MMMU (arXiv:2311.16502): multiple choice, and open questions with numbers or short texts."""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.published import (
    MEASURES,
    READING,
    UNREAD,
    Answer,
    letter_or_answer,
    lettered,
    published_judgement,
)
from lightning_mmrl.evaluation.tasks.task import Measure, Task
from lightning_mmrl.prompts.reading import check_reading
from lightning_mmrl.types.records import Completion, Sample

_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
"""Words before the answer of an open question."""
_STRIPPED = (",", ".", "!", "?", ";", ":", "'")
_NUMBERS = tuple(
    map(
        re.compile,
        (
            r"-?\b\d{1,3}(?:,\d{3})+\b",
            r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
            r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
        ),
    )
)
"""Numbers with commas between thousands, in scientific notation, and plain ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MMMU(Task):
    """Accuracy over all questions, as eval_utils.py of MMMU computes it.

    The columns are those that the format `mmmu` reads. A question with `options` is one of multiple choice: a letter in
    brackets, a letter between spaces, or in an answer of more than five words the text of an option; the last one
    counts. An open answer is right if one of its key phrases has the text of the solution, or equals its number after
    rounding to two decimals. The solution of an open question may be the text of a list of right answers.

    **Deviation**: an answer without any option is wrong; the published scorer draws an option at random.

    Raises:
        ConfigError: The reading is unknown.
    """

    reading: str = READING

    kind: ClassVar[str] = "mmmu"
    title: ClassVar[str] = "MMMU by stage"
    headline: ClassVar[str] = "accuracy"
    measures: ClassVar[Sequence[Measure]] = MEASURES

    def __post_init__(self) -> None:
        check_reading(self.reading)

    def truth(self, sample: Sample) -> str:
        """The right letter, or the solution of an open question.

        Raises:
            DataError: The solution is no letter of an option, or has neither letter nor digit.
        """
        return letter_or_answer(sample)

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges the answer."""
        truth, options = self.truth(sample), lettered(sample)

        def score(text: str) -> Answer:
            if options:
                letter = chosen(text, options)
                return UNREAD if letter is None else Answer(read=letter, credit=float(letter == truth))
            return Answer(read=text.strip(), credit=float(is_right(truths_of(truth), stated(text))))

        return published_judgement(sample, completion, truth=truth, reading=self.reading, score=score)


def chosen(response: str, options: Mapping[str, str]) -> str | None:
    """The letter that a response chooses; None if it names no option.

    >>> [chosen(text, {"A": "red", "B": "blue"}) for text in ("(A) or (B)", "It is B .", "I think that it is the Blue")]
    ['B', 'B', 'B']
    """
    for mark in _STRIPPED:
        response = response.strip(mark)
    response = f" {response} "
    for form in ("({})", " {} "):
        places = {letter: response.rfind(form.format(letter)) for letter in options}
        if max(places.values()) >= 0:
            return max(places, key=lambda letter: places[letter])
    if len(response.split()) > 5:
        places = {letter: response.lower().rfind(text.lower()) for letter, text in options.items()}
        if max(places.values()) >= 0:
            return max(places, key=lambda letter: places[letter])
    return None


def stated(response: str) -> set[str | float]:
    """The texts and numbers that a response to an open question may state.

    >>> sorted(map(str, stated("So the area is 2.50 m")))
    ['2.5', '2.50 m']
    """
    phrases = list(_key_phrases(response))
    found = [*phrases, *(number for phrase in phrases for number in _numbers_of(phrase))]
    return {form for each in found for form in _forms(each)}


def truths_of(solution: str) -> set[str | float]:
    """The right answers of a solution, which may be the text of a list."""
    try:
        listed = ast.literal_eval(solution) if solution.startswith("[") else [solution]
    except (ValueError, SyntaxError):
        listed = [solution]
    return {form for each in listed for form in _forms(str(each))}


def is_right(truths: set[str | float], answers: set[str | float]) -> bool:
    """Whether an answer has the text of a right one, or equals its number."""
    texts = [each for each in truths if isinstance(each, str)]
    return any(any(text in each for text in texts) if isinstance(each, str) else each in truths for each in answers)


def _key_phrases(response: str) -> Iterator[str]:
    """Yields the shortest text after a key word in each line; the whole response if no line has one."""
    response = response.strip().strip(".").lower()
    lines = response.split("\n")  # the published scorer also looks for capitals after a stop, in lower case
    found = False
    for number, line in enumerate(lines, start=1):
        keys = (*_KEYS, "=") if number == len(lines) else _KEYS
        shortest = ""
        for end in (line.rpartition(key)[2].strip() for key in keys if key in line):
            if not shortest or len(end) < len(shortest):
                shortest = end
        if shortest and shortest not in _STRIPPED:
            found = True
            yield shortest
    if not found:
        yield response


def _numbers_of(text: str) -> Iterator[str]:
    for pattern in _NUMBERS:
        yield from pattern.findall(text)


def _forms(text: str) -> tuple[str | float, ...]:
    """A number rounded to two decimals, or the lower-case text; a single character must stand beside a space."""
    text = text.strip()
    try:
        return (round(float(text.replace(",", "")), 2),)
    except ValueError:
        text = text.lower()
        return (f" {text}", f"{text} ") if len(text) == 1 else (text,)
