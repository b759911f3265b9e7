"""Tells the user which stages and states are safe on disk when the machine ends a run."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lightning_mmrl.curriculum.attempt import STATES, Attempt, stage_folder
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.errors import DiskError, OutOfMemoryError, StageError
from lightning_mmrl.machine import refusal
from lightning_mmrl.stages.sample import PartStore
from lightning_mmrl.training.state_store import StateStore
from lightning_mmrl.types.records import StageSpec


@contextmanager
def told_what_is_safe(directory: Path, specs: Sequence[StageSpec]) -> Iterator[None]:
    """If the disk refuses or memory runs out in the block, adds to the error what is saved and how to continue.

    Raises:
        DiskError: The disk refused in the block.
        OutOfMemoryError: No memory was left in the block.
    """
    try:
        yield
    except Exception as error:
        found = refusal(error)
        if found is None:
            raise
        stage, safe = what_is_safe(directory, specs)
        where = f"{found.problem}; {safe}"
        if found.memory:
            place = "" if stage is None else f"stages.{stage}: "
            raise OutOfMemoryError(f"{place}{where}; the same command continues", stage) from error
        raise DiskError(where, f"{found.remedy}, and the same command continues") from error


def what_is_safe(directory: Path, specs: Sequence[StageSpec]) -> tuple[str | None, str]:
    """Returns the stage in progress (None while a model is evaluated), and a clause that lists the saved work.

    Args:
        directory: The run folder.
        specs: Its stages in order.
    """
    try:
        finished = Manifest.read(directory).stages
        pending = next((spec for spec in specs if spec.name not in finished), None)
        # A stage records its attempt before it reads anything; until then the model before it is evaluated.
        begun = pending is not None and Attempt.begun(stage_folder(directory, pending)) is not None
        saved, size = _saved_of(pending, directory) if pending is not None and begun else ([], "")
    except (StageError, OSError):
        return None, f"{directory} cannot be read"
    made = {spec.name: "the handoff" if spec.trains else "the data" for spec in specs}
    parts = [f"{made[spec.name]} of {spec.name}" for spec in specs if spec.name in finished] + saved
    safe = f"safe in {directory}: {', '.join(parts)}{size}" if parts else f"{directory} has no saved work yet"
    return pending.name if pending is not None and begun else None, safe


def _saved_of(pending: StageSpec, directory: Path) -> tuple[list[str], str]:
    """Returns the saved work of an unfinished stage, as a list of at most one clause, and a note on its size."""
    folder = stage_folder(directory, pending) / STATES
    if not pending.trains:
        num_parts = PartStore(directory=folder).num_parts()
        return [f"{num_parts} batches of {pending.name}"] if num_parts else [], ""
    store = StateStore(folder)
    step = store.newest_step()
    if step is None:
        return [], ""
    num_bytes = store.num_bytes(step)
    size = f" (a state takes {num_bytes / 1e6:,.0f} MB)" if num_bytes else ""
    return [f"the state of {pending.name} after step {step}"], size
