"""Answers in the columns of a row: the two of a pair, and targets that are written from columns."""

from dataclasses import replace
from typing import Any

from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import control_token, control_token_refusal, media_tags
from lightning_mmrl.settings.data import COLUMN
from lightning_mmrl.suggestions import did_you_mean
from lightning_mmrl.types.records import Message, Sample

CHOSEN, REJECTED = "chosen", "rejected"
"""Columns of the two answers of a pair."""
SCORES = (f"{CHOSEN}_score", f"{REJECTED}_score")
"""Optional columns with the scores by which one of them was chosen."""


class RowError(DataError):
    """A row cannot be learned from; `sample_id` says which one, so that its place in the file can be found."""

    def __init__(self, message: str, sample_id: str) -> None:
        super().__init__(message)
        self.sample_id = sample_id


def pair_of(sample: Sample) -> tuple[str, str]:
    """The chosen and the rejected answer of a sample.

    Raises:
        RowError: An answer is missing, blank or no answer; both are the same; or their scores say the opposite.
    """
    chosen, rejected = (_answer(sample, side) for side in (CHOSEN, REJECTED))
    if chosen.strip() == rejected.strip():
        raise _error(sample, f"{CHOSEN!r} and {REJECTED!r} are both {quoted(chosen)}; a pair needs two answers")
    scores = [sample.extras.get(name) for name in SCORES]
    low, high = (isinstance(score, int | float) for score in scores)
    if low and high and scores[0] < scores[1]:  # type: ignore[operator]
        raise _error(
            sample,
            f"{SCORES[0]!r} {scores[0]} is below {SCORES[1]!r} {scores[1]}; exchange the answers or drop the row",
        )
    return chosen, rejected


def _answer(sample: Sample, side: str) -> str:
    """One answer of a pair, which may stand as a text or as a list of one assistant turn."""
    value: Any = sample.extras.get(side)
    if value is None:
        other = REJECTED if side == CHOSEN else CHOSEN
        hint = f"add {side!r} to the row" if other in sample.extras else "name a file of pairs"
        raise _error(sample, f"it has no {side!r} answer; {hint}")
    if isinstance(value, list):
        turn = value[0] if len(value) == 1 and isinstance(value[0], dict) else {}
        if turn.get("role") != "assistant" or not isinstance(turn.get("content"), str):
            rule = "a text or a list of one assistant turn, {role, content}; move other turns to 'messages'"
            raise _error(sample, f"{side!r} is {quoted(value)}; it must be {rule}")
        value = turn["content"]
    return _checked(sample, side, value)


def _checked(sample: Sample, column: str, text: Any) -> str:
    """A text that a model can say; the assistant turns of a row are checked alike when it is read."""
    if not isinstance(text, str):
        raise _error(sample, f"{column!r} is {quoted(text)}; it must be text")
    if not text.strip():
        raise _error(sample, f"{column!r} is blank; write an answer or drop the row")
    if token := control_token(text):
        raise _error(sample, f"{column!r} holds {control_token_refusal(token)}")
    if tags := media_tags(text):
        raise _error(sample, f"{column!r} holds the media tag <{tags[0]}>; media belong to the question: reword it")
    return text


def with_target(sample: Sample, target: str) -> Sample:
    """The sample with an answer that is written from columns of its row, see `written_targets.with_targets`.

    Raises:
        RowError: The row lacks a column, or its value is no text.
    """
    own = {"id": sample.id, "solution": sample.solution, "speaker": sample.speaker, "split": sample.split}
    columns = {name: value for name, value in {**sample.extras, **own}.items() if value is not None}
    for name in COLUMN.findall(target):
        if name not in columns:
            raise _error(sample, f"it has no {name!r}, which {target!r} asks for{did_you_mean(name, list(columns))}")
    texts = {name: _written(sample, name, columns[name]) for name in COLUMN.findall(target)}
    answer = COLUMN.sub(lambda found: texts[found[1]], target)
    turns = sample.messages[:-1] if sample.messages[-1].role == "assistant" else sample.messages
    return replace(sample, messages=(*turns, Message(role="assistant", content=answer)))


def _written(sample: Sample, column: str, value: Any) -> str:
    """The text of a column; a number is written as text."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return _checked(sample, column, str(value) if is_number else value)


def _error(sample: Sample, reason: str) -> RowError:
    return RowError(f"sample {sample.id}: {reason}", sample.id)
