"""The stages that led to a handoff, found by their recorded hashes, and checks against those records."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.handoff import SEAL, check_handoff, sealed
from lightning_mmrl.curriculum.manifest import FILE, FinishedStage, Manifest
from lightning_mmrl.errors import StageError
from lightning_mmrl.types.records import StageResult


def ancestry(directory: Path, digest: str) -> list[FinishedStage]:
    """The stages of a run that led to a handoff, in the order they were trained; empty if the run has no such stage.

    Args:
        directory: The run directory.
        digest: Hash of the handoff.

    Raises:
        StageError: The run's manifest is damaged.
    """
    by_output = {stage.result.handoff_digest: stage for stage in Manifest.read(directory).stages.values()}
    chain: list[FinishedStage] = []
    while digest in by_output:
        stage = by_output.pop(digest)
        chain.insert(0, stage)
        digest = stage.result.input_digest
    return chain


def checked_handoff(handoff: Path) -> dict[str, Any]:
    """Reads the seal of a handoff, and checks its files and, if a run has a record of the handoff, that record.

    Raises:
        StageError: The folder is not a complete handoff, or not the one that the run recorded.
    """
    facts = check_handoff(handoff)
    result = _recorded(handoff)
    if result is not None:
        check_record(result, facts, handoff)
    return facts


def facts_if_sealed(folder: Path) -> dict[str, Any] | None:
    """The result of `checked_handoff` for a handoff; None for any other checkpoint, such as a base model.

    A folder counts as a handoff if it has a seal, or if a run has it on record.

    Raises:
        StageError: As `checked_handoff`.
    """
    if not os.path.lexists(folder / SEAL) and _recorded(folder) is None:
        return None
    return checked_handoff(folder)


def _recorded(handoff: Path) -> StageResult | None:
    """The record of a handoff in the run directory that contains it; None if there is no record."""
    place = handoff.resolve()
    run = place.parents[2] if len(place.parents) > 2 else place
    if not (run / FILE).is_file():
        return None
    results = (stage.result for stage in Manifest.read(run).stages.values())
    return next((result for result in results if (run / result.handoff).resolve() == place), None)


def check_finished(directory: Path, stages: Iterable[FinishedStage]) -> None:
    """Compares the seals of finished stages with the run's records; files are not read, and a seal may be missing.

    Raises:
        StageError: A seal differs from the seal that its stage wrote.
    """
    for stage in stages:
        handoff = directory / stage.result.handoff
        if (handoff / SEAL).is_file():
            check_record(stage.result, sealed(handoff), handoff)


def check_record(result: StageResult, facts: Mapping[str, Any], handoff: Path) -> None:
    """Compares the seal of a handoff with the record of its stage.

    This finds a handoff whose files and seal were both rewritten. Records of older runs have only the files' digest.

    Raises:
        StageError: The seal and the record differ.
    """
    same = facts["digest"] == result.handoff_digest
    if not same or (result.handoff_seal is not None and facts["seal"] != result.handoff_seal):
        what = "facts" if same else "files"
        raise StageError(
            f"{handoff} is not what stage {result.name} left there: its {what} were written anew; restore it, "
            f"set a new run_name, or train the stage again with --from-stage {result.name}"
        )
