"""Is every delivered frame and sample the one at its stated time?

    python tools/truth/frame_truth.py              all clips of tools/truth/truth_recipes.py, a line each
    python tools/truth/frame_truth.py --only avi   the recipes whose name holds a word
    python tools/truth/frame_truth.py --speed DIR  decode times of this path beside decord's, on .mp4 files below DIR

Each clip is written with a number in each picture and clicks in its sound, see truth_clips.py, and decoded by
`decode_video` and `decode_audio`: whole, and as a span. Faults: another picture than the one on show at a segment's
middle, a timestamp that is not its picture's, a click that is missing or more than 20 ms from its time, a wrong length.
Exits with 1 if there is one.
"""

import argparse
import sys
import tempfile
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from truth_clips import Clip, read, write_clip
from truth_recipes import RECIPES

from lightning_mmrl.data.media.audio import decode_audio
from lightning_mmrl.data.media.video import HAS_DECORD, decode_video, is_safe_for_decord, read_outline
from lightning_mmrl.errors import MmrlError
from lightning_mmrl.types.media import DecodedAudio, DecodedVideo, MediaSettings
from lightning_mmrl.types.records import MediaKind, MediaRef

SETTINGS = MediaSettings(num_frames=40)
SPANS = ((None, None), (0.9, 3.1))
CLOCK_S = 0.002
"""Containers round times to 1 ms; a picture whose turn begins this close to a segment's middle may or may not be it."""

SYNC_S = 0.020
"""A lead that a viewer does not notice: broadcasting allows 45 ms of sound before the picture (EBU R37)."""

Decode = Callable[[Path, MediaRef, MediaSettings], DecodedVideo | DecodedAudio]


def faults(clip: Clip, video: Decode = decode_video, sound: Decode = decode_audio) -> list[str]:
    """Faults of the decoded clip, a phrase each."""
    found = []
    for start_s, end_s in SPANS:
        span = f" of {start_s}..{end_s}" if end_s is not None else ""
        try:
            found += [
                wrong + span
                for wrong in _picture_faults(
                    clip, video(clip.path, _ref("video", start_s, end_s), SETTINGS), start_s, end_s
                )
            ]
            if clip.clicks_s:
                found += [
                    wrong + span
                    for wrong in _sound_faults(
                        clip, sound(clip.path, _ref("audio", start_s, end_s), SETTINGS), start_s, end_s
                    )
                ]
        except MmrlError as error:
            found.append(str(error).replace(str(clip.path), "refused") + span)
    return found


def _ref(kind: MediaKind, start_s: float | None, end_s: float | None) -> MediaRef:
    return MediaRef(kind=kind, path="clip", start_s=start_s, end_s=end_s)


def _picture_faults(clip: Clip, decoded: DecodedVideo, start_s: float | None, end_s: float | None) -> list[str]:
    starts = clip.starts_s
    first_s, last_s = start_s or 0.0, min(clip.end_s, end_s or clip.end_s)
    found = []
    if abs(decoded.duration_s - (last_s - first_s)) > SYNC_S:
        found.append(f"picture lasts {decoded.duration_s:.2f} s and not {last_s - first_s:.2f} s")
    middles = first_s + (np.arange(SETTINGS.num_frames) + 0.5) * decoded.duration_s / SETTINGS.num_frames
    wrong, stamps = [], []
    for middle, image, stamp in zip(middles, decoded.frames, decoded.timestamps_s, strict=True):
        number = read(image)
        right = {clip.numbers[max(0, bisect_right(starts, middle + slack) - 1)] for slack in (-CLOCK_S, CLOCK_S)}
        if number not in right:
            wrong.append(f"{number} for {min(right)} at {middle:.2f} s")
        elif abs(stamp - starts[clip.numbers.index(number)]) > CLOCK_S:
            stamps.append(stamp - starts[clip.numbers.index(number)])
    if wrong:
        found.append(f"{len(wrong)} wrong pictures ({wrong[0]})")
    if stamps:
        found.append(f"{len(stamps)} wrong timestamps (by {max(stamps, key=abs):+.3f} s)")
    return found


def _sound_faults(clip: Clip, decoded: DecodedAudio, start_s: float | None, end_s: float | None) -> list[str]:
    first_s, last_s = start_s or 0.0, end_s if end_s is not None else float("inf")
    expected = [click - first_s for click in clip.clicks_s if first_s + SYNC_S < click < last_s - SYNC_S]
    heard = onsets_s(decoded)
    if len(heard) != len(expected):
        return [f"{len(heard)} clicks and not {len(expected)}"]
    off = max((ours - theirs for ours, theirs in zip(heard, expected, strict=True)), key=abs, default=0.0)
    return [f"clicks {off * 1000:+.0f} ms off"] if abs(off) > SYNC_S else []


def onsets_s(sound: DecodedAudio) -> list[float]:
    """When clicks begin: above a fifth of full scale, half a second apart."""
    loud = np.flatnonzero(np.abs(sound.waveform) > 0.2)
    apart = np.diff(loud, prepend=-sound.sample_rate_hz) > sound.sample_rate_hz / 2
    return [float(at) / sound.sample_rate_hz for at in loud[apart]]


def check_all(only: str) -> int:
    """Prints a line per recipe; the number of recipes with a fault."""
    num_wrong = num = 0
    with tempfile.TemporaryDirectory() as folder:
        for index, recipe in enumerate(recipe for recipe in RECIPES if only in recipe.name):
            clip = write_clip(Path(folder) / f"{index}.{recipe.suffix}", recipe)
            found = faults(clip)
            num, num_wrong = num + 1, num_wrong + bool(found)
            by = "pillow" if recipe.container == "picture" else "decord" if _goes_to_decord(clip.path) else "pyav"
            print(f"{'WRONG' if found else 'right'}  {by:7}{recipe.name}{': ' + '; '.join(found) if found else ''}")
            clip.path.unlink()
    print(f"{num - num_wrong} of {num} combinations are right")
    return num_wrong


def _goes_to_decord(path: Path) -> bool:
    return HAS_DECORD and is_safe_for_decord(read_outline(path, SETTINGS))


def compare_speed(folder: Path, num: int = 60, repeats: int = 5) -> None:
    """Prints milliseconds per clip of the chosen path and of decord alone, interleaved, and their ratio."""
    ours, decords = [], []
    clips = sorted(folder.rglob("*.mp4"))[:num]
    settings = MediaSettings()
    for _ in range(repeats):
        for path in clips:
            ours.append(_seconds(lambda path=path: decode_video(path, _ref("video", None, None), settings)))
            decords.append(_seconds(lambda path=path: decord_alone(path, settings.num_frames)))
    mine, theirs = np.median(ours) * 1000, np.median(decords) * 1000
    print(
        f"{len(clips)} clips x {repeats}: chosen path {mine:.2f} ms, decord {theirs:.2f} ms, ratio {mine / theirs:.2f}"
    )


def decord_alone(path: Path, num_frames: int) -> np.ndarray:
    """Frames evenly spread and the times of all, without a look at the container."""
    import decord

    reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
    reader.get_frame_timestamp(list(range(len(reader))))
    return reader.get_batch(np.linspace(0, len(reader) - 1, num_frames).round().astype(int).tolist()).asnumpy()


def _seconds(call: Callable[[], object]) -> float:
    """Processor time, so that other work on the machine does not count; both decoders use one thread."""
    begin = time.process_time()
    call()
    return time.process_time() - begin


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="a word of the recipes' names")
    parser.add_argument("--speed", type=Path, help="a folder of .mp4 files to time")
    options = parser.parse_args(arguments)
    if options.speed is not None:
        compare_speed(options.speed)
        return 0
    return 1 if check_all(options.only) else 0


if __name__ == "__main__":
    sys.exit(main())
