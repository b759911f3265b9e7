"""The stages that led to a handoff, found by their recorded hashes, and checks against those records."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.artifacts import SEAL, sealed
from lightning_mmrl.curriculum.handoff import check_handoff
from lightning_mmrl.curriculum.manifest import FILE, FinishedStage, Manifest
from lightning_mmrl.errors import StageError
from lightning_mmrl.types.records import Artifact


def ancestry(directory: Path, digest: str) -> list[FinishedStage]:
    """Returns the stages of a run that led to a handoff, in the order they ran; empty if the run has no such stage.

    Args:
        directory: The run directory.
        digest: Hash of the handoff.

    Raises:
        StageError: The run's manifest is damaged.
    """
    stages = Manifest.read(directory).stages
    makers = {made.digest: name for name, stage in stages.items() for made in stage.result.artifacts.values()}
    found: set[str] = set()
    waiting = [digest]
    while waiting:
        name = makers.get(waiting.pop())
        if name is not None and name not in found:
            found.add(name)
            waiting += stages[name].result.inputs.values()
    return [stage for name, stage in stages.items() if name in found]


def checked_handoff(handoff: Path) -> dict[str, Any]:
    """Reads the seal of a handoff, and checks its files and, if a run has a record of the handoff, that record.

    Raises:
        StageError: The folder is not a complete handoff, or not the one that the run recorded.
    """
    facts = check_handoff(handoff)
    recorded = _recorded(handoff)
    if recorded is not None:
        check_record(*recorded, facts, handoff)
    return facts


def facts_if_sealed(folder: Path) -> dict[str, Any] | None:
    """Returns the result of `checked_handoff` for a handoff; None for any other checkpoint, such as a base model.

    A folder counts as a handoff if it has a seal, or if a run has it on record.

    Raises:
        StageError: As `checked_handoff`.
    """
    if not os.path.lexists(folder / SEAL) and _recorded(folder) is None:
        return None
    return checked_handoff(folder)


def _recorded(handoff: Path) -> tuple[str, Artifact] | None:
    """The stage of a handoff and its record in the run directory that contains it; None if there is no record."""
    place = handoff.resolve()
    run = place.parents[2] if len(place.parents) > 2 else place
    if not (run / FILE).is_file():
        return None
    results = (stage.result for stage in Manifest.read(run).stages.values())
    made = ((result.name, each) for result in results for each in result.artifacts.values())
    return next((pair for pair in made if (run / pair[1].path).resolve() == place), None)


def check_finished(directory: Path, stages: Iterable[FinishedStage]) -> None:
    """Compares the seals of finished stages with the run's records; files are not read, and a seal may be missing.

    Raises:
        StageError: A seal differs from the seal that its stage wrote.
    """
    for stage in stages:
        for record in stage.result.artifacts.values():
            folder = directory / record.path
            if (folder / SEAL).is_file():
                check_record(stage.result.name, record, sealed(folder), folder)


def check_record(stage: str, record: Artifact, facts: Mapping[str, Any], folder: Path) -> None:
    """Compares the seal of an artifact with the record of the stage that made it.

    This finds an artifact whose files and seal were both rewritten. Records of older runs have only the files' digest.

    Raises:
        StageError: The seal and the record differ.
    """
    same = facts["digest"] == record.digest
    if not same or (record.seal is not None and facts["seal"] != record.seal):
        what = "facts" if same else "files"
        raise StageError(
            f"{folder} is not what stage {stage} left there: its {what} were written anew; restore it, "
            f"set a new run_name, or run the stage again with --from-stage {stage}"
        )
