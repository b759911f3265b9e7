"""Which model a path or a hub id names: a handoff, any other Hugging Face folder, a hub id, or an adapter's folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.artifacts import ADAPTER_CONFIG, PLACE, folder_digest
from lightning_mmrl.curriculum.lineage import facts_if_sealed
from lightning_mmrl.errors import StageError
from lightning_mmrl.files import file_digest, read_json

CONFIG = "config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

Fetch = Callable[[str, str], Path | None]
"""Returns the local path of a file of a hub id; None if there is none, or if the hub is unreachable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model to load, and the adapter to merge into its weights.

    Attributes:
        place: A Hugging Face folder or a hub id.
        facts: The facts in the seal of a handoff; None for any other model.
        adapter: Files of an adapter in peft's format, by name; None for a model without one.
        commit: The commit of a hub id, if it is known.
    """

    place: Path
    facts: Mapping[str, Any] | None = None
    adapter: Mapping[str, Path] | None = None
    commit: str | None = None

    def identity(self) -> dict[str, str | None]:
        """Hashes of the files; of a hub id, its name and commit."""
        if self.facts is not None:
            model = self.facts["digest"]
        else:
            model = folder_digest(self.place) if self.place.is_dir() else f"{self.place}@{self.commit}"
        found = {name: file_digest(path) for name, path in (self.adapter or {}).items() if name == ADAPTER_WEIGHTS}
        if self.adapter is not None:
            config = read_json(self.adapter[ADAPTER_CONFIG], "restore it")
            found[ADAPTER_CONFIG] = repr(sorted((key, value) for key, value in config.items() if key != PLACE))
        return {"model": model, **found}


def is_hub_id(checkpoint: Path) -> bool:
    """Whether a path that does not exist can be a hub id, such as `Qwen/Qwen2.5-Omni-3B`."""
    return len(checkpoint.parts) == 2 and not checkpoint.is_absolute() and checkpoint.name != "handoff"


def require_checkpoint(checkpoint: Path) -> None:
    """Refuses what can be no checkpoint, without reading its files.

    Raises:
        StageError: It is neither a model's folder, nor an adapter's, nor a hub id.
    """
    if any((checkpoint / name).is_file() for name in (CONFIG, ADAPTER_CONFIG)):
        return
    if checkpoint.exists() or not is_hub_id(checkpoint):
        raise StageError(
            f"checkpoint {checkpoint} is no Hugging Face folder; give a stage's handoff folder or a hub id, "
            "or the folder of an adapter"
        )


def located(checkpoint: Path, fetch: Fetch, base: Path | None = None) -> Checkpoint:
    """Returns the model that a checkpoint names, and its adapter if it is one; a handoff's files are checked.

    Args:
        checkpoint: A folder or a hub id.
        fetch: Finds the files of a hub id.
        base: The model that an adapter belongs to; None for the one that its configuration names.

    Raises:
        StageError: A handoff lacks a file or was changed. Or an adapter lacks a file or its base model. Or there is a
            base, and the checkpoint is no adapter.
    """
    require_checkpoint(checkpoint)
    is_folder = checkpoint.is_dir()

    def found(name: str) -> Path | None:
        path = checkpoint / name if is_folder else fetch(str(checkpoint), name)
        return path if path is not None and path.is_file() else None

    config, adapter = found(CONFIG), found(ADAPTER_CONFIG)
    if config is not None or adapter is None:
        if base is not None:
            raise StageError(f"--base is {base}, and checkpoint {checkpoint} is no adapter; leave --base out")
        facts = facts_if_sealed(checkpoint) if is_folder else None
        return Checkpoint(place=checkpoint, facts=facts, commit=_commit(config))
    weights = found(ADAPTER_WEIGHTS)
    if weights is None:
        raise StageError(f"adapter {checkpoint} has no {ADAPTER_WEIGHTS}; restore it, or save it as safetensors")
    model = base or _base_of(adapter, checkpoint)
    if not (model / CONFIG).is_file() and (model.exists() or not is_hub_id(model)):
        what = "--base" if base else f"{PLACE} in {adapter}"
        raise StageError(
            f"{what} is {model}, which is no Hugging Face folder; give the model that the adapter belongs to by --base"
        )
    whole = located(model, fetch)
    return Checkpoint(
        place=model,
        facts=whole.facts,
        commit=whole.commit,
        adapter={ADAPTER_CONFIG: adapter, ADAPTER_WEIGHTS: weights},
    )


def _base_of(config: Path, checkpoint: Path) -> Path:
    values = read_json(config, "restore it")
    place = values.get(PLACE) if isinstance(values, dict) else None
    if not isinstance(place, str) or not place:
        raise StageError(
            f"adapter {checkpoint} names no base model ({PLACE} in {config} is {place!r}); give it by --base"
        )
    return Path(place)


def _commit(config: Path | None) -> str | None:
    """The commit of a file in the hub's cache, `.../snapshots/COMMIT/config.json`."""
    return config.parent.name if config is not None and config.parent.parent.name == "snapshots" else None
