"""Reads the rows of a parquet or arrow file in small batches, as plain values."""

import datetime
import math
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.data.formats.place import Place, RowOrFault
from lightning_mmrl.data.schema import LineError
from lightning_mmrl.errors import DataError

if TYPE_CHECKING:
    import pyarrow

_BATCH = 32
"""Rows that are in memory at once; a row may hold several pictures."""
_BUFFER = 2**20


def parquet_rows(path: Path) -> Iterator[RowOrFault]:
    """Yields the rows of a parquet file; pages are read as they are needed, so a row group may be of any size.

    A page is the least that can be read: about 1 MiB, or a thousand rows, whichever is more.

    Raises:
        DataError: The file is damaged.
    """
    from pyarrow import parquet

    with _damage(path, "parquet"), parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file:
        yield from _rows(file.iter_batches(batch_size=_BATCH, use_threads=False))


def arrow_rows(path: Path) -> Iterator[RowOrFault]:
    """Yields the rows of an arrow file or stream, as Hugging Face datasets saves it, without loading the file.

    Raises:
        DataError: The file is damaged.
    """
    import pyarrow
    from pyarrow import ipc

    def batches(reader: Any) -> "Iterator[pyarrow.RecordBatch]":
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)

    with _damage(path, "arrow"), pyarrow.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        yield from _rows(batches(ipc.open_file(source)) if is_file else iter(ipc.open_stream(source)))


def num_table_rows(path: Path) -> int:
    """The number of rows of a parquet or arrow file, without reading them if the file says it.

    Raises:
        DataError: The file is damaged.
    """
    from pyarrow import parquet

    with path.open("rb") as file:
        is_parquet = file.read(4) == b"PAR1"
    if not is_parquet:
        return sum(1 for _ in arrow_rows(path))
    with _damage(path, "parquet"):
        return parquet.read_metadata(path).num_rows


@contextmanager
def _damage(path: Path, what: str) -> Iterator[None]:
    """Turns an error of pyarrow into one sentence about the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError, NotImplementedError) as error:
        lines = str(error).splitlines()
        why = lines[0][:200] if lines else type(error).__name__
        raise DataError(f"{path} cannot be read as {what} ({why}); download or write the file again") from error


def _rows(batches: "Iterator[pyarrow.RecordBatch]") -> Iterator[RowOrFault]:
    number = 0
    for batch in batches:
        names = batch.schema.names
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two columns have the name {twice!r}")
        batch.validate(full=True)
        for start in range(0, batch.num_rows, _BATCH):
            for index in range(start, min(start + _BATCH, batch.num_rows)):
                number += 1
                yield Place(row=number), _row(batch, index)


def _row(batch: "pyarrow.RecordBatch", index: int) -> "dict[str, Any] | LineError":
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            value = plain(column[index].as_py())
        except (ValueError, OverflowError, NotImplementedError) as error:
            return LineError("column type", f"column {name!r} cannot be read ({str(error)[:200]}); correct the value")
        if value is not None:
            row[name] = value
    return row


def plain(value: Any) -> Any:
    """A value of a table as JSON knows it; a missing value, which tables write as null or NaN, is left out.

    >>> plain({"a": 1, "b": None, "when": datetime.date(2026, 1, 2), "share": float("nan")})
    {'a': 1, 'when': '2026-01-02'}
    """
    if isinstance(value, dict):
        found = {str(key): plain(each) for key, each in value.items()}
        return {key: each for key, each in found.items() if each is not None}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal | datetime.timedelta) else value
