"""MathVerse (arXiv:2403.14624): parquet or JSON of `query_cot`, `problem_version`, `image`, `answer` and `metadata`."""

from lightning_mmrl.data.formats.assembly import Reading, assembled, text_of
from lightning_mmrl.data.formats.chat import question
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.benchmark_columns import benchmark_of
from lightning_mmrl.data.formats.readers.protocol import ColumnReader

_ASKED = ("query_cot", "query_wo", "question")


def _canonical(row: Row, reading: Reading) -> Row:
    """The prompt is `query_cot`, the main setting of the paper; the version `Text Only` has an empty image."""
    asked = next((name for name in _ASKED if text_of(row, name, required=False) is not None), _ASKED[0])
    metadata = row.get("metadata")
    subject = metadata.get("subject") if isinstance(metadata, dict) else None
    return assembled(
        row,
        reading,
        question(text_of(row, asked) or "", asked),
        used={*_ASKED, "sample_index", "answer", "image"},
        solution=text_of(row, "answer", required=False),
        media={"image": ("image", row.get("image") or None)},
        more={"id": text_of(row, "sample_index", required=False), "subject": subject},
    )


MATHVERSE = ColumnReader(
    name="mathverse",
    layout="parquet or JSON: sample_index, problem_index, problem_version, query_cot, image, answer, question_type, "
    "metadata",
    recognised=lambda peek: benchmark_of(peek) == "mathverse",
    canonical=_canonical,
)
