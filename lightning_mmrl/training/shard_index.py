"""The index of a checkpoint in shards, read as data.

torch's distributed checkpoint keeps its index as a pickle, and its own reader calls whatever that pickle names. Here
each of the few names that an index consists of makes an empty holder of values, and any other name is refused. The
index is then built anew from the values, once they are looked at.
"""

import pickle
from collections.abc import Iterator, Mapping
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
    """torch's reader of shards over an index that is read as data."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index of the folder.

        Raises:
            StageError: The index is missing or damaged, or names something that no index consists of.
        """
        index = read_index(Path(self.path))
        index.storage_meta = StorageMeta(load_id=self.load_id)
        return index


def read_index(folder: Path) -> Metadata:
    """The index of a checkpoint in shards: which tensors there are, and where their parts lie.

    Raises:
        StageError: The index is missing or damaged, or names something that no index consists of.
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
"""What a pickle raises that calls or sets what it may not, or a builder that gets other values than it expects."""


class _Values:
    """The values of one object of an index, by name; where torch keeps a tuple, under `state`."""

    def __setstate__(self, state: Any) -> None:
        self.__dict__ = dict(state) if isinstance(state, dict) else {"state": tuple(state)}


class _Unpickler(pickle.Unpickler):
    """Makes holders of values in place of objects; it imports nothing."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        # Of this pickle alone: one that sets values of a class sets them nowhere else.
        holders = ("Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata", "MetadataIndex")
        kinds = {("torch.distributed.checkpoint.metadata", name): type(name, (_Values,), {}) for name in holders}
        kinds["torch.distributed.checkpoint.metadata", "StorageMeta"] = type("StorageMeta", (_Values,), {})
        kinds["torch.distributed.checkpoint.filesystem", "_StorageInfo"] = type("_StorageInfo", (_Values,), {})
        self._known: Mapping[tuple[str, str], Any] = {**_PLAIN, **kinds}

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """What stands for a name.

        Raises:
            UnpicklingError: No index has it.
        """
        known = self._known.get((module_name, global_name))
        if known is None:
            raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which is not read from a state")
        return known


def _joined(*parts: Any) -> str:
    """The place that a state was written to, which nobody asks for."""
    return "/".join(str(part) for part in parts)


_PLAIN: Mapping[tuple[str, str], Any] = {
    ("torch", "Size"): tuple,
    ("collections", "OrderedDict"): dict,
    ("torch.serialization", "_get_layout"): str,
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"): int,
    ("pathlib", "PosixPath"): _joined,
    ("pathlib._local", "PosixPath"): _joined,
    **{("torch", str(dtype).removeprefix("torch.")): dtype for dtype in _DTYPES},
}


def _built(values: Any, folder: Path) -> Metadata:
    """The index that the values describe.

    Raises:
        ValueError: A part lies elsewhere than in the folder, or the tensors are larger than its files.
    """
    tensors, places, paths = values.state_dict_metadata, values.storage_data, values.planner_data
    if sum(len(tensor.chunks) for tensor in tensors.values()) > len(places):
        raise ValueError("it has tensors without a place")
    built = {str(name): _tensor(tensor) for name, tensor in tensors.items()}
    for name in built:
        if not all(isinstance(key, str) for key in paths[name]):
            raise ValueError(f"{name} has no path of texts")
    held = sum(path.stat().st_size for path in _files(folder, places.values()))
    if sum(tensor.size.numel() * tensor.properties.dtype.itemsize for tensor in built.values()) > held:
        raise ValueError("its tensors are larger than the files of its parts")
    return Metadata(
        state_dict_metadata=built,  # type: ignore[arg-type]
        planner_data={name: tuple(paths[name]) for name in built},
        storage_data={_index(at): _place(part) for at, part in places.items()},
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


def _index(values: Any) -> MetadataIndex:
    offset = None if values.offset is None else _size(values.offset)
    return MetadataIndex(fqn=str(values.fqn), offset=offset, index=values.index)


def _place(values: Any) -> _StorageInfo:
    if vars(values).get("transform_descriptors"):
        raise ValueError("its parts are transformed, and none that we write is")
    return _StorageInfo(relative_path=values.relative_path, offset=int(values.offset), length=int(values.length))


def _files(folder: Path, places: Any) -> Iterator[Path]:
    """The files that parts lie in.

    Raises:
        ValueError: One is not in the folder itself.
    """
    for name in {part.relative_path for part in places}:
        path = folder / name
        if Path(name).name != name or path.is_symlink() or not path.is_file():
            raise ValueError(f"a part lies in {name!r}, which is no file of the state")
        yield path
