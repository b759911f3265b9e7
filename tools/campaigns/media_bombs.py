"""Sets off files that decoders blow up, and measures what a decode worker takes of them.

    python tools/campaigns/media_bombs.py DIR     all of them, in validation, preparation for training, and prediction
    python tools/campaigns/media_bombs.py DIR --only NAME    one of them

A line for each: MiB of a worker at its peak over a worker that refuses a file unread, seconds in all and on a
processor, and what is said. Processor seconds are what counts on a busy machine. Exit code 1 if a worker took 1 GiB or
more, an attempt took more than 10 s on a processor, or a refusal is not one sentence that names the
file. One of the files keeps all limits and is decoded, within the same bounds.
"""

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from media_bomb_files import BOMBS

from lightning_mmrl.data.media.asked import chosen_media
from lightning_mmrl.data.media.examine import Guard, examine
from lightning_mmrl.data.media.guard import DecodeTask, GuardedDecoder
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaKind, MediaRef
from lightning_mmrl.workers.pool import CallResult

MAX_MIB, MAX_PROCESSOR_S = 1024, 10.0
WORKER_START_S = 1.0
"""Processor seconds that the start of a worker takes, rounded up."""

SETTINGS = MediaSettings()


def main() -> int:
    """Runs the bombs and returns the exit code."""
    options = _parser().parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    start = _start_mib(options.folder)
    bad = 0
    for name in options.only or BOMBS:
        kind, write = BOMBS[name]
        path = options.folder.resolve() / name
        if not path.exists():
            write(path)
        for way, set_off in WAYS.items():
            bad += not _measured(way, set_off, path, kind, start)
    print(f"{bad} of {len(WAYS) * len(options.only or BOMBS)} are bad")
    return 1 if bad else 0


def _by_validation(path: Path, kind: MediaKind) -> str | None:
    """As `mmrl data validate`, `stats` and `from-csv` do it."""
    media = [(path, MediaRef(kind=kind, path=path.name))]
    [outcome] = Guard(settings=SETTINGS, num_workers=1).run(examine, media, path.parent, lambda *_: None)
    return outcome.error


def _by_training(path: Path, kind: MediaKind) -> str | None:
    """As the preparation of a data set for training and evaluation does it."""
    ref = MediaRef(kind=kind, path=path.name)
    return _decoded(DecodeTask(path=path, ref=ref, settings=SETTINGS, root=path.parent))


def _by_prediction(path: Path, kind: MediaKind) -> str | None:
    """As `mmrl predict` does it: first what the file holds, then each of its tracks."""
    try:
        media = chosen_media([path], SETTINGS, GuardedDecoder(workers=1), sound=None, hear=True)
    except MediaError as error:
        return str(error)
    errors = [_decoded(DecodeTask(path=file, ref=ref, settings=SETTINGS)) for file, ref in media]
    return next((error for error in errors if error is not None), None)


def _decoded(task: DecodeTask) -> str | None:
    outcomes: list[CallResult] = []
    GuardedDecoder(workers=1).decode_all([task], lambda _, outcome: outcomes.append(outcome))
    return outcomes[0].error


WAYS: Mapping[str, Callable[[Path, MediaKind], str | None]] = {
    "validate": _by_validation,
    "train": _by_training,
    "predict": _by_prediction,
}


def _measured(
    way: str, set_off: Callable[[Path, MediaKind], str | None], path: Path, kind: MediaKind, start: int
) -> bool:
    """Sets a bomb off, prints a line and says whether all is well."""
    with _Watch() as watch:
        began, used = time.monotonic(), os.times()
        error = set_off(path, kind)
        seconds, now = time.monotonic() - began, os.times()
    processor_s = now.children_user + now.children_system - used.children_user - used.children_system
    attempt_s = processor_s / max(1, watch.num_workers)
    in_a_sentence = error is None or (error.count(str(path)) == 1 and "\n" not in error)
    well = in_a_sentence and watch.peak_mib - start < MAX_MIB and attempt_s < MAX_PROCESSOR_S + WORKER_START_S
    said = (error or "it was decoded").replace(f"{path.parent}/", "")
    print(
        f"{'ok ' if well else 'BAD'} {way:8s} {path.name:24s} {path.stat().st_size / 2**20:6.1f} MiB on disk, "
        f"+{watch.peak_mib - start:4d} MiB, {seconds:5.1f} s, {processor_s:4.1f} s on a processor in "
        f"{watch.num_workers} workers: {said}",
        flush=True,
    )
    return well


def _start_mib(folder: Path) -> int:
    """The peak of a worker that was given a file which it refused unread."""
    path = folder / "refused.mp4"
    with path.open("wb") as file:
        file.truncate(SETTINGS.max_bytes + 1)
    with _Watch() as watch:
        _by_validation(path, "video")
    path.unlink()
    return watch.peak_mib


class _Watch:
    """Looks at all child processes every 5 ms: the kernel keeps each one's peak, so little of it can be missed."""

    def __init__(self) -> None:
        self.peak_mib = 0
        self._seen: set[int] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    @property
    def num_workers(self) -> int:
        """Child processes that there were, but for Python's own helper."""
        return len(self._seen)

    def __enter__(self) -> "_Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(0.005):
            for task in Path("/proc/self/task").iterdir():
                try:
                    children = (task / "children").read_text().split()
                except OSError:  # a thread that has ended in the meantime
                    continue
                for child in children:
                    self._note(int(child))

    def _note(self, process: int) -> None:
        try:
            status = Path(f"/proc/{process}/status").read_text()
            is_worker = b"spawn_main" in Path(f"/proc/{process}/cmdline").read_bytes()
        except OSError:  # it has ended in the meantime
            return
        if is_worker and "VmHWM:" in status:
            self._seen.add(process)
            self.peak_mib = max(self.peak_mib, int(status.split("VmHWM:")[1].split()[0]) // 1024)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Sets off files that decoders blow up.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the files are written; what is there is kept")
    parser.add_argument("--only", nargs="+", choices=list(BOMBS), metavar="NAME", help="these alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
