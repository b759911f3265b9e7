"""SAT (arXiv:2412.07755): multiple choice, with an accuracy over all turns of the options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.multiple_choice import ChoiceReader, MultipleChoice
from lightning_mmrl.evaluation.tasks.published import (
    MEASURES,
    SCORED,
    group_sums,
    own_and_group_sums,
    scored_statistics,
    share,
)
from lightning_mmrl.evaluation.tasks.task import Measure, Statistic, Task
from lightning_mmrl.types.records import Completion, Sample

_QUESTIONS = len(SCORED) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SAT(Task):
    """Accuracy over all samples, and `circular`: the share of questions that are right in every turn of their options.

    The format `sat_circular` asks each question once for every turn of its options; under `sat` both metrics are equal.
    `by_subject` has the accuracy of each type of question. `reader` reads the choice (see `MultipleChoice`).
    """

    reader: ChoiceReader

    names_speakers: ClassVar[bool] = False
    kind: ClassVar[str] = "sat"
    title: ClassVar[str] = "SAT by stage"
    headline: ClassVar[str] = "accuracy"
    measures: ClassVar[Sequence[Measure]] = (
        *MEASURES,
        Measure(name="circular", title="circular", interval=True, validated=False),
    )

    def truth(self, sample: Sample) -> str:
        """The right letter.

        Raises:
            DataError: The solution names no option.
        """
        return MultipleChoice(reader=self.reader).truth(sample)

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges the choice."""
        return MultipleChoice(reader=self.reader).judge(sample, completion)

    def unit_sums(
        self, judgements: Sequence[Judgement], units: NDArray[np.int64], num_units: int
    ) -> NDArray[np.float64]:
        """Returns the sums of the scores, then the questions that are right in every turn and all of them, [S, 6]."""
        groups = group_sums(judgements, units, num_units, _counts, 2)
        return own_and_group_sums(judgements, units, groups)

    def statistic(self, name: str) -> Statistic:
        """Returns a metric as a function of sums."""
        return _STATISTICS[name]


def _counts(judgements: Sequence[Judgement]) -> Sequence[float]:
    return float(all(each.scores["accuracy"] >= 1 for each in judgements)), 1.0


_STATISTICS: Mapping[str, Statistic] = {**scored_statistics(), "circular": share(_QUESTIONS, _QUESTIONS + 1)}
