"""How a metric differs between speakers: a mean over a set can hide speakers whom the model does not understand."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lightning_mmrl.evaluation.intervals import Units
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerScore:
    """The headline metric of one speaker's samples, such as the UAR over the labels that this speaker shows."""

    num_samples: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeakerSpread:
    """The headline metric by speaker.

    `sd` is the standard deviation between speakers, sqrt(sum (x - mean)^2 / (S - 1)). Part of it is chance: it grows as
    speakers have fewer samples.
    """

    headline: str
    num_speakers: int
    min: float
    median: float
    max: float
    sd: float
    each: Mapping[str, SpeakerScore]

    def plain(self) -> dict[str, Any]:
        """Plain values for a file."""
        return asdict(self)

    @classmethod
    def from_plain(cls, found: Mapping[str, Any]) -> "SpeakerSpread":
        """Reads what `plain` gave."""
        return cls(**{**found, "each": {name: SpeakerScore(**score) for name, score in found["each"].items()}})


def speaker_spread(judgements: Sequence[Judgement], task: Task) -> SpeakerSpread | None:
    """Returns the task's headline by speaker; None unless every sample has a speaker and there are at least two."""
    units = Units.of(judgements)
    if units.unit != "speaker":
        return None
    values = task.statistic(task.headline)(task.unit_sums(judgements, units.index, units.number))
    names = sorted({str(each.speaker) for each in judgements})
    scores = zip(names, units.sizes, values, strict=True)
    return SpeakerSpread(
        headline=task.headline,
        num_speakers=units.number,
        min=float(values.min()),
        median=float(np.median(values)),
        max=float(values.max()),
        sd=float(values.std(ddof=1)),
        each={name: SpeakerScore(num_samples=int(size), value=float(value)) for name, size, value in scores},
    )
