"""Inputs of a stage that hold no sample: which ones, why, and whether the stage has anything to do without them."""

from collections.abc import Mapping
from pathlib import Path

from lightning_mmrl.curriculum.artifacts import SEAL, sealed
from lightning_mmrl.curriculum.lineage import COUNTS
from lightning_mmrl.curriculum.manifest import FinishedStage
from lightning_mmrl.errors import DataError
from lightning_mmrl.settings.stage import END, SKIP, StageSettings
from lightning_mmrl.types.records import StageSpec


def empty_inputs(spec: StageSpec, directory: Path, finished: Mapping[str, FinishedStage]) -> dict[str, str]:
    """Maps each input of a stage that holds no sample to the reason, with the counts of the stage that made it.

    Inputs whose stage is not finished, and weights, are left out.

    Args:
        spec: The stage.
        directory: The run directory.
        finished: The finished stages.
    """
    found = {}
    for key, edge in spec.inputs.items():
        maker = finished.get(edge.stage)
        record = None if maker is None or edge.type == "weights" else maker.result.artifacts.get(edge.artifact)
        folder = None if record is None else directory / record.path
        if maker is None or folder is None or not (folder / SEAL).is_file():
            continue
        counts = sealed(folder).get(COUNTS)
        if isinstance(counts, Mapping) and counts.get("kept") == 0:
            reasons = ", ".join(f"{number} {reason}" for reason, number in counts.items())
            since = f", since {'; '.join(maker.result.empty_inputs.values())}" if maker.result.empty_inputs else ""
            found[key] = f"artifact {edge.artifact} of stage {edge.stage} has no sample ({reasons}){since}"
    return found


def is_idle(spec: StageSpec, empty: Mapping[str, str]) -> bool:
    """Whether a stage has nothing to do: all the tables that it reads are empty or, if it reads none, all its data."""
    read = {key: edge.type for key, edge in spec.inputs.items() if edge.type != "weights"}
    tables = [key for key, kind in read.items() if kind == "table"]
    data = spec.settings.data
    has_own = bool(data.manifest) or any(not source.stage for source in data.sources.values())
    needed = tables or ([] if has_own else list(read))
    return bool(needed) and all(key in empty for key in needed)


def refuse_idle(spec: StageSpec, empty: Mapping[str, str]) -> None:
    """Ends the run before a stage that would train on data without a sample, unless its configuration allows it.

    Raises:
        DataError: The stage is such a stage; the message says which artifacts are empty and why.
    """
    stage = spec.settings
    if not isinstance(stage, StageSettings) or stage.when_empty != END or not is_idle(spec, empty):
        return
    first = spec.inputs[next(iter(empty))].stage
    raise DataError(
        f"stages.{spec.name} has nothing to learn from: {'; '.join(empty.values())}; change stages.{first} and run it "
        f"again with --from-stage {first}, or set stages.{spec.name}.when_empty={SKIP} to hand on the weights as they "
        "are"
    )


def in_words(spec: StageSpec, empty: Mapping[str, str]) -> list[str]:
    """A sentence for each empty input of a stage that runs, for the console."""
    if is_idle(spec, empty):
        outcome = "its weights are handed on as they are" if spec.trains else "it makes empty artifacts"
        return [f"nothing to do: {'; '.join(empty.values())}; {outcome}"]
    return [f"{key} is left out: {reason}" for key, reason in empty.items()]
