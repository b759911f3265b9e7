"""Generates stand-ins of R1-Omni's files: EMER's JSON file, and DFEW, MAFW and RAVDESS in their owners' layouts.

The clips are drawn as in the generated emotion set. BASE is in no published set: it stands for the knowledge of the
released model. RAVDESS has other actors, another look and another sound, and `calm`, which no other part has.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lightning_mmrl.data.prepare.card import read_card
from lightning_mmrl.data.synthetic import faces, voices
from lightning_mmrl.data.synthetic.emotion_layouts import (
    NUM_ACTORS,
    Layout,
    dfew_layout,
    mafw_layout,
    ravdess_names,
)
from lightning_mmrl.data.synthetic.factors import (
    FACE_GROUPS,
    FACE_WORDINGS,
    LABELS,
    VOICE_GROUPS,
    VOICE_WORDINGS,
    group_of,
    trace,
)
from lightning_mmrl.data.synthetic.folder import RECORD, Progress, Recipe, check_numbers, make_folder, run_in_processes
from lightning_mmrl.data.synthetic.plan import LICENSE, QUESTIONS, WEAK_THOUGHT, draw_signals
from lightning_mmrl.data.synthetic.settings import EmotionSetSettings
from lightning_mmrl.data.synthetic.video_file import write_clip
from lightning_mmrl.files import file_digest, write_json

GENERATOR_VERSION = 1
"""Version of the generator; increase it by one whenever the same settings would give other bytes."""
PARTS = ("BASE", "EMER", "DFEW", "MAFW", "RAVDESS")
SIZES: Mapping[str, int] = {"BASE": 640, "EMER": 232, "DFEW": 770, "MAFW": 880}
"""Clips of each part at scale 1; RAVDESS has one take of each actor's trials, 15 clips of each of 24 actors."""
CUES: Mapping[str, tuple[str, str]] = {
    **{label: (group_of(label, FACE_GROUPS), group_of(label, VOICE_GROUPS)) for label in LABELS},
    "contemptuous": ("lowered", "rising"),
    "disappointed": ("lowered", "shaky"),
    "helpless": ("raised", "flat"),
    "anxious": ("raised", "fast"),
    "calm": ("smile", "flat"),
}
"""The face group and the voice group of each label; each pair belongs to one label."""
TRAINED = tuple(label for label in CUES if label != "calm")
_CLIPS_PER_SPEAKER = 20
_BASE_TASKS = ("face_caption",) * 3 + ("voice_caption",) * 3 + ("weak_label",) * 2
_WORDS = 9
"""Number of the random stream of a clip's words; the streams of its signals have smaller numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeClip:
    """A planned clip: its part, its number there, its file below the part's folder, its label and its speaker."""

    part: str
    index: int
    path: str
    label: str
    speaker: int


def synthesize_emotion_trees(
    directory: Path,
    *,
    seed: int = 0,
    scale: float = 1.0,
    workers: int = 2,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Path:
    """Generate the trees in `directory` and return its path; complete trees with the same settings are kept.

    `scale` multiplies the sizes of the parts, but keeps one clip per label and fold. RAVDESS has fewer actors instead.

    Raises:
        DataError: A number is out of range, or the directory holds other files, or cannot be written.
    """
    check_numbers("generated emotion trees", seed=seed, scale=scale, workers=workers)
    recipe = Recipe(name="emotion trees", settings={"seed": seed, "scale": scale}, generator_version=GENERATOR_VERSION)
    return make_folder(
        directory, recipe, lambda root: _write_trees(root, recipe, workers, on_progress), overwrite=overwrite
    )


def plan_trees(scale: float = 1.0) -> tuple[list[TreeClip], dict[str, str]]:
    """All clips, and the lists of DFEW and MAFW by path. Labels are balanced, except that RAVDESS has its own design.

    >>> clips, lists = plan_trees(scale=0.02)
    >>> [sum(clip.part == part for clip in clips) for part in PARTS]
    [13, 11, 35, 55, 30]
    """
    smallest = {"BASE": len(_BASE_TASKS), "EMER": len(TRAINED), "DFEW": 5 * len(LABELS), "MAFW": 5 * len(TRAINED)}
    sizes = {part: max(smallest[part], round(size * scale)) for part, size in SIZES.items()}
    labels = {part: _cycled(_labels_of(part), size) for part, size in sizes.items()}
    layouts = {
        "BASE": Layout(clips=[f"clips/base_{index:08d}.mp4" for index in range(sizes["BASE"])], lists={}),
        "EMER": Layout(clips=[f"MER24/sample_{index:08d}.mp4" for index in range(sizes["EMER"])], lists={}),
        "DFEW": dfew_layout(labels["DFEW"]),
        "MAFW": mafw_layout(labels["MAFW"]),
    }
    lists = {f"{part}/{path}": text for part, layout in layouts.items() for path, text in layout.lists.items()}
    clips = [
        TreeClip(part=part, index=index, path=path, label=label, speaker=index // _CLIPS_PER_SPEAKER)
        for part, layout in layouts.items()
        for index, (path, label) in enumerate(zip(layout.clips, labels[part], strict=True))
    ]
    actors = range(1, max(2, round(NUM_ACTORS * min(scale, 1.0))) + 1)
    return [*clips, *_ravdess_clips(actors)], lists


def _ravdess_clips(actors: Sequence[int]) -> Iterator[TreeClip]:
    by_number = read_card("ravdess").subsets["speech"].labels
    for index, name in enumerate(ravdess_names(actors=actors, takes=(1,))):
        _, emotion, *_, actor = name.split("-")
        path = f"Actor_{actor}/01-{name}.mp4"
        yield TreeClip(part="RAVDESS", index=index, path=path, label=by_number[emotion], speaker=int(actor))


def _labels_of(part: str) -> Sequence[str]:
    return LABELS if part == "DFEW" else TRAINED


def _cycled(labels: Sequence[str], size: int) -> list[str]:
    return [labels[index % len(labels)] for index in range(size)]


def _write_trees(root: Path, recipe: Recipe, workers: int, on_progress: Progress | None) -> None:
    """Write clips, lists, EMER's and BASE's JSON files and, last, dataset.json."""
    seed = recipe.settings["seed"]
    clips, lists = plan_trees(recipe.settings["scale"])
    for clip in clips:
        (root / clip.part / clip.path).parent.mkdir(parents=True, exist_ok=True)
    run_in_processes(partial(_write_clips, root, seed), clips, workers=workers, on_progress=on_progress)
    rows = {part: [_conversation(clip, seed) for clip in clips if clip.part == part] for part in ("BASE", "EMER")}
    texts = {**lists, **{f"{part}/{part.lower()}.json": json.dumps(own, indent=2) for part, own in rows.items()}}
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="ascii")
    write_json(
        root / RECORD,
        {
            "name": "stand-ins of R1-Omni's files",
            "generator_version": recipe.generator_version,
            "license": LICENSE,
            "settings": dict(recipe.settings),
            "sizes": {part: sum(clip.part == part for clip in clips) for part in PARTS},
            "manifests": {name: file_digest(root / name) for name in texts},
        },
    )


def _write_clips(root: Path, seed: int, clips: Sequence[TreeClip]) -> None:
    """Draw and encode the planned clips."""
    settings = EmotionSetSettings(seed=seed)
    for clip in clips:
        style = settings.ood_style if clip.part == "RAVDESS" else settings.style
        generator = partial(_generator, seed, clip.part)
        frames, waveform = draw_signals(CUES[clip.label], style, generator, speaker=clip.speaker, clip=clip.index)
        path = root / clip.part / clip.path
        write_clip(path, frames, faces.FRAMES_PER_SECOND, waveform, voices.SAMPLE_RATE_HZ)


def _conversation(clip: TreeClip, seed: int) -> dict[str, Any]:
    """An element of a JSON file as R1-Omni documents it: the video, a question with the media tags, and an answer."""
    rng = _generator(seed, clip.part, _WORDS, clip.index)
    face, voice = (
        words[group][rng.integers(2)]
        for words, group in zip((FACE_WORDINGS, VOICE_WORDINGS), CUES[clip.label], strict=True)
    )
    task = _BASE_TASKS[clip.index % len(_BASE_TASKS)] if clip.part == "BASE" else "emotion"
    answers = {"face_caption": face, "voice_caption": voice, "emotion": trace(f"{face} and {voice}", clip.label)}
    if task == "weak_label":
        accuracy = EmotionSetSettings().weak_label_accuracy
        others = [label for label in TRAINED if label != clip.label]
        label = clip.label if rng.random() < accuracy else others[rng.integers(len(others))]
        answers[task] = trace(WEAK_THOUGHT, label)
    # Tags and question as in the prepared sets: a line break between them is another prompt, of which a model that has
    # learned one alone answers the other in no valid format.
    turns = (("human", QUESTIONS[task]), ("gpt", answers[task]))
    return {"video": clip.path, "conversations": [{"from": who, "value": text} for who, text in turns]}


def _generator(seed: int, part: str, stream: int, index: int) -> np.random.Generator:
    """Return the random stream of one clip or speaker for one purpose, independent of every other stream."""
    sequence = np.random.SeedSequence(seed, spawn_key=(len(PARTS) + PARTS.index(part), stream, index, 1))
    return np.random.Generator(np.random.Philox(sequence))
