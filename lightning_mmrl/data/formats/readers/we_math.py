"""We-Math (arXiv:2407.01284): parquet or an array of `ID`, `key`, `question`, `option`, `image_path` and `answer`."""

from lightning_mmrl.data.formats.assembly import Reading, assembled, text_of
from lightning_mmrl.data.formats.chat import question
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.benchmark_columns import benchmark_of
from lightning_mmrl.data.formats.readers.protocol import ColumnReader


def _canonical(row: Row, reading: Reading) -> Row:
    """A problem of two or three steps, with one `ID`, has a row for each step and one for the whole problem.

    The id names both, such as `2steps_7-multi`. The column `speaker` holds the `ID`, so that intervals resample whole
    problems, as the four-dimensional metrics need it.
    """
    problem, key = text_of(row, "ID") or "", text_of(row, "key") or ""
    asked = f"{text_of(row, 'question')}\n{text_of(row, 'option')}"
    return assembled(
        row,
        reading,
        question(asked, "question"),
        used={"ID", "question", "option", "answer", "image_path"},
        solution=text_of(row, "answer", required=False),
        media={"image": ("image_path", row.get("image_path"))},
        more={
            "id": f"{problem}-{key.rpartition('_')[2]}",
            "speaker": problem,
            "subject": text_of(row, "knowledge concept", required=False),
        },
    )


WE_MATH = ColumnReader(
    name="we_math",
    layout="parquet or a JSON array: ID, key, question, option, answer, image_path, knowledge concept",
    recognised=lambda peek: benchmark_of(peek) == "we_math",
    canonical=_canonical,
)
