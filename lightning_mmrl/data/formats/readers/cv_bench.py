"""CV-Bench (arXiv:2406.16860): parquet or lines of `type`, `task`, `prompt`, `choices`, `answer` and `source`."""

from lightning_mmrl.data.formats.assembly import Reading, assembled, text_of
from lightning_mmrl.data.formats.chat import question
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.benchmark_columns import benchmark_of, option_texts, with_options
from lightning_mmrl.data.formats.readers.protocol import ColumnReader


def _canonical(row: Row, reading: Reading) -> Row:
    """The prompt is the published one, which lists the options; without it, the question with its options."""
    choices = option_texts(row.get("choices"), "choices")
    asked = text_of(row, "prompt", required=False) or with_options(text_of(row, "question") or "", choices)
    return assembled(
        row,
        reading,
        question(asked, "prompt"),
        used={"idx", "prompt", "question", "answer", "image"},
        solution=text_of(row, "answer", required=False),
        media={"image": ("image", row.get("image"))},
        more={"id": text_of(row, "idx", required=False), "options": choices, "subject": text_of(row, "task")},
    )


CV_BENCH = ColumnReader(
    name="cv_bench",
    layout="parquet or JSON lines: idx, type, task, image, question, prompt, choices, answer, source",
    recognised=lambda peek: benchmark_of(peek) == "cv_bench",
    canonical=_canonical,
)
