"""Reads from the header of an HEIC file which items make up its picture: one coded picture, or a grid of tiles.

Formats: ISO/IEC 14496-12 (boxes), ISO/IEC 23008-12 (items and their properties).
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from lightning_mmrl.data.media.opened import MediaFile

BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis"})

_MAX_HEADER_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """The primary item.

    Attributes:
        tiles: Ids of the coded pictures that make up the item, row by row.
        columns: Tiles per row.
        size: Width and height of the picture that a grid shows; its tiles may cover more. None for a single picture.
        turns: Operations on the pixels, in this order: a number of counter-clockwise quarter turns ("irot"), or a
            flip ("imir") of top and bottom (0) or left and right (1).
    """

    tiles: tuple[int, ...]
    columns: int
    size: tuple[int, int] | None
    turns: tuple[tuple[str, int], ...]


def is_heif(file: MediaFile) -> bool:
    """Whether the first box of a file declares a picture coded with HEVC."""
    head = file.head(256)
    if head[4:8] != b"ftyp":
        return False
    end = min(len(head), int.from_bytes(head[:4], "big"))
    return head[8:12] in BRANDS or any(head[at : at + 4] in BRANDS for at in range(16, end, 4))


def read_shown(file: MediaFile) -> Shown:
    """Reads which items make up the picture.

    Raises:
        ValueError: The header is damaged or has another form.
    """
    try:
        return _Header(file).shown()
    except (struct.error, IndexError, KeyError) as error:
        raise ValueError("the header of the HEIC file is damaged") from error


class _Header:
    """The `meta` box of a file."""

    def __init__(self, file: MediaFile) -> None:
        self._file = file
        self._data = _meta(file)
        self._boxes = {name: (start, end) for name, start, end in _split(self._data, 4, len(self._data))}

    def shown(self) -> Shown:
        version, at = self._full(b"pitm")
        primary = self._number(at, 2 if version == 0 else 4)
        kind = self._kinds()[primary]
        turns = tuple(self._turns(primary))
        if kind != b"grid":
            return Shown(tiles=(primary,), columns=1, size=None, turns=turns)
        grid = self._content(primary)
        wide = grid[1] & 1
        rows, columns = grid[2] + 1, grid[3] + 1
        size = struct.unpack_from(">II" if wide else ">HH", grid, 4)
        tiles = self._parts(primary)
        if len(tiles) != rows * columns:
            raise ValueError(f"the grid has {len(tiles)} tiles and not {rows} x {columns}")
        return Shown(tiles=tiles, columns=columns, size=size, turns=turns)

    def _kinds(self) -> dict[int, bytes]:
        """Maps the id of each item to its type."""
        version, at = self._full(b"iinf")
        kinds = {}
        for name, start, _ in _split(self._data, at + (2 if version == 0 else 4), self._boxes[b"iinf"][1]):
            if name == b"infe":
                wide = self._data[start] >= 3
                id_size = 4 if wide else 2
                kinds[self._number(start + 4, id_size)] = self._data[start + 6 + id_size : start + 10 + id_size]
        return kinds

    def _parts(self, item: int) -> tuple[int, ...]:
        """Ids of the items from which an item is derived."""
        version, at = self._full(b"iref")
        size = 2 if version == 0 else 4
        for name, start, _ in _split(self._data, at, self._boxes[b"iref"][1]):
            if name == b"dimg" and self._number(start, size) == item:
                count, first = self._number(start + size, 2), start + size + 2
                return tuple(self._number(first + index * size, size) for index in range(count))
        raise ValueError("the grid has no tiles")

    def _turns(self, item: int) -> Iterator[tuple[str, int]]:
        inner = {name: (start, end) for name, start, end in _split(self._data, *self._boxes[b"iprp"])}
        properties = list(_split(self._data, *inner[b"ipco"]))
        for index in self._associated(item, inner[b"ipma"][0]):
            if index == 0:
                continue
            name, start, _ = properties[index - 1]
            if name == b"irot":
                yield "irot", self._data[start] & 3
            if name == b"imir":
                yield "imir", self._data[start] & 1

    def _associated(self, item: int, at: int) -> list[int]:
        """Property numbers of an item, counted from 1."""
        version, wide = self._data[at], self._data[at + 3] & 1
        id_size, entry_size = (2 if version < 1 else 4), (2 if wide else 1)
        count, at = self._number(at + 4, 4), at + 8
        for _ in range(count):
            owner, num = self._number(at, id_size), self._data[at + id_size]
            at += id_size + 1
            if owner == item:
                mask = 0x7FFF if wide else 0x7F
                return [self._number(at + index * entry_size, entry_size) & mask for index in range(num)]
            at += num * entry_size
        return []

    def _content(self, item: int) -> bytes:
        """The bytes of an item that is stored in one extent."""
        version, at = self._full(b"iloc")
        offset_size, length_size = self._data[at] >> 4, self._data[at] & 15
        base_size, index_size = self._data[at + 1] >> 4, self._data[at + 1] & 15 if version else 0
        id_size = 2 if version < 2 else 4
        count, at = self._number(at + 2, id_size), at + 2 + id_size
        for _ in range(count):
            owner, at = self._number(at, id_size), at + id_size
            in_idat, at = (self._number(at, 2) & 15 == 1, at + 2) if version else (False, at)
            base, at = self._number(at + 2, base_size), at + 2 + base_size
            extents, at = self._number(at, 2), at + 2
            if owner == item:
                at += index_size
                offset = base + self._number(at, offset_size)
                length = self._number(at + offset_size, length_size)
                if in_idat:
                    start = self._boxes[b"idat"][0] + offset
                    return self._data[start : start + length]
                with self._file.reader() as content:
                    content.seek(offset)
                    return content.read(min(length, 64))
            at += extents * (index_size + offset_size + length_size)
        raise ValueError("the grid is not stored anywhere")

    def _full(self, name: bytes) -> tuple[int, int]:
        """The version of a box, and the offset of its content."""
        start, _ = self._boxes[name]
        return self._data[start], start + 4

    def _number(self, at: int, size: int) -> int:
        if at + size > len(self._data):
            raise IndexError(at)
        return int.from_bytes(self._data[at : at + size], "big")


def _meta(file: MediaFile) -> bytes:
    """The content of the `meta` box, which describes all items."""
    with file.reader() as content:
        at = 0
        while at + 8 <= file.size:
            content.seek(at)
            size, name = struct.unpack(">I4s", content.read(8))
            start = at + 8
            if size == 1:
                size, start = struct.unpack(">Q", content.read(8))[0], at + 16
            size = size or file.size - at
            if name == b"meta":
                return content.read(min(size - (start - at), _MAX_HEADER_BYTES))
            if size < 8:
                break
            at += size
    raise ValueError("the HEIC file has no header")


def _split(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields the name of each box, and where its content starts and ends."""
    while at + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if size == 1:
            size, start = struct.unpack_from(">Q", data, start)[0], at + 16
        stop = at + size if size else end
        if stop > end or stop < start:
            raise ValueError("a box of the HEIC file sticks out of its header")
        yield name, start, stop
        at = stop
