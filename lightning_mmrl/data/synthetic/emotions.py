"""Generate the video-audio emotion set: mp4 clips, one JSONL manifest per split, labels.json and dataset.json."""

import hashlib
import json
import multiprocessing
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning_mmrl.data.synthetic import faces, factors, voices
from lightning_mmrl.data.synthetic.plan import LICENSE, SPLITS, ClipPlan, manifest_row, plan_split, render_signals
from lightning_mmrl.data.synthetic.settings import EmotionSetSettings
from lightning_mmrl.data.synthetic.video_file import write_clip
from lightning_mmrl.errors import DataError

GENERATOR_VERSION = 1
"""Raised whenever the same settings would give other bytes."""

_CLIPS_PER_JOB = 16

Progress = Callable[[int, int], None]
"""Called with (clips written, clips in all)."""


def synthesize_emotions(
    directory: Path,
    *,
    settings: EmotionSetSettings,
    workers: int = 2,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Path:
    """Generate the set into `directory` and return it; a complete set with the same settings is returned as it is.

    Everything is written to a hidden sibling directory that takes the final name at the very end. With more than one
    worker clips are drawn in spawned processes, so a calling script needs the `if __name__ == "__main__"` guard. The
    result does not depend on `workers`.

    Raises:
        DataError: the directory holds something else, was made with other settings, or cannot be written.
    """
    directory = Path(directory).absolute()
    if workers < 1:
        raise DataError(f"workers is {workers}; give at least 1")
    if _is_complete(directory, settings, overwrite):
        return directory
    try:
        with _partial_sibling(directory) as partial:
            _write_set(partial, settings, workers, on_progress)
            _move_into_place(partial, directory)
    except OSError as error:
        raise DataError(
            f"cannot write the generated emotion set {directory}: {error}; give a writable directory with free space"
        ) from error
    return directory


def _is_complete(directory: Path, settings: EmotionSetSettings, overwrite: bool) -> bool:
    """Say whether the set is there already; refuse to touch anything that is not this generator's."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    record_path = directory / "dataset.json"
    if not record_path.is_file():
        raise DataError(f"{directory} exists and holds no dataset.json; give a new or empty directory")
    if overwrite:
        return False
    record = _read_record(record_path)
    fix = "give another directory or overwrite=True"
    difference = _first_difference(record.get("settings"), _as_json(settings), "settings") or _first_difference(
        record.get("generator_version"), GENERATOR_VERSION, "generator_version"
    )
    if difference:
        raise DataError(f"{directory} was generated with other settings: {difference}; {fix}")
    for name, sha256 in record["manifests"].items():
        if not (directory / name).is_file() or _sha256(directory / name) != sha256:
            raise DataError(f"{directory / name} is missing or was changed after it was generated; {fix}")
    return True


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; give another directory or overwrite=True") from error


def _first_difference(found: Any, wanted: Any, key: str) -> str:
    """Describe the first setting that differs, e.g. "settings.seed is 0, not 1"; "" where none does."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        differences = (_first_difference(found.get(name), wanted.get(name), f"{key}.{name}") for name in keys)
        return next(filter(None, differences), "")
    return "" if found == wanted else f"{key} is {json.dumps(found)}, not {json.dumps(wanted)}"


@contextmanager
def _partial_sibling(directory: Path) -> Iterator[Path]:
    """Give a new directory beside the target and remove what is left of it, whatever happens."""
    partial = directory.parent / f".{directory.name}.partial-{secrets.token_hex(4)}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_into_place(partial: Path, directory: Path) -> None:
    """Rename the finished set to its name; an older set moves into the partial directory's place and is deleted."""
    if not directory.exists():
        partial.rename(directory)
        return
    old = partial.with_name(f"{partial.name}-old")
    directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old)


def _write_set(root: Path, settings: EmotionSetSettings, workers: int, on_progress: Progress | None) -> None:
    """Write clips, manifests, labels.json and, last, dataset.json."""
    plans = {split: plan_split(settings, split) for split in SPLITS}
    for split in SPLITS:
        (root / "clips" / split).mkdir(parents=True)
    _write_clips(root, [plan for split in SPLITS for plan in plans[split]], settings, workers, on_progress)
    for split in SPLITS:
        rows = (manifest_row(plan, settings.weak_label_accuracy) for plan in plans[split])
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")
    _write_json(root / "labels.json", _label_record())
    _write_json(
        root / "dataset.json",
        {
            "name": "synthetic emotions",
            "generator_version": GENERATOR_VERSION,
            "license": LICENSE,
            "label_set": factors.LABEL_SET,
            "seed": settings.seed,
            "sizes": {split: len(plans[split]) for split in SPLITS},
            "video": {"size_px": faces.FRAME_SIZE_PX, "fps": faces.FRAMES_PER_SECOND, "num_frames": faces.NUM_FRAMES},
            "audio": {"sample_rate_hz": voices.SAMPLE_RATE_HZ, "duration_s": voices.DURATION_S},
            "settings": _as_json(settings),
            "manifests": {f"{split}.jsonl": _sha256(root / f"{split}.jsonl") for split in SPLITS},
        },
    )


def _write_clips(
    root: Path, plans: list[ClipPlan], settings: EmotionSetSettings, workers: int, on_progress: Progress | None
) -> None:
    """Draw and encode all clips, in this process or in a pool of spawned ones."""
    report = on_progress or (lambda done, total: None)
    jobs = [plans[start : start + _CLIPS_PER_JOB] for start in range(0, len(plans), _CLIPS_PER_JOB)]
    written = 0
    if workers == 1:
        for job in jobs:
            written += _write_job(root, job, settings)
            report(written, len(plans))
        return
    with _spawned(min(workers, len(jobs))) as pool:
        futures: list[Future[int]] = [pool.submit(_write_job, root, job, settings) for job in jobs]
        for future in as_completed(futures):
            written += future.result()
            report(written, len(plans))


@contextmanager
def _spawned(workers: int) -> Iterator[Executor]:
    """Give a pool that drops its waiting jobs when one fails."""
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise DataError(
            'a drawing process ended abruptly; guard the script with if __name__ == "__main__" or give workers=1'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _write_job(root: Path, job: list[ClipPlan], settings: EmotionSetSettings) -> int:
    """Draw and encode some clips; return their number."""
    for plan in job:
        style = settings.ood_style if plan.split == "ood" else settings.style
        frames, waveform = render_signals(plan, style)
        write_clip(root / plan.media_path, frames, faces.FRAMES_PER_SECOND, waveform, voices.SAMPLE_RATE_HZ)
    return len(job)


def _label_record() -> dict[str, Any]:
    """Return what labels.json holds."""
    return {
        "name": factors.LABEL_SET,
        "labels": factors.LABELS,
        "cues": {"face": factors.FACE_WORDINGS, "voice": factors.VOICE_WORDINGS},
        "cue_to_label": factors.cue_to_label(),
        "unimodal_ceiling": {
            "face": factors.unimodal_ceiling(factors.FACE_GROUPS),
            "voice": factors.unimodal_ceiling(factors.VOICE_GROUPS),
        },
    }


def _as_json(settings: EmotionSetSettings) -> dict[str, Any]:
    """Return the settings as they read back from a JSON file."""
    return json.loads(json.dumps(asdict(settings)))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="ascii")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
