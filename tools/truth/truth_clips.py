"""Clips whose truth is known from how they were written: a number in each picture, a click about once per second.

Picture and sound are encoded from times that are chosen here, packets are moved, cut and dropped here, and `Clip` says
when which frame is on show and which click is heard. No decoder is asked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import OutputContainer
from av.packet import Packet
from PIL import Image

WIDTH, HEIGHT = 176, 144
"""The only size that H.263 and H.261 share with everything else."""

BITS = 10
FPS = 25
RATE_HZ = 48_000
DURATION_S = 6.0
CLICK_S = 0.01
CUT_S = 2.3
"""Where a cut by stream copy begins: between two key frames, within a frame."""

LATE_S = 1.0
GAP_S = (2.0, 3.0)

_MP4 = frozenset({"mp4", "mov", "3gp"})
"""Their edit lists cut off what lies before zero; without an edit list, all is moved until nothing does."""

_HIDES_DELAY = frozenset({"matroska", "webm"})
"""Containers that say how many samples of an encoder's delay to skip; in the others but MP4 the delay is heard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a clip is written.

    `edits` are any of: late_sound, late_picture, offset (both start at 1.5 s), cut (by stream copy), vfr, gap (a second
    of the sound's packets is missing), turned (by the display matrix), silent (no sound).
    """

    container: str
    suffix: str
    video: str = "libx264"
    sound: str = "aac"
    edits: frozenset[str] = frozenset()
    options: Mapping[str, str] = field(default_factory=dict)
    muxing: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Words that tell it from the others."""
        extra = [f"{key}={value}" for key, value in (*self.options.items(), *self.muxing.items())]
        sound = "" if "silent" in self.edits else f"+{self.sound}"
        return " ".join([f"{self.suffix}:{self.video}{sound}", *sorted(self.edits), *extra])


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A written file: frame `numbers[i]` is on show from `starts_s[i]`, and a click is heard at each of `clicks_s`.

    `end_s` is where the last frame ends: after as long as the average one lasts, or as its file says.
    """

    path: Path
    numbers: tuple[int, ...]
    starts_s: tuple[float, ...]
    end_s: float
    clicks_s: tuple[float, ...]


def write_clip(path: Path, recipe: Recipe, duration_s: float = DURATION_S) -> Clip:
    """Writes the clip of a recipe."""
    if recipe.container == "picture":
        return _write_moving_picture(path, recipe, duration_s)
    starts = _source_starts(recipe, duration_s)
    with av.open(str(path), "w", format=recipe.container, options=dict(recipe.muxing)) as container:
        pictures = _encode_pictures(container, recipe, starts)
        sounds = _encode_sound(container, recipe, duration_s) if "silent" not in recipe.edits else []
        delay_s = -min(0.0, min((_time_s(packet) for packet in sounds), default=0.0))
        decoded_from_s = min(float(packet.dts * packet.time_base) for packet in (*pictures, *sounds))
        pictures, sounds = _edit(recipe, pictures), _edit_sound(recipe, sounds)
        for packet in sorted((*pictures, *sounds), key=lambda packet: float(packet.dts * packet.time_base)):
            container.mux(packet)
        picture_from_s = min(_time_s(packet) for packet in pictures)
    zero_s = _zero_s(recipe, delay_s, decoded_from_s, picture_from_s)
    # AVI stores no start of a track: what the sound's encoder put in front of it moves the sound alone.
    return _truth(path, recipe, starts, duration_s, zero_s, delay_s if recipe.container == "avi" else 0.0)


def _zero_s(recipe: Recipe, delay_s: float, decoded_from_s: float, picture_from_s: float) -> float:
    """The time of the source at which the file's clock starts: the earliest that is seen or heard."""
    if "cut" in recipe.edits:
        return CUT_S if recipe.container in _MP4 else CUT_S + picture_from_s
    if recipe.container in _MP4 and recipe.muxing.keys() & {"use_editlist", "movflags"} and not _moves_header(recipe):
        return decoded_from_s
    if recipe.container == "avi":
        return 0.0
    at = 1.5 if "offset" in recipe.edits else 0.0
    picture_s = at + (LATE_S if "late_picture" in recipe.edits else 0.0)
    sound_s = at + (LATE_S if "late_sound" in recipe.edits else 0.0)
    if "silent" in recipe.edits:
        return picture_s - at
    heard_s = sound_s if recipe.container in _HIDES_DELAY else sound_s - delay_s
    return min(picture_s, max(0.0, heard_s) if recipe.container in _MP4 else heard_s) - at


def _moves_header(recipe: Recipe) -> bool:
    return recipe.muxing.get("movflags") == "faststart"


def draw(number: int) -> np.ndarray:
    """A picture [H, W, 3] with the number's bits as bright and dark blocks, two rows of five."""
    image = np.full((HEIGHT, WIDTH, 3), 16, dtype=np.uint8)
    for bit in range(BITS):
        if number >> bit & 1:
            top, left = _corner(bit)
            image[top : top + HEIGHT // 2, left : left + WIDTH // 5] = 235
    return image


def read(image: np.ndarray) -> int:
    """The number in a picture."""
    number = 0
    for bit in range(BITS):
        top, left = _corner(bit)
        middle = image[top + 20 : top + HEIGHT // 2 - 20, left + 10 : left + WIDTH // 5 - 10]
        number |= int(middle.mean() > 128) << bit
    return number


def _corner(bit: int) -> tuple[int, int]:
    return bit // 5 * (HEIGHT // 2), bit % 5 * (WIDTH // 5)


def click_times_s(duration_s: float) -> list[float]:
    """Not on the second, so that a shift by whole seconds shows."""
    return [float(time) for time in np.arange(0.3, duration_s - 0.1, 1.03)]


def _source_starts(recipe: Recipe, duration_s: float) -> list[Fraction]:
    if "vfr" not in recipe.edits:
        return [Fraction(index, FPS) for index in range(round(duration_s * FPS))]
    steps_ms = np.random.default_rng(0).integers(2, 12, round(duration_s * FPS)) * 20
    starts_ms = np.concatenate([[0], np.cumsum(steps_ms)])
    return [Fraction(int(start), 1000) for start in starts_ms if start < duration_s * 1000]


def _encode_pictures(container: OutputContainer, recipe: Recipe, starts: Sequence[Fraction]) -> list[Packet]:
    options = {"threads": "1", **recipe.options}
    stream = container.add_stream(recipe.video, rate=FPS, options=options)
    stream.width, stream.height = WIDTH, HEIGHT
    stream.pix_fmt = _pixel_format(recipe.video)
    tick = Fraction(1, 1000) if "vfr" in recipe.edits else Fraction(1, FPS)
    stream.time_base = stream.codec_context.time_base = tick
    if "turned" in recipe.edits:
        stream.set_display_rotation(180)
    packets = []
    for number, start in enumerate(starts):
        image = draw(number)
        if "turned" in recipe.edits:
            image = np.ascontiguousarray(np.rot90(image, 2))
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = int(start / tick), tick
        packets += stream.encode(frame)
    return _with_times(packets + stream.encode(None), tick)


def _pixel_format(codec: str) -> str:
    known = av.codec.Codec(codec, "w").video_formats
    names = [each.name for each in known] if known else ["yuv420p"]
    wanted = ("yuvj420p",) if codec == "mjpeg" else ("yuv420p", "yuv422p10le", "rgb24")
    return next((name for name in wanted if name in names), names[0])


def _encode_sound(container: OutputContainer, recipe: Recipe, duration_s: float) -> list[Packet]:
    stream = container.add_stream(recipe.sound, rate=RATE_HZ)
    stream.bit_rate = 96_000
    stream.layout = "mono"
    samples = np.zeros((1, round(duration_s * RATE_HZ)), dtype=np.float32)
    length = round(CLICK_S * RATE_HZ)
    for start_s in click_times_s(duration_s):
        at = round(start_s * RATE_HZ)
        samples[0, at : at + length] = 0.8 * np.sin(2 * np.pi * 3000 * np.arange(length) / RATE_HZ)
    resampler = av.AudioResampler(format=_sample_format(recipe.sound), layout="mono", rate=RATE_HZ)
    packets = []
    for start in range(0, samples.shape[1], 4096):
        block = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples[:, start : start + 4096]), "fltp", "mono")
        block.rate, block.pts, block.time_base = RATE_HZ, start, Fraction(1, RATE_HZ)
        for frame in resampler.resample(block):
            packets += stream.encode(frame)
    return _with_times(packets + stream.encode(None), Fraction(1, RATE_HZ))


def _sample_format(codec: str) -> str:
    known = av.codec.Codec(codec, "w").audio_formats
    names = [each.name for each in known] if known else ["s16"]
    return "fltp" if "fltp" in names else names[0]


def _with_times(packets: Sequence[Packet], tick: Fraction) -> list[Packet]:
    """Packets in a fine time base, so that they can be moved."""
    fine = Fraction(1, 720_000)
    for packet in packets:
        base = packet.time_base or tick
        packet.pts = round(packet.pts * base / fine)
        packet.dts = round((packet.dts if packet.dts is not None else packet.pts) * base / fine)
        packet.duration = round((packet.duration or 0) * base / fine)
        packet.time_base = fine
    return list(packets)


def _time_s(packet: Packet) -> float:
    return float(packet.pts * packet.time_base)


def _edit(recipe: Recipe, packets: list[Packet]) -> list[Packet]:
    if "cut" in recipe.edits:
        first = max(index for index, packet in enumerate(packets) if packet.is_keyframe and _time_s(packet) <= CUT_S)
        return _moved(packets[first:], -CUT_S)
    return _moved(packets, LATE_S if "late_picture" in recipe.edits else 1.5 if "offset" in recipe.edits else 0.0)


def _edit_sound(recipe: Recipe, packets: list[Packet]) -> list[Packet]:
    if "cut" in recipe.edits:
        return _moved([packet for packet in packets if _time_s(packet) >= CUT_S], -CUT_S)
    if "gap" in recipe.edits:
        packets = [packet for packet in packets if not GAP_S[0] <= _time_s(packet) < GAP_S[1]]
    return _moved(packets, LATE_S if "late_sound" in recipe.edits else 1.5 if "offset" in recipe.edits else 0.0)


def _moved(packets: list[Packet], seconds: float) -> list[Packet]:
    for packet in packets:
        shift = round(seconds / packet.time_base)
        packet.pts += shift
        packet.dts += shift
    return packets


def _truth(
    path: Path, recipe: Recipe, starts: Sequence[Fraction], duration_s: float, zero_s: float, delay_s: float
) -> Clip:
    picture_at = (LATE_S if "late_picture" in recipe.edits else 0.0) - zero_s
    sound_at = (LATE_S if "late_sound" in recipe.edits else 0.0) - zero_s + delay_s
    frames = [(number, float(start) + picture_at) for number, start in enumerate(starts)]
    clicks = [] if "silent" in recipe.edits else click_times_s(duration_s)
    if "gap" in recipe.edits:
        clicks = [time for time in clicks if not GAP_S[0] - 0.05 <= time < GAP_S[1] + 0.05]
    frames = [(number, time) for number, time in frames if time > -1e-6]
    first_s, last_s = frames[0][1], frames[-1][1]
    return Clip(
        path=path,
        numbers=tuple(number for number, _ in frames),
        starts_s=tuple(time for _, time in frames),
        end_s=last_s + (last_s - first_s) / (len(frames) - 1),
        clicks_s=tuple(time + sound_at for time in clicks if time + sound_at > 0),
    )


def _write_moving_picture(path: Path, recipe: Recipe, duration_s: float) -> Clip:
    starts = _source_starts(recipe, duration_s)
    images = [Image.fromarray(draw(number)) for number in range(len(starts))]
    ends = [*starts[1:], starts[-1] + Fraction(1, FPS)]
    lasts_ms = [int((end - start) * 1000) for start, end in zip(starts, ends, strict=True)]
    how = {"lossless": True} if recipe.suffix == "webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=lasts_ms, loop=0, **how)
    return Clip(
        path=path,
        numbers=tuple(range(len(starts))),
        starts_s=tuple(map(float, starts)),
        end_s=float(ends[-1]),
        clicks_s=(),
    )
