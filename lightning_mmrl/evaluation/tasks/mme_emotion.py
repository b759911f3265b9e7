"""MME-Emotion (arXiv:2508.09210): recognition of one or several labels, and the score of the reasoning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.guarded import GuardedJudge, Judge
from lightning_mmrl.evaluation.tasks.published import (
    NO_ANSWER,
    READING,
    SCORED,
    UNREAD,
    Answer,
    numbers,
    published_judgement,
    refused,
    scored_statistics,
    share,
)
from lightning_mmrl.evaluation.tasks.task import VALID_FORMAT, Measure, Statistic, Task, score_sums
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.reading import check_reading
from lightning_mmrl.types.records import Completion, Sample

_REASONING, _JUDGED = len(SCORED) + 1, len(SCORED) + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MMEEmotion(Task):
    """Recognition, and with a judge also the reasoning and CoT scores, as cal_metrics.py of MME-Emotion computes them.

    The columns are those that the format `mme_emotion` reads. `accuracy` is the mean recognition score: the number of
    right labels that the answer names, divided by the number of right labels, so 0 or 1 for a single label. Labels are
    separated by commas. With several right labels, naming all of the set earns 1, as in the published rating; with one,
    an answer must name it alone. `reasoning` is the mean value of the judge `reasoning`, from 0 to 1, over the answers
    that it judges, and `cot` the mean of both metrics. `by_subject` has the accuracy of each sub-task, where an answer
    is right if it names all labels.

    **Deviations**: labels are compared by rule, with the synonyms of `LabelMatcher`, in place of GPT-4o, and an answer
    with a word that is no label recognizes nothing. The published judge rates each step of the reasoning against clues
    in picture and sound; here any reward can stand for it, and without one there is no reasoning score. A completion
    without an answer counts as 0, where the published script leaves out answers without a rating.

    Raises:
        ConfigError: The deadline is not positive, or the reading is unknown.
    """

    reading: str = READING
    reasoning: Judge | None = None
    deadline_s: float = 60.0

    kind: ClassVar[str] = "mme-emotion"
    title: ClassVar[str] = "MME-Emotion by stage"
    headline: ClassVar[str] = "accuracy"
    measures: ClassVar[Sequence[Measure]] = (
        Measure(name="accuracy", title="recognition", interval=True),
        Measure(name="reasoning", title="reasoning", validated=False),
        Measure(name="cot", title="CoT", validated=False),
        VALID_FORMAT,
        NO_ANSWER,
    )

    def __post_init__(self) -> None:
        check_reading(self.reading)
        if not self.deadline_s > 0:
            raise ConfigError(f"deadline_s is {self.deadline_s}; it must be above 0 seconds")

    @cached_property
    def guarded(self) -> GuardedJudge | None:
        """The judge of the reasoning in its process."""
        return None if self.reasoning is None else GuardedJudge(self.reasoning, self.deadline_s)

    def truth(self, sample: Sample) -> str:
        """The right labels, separated by commas.

        Raises:
            DataError: The solution names a label outside of the column `label_set`, or that column is missing.
        """
        matcher = _matcher(sample)
        named = [matcher.match(each) if matcher else None for each in (sample.solution or "").split(",")]
        if None in named:
            raise refused(sample, f"list of labels of the label_set {sample.extras.get('label_set')!r}")
        return ", ".join(map(str, named))

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges the labels, and the reasoning if there is a judge of it."""
        truth, matcher = self.truth(sample), _matcher(sample)
        wanted = set(truth.split(", "))

        def score(text: str) -> Answer:
            parts = text.split(",") if len(wanted) > 1 else [text]
            named = [None if matcher is None else matcher.match(part) for part in parts]
            if None in named:
                return UNREAD
            return Answer(read=", ".join(map(str, named)), credit=len(wanted.intersection(named)) / len(wanted))

        judged = published_judgement(sample, completion, truth=truth, reading=self.reading, score=score)
        value = None if self.guarded is None else self.guarded(sample, completion).value
        scores = {**judged.scores, "judged": float(value is not None), "reasoning": value or 0.0}
        return replace(judged, scores=scores)

    def unit_sums(
        self, judgements: Sequence[Judgement], units: NDArray[np.int64], num_units: int
    ) -> NDArray[np.float64]:
        """Returns the sums of the scores, the sums of reasoning scores, and the number of those, [S, 6]."""
        own = score_sums(SCORED, judgements, units, num_units)
        return np.concatenate([own, score_sums(("reasoning", "judged"), judgements, units, num_units)[:, :2]], axis=1)

    def statistic(self, name: str) -> Statistic:
        """Returns a metric as a function of sums."""
        return _STATISTICS[name]

    def measured(self, sums: NDArray[np.float64]) -> dict[str, float]:
        """Computes the metrics that have a value."""
        return numbers(Task.measured(self, sums))


def _matcher(sample: Sample) -> LabelMatcher | None:
    """Reads the labels of a sample's set; None if it has none."""
    labels = sample.extras.get("label_set")
    return LabelMatcher(labels=tuple(map(str, labels))) if isinstance(labels, list | tuple) and labels else None


_RECOGNIZED, _REASONED = share(0, len(SCORED)), share(_REASONING, _JUDGED)
_STATISTICS: Mapping[str, Statistic] = {
    **scored_statistics(),
    "reasoning": _REASONED,
    "cot": lambda sums: (_RECOGNIZED(sums) + _REASONED(sums)) / 2,
}
