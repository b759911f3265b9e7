"""Reads RAVDESS: every fact about a clip is in its file name (Livingstone and Russo 2018, table 1)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_mmrl.data.formats.splits import assign_splits
from lightning_mmrl.data.prepare.rows import (
    AUDIO_SUFFIXES,
    FILE_NAME,
    VIDEO_SUFFIXES,
    MediaFiles,
    Originals,
    Parts,
    PrepareRequest,
    Row,
)
from lightning_mmrl.data.schema import Problem
from lightning_mmrl.errors import DataError

FOLDS = ((2, 5, 14, 15, 16), (3, 6, 7, 13, 18), (10, 11, 12, 19, 20), (8, 17, 21, 23, 24), (1, 4, 9, 22))
"""Actors on which each fold is tested (Luna-Jimenez et al. 2021, section 3.1)."""
STATEMENTS = {"01": "Kids are talking by the door", "02": "Dogs are sitting by the door"}
INTENSITIES = {"01": "normal", "02": "strong"}
SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
_CHANNELS = {"01": "speech", "02": "song"}
_RANGES = (3, 2, 8, 2, 2, 2, 24)


def read(request: PrepareRequest) -> Originals:
    """Reads the tree; with `--calm drop`, clips of calm have no label.

    A name with a field out of its range, or in the folder of another actor, is a problem of its file.
    """
    files = MediaFiles(request.root, request.clips, VIDEO_SUFFIXES | AUDIO_SUFFIXES, _key)
    problems = [*files.problems, *(_unlike(path) for path in files.unlike)]
    recordings: dict[str, dict[str, str]] = {}
    for name, path in sorted(files.paths.items()):
        recordings.setdefault(name[3:], {})[name[:2]] = path
    rows = []
    for name, of_modality in recordings.items():
        channel = _CHANNELS[name[:2]]
        if channel in request.subsets:
            rows.append(_row(name, channel, of_modality, request.subsets[channel], request.options["calm"]))
    labels = [label for label in request.labels if label != "calm" or request.options["calm"] == "keep"]
    return Originals(parts=_parts(rows, request) if rows else {}, problems=problems, labels=labels)


def _key(path: Path) -> str | None:
    fields = path.stem.split("-")
    in_range = len(fields) == len(_RANGES) and all(
        len(text) == 2 and text.isascii() and text.isdecimal() and 1 <= int(text) <= most
        for text, most in zip(fields, _RANGES, strict=True)
    )
    folder = path.parent.name
    elsewhere = folder.startswith("Actor_") and folder != f"Actor_{fields[-1]}"
    # A neutral trial has no strong intensity, and songs have neither disgust nor surprise.
    return path.stem if in_range and not elsewhere and _recorded(fields) else None


def _recorded(fields: Sequence[str]) -> bool:
    _, channel, emotion, intensity, *_ = fields
    return not (emotion == "01" and intensity == "02") and not (channel == "02" and emotion in ("07", "08"))


def _unlike(path: str) -> Problem:
    reason = (
        "is no name of a recording, such as Actor_12/01-01-06-01-02-01-12.mp4 (modality, channel, emotion, intensity, "
        "statement, repetition, actor); rename it as it was published or remove it"
    )
    return Problem(file=path, line=0, group=FILE_NAME, reason=reason)


def _row(name: str, channel: str, files: Mapping[str, str], labels: Mapping[str, str], calm: str | None) -> Row:
    _, emotion, intensity, statement, repetition, actor = name.split("-")
    original = labels[emotion]
    label = (
        {"keep": original, "merge_neutral": "neutral", "drop": None}[calm or "keep"] if original == "calm" else original
    )
    return Row(
        place=(files.get("01") or next(iter(files.values())), 0),
        name=name,
        label=label,
        clip=files.get("01"),
        picture=files.get("02"),
        sound=files.get("03"),
        speaker=f"actor_{actor}",
        counted_as=(channel, f"{channel} {original}"),
        speaker_counted_as=f"{channel} actors",
        extras={
            "channel": channel,
            "intensity": INTENSITIES[intensity],
            "repetition": int(repetition),
            "subtitle": STATEMENTS[statement],
        },
    )


def _parts(rows: Sequence[Row], request: PrepareRequest) -> Parts:
    protocol = request.options["protocol"]
    if protocol == "test_only":
        return {"": {"test": list(rows)}}
    if protocol == "five_fold":
        parts: Parts = {}
        for number, actors in enumerate(FOLDS):
            tested = {f"actor_{actor:02d}" for actor in actors}
            parts[f"fold_{number}"] = {
                "train": [row for row in rows if row.speaker not in tested],
                "test": [row for row in rows if row.speaker in tested],
            }
        return parts
    speakers, labels = [str(row.speaker) for row in rows], [str(row.label) for row in rows]
    if len(set(speakers)) < len(SHARES):
        found = ", ".join(sorted(set(speakers)))
        raise DataError(
            f"{request.clips} has recordings of {found} alone, and {len(SHARES)} splits need as many actors; complete "
            "the download, or give --protocol test_only"
        )
    drawn = assign_splits(speakers, labels, shares=SHARES, seed=request.seed)
    return {"": {split: [row for row, name in zip(rows, drawn, strict=True) if name == split] for split in SHARES}}
