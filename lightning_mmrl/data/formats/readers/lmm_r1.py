"""LMM-R1: lines or an array of a `message` that holds turns as text, with `answer` and `question`."""

from lightning_mmrl.data.formats.readers.mm_eureka import message_row
from lightning_mmrl.data.formats.readers.protocol import ColumnReader
from lightning_mmrl.data.formats.storage import Peek


def _recognised(peek: Peek) -> bool:
    return isinstance(peek.row.get("message"), str) and "id" not in peek.row


LMM_R1 = ColumnReader(
    name="lmm_r1",
    layout="JSON: message (turns as text), answer, question; no id",
    recognised=_recognised,
    canonical=message_row,
)
