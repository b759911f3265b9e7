"""Judged answers, and their lines in a predictions file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lightning_mmrl.errors import DataError

COUNTED_WRONG = "_counted_wrong"
"""Suffix of metrics that count each left-out sample as a wrong answer."""
OPTIONAL = ("scores", "subject", "num_tokens", "truncated", "completions")
"""Keys that a line lacks where its judgement has no such values, as scores of a closed label set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The judged answer of the model for one sample.

    Attributes:
        sample_id: Id of the sample.
        speaker: Speaker of the sample, if known.
        truth: The right answer, as the task reads the sample's solution.
        predicted: The answer, as the task reads it; None if the task can read no answer.
        valid_format: Whether the completion has the right format.
        consistent: Whether the thought implies the predicted label; None if the task does not judge that.
        text: The completion with the prefill prepended.
        scores: Values of all else that the task measures on a sample, by name, such as `accuracy`.
        subject: Part of the set that the sample belongs to, such as `geometry`; None if it names none.
        num_tokens: Sampled tokens of the completion; None in files of older versions.
        truncated: Whether the limit of tokens ended the completion; None in files of older versions.
        completions: The judged completions of a question that was answered several times; this judgement sums them up.
    """

    sample_id: str
    speaker: str | None
    truth: str
    predicted: str | None
    valid_format: bool
    consistent: bool | None = None
    text: str
    scores: Mapping[str, float] = field(default_factory=dict)
    subject: str | None = None
    num_tokens: int | None = None
    truncated: bool | None = None
    completions: Sequence["Judgement"] = ()

    def to_json(self) -> str:
        """Returns one line of ASCII JSON without the line break; it lacks the keys `OPTIONAL` that have no value."""
        return json.dumps(self._plain())

    def _plain(self) -> dict[str, Any]:
        values = asdict(self) | {"completions": [each._plain() for each in self.completions]}
        return {key: value for key, value in values.items() if key not in OPTIONAL or value not in (None, {}, [])}

    @classmethod
    def from_json(cls, line: str) -> "Judgement":
        """Reads a line that `to_json` wrote.

        Raises:
            DataError: The line is not a JSON object with the keys that `to_json` writes and no others.
        """
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"a prediction is not JSON ({error}): {line[:80]!r}") from error
        return cls._of(values)

    @classmethod
    def _of(cls, values: Any) -> "Judgement":
        expected = {each.name for each in fields(cls)}
        if not isinstance(values, dict) or values.keys() | set(OPTIONAL) != expected:
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise DataError(f"a prediction needs the keys {sorted(expected - set(OPTIONAL))}, found {found}")
        several = values.pop("completions", [])
        if not isinstance(several, list):
            raise DataError(f"completions of a prediction must be a list, found {type(several).__name__}")
        return cls(**values, completions=tuple(map(cls._of, several)))
