"""The evaluation that another one is compared with: where it lies, and whether both asked the same questions."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.lineage import run_of
from lightning_mmrl.curriculum.manifest import FILE, Manifest
from lightning_mmrl.errors import StageError
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.task import Task
from lightning_mmrl.files import read_json
from lightning_mmrl.settings.stage import BASE
from lightning_mmrl.suggestions import shown
from lightning_mmrl.types.records import HANDOFF

SUMMARY, BOUND = "evaluation.json", "evaluated.json"
_AGAIN = "evaluate the baseline again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """An evaluation on disk: how tables call it, and its folder."""

    name: str
    folder: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedSet:
    """A set of the evaluation that is compared: its task, and the SHA-256 of its manifest."""

    task: Task
    digest: str


def find_baseline(given: str) -> Baseline:
    """Finds the evaluation that a user names.

    Args:
        given: A folder with an evaluation, a run folder, which stands for its last evaluated stage, or RUN:STAGE, where
            the stage may be `base`.

    Raises:
        StageError: There is no such evaluation.
    """
    place = Path(given)
    for folder in (place, place / "evaluation"):
        if (folder / SUMMARY).is_file():
            return Baseline(name=str(place), folder=folder)
    run, stage = (given, "") if place.is_dir() else given.rpartition(":")[::2]
    if not run or not (Path(run) / FILE).is_file():
        raise StageError(
            f"--baseline {given} is no run folder and holds no evaluation; give a run folder, RUN:STAGE, or a folder "
            f"with {SUMMARY}"
        )
    evaluated = dict(_evaluated(Path(run)))
    if not evaluated or stage not in ("", *evaluated):
        have = f"evaluated are {', '.join(evaluated)}" if evaluated else "no stage of it is evaluated yet"
        asked = f" has no evaluation of {shown(stage)}" if stage else ""
        raise StageError(f"--baseline {given}{asked}: {have}; name a stage that is evaluated as RUN:STAGE")
    name = stage or list(evaluated)[-1]
    return Baseline(name=f"{run}:{name}", folder=evaluated[name])


def base_of_run(handoff: Path) -> Baseline | None:
    """The evaluation of the base model in the run that made a handoff; None if there is none."""
    run = run_of(handoff)
    folder = None if run is None else dict(_evaluated(run)).get(BASE)
    return None if folder is None else Baseline(name=BASE, folder=folder)


def _evaluated(run: Path) -> Iterator[tuple[str, Path]]:
    """The folders of the evaluations of a run, by stage, in the order in which the stages ended."""
    manifest = Manifest.read(run)
    folders = {} if manifest.base is None else {BASE: run / manifest.base.path}
    for name, stage in manifest.stages.items():
        if HANDOFF in stage.result.artifacts:
            folders[name] = (run / stage.result.artifacts[HANDOFF].path).with_name("evaluation")
    return ((name, folder) for name, folder in folders.items() if (folder / SUMMARY).is_file())


def refuse_other_questions(baseline: Baseline, asked: Mapping[str, AskedSet]) -> list[str]:
    """Returns the sets that both evaluations have, after comparing their tasks and manifests.

    Raises:
        StageError: They have no set in common, or a set has another task or another manifest. Or the results of the
            baseline are damaged.
    """
    summary, bound = read_json(baseline.folder / SUMMARY, _AGAIN), {}
    if (baseline.folder / BOUND).is_file():  # evaluations of earlier versions have none
        bound = read_json(baseline.folder / BOUND, _AGAIN)
    try:
        tasks = {name: entry.get("task") for name, entry in summary.items()}
        digests = {name: entry["manifest_digest"] for name, entry in bound.get("sets", {}).items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise StageError(f"{baseline.folder} holds no results of an evaluation ({error!r}); {_AGAIN}") from error
    common = [name for name in asked if name in tasks]
    if not common:
        raise StageError(
            f"--baseline {baseline.name} was evaluated on {', '.join(tasks) or 'no set'}, and this evaluation has "
            f"{', '.join(asked) or 'no set'}; evaluate both on the same sets"
        )
    for name in common:
        if not (baseline.folder / f"{name}.jsonl").is_file():
            raise StageError(f"{baseline.folder} has no {name}.jsonl, so it is half an evaluation; {_AGAIN}")
        before, now = tasks[name], asked[name].task.described().get("task")
        kinds = [_kind(before), _kind(now)]
        if kinds[0] != kinds[1]:
            raise StageError(
                f"--baseline {baseline.name} judged {name} by another task ({kinds[0]}) than this evaluation "
                f"({kinds[1]}); evaluate both with one task"
            )
        digest = digests.get(name, asked[name].digest)
        if digest != asked[name].digest:
            raise StageError(
                f"--baseline {baseline.name} was evaluated on another manifest of {name} (sha256 {digest[:12]}) than "
                f"this evaluation ({asked[name].digest[:12]}); evaluate both on one manifest"
            )
    return common


def _kind(task: Any) -> str:
    """The kind of task that a result names; a result that names none is of a closed label set."""
    return "closed labels" if task is None else str(task.get("type")) if isinstance(task, Mapping) else shown(task)


def unpaired(name: str, folders: tuple[Path, Path]) -> list[str]:
    """The ids of samples of a set that only one of two evaluations judged."""
    first, second = (
        [Judgement.from_json(line).sample_id for line in (folder / f"{name}.jsonl").read_text("utf-8").splitlines()]
        for folder in folders
    )
    return sorted({*first} ^ {*second})
