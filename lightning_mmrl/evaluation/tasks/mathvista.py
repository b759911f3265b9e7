"""MathVista (arXiv:2310.02255): an integer, a number of a given precision, a list, or the text of an option."""

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
    edit_distance,
    lettered,
    published_judgement,
    refused,
)
from lightning_mmrl.evaluation.tasks.task import Measure, Task
from lightning_mmrl.prompts.answers import readings
from lightning_mmrl.prompts.reading import check_reading
from lightning_mmrl.types.records import Completion, Sample

TYPES = ("integer", "float", "list")
MAX_CHARACTERS = 256
"""Characters of an answer that is compared with options; a longer one names none."""
_IN_BRACKETS = re.compile(r"\(([a-zA-Z])\)")
_NUMBER = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class MathVista(Task):
    """Accuracy as calculate_score.py of MathVista computes it.

    The columns are those that the format `mathvista` reads. A question with `options` is right if the answer is a
    letter in brackets or alone, or else if its text is nearer to the right option than to any other by edit distance.
    Without options, `answer_type` says how it is compared: as an integer (cut off), as a number rounded to `precision`
    decimals, or as the text of a list.

    **Deviations**: no language model extracts the answer. In its place stand rules: the bare statement of a letter, an
    option or a number (`prompts.answers.readings`), the column `unit`, dollar and percent signs and commas in numbers
    are left out, and then the only number of the answer. A completion without an answer, or with one of more than 256
    characters for options, is wrong; the published scorer takes the option nearest to nothing, which is a guess.

    Raises:
        ConfigError: The reading is unknown.
    """

    reading: str = READING

    kind: ClassVar[str] = "mathvista"
    title: ClassVar[str] = "MathVista by stage"
    headline: ClassVar[str] = "accuracy"
    measures: ClassVar[Sequence[Measure]] = MEASURES

    def __post_init__(self) -> None:
        check_reading(self.reading)

    def truth(self, sample: Sample) -> str:
        """The text of the right option, or the right answer as text.

        Raises:
            DataError: The solution is no option, or none of its type.
        """
        options, solution = lettered(sample), sample.solution or ""
        if options:
            if solution not in options.values():
                raise refused(sample, f"text of one of the options {list(options.values())}")
            return solution
        kind = sample.extras.get("answer_type")
        if kind not in TYPES or normalized(solution, str(kind), _precision(sample)) is None:
            raise refused(sample, f"answer of the answer_type {kind!r} (one of {', '.join(TYPES)})")
        return solution

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges the answer."""
        truth, options = self.truth(sample), lettered(sample)

        def score(text: str) -> Answer:
            if options:
                read = option_of(text, options)
            else:
                unit = str(sample.extras.get("unit") or "")
                read = value_of(text, str(sample.extras["answer_type"]), _precision(sample), unit)
            return UNREAD if read is None else Answer(read=read, credit=float(read == truth))

        return published_judgement(sample, completion, truth=truth, reading=self.reading, score=score)


def option_of(text: str, options: Mapping[str, str]) -> str | None:
    """The option that an answer names or is nearest to; None for an answer that is blank or too long.

    >>> [option_of(text, {"A": "red", "B": "blue"}) for text in ("(b) blue", "The answer is B.", "blew", " ")]
    ['blue', 'blue', 'blue', None]
    """
    text = text.strip()
    if not text or len(text) > MAX_CHARACTERS:
        return None
    in_brackets = _IN_BRACKETS.findall(text)
    if in_brackets:
        text = in_brackets[0].upper()
    for _, rest in [("", text), *readings(text)]:
        if rest in options:
            return options[rest]
        if rest in options.values():
            return rest
    return min(options.values(), key=lambda option: edit_distance(text, option))


def value_of(text: str, kind: str, precision: int, unit: str = "") -> str | None:
    """The value of an answer in the form in which solutions are written; None if it has none.

    >>> [value_of(text, "float", 1) for text in ("1.24", "It is $1.2$", "about 1,200.04 cm", "7 or 8", "unknown")]
    ['1.2', '1.2', '1200.0', None, None]
    """
    for candidate in _candidates(text, unit) if kind != "list" else (text.strip(),):
        found = normalized(candidate, kind, precision)
        if found is not None:
            return found
    return None


def normalized(text: str, kind: str, precision: int) -> str | None:
    """The normal form of an extracted answer, as `normalize_extracted_answer` of MathVista gives it.

    >>> normalized("7.9", "integer", 0), normalized("0.456", "float", 2), normalized("x", "float", 2)
    ('7', '0.46', None)
    """
    if kind == "list":
        return text if text.startswith("[") and text.endswith("]") else None
    try:
        return str(int(float(text))) if kind == "integer" else str(round(float(text), precision))
    except (ValueError, OverflowError):  # no number, or no finite one
        return None


def _candidates(text: str, unit: str) -> Iterator[str]:
    """Yields the texts that may be the number, from the whole answer to its only number."""
    yield text
    for _, rest in readings(text):
        bare = rest.replace(",", "").strip("$% ")
        yield bare
        if unit and bare.endswith(unit):
            yield bare.removesuffix(unit)
    found = set(_NUMBER.findall(text.replace(",", "")))
    if len(found) == 1:
        yield found.pop()


def _precision(sample: Sample) -> int:
    """Decimals of a number; parquet files hold them as float, and none for other answers."""
    value = sample.extras.get("precision")
    return int(value) if isinstance(value, int | float) else 0
