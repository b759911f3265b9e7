"""Reads a manifest line as a JSON object, strictly: text that two JSON readers could read differently is refused."""

import json
import math
from typing import Any, NoReturn

from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.errors import DataError

MAX_DEPTH = 50


class LineError(DataError):
    """An unusable line; `group` is the sort of fault, under which a report counts the line."""

    def __init__(self, group: str, reason: str, place: str | None = None) -> None:
        super().__init__(reason if place is None else f"{place}: {reason}")
        self.group = group
        self.reason = reason


def json_object(line: str) -> dict[str, Any]:
    """Parses the object of a line.

    Raises:
        DataError: The line is no JSON object, repeats a key, or holds NaN, an infinite number or a lone surrogate.
    """
    try:
        row = json.loads(line, object_pairs_hook=_object, parse_constant=_constant, parse_float=_number)
    except json.JSONDecodeError as error:
        fault = error.msg.removesuffix(" at")
        raise DataError(f"not valid JSON ({fault} at column {error.colno}); fix or remove the line") from error
    except RecursionError as error:
        raise DataError("not valid JSON (nested too deeply); fix or remove the line") from error
    except ValueError as error:  # Python limits the number of digits that it converts
        raise DataError("not valid JSON (a number with too many digits); fix or remove the line") from error
    if not isinstance(row, dict):
        raise DataError(f"found a {type(row).__name__}; each line must be one JSON object")
    if line.count("{") + line.count("[") > MAX_DEPTH:  # else it cannot be nested more deeply
        _check_depth(row)
    if "\\ud" in line.lower():  # lone surrogates can neither be tokenized nor written to a file
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start : error.end].encode("unicode_escape").decode("ascii")
            raise DataError(f"not valid text (the lone surrogate {half[:20]}); write the whole character") from error
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"not valid JSON (key {quoted(twice)} appears twice in one object); keep one of them")
    return row


def _constant(name: str) -> NoReturn:
    raise DataError(f"not valid JSON ({name} is no JSON number); write null where a value is missing")


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise DataError(f"not valid JSON (number {text[:40]} is too large); correct or remove it")
    return value


def _check_depth(row: dict[str, Any]) -> None:
    """Refuses objects that can be parsed, but are nested too deeply to be copied or written."""
    level: list[Any] = [row]
    for _ in range(MAX_DEPTH):
        values = [value for node in level for value in (node.values() if isinstance(node, dict) else node)]
        level = [value for value in values if isinstance(value, dict | list)]
        if not level:
            return
    raise DataError(f"nested more than {MAX_DEPTH} levels deep; flatten it")
