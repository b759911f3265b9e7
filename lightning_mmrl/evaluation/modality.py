"""The modality report: whether a model looks and listens, which of both it follows, and whether its thoughts say so.

It compares answers to the same samples: as they are, without sound (`silent`), without picture (`blank`), without both
(`text_only`), and with the sound or the picture of another sample (`shuffled_sound`, `shuffled_picture`). All intervals
are of the bootstrap of `evaluation.intervals`, paired where two sets of answers are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mmrl.evaluation.consistency import SENSES, Sense
from lightning_mmrl.evaluation.intervals import ClusterBootstrap, Interval
from lightning_mmrl.evaluation.metrics import ratio
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.conflicts import LEANING, Conflicts
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.settings.data import ABLATIONS

MODALITY = "modality.json"
VERSION = 1
FULL = "full"
REMOVED: Mapping[Sense, str] = {"picture": "blank", "sound": "silent"}
"""The variant without a sense."""
SHUFFLED: Mapping[Sense, str] = {"picture": "shuffled_picture", "sound": "shuffled_sound"}
"""The variant with another sample's medium for a sense."""
_VERBS: Mapping[Sense, str] = {"picture": "look", "sound": "listen"}
_INPUTS: Mapping[str, str] = {
    "blank": "without the picture",
    "silent": "without the sound",
    "shuffled_picture": "with the picture of another sample",
    "shuffled_sound": "with the sound of another sample",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """Judged answers to a set, or to a variant of the set `whole`; `result` is its entry in evaluation.json."""

    name: str
    whole: str
    task: Task
    judgements: Sequence[Judgement]
    result: Mapping[str, Any]

    @property
    def variant(self) -> str:
        """`full`, or the name of the variant."""
        return FULL if self.name == self.whole else self.name.removeprefix(f"{self.whole}-")


def modality_report(answered: Sequence[Answered], bootstrap: ClusterBootstrap) -> dict[str, Any] | None:
    """The content of modality.json as plain values; None if there is neither a variant nor a set of conflicts."""
    variants: dict[str, dict[str, Answered]] = {}
    for each in answered:
        if each.variant in (FULL, *ABLATIONS):
            variants.setdefault(each.whole, {})[each.variant] = each
    sets = {name: _of_set(found, bootstrap) for name, found in variants.items() if FULL in found and len(found) > 1}
    conflicts = {each.name: _of_conflicts(each, bootstrap) for each in answered if isinstance(each.task, Conflicts)}
    return {"version": VERSION, "sets": sets, "conflicts": conflicts} if sets or conflicts else None


def _of_set(found: Mapping[str, Answered], bootstrap: ClusterBootstrap) -> dict[str, Any]:
    """Headlines of all variants, what is lost in each, and what follows from that."""
    full = found[FULL]
    task, headline = full.task, full.task.headline
    drops = {
        name: bootstrap.paired_difference(full.judgements, each.judgements, task)
        for name, each in found.items()
        if name != FULL
    }
    return {
        "headline": headline,
        "title": task.headline_title,
        "num_samples": len(full.judgements),
        "variants": {name: each.result["intervals"][headline] for name, each in found.items()},
        "drops": {name: asdict(drop) for name, drop in drops.items()},
        "shuffled": {name: each.result["shuffled"] for name, each in found.items() if "shuffled" in each.result},
        "verdict": {sense: verdict(sense, drops, task.headline_title) for sense in SENSES},
        "faithfulness": faithfulness({name: each.judgements for name, each in found.items()}, task, bootstrap),
    }


def verdict(sense: Sense, drops: Mapping[str, Interval], title: str) -> dict[str, Any]:
    """Whether a model looks (`picture`) or listens (`sound`), by what its headline loses.

    The rule: `yes` if the interval of the drop lies above 0, `hindered` if it lies below 0, else `not_shown`. The drop
    is that of the shuffled variant, which keeps every input as it is in training. Where that was not evaluated, it is
    the drop without the medium, which may also be due to an input that the model does not know. `not_evaluated` if
    there is neither.

    Args:
        sense: What the verdict is about.
        drops: Headline minus headline of the variant, by variant.
        title: The headline in words.
    """
    by = next((name for name in (SHUFFLED[sense], REMOVED[sense]) if name in drops), None)
    verb = _VERBS[sense]
    if by is None:
        return {"verdict": "not_evaluated", "by": None, "says": f"Whether it {verb}s was not evaluated."}
    drop = drops[by]
    found = "yes" if drop.low > 0 else "hindered" if drop.high < 0 else "not_shown"
    points = f"{100 * drop.estimate:.1f} points [{100 * drop.low:.1f}, {100 * drop.high:.1f}]"
    fact = f"{_INPUTS[by]}, {title} falls by {points}"
    says = {
        "yes": f"It {verb}s: {fact}.",
        "hindered": f"It is better off if it does not {verb}: {fact}.",
        "not_shown": f"It was not shown to {verb}: {fact}.",
    }
    return {"verdict": found, "by": by, "says": says[found]}


def faithfulness(
    judgements: Mapping[str, Sequence[Judgement]], task: Task, bootstrap: ClusterBootstrap
) -> dict[str, Any] | None:
    """Whether answers change if the cue that the thought names is deleted, more often than if it is not named.

    For each sense whose deletion was evaluated: the share of answers that change with the deletion among the samples
    whose thought (with everything there) names a cue of the sense, the same share among those whose thought names
    none, and the difference. `all` counts each deletion of each sample once. An interval is null where no sample
    counts. A resample of speakers without such samples is left out.

    Deviations from deletion tests of explanations (Measuring Faithfulness in Chain-of-Thought Reasoning,
    arXiv:2307.13702): the input is edited, not the thought.

    Returns:
        None if the task cannot tell what a thought names, or no deletion was evaluated.
    """
    removed = {sense: by for sense, by in REMOVED.items() if by in judgements}
    full = judgements[FULL]
    named = [task.named_senses(each) for each in full]
    if not removed or None in named:
        return None
    rows: dict[str, NDArray[np.float64]] = {}
    for sense, by in removed.items():
        after = {each.sample_id: each.predicted for each in judgements[by]}
        rows[sense] = np.array(
            [
                _counted(each.predicted != after[each.sample_id], is_named=senses is not None and sense in senses)
                for each, senses in zip(full, named, strict=True)
            ]
        )
    rows["all"] = np.sum(list(rows.values()), axis=0)
    rates = {name: _rates(full, each, bootstrap) for name, each in rows.items()}
    return {name: {**each, "says": _changes(name, each)} for name, each in rates.items()}


def statements(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Set and sentence of all that a report says in words."""
    found = []
    for name, each in report["sets"].items():
        found += [(name, one["says"]) for one in each["verdict"].values() if one["verdict"] != "not_evaluated"]
        found += [(name, one["says"]) for key, one in (each["faithfulness"] or {}).items() if key != "all"]
    return [*found, *((name, each["says"]) for name, each in report["conflicts"].items())]


def _changes(name: str, rates: Mapping[str, Any]) -> str:
    """How often answers change without what the thought names, and without what it does not name."""
    cue = {"all": "picture or sound"}.get(name, name)
    named, unnamed = (_in_percent(rates[key]) for key in ("named", "unnamed"))
    if not rates["num_named"]:
        return (
            f"No thought names a cue of the {cue}; without it, {unnamed} of the {rates['num_unnamed']} answers change."
        )
    rest = f", and {unnamed} of the {rates['num_unnamed']} others" if rates["num_unnamed"] else ""
    return f"Without the {cue}, {named} of the {rates['num_named']} answers change whose thought names its cue{rest}."


def _in_percent(interval: Mapping[str, float] | None) -> str:
    if interval is None:
        return "none"
    return f"{100 * interval['estimate']:.1f} % [{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"


def _counted(is_changed: bool, *, is_named: bool) -> list[float]:
    """Changed and all answers with a named cue, then those without, [4]."""
    own = [float(is_changed), 1.0]
    return [*own, 0.0, 0.0] if is_named else [0.0, 0.0, *own]


def _rates(full: Sequence[Judgement], rows: NDArray[np.float64], bootstrap: ClusterBootstrap) -> dict[str, Any]:
    def named(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return ratio(sums[..., 0], sums[..., 1])

    def unnamed(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return ratio(sums[..., 2], sums[..., 3])

    found = {"named": named, "unnamed": unnamed, "difference": lambda sums: named(sums) - unnamed(sums)}
    intervals = {name: bootstrap.of_rows(full, rows, statistic) for name, statistic in found.items()}
    return {
        "num_named": int(rows[:, 1].sum()),
        "num_unnamed": int(rows[:, 3].sum()),
        **{name: None if interval is None else asdict(interval) for name, interval in intervals.items()},
    }


def _of_conflicts(each: Answered, bootstrap: ClusterBootstrap) -> dict[str, Any]:
    """What answers follow where picture and sound contradict each other."""
    task, judgements = each.task, each.judgements
    names = [measure.name for measure in task.measures if measure.name in each.result["metrics"]]
    ids = np.arange(len(judgements))
    rows = task.unit_sums(judgements, ids, len(judgements))
    intervals = {name: bootstrap.of_rows(judgements, rows, task.statistic(name)) for name in names}
    leaning = intervals[LEANING]
    assert leaning is not None
    follows = "picture" if leaning.low > 0 else "sound" if leaning.high < 0 else "not_shown"
    points = f"{100 * leaning.estimate:+.1f} points [{100 * leaning.low:+.1f}, {100 * leaning.high:+.1f}]"
    says = {
        "picture": f"It follows the picture rather than the sound: {points}.",
        "sound": f"It follows the sound rather than the picture: {points}.",
        "not_shown": f"It was not shown to follow one rather than the other: {points}.",
    }
    return {
        "num_samples": len(judgements),
        "shares": {name: asdict(interval) for name, interval in intervals.items() if interval is not None},
        "by_chance": {sense: float(np.mean([one.scores[f"chance_{sense}"] for one in judgements])) for sense in SENSES},
        "follows": follows,
        "says": says[follows],
    }
