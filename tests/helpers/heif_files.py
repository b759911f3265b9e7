"""HEIC files with a grid of tiles, turns and a thumbnail, put together box by box; HEVC by PyAV's encoder."""

import struct
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

TILE = 64


def write_grid(
    path: Path,
    image: np.ndarray,
    *,
    turns: Sequence[tuple[bytes, int]] = (),
    grid_in_idat: bool = True,
    drop_tile: bool = False,
) -> Path:
    """`image` [H, W, 3] in tiles of 64 pixels, row by row; item 1 is the grid, item 2 a thumbnail."""
    height, width = image.shape[:2]
    rows, columns = -(-height // TILE), -(-width // TILE)
    padded = np.pad(image, ((0, rows * TILE - height), (0, columns * TILE - width), (0, 0)), mode="edge")
    thumbnail = np.full((TILE, TILE, 3), 128, dtype=np.uint8)
    squares = [padded[r * TILE :, c * TILE :][:TILE, :TILE] for r in range(rows) for c in range(columns)]
    coded = [_encode(path, np.ascontiguousarray(square)) for square in (thumbnail, *squares)]
    grid = bytes([0, 0, rows - 1, columns - 1]) + struct.pack(">HH", width, height)
    tiles = list(range(3, 3 + len(squares)))
    parts = tiles[:-1] if drop_tile else tiles
    properties = [
        coded[0][0],
        _full(b"ispe", struct.pack(">II", TILE, TILE)),
        _full(b"ispe", struct.pack(">II", width, height)),
    ]
    properties += [_box(name, bytes([value])) for name, value in turns]
    own = [3, *range(4, 4 + len(turns))]
    ipma = struct.pack(">I", len(tiles) + 2) + struct.pack(">HB", 1, len(own)) + bytes(0x80 | number for number in own)
    ipma += b"".join(struct.pack(">HB", item, 2) + bytes([0x81, 2]) for item in (2, *tiles))
    types = [(1, b"grid"), (2, b"hvc1"), *((tile, b"hvc1") for tile in tiles)]
    iinf = struct.pack(">H", len(types)) + b"".join(
        _full(b"infe", struct.pack(">HH", item, 0) + kind + b"\0", version=2) for item, kind in types
    )
    iref = _box(b"dimg", struct.pack(">HH", 1, len(parts)) + b"".join(struct.pack(">H", part) for part in parts))
    iref += _box(b"thmb", struct.pack(">HHH", 2, 1, 1))
    payloads = [sample for _, sample in coded] + ([] if grid_in_idat else [grid])

    def meta(data_at: int) -> bytes:
        places = np.cumsum([data_at, *map(len, payloads)]).tolist()
        where = [(item, 0, places[number], len(payloads[number])) for number, item in enumerate((2, *tiles))]
        where.append((1, 1, 0, len(grid)) if grid_in_idat else (1, 0, places[-2], len(grid)))
        iloc = b"\x44\x00" + struct.pack(">H", len(where))
        iloc += b"".join(struct.pack(">HHHHII", item, method, 0, 1, at, size) for item, method, at, size in where)
        return _full(
            b"meta",
            _full(b"hdlr", b"\0" * 4 + b"pict" + b"\0" * 13)
            + _full(b"pitm", struct.pack(">H", 1))
            + _full(b"iloc", iloc, version=1)
            + _full(b"iinf", iinf)
            + _full(b"iref", iref)
            + _box(b"iprp", _box(b"ipco", b"".join(properties)) + _full(b"ipma", ipma))
            + (_box(b"idat", grid) if grid_in_idat else b""),
        )

    head = _box(b"ftyp", b"heic\0\0\0\0mif1heic")
    path.write_bytes(head + meta(len(head) + len(meta(0)) + 8) + _box(b"mdat", b"".join(payloads)))
    return path


def _encode(path: Path, image: np.ndarray) -> tuple[bytes, bytes]:
    """The `hvcC` box and the sample of a picture."""
    clip = path.with_suffix(".one.mp4")
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx265", rate=1, options={"crf": "4", "x265-params": "log-level=0:keyint=1"})
        stream.height, stream.width = image.shape[:2]
        stream.pix_fmt = "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(clip)) as container:
        sample = next(bytes(packet) for packet in container.demux(video=0))
    content = clip.read_bytes()
    clip.unlink()
    at = content.index(b"hvcC") - 4
    return content[at : at + int.from_bytes(content[at : at + 4], "big")], sample


def _box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, name) + content


def _full(name: bytes, content: bytes, version: int = 0) -> bytes:
    return _box(name, bytes([version, 0, 0, 0]) + content)
