"""The folder that one stage leaves and the next one starts from: complete, hashed, checked on load."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning_mmrl.curriculum.manifest import write_json
from lightning_mmrl.errors import StageError
from lightning_mmrl.files import folder_beside, writing
from lightning_mmrl.training.state_store import sync, sync_tree

SEAL = "mmrl.json"
REQUIRED = ("config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja")
PROCESSOR = "processor_config.json"
TOWERS = {"vision_config", "audio_config"}
"""A model whose configuration has one of them needs its processor; a text model has none."""

ADAPTER_CONFIG = "adapter_config.json"
PLACE = "base_model_name_or_path"
"""Where a base lies, in the configuration of an adapter on it (peft's format): a place, and no part of the content."""

_AGAIN = "restore it, or run the stage again under a new run_name"


def write_handoff(directory: Path, export: Callable[[Path], None], facts: Mapping[str, Any]) -> str:
    """Exports into a folder beside the target, seals it with the hashes of its files, and renames it into place.

    Args:
        directory: Target; what was there before is replaced last.
        export: Writes the Hugging Face folder.
        facts: What a user of the checkpoint must know (prompt template, media settings, labels, lineage).

    Returns:
        The hash of all its files, those of subfolders included, but for the place of an adapter's base: the same
        training gives the same hash wherever it lies.

    Raises:
        DiskError: The disk refuses; what was begun is removed.
    """
    with writing(directory), folder_beside(directory) as temporary:
        export(temporary)
        files = (path for path in sorted(temporary.rglob("*")) if path.is_file())
        hashes = {path.relative_to(temporary).as_posix(): _content_hash(path) for path in files}
        digest = _combined(hashes)
        write_json(temporary / SEAL, {"digest": digest, "files": hashes, **facts})
        sync_tree(temporary)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(temporary, directory)
        sync(directory.parent)
    return digest


def check_handoff(directory: Path) -> dict[str, Any]:
    """The facts of a hand-over folder, after checking that every file is there and unchanged.

    Raises:
        StageError: A file is missing or its hash differs, or the seal is damaged.
    """
    seal = directory / SEAL
    if not seal.is_file():
        raise StageError(f"{directory} is not a finished hand-over: {SEAL} is missing; run the stage that writes it")
    facts = _read_seal(seal)
    _require(REQUIRED, facts["files"], directory)
    # Those of a subfolder are an adapter's, not the model's.
    if not any(name.endswith(".safetensors") and "/" not in name for name in facts["files"]):
        raise StageError(f"{directory} has no *.safetensors; it is not a complete Hugging Face folder, {_AGAIN}")
    for name, expected in facts["files"].items():
        path = directory / name
        if not path.is_file() or _content_hash(path) != expected:
            raise StageError(f"{path} is missing or changed since the stage wrote it; {_AGAIN}")
    if TOWERS & json.loads((directory / "config.json").read_bytes()).keys():
        _require([PROCESSOR], facts["files"], directory)
    return facts


def _require(names: Iterable[str], files: Mapping[str, str], directory: Path) -> None:
    for name in names:
        if name not in files:
            raise StageError(f"{directory} has no {name}; it is not a complete Hugging Face folder, {_AGAIN}")


def folder_digest(directory: Path) -> str:
    """Hash of a checkpoint folder that this project did not write, such as the base model."""
    return _combined({path.name: _file_hash(path) for path in sorted(directory.iterdir()) if path.is_file()})


def _read_seal(seal: Path) -> dict[str, Any]:
    try:
        facts = json.loads(seal.read_text(encoding="utf-8"))
        intact = facts["digest"] == _combined(facts["files"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(f"{seal} is damaged ({error!r}); {_AGAIN}") from error
    if not intact:
        raise StageError(f"{seal} lists other files than the stage wrote; {_AGAIN}")
    return facts


def _combined(hashes: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(hashes), sort_keys=True).encode()).hexdigest()


def _content_hash(path: Path) -> str:
    """The hash of a file; of an adapter's configuration that of its values, without the place of the base."""
    if path.name != ADAPTER_CONFIG:
        return _file_hash(path)
    try:
        values = json.loads(path.read_bytes())
    except ValueError:  # cut off or damaged: what its bytes hash to is no hash of values
        return _file_hash(path)
    if isinstance(values, dict):
        values.pop(PLACE, None)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
