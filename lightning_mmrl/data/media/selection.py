"""Selects the frames of a clip by time; also the limits and warnings that all decoders share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef

_STILL_S = 0.04
"""Duration of a clip that has a single frame."""

_CLOCK_S = 1e-3
"""A frame counts as visible at a chosen time if it starts at most this much later, so that rounding has no effect."""

_DIGITS = 4
"""Start times are rounded to 0.1 ms, because each container rounds them in its own way."""

_BEYOND_S = 0.1
"""How far an `end` may lie beyond the clip: manifests hold rounded times, and sound may end before the picture."""

_LATE_S = 0.5
"""A picture that starts later than this gets a warning."""

_BACK_S = 1.0
"""A step back in time of more than this between two frames cannot come from reordered frames."""

CUT_OFF = "it may be cut off: fetch it again or re-encode it"
"""The end of the warning about a file that holds less than it declares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The selected frames of a clip.

    Attributes:
        indices: Indices of the frames, counted in display order.
        timestamps_s: Start time of each frame on the clip's clock.
        duration_s: Length of the span.
        end_s: End of the clip.
        warnings: Warnings, one sentence each.
    """

    indices: tuple[int, ...]
    timestamps_s: tuple[float, ...]
    duration_s: float
    end_s: float
    warnings: tuple[str, ...]


def select_frames(
    path: Path, starts_s: np.ndarray, ref: MediaRef, settings: MediaSettings, end_s: float | None = None
) -> Selection:
    """Selects the frames visible at the midpoints of `num_frames` equal segments of the span.

    Args:
        path: The clip's file, for messages.
        starts_s: Start of each frame on the clip's clock; it is rounded to 0.1 ms here. The first frame also covers
            the time before it.
        ref: The span.
        settings: Number of frames, and limits.
        end_s: End of the last frame; with None, the last frame lasts as long as the average frame, because demuxers
            disagree about its end.

    Raises:
        MediaError: The clip has no frames, is too long, or its span is empty.
    """
    if not len(starts_s):
        raise MediaError(f"{path}: video has no frames; re-encode or remove the clip")
    starts_s = np.round(starts_s, _DIGITS)
    end_s = clip_end_s(starts_s) if end_s is None else end_s
    check_duration(path, end_s, settings)
    first, last = ref.start_s or 0.0, end_s if ref.end_s is None else min(end_s, ref.end_s)
    if last <= first:
        raise MediaError(
            f"{path}: span {ref.start_s}..{ref.end_s} s is empty in a clip of {end_s:.2f} s; fix start/end"
        )
    indices = frames_on_show(starts_s, first, last, settings.num_frames)
    late = (
        f"{path}: its picture starts {starts_s[0]:.2f} s after its sound; the first frame fills the gap"
        if starts_s[0] > _LATE_S
        else None
    )
    return Selection(
        indices=tuple(indices),
        timestamps_s=tuple(float(starts_s[index]) for index in indices),
        duration_s=last - first,
        end_s=end_s,
        warnings=(*([late] if late else []), *beyond_the_end(path, ref, end_s)),
    )


def check_order(path: Path, before_s: float, after_s: float) -> None:
    """Checks the times of two frames that follow one another in display order.

    Raises:
        MediaError: Time jumps back, as in two recordings that were joined end to end.
    """
    if before_s - after_s > _BACK_S:
        raise MediaError(f"{path}: its clock jumps from {before_s:.2f} s back to {after_s:.2f} s; re-encode it")


def clip_end_s(starts_s: np.ndarray) -> float:
    """End of a clip whose last frame lasts as long as the average frame."""
    if len(starts_s) == 1:
        return float(starts_s[0]) + _STILL_S
    return float(starts_s[-1]) + float(starts_s[-1] - starts_s[0]) / (len(starts_s) - 1)


def frames_on_show(starts_s: np.ndarray, first_s: float, last_s: float, num_frames: int) -> Sequence[int]:
    """Indices of the frames visible at the midpoints of equal segments of a span."""
    times = first_s + (np.arange(num_frames) + 0.5) * (last_s - first_s) / num_frames
    return np.maximum(np.searchsorted(starts_s, times + _CLOCK_S, side="right") - 1, 0).tolist()


def beyond_the_end(path: Path, ref: MediaRef, end_s: float) -> tuple[str, ...]:
    """A warning if a span ends after the medium that it is cut from."""
    if ref.end_s is None or ref.end_s <= end_s + _BEYOND_S:
        return ()
    return (f"{path}: end {ref.end_s:g} s is later than the {end_s:.2f} s that its {ref.kind} lasts; change this end",)


def check_pixels(path: Path, pixels: int, settings: MediaSettings) -> None:
    """Raises a `MediaError` if a frame has too many pixels."""
    if pixels > settings.max_pixels:
        raise MediaError(
            f"{path}: frames of {pixels} pixels exceed media.max_pixels {settings.max_pixels}; scale the clip down"
        )


def check_duration(path: Path, seconds: float, settings: MediaSettings) -> None:
    """Raises a `MediaError` if a clip is too long."""
    if seconds > settings.max_duration_s:
        limit = settings.max_duration_s
        raise MediaError(f"{path}: {seconds:.1f} s exceed media.max_duration_s {limit:g}; cut the clip")
