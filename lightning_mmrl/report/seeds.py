"""Pools the scores and gains of runs that differ in their seed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.seeds import PairedT, paired_t
from lightning_mmrl.report.run_files import Evaluated, RunFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class OverSeeds:
    """A headline metric over seeds, or its difference to `over`: another stage of the same runs, or other runs."""

    stage: str
    name: str
    headline: str
    found: PairedT
    over: str | None = None

    def plain(self) -> dict[str, Any]:
        """Plain values for a file."""
        over = {} if self.over is None else {"over": self.over}
        return {"stage": self.stage, "set": self.name, **over, "headline": self.headline, **asdict(self.found)}


def by_seed(runs: Sequence[RunFiles]) -> dict[int, RunFiles]:
    """The runs by their seeds.

    Raises:
        DataError: A run has no seed in its configuration, or two have the same.
    """
    found: dict[int, RunFiles] = {}
    for run in runs:
        seed = run.settings.get("seed")
        if not isinstance(seed, int):
            raise DataError(f"{run.folder} has no seed in its config.yaml; name runs of `mmrl train`")
        if seed in found:
            raise DataError(f"{found[seed].folder} and {run.folder} both have seed {seed}; name one run of each seed")
        found[seed] = run
    return dict(sorted(found.items()))


def headlines(runs: Mapping[int, RunFiles]) -> list[OverSeeds]:
    """The headline of each stage on each set that all runs evaluated, with its mean over seeds."""
    return [
        OverSeeds(
            stage=stage,
            name=name,
            headline=found[0].headline,
            found=paired_t([each.metrics[each.headline] for each in found]),
        )
        for (stage, name), found in _shared(runs.values()).items()
    ]


def gains(runs: Mapping[int, RunFiles]) -> list[OverSeeds]:
    """The gain of each stage over the one it started from, with its mean over seeds."""
    known = [{(gain["stage"], gain["over"], gain["name"]): gain for gain in run.gains} for run in runs.values()]
    shared = [key for key in known[0] if all(key in each for each in known)]
    return [
        OverSeeds(
            stage=stage,
            name=name,
            headline=known[0][stage, over, name]["headline"],
            over=over,
            found=paired_t([each[stage, over, name]["difference"]["estimate"] for each in known]),
        )
        for stage, over, name in shared
    ]


def against(runs: Mapping[int, RunFiles], others: Mapping[int, RunFiles], over: str) -> list[OverSeeds]:
    """The headline of runs minus that of other runs with the same seeds, for each stage and set that all have.

    Raises:
        DataError: The seeds differ.
    """
    if runs.keys() != others.keys():
        raise DataError(
            f"the runs have the seeds {list(runs)}, those to compare with {list(others)}; name runs with the same seeds"
        )
    found = _shared([*runs.values(), *others.values()])
    return [
        OverSeeds(
            stage=stage,
            name=name,
            headline=each[0].headline,
            over=over,
            found=paired_t([_value(a) - _value(b) for a, b in zip(each[: len(runs)], each[len(runs) :], strict=True)]),
        )
        for (stage, name), each in found.items()
    ]


def _value(each: Evaluated) -> float:
    return each.metrics[each.headline]


def _shared(runs: Any) -> dict[tuple[str, str], list[Evaluated]]:
    """Stage and set to their results, one for each run, where all runs have it.

    Raises:
        DataError: The results of a set are of different tasks.
    """
    known = [{(each.stage, each.name): each for each in run.evaluated} for run in runs]
    shared = {key: [each[key] for each in known] for key in known[0] if all(key in each for each in known)}
    for (stage, name), found in shared.items():
        metrics = sorted({each.headline for each in found})
        if len(metrics) > 1:
            raise DataError(f"{stage} was measured on {name} by {' and by '.join(metrics)}; compare runs of one task")
    return shared
