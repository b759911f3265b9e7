"""Judged answers, and their lines in a predictions file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from lightning_mmrl.errors import DataError

COUNTED_WRONG = "_counted_wrong"
"""Suffix of metrics that count each left-out sample as a wrong answer."""
OPTIONAL = frozenset({"scores", "subject", "num_tokens", "truncated"})
"""Keys that a line lacks if its judgement does not have them."""


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
        num_tokens: Tokens of the completion; None in files of older versions.
        truncated: Whether the limit of tokens ended the completion; None in files of older versions.
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

    def to_json(self) -> str:
        """Returns one line of ASCII JSON without the line break; it lacks the keys of `OPTIONAL` that say nothing."""
        values = {key: value for key, value in asdict(self).items() if key not in OPTIONAL or value not in (None, {})}
        return json.dumps(values)

    @classmethod
    def from_json(cls, line: str) -> "Judgement":
        """Reads a line that `to_json` wrote.

        Raises:
            DataError: The line is not a JSON object with the keys that `to_json` writes and no others.
        """
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DataError(f"a prediction is not JSON ({error}): {line[:80]!r}") from error
        expected = {each.name for each in fields(cls)}
        if not isinstance(values, dict) or values.keys() | OPTIONAL != expected:
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise DataError(f"a prediction needs the keys {sorted(expected - OPTIONAL)}, found {found}")
        return cls(**values)
