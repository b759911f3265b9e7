"""Writes and reads tables of sampled rollouts, with one JSON line per prompt.

Reading a table needs no torch, so rewards can be rerun on it without a model.
"""

import json
import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from lightning_mmrl.errors import DataError
from lightning_mmrl.files import write_pieces
from lightning_mmrl.settings.algorithm import RewardSettings
from lightning_mmrl.types.records import Completion, MediaKind, MediaRef, Message, Role, Sample, Score

VERSION = 2
"""Version 1 had no messages and no extras, so that rewards could not be rerun on it."""

PASS_COMPONENT = RewardSettings.pass_component

ADVANTAGE = "advantage"
"""Key that a response has if its advantage was recorded."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRow:
    """One prompt with its G responses and their scores.

    `pass_component` is the reward component that says whether a response is right. `advantages` are those that the
    responses were trained on, None for a response that did not count; all is None where they were not recorded.
    `route` is where a router sent the prompt: rl, sft or dropped; None without a router, or if the iteration did not
    train on the prompt.
    """

    sample: Sample
    completions: tuple[Completion, ...]
    scores: tuple[Score, ...]
    policy_version: int
    pass_component: str = PASS_COMPONENT
    advantages: tuple[float | None, ...] | None = None
    route: str | None = None

    @property
    def right(self) -> tuple[bool | None, ...]:
        """Whether each response is right: its `pass_component` is at least 1; None without a valid score."""
        return tuple(
            score.components.get(self.pass_component, 0.0) >= 1.0 if score.valid else None for score in self.scores
        )

    @property
    def pass_rate(self) -> float | None:
        """The fraction of right responses among the valid ones; None if none is valid."""
        judged = [right for right in self.right if right is not None]
        return sum(judged) / len(judged) if judged else None


def write_table(path: Path, rows: Iterable[RolloutRow]) -> None:
    """Writes a table to a temporary file and renames it to `path`, so a table that exists is complete."""
    write_pieces(path, (f"{json.dumps(_as_json(row))}\n".encode() for row in rows))


def table_files(table: Path) -> list[Path]:
    """The table itself, or the tables of a folder in the order of their iterations.

    Raises:
        DataError: `table` does not exist, or is a folder without tables.
    """
    if table.is_file():
        return [table]
    if not table.is_dir():
        raise DataError(f"rollout table {table} does not exist; name a .jsonl file or a stage's rollouts folder")
    files = sorted(table.glob("*.jsonl"))
    if not files:
        raise DataError(f"{table} holds no rollout table (*.jsonl); name a stage's rollouts folder")
    return files


def read_table(path: Path) -> list[RolloutRow]:
    """Returns the rows of one table as a list, see `iter_table`."""
    return list(iter_table(path))


def iter_table(path: Path, only: Container[int] | None = None) -> Iterator[RolloutRow]:
    """Yields the rows of one table, with one line of the file in memory at a time.

    Args:
        path: The table.
        only: Numbers of the rows to yield, from 0, in place of all; the others are not parsed.

    Raises:
        DataError: The file cannot be read or is empty, or a line is cut off, damaged or of another version.
    """
    number = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if only is None or number - 1 in only:
                    yield _parsed(line, f"{path} line {number}")
    except OSError as error:
        raise DataError(f"rollout table {path} cannot be read ({os.strerror(error.errno or 0)})") from error
    if not number:
        raise DataError(f"rollout table {path} is empty; take the table of another iteration")


def _as_json(row: RolloutRow) -> dict[str, Any]:
    responses = [
        {
            **asdict(completion),
            "valid": score.valid,
            "reason": score.reason,
            "failed": score.failed,
            "reward": score.total,
            "components": dict(score.components),
        }
        for completion, score in zip(row.completions, row.scores, strict=True)
    ]
    if row.advantages is not None:
        responses = [{**each, ADVANTAGE: one} for each, one in zip(responses, row.advantages, strict=True)]
    sample = row.sample
    return {
        "version": VERSION,
        "id": sample.id,
        "messages": [asdict(message) for message in sample.messages],
        "media": [asdict(ref) for ref in sample.media],
        "solution": sample.solution,
        "speaker": sample.speaker,
        "split": sample.split,
        "extras": dict(sample.extras),
        "policy_version": row.policy_version,
        "pass_component": row.pass_component,
        "pass_rate": row.pass_rate,
        **({} if row.route is None else {"route": row.route}),
        "responses": responses,
    }


def _parsed(line: bytes, place: str) -> RolloutRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{place}: not valid JSON ({error}); the table is cut off or damaged, take another iteration's"
        ) from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: found a {type(row).__name__}; each line must be one JSON object")
    version = row.get("version", 1 if "responses" in row else None)
    if version != VERSION:
        what = "no rollout table" if version is None else f"a rollout table of version {version}"
        raise DataError(
            f"{place}: this is {what}, version {VERSION} is needed; write the table again by running its stage"
        )
    responses = _each(row, "responses", place, _response)
    if not responses:
        raise DataError(f"{place}: 'responses' is empty; the table is damaged, take another iteration's")
    return RolloutRow(
        sample=Sample(
            id=_value(row, "id", str, place),
            messages=_each(row, "messages", place, _message),
            media=_each(row, "media", place, _media_ref),
            solution=_value(row, "solution", (str, type(None)), place),
            speaker=_value(row, "speaker", (str, type(None)), place),
            split=_value(row, "split", (str, type(None)), place),
            extras=_value(row, "extras", dict, place),
        ),
        completions=tuple(completion for completion, _ in responses),
        scores=tuple(score for _, score in responses),
        policy_version=_value(row, "policy_version", int, place),
        pass_component=_value(row, "pass_component", str, place),
        advantages=_advantages(row["responses"], place),
        route=_value({"route": None, **row}, "route", (str, type(None)), place),
    )


def _advantages(responses: Sequence[Mapping[str, Any]], place: str) -> tuple[float | None, ...] | None:
    if not any(ADVANTAGE in each for each in responses):
        return None
    return tuple(None if each.get(ADVANTAGE) is None else _number(each, ADVANTAGE, place) for each in responses)


def _message(entry: Mapping[str, Any], place: str) -> Message:
    role = _one_of(entry, "role", get_args(Role), place)
    return Message(role=role, content=_value(entry, "content", str, place))


def _media_ref(entry: Mapping[str, Any], place: str) -> MediaRef:
    start, end = (_value(entry, key, (int, float, type(None)), place) for key in ("start_s", "end_s"))
    kind = _one_of(entry, "kind", get_args(MediaKind), place)
    return MediaRef(kind=kind, path=_value(entry, "path", str, place), start_s=start, end_s=end)


def _response(entry: Mapping[str, Any], place: str) -> tuple[Completion, Score]:
    components = _value(entry, "components", dict, place)
    completion = Completion(
        text=_value(entry, "text", str, place),
        num_tokens=_value(entry, "num_tokens", int, place),
        truncated=_value(entry, "truncated", bool, place),
    )
    score = Score(
        total=_number(entry, "reward", place),
        components={name: _number(components, name, place) for name in components},
        valid=_value(entry, "valid", bool, place),
        reason=_value(entry, "reason", (str, type(None)), place),
        failed=_value({"failed": None, **entry}, "failed", (str, type(None)), place),
    )
    return completion, score


def _each(row: Mapping[str, Any], key: str, place: str, parse: Callable[[Any, str], T]) -> tuple[T, ...]:
    entries = _value(row, key, list, place)
    for entry in entries:
        if not isinstance(entry, dict):
            raise _damaged(place, key, entry)
    return tuple(parse(entry, f"{place}, {key}[{index}]") for index, entry in enumerate(entries))


def _number(row: Mapping[str, Any], key: str, place: str) -> float:
    value = _value(row, key, (int, float), place)
    if not -sys.float_info.max <= value <= sys.float_info.max:
        raise _damaged(place, key, value)
    return float(value)


def _one_of(row: Mapping[str, Any], key: str, choices: Sequence[Any], place: str) -> Any:
    value = _value(row, key, str, place)
    if value not in choices:
        raise _damaged(place, key, value)
    return value


def _value(row: Mapping[str, Any], key: str, kinds: type | tuple[type, ...], place: str) -> Any:
    value = row.get(key)
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    if key not in row or not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise _damaged(place, key, value)
    return value


def _damaged(place: str, key: str, value: object) -> DataError:
    return DataError(f"{place}: {key!r} is {value!r}; the table is damaged, take another iteration's")
