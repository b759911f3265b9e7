"""We-Math (arXiv:2407.01284): problems of two and three steps, and four-dimensional metrics over whole problems."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.metrics import ratio
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.published import (
    MEASURES,
    READING,
    SCORED,
    UNREAD,
    Answer,
    group_sums,
    numbers,
    own_and_group_sums,
    published_judgement,
    refused,
    scored_statistics,
    share,
)
from lightning_mmrl.evaluation.tasks.task import Measure, Statistic, Task
from lightning_mmrl.prompts.reading import check_reading
from lightning_mmrl.types.records import Completion, Sample

LETTERS = "ABCDEFGH"
_KEY = re.compile(r"([23])steps_([123]|multi)")
_COUNTS = ("one", "one_all", "two", "two_all", "three", "three_all", "problems", "ik", "ig", "cm_strict", "cm_loose")
_COUNTS = (*_COUNTS, "rm_strict", "rm_loose")
_AT = {name: len(SCORED) + 1 + place for place, name in enumerate(_COUNTS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class WeMath(Task):
    """Accuracy, and the metrics of four_dimensional_metrics.py and accuracy.py of We-Math.

    The columns are those that the format `we_math` reads. A problem of two or three steps is asked as a whole and step
    by step. Of P problems:

    - `ik` (insufficient knowledge): wrong as a whole, and in some step.
    - `ig` (inadequate generalization): wrong as a whole, right in all steps.
    - `cm_strict`, `cm_loose` (complete mastery): right as a whole and in all steps, or in some step.
    - `rm_strict`, `rm_loose` (rote memorization): right as a whole and wrong in some step, or in all; divided by their
      sum with complete mastery.
    - `score_strict`, `score_loose`: 1 - (ig / 2 + number of rote memorizations / P + ik).
    - `one_step`, `two_step`, `three_step`: accuracy on single steps, and on whole problems.

    The answer is the first letter after the last `Answer`, without angle brackets, colons and stops.

    **Deviations**: P is the number of problems with all their questions in the set, where the published scripts have
    525, that of testmini; a problem of which a question is missing counts in none of the metrics over problems. A
    metric without problems is left out.

    Raises:
        ConfigError: The reading is unknown.
    """

    reading: str = READING

    names_speakers: ClassVar[bool] = False
    kind: ClassVar[str] = "we-math"
    title: ClassVar[str] = "We-Math by stage"
    headline: ClassVar[str] = "accuracy"
    measures: ClassVar[Sequence[Measure]] = (
        *MEASURES,
        Measure(name="score_strict", title="strict", validated=False),
        Measure(name="score_loose", title="loose", validated=False),
        Measure(name="ik", title="IK", validated=False),
        Measure(name="ig", title="IG", validated=False),
        Measure(name="cm_strict", title="CM strict", validated=False),
        Measure(name="cm_loose", title="CM loose", validated=False),
        Measure(name="rm_strict", title="RM strict", validated=False),
        Measure(name="rm_loose", title="RM loose", validated=False),
        Measure(name="one_step", title="S1", validated=False),
        Measure(name="two_step", title="S2", validated=False),
        Measure(name="three_step", title="S3", validated=False),
    )

    def __post_init__(self) -> None:
        check_reading(self.reading)

    def truth(self, sample: Sample) -> str:
        """The right letter.

        Raises:
            DataError: The solution is no letter, or the column `key` names no step.
        """
        if sample.solution is None or len(sample.solution) != 1 or sample.solution not in LETTERS:
            raise refused(sample, f"letter of {LETTERS}")
        _key_of(sample)
        return sample.solution

    def judge(self, sample: Sample, completion: Completion) -> Judgement:
        """Judges the answer, and notes the step."""
        truth, (steps, step) = self.truth(sample), _key_of(sample)

        def score(text: str) -> Answer:
            letter = letter_of(text)
            return UNREAD if letter is None else Answer(read=letter, credit=float(letter == truth))

        judged = published_judgement(sample, completion, truth=truth, reading=self.reading, score=score)
        return replace(judged, scores={**judged.scores, "steps": float(steps), "step": float(step)})

    def unit_sums(
        self, judgements: Sequence[Judgement], units: NDArray[np.int64], num_units: int
    ) -> NDArray[np.float64]:
        """Returns the sums of the scores, and those of the counts of whole problems, [S, 4 + 13]."""
        groups = group_sums(judgements, units, num_units, _counts, len(_COUNTS))
        return own_and_group_sums(judgements, units, groups)

    def statistic(self, name: str) -> Statistic:
        """Returns a metric as a function of sums."""
        return _STATISTICS[name]

    def measured(self, sums: NDArray[np.float64]) -> dict[str, float]:
        """Computes the metrics that have a value."""
        return numbers(Task.measured(self, sums))


def letter_of(text: str) -> str | None:
    """The letter of an answer, as We-Math reads it; None without one.

    >>> [letter_of(text) for text in ("<Thought>: A? <Answer>: <<B>>.", "C. 300", "b", "I choose D")]
    ['B', 'C', None, None]
    """
    answer = re.sub(r"[><:.]", "", text.rpartition("Answer")[2].strip()).strip()
    return answer[0] if answer and answer[0] in LETTERS else None


def _key_of(sample: Sample) -> tuple[int, int]:
    """The number of steps of a sample's problem, and the step that it asks for; 0 for the whole problem."""
    found = _KEY.fullmatch(str(sample.extras.get("key")))
    if found is None or (found[2] != "multi" and found[2] > found[1]):
        raise DataError(
            f"sample {sample.id!r} has the key {sample.extras.get('key')!r}, which is none such as 2steps_1 or "
            "3steps_multi; correct the manifest"
        )
    return int(found[1]), 0 if found[2] == "multi" else int(found[2])


def _counts(judgements: Sequence[Judgement]) -> Sequence[float] | None:
    """The counts of one problem, in the order of `_COUNTS`; None if one of its questions is missing."""
    right = {int(each.scores["step"]): each.scores["accuracy"] >= 1 for each in judgements}
    num_steps = int(judgements[0].scores["steps"])
    if right.keys() != set(range(num_steps + 1)):
        return None
    whole, steps = right[0], [right[step] for step in range(1, num_steps + 1)]
    counts: Mapping[str, Any] = {
        "one": sum(steps),
        "one_all": num_steps,
        {2: "two", 3: "three"}[num_steps]: whole,
        {2: "two_all", 3: "three_all"}[num_steps]: 1,
        "problems": 1,
        "ik": not whole and not all(steps),
        "ig": not whole and all(steps),
        "cm_strict": whole and all(steps),
        "cm_loose": whole and any(steps),
        "rm_strict": whole and not all(steps),
        "rm_loose": whole and not any(steps),
    }
    return [float(counts.get(name, 0)) for name in _COUNTS]


def _score(rote: str) -> Statistic:
    """1 - (inadequate generalizations / 2 + rote memorizations + insufficient knowledge) / problems."""

    def score(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        lost = 0.5 * sums[..., _AT["ig"]] + sums[..., _AT[rote]] + sums[..., _AT["ik"]]
        return ratio(sums[..., _AT["problems"]] - lost, sums[..., _AT["problems"]])

    return score


def _rote(kind: str) -> Statistic:
    mastered, rote = _AT[f"cm_{kind}"], _AT[f"rm_{kind}"]
    return lambda sums: ratio(sums[..., rote], sums[..., mastered] + sums[..., rote])


_STATISTICS: Mapping[str, Statistic] = {
    **scored_statistics(),
    "score_strict": _score("rm_strict"),
    "score_loose": _score("rm_loose"),
    **{name: share(_AT[name], _AT["problems"]) for name in ("ik", "ig", "cm_strict", "cm_loose")},
    "rm_strict": _rote("strict"),
    "rm_loose": _rote("loose"),
    "one_step": share(_AT["one"], _AT["one_all"]),
    "two_step": share(_AT["two"], _AT["two_all"]),
    "three_step": share(_AT["three"], _AT["three_all"]),
}
