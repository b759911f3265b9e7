"""CV-Bench (arXiv:2406.16860): multiple choice, with an accuracy of two and of three dimensions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.multiple_choice import ChoiceReader, MultipleChoice
from lightning_mmrl.evaluation.tasks.published import (
    MEASURES,
    SCORED,
    numbers,
    own_and_group_sums,
    scored_statistics,
    share,
)
from lightning_mmrl.evaluation.tasks.task import Measure, Statistic, Task
from lightning_mmrl.types.records import Completion, Sample

SOURCES = ("ADE20K", "COCO", "Omni3D")
_FIRST = len(SCORED) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CVBench(Task):
    """Accuracy over all questions, and the combined one of CV-Bench.

    The columns are those that the format `cv_bench` reads. `accuracy_2d` is the mean of the accuracies on the sources
    ADE20K and COCO, `accuracy_3d` the accuracy on Omni3D, and `combined` the mean of both. One whose source is not in
    the set is left out. `by_subject` has the accuracy of each of the four tasks.

    **Deviation**: `reader` reads the choice (see `MultipleChoice`); lmms-eval takes the first letter of the answer as
    one, also that of "An apple", and VisualThinker-R1-Zero has a language model or math-verify compare texts.
    """

    reader: ChoiceReader

    kind: ClassVar[str] = "cv-bench"
    title: ClassVar[str] = "CV-Bench by stage"
    headline: ClassVar[str] = "accuracy"
    measures: ClassVar[Sequence[Measure]] = (
        *MEASURES,
        Measure(name="combined", title="combined", validated=False),
        Measure(name="accuracy_2d", title="2D", validated=False),
        Measure(name="accuracy_3d", title="3D", validated=False),
    )

    def truth(self, sample: Sample) -> str:
        """The right letter.

        Raises:
            DataError: The solution names no option, or the source is unknown.
        """
        letter, source = MultipleChoice(reader=self.reader).truth(sample), sample.extras.get("source")
        if source not in SOURCES:
            raise DataError(
                f"sample {sample.id!r} has the source {source!r}, which is none of {', '.join(SOURCES)}; correct the "
                "manifest, or give the set the task multiple_choice"
            )
        return letter

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges the choice, and notes the source."""
        self.truth(sample)
        judged = MultipleChoice(reader=self.reader).judge(sample, completion)
        sources = {name: float(name == sample.extras["source"]) for name in SOURCES}
        return replace(judged, scores={**judged.scores, **sources})

    def unit_sums(
        self, judgements: Sequence[Judgement], units: NDArray[np.int64], num_units: int
    ) -> NDArray[np.float64]:
        """Returns the sums of the scores, then the number of right answers and of all of each source, [S, 4 + 6]."""
        sums = np.zeros((num_units, 2 * len(SOURCES)))
        rows = [
            [part for name in SOURCES for part in (each.scores[name] * each.scores["accuracy"], each.scores[name])]
            for each in judgements
        ]
        np.add.at(sums, units, np.array(rows).reshape(len(rows), sums.shape[1]))
        return own_and_group_sums(judgements, units, sums)

    def statistic(self, name: str) -> Statistic:
        """Returns a metric as a function of sums."""
        return _STATISTICS[name]

    def measured(self, sums: NDArray[np.float64]) -> dict[str, float]:
        """Computes the metrics that have a value."""
        return numbers(Task.measured(self, sums))


def _of_source(name: str) -> Statistic:
    place = _FIRST + 2 * SOURCES.index(name)
    return share(place, place + 1)


def _two(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    return (_of_source("ADE20K")(sums) + _of_source("COCO")(sums)) / 2


_STATISTICS: Mapping[str, Statistic] = {
    **scored_statistics(),
    "accuracy_2d": _two,
    "accuracy_3d": _of_source("Omni3D"),
    "combined": lambda sums: (_two(sums) + _of_source("Omni3D")(sums)) / 2,
}
