"""Jobs of stages whose data hold no sample: they run no model, and their artifacts say so."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.app.assembly import Assembly
from lightning_mmrl.models.export import export_policy
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.types.records import Training


@dataclass(frozen=True, kw_only=True)
class IdleJob:
    """Implements `StageJob` for a stage that has nothing to do.

    Attributes:
        write: Writes an artifact, given its name and an empty folder, and returns the facts for its seal.
    """

    write: Callable[[str, Path], Mapping[str, Any]]

    def run(self) -> Training:
        """Does nothing, and says so."""
        return Training(metrics={}, num_steps=0, num_skipped=0, changed=False)

    def export(self, artifact: str, directory: Path) -> Mapping[str, Any]:
        """Writes an artifact."""
        return self.write(artifact, directory)


def hand_on(checkpoint: Path, directory: Path, parts: Assembly) -> Mapping[str, Any]:
    """Writes the weights of a checkpoint as a handoff, unchanged, on rank 0; returns the facts for its seal."""
    if not parts.group.leads:
        return {}
    encoder: PromptEncoder = parts.encoder(checkpoint)
    policy = parts.policy(checkpoint, encoder, temperature=1.0)
    export_policy(policy, encoder, directory, started_from=str(checkpoint))
    return parts.facts()
