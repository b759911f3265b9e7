"""verl: parquet with `prompt` (turns), `reward_model.ground_truth`, `images`, `videos` and `extra_info`."""

from lightning_mmrl.data.formats.assembly import Reading, assembled, text_of
from lightning_mmrl.data.formats.chat import chat_turns, decoded
from lightning_mmrl.data.formats.place import Row
from lightning_mmrl.data.formats.readers.protocol import ColumnReader
from lightning_mmrl.data.formats.storage import Peek
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.schema import LineError

_TRUTH = "reward_model.ground_truth"


def _recognised(peek: Peek) -> bool:
    return "prompt" in peek.row and "reward_model" in peek.row


def _canonical(row: Row, reading: Reading) -> Row:
    turns = chat_turns(row.get("prompt"), "prompt")
    model = decoded(row.get("reward_model"), "reward_model")
    if not isinstance(model, dict):
        reason = f"'reward_model' is {quoted(model)}; it must be an object with 'ground_truth'"
        raise LineError("column type", reason)
    truth = model.get("ground_truth")
    if isinstance(truth, list) and len(truth) == 1:
        [truth] = truth
    solution = text_of({_TRUTH: truth}, _TRUTH)
    rest = {key: value for key, value in model.items() if key != "ground_truth"}
    return assembled({**row, "reward_model": rest or None}, reading, turns, used={"prompt"}, solution=solution)


VERL = ColumnReader(
    name="verl",
    layout="parquet: prompt (turns), reward_model.ground_truth, images, videos, extra_info",
    recognised=_recognised,
    canonical=_canonical,
)
