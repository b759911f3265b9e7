"""The record of finished stages in a run directory, replaced atomically after every stage."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import StageError
from lightning_mmrl.files import read_json, write_json
from lightning_mmrl.protocols.plain import RunStatus
from lightning_mmrl.types.costs import StageCosts
from lightning_mmrl.types.records import HANDOFF, WEIGHTS, Artifact, StageResult

FILE = "manifest.json"
VERSION = 3
VERSION_OF_HANDOFFS = 2
"""A manifest of this version knows one artifact and one input of each stage: its handoff and its starting point."""
_RESTORE = "restore it or start a new run directory"


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishedStage:
    """A finished stage's result, the configuration that produced it, and the configuration's hash (see `StageSpec`).

    `evaluation` is the hash of the settings that its handoff was evaluated with, None before the evaluation.
    `training_metrics` are the metrics of the result that come from training.
    """

    digest: str
    content: Mapping[str, Any]
    result: StageResult
    training_metrics: Mapping[str, float]
    evaluation: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedBase:
    """The base model that was evaluated before the first stage.

    `digest` is the hash of its files and `evaluation` the hash of the settings that it was evaluated with. `path` is
    the folder of the results, relative to the run directory; `metrics` are keyed `<set>/<metric>`.
    """

    digest: str
    evaluation: str
    path: str
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The finished stages of a run, its evaluated base model, and its parent run in the tracker.

    `running_id` and `running_name` are the tracked run in progress: that of a stage, or else the parent. If they are
    set when a run starts, the previous process was killed.
    """

    stages: Mapping[str, FinishedStage] = field(default_factory=dict)
    tracking_id: str | None = None
    running_id: str | None = None
    running_name: str | None = None
    base: EvaluatedBase | None = None

    @property
    def status_left(self) -> RunStatus:
        """The status of the tracked run that a killed process left in progress.

        Its stage may have been finished, with its evaluation, when the process was killed.
        """
        left = [stage for stage in self.stages.values() if stage.result.tracking_id == self.running_id]
        complete = any(stage.evaluation is not None or HANDOFF not in stage.result.artifacts for stage in left)
        return "FINISHED" if complete else "KILLED"

    def write(self, directory: Path) -> None:
        """Replaces the manifest of a run directory."""
        content = {"version": VERSION, **asdict(self)}
        write_json(directory / FILE, content)

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """The manifest of a run directory; an empty one for a new run.

        Raises:
            StageError: The file is damaged or of another version.
        """
        path = directory / FILE
        if not path.exists():
            return cls()
        content = read_json(path, _RESTORE)
        try:
            version = content["version"]
            if version not in (VERSION, VERSION_OF_HANDOFFS):
                raise StageError(
                    f"{path} has version {version}; this program reads only versions {VERSION_OF_HANDOFFS} and "
                    f"{VERSION}; start a new run directory"
                )
            stages = {
                name: _whole(
                    FinishedStage(
                        digest=entry["digest"],
                        content=_of_kind("content", entry["content"], dict),
                        result=_result(entry["result"], version),
                        training_metrics=entry["training_metrics"],
                        evaluation=entry["evaluation"],
                    )
                )
                for name, entry in content["stages"].items()
            }
            ids = {key: content[key] for key in ("tracking_id", "running_id", "running_name")}
            base = content.get("base")
            return cls(stages=stages, base=None if base is None else EvaluatedBase(**base), **ids)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StageError(f"{path} is damaged ({error!r}); {_RESTORE}") from error


def _whole(stage: FinishedStage) -> FinishedStage:
    """Returns the stage if it has the weights that were evaluated; else reports would take an earlier stage's value.

    Raises:
        ValueError: It was evaluated, and has no weights.
    """
    if stage.evaluation is not None and HANDOFF not in stage.result.artifacts:
        raise ValueError(f"stage {stage.result.name} was evaluated and has no {HANDOFF}")
    return stage


def _result(entry: Mapping[str, Any], version: int) -> StageResult:
    values = dict(entry)
    if version == VERSION_OF_HANDOFFS:
        path, digest, seal = (values.pop(key, None) for key in ("handoff", "handoff_digest", "handoff_seal"))
        made, read = {HANDOFF: {"path": path, "digest": digest, "seal": seal}}, {WEIGHTS: values.pop("input_digest")}
        values |= {"artifacts": made, "inputs": read}
    artifacts = {name: Artifact(**artifact) for name, artifact in values.pop("artifacts").items()}
    for made in artifacts.values():
        _of_kind("path", made.path, str)
    for key, kind in _KINDS.items():
        if values.get(key) is not None:
            _of_kind(key, values[key], kind)
    costs = values.pop("costs", None)
    return StageResult(artifacts=artifacts, costs=None if costs is None else StageCosts.read(costs), **values)


_KINDS = {"num_steps": int, "num_skipped": int, "changed": bool, "idle": bool}


def _of_kind(key: str, value: Any, kind: type) -> Any:
    """The value, if it is of its kind; a number must be a count.

    Raises:
        TypeError: It is not.
    """
    is_count = kind is not int or (type(value) is int and 0 <= value < 2**63)
    if not isinstance(value, kind) or not is_count:
        raise TypeError(f"{key} is {value!r:.60}")
    return value


def tracked_runs(directory: Path) -> set[str]:
    """Returns the ids of all tracked runs of a run directory: the parent and all stages, including unfinished ones.

    Raises:
        StageError: The manifest is damaged or of another version.
    """
    manifest = Manifest.read(directory)
    found = {manifest.tracking_id, manifest.running_id}
    found |= {stage.result.tracking_id for stage in manifest.stages.values()}
    for path in directory.glob("stages/*/attempt.json"):
        remedy = "remove it, or the folder it lies in"
        attempt = read_json(path, remedy)
        if not isinstance(attempt, dict):
            raise StageError(f"{path} is damaged: it holds no keys; {remedy}")
        found.add(attempt.get("tracking_id"))
    return {run_id for run_id in found if run_id}
