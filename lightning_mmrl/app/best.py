"""The folder with the weights of a stage's best validation, beside the stage's handoff."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.artifacts import BEST, SEAL, sealed, write_artifact
from lightning_mmrl.curriculum.attempt import Attempt
from lightning_mmrl.curriculum.inputs import Input, origin_of
from lightning_mmrl.protocols.ranks import Ranks
from lightning_mmrl.training.callbacks.best_weights import Best, BestWeights
from lightning_mmrl.types.records import StageSpec


def best_weights(
    spec: StageSpec,
    inputs: Mapping[str, Path],
    directory: Path,
    export: Callable[[str, Path], Mapping[str, Any]],
    ranks: Ranks,
) -> BestWeights:
    """The callback of a stage that keeps its best weights: written and sealed as the handoff is.

    Args:
        spec: The stage.
        inputs: The folders that the stage reads.
        directory: The folder of the stage.
        export: Writes the weights into an empty folder, on all ranks together; returns facts for the seal.
        ranks: The processes that hold the weights.
    """
    folder = directory / BEST

    def known() -> Best | None:
        return sealed(folder)[BEST] if (folder / SEAL).is_file() else None

    def write(best: Best) -> None:
        if ranks.rank != 0:
            export(BEST, folder)
            return
        lineage = {"stage": spec.name, "steps": best["step"], **origin_of(spec, _read(inputs, directory))}
        write_artifact(folder, lambda place: export(BEST, place), {BEST: best, "lineage": lineage})

    return BestWeights(known, write, ranks)


def _read(inputs: Mapping[str, Path], directory: Path) -> dict[str, Input]:
    """The inputs of a stage that has begun."""
    attempt = Attempt.begun(directory)
    digests = {} if attempt is None else attempt.inputs
    return {
        key: Input(path=path, digest=digests[key], seal=sealed(path)["seal"] if (path / SEAL).is_file() else None)
        for key, path in inputs.items()
        if key in digests
    }
