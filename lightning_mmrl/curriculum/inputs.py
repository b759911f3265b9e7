"""The folders that a stage reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.artifacts import folder_digest
from lightning_mmrl.curriculum.lineage import facts_if_sealed
from lightning_mmrl.types.records import WEIGHTS, StageSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A folder that a stage reads, the digest of its files, and the digest of its seal if it has one."""

    path: Path
    digest: str
    seal: str | None = None


def origin_of(spec: StageSpec, inputs: Mapping[str, Input]) -> dict[str, Any]:
    """The part of an artifact's lineage that says what its stage read."""
    found: dict[str, Any] = {}
    if WEIGHTS in inputs:
        found |= {
            "started_from": spec.settings.checkpoint or spec.settings.start_from,
            "input_digest": inputs[WEIGHTS].digest,
            "input_seal": inputs[WEIGHTS].seal,
        }
    return found | {f"input.{key}": each.digest for key, each in inputs.items() if key != WEIGHTS}


def base_input(base: Path) -> Input:
    """Returns the base model as an input: a handoff of another run, any other folder, or a hub id."""
    facts = facts_if_sealed(base)
    if facts is not None:
        return Input(path=base, digest=facts["digest"], seal=facts["seal"])
    return Input(path=base, digest=folder_digest(base) if base.is_dir() else str(base))
