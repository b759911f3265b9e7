"""The lines of a prepared set's manifests, and the validation split where the protocol has none."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_mmrl.data.formats.csv_clips import target_of
from lightning_mmrl.data.formats.splits import assign_splits
from lightning_mmrl.data.prepare.kinds import MediaKinds
from lightning_mmrl.data.prepare.rows import Row
from lightning_mmrl.data.schema import COLUMN_OF
from lightning_mmrl.prompts.template import question_about

Line = dict[str, Any]


def with_validation(splits: Mapping[str, Sequence[Row]], share: float, seed: int) -> Mapping[str, Sequence[Row]]:
    """Draws a share of the training rows for validation, whole speakers at a time, unless there is such a split."""
    rows = splits.get("train", [])
    if not share or not rows or "validation" in splits:
        return splits
    chosen = assign_splits(
        [row.speaker or row.name for row in rows],
        [str(row.label) for row in rows],
        shares={"train": 1 - share, "validation": share},
        seed=seed,
    )
    drawn: dict[str, Sequence[Row]] = {
        split: [row for row, name in zip(rows, chosen, strict=True) if name == split]
        for split in ("train", "validation")
    }
    return {**drawn, **{split: others for split, others in splits.items() if split != "train"}}


def manifest_rows(
    splits: Mapping[str, Sequence[Row]], copy: str, files: MediaKinds, question: str
) -> dict[str, list[Line]]:
    """The lines of each split and of the cold start; rows without a label or without the copy's medium have none."""
    made: dict[str, list[Line]] = {}
    cold_start: list[tuple[Row, Line]] = []
    for split, rows in splits.items():
        made[split] = []
        for row in rows:
            media = files.media(row, copy)
            if media is None or row.label is None:
                continue
            line = {
                "id": row.name,
                "messages": [{"role": "user", "content": question_about(tuple(media), row.preface + question)}],
                **{COLUMN_OF[kind]: [path] for kind, path in media.items()},
                "solution": row.label,
                "speaker": row.speaker,
                "split": split,
                **row.extras,
            }
            made[split].append({key: value for key, value in line.items() if value is not None})
            if split == "train":
                cold_start.append((row, made[split][-1]))
    reasoned = [pair for pair in cold_start if pair[0].reasoning is not None]
    return {**made, "cold_start": [_with_target(row, line) for row, line in reasoned or cold_start]}


def _with_target(row: Row, line: Line) -> Line:
    """The line with an assistant turn: the row's reasoning and label, or a plain thought and the label."""
    return {**line, "messages": [*line["messages"], {"role": "assistant", "content": target_of(row.source)}]}
