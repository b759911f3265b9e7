"""MathVista (arXiv:2310.02255): parquet of `pid`, `query`, `decoded_image`, `choices` and `answer_type`."""

from lightning_mmrl.data.formats.assembly import Reading, assembled, media_column, text_of
from lightning_mmrl.data.formats.chat import question
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.benchmark_columns import benchmark_of, option_texts, with_options
from lightning_mmrl.data.formats.readers.protocol import ColumnReader


def _canonical(row: Row, reading: Reading) -> Row:
    """The prompt is the published `query`, whose hint names the form of the answer; without it, the question."""
    choices, unit = option_texts(row.get("choices"), "choices"), text_of(row, "unit", required=False)
    asked = text_of(row, "query", required=False)
    if asked is None:
        bare = text_of(row, "question") or ""
        asked = with_options(f"{bare} (Unit: {unit})" if unit else bare, choices)
    metadata = row.get("metadata")
    subject = metadata.get("task") if isinstance(metadata, dict) else None
    names = ("decoded_image", "image") if row.get("decoded_image") is None else ("decoded_image",)
    return assembled(
        row,
        reading,
        question(asked, "query"),
        used={"pid", "query", "question", "answer", "image"},
        solution=text_of(row, "answer", required=False),
        media={"image": media_column(row, "image", names)},
        more={"id": text_of(row, "pid"), "options": choices or None, "subject": subject},
    )


MATHVISTA = ColumnReader(
    name="mathvista",
    layout="parquet: pid, query, question, decoded_image, choices, unit, precision, answer, question_type, "
    "answer_type, metadata",
    recognised=lambda peek: benchmark_of(peek) == "mathvista",
    canonical=_canonical,
)
