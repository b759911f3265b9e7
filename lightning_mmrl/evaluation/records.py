"""Judged answers, and their lines in a predictions file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.consistency import CueLexicon
from lightning_mmrl.evaluation.metrics import UNPARSED
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.types.records import Completion, Sample

COUNTED_WRONG = "_counted_wrong"
"""Suffix of metrics that count each left-out sample as a wrong answer for its true class."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The judged answer of the model for one sample.

    Attributes:
        sample_id: Id of the sample.
        speaker: Speaker of the sample, if known.
        truth: Label of the sample.
        predicted: Label that the answer names; None if it names no label.
        valid_format: Whether the completion has the right format.
        consistent: Whether the thought implies the predicted label; None without a cue lexicon.
        text: The completion with the prefill prepended.
    """

    sample_id: str
    speaker: str | None
    truth: str
    predicted: str | None
    valid_format: bool
    consistent: bool | None
    text: str

    def to_json(self) -> str:
        """One line of JSON, ASCII, without the line break."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Prediction":
        """Reads a line that `to_json` wrote.

        Raises:
            DataError: The line is not a JSON object with exactly these keys.
        """
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DataError(f"a prediction is not JSON ({error}): {line[:80]!r}") from error
        expected = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or values.keys() != expected:
            found = sorted(values) if isinstance(values, dict) else type(values).__name__
            raise DataError(f"a prediction needs the keys {sorted(expected)}, found {found}")
        return cls(**values)


def judge(
    sample: Sample, completion: Completion, matcher: LabelMatcher, lexicon: CueLexicon | None = None
) -> Prediction:
    """Judges format, label and consistency of one completion.

    A completion is consistent if its answer names the label that the cues of its thought imply. A thought without a cue
    for each channel implies no label.

    Raises:
        DataError: The sample's solution is missing or names no label.
    """
    truth = matcher.truth(sample)
    scanned = scan(completion.text)
    predicted = None if scanned.answer is None else matcher.match(scanned.answer)
    consistent = None
    if lexicon is not None:
        implied = None if scanned.think is None else lexicon.implied_label(scanned.think)
        consistent = predicted is not None and implied == predicted
    return Prediction(
        sample_id=sample.id,
        speaker=sample.speaker,
        truth=truth,
        predicted=predicted,
        valid_format=scanned.valid,
        consistent=consistent,
        text=completion.text,
    )


def class_indices(
    predictions: Sequence[Prediction], labels: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and predicted class indices, each [N]; -1 is an unparsed prediction.

    Raises:
        DataError: A label is not one of `labels`.
    """
    index: dict[str | None, int] = {label: position for position, label in enumerate(labels)}
    for each in predictions:
        if each.truth not in index or (each.predicted is not None and each.predicted not in index):
            raise DataError(
                f"prediction {each.sample_id!r} has truth {each.truth!r} and prediction {each.predicted!r}; "
                f"both must be among {list(labels)}"
            )
    index[None] = UNPARSED
    truth = np.array([index[each.truth] for each in predictions], dtype=np.int64)
    return truth, np.array([index[each.predicted] for each in predictions], dtype=np.int64)
