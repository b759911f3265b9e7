"""Selects the frames of a clip by time; also the limits and warnings that all decoders share."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_mmrl.data.media.sizes import FRAME_FACTOR, evenly, smart_nframes
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef

_STILL_S = 0.04
"""Duration of a clip that has a single frame."""

_CLOCK_S = 1e-3
"""A frame counts as visible at a chosen time if it starts at most this much later, so that rounding has no effect."""

_DIGITS = 4
"""Start times are rounded to 0.1 ms, because each container rounds them in its own way."""

_ROUNDED_S = 10**-_DIGITS
"""A frame that starts this much outside of a span counts as inside, since its start is rounded."""

_RATE_SLACK, _PART_SLACK = 0.5, 0.1
"""How far the duration of a clip's frames at the container's rate may fall below their duration by the clock, and how
far that of a span may differ from it either way; as shares."""

_BEYOND_S = 0.1
"""How far an `end` may lie beyond the clip: manifests hold rounded times, and sound may end before the picture."""

_LATE_S = 0.5
"""A picture that starts later than this gets a warning."""

BACK_S = 1.0
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
    path: Path, starts_s: np.ndarray, ref: MediaRef, settings: MediaSettings, rate: float, end_s: float | None = None
) -> Selection:
    """Selects frames of the span: at the midpoints of equal segments, or as qwen-vl-utils does.

    Args:
        path: The clip's file, for messages.
        starts_s: Start of each frame on the clip's clock; it is rounded to 0.1 ms here. The first frame also covers
            the time before it.
        ref: The span.
        settings: How frames are chosen, and limits.
        rate: Average number of frames per second, as the container has it.
        end_s: End of the last frame; with None, the last frame lasts as long as the average frame, because demuxers
            disagree about its end.

    Raises:
        MediaError: The clip has no frames or too few of them, is too long, or its span is empty.
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
    indices, duration_s = frames_taken(starts_s, (first, last), ref, settings, rate)
    if not indices:
        raise MediaError(f"{path}: {_too_few(starts_s, (first, last), ref, settings)}")
    late = (
        f"{path}: its picture starts {starts_s[0]:.2f} s after its sound; the first frame fills the gap"
        if starts_s[0] > _LATE_S
        else None
    )
    return Selection(
        indices=tuple(indices),
        timestamps_s=tuple(float(starts_s[index]) for index in indices),
        duration_s=duration_s,
        end_s=end_s,
        warnings=(*([late] if late else []), *beyond_the_end(path, ref, end_s)),
    )


def check_order(path: Path, before_s: float, after_s: float) -> None:
    """Checks the times of two frames that follow one another in display order.

    Raises:
        MediaError: Time jumps back, as in two recordings that were joined end to end.
    """
    if before_s - after_s > BACK_S:
        raise MediaError(f"{path}: its clock jumps from {before_s:.2f} s back to {after_s:.2f} s; re-encode it")


def clip_end_s(starts_s: np.ndarray) -> float:
    """End of a clip whose last frame lasts as long as the average frame."""
    if len(starts_s) == 1:
        return float(starts_s[0]) + _STILL_S
    return float(starts_s[-1]) + float(starts_s[-1] - starts_s[0]) / (len(starts_s) - 1)


def frames_taken(
    starts_s: np.ndarray, span_s: tuple[float, float], ref: MediaRef, settings: MediaSettings, rate: float
) -> tuple[Sequence[int], float]:
    """Indices of the frames that are taken from a span, none if it has too few, and the seconds that they stand for.

    By the rule of qwen-vl-utils these are its frames over their rate. **Deviation** from qwen-vl-utils: the frames of a
    span are found by their times; it takes time times rate for an index, also where frames do not start at zero or
    their rate varies.
    """
    if settings.fps is None and settings.frame_rule == "middles":
        return frames_on_show(starts_s, *span_s, settings.num_frames), span_s[1] - span_s[0]
    inside = _inside(starts_s, span_s, ref)
    if not len(inside):
        return (), 0.0
    whole = ref.start_s is None and ref.end_s is None
    rate = _plausible_rate(starts_s[inside], rate, None if whole else span_s)
    number = smart_nframes(settings, len(inside), rate)
    if not number:
        return (), 0.0
    return evenly(int(inside[0]), int(inside[-1]), number), len(inside) / rate


def _inside(starts_s: np.ndarray, span_s: tuple[float, float], ref: MediaRef) -> np.ndarray:
    """Indices of the frames that start within a span, both ends included, as qwen-vl-utils counts them."""
    if ref.start_s is None and ref.end_s is None:
        return np.arange(len(starts_s))
    return np.flatnonzero((starts_s >= span_s[0] - _ROUNDED_S) & (starts_s <= span_s[1] + _ROUNDED_S))


def _plausible_rate(starts_s: np.ndarray, rate: float, span_s: tuple[float, float] | None) -> float:
    """The rate that a container has, unless its own clock contradicts it: then the clock's.

    Some containers name a rate that no frame has (1000 in WebM), and the rate of a part may be another one. A clip may
    last longer than its frames say, since nothing says how long the last one is on show.
    """
    shown_s, named_s = float(starts_s[-1] - starts_s[0]), len(starts_s) / rate
    shortest_s, longest_s = (1 - _RATE_SLACK) * shown_s, np.inf
    if span_s is not None:
        shortest_s, longest_s = (1 - _PART_SLACK) * shown_s, (1 + _PART_SLACK) * (span_s[1] - span_s[0]) + 2 / rate
    if shown_s <= 0 or shortest_s <= named_s <= longest_s:
        return rate
    return (len(starts_s) - 1) / shown_s


def _too_few(starts_s: np.ndarray, span_s: tuple[float, float], ref: MediaRef, settings: MediaSettings) -> str:
    """The error about a clip with too few frames for qwen-vl-utils."""
    number = len(_inside(starts_s, span_s, ref))
    too_few = f"too few frames{' in its span' if number < len(starts_s) else ''} ({number})"
    if settings.fps is not None:
        return f"{too_few}: data.media.fps takes at least {FRAME_FACTOR}; use a longer clip, or a picture"
    return (
        f"{too_few} for data.media.num_frames {settings.num_frames}; lower it, or set data.media.frame_rule=middles, "
        "which repeats frames"
    )


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
