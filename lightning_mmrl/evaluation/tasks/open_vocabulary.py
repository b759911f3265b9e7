"""The task of listing words of an open vocabulary, which are compared by their groups on an emotion wheel."""

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.metrics import ratio
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import VALID_FORMAT, Measure, Statistic, Task
from lightning_mmrl.prompts.answers import question_of
from lightning_mmrl.prompts.reading import check_reading, find_answer
from lightning_mmrl.prompts.wheel import Wheel
from lightning_mmrl.prompts.word_lists import UNKNOWN, listed_words, named_groups
from lightning_mmrl.types.records import Completion, Sample

WHEEL_PRECISION, WHEEL_F1 = "wheel_precision", "wheel_f1"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVocabulary(Task):
    """Scores of the groups of words that the answer names, A, and the solution names, S; means over samples.

    - `f1`, `precision`, `recall`: 2 |A & S| / (|A| + |S|), |A & S| / |A|, |A & S| / |S|.
    - `hit_rate`: the share of answers that name a group of the solution, whatever else they name. With one group in
      each solution it is the hit rate by which MER-UniBench scores free text on sets with one label
      (arXiv:2501.16566; `calculate_openset_onehot_hitrate` of AffectGPT), and equals recall. It is no accuracy: an
      answer that lists every emotion always hits.
    - `set_accuracy`: the share of answers with A = S. MER2024 calls its precision an accuracy; this one is not that.
    - `wheel_precision`, `wheel_f1`: the emotion-wheel metric of AffectGPT. Its precision leaves out words that are not
      on the wheel, and its F1 is 2 P R / (P + R) of mean precision and mean recall.

    The reward `EmotionSet` reads words in the same way. Except in the wheel metric, a word of the answer that is not on
    the wheel is a wrong group of its own. An answer that cannot be read gets 0 for all. `wheel` is the path of a YAML
    or JSON file that maps words to groups; None is the built-in wheel of emotions. `reading` says where the answer is,
    see `prompts.reading`.

    **Deviations** from AffectGPT's metrics: one wheel instead of the mean over five; a fixed rule instead of a language
    model extracts the labels, and refuses answers of more than 8 words.

    Raises:
        ConfigError: The reading is unknown, or the wheel is unusable; the latter is raised on first use.
    """

    wheel: str | None = None
    max_characters: int = 256
    reading: str = "tag"

    kind: ClassVar[str] = "multi-label-classification"
    title: ClassVar[str] = "Sets of words by stage"
    headline: ClassVar[str] = "f1"
    measures: ClassVar[Sequence[Measure]] = (
        Measure(name="f1", title="set F1", interval=True),
        Measure(name="precision", title="precision"),
        Measure(name="recall", title="recall"),
        Measure(name="hit_rate", title="hit rate", interval=True, validated=False),
        Measure(name="set_accuracy", title="set accuracy", validated=False),
        Measure(name=WHEEL_PRECISION, title="wheel precision", validated=False, in_table=False, on_card=False),
        Measure(name=WHEEL_F1, title="wheel F1", interval=True, validated=False, in_table=False, on_card=False),
        VALID_FORMAT,
        Measure(name="unparseable", title="unparseable", validated=False, in_table=False, on_card=False),
    )

    def __post_init__(self) -> None:
        check_reading(self.reading)

    @cached_property
    def opened(self) -> Wheel:
        """The wheel."""
        return Wheel.built_in() if self.wheel is None else Wheel.read(self.wheel)

    def truth(self, sample: Sample) -> frozenset[str]:
        """The groups of the solution's words; words that are not on the wheel are ignored.

        Raises:
            DataError: The solution is missing or has no word of the wheel.
        """
        words = listed_words(sample.solution or "", self.opened)
        groups = frozenset[str]().union(*map(self.opened.groups_of, words))
        if not groups:
            raise DataError(
                f"sample {sample.id!r} has the solution {sample.solution!r}, of which the wheel has no word; "
                "correct the manifest or add its words to the wheel"
            )
        return groups

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges format and words."""
        truth, found = self.truth(sample), find_answer(completion, self.reading, question_of(sample))
        named = None
        if found.text is not None and len(found.text) <= self.max_characters:
            num_wanted = len(listed_words(sample.solution or "", self.opened))
            named = named_groups(listed_words(found.text, self.opened), self.opened, num_wanted)
        return Judgement(
            sample_id=sample.id,
            speaker=sample.speaker,
            truth=", ".join(sorted(truth)),
            predicted=None if named is None else ", ".join(sorted(named)),
            valid_format=found.valid,
            text=completion.text,
            scores=set_scores(named, truth),
        )

    def score_names(self) -> Sequence[str]:
        """All metrics but the wheel metric's F1, which follows from means."""
        return [each.name for each in self.measures if each.name != WHEEL_F1]

    def unit_sums(
        self, judgements: Sequence[Judgement], units: NDArray[np.int64], num_units: int
    ) -> NDArray[np.float64]:
        """Returns sums over the samples of each unit; answers of earlier versions get missing scores from their groups.

        Raises:
            DataError: A judgement is of another task.
        """
        return Task.unit_sums(self, [_with_all_scores(each) for each in judgements], units, num_units)

    def statistic(self, name: str) -> Statistic:
        """Returns the metric `name` as a function that maps sums [..., D] to values [...]; NaN without samples."""
        if name != WHEEL_F1:
            return Task.statistic(self, name)
        precision, recall = (Task.statistic(self, each) for each in (WHEEL_PRECISION, "recall"))

        def f1(sums: NDArray[np.float64]) -> NDArray[np.float64]:
            both = precision(sums) + recall(sums)
            return np.where(both == 0, 0.0, ratio(2 * precision(sums) * recall(sums), both))

        return f1


def set_scores(named: Set[str] | None, truth: Set[str]) -> dict[str, float]:
    """Scores of one answer that names some groups, or none that can be read, against the groups of the solution.

    >>> set_scores({"joy", "unknown seasick"}, {"joy", "fear"})["precision"]
    0.5
    """
    found = frozenset(named or ())
    right, known = len(found & truth), sum(not group.startswith(UNKNOWN) for group in found)
    return {
        "f1": 2 * right / (len(found) + len(truth)),
        "precision": right / len(found) if found else 0.0,
        "recall": right / len(truth),
        "hit_rate": float(right > 0),
        "set_accuracy": float(found == truth),
        WHEEL_PRECISION: right / known if known else 0.0,
        "unparseable": float(named is None),
    }


def _with_all_scores(judgement: Judgement) -> Judgement:
    if "hit_rate" in judgement.scores or "f1" not in judgement.scores:
        return judgement
    named = None if judgement.predicted is None else set(judgement.predicted.split(", "))
    return replace(judgement, scores=set_scores(named, set(judgement.truth.split(", "))))
