"""A task of the user's own: how long answers are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import VALID_FORMAT, Measure, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Brevity(Task):
    """The share of answers of at most `most` characters."""

    most: int

    kind: ClassVar[str] = "brevity"
    title: ClassVar[str] = "Brevity by stage"
    headline: ClassVar[str] = "short"
    measures: ClassVar[Sequence[Measure]] = (Measure(name="short", title="short", interval=True), VALID_FORMAT)

    def truth(self, sample):
        return sample.solution

    def judge(self, sample, completion):
        return Judgement(
            sample_id=sample.id,
            speaker=sample.speaker,
            truth=self.truth(sample),
            predicted=completion.text,
            valid_format=True,
            text=completion.text,
            scores={"short": float(len(completion.text) <= self.most)},
        )
