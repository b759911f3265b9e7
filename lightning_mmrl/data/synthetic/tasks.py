"""Every generated dataset by name."""

from collections.abc import Callable, Mapping
from pathlib import Path

from lightning_mmrl.data.synthetic.arithmetic import ARITHMETIC
from lightning_mmrl.data.synthetic.bars import BARS, BARS_TEXT
from lightning_mmrl.data.synthetic.counting import COUNTING
from lightning_mmrl.data.synthetic.described import DESCRIBED
from lightning_mmrl.data.synthetic.emotion_trees import synthesize_emotion_trees
from lightning_mmrl.data.synthetic.emotions import synthesize_emotions
from lightning_mmrl.data.synthetic.extremes import synthesize_extremes
from lightning_mmrl.data.synthetic.folder import Progress
from lightning_mmrl.data.synthetic.geometry import GEOMETRY
from lightning_mmrl.data.synthetic.motion import MOTION
from lightning_mmrl.data.synthetic.numbers import NUMBERS
from lightning_mmrl.data.synthetic.relations import RELATIONS, RELATIONS_TEXT
from lightning_mmrl.data.synthetic.settings import EmotionSetSettings
from lightning_mmrl.data.synthetic.sokoban import SOKOBAN, SOKOBAN_LARGE
from lightning_mmrl.data.synthetic.tones import TONES


def _emotions(
    directory: Path,
    *,
    seed: int = 0,
    scale: float = 1.0,
    workers: int = 2,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Path:
    """Write the video-audio emotion set; see `synthesize_emotions`."""
    settings = EmotionSetSettings(seed=seed, scale=scale)
    return synthesize_emotions(
        directory, settings=settings, workers=workers, overwrite=overwrite, on_progress=on_progress
    )


TASKS: Mapping[str, Callable[..., Path]] = {
    "emotions": _emotions,
    "emotion_trees": synthesize_emotion_trees,
    "geometry": GEOMETRY,
    "counting": COUNTING,
    "tones": TONES,
    "motion": MOTION,
    "arithmetic": ARITHMETIC,
    "extremes": synthesize_extremes,
    "numbers": NUMBERS,
    "described": DESCRIBED,
    "relations": RELATIONS,
    "relations_text": RELATIONS_TEXT,
    "bars": BARS,
    "bars_text": BARS_TEXT,
    "sokoban": SOKOBAN,
    "sokoban_large": SOKOBAN_LARGE,
}
"""Maps names to generators, which are called with (directory, *, seed, scale, workers, overwrite, on_progress)."""
