"""Columns by which files of published benchmarks are recognised, before the formats whose columns they share."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_mmrl.data.formats.storage import Peek
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.schema import LineError

COLUMNS: Mapping[str, frozenset[str]] = {
    "mathvista": frozenset({"pid", "question", "question_type", "answer_type", "metadata"}),
    "mathverse": frozenset({"problem_index", "problem_version", "question_type", "answer"}),
    "math_vision": frozenset({"question", "answer", "level", "subject", "image"}),
    "mmmu": frozenset({"id", "question", "options", "question_type", "topic_difficulty"}),
    "we_math": frozenset({"ID", "key", "option", "knowledge concept", "answer"}),
    "cv_bench": frozenset({"type", "task", "question", "choices", "answer", "source"}),
    "mme_emotion": frozenset({"video_id", "label", "label_set"}),
}
"""Format to columns that each of its rows has; no row has the columns of two."""


def benchmark_of(peek: Peek) -> str | None:
    """The benchmark whose columns a source has; None if it has those of none."""
    return next((name for name, columns in COLUMNS.items() if columns <= peek.row.keys()), None)


def option_texts(value: Any, column: str) -> list[str]:
    """The texts of the options in a column; empty without any.

    Raises:
        LineError: The value is no list of texts.
    """
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(each, str | int | float) for each in value):
        raise LineError("options", f"{column!r} is {quoted(value)}; it must be a list of the options' texts")
    return [str(each) for each in value]


def with_options(asked: str, options: Sequence[str]) -> str:
    r"""A question with its lettered options below, one on each line.

    >>> with_options("Which?", ["red", "blue"])
    'Which?\n(A) red\n(B) blue'
    """
    return "\n".join([asked, *(f"({chr(ord('A') + place)}) {text}" for place, text in enumerate(options))])
