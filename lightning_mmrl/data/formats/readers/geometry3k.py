"""Tables of one question and its answer, such as geometry3k, MMK12 and Vision-R1-rl: parquet with inline pictures."""

from lightning_mmrl.data.formats.assembly import MediaColumns, Reading, assembled, gold, media_column, text_of
from lightning_mmrl.data.formats.chat import question
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.benchmark_columns import benchmark_of
from lightning_mmrl.data.formats.readers.protocol import ColumnReader
from lightning_mmrl.data.formats.storage import Peek
from lightning_mmrl.data.schema import LineError

_ASKED = ("problem", "question", "query_cot")
_GOLD = ("answer", "solution")
_OTHERS = ("messages", "prompt", "message", "conversations", "answers", "query", "instruction")
_IMAGES = ("images", "decoded_image", "image")


def _recognised(peek: Peek) -> bool:
    if benchmark_of(peek) is not None:
        return False
    has_both = not peek.lacks(*_ASKED) and not peek.lacks(*_GOLD)
    return has_both and peek.storage in ("parquet", "arrow", "lines", "array") and peek.lacks("message", "messages")


def _canonical(row: Row, reading: Reading) -> Row:
    asked = next((name for name in _ASKED if row.get(name) is not None), _ASKED[0])
    answer = next((name for name in _GOLD if row.get(name) is not None), _GOLD[0])
    turns = question(text_of(row, asked) or "", asked)
    if other := next((name for name in _OTHERS if row.get(name) not in (None, "", [])), None):
        raise LineError("messages", f"{other!r} stands beside {asked!r}, another layout of the turns; name the format")
    solution = gold(text_of(row, answer), answer, reading)
    # A decoded picture stands beside its file name, which is left out.
    names = _IMAGES if row.get("decoded_image") is None else ("images", "decoded_image")
    media: MediaColumns = {"image": media_column(row, "image", names), "video": media_column(row, "video")}
    used = {asked, answer, *(("image",) if names != _IMAGES else ())}
    return assembled(row, reading, turns, used=used, solution=solution, media=media)


GEOMETRY3K = ColumnReader(
    name="geometry3k",
    layout="parquet: problem or question, answer, images or image; as geometry3k, MMK12 and Vision-R1-rl",
    recognised=_recognised,
    canonical=_canonical,
)
