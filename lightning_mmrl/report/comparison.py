"""Reads the plan and the state of a comparison of arms, `compare.json`, which anyone may have written."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import DataError, StageError
from lightning_mmrl.files import read_json
from lightning_mmrl.settings.budget import MEASURES

FILE = "compare.json"
RUNS = "runs"
"""Folder of a comparison with the runs of its arms."""
SMALLEST, LARGEST = 1e-9, 1e40
"""Bounds of a budget that somebody may have meant."""
VERSION = 1
_REMEDY = "restore it, or remove it and run the same `mmrl compare` again"
Number = int | float


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One arm: its overrides, the order of its stages, and those that train.

    `apart` are the stages that the budget leaves out, `shares` the parts of the budget by the stage that it ends.
    Files of earlier versions do not say which stages train; `trained` is then empty.
    """

    overrides: tuple[str, ...]
    order: tuple[str, ...]
    trained: tuple[str, ...]
    apart: tuple[str, ...]
    shares: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A run of the comparison; `exit_code` is None if it has not ended, and `best` if nothing was evaluated there.

    `best_exit_code` is that of the evaluation of its best weights, apart from that of the run; None without one.
    `folder` and `best` are relative to the folder of the comparison. `shared` are the stages that it took over.
    """

    arm: str
    seed: int
    fold: str | None
    folder: str
    exit_code: int | None
    shared: tuple[str, ...]
    best: str | None
    best_exit_code: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A comparison as it was planned, and the runs that began.

    `set_name` is the evaluation set, `metric` the name of a metric or None for the headline. `measure` and `total` are
    the budget of each run, None without one. `folds` is (None,) without folds. `tracking_id` is the run of
    the comparison in the tracker.
    """

    folder: Path
    name: str
    question: str
    exploratory: bool
    command: tuple[str, ...]
    baseline: str
    set_name: str
    metric: str | None
    measure: str | None
    total: float | None
    tolerance: float
    arms: Mapping[str, Arm]
    seeds: tuple[int, ...]
    folds: tuple[str | None, ...]
    runs: tuple[PlannedRun, ...]
    all_pairs: bool
    tracking_id: str | None

    def within(self, place: str) -> Path | None:
        """A place that the file names, if it leads to the folder of the comparison."""
        path = self.folder / place
        try:
            return path if path.resolve().is_relative_to(self.folder.resolve()) else None
        except (OSError, ValueError):  # no name of a file
            return None


def read_plan(folder: Path) -> Plan:
    """Reads `compare.json` in the folder of a comparison; the optional key `all_pairs` compares each pair of arms.

    Raises:
        DataError: The folder is none of a comparison, or the file is damaged or contradicts itself.
    """
    path = folder / FILE
    if not path.is_file():
        raise DataError(
            f"{folder} is no folder of a comparison, it has no {FILE}; name a folder that `mmrl compare` made"
        )
    try:
        whole = _Part(path, "", read_json(path, _REMEDY))
    except StageError as error:
        raise DataError(str(error)) from error
    if (version := whole.get("version", int)) != VERSION:
        raise DataError(f"{path} has version {version}; this program reads version {VERSION}; {_REMEDY}")
    measure = whole.part("measure")
    budget = whole.get("budget", dict, None)
    plan = Plan(
        folder=folder,
        name=whole.get("name", str),
        question=whole.get("question", str),
        exploratory=whole.get("exploratory", bool),
        command=whole.listed("command", str),
        baseline=whole.get("baseline", str),
        set_name=measure.get("set", str),
        metric=measure.get("metric", str, None),
        measure=None if budget is None else _measure(path, budget),
        total=None if budget is None else float(next(iter(budget.values()))),
        tolerance=_tolerance(path, whole.get("tolerance", Number)),
        arms={name: _arm(part) for name, part in whole.part("arms").parts()},
        seeds=whole.listed("seeds", int),
        folds=whole.listed("folds", str, None) or (None,),
        runs=tuple(_run(part) for _, part in whole.parts("runs")),
        all_pairs=whole.get("all_pairs", bool, None) or False,
        tracking_id=whole.get("tracking_id", str, None),
    )
    _check(path, plan)
    return plan


def _measure(path: Path, budget: Mapping[str, Any]) -> str:
    known = [name for name in MEASURES if name in budget]
    total = budget.get(known[0]) if known else None
    if len(budget) != 1 or isinstance(total, bool) or not isinstance(total, Number) or not SMALLEST < total < LARGEST:
        raise DataError(f"{path}: budget is {budget}; it must be one of {', '.join(MEASURES)} above 0; {_REMEDY}")
    return known[0]


def _tolerance(path: Path, value: Number) -> float:
    if not 0 <= value < 1:
        raise DataError(f"{path}: tolerance is {value!r:.60}; it must be at least 0 and below 1; {_REMEDY}")
    return float(value)


def _arm(part: "_Part") -> Arm:
    shares = {name: float(part.part("shares").get(name, Number)) for name in part.get("shares", dict)}
    texts = {key: part.listed(key, str) for key in ("overrides", "order", "apart")}
    trained = () if part.get("trained", list, None) is None else part.listed("trained", str)
    return Arm(**texts, trained=trained, shares=shares)


def _run(part: "_Part") -> PlannedRun:
    return PlannedRun(
        arm=part.get("arm", str),
        seed=part.get("seed", int),
        fold=part.get("fold", str, None),
        folder=part.get("folder", str),
        exit_code=part.get("exit_code", int, None),
        shared=part.listed("shared", str),
        best=part.get("best", str, None),
        best_exit_code=part.get("best_exit_code", int, None),
    )


def _check(path: Path, plan: Plan) -> None:
    """Refuses a plan that contradicts itself."""
    if plan.baseline not in plan.arms:
        raise DataError(f"{path}: baseline is {plan.baseline!r}, and the arms are {', '.join(plan.arms)}; {_REMEDY}")
    if not plan.seeds:
        raise DataError(f"{path}: seeds is empty; {_REMEDY}")
    cells = [(run.arm, run.seed, run.fold) for run in plan.runs]
    folders = [run.folder for run in plan.runs]
    for key, values in (("seeds", plan.seeds), ("folds", plan.folds), ("runs", cells), ("runs.folder", folders)):
        if len(set(values)) < len(values):
            raise DataError(f"{path}: {key} has an entry twice; {_REMEDY}")
    for arm, seed, fold in cells:
        if arm not in plan.arms or seed not in plan.seeds or fold not in plan.folds:
            shown = f"arm {arm!r}, seed {seed}, fold {fold}"
            raise DataError(f"{path}: runs has {shown}, which arms, seeds or folds do not name; {_REMEDY}")


class _Part:
    """A mapping of a JSON file, with its place in the file for messages."""

    def __init__(self, path: Path, place: str, content: object) -> None:
        if not isinstance(content, dict):
            raise DataError(f"{path}: {place or 'the whole'} is no mapping of keys; {_REMEDY}")
        self._path, self._place, self._content = path, place, content

    def get(self, key: str, kind: Any, *default: None) -> Any:
        """The value of a key, of a kind; `default` None also allows null and a missing key."""
        place = f"{self._place}.{key}".lstrip(".")
        if key not in self._content and not default:
            raise DataError(f"{self._path} has no key {place}; {_REMEDY}")
        value = self._content.get(key)
        if value is None and default:
            return None
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise DataError(f"{self._path}: {place} is {value!r:.60}, which is of the wrong kind; {_REMEDY}")
        return value

    def listed(self, key: str, kind: Any, *also: None) -> tuple[Any, ...]:
        """A list of values of a kind; `also` None allows null among them."""
        place, values = f"{self._place}.{key}".lstrip("."), self.get(key, list)
        for each in values:
            good = isinstance(each, kind) and not isinstance(each, bool)
            if not good and not (also and each is None):
                raise DataError(f"{self._path}: {place} has {each!r:.60}, which is of the wrong kind; {_REMEDY}")
        return tuple(values)

    def part(self, key: str) -> "_Part":
        """A mapping in this one."""
        return _Part(self._path, f"{self._place}.{key}".lstrip("."), self.get(key, dict))

    def parts(self, key: str | None = None) -> list[tuple[str, "_Part"]]:
        """All mappings in this one, or in its list `key`, with their names or numbers."""
        items = self._content.items() if key is None else enumerate(self.get(key, list))
        prefix = self._place if key is None else key
        return [(str(name), _Part(self._path, f"{prefix}.{name}", each)) for name, each in items]
