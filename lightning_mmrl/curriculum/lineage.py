"""Which stages a hand-over went through, by the hashes that each of them noted."""

from pathlib import Path

from lightning_mmrl.curriculum.manifest import FinishedStage, Manifest


def ancestry(directory: Path, digest: str) -> list[FinishedStage]:
    """The stages of a run that led to a hand-over, in the order they were trained; empty if the run has no such stage.

    Args:
        directory: The run directory.
        digest: Hash of the hand-over.

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
