"""The runs of a comparison: each arm with each seed on each fold, composed and checked before anything trains."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from lightning_mmrl.app.arm_shares import with_shares
from lightning_mmrl.config.checks.values import check_name
from lightning_mmrl.config.specs import base_evaluation, flattened, manifest_digests, stage_specs
from lightning_mmrl.curriculum.changes import changed_keys
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry.tasks import task_of_result, task_outlines
from lightning_mmrl.report.comparison import RUNS
from lightning_mmrl.settings.budget import MEASURES, BudgetSettings
from lightning_mmrl.settings.compare import BASE, DATA, EVALUATION, CompareSettings
from lightning_mmrl.settings.rules import one_of, require
from lightning_mmrl.settings.run import MAX_SEED, VARIANTS, RunSettings
from lightning_mmrl.suggestions import did_you_mean, shown
from lightning_mmrl.types.records import StageSpec

Compose = Callable[[Sequence[str]], RunSettings]
"""Composes and validates arguments of `mmrl train`."""
OWN = {"output_dir": "give --output-dir", "run_name": "give --name", "seed": "give --seeds"}
"""Keys that the comparison sets itself, and what sets them."""
SHARED, BEST = "shared", "best"
"""Folders of a comparison beside `RUNS`: of runs that train what several arms share, and of evaluations of the best
weights."""
FOLD = "{fold}"
"""Stands for the fold in an override."""
MOST_SHOWN = 6
NO_PART = ("run_name", "trial", "output_dir", "state", "tracking")
"""Keys of a run that change nothing of what it trains and measures."""
NO_PART_OF_A_STAGE = ("evaluation_sets", "gate")
"""Keys of a stage that change nothing of its weights; a gate only says whether the run goes on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ArmRun:
    """One arm with one seed on one fold.

    `arguments` are all arguments of `mmrl train` except `run_name`. `folder` is the comparison's folder within the
    configuration's `output_dir`.
    """

    arm: str
    seed: int
    fold: str | None
    arguments: tuple[str, ...]
    config: RunSettings
    folder: str

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.arm}-{self.suffix}"

    @property
    def suffix(self) -> str:
        """Names the seed and the fold."""
        fold = "" if self.fold is None else self.fold if self.fold.startswith("fold") else f"fold_{self.fold}"
        return f"seed{self.seed}" + (f"-{fold}" if fold else "")

    @property
    def directory(self) -> Path:
        """The run's folder."""
        return self.comparison / RUNS / self.name

    @property
    def comparison(self) -> Path:
        """The folder of the comparison; a debug run has put its prefix before the name."""
        return (Path(self.config.output_dir) / self.config.run_name).parents[1]

    def command(self, kind: str, name: str) -> tuple[str, ...]:
        """Arguments of `mmrl train` or `mmrl evaluate` for a run in the folder `kind` of the comparison."""
        return (*self.arguments, f"run_name={self.folder}/{kind}/{name}")

    def specs(self) -> list[StageSpec]:
        """The stages with their digests, which follow the data as far as they exist by now."""
        return stage_specs(self.config, manifest_digests(self.config))

    def base_evaluation(self) -> str:
        """The hash of how the base model is evaluated; empty if it is not evaluated."""
        specs = stage_specs(self.config)
        starts = any(spec.trains and spec.source is None and not spec.settings.checkpoint for spec in specs)
        return base_evaluation(self.config) if starts else ""

    def conditions(self, stage: str | None = None) -> str:
        """A hash of all with which a stage is run that a digest may leave out, such as engine, devices and threads.

        Args:
            stage: Name of the stage; None for the evaluation of the base model.
        """
        found = _essence(self.config)
        del found["order"], found["budget"]  # the digest has what comes before a stage and what it may spend
        own = found.pop("stages").get(stage, {})
        found["stage"] = {key: value for key, value in own.items() if key not in NO_PART_OF_A_STAGE}
        return hashlib.sha256(json.dumps(found, sort_keys=True, default=str).encode()).hexdigest()

    @property
    def outline(self) -> dict[str, Any]:
        """The order of the stages, the names of those that train, and `budgeted`."""
        return {"order": list(self.config.order), "trained": list(self.config.trained), **self.budgeted}

    @property
    def budgeted(self) -> dict[str, Any]:
        """The stages that the budget does not count, and the share of each that it ends; both empty without one."""
        budget = self.config.budget
        return {"apart": [], "shares": {}} if budget is None else {"apart": budget.apart, "shares": budget.shares}


def check_arms(settings: CompareSettings) -> None:
    """Refuses what is wrong with a comparison whatever its experiment.

    Raises:
        ConfigError: Naming key, value and fix.
    """
    arms = settings.arms
    if len(arms) < 2:
        found = f"one arm, {next(iter(arms))}" if arms else "no arms"
        raise ConfigError(f"arms: the comparison has {found}; name at least two, as arms.NAME or --arm NAME=OVERRIDES")
    for name in arms:
        check_name("arms", name)
    if settings.baseline is not None:
        one_of(settings.baseline, "baseline", arms)
    require(settings.seeds, "seeds", settings.seeds, "at least one seed, such as 0-2")
    for seed in settings.seeds:
        require(0 <= seed <= MAX_SEED, "seeds", seed, f"whole numbers from 0 to {MAX_SEED}")
    _refuse_twice("seeds", settings.seeds)
    _check_budget(settings.budget)
    places = {"overrides": settings.overrides, **{f"arms.{name}": arm.overrides for name, arm in arms.items()}}
    for place, overrides in places.items():
        refuse_own(place, overrides, has_budget=settings.budget is not None)
    for name, arm in arms.items():
        if (arm.shares or settings.shares) and settings.budget is None:
            raise ConfigError(f"arms.{name}.shares are given, and there is no budget to share; give budget or --budget")


def _check_budget(budget: BudgetSettings | None) -> None:
    if budget is None:
        return
    if len(budget.given) != 1:
        given = ", ".join(budget.given) or "no limit"
        raise ConfigError(f"budget has {given}; give exactly one of {', '.join(MEASURES)}")
    if budget.apart or budget.shares:
        raise ConfigError(
            "budget of a comparison has apart or shares; give arms.NAME.shares, and leave out apart: no arm pays for "
            "the stages that all arms share"
        )


def _refuse_twice(key: str, values: Iterable[Any]) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise ConfigError(f"{key} has {value} twice; name it once")
        seen.add(value)


def refuse_own(place: str, overrides: Sequence[str], *, has_budget: bool) -> None:
    """Refuses overrides of keys that the comparison sets itself; `place` says where they stand.

    Raises:
        ConfigError: Naming place, key and fix.
    """
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key in OWN:
            raise ConfigError(f"{place} sets {key}, which the comparison sets for each of its runs; {OWN[key]}")
        if has_budget and key.partition(".")[0] == "budget":
            raise ConfigError(f"{place} sets {key}, and the comparison has a budget of its own; leave one of them out")


def folds_named(names: Sequence[str], overrides: Iterable[str]) -> dict[str | None, list[str]]:
    """The folds that `{fold}` in an override stands for, without overrides of their own.

    Raises:
        ConfigError: A name is given twice or is no name, or no override has `{fold}`.
    """
    _refuse_twice("folds", names)
    for name in names:
        check_name("folds", name)
    if not any(FOLD in override for override in overrides):
        raise ConfigError(
            f"folds are {', '.join(names)}, and no override has {{fold}}; write it where the fold's data are named, or "
            "name a folder of mmrl data folds"
        )
    return {name: [] for name in names}


def planned(
    settings: CompareSettings,
    given: Sequence[str],
    folder: str,
    folds: Mapping[str | None, Sequence[str]],
    compose: Compose,
) -> list[ArmRun]:
    """Composes each arm with each seed on each fold; by seed, then fold, then arm.

    Args:
        settings: The comparison.
        given: Arguments of all arms: flags, and overrides of the command line.
        folder: Name of the comparison's folder.
        folds: Maps each fold to the overrides that choose its data.
        compose: Composes arguments.

    Raises:
        ConfigError: A configuration is refused, two arms are the same, or they differ in what they may not differ in.
    """
    check_arms(settings)
    first = (settings.seeds[0], next(iter(folds)))

    def composed(arm: str, seed: int, fold: str | None, budget: Sequence[str]) -> ArmRun:
        own = settings.arms[arm].overrides
        whole = [each.replace(FOLD, fold or FOLD) for each in (*settings.overrides, *given, *own)]
        arguments = (*whole, *folds[fold], *budget, f"seed={seed}")
        probe = f"run_name={folder}/{RUNS}/{arm}"
        try:
            config = compose([*arguments, probe])
        except ConfigError as error:
            raise ConfigError(f"arm {arm}: {error}") from error
        return ArmRun(arm=arm, seed=seed, fold=fold, arguments=arguments, config=config, folder=folder)

    free = [composed(arm, *first, ()) for arm in settings.arms]
    settings = with_shares(settings, free)
    refuse_equal(free, settings)
    refuse_differences(free, settings.may_differ)
    for run in free:
        _check_measure(run, settings)
        _check_shares(run, settings.arms[run.arm].shares)
    if settings.budget is None:
        budgets = {arm: () for arm in settings.arms}
    else:
        apart = stages_apart(free, settings)
        budgets = {run.arm: budget_overrides(run, settings, apart, settings.budget) for run in free}
    places = [(seed, fold) for seed in settings.seeds for fold in folds]
    return [
        free[number] if place == first and settings.budget is None else composed(arm, *place, budgets[arm])
        for place in places
        for number, arm in enumerate(settings.arms)
    ]


def stages_apart(runs: Sequence[ArmRun], settings: CompareSettings) -> list[str]:
    """The stages that all arms share and that the budget does not count.

    They are the longest common beginning of all arms, cut before the first stage that has a share of the budget in an
    arm, or that is the last trained stage of one: the budget says how long such a stage is.
    """
    ended = {stage for arm in settings.arms.values() for stage in arm.shares}
    ended |= {list(run.config.trained)[-1] for run in runs if run.config.trained}
    apart = []
    for column in zip(*(run.specs() for run in runs), strict=False):
        if len({(spec.name, spec.digest) for spec in column}) > 1 or column[0].name in ended:
            break
        apart.append(column[0].name)
    return apart


def budget_overrides(
    run: ArmRun, settings: CompareSettings, apart: Sequence[str], budget: BudgetSettings
) -> tuple[str, ...]:
    """The override that gives an arm its budget.

    Raises:
        ConfigError: The arm trains nothing.
    """
    if not run.config.trained:
        raise ConfigError(f"arm {run.arm} trains no stage, so that it has no use for a budget; leave out the budget")
    shares = settings.arms[run.arm].shares or {list(run.config.trained)[-1]: 1.0}
    content = {budget.measure: budget.total, "apart": list(apart), "shares": dict(shares)}
    return (f"++budget={_plain(content)}",)


def _plain(value: Any) -> str:
    """Plain values in Hydra's grammar, whose keys have no quotes."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_plain(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_plain, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def refuse_equal(runs: Sequence[ArmRun], settings: CompareSettings) -> None:
    """Refuses two arms with the same shares whose configurations differ in no key that can change a result.

    Raises:
        ConfigError: Naming both arms.
    """
    for one, two in combinations(runs, 2):
        same = _essence(one.config) == _essence(two.config)
        if same and settings.arms[one.arm].shares == settings.arms[two.arm].shares:
            raise ConfigError(
                f"arms {one.arm} and {two.arm} have the same configuration, or differ in stages that they do not run, "
                "in state or in tracking alone; change or remove one of them"
            )


def _essence(config: RunSettings) -> dict[str, Any]:
    """The configuration without keys that can change no result: names, places, and stages that are not run."""
    found = {key: value for key, value in asdict(config).items() if key not in NO_PART}
    return found | {"stages": {name: found["stages"][name] for name in config.order}}


def refuse_differences(runs: Sequence[ArmRun], permitted: Sequence[str]) -> None:
    """Refuses arms that differ from the first one in their base model, data or evaluation without permission.

    base: the keys of `model`, and the checkpoints that stages name. data: the keys of `data` and `datasets`, and what a
    stage reads that both arms have. A stage that one arm alone has may read anything: methods need data of their own,
    so that SFT then RL and RL then SFT over the same manifests differ in nothing. evaluation: the keys of `evaluation`,
    and the sets and prompts after the last trained stage.

    Raises:
        ConfigError: Naming the keys and both values.
    """
    first = runs[0]
    for other in runs[1:]:
        common = {*first.config.order} & {*other.config.order}
        for kind, read in _READ.items():
            lines = changed_keys(read(first.config, common), read(other.config, common))
            if lines and kind not in permitted:
                more = f" and {len(lines) - MOST_SHOWN} more" if len(lines) > MOST_SHOWN else ""
                raise ConfigError(
                    f"arms {first.arm} and {other.arm} differ in {kind} ({'; '.join(lines[:MOST_SHOWN])}{more}); make "
                    f"them equal, or say that they may differ: may_differ: [{', '.join([*permitted, kind])}]"
                )


def _base(config: RunSettings, common: Iterable[str]) -> dict[str, Any]:
    model = {**asdict(config.model), "feature_cache": None, "known_sizes": None}
    found = flattened({"model": model})
    for name in config.order:
        if config.stages[name].checkpoint is not None:
            found[f"stages.{name}.checkpoint"] = config.stages[name].checkpoint
    return found


def _data(config: RunSettings, common: Iterable[str]) -> dict[str, Any]:
    found = flattened({"data": asdict(config.data), "datasets": {n: asdict(d) for n, d in config.datasets.items()}})
    for name in sorted(common):
        data = config.stages[name].data
        sources = {key: {**asdict(each), "target": None} for key, each in data.sources.items()}
        own = {"dataset": data.dataset, "manifest": data.manifest, "limit": data.limit, "sources": sources}
        found |= flattened(own, f"stages.{name}.data.")
    return found


def _evaluation(config: RunSettings, common: Iterable[str]) -> dict[str, Any]:
    found = flattened({"evaluation": {**asdict(config.evaluation), "batch_size": None}})
    last = list(config.trained.values())[-1:]
    sets = config.sets(last[0].evaluation_sets) if last else config.sets()
    for name, each in sets.items():
        found |= flattened(asdict(config.prompt_of(each, *last)), f"prompt after the last stage on {name}, ")
    return found


_READ = {BASE: _base, DATA: _data, EVALUATION: _evaluation}


def _check_shares(run: ArmRun, shares: Mapping[str, float]) -> None:
    for stage in shares:
        if stage not in run.config.trained:
            has = did_you_mean(stage, run.config.trained)
            raise ConfigError(f"arms.{run.arm}.shares.{stage}: the arm trains no stage of this name{has}")


def _check_measure(run: ArmRun, settings: CompareSettings) -> None:
    """Refuses a set that an arm is not evaluated on after its last trained stage, and a metric that is none of its."""
    config, measure = run.config, settings.measure
    chosen = list(config.trained.values())[-1].evaluation_sets if config.trained else None
    known = list(config.evaluation.sets if chosen is None else chosen)
    whole = next((each for each in known if re.fullmatch(f"{re.escape(each)}-({'|'.join(VARIANTS)})", measure.set)), "")
    if not whole and measure.set not in known:
        raise ConfigError(
            f"measure.set is {shown(repr(measure.set))}, and arm {run.arm} is not evaluated on such a set after its "
            f"last stage{did_you_mean(measure.set, known)}"
        )
    if measure.metric is not None:
        names = [each.name for each in task_of_result(measure.set, task_outlines(config)).measures]
        one_of(measure.metric, "measure.metric", names)
