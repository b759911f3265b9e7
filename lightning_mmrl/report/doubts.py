"""What makes a finished stage or an evaluation doubtful, though nothing of it is missing, in words."""

from collections.abc import Iterator

from lightning_mmrl.report.run_files import Evaluated, RunFiles, StageFiles, whole_of
from lightning_mmrl.report.scores import RECALL, labels_of
from lightning_mmrl.settings.stage import BASE

MANY_CUT = 0.5
"""Share of answers ended by the length limit from which a result says little of the model."""

ALMOST_ALL = 0.95
"""Recall of the one recognized label from which the answers are taken for constant."""


def doubts_of(run: RunFiles) -> list[str]:
    """Sentences on all stages of a run and on their evaluations, those with less input apart."""
    found = [f"Stage {stage.name}: {doubt}." for stage in run.stages for doubt in stage_doubts(stage)]
    whole = [each for each in run.evaluated if whole_of(run, each.name) == each.name]
    return [*found, *(f"After {each.stage}: {doubt}." for each in whole for doubt in evaluation_doubts(each))]


def stage_doubts(stage: StageFiles) -> Iterator[str]:
    """The doubts about a stage; none about one that has not ended or makes no weights."""
    result = stage.result
    if result is None or not stage.trains:
        return
    if result.idle:
        yield "nothing was left to train on, and its weights stayed as they were"
    elif result.changed is False:
        yield "no weight changed"
    if result.num_skipped:
        yield f"{result.num_skipped:,} of {result.num_steps or 0:,} steps were skipped"


def evaluation_doubts(each: Evaluated) -> Iterator[str]:
    """The doubts about a result on a set."""
    if each.num_left_out:
        yield f"{each.num_left_out:,} of {each.num_samples + each.num_left_out:,} samples of {each.name} were left out"
    if each.stage != BASE and each.num_samples > 1:
        yield from _constant(each)
    truncated = each.more.get("truncated")
    if isinstance(truncated, int | float) and truncated >= MANY_CUT:
        yield f"the length limit cut off {100 * truncated:.0f} % of the answers on {each.name}"


def _constant(each: Evaluated) -> Iterator[str]:
    """A closed label set of which no label is recognized, or one alone, as a constant answer would."""
    recalls = {label: each.metrics[RECALL + label] for label in labels_of(each)}
    found = [label for label, recall in recalls.items() if recall != 0]  # one that is not finite may be right
    if len(recalls) > 1 and not found:
        yield f"no answer on {each.name} is right"
    if len(recalls) > 1 and len(found) == 1 and recalls[found[0]] >= ALMOST_ALL:
        yield f"{found[0]} is the only label that is recognized on {each.name}, as by a constant answer"
