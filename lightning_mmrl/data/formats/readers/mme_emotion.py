"""MME-Emotion (arXiv:2508.09210): arrays of `video_id`, `label` and `label_set`, a file for each sub-task."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lightning_mmrl.data.formats.assembly import Reading, assembled, text_of
from lightning_mmrl.data.formats.chat import question
from lightning_mmrl.data.formats.place import Row, RowOrFault
from lightning_mmrl.data.formats.readers.benchmark_columns import benchmark_of
from lightning_mmrl.data.formats.readers.protocol import converted
from lightning_mmrl.data.formats.storage import Parts, Peek, rows_of_files
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.schema import LineError

SEVERAL = "ML_ER"
"""Name of the sub-task whose clips may have several labels."""


@dataclass(frozen=True, slots=True)
class MMEEmotion:
    """A reader whose rows take their sub-task from the name of the file, such as `ER_Lab` from `ER_Lab.json`.

    **Deviation**: the project publishes no prompt, so the question is a sentence of its own with the label set.
    """

    name: str = "mme_emotion"
    layout: str = "a JSON array: video_id, label, label_set; the file's name is the sub-task"

    def recognises(self, peek: Peek) -> bool:
        return benchmark_of(peek) == self.name

    def files(self, parts: Parts) -> Sequence[Path]:
        return parts.files

    def rows(self, parts: Parts, reading: Reading) -> Iterator[tuple[Path, RowOrFault]]:
        for path in parts.files:
            yield from converted(rows_of_files((path,)), partial(_canonical, path.stem), reading)


def _canonical(sub_task: str, row: Row, reading: Reading) -> Row:
    labels, clip = row.get("label_set"), text_of(row, "video_id")
    if not isinstance(labels, list) or not labels or not all(isinstance(each, str) and each for each in labels):
        raise LineError("label", f"'label_set' is {quoted(labels)}; it must be a list of labels")
    describe = "describe" if sub_task == SEVERAL else "describes"
    asked = f"<video><audio>Which of these labels {describe} the person in the video: {', '.join(labels)}?"
    return assembled(
        row,
        reading,
        question(asked, "label_set"),
        used={"video_id", "label"},
        solution=text_of(row, "label", required=False),
        media={"video": ("video_id", clip), "audio": ("video_id", clip)},
        more={"id": clip, "subject": sub_task},
    )


MME_EMOTION = MMEEmotion()
