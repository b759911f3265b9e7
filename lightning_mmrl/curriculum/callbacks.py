"""Functions that the orchestrator calls while a curriculum runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.types.records import StageSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """Functions that the orchestrator calls.

    Attributes:
        on_start: Called with the opened parent run before the first pending stage. A command that is refused never
            calls it.
        on_made: Called with a stage that made data and with the folders of these artifacts: as soon as the stage is
            finished, and again at the start of a later run in which another stage will read from it. Raises if a later
            stage cannot use the data.
        on_evaluated: Called with the parent run when the manifest has the evaluation of a stage or of the base model.
        on_end: Called with the parent run when all stages that were due are finished, before the parent run is.
    """

    on_start: Callable[[TrackedRun], None]
    on_made: Callable[[StageSpec, Mapping[str, Path]], None] = lambda spec, folders: None
    on_evaluated: Callable[[TrackedRun], None] = lambda parent: None
    on_end: Callable[[TrackedRun], None] = lambda parent: None
