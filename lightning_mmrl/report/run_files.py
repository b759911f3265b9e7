"""Reads what a run left in its folder; a missing or damaged part is named, and the rest is read all the same."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from lightning_mmrl.curriculum.artifacts import SEAL, sealed
from lightning_mmrl.curriculum.lineage import COUNTS, ROUTING
from lightning_mmrl.curriculum.manifest import FILE, FinishedStage, Manifest
from lightning_mmrl.errors import DataError, MmrlError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.files import read_json
from lightning_mmrl.settings.stage import BASE
from lightning_mmrl.tracking.jsonl import read_lines, unreadable_lines
from lightning_mmrl.types.records import HANDOFF, StageResult

CONFIG, SUMMARY, COMPARISON, STARTS = "config.yaml", "evaluation.json", "comparison.json", "starts.jsonl"
CLOSED_LABELS = "uar"
"""Headline of a result that names no task, which is one of a closed label set (`ClosedLabels.described`)."""
_FOLDER = re.compile(r"\d+-(.+?)(\.replaced-\d+)?")
_SHAPES = {"order": list, "stages": dict, "model": dict, "data": dict, "evaluation": dict}
"""Keys of a configuration that the page reads, and the kind of their values."""
_NEEDED = ("run_name", "order", "stages", "evaluation")
"""Keys that every configuration has."""
_WRITE_AGAIN = "evaluate the stage again"
Result = tuple[str, str | None]
"""A stage and a set on which it was evaluated; None stands for all its sets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """One stage on one set. `intervals` maps a metric to its estimate, low and high end; `folder` has the answers.

    `more` has what some versions and settings measure beside metrics, as it stands in the file.
    """

    stage: str
    name: str
    num_samples: int
    num_left_out: int
    headline: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, Mapping[str, Any]]
    folder: Path
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFiles:
    """One stage of a run: `folder` and `finished` are None if it has not begun or not ended.

    `counts` maps each artifact of data to the numbers of samples that it holds and lacks. `routing` is what a stage
    that sorts prompts did with them.
    """

    name: str
    kind: str
    folder: Path | None
    finished: FinishedStage | None
    counts: Mapping[str, Mapping[str, int]]
    routing: Mapping[str, Mapping[str, Any]]

    @property
    def result(self) -> StageResult | None:
        """The result, if the stage is finished."""
        return None if self.finished is None else self.finished.result

    @property
    def trains(self) -> bool:
        """Whether it made weights."""
        return self.result is not None and HANDOFF in self.result.artifacts


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFiles:
    """What a run left on disk.

    `starts` has the commit and the versions of each start. `missing` says in one sentence each what was not there or
    could not be read; `damaged` has the sentence for each evaluation that could not be read. `answers` keeps files of
    predictions that were read, None for one that cannot be read. `number` is the place of the run on its page. Without
    `is_known` the manifest could not be read, so that it is not known which stages are finished.
    """

    folder: Path
    name: str
    settings: Mapping[str, Any]
    manifest: Manifest
    stages: tuple[StageFiles, ...]
    evaluated: tuple[Evaluated, ...]
    gains: tuple[Mapping[str, Any], ...]
    starts: tuple[Mapping[str, Any], ...] = ()
    missing: list[str] = field(default_factory=list)
    damaged: Mapping[Result, str] = field(default_factory=dict)
    answers: dict[Path, Sequence[Judgement] | None] = field(default_factory=dict)
    number: int = 0
    is_known: bool = True

    @property
    def status(self) -> str:
        """Whether the run ended, as far as its files say."""
        if not self.is_known:
            return "unknown"
        done = [stage for stage in self.stages if stage.finished is not None]
        whole = len(done) == len(self.stages) and bool(done)
        # The run itself is in progress, and none of its stages: the page is written before MLflow is told of the end.
        ending = whole and self.manifest.running_name == self.name
        if self.manifest.running_id is not None and not ending:
            name = self.manifest.running_name or "a stage"
            return f"in progress, or killed, in {name}; {len(done)} of {len(self.stages)} stages finished"
        if whole:
            return f"all {len(done)} stages finished"
        return f"ended with {len(done)} of {len(self.stages)} stages finished"


def whole_of(run: RunFiles, name: str) -> str:
    """The set that a result is of: `test` for `test-silent`, which is the set under one variant of its inputs.

    A name that the configuration has is a set, whatever it looks like.
    """
    sets = run.settings.get("evaluation", {}).get("sets")
    known = sets if isinstance(sets, dict) else {}
    found = {*known, *(each.name for each in run.evaluated)}
    owners = [each for each in found if name.startswith(f"{each}-")]
    return name if name in known or not owners else min(owners, key=len)


def variants_of(run: RunFiles, each: Evaluated) -> dict[str, Evaluated]:
    """The results of one stage on one set under each variant, such as `silent`."""
    ours = [one for one in run.evaluated if one.stage == each.stage and one.name != each.name]
    return {one.name.removeprefix(f"{each.name}-"): one for one in ours if whole_of(run, one.name) == each.name}


def read_runs(folders: Sequence[Path]) -> list[RunFiles]:
    """Reads run folders; to runs with one name it adds the part of their paths that differs, or a number.

    Raises:
        DataError: A folder is none of a run.
    """
    runs = [read_run(folder) for folder in folders]
    if len({run.name for run in runs}) == len(runs):
        return runs
    marks = _marks([run.folder.resolve() for run in runs])
    return [replace(run, name=f"{run.name} ({mark})") for run, mark in zip(runs, marks, strict=True)]


def _marks(folders: Sequence[Path]) -> list[str]:
    """The last parts of paths, counted from their ends, that differ; numbers if none do.

    >>> _marks([Path("/old/quickstart"), Path("/new/quickstart")]), _marks([Path("/a"), Path("/a")])
    (['old', 'new'], ['1', '2'])
    """
    for parts in zip(*(reversed(folder.parts) for folder in folders), strict=False):
        if len(set(parts)) == len(parts):
            return list(parts)
    return [str(number) for number, _ in enumerate(folders, start=1)]


def read_run(folder: Path) -> RunFiles:
    """Reads a run folder.

    Raises:
        DataError: The folder is none of a run.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; name the folder of a run, such as runs/quickstart")
    if not any((folder / each).exists() for each in (FILE, CONFIG, "stages")):
        raise DataError(
            f"{folder} is no run folder, it has no {FILE}; name the folder of a run, such as runs/quickstart"
        )
    missing: list[str] = []
    manifest, settings = _manifest(folder, missing), _settings(folder, missing)
    stages = tuple(_stages(folder, manifest or Manifest(), settings, missing))
    if not stages:
        missing.append("No stage has begun.")
    damaged: dict[Result, str] = {}
    evaluated = tuple(_evaluated(folder, manifest or Manifest(), stages, missing, damaged))
    if not evaluated:
        missing.append("No stage was evaluated, so there are no scores; give the configuration evaluation sets.")
    return RunFiles(
        folder=folder,
        name=str(settings.get("run_name") or folder.resolve().name),
        settings=settings,
        manifest=manifest or Manifest(),
        is_known=manifest is not None,
        stages=stages,
        evaluated=evaluated,
        gains=tuple(_gains(folder, missing)) if evaluated else (),
        starts=tuple(_starts(folder, missing)),
        missing=missing,
        damaged=damaged,
    )


def _manifest(folder: Path, missing: list[str]) -> Manifest | None:
    """None if it is missing, damaged or of another version: nobody knows then which stages are finished."""
    try:
        if (folder / FILE).is_file():
            return Manifest.read(folder)
        problem = f"{FILE} is missing"
    except (MmrlError, OSError) as error:
        problem = str(error)
    missing.append(f"{problem}; it is not known which stages are finished, what they cost and what they read.")
    return None


def _starts(folder: Path, missing: list[str]) -> list[dict[str, Any]]:
    found = records_of(folder / STARTS, missing)
    whole = [each for each in found if isinstance(each.get("versions"), dict)]
    if len(whole) < len(found):
        missing.append(f"{len(found) - len(whole)} lines of {folder / STARTS} name no versions and are left out.")
    return whole


def records_of(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    """The records of a file of lines; none, with a note, if it cannot be read. Damaged lines are counted."""
    try:
        found, damaged = read_lines(path), len(unreadable_lines(path))
    except (OSError, MmrlError) as error:
        missing.append(f"{path} cannot be read ({error}).")
        return []
    if damaged:
        missing.append(f"{damaged} lines of {path} are damaged and left out.")
    return found


def _settings(folder: Path, missing: list[str]) -> Mapping[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        missing.append(f"{CONFIG} is missing: the run ended before its configuration was written.")
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        missing.append(f"{CONFIG} cannot be read ({type(error).__name__}).")
        return {}
    if not isinstance(found, dict):
        missing.append(f"{CONFIG} holds no keys.")
        return {}
    lacking = [key for key in _NEEDED if key not in found]
    if lacking:
        missing.append(f"{CONFIG} has no {', '.join(lacking)}: it is cut off, or of another version.")
    odd = [key for key, kind in _SHAPES.items() if key in found and not isinstance(found[key], kind)]
    missing.extend(f"{CONFIG}: {key} is no {_SHAPES[key].__name__}, so it is not read." for key in odd)
    return {key: value for key, value in found.items() if key not in odd}


def _stages(folder: Path, manifest: Manifest, settings: Mapping[str, Any], missing: list[str]) -> list[StageFiles]:
    paths = sorted(path for path in folder.glob("stages/*") if path.is_dir() and _inside(path, folder, missing))
    matches = {path: _FOLDER.fullmatch(path.name) for path in paths}
    folders = {match[1]: path for path, match in matches.items() if match and not match[2]}
    names = dict.fromkeys(map(str, [*settings.get("order", ()), *manifest.stages, *folders]))
    configured = settings.get("stages", {})
    found = []
    for name in names:
        finished, own = manifest.stages.get(name), configured.get(name)
        kind = finished.content.get("stage.kind") if finished else isinstance(own, dict) and own.get("kind")
        facts = _facts(folder, finished, missing) if finished else {}
        found.append(
            StageFiles(
                name=name,
                kind=str(kind or "unknown kind"),
                folder=folders.get(name),
                finished=finished,
                counts={key: each[COUNTS] for key, each in facts.items() if COUNTS in each},
                routing=next((each[ROUTING] for each in facts.values() if ROUTING in each), {}),
            )
        )
    return found


def _facts(folder: Path, stage: FinishedStage, missing: list[str]) -> dict[str, dict[str, Any]]:
    """The seals of the data that a stage made."""
    found = {}
    for name, made in stage.result.artifacts.items():
        place = folder / made.path
        if name == HANDOFF or not _inside(place, folder, missing):
            continue
        try:
            found[name] = sealed(place)
        except MmrlError as error:
            missing.append(f"Counts of {name} of stage {stage.result.name}: {error}.")
        except OSError as error:
            missing.append(f"{place / SEAL} cannot be read ({error.strerror}).")
    return found


def _inside(place: Path, folder: Path, missing: list[str]) -> bool:
    """Whether a path that a file of the run names leads to its own folder; a run may come from anybody."""
    inside = place.resolve().is_relative_to(folder.resolve())
    if not inside:
        missing.append(f"{place} leads out of {folder}, so it is not read.")
    return inside


def _evaluated(
    folder: Path, manifest: Manifest, stages: tuple[StageFiles, ...], missing: list[str], damaged: dict[Result, str]
) -> list[Evaluated]:
    base = folder / (f"{BASE}/evaluation" if manifest.base is None else manifest.base.path)
    places = {BASE: base} if (base / SUMMARY).is_file() and _inside(base, folder, missing) else {}
    for stage in stages:
        if stage.folder is None:
            continue
        place = stage.folder / "evaluation"
        if not os.path.lexists(place / SUMMARY):
            missing += [f"Stage {stage.name} is trained and not evaluated yet."] if stage.trains else []
        elif _inside(place / SUMMARY, folder, missing):
            places[stage.name] = place
        else:
            damaged[stage.name, None] = missing[-1]
    return [each for name, place in places.items() for each in results_in(place, name, missing, damaged)]


def results_in(
    place: Path, stage: str, missing: list[str], damaged: dict[Result, str] | None = None
) -> list[Evaluated]:
    """The results of an evaluation by set; none, with a note in `missing` and in `damaged`, if they cannot be read."""
    damaged, found = {} if damaged is None else damaged, []
    try:
        for key, entry in read_json(place / SUMMARY, _WRITE_AGAIN).items():
            if _inside(place / f"{key}.jsonl", place, missing):
                found.append(_one(stage, key, entry, place))
            else:
                damaged[stage, str(key)] = missing[-1]
        return found
    except MmrlError as error:
        note = f"{error}."
    except (OSError, KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        note = f"{place / SUMMARY} is damaged ({type(error).__name__}); {_WRITE_AGAIN}."
    missing.append(note)
    damaged[stage, None] = note
    return []


def _one(stage: str, name: str, entry: Mapping[str, Any], place: Path) -> Evaluated:
    return Evaluated(
        stage=stage,
        name=str(name),
        num_samples=int(_number(entry["num_samples"])),
        num_left_out=len(entry.get("left_out", ())),
        headline=str(entry.get("task", {}).get("headline", CLOSED_LABELS)),
        metrics={str(key): _number(value) for key, value in entry["metrics"].items()},
        intervals={
            str(key): {part: float(value[part]) for part in ("estimate", "low", "high", "level")}
            | {"unit": str(value.get("unit", "sample")), "reliable": value.get("reliable") is not False}
            | {"num_units": value.get("num_units")}
            for key, value in entry["intervals"].items()
        },
        folder=place,
        more={str(key): value for key, value in entry.items() if key not in ("metrics", "intervals", "task")},
    )


def _number(value: Any) -> float:
    """A number of a file.

    Raises:
        TypeError: It is another value, such as true, or a number as text.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r:.60} is no number")
    return float(value)


def _gains(folder: Path, missing: list[str]) -> list[Mapping[str, Any]]:
    path = folder / COMPARISON
    if not path.is_file():
        missing.append(f"{COMPARISON} is missing, so there are no paired gains; the same `mmrl train` writes it.")
        return []
    try:
        return [
            {key: each[key] for key in ("stage", "over", "name", "difference")}
            | {
                "headline": each.get("task", {}).get("headline", CLOSED_LABELS),
                "num_unpaired": each.get("num_unpaired", 0),
            }
            for each in read_json(path, "run the same `mmrl train` again")["gains"]
        ]
    except MmrlError as error:
        missing.append(f"{error}.")
    except (OSError, KeyError, TypeError, AttributeError) as error:
        missing.append(f"{path} is damaged ({type(error).__name__}); run the same `mmrl train` again.")
    return []
