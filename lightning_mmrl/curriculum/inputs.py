"""The folders that a stage reads."""

from dataclasses import dataclass
from pathlib import Path

from lightning_mmrl.curriculum.artifacts import folder_digest
from lightning_mmrl.curriculum.lineage import facts_if_sealed


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A folder that a stage reads, the digest of its files, and the digest of its seal if it has one."""

    path: Path
    digest: str
    seal: str | None = None


def base_input(base: Path) -> Input:
    """Returns the base model as an input: a handoff of another run, any other folder, or a hub id."""
    facts = facts_if_sealed(base)
    if facts is not None:
        return Input(path=base, digest=facts["digest"], seal=facts["seal"])
    return Input(path=base, digest=folder_digest(base) if base.is_dir() else str(base))
