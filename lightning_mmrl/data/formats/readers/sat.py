"""SAT (arXiv:2412.07755): parquet with pictures, `question`, the options in `answers`, and the right one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lightning_mmrl.data.formats.assembly import Reading, assembled, media_column, text_of
from lightning_mmrl.data.formats.chat import question
from lightning_mmrl.data.formats.place import Row, RowOrFault
from lightning_mmrl.data.formats.readers.protocol import ColumnReader, converted
from lightning_mmrl.data.formats.storage import Parts, Peek, rows_of_files
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.schema import LineError

_IMAGES = ("image_bytes", "images")
"""The column of pictures in SAT, and in SAT-v2."""


def _recognised(peek: Peek) -> bool:
    return {"question", "answers", "correct_answer"} <= peek.row.keys()


def _canonical(row: Row, reading: Reading, turned: int = 0) -> Row:
    """The canonical row, its options turned by so many places."""
    asked, right = text_of(row, "question"), text_of(row, "correct_answer")
    options = row.get("answers")
    if not isinstance(options, list) or not options or not all(isinstance(each, str) and each for each in options):
        raise LineError("options", f"'answers' is {quoted(options)}; it must be a list of the options' texts")
    if right not in options:
        raise LineError(
            "options", f"'correct_answer' {quoted(right)} is none of 'answers' {quoted(options)}; correct it"
        )
    options = [*options[turned:], *options[:turned]]
    turns = question(f"{asked} Choose between the following options: {', or '.join(options)}", "question")
    used = {"question", "answers", "correct_answer", *(() if row.get("image_bytes") is None else ("image_bytes",))}
    return assembled(
        row,
        reading,
        turns,
        used=used,
        solution=right,
        media={"image": media_column(row, "image", _IMAGES)},
        more={"options": options, "subject": text_of(row, "question_type", required=False)},
    )


@dataclass(frozen=True, slots=True)
class CircularSAT:
    """A reader that asks each question once for every turn of its options, for circular evaluation.

    The ids are `FILE-000001#0`, `FILE-000001#1` and so on; the column `speaker` holds what they share, so that
    intervals resample whole questions. The name of the format must be given, since the files are those of `sat`.
    """

    name: str = "sat_circular"
    layout: str = "the files of sat, each question once for every turn of its options"

    def recognises(self, peek: Peek) -> bool:
        return False

    def files(self, parts: Parts) -> Sequence[Path]:
        return parts.files

    def rows(self, parts: Parts, reading: Reading) -> Iterator[tuple[Path, RowOrFault]]:
        for number, (path, (place, row)) in enumerate(rows_of_files(parts.files), start=1):
            answers = None if isinstance(row, LineError) else row.get("answers")
            for turned in range(max(1, len(answers)) if isinstance(answers, list) else 1):
                turning = partial(_turned, f"{path.stem}-{number:06d}", turned)
                yield from converted(iter([(path, (place, row))]), turning, reading)


def _turned(name: str, turned: int, row: Row, reading: Reading) -> Row:
    return {**_canonical(row, reading, turned), "id": f"{name}#{turned}", "speaker": name}


SAT = ColumnReader(
    name="sat",
    layout="parquet: image_bytes or images, question, answers, correct_answer, question_type",
    recognised=_recognised,
    canonical=_canonical,
)
SAT_CIRCULAR = CircularSAT()
