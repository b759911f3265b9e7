"""MMMU (arXiv:2311.16502): parquet of `question` and `options` with marks such as `<image 1>`."""

import ast
import re
from collections.abc import Sequence

from lightning_mmrl.data.formats.assembly import Reading, assembled, text_of
from lightning_mmrl.data.formats.chat import question
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.benchmark_columns import benchmark_of, option_texts, with_options
from lightning_mmrl.data.formats.readers.protocol import ColumnReader
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.schema import LineError

_MARK = re.compile(r"<image ([1-7])>")
_IMAGES = [f"image_{number}" for number in range(1, 8)]
_SUBJECT = re.compile(r"[a-z]+_(.+)_\d+")
"""The subject within an id such as `validation_Accounting_1`."""


def _canonical(row: Row, reading: Reading) -> Row:
    """The pictures stand where the marks are, in the question and in its options."""
    options = _options(row)
    asked = with_options(text_of(row, "question") or "", options)
    marks = _MARK.findall(asked)
    if missing := next((mark for mark in marks if row.get(f"image_{mark}") is None), None):
        raise LineError("media entries", f"the question shows <image {missing}>, so 'image_{missing}' must be given")
    named = _SUBJECT.fullmatch(text_of(row, "id") or "")
    return assembled(
        row,
        reading,
        question(_MARK.sub("<image>", asked), "question"),
        used={"question", "answer", *_IMAGES},
        solution=text_of(row, "answer", required=False),
        media={"image": ("image_1", [row[f"image_{mark}"] for mark in marks])},
        more={"options": options or None, "subject": named[1] if named else None},
    )


def _options(row: Row) -> Sequence[str]:
    """The texts of the options, which the parquet files hold as the text of a Python list."""
    value = row.get("options")
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise LineError("options", f"'options' is {quoted(value)}, which must be a list") from error
    return option_texts(value, "options")


MMMU = ColumnReader(
    name="mmmu",
    layout="parquet: id, question, options, image_1 to image_7, answer, question_type, subfield, topic_difficulty",
    recognised=lambda peek: benchmark_of(peek) == "mmmu",
    canonical=_canonical,
)
