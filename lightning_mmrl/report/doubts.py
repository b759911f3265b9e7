"""What makes a finished stage or an evaluation doubtful, though nothing of it is missing, in words."""

from collections.abc import Iterator

from lightning_mmrl.report.run_files import Evaluated, RunFiles, StageFiles

MANY_CUT = 0.5
"""Share of answers ended by the length limit from which a result says little of the model."""


def doubts_of(run: RunFiles) -> list[str]:
    """Sentences on all stages of a run and on their evaluations."""
    found = [f"Stage {stage.name}: {doubt}." for stage in run.stages for doubt in stage_doubts(stage)]
    return [*found, *(f"After {each.stage}: {doubt}." for each in run.evaluated for doubt in evaluation_doubts(each))]


def stage_doubts(stage: StageFiles) -> Iterator[str]:
    """The doubts about a stage; none about one that has not ended or makes no weights."""
    result = stage.result
    if result is None or not stage.trains:
        return
    if result.idle:
        yield "nothing was left to train on, so its weights are those that it started from"
    elif result.changed is False:
        yield "no weight changed"
    if result.num_skipped:
        yield f"{result.num_skipped:,} of {result.num_steps or 0:,} steps were skipped"


def evaluation_doubts(each: Evaluated) -> Iterator[str]:
    """The doubts about a result on a set."""
    if each.num_left_out:
        yield f"{each.num_left_out:,} of {each.num_samples + each.num_left_out:,} samples of {each.name} were left out"
    truncated = each.more.get("truncated")
    if isinstance(truncated, float) and truncated >= MANY_CUT:
        yield f"the length limit cut off {100 * truncated:.0f} % of the answers on {each.name}"
