"""The task of naming one label of a closed set: WAR, UAR, F1, recalls, and whether the thought fits the label."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.consistency import CueLexicon
from lightning_mmrl.evaluation.figures import save_confusion_figure
from lightning_mmrl.evaluation.metrics import UNPARSED, macro_f1, per_class_recall, uar, war, weighted_f1
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import VALID_FORMAT, Measure, Statistic, Task
from lightning_mmrl.prompts.answers import question_of
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.reading import check_reading, find_answer
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.types.records import Completion, Sample

RECOGNITION = {"war": war, "uar": uar, "macro_f1": macro_f1, "weighted_f1": weighted_f1}
WITH_CUES = ("consistency", "grounded")
"""Metrics of a task with cue phrases."""
COUNTS = ("valid_format", "consistent", "judged", "grounded")
"""Counts that follow the confusion matrix in the sums."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLabels(Task):
    """The answer names one label of a closed set, as `LabelMatcher` reads it; `prompts.reading` explains `reading`.

    The metrics are R1-Omni's (arXiv:2503.05379, table 2), weighted F1, which the MER challenges rank by, macro F1, and
    the recall of each label that occurs. An answer that names no label, or several, is wrong in all of them.

    `cue_lexicon` is the path of a file of cue phrases (`CueLexicon`). With it, `consistency` is the share of answers
    whose label the thought implies, and `grounded` is the share of answers that are consistent and right.

    Raises:
        DataError: The file of cue phrases cannot be read; raised on first use.
    """

    labels: Sequence[str]
    synonyms: Mapping[str, str] | None = None
    cue_lexicon: str | None = None
    reading: str = "tag"

    kind: ClassVar[str] = "emotion-recognition"
    title: ClassVar[str] = "Recognition by stage"
    headline: ClassVar[str] = "uar"
    measures: ClassVar[Sequence[Measure]] = (
        Measure(name="war", title="WAR", interval=True),
        Measure(name="uar", title="UAR", interval=True),
        Measure(name="macro_f1", title="macro F1", interval=True, validated=False, in_table=False),
        Measure(name="weighted_f1", title="weighted F1", interval=True, validated=False, in_table=False),
        VALID_FORMAT,
        Measure(name="unparseable", title="unparseable", validated=False, in_table=False, on_card=False),
        Measure(name="consistency", title="consistency"),
        Measure(name="grounded", title="grounded", in_table=False, on_card=False),
    )

    def __post_init__(self) -> None:
        check_reading(self.reading)
        object.__setattr__(self, "labels", tuple(self.labels))
        _ = self.matcher  # refuses labels that cannot be told apart

    @cached_property
    def matcher(self) -> LabelMatcher:
        """Reads labels."""
        return LabelMatcher(labels=self.labels, synonyms=self.synonyms)

    @cached_property
    def lexicon(self) -> CueLexicon | None:
        """The cue phrases, if there are any."""
        return None if self.cue_lexicon is None else CueLexicon.from_file(self.cue_lexicon)

    def truth(self, sample: Sample) -> str:
        """The sample's label.

        Raises:
            DataError: The solution is missing or names no label.
        """
        return self.matcher.truth(sample)

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges format, label and consistency.

        A completion is consistent if its answer names the label that the cues of its thought imply. A thought without a
        cue for each channel implies no label.
        """
        truth, found = self.truth(sample), find_answer(completion, self.reading, question_of(sample))
        predicted = None if found.text is None else self.matcher.match(found.text)
        consistent = None
        if self.lexicon is not None:
            implied = None if found.think is None else self.lexicon.implied_label(found.think)
            consistent = predicted is not None and implied == predicted
        return Judgement(
            sample_id=sample.id,
            speaker=sample.speaker,
            truth=truth,
            predicted=predicted,
            valid_format=found.valid,
            consistent=consistent,
            text=completion.text,
        )

    def named_senses(self, judgement: Judgement) -> frozenset[str] | None:
        """The senses whose cues the thought names; none without a thought, and None without cue phrases."""
        if self.lexicon is None:
            return None
        think = scan(judgement.text).think
        return frozenset() if think is None else self.lexicon.named_senses(think)

    def rightness(self, judgement: Judgement) -> float:
        """1 if the answer names the sample's label, else 0."""
        return float(judgement.predicted == judgement.truth)

    def check(self, manifest: str, samples: Sequence[Sample]) -> None:
        """Refuses samples without a label of the set, and cue phrases that cannot be read."""
        _ = self.lexicon
        Task.check(self, manifest, samples)

    def metric_names(self) -> Sequence[str]:
        """The metrics, and the recall of each label."""
        left_out = () if self.cue_lexicon else WITH_CUES
        names = [each.name for each in self.measures if each.name not in left_out]
        return [*names, *(f"recall/{label}" for label in self.labels)]

    def unit_sums(
        self, judgements: Sequence[Judgement], units: NDArray[np.int64], num_units: int
    ) -> NDArray[np.float64]:
        """Returns the flattened confusion matrix and the `COUNTS` of each unit, [S, K (K + 1) + 4].

        Raises:
            DataError: A label is not one of the set.
        """
        truth, predicted = class_indices(judgements, self.labels)
        size = len(self.labels)
        counts = np.zeros((num_units, size, size + 1))
        np.add.at(counts, (units, truth, np.where(predicted == UNPARSED, size, predicted)), 1)
        rows = [
            (
                each.valid_format,
                each.consistent is True,
                each.consistent is not None,
                each.consistent is True and each.predicted == each.truth,
            )
            for each in judgements
        ]
        more = np.zeros((num_units, len(COUNTS)))
        np.add.at(more, units, np.array(rows, dtype=np.float64).reshape(len(rows), len(COUNTS)))
        return np.concatenate([counts.reshape(num_units, -1), more], axis=1)

    def confusion(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """The confusion matrices of sums, [..., D] to [..., K, K + 1]."""
        size = len(self.labels)
        return sums[..., : -len(COUNTS)].reshape(*sums.shape[:-1], size, size + 1)

    def statistic(self, name: str) -> Statistic:
        """WAR, UAR, macro or weighted F1 as a function of sums."""
        return lambda sums: RECOGNITION[name](self.confusion(sums))

    def measured(self, sums: NDArray[np.float64]) -> dict[str, float]:
        """Fractions in [0, 1]: those of `RECOGNITION`, `valid_format`, `unparseable` and `recall/<label>`.

        `consistency` and `grounded` (the label is right and the thought implies it) exist if the answers were judged
        with a cue lexicon. A class that is never the truth has no recall. Without answers, all fractions are NaN.
        """
        confusion, counts = self.confusion(sums), dict(zip(COUNTS, map(int, sums[-len(COUNTS) :]), strict=True))
        total = int(confusion.sum())
        values = {name: float(formula(confusion)) for name, formula in RECOGNITION.items()}
        values["valid_format"] = _fraction(counts["valid_format"], total)
        values["unparseable"] = _fraction(int(confusion[:, -1].sum()), total)
        if judged := counts["judged"]:
            values["consistency"] = _fraction(counts["consistent"], judged)
            values["grounded"] = _fraction(counts["grounded"], judged)
        recalls = zip(self.labels, per_class_recall(confusion), confusion.sum(-1), strict=True)
        return values | {f"recall/{label}": float(recall) for label, recall, support in recalls if support}

    def save_figure(self, judgements: Sequence[Judgement], path: Path, title: str) -> None:
        """Draws the confusion matrix."""
        sums = self.unit_sums(judgements, np.zeros(len(judgements), dtype=np.int64), 1)[0]
        save_confusion_figure(self.confusion(sums), self.labels, path, title)

    def described(self) -> dict[str, Any]:
        """Returns nothing, because a result that names no task counts as a result of a closed label set."""
        return {}


def class_indices(
    judgements: Sequence[Judgement], labels: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """True and predicted class indices, each [N]; -1 is an unparsed prediction.

    Raises:
        DataError: A label is not one of `labels`.
    """
    index: dict[str | None, int] = {label: position for position, label in enumerate(labels)}
    for each in judgements:
        if each.truth not in index or (each.predicted is not None and each.predicted not in index):
            raise DataError(
                f"prediction {each.sample_id!r} has truth {each.truth!r} and prediction {each.predicted!r}; "
                f"both must be among {list(labels)}"
            )
    index[None] = UNPARSED
    truth = np.array([index[each.truth] for each in judgements], dtype=np.int64)
    return truth, np.array([index[each.predicted] for each in judgements], dtype=np.int64)


def _fraction(part: int, total: int) -> float:
    return part / total if total else float("nan")
