"""Generates the video-audio emotion set: mp4 clips, JSONL manifests, labels.json and dataset.json."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from lightning_mmrl.data.synthetic import faces, factors, voices
from lightning_mmrl.data.synthetic.conflicts import add_conflicts
from lightning_mmrl.data.synthetic.folder import (
    RECORD,
    Progress,
    Recipe,
    make_folder,
    run_in_processes,
    write_rows,
)
from lightning_mmrl.data.synthetic.plan import LICENSE, SPLITS, ClipPlan, manifest_row, plan_split, render_signals
from lightning_mmrl.data.synthetic.settings import EmotionSetSettings
from lightning_mmrl.data.synthetic.video_file import write_clip
from lightning_mmrl.errors import DataError
from lightning_mmrl.files import file_digest, write_json

GENERATOR_VERSION = 1
"""Version of the generator; increase it by one whenever the same settings would give other bytes."""


def synthesize_emotions(
    directory: Path,
    *,
    settings: EmotionSetSettings,
    workers: int = 2,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Path:
    """Generate the set in `directory` and return its path; a complete set with the same settings is kept.

    All files go to a hidden sibling directory first, which is renamed at the end. With more than one worker, clips are
    drawn in spawned processes, so a calling script needs the `if __name__ == "__main__"` guard. The result does not
    depend on `workers`.

    Raises:
        DataError: The directory holds other files or a set with other settings, or cannot be written.
    """
    if workers < 1:
        raise DataError(f"workers is {workers}; give at least 1")
    recipe = Recipe(name="emotion", settings=asdict(settings), generator_version=GENERATOR_VERSION)
    made = make_folder(
        directory, recipe, lambda root: _write_set(root, settings, workers, on_progress), overwrite=overwrite
    )
    add_conflicts(made, settings.seed)
    return made


def _write_set(root: Path, settings: EmotionSetSettings, workers: int, on_progress: Progress | None) -> None:
    """Write clips, manifests, labels.json and, last, dataset.json."""
    plans = {split: plan_split(settings, split) for split in SPLITS}
    for split in SPLITS:
        (root / "clips" / split).mkdir(parents=True)
    everything = [plan for split in SPLITS for plan in plans[split]]
    run_in_processes(partial(_write_clips, root, settings), everything, workers=workers, on_progress=on_progress)
    for split in SPLITS:
        rows = [manifest_row(plan, settings.weak_label_accuracy) for plan in plans[split]]
        write_rows(root / f"{split}.jsonl", rows)
    write_json(
        root / "labels.json",
        {
            "name": factors.LABEL_SET,
            "labels": factors.LABELS,
            "cues": {"face": factors.FACE_WORDINGS, "voice": factors.VOICE_WORDINGS},
            "cue_to_label": factors.cue_to_label(),
            "unimodal_ceiling": {
                "face": factors.unimodal_ceiling(factors.FACE_GROUPS),
                "voice": factors.unimodal_ceiling(factors.VOICE_GROUPS),
            },
        },
    )
    write_json(
        root / RECORD,
        {
            "name": "synthetic emotions",
            "generator_version": GENERATOR_VERSION,
            "license": LICENSE,
            "label_set": factors.LABEL_SET,
            "seed": settings.seed,
            "sizes": {split: len(plans[split]) for split in SPLITS},
            "video": {"size_px": faces.FRAME_SIZE_PX, "fps": faces.FRAMES_PER_SECOND, "num_frames": faces.NUM_FRAMES},
            "audio": {"sample_rate_hz": voices.SAMPLE_RATE_HZ, "duration_s": voices.DURATION_S},
            "settings": asdict(settings),
            "manifests": {f"{split}.jsonl": file_digest(root / f"{split}.jsonl") for split in SPLITS},
        },
    )


def _write_clips(root: Path, settings: EmotionSetSettings, plans: Sequence[ClipPlan]) -> None:
    """Draw and encode the planned clips."""
    for plan in plans:
        style = settings.ood_style if plan.split == "ood" else settings.style
        frames, waveform = render_signals(plan, style)
        write_clip(root / plan.media_path, frames, faces.FRAMES_PER_SECOND, waveform, voices.SAMPLE_RATE_HZ)
