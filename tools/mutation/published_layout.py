"""What a published sample file is: its rows, how they are written, and the samples that they hold."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc, parquet

from lightning_mmrl.types.records import MediaRef, Message, Sample

PNG = b"\x89PNG\r\n\x1a\n"
A, B = PNG + b"a", PNG + b"b"
MEDIA = {
    "pics/a.png": A,
    "pics/b.png": B,
    "clips/1.mp4": b"\x00\x00\x00\x18ftypmp42",
    "clips/1.wav": b"RIFF\0\0\0\0WAVE",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A published file: its name, its rows, how they are written, and the samples that they hold."""

    format: str
    file: str
    rows: Sequence[Mapping[str, Any]]
    samples: Sequence[Sample]
    write: Callable[[Path, Sequence[Mapping[str, Any]]], None]
    beside: Mapping[str, bytes] = field(default_factory=dict)
    source: str = ""

    def put(self, folder: Path, rows: Sequence[Mapping[str, Any]] | None = None) -> Path:
        """Writes the file, other rows in place of its own if they are given, and returns the path of the source."""
        for name, content in {**MEDIA, **self.beside}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.write(folder / self.file, self.rows if rows is None else rows)
        return folder / (self.source or self.file)


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_array(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=2), encoding="utf-8")


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path, row_group_size=1)


def write_arrow(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    table = pyarrow.Table.from_pylist(list(rows))
    with ipc.new_stream(path, table.schema) as stream:
        stream.write_table(table, max_chunksize=1)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(text.getvalue(), encoding="utf-8")


def image(path: str) -> MediaRef:
    return MediaRef(kind="image", path=path)


def inline(content: bytes) -> MediaRef:
    digest = sha256(content).hexdigest()
    return image(f".mmrl-inline/{digest[:2]}/{digest}.png")


def asked(text: str, *answers: str, system: str = "") -> tuple[Message, ...]:
    first = (Message(role="system", content=system),) if system else ()
    later = (Message(role="assistant", content=answer) for answer in answers)
    return (*first, Message(role="user", content=text), *later)


CLIP = (MediaRef(kind="video", path="clips/1.mp4"), MediaRef(kind="audio", path="clips/1.mp4"))
