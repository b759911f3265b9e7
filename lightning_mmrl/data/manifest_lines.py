"""Writes samples as lines of a manifest: the inverse of `schema`."""

import json
from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.schema import COLUMN_OF, LineError, parse_line
from lightning_mmrl.errors import DataError
from lightning_mmrl.files import write_pieces
from lightning_mmrl.types.records import MediaRef, Sample


def write_manifest(path: Path, samples: Iterable[Sample], *, may_be_empty: bool = False) -> int:
    """Writes a manifest atomically, with one line in memory at a time, and returns the number of samples.

    Raises:
        DataError: A sample cannot be written as a manifest line, an id repeats, or there are no samples although
            `may_be_empty` is false.
        DiskError: The disk refuses.
    """
    seen: set[str] = set()

    def lines() -> Iterable[bytes]:
        for sample in samples:
            if sample.id in seen:
                raise DataError(f"{path}: id {quoted(sample.id)} would be written twice; make ids unique")
            seen.add(sample.id)
            yield manifest_line(sample)
        if not seen and not may_be_empty:
            raise DataError(f"{path} would hold no samples, and readers refuse an empty manifest; select more")

    write_pieces(path, lines())
    return len(seen)


def manifest_line(sample: Sample) -> bytes:
    r"""Returns the line of a sample, newline included; `schema` reads the same sample back from it.

    Raises:
        LineError: `schema` would refuse the line, or read another sample from it.

    >>> from lightning_mmrl.types.records import Message
    >>> manifest_line(Sample(id="a", messages=(Message(role="user", content="2 + 2?"),), solution="4"))
    b'{"id": "a", "messages": [{"role": "user", "content": "2 + 2?"}], "solution": "4"}\n'
    """
    try:
        line = f"{json.dumps(_row(sample), ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.end].encode("unicode_escape").decode("ascii")
        raise LineError("not JSON", f"not valid text (the lone surrogate {half}); write the whole character") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise LineError("not JSON", f"not to be written as JSON ({error}); change or drop the value") from error
    read = parse_line(line, default_id="unnamed")
    if read != sample:
        name = next(
            each.name for each in fields(Sample) if getattr(read, each.name, None) != getattr(sample, each.name)
        )
        raise LineError(
            "another sample",
            f"its {name} {quoted(getattr(sample, name))} would be read back as {quoted(getattr(read, name, None))}; "
            "change or drop the sample",
        )
    return line


def _row(sample: Sample) -> dict[str, Any]:
    """Returns the columns of a sample; if an extra column replaces one of them, `manifest_line` refuses the line."""
    media = {
        column: [_entry(ref) for ref in sample.media if ref.kind == kind]
        for kind, column in COLUMN_OF.items()
        if any(ref.kind == kind for ref in sample.media)
    }
    texts = {"solution": sample.solution, "speaker": sample.speaker, "split": sample.split}
    return {
        "id": sample.id,
        "messages": [asdict(message) for message in sample.messages],
        **media,
        **{key: text for key, text in texts.items() if text is not None},
        **sample.extras,
    }


def _entry(ref: MediaRef) -> str | dict[str, Any]:
    if ref.start_s is None and ref.end_s is None:
        return ref.path
    return {"path": ref.path, "start": ref.start_s, "end": ref.end_s}
