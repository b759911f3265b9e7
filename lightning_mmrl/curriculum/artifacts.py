"""Artifacts: folders that stages write and other stages read; complete, hashed, and checked before they are read.

The seal of a folder, `mmrl.json`, holds the hash of every file, the facts that a reader must know, and the digest of
both. It shows damage and changes. It does not prove who wrote the folder: whoever can write there can write another
seal.
"""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import StageError
from lightning_mmrl.files import (
    file_digest,
    folder_beside,
    follow_umask,
    sync,
    sync_tree,
    write_json,
    writing,
)

SEAL = "mmrl.json"
VERSION = 2
"""Version of the seal; a seal of version 1 has no key for the version, and no digest of itself."""
MOST_BYTES = 2**24
"""Maximum size of a seal in bytes; a seal of a thousand files needs a hundredth of this."""

BEST = "best"
"""Name of the folder of the weights with the best validation, below the folder of their stage, and of the fact in its
seal that says which validation it is."""
BESIDE = ("README.md", "LICENSE", ".gitattributes", ".DS_Store")
"""Files that a handoff may hold unsealed, because no loader reads them: `mmrl export` writes a card that its user may
amend; the hub, git and file managers add the others."""
BESIDE_FOLDERS = (".git", ".cache/huggingface")
"""Folders that a handoff may hold unsealed: git and the hub's download create them."""

ADAPTER_CONFIG = "adapter_config.json"
PLACE = "base_model_name_or_path"
"""Key of the base model's path in an adapter's configuration (peft's format). The seal covers this path. The digest
does not, so that the same training has the same digest wherever its run is stored."""

AGAIN = "restore it, or run the stage again under a new run_name"
_STRAY = "is no part of this folder, and a loader might read it; move it elsewhere"


def write_artifact(directory: Path, write: Callable[[Path], Mapping[str, Any] | None], facts: Mapping[str, Any]) -> str:
    """Writes a temporary folder next to the target, seals the files with their hashes, and renames the folder.

    Args:
        directory: Target; an existing folder is replaced last.
        write: Writes the files; may return facts that a reader must know (of a handoff: prompt template, media
            settings, labels; of data: the media root and the counts).
        facts: Further facts, such as the lineage.

    Returns:
        The hash of all files, in subfolders too, without the path of an adapter's base and without the facts: the same
        training gives the same hash wherever the folder is stored. The digest of the seal, which `sealed` returns,
        covers the path and the facts as well.

    Raises:
        DiskError: The disk refuses; the partial folder is removed.
    """
    with writing(directory), folder_beside(directory) as temporary:
        written = write(temporary)
        files = {
            path.relative_to(temporary).as_posix(): path for path in sorted(temporary.rglob("*")) if path.is_file()
        }
        hashes = {name: file_digest(path) for name, path in files.items()}
        placeless = {name: _placeless_hash(path) for name, path in files.items() if path.name == ADAPTER_CONFIG}
        digest = _combined({**hashes, **placeless})
        content = {
            "version": VERSION,
            "digest": digest,
            "files": hashes,
            "placeless": placeless,
            **(written or {}),
            **facts,
        }
        write_json(temporary / SEAL, {**content, "seal": _combined(content)})
        follow_umask(temporary)  # safetensors writes weights that only their owner may read
        sync_tree(temporary)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(temporary, directory)
        sync(directory.parent)
    return digest


def sealed(directory: Path) -> dict[str, Any]:
    """Reads the seal of a folder and checks the digest that the seal has of itself; the other files are not read.

    In the result, `digest` is the hash of the files, and `seal` the hash of the whole seal (None before version 2).

    Raises:
        StageError: There is no seal, or it is damaged, of another version or changed.
    """
    seal = directory / SEAL
    if not seal.is_file():
        raise StageError(f"{directory} is not a finished artifact, such as a handoff: {SEAL} is missing; run its stage")
    try:
        if seal.stat().st_size > MOST_BYTES:
            raise ValueError(f"more than {MOST_BYTES} bytes")
        content = json.loads(seal.read_text(encoding="utf-8"))
        version, own = content.get("version", 1), content.pop("seal", None)
        placeless = content.get("placeless", {})
        digest = _combined({**content["files"], **placeless})
        intact = content["digest"] == digest and (own is None or own == _combined(content))
    except PermissionError:
        raise  # nothing is damaged
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StageError(f"{seal} is damaged ({error!r}); {AGAIN}") from error
    if version not in (1, VERSION):
        raise StageError(f"{seal} has version {version!r}, this program reads up to {VERSION}; update lightning_mmrl")
    if not intact or (version == 1) != (own is None):
        raise StageError(f"{seal} lists other files or facts than the stage wrote; {AGAIN}")
    return {**content, "placeless": placeless, "seal": own}


def check_artifact(directory: Path) -> dict[str, Any]:
    """Reads the seal of a folder, and checks that the sealed files are there, unchanged, and the only ones.

    Raises:
        StageError: A file is missing, changed or not in the seal, or the seal is damaged.
    """
    facts = sealed(directory)
    files = facts["files"]
    try:
        found = {path.relative_to(directory).as_posix(): path for path in _own_files(directory, directory, files)}
        of_file = file_digest if facts.get("version") == VERSION else _placeless_hash
        for of_content, hashes in ((of_file, files), (_placeless_hash, facts["placeless"])):
            for name, expected in hashes.items():
                if name not in found or of_content(found[name]) != expected:
                    raise StageError(f"{directory / name} is missing or changed since the stage wrote it; {AGAIN}")
    except PermissionError:
        raise  # the command line names the owner
    except OSError as error:
        raise StageError(f"{directory} cannot be read ({error}); look at its disk") from error
    return facts


def _own_files(folder: Path, directory: Path, files: Mapping[str, str]) -> Iterator[Path]:
    """Yields the sealed files in a folder of an artifact.

    Raises:
        StageError: The folder holds another file, which a loader might read.
    """
    # In a snapshot of the hub's cache, links lead to the cache's own files.
    snapshots = directory.absolute().parent
    blobs = (snapshots.parent / "blobs").resolve() if snapshots.name == "snapshots" else None
    for path in sorted(folder.iterdir()):
        name, mode = path.relative_to(directory).as_posix(), path.lstat().st_mode
        if stat.S_ISDIR(mode):
            if any(each.startswith(f"{name}/") for each in files):
                yield from _own_files(path, directory, files)
            elif name not in BESIDE_FOLDERS:
                within = {each.relative_to(directory).as_posix() for each in path.iterdir()}
                if not within or not within <= {*BESIDE_FOLDERS}:
                    raise StageError(f"{path} {_STRAY}")
        elif not stat.S_ISREG(mode) and not (stat.S_ISLNK(mode) and blobs and path.resolve().parent == blobs):
            raise StageError(
                f"{path} is no plain file, and a sealed folder has no others; put the file itself in its place"
            )
        elif name in files:
            yield path
        elif name not in (SEAL, *BESIDE):
            raise StageError(f"{path} {_STRAY}")


def folder_digest(directory: Path) -> str:
    """Returns the hash of the files in a checkpoint folder without a seal, such as a base model."""
    return _combined({path.name: file_digest(path) for path in sorted(directory.iterdir()) if path.is_file()})


def _combined(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(content), sort_keys=True).encode()).hexdigest()


def _placeless_hash(path: Path) -> str:
    """Hashes the values of an adapter's configuration except the path of the base, or the content of any other file.

    Seals of version 1 list these hashes.
    """
    if path.name != ADAPTER_CONFIG:
        return file_digest(path)
    try:
        values = json.loads(path.read_bytes())
        if isinstance(values, dict):
            values.pop(PLACE, None)
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    except (ValueError, RecursionError):  # truncated or damaged: the hash of its bytes equals no hash of values
        return file_digest(path)
