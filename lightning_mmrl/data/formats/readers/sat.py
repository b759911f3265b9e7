"""SAT: parquet with `image_bytes`, `question`, the options in `answers`, and the text of the right one."""

from lightning_mmrl.data.formats.assembly import MediaColumns, Reading, assembled, text_of
from lightning_mmrl.data.formats.chat import question
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.protocol import ColumnReader
from lightning_mmrl.data.formats.storage import Peek
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.schema import LineError


def _recognised(peek: Peek) -> bool:
    return {"question", "answers", "correct_answer"} <= peek.row.keys()


def _canonical(row: Row, reading: Reading) -> Row:
    asked, right = text_of(row, "question"), text_of(row, "correct_answer")
    options = row.get("answers")
    if not isinstance(options, list) or not options or not all(isinstance(each, str) and each for each in options):
        raise LineError("options", f"'answers' is {quoted(options)}; it must be a list of the options' texts")
    if right not in options:
        raise LineError(
            "options", f"'correct_answer' {quoted(right)} is none of 'answers' {quoted(options)}; correct it"
        )
    turns = question(f"{asked} Choose between the following options: {', or '.join(options)}", "question")
    media: MediaColumns = {"image": ("image_bytes", row.get("image_bytes"))}
    used = {"question", "answers", "correct_answer"}
    return assembled(row, reading, turns, used=used, solution=right, media=media, more={"options": options})


SAT = ColumnReader(
    name="sat",
    layout="parquet: image_bytes, question, answers, correct_answer",
    recognised=_recognised,
    canonical=_canonical,
)
