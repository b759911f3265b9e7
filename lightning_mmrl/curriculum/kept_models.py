"""Tells a tracker that keeps models about the handoffs of finished stages."""

from collections.abc import Iterable
from pathlib import Path

from lightning_mmrl.curriculum.manifest import FinishedStage
from lightning_mmrl.protocols.plain import DescribedRun, TrackedRun
from lightning_mmrl.types.records import HANDOFF


def log_models(stages: Iterable[FinishedStage], directory: Path, parent: TrackedRun) -> None:
    """Logs the handoff of each finished stage as a model of its tracked run; a second call changes nothing.

    Args:
        stages: The stages; one without a handoff is left out.
        directory: The run directory.
        parent: The parent run; nothing happens if its tracker keeps no models.
    """
    if not isinstance(parent, DescribedRun):
        return
    for stage in stages:
        made = stage.result.artifacts.get(HANDOFF)
        run_id = stage.result.tracking_id
        if made is not None and run_id is not None:
            parent.log_model(run_id, stage.result.name, directory / made.path, made.digest)
