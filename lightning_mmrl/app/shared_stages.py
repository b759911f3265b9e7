"""Stages that several arms share: which they are, and how a run begins with what another run of them has finished."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from lightning_mmrl.app.arms import SHARED, ArmRun
from lightning_mmrl.curriculum.artifacts import SEAL
from lightning_mmrl.curriculum.attempt import FILE as ATTEMPT
from lightning_mmrl.curriculum.attempt import STATES
from lightning_mmrl.curriculum.manifest import FinishedStage, Manifest
from lightning_mmrl.data.exclusions import EXCLUSIONS
from lightning_mmrl.errors import StageError
from lightning_mmrl.files import folder_beside, read_json, sync, sync_tree, write_json, writing
from lightning_mmrl.settings.stage import BASE as BASE_MODEL
from lightning_mmrl.tracking.null import UNTRACKED_STAGE

BEGUN = "begun_with.json"
"""File in a run folder that says which finished stages were put there before the run began."""
DECIDED = (EXCLUSIONS, "experts", "judges")
"""Files and folders of a run that later stages read: left-out samples, and answers of experts and judges."""
EVALUATION = "evaluation"
Steps = Sequence[tuple[str, str, str]]
"""The evaluation of the base model and the stages of a run in order, each with its digest and its conditions."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Segment:
    """Consecutive stages that the same arms share, with one seed on one fold.

    Attributes:
        runs: The runs that share them; the first one's configuration trains them.
        until: The last of the stages; `base` for the evaluation of the base model alone.
        above: The segment that these stages follow.
    """

    runs: tuple[ArmRun, ...]
    until: str
    above: "Segment | None" = None

    @property
    def name(self) -> str:
        """Name of the folder of the run that trains them."""
        return f"{self.until}-{self.runs[0].name}"

    @property
    def place(self) -> str:
        """That folder within the comparison; a name that no run of an arm has."""
        return f"{SHARED}/{self.name}"

    @property
    def directory(self) -> Path:
        """Folder of the run that trains them."""
        return self.runs[0].comparison / self.place

    @property
    def stages(self) -> list[str]:
        """All stages up to the last one, also those of the segments above."""
        order = self.runs[0].config.order
        return order[: order.index(self.until) + 1] if self.until in order else []

    @property
    def own(self) -> list[str]:
        """The stages after those of the segments above."""
        return self.stages if self.above is None else self.stages[len(self.above.stages) :]

    @property
    def command(self) -> tuple[str, ...]:
        """Arguments of `mmrl`; a gate of the first arm does not keep the others from a stage."""
        stages = self.runs[0].config.trained
        gates = [f"stages.{name}.gate=null" for name in self.stages if name in stages and stages[name].gate is not None]
        return ("train", *self.runs[0].command(SHARED, self.name), *gates, "--until-stage", self.until)

    @property
    def suffix(self) -> str:
        """Names the seed and the fold."""
        return self.runs[0].suffix

    @property
    def is_finished(self) -> bool:
        """Whether the stages are finished, or there is an evaluation of the base model."""
        known = known_of(self.directory, self.runs[0], self.runs[0])
        return known.base is not None if self.until == BASE_MODEL else self.until in known.stages


def segments(runs: Sequence[ArmRun]) -> list[Segment]:
    """The stages that at least two runs with one seed and fold share; each segment after the one it follows.

    Runs share a stage if they share all stages before it, its digest, and all with which it is run, also what a digest
    leaves out because a run may continue with another value. The evaluation of the base model counts as a stage before
    the first.
    """
    by_place: dict[tuple[int, str | None], list[tuple[ArmRun, Steps]]] = {}
    for run in runs:
        by_place.setdefault((run.seed, run.fold), []).append((run, _steps(run)))
    return [each for pairs in by_place.values() for each in _grown(pairs, 0, None)]


def _steps(run: ArmRun) -> Steps:
    stages = [(spec.name, spec.digest, run.conditions(spec.name)) for spec in run.specs()]
    return [(BASE_MODEL, run.base_evaluation(), run.conditions()), *stages]


def _grown(pairs: Sequence[tuple[ArmRun, Steps]], depth: int, above: Segment | None) -> Iterator[Segment]:
    groups: dict[tuple[str, str, str], list[tuple[ArmRun, Steps]]] = {}
    for run, path in pairs:
        if len(path) > depth:
            groups.setdefault(path[depth], []).append((run, path))
    for group in groups.values():
        if len(group) < 2:
            continue
        first, end = group[0][1], depth + 1
        while all(path[end : end + 1] == first[end : end + 1] != [] for _, path in group):
            end += 1
        segment = Segment(runs=tuple(run for run, _ in group), until=first[end - 1][0], above=above)
        if segment.until == BASE_MODEL and not segment.runs[0].base_evaluation():
            yield from _grown(group, end, above)  # nothing is evaluated, and nothing waits for that
            continue
        yield segment
        yield from _grown(group, end, segment)


def segment_of(run: ArmRun, found: Iterable[Segment]) -> Segment | None:
    """The longest shared beginning of a run."""
    return next((each for each in reversed(list(found)) if run in each.runs), None)  # by identity


def manifest_of(folder: Path) -> Manifest | None:
    """The manifest of a run folder; None if it is damaged, which costs that run alone: it is refused when it starts."""
    try:
        return Manifest.read(folder)
    except StageError:
        return None


def known_of(folder: Path, run: ArmRun, owner: ArmRun) -> Manifest:
    """What a run folder holds of the beginning of a run: its evaluated base model, and its first finished stages.

    Args:
        folder: The folder.
        run: The run that would begin with it.
        owner: The run with whose configuration the folder was made; stages that the two do not share are left out.
    """
    manifest, steps = manifest_of(folder) or Manifest(), zip(_steps(run), _steps(owner), strict=False)
    alike = [own for own, _ in takewhile(lambda pair: pair[0] == pair[1], steps)]
    base = manifest.base if manifest.base is not None and alike and manifest.base.evaluation == alike[0][1] else None
    stages: dict[str, FinishedStage] = {}
    for name, digest, _ in alike[1:]:
        finished = manifest.stages.get(name)
        if finished is None or finished.digest != digest:
            break
        stages[name] = finished
    return Manifest(stages=stages, base=base)


def begin(directory: Path, run: ArmRun, others: Iterable[tuple[Path, ArmRun]]) -> None:
    """Puts the longest finished beginning of a run that is found elsewhere into the folder of the run, if it is new.

    Sealed files are hard links, or copies on another file system; all others are copies, because evaluations and
    trackers write to them again. What tracked the stages there does not track them here.

    Args:
        directory: The folder of the run, which is left as it is if a run has begun there or its manifest is damaged.
        run: The run.
        others: Folders that may hold the same finished stages, each with the run whose configuration made it.

    Raises:
        DiskError: The disk refuses.
    """
    if manifest_of(directory) != Manifest() or (directory / BEGUN).exists():
        return
    found = [(known_of(other, run, owner), other) for other, owner in others if other != directory and other.is_dir()]
    best = max(found, key=lambda pair: (len(pair[0].stages), pair[0].base is not None), default=None)
    if best is None or not (best[0].stages or best[0].base):
        return
    known, other = best
    with writing(directory), folder_beside(directory) as temporary:
        for stage in known.stages.values():
            _take_stage(other, temporary, stage)
        if known.base is not None:
            shutil.copytree(other / known.base.path, temporary / known.base.path)
        for name in DECIDED:
            if (other / name).is_dir():
                shutil.copytree(other / name, temporary / name)
            elif (other / name).is_file():
                shutil.copy2(other / name, temporary / name)
        stages = {name: _untracked(stage) for name, stage in known.stages.items()}
        Manifest(stages=stages, base=known.base).write(temporary)
        write_json(temporary / BEGUN, {"from": f"{other.parent.name}/{other.name}", "stages": list(stages)})
        sync_tree(temporary)
        if directory.exists():
            shutil.rmtree(directory)  # of a process that was killed before it wrote a manifest
        os.replace(temporary, directory)
        sync(directory.parent)


def begun_with(directory: Path) -> list[str]:
    """The stages that were put into a run folder before the run began; none if the record is damaged."""
    path = directory / BEGUN
    try:
        return list(read_json(path, "")["stages"]) if path.is_file() else []
    except (StageError, KeyError, TypeError):
        return []


def _untracked(stage: FinishedStage) -> FinishedStage:
    return replace(stage, result=replace(stage.result, tracking_id=UNTRACKED_STAGE))


def _take_stage(other: Path, target: Path, stage: FinishedStage) -> None:
    """Links or copies the folder of a finished stage, without its states and what tracked it."""
    made = next(iter(stage.result.artifacts.values()), None)
    if made is None:
        return
    place = Path(made.path).parts[:2]  # stages/00-pretrain
    folder = other.joinpath(*place)
    left_out = {STATES, ATTEMPT} | (set() if stage.evaluation is not None else {EVALUATION})
    sealed = [path.parent for path in folder.rglob(SEAL)]
    for path in sorted(folder.rglob("*")):
        within = path.relative_to(folder)
        if within.parts[0] in left_out or not path.is_file():
            continue
        copy = target.joinpath(*place, within)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if any(path.is_relative_to(each) for each in sealed):
            _link(path, copy)
        else:
            shutil.copy2(path, copy)


def _link(path: Path, copy: Path) -> None:
    try:
        os.link(path, copy)
    except OSError:  # another file system, or one without hard links; a full disk refuses the copy as well
        shutil.copy2(path, copy)


def folders_of(run: ArmRun, found: Iterable[Segment], runs: Iterable[ArmRun]) -> list[tuple[Path, ArmRun]]:
    """The folders of a comparison that may hold finished stages of a run: those with the same seed and fold.

    Each comes with the run whose configuration made it.
    """
    owned = [*((each.directory, each.runs[0]) for each in found), *((each.directory, each) for each in runs)]
    return [(folder, owner) for folder, owner in owned if (owner.seed, owner.fold) == (run.seed, run.fold)]
