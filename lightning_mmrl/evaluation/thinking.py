"""What a thought is worth: answers with their thought against forced answers without one, on the same samples."""

from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from lightning_mmrl.evaluation.intervals import ClusterBootstrap
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import Task

NO_THINK = "no_think"
"""Variant of an evaluation whose answers are forced; its results are named `<set>-no_think`."""


def thinking_gain(
    thinking: Sequence[Judgement], forced: Sequence[Judgement], task: Task, bootstrap: ClusterBootstrap
) -> dict[str, Any]:
    """Compares answers with and without a thought, as plain values for a file.

    Returns:
        `difference`, the headline metric with thoughts minus that without, paired, with its interval; None without a
        common sample. `num_unpaired`, the samples that only one of the two could use. `mean_tokens` and
        `mean_tokens_no_think`, the sampled tokens of an answer, without those of the prefill.
    """
    common = {each.sample_id for each in thinking} & {each.sample_id for each in forced}
    first, second = ([each for each in answers if each.sample_id in common] for answers in (thinking, forced))
    difference = asdict(bootstrap.paired_difference(first, second, task)) if common else None
    return {
        "headline": task.headline,
        "difference": difference,
        "num_unpaired": len(thinking) + len(forced) - 2 * len(common),
        "mean_tokens": _mean_tokens(first),
        "mean_tokens_no_think": _mean_tokens(second),
    }


def _mean_tokens(answers: Sequence[Judgement]) -> float | None:
    lengths = [each.num_tokens for each in answers if each.num_tokens is not None]
    return fmean(lengths) if lengths else None
