"""MATH-Vision (arXiv:2402.14804): parquet or lines of `question`, `options`, `answer`, `level` and `subject`."""

from lightning_mmrl.data.formats.assembly import Reading, assembled, media_column, text_of
from lightning_mmrl.data.formats.chat import question
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.benchmark_columns import benchmark_of, option_texts, with_options
from lightning_mmrl.data.formats.readers.protocol import ColumnReader


def _canonical(row: Row, reading: Reading) -> Row:
    """One picture shows all that the question calls `<image1>`, `<image2>` and so on; these marks stay as they are.

    The published `solution` is a worked one, and is kept as `rationale`.
    """
    options = option_texts(row.get("options"), "options")
    names = ("decoded_image", "image") if row.get("decoded_image") is None else ("decoded_image",)
    return assembled(
        row,
        reading,
        question(with_options(text_of(row, "question") or "", options), "question"),
        used={"question", "answer", "solution", "image"},
        solution=text_of(row, "answer", required=False),
        media={"image": media_column(row, "image", names)},
        more={"options": options or None, "rationale": text_of(row, "solution", required=False)},
    )


MATH_VISION = ColumnReader(
    name="math_vision",
    layout="parquet or JSON lines: id, question, options, image, answer, level, subject",
    recognised=lambda peek: benchmark_of(peek) == "math_vision",
    canonical=_canonical,
)
