"""The base of all tasks: a task says how an answer is judged, which metrics follow, and what is reported of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.metrics import ratio
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.types.records import Completion, Sample

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""Maps sums over samples, [..., D], to the value of a metric, [...]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One metric of a task, and where it is shown; only the recalls of single labels are metrics without a `Measure`.

    Attributes:
        name: Key of the metric.
        title: Name for humans, such as a table's column.
        interval: Whether it has a bootstrap interval.
        validated: Whether validations report it, and evaluations add a second value that counts left-out samples as
            wrong.
        in_table: Whether tables of results show it.
        on_card: Whether model cards show it.
    """

    name: str
    title: str
    interval: bool = False
    validated: bool = True
    in_table: bool = True
    on_card: bool = True


VALID_FORMAT = Measure(name="valid_format", title="valid format")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanScore:
    """A headline that is the mean of the score with its name, for readers of results that cannot build the task."""

    headline: str

    def unit_sums(
        self, judgements: Sequence[Judgement], units: NDArray[np.int64], num_units: int
    ) -> NDArray[np.float64]:
        """Sums of the score and numbers of samples of each unit, [S, 2].

        Raises:
            DataError: A judgement has no such score.
        """
        sums = np.zeros((num_units, 2))
        np.add.at(sums, units, np.array([[_score(each, self.headline), 1.0] for each in judgements]))
        return sums

    def statistic(self, name: str) -> Statistic:
        """The mean; NaN without samples."""
        return lambda sums: ratio(sums[..., 0], sums[..., 1])


class Task(ABC):
    """Judges answers and measures them; a subclass is one file, and `_target_` chooses it.

    All metrics are functions of sums over samples. So one definition serves the metrics, their bootstrap intervals and
    paired differences. In this class, the sums are of `Judgement.scores`, and each metric is a mean. A subclass whose
    metrics are no means overrides `unit_sums`, `statistic` and `measured`.

    A task is built before the data exist. Checks that need only the names of its metrics build it without its nested
    parts, such as a judge. So `__init__` opens no file and does not use a judge.
    """

    kind: ClassVar[str]
    """The task's type on model cards."""
    title: ClassVar[str]
    """Beginning of the title of a table of results."""
    headline: ClassVar[str]
    """Name of the metric that gains and the progress line show; it has an interval."""
    measures: ClassVar[Sequence[Measure]]
    """The metrics in the order of display; in this class, each is the mean of the score with the metric's name."""
    ablated: ClassVar[bool] = True
    """Whether its sets are also evaluated without sound or picture, where a run asks for that."""
    has_truth: ClassVar[bool] = True
    """Whether an answer is right or wrong; if not, a change of the headline is no gain."""
    names_speakers: ClassVar[bool] = True
    """Whether the speaker of a sample is one; if not, it only joins samples that belong together."""

    @abstractmethod
    def truth(self, sample: Sample) -> Any:
        """The right answer.

        Raises:
            DataError: The task cannot read the sample's solution.
        """

    @abstractmethod
    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges one completion; an answer that cannot be read is wrong.

        Raises:
            DataError: As `truth`.
        """

    @property
    def answer_reading(self) -> str:
        """Where the task reads an answer, by a name of `prompts.reading`: its own reading, or that of its reader."""
        own = getattr(self, "reading", None)
        return own or getattr(getattr(self, "reader", None), "reading", "tag")

    def rightness(self, judgement: Judgement) -> float:
        """How right one answer is, from 0 to 1; in this class, its score of the headline metric."""
        return _score(judgement, self.headline)

    def check(self, manifest: str, samples: Sequence[Sample]) -> None:
        """Refuses samples whose answers could not be judged.

        Raises:
            DataError: A sample cannot be judged; the message names the manifest, the sample, its solution and the fix.
        """
        for sample in samples:
            try:
                self.truth(sample)
            except DataError as error:
                raise DataError(f"{manifest}: {error}") from error

    def unanswered(self, sample: Sample) -> Judgement:
        """The judgement of a sample that could not be loaded: an empty answer, which is wrong."""
        return self.judge(sample, Completion(text="", num_tokens=0, truncated=False))

    def named_senses(self, judgement: Judgement) -> frozenset[str] | None:
        """The senses (`picture`, `sound`) whose cues the thought of an answer names; None: the task cannot tell."""
        return None

    def metric_names(self) -> Sequence[str]:
        """The metrics that an evaluated set may have."""
        return [each.name for each in self.measures]

    def validated_names(self) -> Sequence[str]:
        """The metrics that a validation may have."""
        known = self.metric_names()
        return [each.name for each in self.measures if each.validated and each.name in known]

    def score_names(self) -> Sequence[str]:
        """The metrics that are means of scores; a subclass leaves out those that `statistic` derives from others."""
        return [each.name for each in self.measures]

    @property
    def headline_title(self) -> str:
        """The headline for humans."""
        return next(each.title for each in self.measures if each.name == self.headline)

    def unit_sums(
        self, judgements: Sequence[Judgement], units: NDArray[np.int64], num_units: int
    ) -> NDArray[np.float64]:
        """Returns sums over the samples of each unit, [S, D]; `units` [N] holds the index of each sample's unit.

        Raises:
            DataError: A judgement is of another task.
        """
        return score_sums(self.score_names(), judgements, units, num_units)

    def statistic(self, name: str) -> Statistic:
        """Returns the metric `name` as a function that maps sums [..., D] to values [...]; NaN without samples."""
        place = list(self.score_names()).index(name)
        return lambda sums: ratio(sums[..., place], sums[..., -1])

    def measured(self, sums: NDArray[np.float64]) -> dict[str, float]:
        """Computes all metrics from sums [D]; NaN without samples."""
        return {each.name: float(self.statistic(each.name)(sums)) for each in self.measures}

    def metrics(self, judgements: Sequence[Judgement]) -> dict[str, float]:
        """All metrics of judged samples.

        Raises:
            DataError: As `unit_sums`.
        """
        return self.measured(self.unit_sums(judgements, np.zeros(len(judgements), dtype=np.int64), 1)[0])

    def is_right(self, judgement: Judgement) -> bool:
        """Whether an answer is fully right: its headline score is at least 1, or without one it names the truth."""
        score = judgement.scores.get(self.headline)
        return judgement.predicted == judgement.truth if score is None else score >= 1

    def save_figure(self, judgements: Sequence[Judgement], path: Path, title: str) -> None:
        """Writes a figure as PNG; a task of this class has none."""
        return

    def described(self) -> dict[str, Any]:
        """Returns what a result on disk says about its task, as plain values for readers without the configuration."""
        scores = [each.name for each in self.measures if each.on_card]
        return {"task": {"type": self.kind, "headline": self.headline, "scores": scores}}


def score_sums(
    names: Sequence[str], judgements: Sequence[Judgement], units: NDArray[np.int64], num_units: int
) -> NDArray[np.float64]:
    """Returns the sums of the scores with these names over the samples of each unit, and their number, [S, D + 1].

    Raises:
        DataError: A judgement has no such score, so it is of another task.
    """
    sums = np.zeros((num_units, len(names) + 1))
    rows = [[*(_score(each, name) for name in names), 1.0] for each in judgements]
    np.add.at(sums, units, np.array(rows).reshape(len(rows), len(names) + 1))
    return sums


def _score(judgement: Judgement, name: str) -> float:
    if name == VALID_FORMAT.name:
        return float(judgement.valid_format)
    if name not in judgement.scores:
        raise DataError(
            f"prediction {judgement.sample_id!r} has no {name!r}, so it was judged by another task; evaluate again"
        )
    return judgement.scores[name]
