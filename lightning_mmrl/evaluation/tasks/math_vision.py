"""MATH-Vision (arXiv:2402.14804): the letter or the value of an option, or a value in LaTeX."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lightning_mmrl.evaluation.latex_value import value_of
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

_PHRASES = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
_REMOVED = (
    *((" ", ""), ("\\,", ""), ("\u221e", "\\infty"), ("+\\infty", "\\infty"), ("\\\\", "\\"), ("\n", "")),
    *(("\\text", ""), ("\\mbox", ""), ("bmatrix", "pmatrix"), ("\\left", ""), ("\\right", "")),
    *(("^{\\circ}", ""), ("^\\circ", ""), ("{m}^3", ""), ("m^3", ""), ("{units}", ""), ("units", "")),
    *(("{km}", ""), ("km", ""), ("\\!", ""), ("tfrac", "frac"), ("dfrac", "frac"), ("\\$", ""), ("$", "")),
    *(("\\%", ""), ("{.", "{0.")),
)
"""Parts of an answer and their replacements, in the order of the published scorer."""
_WHOLE_FRACTION = re.compile(r"(-?[0-9]+)/(-?[0-9]+)")
_ROOT = re.compile(r"\\sqrt(?!\{)(.)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class MathVision(Task):
    r"""Accuracy as evaluate.py of MATH-Vision computes it.

    The columns are those that the format `math_vision` reads. The answer is the last box, what follows `the answer is`,
    or the whole text, without units and typography. It is right if it equals the solution or, for a question with
    `options`, the text of the right one: as text, as a tuple or list of values, or as a value rounded to two decimals.

    **Deviations**: values are numbers, fractions, roots, powers, products and pi; the published scorer computes all
    that latex2sympy parses, by `eval`. A completion without an answer is wrong in both.

    Raises:
        ConfigError: The reading is unknown.
    """

    reading: str = READING

    kind: ClassVar[str] = "math-vision"
    title: ClassVar[str] = "MATH-Vision by stage"
    headline: ClassVar[str] = "accuracy"
    measures: ClassVar[Sequence[Measure]] = MEASURES

    def __post_init__(self) -> None:
        check_reading(self.reading)

    def truth(self, sample: Sample) -> str:
        """The right letter or value.

        Raises:
            DataError: The solution is no letter of an option, or has neither letter nor digit.
        """
        return letter_or_answer(sample)

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges the answer."""
        truth = self.truth(sample)
        value = lettered(sample).get(truth, "")

        def score(text: str) -> Answer:
            read = stated(text)
            right = bool(read) and (equal(truth, read) or equal(value, read))
            return Answer(read=read, credit=float(right)) if read else UNREAD

        return published_judgement(sample, completion, truth=truth, reading=self.reading, score=score)


def stated(response: str) -> str:
    r"""The answer that a response states, in the normal form in which it is compared; empty if there is none.

    >>> [stated(text) for text in (r"So it is \boxed{\frac12}.", "The answer is 5 km. Yes.", "I choose (B).")]
    ['\\frac12', '5', 'b']
    """
    answer = response.strip()
    for letter in "ABCDE":
        starts = (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        if answer.endswith((f" {letter}.", f" ({letter}).")) or answer.startswith(starts):
            answer = letter
    after_is = answer.rpartition("is ")[2].rstrip(".")
    if _number(after_is) is not None:
        answer = after_is
    if "oxed{" not in answer:
        answer = _after_phrases(answer)
    elif answer.count("oxed{") > 1:
        answer = f"\\boxed{{{answer.rpartition('oxed{')[2]}"
    answer = _normal(answer)
    for opening, closing in ("()", "{}"):
        for letter in "abcde":
            answer = answer.replace(f"{opening}{letter}{closing}", letter)
    return answer.rstrip(".").lstrip(":").strip()


def equal(truth: str, answer: str) -> bool:
    r"""Whether two texts are equal: as they are, as tuples or lists of values, or as values rounded to two decimals.

    >>> [equal(*pair) for pair in (("0.5", r"\frac{1}{2}"), ("(1,2)", "(1,4/2)"), ("3.14", r"\pi"), ("", "a"))]
    [True, False, True, False]
    """
    truth, answer = truth.lower(), answer.lower()
    if not truth.strip() or not answer.strip():
        return False
    if truth.strip() == answer.strip():
        return True
    truth, answer = _computed_parts(truth), _computed_parts(answer)
    first, second = value_of(truth), value_of(answer)
    return truth == answer or (first is not None and second is not None and round(first, 2) == round(second, 2))


def _after_phrases(answer: str) -> str:
    for phrase in _PHRASES:
        for form in (phrase, phrase.replace("the", "The")):
            found = form in answer
            answer = answer.rpartition(form)[2].strip()
            if found:
                answer = answer.partition("\n")[0].partition(". ")[0]
    return answer


def _normal(answer: str) -> str:
    """The content of the box, or the whole answer, in lower case and without typography and units."""
    text = answer.lower().replace("{}", "")
    start, end = text.find("oxed{"), text.rfind("}")
    if 0 <= start < end:
        text = text[start + len("oxed{") : end]
    close = text.find("}")
    if close >= 0 and not 0 <= text.find("{") < close:
        text = text[:close]
    text = text.rpartition("=")[2].rpartition("\\approx")[2]
    for part, other in _REMOVED:
        text = text.replace(part, other)
    text = f"0{text}" if text.startswith(".") else text
    if "sqrt" in text:
        text = _braced_fractions(_ROOT.sub(r"\\sqrt{\1}", text))
    if text == "0.5":
        return "\\frac{1}{2}"
    whole = _WHOLE_FRACTION.fullmatch(text)
    is_plain = whole is not None and text == f"{int(whole[1])}/{int(whole[2])}"
    return f"\\frac{{{whole[1]}}}{{{whole[2]}}}" if whole is not None and is_plain else text


def _braced_fractions(text: str) -> str:
    r"""The text with braces around both parts of each fraction, such as `\frac12`; as it is if a part is missing."""
    first, *others = text.split("\\frac")
    if any(not other.startswith("{") and len(other) < 2 for other in others):
        return text
    parts = [first]
    for other in others:
        if other.startswith("{"):
            parts.append(other)
        else:
            below = other[1] if other[1] == "{" else f"{{{other[1]}}}"
            parts.append(f"{{{other[0]}}}{below}{other[2:]}")
    return "\\frac".join(parts)


def _computed_parts(text: str) -> str:
    """A tuple or list with the value of each of its parts; any other text as it is."""
    parts = text[1:-1].split(",")
    if len(parts) < 2 or text[0] + text[-1] not in ("()", "[]"):
        return text
    computed = [_computed(part) for part in parts]
    return text if None in computed else f"{text[0]}{','.join(map(str, computed))}{text[-1]}"


def _computed(part: str) -> str | None:
    if "infty" in part or part in ("a", "-a"):
        return part
    value = value_of(part)
    return None if value is None else str(round(value, 2))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
