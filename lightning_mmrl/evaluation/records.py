"""Judged answers, and their lines in a predictions file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

from lightning_mmrl.errors import DataError

COUNTED_WRONG = "_counted_wrong"
"""Suffix of metrics that count each left-out sample as a wrong answer."""
OPTIONAL = "scores"
"""Key that a line lacks if its judgement has no scores, as for a closed label set."""


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
    """

    sample_id: str
    speaker: str | None
    truth: str
    predicted: str | None
    valid_format: bool
    consistent: bool | None = None
    text: str
    scores: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """Returns one line of ASCII JSON without the line break; it has no key `scores` if there are none."""
        values = asdict(self)
        if not self.scores:
            del values[OPTIONAL]
        return json.dumps(values)

    @classmethod
    def from_json(cls, line: str) -> "Judgement":
        """Reads a line that `to_json` wrote.

        Raises:
            DataError: The line is not a JSON object with exactly the keys that `to_json` writes.
        """
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"a prediction is not JSON ({error}): {line[:80]!r}") from error
        expected = {each.name for each in fields(cls)}
        if not isinstance(values, dict) or values.keys() | {OPTIONAL} != expected:
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise DataError(f"a prediction needs the keys {sorted(expected - {OPTIONAL})}, found {found}")
        return cls(**values)
