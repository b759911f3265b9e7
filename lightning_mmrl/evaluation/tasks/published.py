"""The parts that judges of published benchmarks share: where the answer is read, and metrics of groups of questions."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.metrics import ratio
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import VALID_FORMAT, Measure, Statistic, score_sums
from lightning_mmrl.prompts.answers import question_of
from lightning_mmrl.prompts.options import OPTIONS
from lightning_mmrl.prompts.reading import find_answer
from lightning_mmrl.types.records import Completion, Sample

READING = "tag_or_text"
"""Where published scorers find the answer: in an `<answer>`, or in all that follows the thought."""
ACCURACY = Measure(name="accuracy", title="accuracy", interval=True)
NO_ANSWER = Measure(name="unparseable", title="no answer", validated=False, on_card=False)
MEASURES = (ACCURACY, VALID_FORMAT, NO_ANSWER)
SCORED = ("accuracy", VALID_FORMAT.name, "unparseable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer as a published scorer reads it; None if it reads none. `credit` is 1 for a right one."""

    read: str | None
    credit: float


UNREAD = Answer(read=None, credit=0.0)


def published_judgement(
    sample: Sample, completion: Completion, *, truth: str, reading: str, score: Callable[[str], Answer]
) -> Judgement:
    """Judges the answer of a completion by a published scorer; without an answer it is wrong.

    Args:
        sample: The sample.
        completion: The completion.
        truth: The right answer.
        reading: Where the answer is, see `prompts.reading`.
        score: Scores the text of an answer.
    """
    found = find_answer(completion, reading, question_of(sample))
    answer = UNREAD if found.text is None else score(found.text)
    return Judgement(
        sample_id=sample.id,
        speaker=sample.speaker,
        truth=truth,
        predicted=answer.read,
        valid_format=found.valid,
        text=completion.text,
        scores={"accuracy": answer.credit, "unparseable": float(answer.read is None)},
    )


def lettered(sample: Sample) -> Mapping[str, str]:
    """Letter to text of each option in the sample's column `options`; empty without that column."""
    column = sample.extras.get(OPTIONS)
    texts = column if isinstance(column, list | tuple) else ()
    return {chr(ord("A") + place): str(text) for place, text in enumerate(texts)}


def letter_or_answer(sample: Sample) -> str:
    """The solution: the letter of an option, or without options an answer.

    Raises:
        DataError: The solution is no letter of an option, or has neither letter nor digit.
    """
    options, solution = lettered(sample), sample.solution or ""
    if options and solution not in options:
        raise refused(sample, f"letter of one of the {len(options)} options")
    if not any(map(str.isalnum, solution)):
        raise refused(sample, "answer with a letter or a digit")
    return solution


def refused(sample: Sample, wanted: str) -> DataError:
    """The error of a solution that a scorer cannot read."""
    return DataError(
        f"sample {sample.id!r} has the solution {sample.solution!r}, which is no {wanted}; correct the manifest"
    )


def group_sums(
    judgements: Sequence[Judgement],
    units: NDArray[np.int64],
    num_units: int,
    counts: Callable[[Sequence[Judgement]], Sequence[float] | None],
    num_counts: int,
) -> NDArray[np.float64]:
    """Returns sums over groups of questions, [S, D]; the samples of a group share their `speaker`, or are single.

    A bootstrap draws all samples of a group the same number of times, so a group counts that many times. All samples of
    a group must be among the judgements of one call: sums of parts of a set do not add up to those of the set.

    Args:
        judgements: The judgements.
        units: Index of the unit of each, [N]; a unit holds whole groups.
        num_units: S.
        counts: Returns the D counts of a group, whose samples it gets once each; None if the group is incomplete.
        num_counts: D.
    """
    sums = np.zeros((num_units, num_counts))
    groups: dict[tuple[int, Hashable], dict[str, list[Judgement]]] = defaultdict(lambda: defaultdict(list))
    for unit, judgement in zip(units.tolist(), judgements, strict=True):
        name = ("sample", judgement.sample_id) if judgement.speaker is None else ("group", judgement.speaker)
        groups[unit, name][judgement.sample_id].append(judgement)
    for (unit, _), samples in groups.items():
        found = counts([same[0] for same in samples.values()])
        if found is not None:
            sums[unit] += min(map(len, samples.values())) * np.asarray(found, dtype=np.float64)
    return sums


def own_and_group_sums(
    judgements: Sequence[Judgement], units: NDArray[np.int64], groups: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns the sums of `SCORED` and the number of samples, followed by those of groups, [S, 4 + D]."""
    return np.concatenate([score_sums(SCORED, judgements, units, len(groups)), groups], axis=1)


def share(part: int, whole: int) -> Statistic:
    """A metric that is one sum divided by another."""
    return lambda sums: ratio(sums[..., part], sums[..., whole])


def scored_statistics() -> Mapping[str, Statistic]:
    """The metrics of `SCORED`, as functions of sums that begin with theirs."""
    return {name: share(place, len(SCORED)) for place, name in enumerate(SCORED)}


def numbers(values: Mapping[str, float]) -> dict[str, float]:
    """The metrics without those that have no value although `accuracy` has one, such as of a part without samples."""
    empty = np.isnan(values[ACCURACY.name])
    return {name: value for name, value in values.items() if empty or not np.isnan(value)}


def edit_distance(first: str, second: str) -> int:
    """The Levenshtein distance of two texts.

    >>> edit_distance("kitten", "sitting")
    3
    """
    row = list(range(len(second) + 1))
    for place, letter in enumerate(first, start=1):
        row = list(_next_row(row, place, letter, second))
    return row[-1]


def _next_row(row: Sequence[int], place: int, letter: str, second: str) -> Iterator[int]:
    left = place
    yield left
    for column, other in enumerate(second, start=1):
        left = min(row[column] + 1, left + 1, row[column - 1] + (letter != other))
        yield left
