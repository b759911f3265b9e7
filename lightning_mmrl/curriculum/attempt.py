"""The record of an unfinished stage in its folder, and whether a run may resume from its states."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.changes import describe_changes, same_content
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.files import read_json, write_json
from lightning_mmrl.types.records import HANDOFF, WEIGHTS, StageSpec

FILE = "attempt.json"
STATES = "state"
"""Folder of the resumable states, below the folder of the stage."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A stage that has begun.

    Attributes:
        content: The configuration that determines the stage's outcome, as in `StageSpec`.
        inputs: Maps each input to the hash of the files that the stage reads.
        tracking_id: Id of the stage's run in the tracker.
    """

    content: Mapping[str, Any]
    inputs: Mapping[str, str]
    tracking_id: str

    def write(self, folder: Path) -> None:
        """Writes the record into the stage's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Attempt | None":
        """The attempt whose states are in a folder; None if there is no state to resume from.

        Raises:
            StageError: There are states, but the record of the attempt is damaged.
        """
        return cls.begun(folder) if _has_states(folder) else None

    @classmethod
    def begun(cls, folder: Path) -> "Attempt | None":
        """The attempt in a folder, whether or not it saved a state; None if there was no attempt.

        Raises:
            StageError: There are states, but the record of the attempt is damaged.
        """
        has_states = _has_states(folder)
        remedy = f"restore it, or remove {folder} to run the stage from its start"
        try:
            values = dict(read_json(folder / FILE, remedy))
            if "input_digest" in values:  # written by a version in which weights were the only input
                values["inputs"] = {WEIGHTS: values.pop("input_digest")}
            return cls(**values)
        except (StageError, TypeError, ValueError) as error:
            if not has_states:
                return None
            if isinstance(error, StageError):
                raise
            raise StageError(f"{folder / FILE} is damaged ({error}); {remedy}") from error


def _has_states(folder: Path) -> bool:
    """Whether a stage left states: `step-...` of a trained stage, `part-...` of one that makes data."""
    return any(path.name.startswith(("step-", "part-")) for path in folder.joinpath(STATES).glob("*-*"))


def stage_folder(directory: Path, spec: StageSpec) -> Path:
    """Returns a stage's folder in a run directory, such as `01-reason`.

    A folder is found by the name of the stage alone. The number is the place that the stage had when it first ran, and
    does not change when other stages are inserted or removed.
    """
    for folder in sorted((directory / "stages").glob("*-*")):
        number, _, name = folder.name.partition("-")
        if number.isdecimal() and name == spec.name and folder.is_dir():
            return folder
    return directory / "stages" / f"{spec.index:02d}-{spec.name}"


def artifact_folder(folder: Path, name: str) -> Path:
    """The folder of an artifact in the folder of its stage."""
    return folder / name if name == HANDOFF else folder / "artifacts" / name


def refuse_changed_attempts(folders: Mapping[str, Path], specs: Sequence[StageSpec]) -> None:
    """Checks that unfinished stages still have the configuration that they began with.

    Args:
        folders: Stage name to folder, for the stages to check.
        specs: All stages as they are configured now.

    Raises:
        ConfigError: The configuration of a stage has changed.
    """
    begun = {name: attempt.content for name, folder in folders.items() if (attempt := Attempt.read(folder))}
    now = {spec.name: dict(spec.content) for spec in specs}
    changed = {name: content for name, content in begun.items() if not same_content(content, now[name])}
    if changed:
        raise ConfigError(
            f"{', '.join(f'stages.{name}' for name in changed)}: begun in {folders[next(iter(changed))].parent.parent} "
            "with another configuration and not finished:\n"
            + "".join(f"    {line}\n" for line in describe_changes(changed, specs))
            + "undo the change, set run_name to a new name, go on with --allow-changes, or begin again with "
            f"--from-stage {next(iter(changed))}"
        )
