"""The second of two runs against the first, on the same samples of each set."""

import math
from collections.abc import Sequence
from dataclasses import asdict

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.intervals import ClusterBootstrap, Interval
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.evaluation.tasks.task import MeanScore
from lightning_mmrl.report.answers import read_answers
from lightning_mmrl.report.markup import Html, joined, table, tag
from lightning_mmrl.report.run_files import CLOSED_LABELS, Evaluated, RunFiles
from lightning_mmrl.report.scores import interval, labels_of, sign_of, with_answered

Answered = tuple[Evaluated, Sequence[Judgement]]


def against_section(runs: Sequence[RunFiles]) -> Html | None:
    """Paired differences of the headline metric, for each stage and set that two runs have in common."""
    if len(runs) != 2:
        return None
    first, second = ({(each.stage, each.name): each for each in run.evaluated} for run in runs)
    cells, unlike = [], []
    for key, before in first.items():
        after = second.get(key)
        if after is None:
            continue
        try:
            own, unpaired = _difference((runs[0], before), (runs[1], after))
        except DataError as error:
            unlike.append(f"{key[0]} on {key[1]}: {error}")
            continue
        aside = f" ({unpaired} unlike samples aside)" if unpaired else ""
        gained, sign = f"{100 * own.estimate:+.1f}", sign_of(own.low, own.high)
        cells.append([key[0], f"{key[1]}{aside}", before.headline, gained, interval(asdict(own), "+"), sign])
    title = f"{runs[1].name} minus {runs[0].name}, same samples, in points"
    head = ["stage", "set", "metric", "difference", "95 %", ""]
    parts = [tag("h3", title), table(head, cells, label=title, texts=3)] if cells else []
    if unlike:
        parts.append(tag("p", "Not compared:", class_="note"))
        parts.append(tag("ul", *(tag("li", each) for each in unlike), class_="note"))
    return joined(parts) if parts else tag("p", "The runs have no stage and set in common.", class_="missing")


def _difference(first: tuple[RunFiles, Evaluated], second: tuple[RunFiles, Evaluated]) -> tuple[Interval, int]:
    """The paired difference of two evaluations, and the number of samples that only one of them has.

    Raises:
        DataError: They cannot be compared.
    """
    found = [read_answers(each, run) for run, each in (first, second)]
    if found[0] is None or found[1] is None:
        raise DataError("the answers of a run cannot be read")
    ids = [{one.sample_id for one in answers} for answers in found if answers is not None]
    before, after = ([one for one in answers if one.sample_id in ids[0] & ids[1]] for answers in (found[0], found[1]))
    if not before:
        raise DataError("the runs have no sample in common")
    task = _task((first[1], found[0]), (second[1], found[1]))
    return ClusterBootstrap().paired_difference(after, before, task), len(ids[0] ^ ids[1])


def _task(
    first: tuple[Evaluated, Sequence[Judgement]], second: tuple[Evaluated, Sequence[Judgement]]
) -> ClosedLabels | MeanScore:
    """The task that two evaluations have in common, as far as their headline metric tells.

    Raises:
        DataError: They have other headlines or labels, or the metric is no mean of scores.
    """
    headline = first[0].headline
    if second[0].headline != headline:
        raise DataError(f"one run was measured by {headline}, the other by {second[0].headline}")
    labels = labels_of(first[0])
    if headline == CLOSED_LABELS and labels:
        if labels != labels_of(second[0]):
            raise DataError("the runs have other labels")
        return ClosedLabels(labels=with_answered(labels, [*first[1], *second[1]]))
    for each, answers in (first, second):
        scores = [float(one.scores.get(headline, math.nan)) for one in answers]
        if not math.isclose(math.fsum(scores) / len(scores), each.metrics.get(headline, math.nan), abs_tol=1e-9):
            raise DataError(f"{headline} is no mean of the answers' scores, so the page cannot pair it")
    return MeanScore(headline=headline)
