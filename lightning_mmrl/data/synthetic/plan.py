"""Plans every clip of a generated emotion set before drawing: label, speaker, task, words, manifest row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from lightning_mmrl.data.synthetic import faces, voices
from lightning_mmrl.data.synthetic.factors import (
    FACE_GROUPS,
    FACE_WORDINGS,
    LABEL_SET,
    LABELS,
    VOICE_GROUPS,
    VOICE_WORDINGS,
    group_of,
    trace,
)
from lightning_mmrl.data.synthetic.settings import EmotionSetSettings, Style

LICENSE = "CC0-1.0"
SPLITS = ("base", "cold_start", "train", "validation", "test", "ood")
CLIPS_PER_SPEAKER: Mapping[str, int] = {
    "base": 20,
    "cold_start": 20,
    "train": 20,
    "validation": 14,
    "test": 14,
    "ood": 14,
}
QUESTIONS: Mapping[str, str] = {
    "emotion": "<video><audio>Which emotion?",
    "face_caption": "<video><audio>What does the face show?",
    "voice_caption": "<video><audio>How does the voice sound?",
    "weak_label": "<video><audio>Which emotion?",
}
WEAK_THOUGHT = "a face and a voice"

_PART_COLUMNS: Mapping[str, str] = {"base": "task", "cold_start": "source"}
_ORDER, _FACE_OF_SPEAKER, _VOICE_OF_SPEAKER, _FACE_OF_CLIP, _VOICE_OF_CLIP, _WORDS_OF_CLIP = range(6)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipPlan:
    """A planned clip; `part` is the clip's task (in base), its source (in cold_start) or "" (in other splits)."""

    seed: int
    split: str
    index: int
    part: str
    label: str
    speaker: int

    @property
    def name(self) -> str:
        """The clip's id, e.g. train-00001."""
        return f"{self.split}-{self.index:05d}"

    @property
    def media_path(self) -> str:
        """The clip's file, relative to the dataset directory."""
        return f"clips/{self.split}/{self.name}.mp4"


def plan_split(settings: EmotionSetSettings, split: str) -> list[ClipPlan]:
    """Plan the clips of a split: labels are balanced within each part, parts are shuffled, speakers take turns."""
    parts = _part_sizes(settings, split)
    pairs = [(part, LABELS[index % len(LABELS)]) for part, size in parts.items() for index in range(size)]
    num_speakers = max(2, round(len(pairs) / CLIPS_PER_SPEAKER[split]))
    order = _generator(settings.seed, split, _ORDER, 0).permutation(len(pairs))
    return [
        ClipPlan(
            seed=settings.seed,
            split=split,
            index=index,
            part=pairs[k][0],
            label=pairs[k][1],
            speaker=index % num_speakers,
        )
        for index, k in enumerate(order)
    ]


def render_signals(plan: ClipPlan, style: Style) -> tuple[np.ndarray, np.ndarray]:
    """Draw a planned clip: RGB frames uint8 (T, H, W, 3) and a waveform float32 (L,) in -1..1.

    The face depends only on the label's face group, and the voice only on the label's voice group.
    """
    cues = group_of(plan.label, FACE_GROUPS), group_of(plan.label, VOICE_GROUPS)
    generator = partial(_generator, plan.seed, plan.split)
    return draw_signals(cues, style, generator, speaker=plan.speaker, clip=plan.index)


def draw_signals(
    cues: tuple[str, str],
    style: Style,
    generator: Callable[[int, int], np.random.Generator],
    *,
    speaker: int,
    clip: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a clip, see `render_signals`.

    Args:
        cues: The face group and the voice group.
        style: The look and the sound.
        generator: Returns the random stream of a purpose and of a speaker's or a clip's number.
        speaker: The speaker's number.
        clip: The clip's number.
    """
    face = faces.draw_identity(style.face, generator(_FACE_OF_SPEAKER, speaker))
    voice = voices.draw_identity(style.voice, generator(_VOICE_OF_SPEAKER, speaker))
    frames = faces.render_face(cues[0], face, style.face, generator(_FACE_OF_CLIP, clip))
    waveform = voices.render_voice(cues[1], voice, style.voice, generator(_VOICE_OF_CLIP, clip))
    return frames, waveform


def manifest_row(plan: ClipPlan, weak_label_accuracy: float) -> dict[str, Any]:
    """Return the clip's manifest row: conversation, media, solution and columns for evaluation."""
    answer, solution = _answer(plan, weak_label_accuracy)
    question = QUESTIONS[plan.part if plan.split == "base" else "emotion"]
    messages = [{"role": "user", "content": question}]
    if answer:
        messages.append({"role": "assistant", "content": answer})
    row = {
        "id": plan.name,
        "messages": messages,
        "videos": [plan.media_path],
        "audios": [plan.media_path],
        "solution": solution,
        "speaker": f"{plan.split}-s{plan.speaker:03d}",
        "split": plan.split,
        "license": LICENSE,
        "label_set": LABEL_SET,
        "face_cue": group_of(plan.label, FACE_GROUPS),
        "voice_cue": group_of(plan.label, VOICE_GROUPS),
    }
    if plan.split in _PART_COLUMNS:
        row[_PART_COLUMNS[plan.split]] = plan.part
    return row


def _answer(plan: ClipPlan, weak_label_accuracy: float) -> tuple[str, str]:
    """Return the assistant's turn ("" if there is none) and the solution."""
    rng = _generator(plan.seed, plan.split, _WORDS_OF_CLIP, plan.index)
    face = FACE_WORDINGS[group_of(plan.label, FACE_GROUPS)][rng.integers(2)]
    voice = VOICE_WORDINGS[group_of(plan.label, VOICE_GROUPS)][rng.integers(2)]
    if plan.split == "cold_start":
        return trace(f"{face} and {voice}", plan.label), plan.label
    if plan.part == "face_caption":
        return face, face
    if plan.part == "voice_caption":
        return voice, voice
    if plan.part == "weak_label":
        others = [label for label in LABELS if label != plan.label]
        label = plan.label if rng.random() < weak_label_accuracy else others[rng.integers(len(others))]
        return trace(WEAK_THOUGHT, label), label
    return "", plan.label


def _part_sizes(settings: EmotionSetSettings, split: str) -> dict[str, int]:
    """Return the number of clips in each part of a split; they sum to the split's size."""
    size = settings.size_of(split)
    if split == "base":
        weights = settings.base_tasks
        total = weights.face_caption + weights.voice_caption + weights.weak_label
        after_face = round(size * weights.face_caption / total)
        after_voice = round(size * (weights.face_caption + weights.voice_caption) / total)
        return {"face_caption": after_face, "voice_caption": after_voice - after_face, "weak_label": size - after_voice}
    if split == "cold_start":
        emer_style = round(size * settings.emer_style_share)
        return {"emer_style": emer_style, "annotated_style": size - emer_style}
    return {"": size}


def _generator(seed: int, split: str, stream: int, index: int) -> np.random.Generator:
    """Return the random stream of one clip or speaker for one purpose, independent of every other stream."""
    sequence = np.random.SeedSequence(seed, spawn_key=(SPLITS.index(split), stream, index))
    return np.random.Generator(np.random.Philox(sequence))
