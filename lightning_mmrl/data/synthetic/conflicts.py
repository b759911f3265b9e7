"""Pairs the pictures of generated emotion clips with sounds that contradict them: no emotion has both cues."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mmrl.data.synthetic.factors import FACE_GROUPS, VOICE_GROUPS, cue_to_label
from lightning_mmrl.files import write_whole

CONFLICTS = "conflict.jsonl"
"""Manifest of the pairs."""
SOURCE = "test"
"""The split whose clips are paired."""
_COPIED = ("messages", "split", "license", "label_set", "speaker")

Row = Mapping[str, Any]


def add_conflicts(directory: Path, seed: int) -> None:
    """Writes the manifest of conflicts beside the manifests of a generated set, if it is not there yet.

    It names files of the test split, so no clip is drawn for it. Sets of earlier versions lack it; a folder that cannot
    be written to stays as it is.
    """
    path = directory / CONFLICTS
    if path.exists() or not os.access(directory, os.W_OK):
        return
    lines = (directory / f"{SOURCE}.jsonl").read_text(encoding="ascii").splitlines()
    rows = conflict_rows([json.loads(line) for line in lines], seed)
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


def conflict_rows(rows: Sequence[Row], seed: int) -> list[dict[str, Any]]:
    """One row for each clip: its picture, and the sound of a clip of the same speaker that contradicts it.

    `picture_truth` holds the emotions that the face shows, `sound_truth` those that the voice shows; they have none in
    common. The voices that contradict a face take turns. Where the speaker has no such clip, another speaker's is
    taken.
    """
    generator = np.random.default_rng([seed, len(rows)])
    existing = cue_to_label()
    contradicting = {
        face: [voice for voice in VOICE_GROUPS if f"{face}+{voice}" not in existing] for face in FACE_GROUPS
    }
    clips: defaultdict[tuple[str, str | None], list[Row]] = defaultdict(list)
    for row, speaker in product(rows, (True, False)):
        clips[row["voice_cue"], row["speaker"] if speaker else None].append(row)
    turns: Counter[str] = Counter()
    found = []
    for row in rows:
        face = row["face_cue"]
        voices = contradicting[face]
        first = turns[face]
        turns[face] += 1
        ordered = [voices[(first + place) % len(voices)] for place in range(len(voices))]
        choices = next(each for each in _choices(clips, ordered, row["speaker"]) if each)
        found.append(_paired(row, choices[generator.integers(len(choices))], len(found)))
    return found


def _choices(
    clips: Mapping[tuple[str, str | None], list[Row]], voices: Sequence[str], speaker: str
) -> Iterator[list[Row]]:
    """The clips whose sound may be taken, the best ones first."""
    for own, voice in product((speaker, None), voices):
        yield clips.get((voice, own), [])


def _paired(picture: Row, sound: Row, number: int) -> dict[str, Any]:
    face, voice = picture["face_cue"], sound["voice_cue"]
    return {
        "id": f"conflict-{number:05d}",
        **{key: picture[key] for key in _COPIED},
        "videos": picture["videos"],
        "audios": sound["audios"],
        "face_cue": face,
        "voice_cue": voice,
        "picture_truth": list(FACE_GROUPS[face]),
        "sound_truth": list(VOICE_GROUPS[voice]),
    }
