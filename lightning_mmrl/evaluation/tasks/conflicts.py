"""The task of naming one label where picture and sound contradict each other: which of them the answer follows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.consistency import SENSES, CueLexicon, Sense
from lightning_mmrl.evaluation.metrics import ratio
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import VALID_FORMAT, Measure, Statistic, Task
from lightning_mmrl.prompts.answers import question_of
from lightning_mmrl.prompts.labels import LabelMatcher
from lightning_mmrl.prompts.reading import check_reading, find_answer
from lightning_mmrl.types.records import Completion, Sample

COLUMNS: Mapping[Sense, str] = {sense: f"{sense}_truth" for sense in SENSES}
"""The columns of the manifest with the labels that the picture and the sound show: a label, or a list of labels."""
LEANING = "leaning"
WITH_CUES = ("names_followed", "names_both")
"""Metrics of a task with cue phrases."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflicts(Task):
    """Whether answers follow the picture or the sound of samples in which the two show different labels.

    A sample has the columns `picture_truth` and `sound_truth`, which have no label in common. An answer follows the
    picture if it names a label of the first, and the sound if it names one of the second; else it follows neither, or
    names no label of the set. The four shares sum to 1. There is no right answer, and the solution is not read.
    `leaning` is the share that follows the picture minus the share that follows the sound.

    With cue phrases (`CueLexicon`), `names_followed` is the share of the answers that follow picture or sound whose
    thought names a cue of what they follow, and `names_both` the share of all answers whose thought names a cue of the
    picture and one of the sound, that is, reports the conflict.

    Raises:
        DataError: The file of cue phrases cannot be read; raised on first use.
    """

    labels: Sequence[str]
    synonyms: Mapping[str, str] | None = None
    cue_lexicon: str | None = None
    reading: str = "tag"

    kind: ClassVar[str] = "conflicting-modalities"
    title: ClassVar[str] = "Conflicts of picture and sound by stage"
    headline: ClassVar[str] = "follows_picture"
    measures: ClassVar[Sequence[Measure]] = (
        Measure(name="follows_picture", title="follows picture", interval=True),
        Measure(name="follows_sound", title="follows sound", interval=True),
        Measure(name="neither", title="neither", interval=True, on_card=False),
        Measure(name="unparseable", title="unparseable", interval=True, on_card=False),
        Measure(name=LEANING, title="leaning to the picture", interval=True, in_table=False, on_card=False),
        VALID_FORMAT,
        Measure(name="names_followed", title="names what it follows", on_card=False),
        Measure(name="names_both", title="names both", on_card=False),
    )
    ablated: ClassVar[bool] = False
    has_truth: ClassVar[bool] = False

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

    def truth(self, sample: Sample) -> dict[Sense, frozenset[str]]:
        """The labels that picture and sound show.

        Raises:
            DataError: A column is missing or names another label, or the two have a label in common.
        """
        found: dict[Sense, frozenset[str]] = {sense: self._labels(sample, column) for sense, column in COLUMNS.items()}
        if both := found["picture"] & found["sound"]:
            raise DataError(
                f"sample {sample.id!r} has {sorted(both)[0]!r} in both {' and '.join(COLUMNS.values())}, so they do "
                "not contradict each other; remove the sample or correct it"
            )
        return found

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges what the answer and the thought follow."""
        truth, found = self.truth(sample), find_answer(completion, self.reading, question_of(sample))
        predicted = None if found.text is None else self.matcher.match(found.text)
        follows = {sense: predicted in labels for sense, labels in truth.items()}
        scores = {
            **{f"follows_{sense}": float(value) for sense, value in follows.items()},
            "neither": float(predicted is not None and not any(follows.values())),
            "unparseable": float(predicted is None),
            LEANING: float(follows["picture"]) - float(follows["sound"]),
            **{f"chance_{sense}": len(labels) / len(self.labels) for sense, labels in truth.items()},
            **dict.fromkeys(WITH_CUES, 0.0),
        }
        if self.lexicon is not None and found.think is not None:
            supported = self.lexicon.supported_labels(found.think)
            names = {sense: bool(supported[sense] & labels) for sense, labels in truth.items()}
            scores["names_followed"] = float(any(follows[sense] and names[sense] for sense in SENSES))
            scores["names_both"] = float(all(names.values()))
        return Judgement(
            sample_id=sample.id,
            speaker=sample.speaker,
            truth="; ".join(f"{sense}: {' or '.join(sorted(labels))}" for sense, labels in truth.items()),
            predicted=predicted,
            valid_format=found.valid,
            text=completion.text,
            scores=scores,
        )

    def statistic(self, name: str) -> Statistic:
        """The mean of the score `name`; `names_followed` is a share of the answers that follow picture or sound."""
        if name != "names_followed":
            return Task.statistic(self, name)
        names = [each.name for each in self.measures]
        own, parts = names.index(name), [names.index(f"follows_{sense}") for sense in SENSES]
        return lambda sums: ratio(sums[..., own], sums[..., parts].sum(-1))

    def measured(self, sums: Any) -> dict[str, float]:
        """The metrics; those of cue phrases need a lexicon, and answers that follow picture or sound."""
        values = Task.measured(self, sums)
        known = self.metric_names()
        return {
            name: value
            for name, value in values.items()
            if name in known and not (name in WITH_CUES and value != value)
        }

    def metric_names(self) -> Sequence[str]:
        """The metrics, without those of cue phrases if there are none."""
        left_out = () if self.cue_lexicon else WITH_CUES
        return [each.name for each in self.measures if each.name not in left_out]

    def check(self, manifest: str, samples: Sequence[Sample]) -> None:
        """Refuses samples without conflicting labels of the set, and cue phrases that cannot be read."""
        _ = self.lexicon
        Task.check(self, manifest, samples)

    def _labels(self, sample: Sample, column: str) -> frozenset[str]:
        value = sample.extras.get(column)
        named = [value] if isinstance(value, str) else value
        if not isinstance(named, list) or not named:
            raise DataError(
                f"sample {sample.id!r} has {value!r} in the column {column}; give a label, or a list of labels"
            )
        found = {each: self.matcher.match(each) if isinstance(each, str) else None for each in map(_hashable, named)}
        for each, label in found.items():
            if label is None:
                raise DataError(
                    f"sample {sample.id!r} has {each!r} in the column {column}, which is none of the labels "
                    f"{', '.join(self.labels)}; correct the manifest"
                )
        return frozenset(label for label in found.values() if label is not None)


def _hashable(value: object) -> object:
    return value if isinstance(value, str) else repr(value)
