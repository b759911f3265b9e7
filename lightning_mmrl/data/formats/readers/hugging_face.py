"""TRL and Hugging Face datasets: `messages` or `prompt` with content parts, beside `images`, `videos` and `audios`.

A pair of answers has `chosen` and `rejected` beside its prompt. Both may also be conversations that begin with the
prompt. A prompt of pairs may stand in `question` as well.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_mmrl.data.answer_columns import CHOSEN, REJECTED, SCORES
from lightning_mmrl.data.formats.assembly import Reading, Turns, assembled, gold, last_answer, text_of
from lightning_mmrl.data.formats.chat import chat_turns, first_turn, question, with_system
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.benchmark_columns import benchmark_of
from lightning_mmrl.data.formats.readers.protocol import ColumnReader
from lightning_mmrl.data.formats.storage import Peek
from lightning_mmrl.data.schema import LineError

_GOLD = ("solution", "answer", "ground_truth")
_PAIR = (CHOSEN, REJECTED)
_OTHERS = ("messages", "conversations", "query", "instruction", "problem")
_SCORES: Mapping[str, str] = {f"score_{side}": name for side, name in zip(_PAIR, SCORES, strict=True)}


def _recognised(peek: Peek) -> bool:
    if "reward_model" in peek.row or "message" in peek.row or benchmark_of(peek) is not None:
        return False
    has_pair = all(side in peek.row for side in _PAIR) and peek.lacks(*_OTHERS)
    if peek.storage in ("parquet", "arrow"):
        return has_pair or not peek.lacks("messages", "prompt")
    has_parts = isinstance(first_turn(peek.row).get("content"), list)
    return peek.storage in ("lines", "array") and (has_parts or has_pair or "prompt" in peek.row)


def _canonical(row: Row, reading: Reading) -> Row:
    sides = {side: _conversation(row[side], side) for side in _PAIR if _is_given(row, side)}
    asked = ("messages", "prompt", "question") if sides else ("messages", "prompt")
    given = [name for name in asked if _is_given(row, name)]
    if len(given) > 1 or not (given or sides):
        found = "both " + " and ".join(map(repr, given)) if given else "neither 'messages' nor 'prompt'"
        raise LineError("messages", f"the row has {found}; it must have one of them")
    turns = _prompt(row, given[0]) if given else _shared_prompt(sides)
    answers = _answers(turns, sides)
    if _is_given(row, "completion"):
        turns = _completed(turns, row)
    answer = next((name for name in _GOLD if row.get(name) is not None), _GOLD[0])
    solution = gold(text_of(row, answer, required=False), answer, reading) or last_answer(turns)
    more = {key: row.get(key) for key in ("speaker", "split", "start", "end")} | answers
    more |= {name: row[column] for column, name in _SCORES.items() if answers and _is_given(row, column)}
    used = {*given, "completion", "system", answer, *(_SCORES if answers else ())}
    return assembled(row, reading, with_system(turns, row), used=used, solution=solution, more=more)


def _is_given(row: Row, column: str) -> bool:
    return row.get(column) not in (None, "", [])


def _prompt(row: Row, column: str) -> Turns:
    if column == "question":
        return question(text_of(row, column) or "", column)
    return chat_turns(row[column], column)


def _conversation(value: Any, column: str) -> Turns:
    """The turns of one side of a pair, which end with its answer; a text is the answer alone."""
    turns = chat_turns([{"role": "assistant", "content": value}] if isinstance(value, str) else value, column)
    if turns.messages[-1]["role"] != "assistant":
        raise LineError("messages", f"{column!r} does not end with an assistant turn; add the answer or drop the row")
    return turns


def _shared_prompt(sides: Mapping[str, Turns]) -> Turns:
    """The prompt of a pair without a prompt of its own: the turns with which both of its sides begin."""
    if missing := [side for side in _PAIR if side not in sides]:
        raise LineError("messages", f"{missing[0]!r} is missing or empty; add the answer or drop the row")
    chosen, rejected = (sides[side] for side in _PAIR)
    if len(chosen.messages) < 2 or len(rejected.messages) < 2:
        raise LineError("messages", "the row has answers and no prompt; add the column 'prompt' or 'messages'")
    _check_alike(chosen.messages[:-1], rejected.messages[:-1], "'chosen' and 'rejected' begin")
    return Turns(column=chosen.column, messages=chosen.messages[:-1], media=chosen.media)


def _answers(prompt: Turns, sides: Mapping[str, Turns]) -> dict[str, str]:
    """The texts of the answers; turns before an answer must be the prompt."""
    for side, turns in sides.items():
        if turns.messages[:-1]:
            _check_alike(prompt.messages, turns.messages[:-1], f"{prompt.column!r} and {side!r} begin")
    return {side: turns.messages[-1]["content"] for side, turns in sides.items()}


def _check_alike(first: Sequence[Mapping[str, str]], second: Sequence[Mapping[str, str]], what: str) -> None:
    if list(first) != list(second):
        raise LineError("messages", f"{what} with different turns; a pair answers one prompt: correct or drop the row")


def _completed(turns: Turns, row: Row) -> Turns:
    """The turns of a prompt and of its completion."""
    value = row["completion"]
    last = chat_turns([{"role": "assistant", "content": value}] if isinstance(value, str) else value, "completion")
    if last.media:
        raise LineError("media entries", "'completion' holds media; an answer is text")
    return Turns(column=turns.column, messages=[*turns.messages, *last.messages], media=turns.media)


HUGGING_FACE = ColumnReader(
    name="hugging_face",
    layout="parquet or arrow: messages or prompt (text, turns or content parts); images, videos, audios; solution; "
    "chosen and rejected",
    recognised=_recognised,
    canonical=_canonical,
)
