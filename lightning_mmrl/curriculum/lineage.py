"""The stages that led to a handoff, found by their recorded hashes, and checks against those records."""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.artifacts import SEAL, sealed
from lightning_mmrl.curriculum.handoff import check_handoff
from lightning_mmrl.curriculum.manifest import FILE, FinishedStage, Manifest
from lightning_mmrl.errors import StageError
from lightning_mmrl.settings.stage import BASE
from lightning_mmrl.types.records import HANDOFF, WEIGHTS, Artifact

_BEGINNING_OF_HASH = re.compile("[0-9a-f]{16}")
_DATA = "data."
COUNTS, ROUTING = "counts", "routing"
"""Facts in the seal of data: the numbers of samples, and of those left out by reason; of a stage that sorts prompts,
where the prompts went, and the answers of each expert by verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forebear:
    """A stage that led to an artifact.

    Attributes:
        name: Name of the stage.
        kind: Kind of the stage.
        run: Folder of its run.
        config: Digest of the stage's configuration and of all that it builds on.
        starts_from: The stage or checkpoint whose weights it read; None if it read none.
        datasets: Maps each manifest to the beginning of its SHA-256.
        inputs: Maps each input to the stage and artifact that it was, if a stage of the run made it, and its digest.
        outputs: Maps each artifact to its digest.
        counts: Maps each artifact of data to the numbers of samples that it has, and lacks by reason.
        routing: Prompts by standing, and answers of experts by verdict, of a stage that sorts prompts.
        empty: Maps each input that held no sample to the reason.
        idle: Whether the stage had nothing to do.
    """

    name: str
    kind: str
    run: str
    config: str
    starts_from: str | None
    datasets: Mapping[str, str]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    counts: Mapping[str, Mapping[str, int]]
    routing: Mapping[str, Mapping[str, Any]]
    empty: Mapping[str, str]
    idle: bool


def forebears(artifact: Path) -> list[Forebear]:
    """Returns the stages that led to an artifact: those of other runs first, each run in the order it ran.

    The parent of a stage that started from a handoff of another run is followed into that run, if it still is where it
    was. An artifact that no run has on record, such as an exported one, has no stages here.

    Raises:
        StageError: The artifact is none, or not the one that its run recorded; or a manifest is damaged.
    """
    facts = sealed(artifact)
    run = run_of(artifact)
    if run is None:
        return []
    recorded = _recorded(artifact)
    if recorded is not None:
        check_record(*recorded, facts, artifact)
    stages = ancestry(run, facts["digest"], recorded[0] if recorded is not None else None)
    found: list[Forebear] = []
    for place, stage in enumerate(stages):
        read = stage.result.inputs.get(WEIGHTS)
        made = {each: _made_by(stages, each, place) for each in stage.result.inputs.values()}
        parent = Path(str(stage.content.get("starts_from") or ""))
        outside = read is not None and made[read] is None and (parent / SEAL).is_file()
        if outside and sealed(parent)["digest"] == read:
            known = [(each.run, each.name) for each in found]
            found += [each for each in forebears(parent) if (each.run, each.name) not in known]
        found.append(_forebear(run, stage, made))
    return found


def _forebear(run: Path, stage: FinishedStage, made: Mapping[str, str | None]) -> Forebear:
    result, content = stage.result, stage.content
    start = content.get("starts_from")
    folders = {name: run / each.path for name, each in result.artifacts.items() if name != HANDOFF}
    facts = {name: sealed(folder) for name, folder in folders.items() if (folder / SEAL).is_file()}
    files = {key: value for key, value in content.items() if key.startswith(_DATA) and isinstance(value, str)}
    return Forebear(
        name=result.name,
        kind=str(content.get("stage.kind")),
        run=str(run),
        config=stage.digest,
        starts_from=f"{BASE} ({content.get('model.checkpoint')})" if start == BASE else start,
        datasets={
            key.removeprefix(_DATA): value for key, value in files.items() if _BEGINNING_OF_HASH.fullmatch(value)
        },
        inputs={key: f"{made[each]}, {each}" if made[each] else each for key, each in result.inputs.items()},
        outputs={name: each.digest for name, each in result.artifacts.items()},
        counts={name: each.get(COUNTS, {}) for name, each in facts.items()},
        routing=next((each[ROUTING] for each in facts.values() if ROUTING in each), {}),
        empty=result.empty_inputs,
        idle=result.idle,
    )


def run_of(artifact: Path) -> Path | None:
    """The folder of the run that an artifact lies in; None if it lies in none."""
    return next((folder for folder in artifact.resolve().parents if (folder / FILE).is_file()), None)


def tags_of(folder: Path, artifact: str) -> dict[str, str]:
    """Returns the tags of a tracked run for the counts of an artifact that a stage made."""
    facts = sealed(folder)
    found = {f"mmrl.{COUNTS}.{artifact}": facts[COUNTS]} if COUNTS in facts else {}
    found |= {f"mmrl.{ROUTING}": facts[ROUTING]} if ROUTING in facts else {}
    return {key: json.dumps(value) for key, value in found.items()}


def ancestry(directory: Path, digest: str, maker: str | None = None) -> list[FinishedStage]:
    """Returns the stages of a run that led to a handoff, in the order they ran; empty if the run has no such stage.

    Args:
        directory: The run directory.
        digest: Hash of the handoff.
        maker: The stage that made it, if it is known; otherwise the last one that made such a handoff.

    Raises:
        StageError: The run's manifest is damaged.
    """
    stages = list(Manifest.read(directory).stages.values())
    found: set[int] = set()
    waiting = [(digest, next((n + 1 for n, each in enumerate(stages) if each.result.name == maker), len(stages)))]
    while waiting:
        place = _maker(stages, *waiting.pop())
        if place is not None and place not in found:
            found.add(place)
            waiting += [(read, place) for read in stages[place].result.inputs.values()]
    return [stage for place, stage in enumerate(stages) if place in found]


def _maker(stages: Sequence[FinishedStage], digest: str, before: int) -> int | None:
    """The place of the stage that made an artifact; of several alike, the last one before the reader.

    A stage that had nothing to do hands on weights under the digest that they had, and empty tables are all alike.
    """
    makers = [
        place
        for place, stage in enumerate(stages)
        if place != before and any(made.digest == digest for made in stage.result.artifacts.values())
    ]
    return next((place for place in reversed(makers) if place < before), makers[-1] if makers else None)


def _made_by(stages: Sequence[FinishedStage], digest: str, before: int) -> str | None:
    """`ARTIFACT of STAGE` for an artifact that a stage of the run made."""
    place = _maker(stages, digest, before)
    if place is None:
        return None
    result = stages[place].result
    name = next(name for name, made in result.artifacts.items() if made.digest == digest)
    return f"{name} of {result.name}"


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
    place, run = handoff.resolve(), run_of(handoff)
    if run is None:
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
