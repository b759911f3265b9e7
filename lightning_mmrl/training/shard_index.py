"""Reads the index of a sharded checkpoint as data.

torch's distributed checkpoint stores its index as a pickle, and torch's reader calls whatever that pickle names. This
reader replaces each of the few classes that an index needs by a plain holder of values, and refuses any other name. It
checks the values and builds a new index from them.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from lightning_mmrl.errors import StageError

INDEX = ".metadata"
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_DTYPES = (*_FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)


class IndexReader(FileSystemReader):
    """torch's reader of shards, with an index that is read as data."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index of the folder.

        Raises:
            StageError: The index is missing or damaged, or names something that no index needs.
        """
        index = read_index(Path(self.path))
        index.storage_meta = StorageMeta(load_id=self.load_id)
        return index


def read_index(folder: Path) -> Metadata:
    """The index of a sharded checkpoint: its tensors, and the files that hold their parts.

    Raises:
        StageError: The index is missing or damaged, or names something that no index needs.
    """
    try:
        with (folder / INDEX).open("rb") as file:
            return _built(_Unpickler(file).load(), folder)
    except (OSError, EOFError, pickle.UnpicklingError, *_MISUSE) as error:
        raise StageError(
            f"{folder / INDEX} is not the index of a state ({error}); restore the state, or remove its folder to go on "
            "from the one before it"
        ) from error


_MISUSE = (ValueError, TypeError, AttributeError, LookupError, RecursionError, MemoryError)
"""Errors of a pickle that calls or sets something it may not, or of values that do not form an index."""


class _Values:
    """Holds the values of one object of an index as attributes; a tuple of values is the attribute `state`."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__ = dict(state) if isinstance(state, dict) else {"state": tuple(state)}


class _Unpickler(pickle.Unpickler):
    """Creates holders of values in place of objects; it imports nothing."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        # Each pickle gets new classes, so that a pickle that sets values of a class affects no other read.
        holders = ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex")
        kinds = {("torch.distributed.checkpoint.metadata", name): type(name, (_Values,), {}) for name in holders}
        kinds["torch.distributed.checkpoint.metadata", "StorageMeta"] = type("StorageMeta", (_Values,), {})
        kinds["torch.distributed.checkpoint.filesystem", "_StorageInfo"] = type("_StorageInfo", (_Values,), {})
        self._known: Mapping[tuple[str, str], Any] = {**_PLAIN, **kinds}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """The stand-in for a name.

        Raises:
            UnpicklingError: No index contains this name.
        """
        known = self._known.get((module_name, global_name))
        if known is None:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which is not read from a state")
        return known


_PLAIN: Mapping[tuple[str, str], Any] = {
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): dict,
    ("torch.serialization", "_get_layout"): str,
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"): int,
    # The place that a state was written to; nothing reads it.
    ("pathlib", "PosixPath"): lambda *parts: "/".join(map(str, parts)),
    ("pathlib._local", "PosixPath"): lambda *parts: "/".join(map(str, parts)),
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _DTYPES},
}


def _built(values: Any, folder: Path) -> Metadata:
    """The index that the values describe.

    Raises:
        ValueError: A part lies outside of the folder, or the tensors are larger than its files.
    """
    tensors, places, paths = values.state_dict_metadata, values.storage_data, values.planner_data
    if sum(len(tensor.chunks) for tensor in tensors.values()) > len(places):
        raise ValueError("it has tensors without a place")
    built = {str(name): _tensor(tensor) for name, tensor in tensors.items()}
    for name in built:
        if not all(isinstance(key, str) for key in paths[name]):
            raise ValueError(f"{name} has no path of texts")
    for name in {part.relative_path for part in places.values()}:
        if Path(name).name != name or (folder / name).is_symlink() or not (folder / name).is_file():
            raise ValueError(f"a part lies in {name!r}, which is no file of the state")
    held = sum((folder / name).stat().st_size for name in {part.relative_path for part in places.values()})
    if sum(tensor.size.numel() * tensor.properties.dtype.itemsize for tensor in built.values()) > held:
        raise ValueError("its tensors are larger than the files of its parts")
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for at, part in places.items():
        if vars(part).get("transform_descriptors"):
            raise ValueError("its parts are transformed, which no state of this program is")
        offset = None if at.offset is None else _size(at.offset)
        place = _StorageInfo(relative_path=part.relative_path, offset=int(part.offset), length=int(part.length))
        storage[MetadataIndex(fqn=str(at.fqn), offset=offset, index=at.index)] = place
    return Metadata(
        state_dict_metadata=built,  # type: ignore[arg-type]
        planner_data={name: tuple(paths[name]) for name in built},
        storage_data=storage,
    )


def _tensor(values: Any) -> TensorStorageMetadata:
    dtype, layout = values.properties.state[:2]
    if dtype not in _DTYPES or layout != "torch.strided":
        raise ValueError(f"it has a tensor of {dtype} and {layout}")
    chunks = [ChunkStorageMetadata(offsets=_size(each.offsets), sizes=_size(each.sizes)) for each in values.chunks]
    return TensorStorageMetadata(properties=TensorProperties(dtype=dtype), size=_size(values.size), chunks=chunks)


def _size(values: Any) -> torch.Size:
    size = torch.Size(values)
    if any(each < 0 for each in size):
        raise ValueError(f"it has the size {tuple(size)}")
    return size
