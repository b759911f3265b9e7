"""Parts of a model card's example code that choose frames and sizes as training did; see `data.media`."""

from collections.abc import Mapping
from typing import Any

_MIDDLES = """\
def frames_of(path, count={num_frames}):
    # The frames on show at the middles of equal segments of the clip, when each begins, and how many are in a second.
    with av.open(path) as container:
        zero = (container.start_time or 0) / av.time_base
        shown = [frame for frame in container.decode(video=0) if frame.time is not None]
    starts = np.round([frame.time - zero for frame in shown], 4)
    end = starts[-1] + ((starts[-1] - starts[0]) / (len(starts) - 1) if len(starts) > 1 else 0.04)
    times = (np.arange(count) + 0.5) * end / count
    chosen = np.maximum(np.searchsorted(starts, times + 1e-3, side="right") - 1, 0)
    frames = [np.rot90(shown[i].to_ndarray(format="rgb24"), round(shown[i].rotation / 90)) for i in chosen]
    return np.stack(frames), starts[chosen], count / end

"""

_EVENLY = """\
def frames_of(path):
    # The frames that qwen-vl-utils takes, when each begins, and how many are in a second.
    with av.open(path) as container:
        zero = (container.start_time or 0) / av.time_base
        rate = float(container.streams.video[0].average_rate)
        shown = [frame for frame in container.decode(video=0) if frame.time is not None]
    starts = np.round([frame.time - zero for frame in shown], 4)
    total = len(shown)
    count = {count}
    chosen = np.linspace(0, total - 1, count, dtype=np.float32).round().astype(int)
    frames = [np.rot90(shown[i].to_ndarray(format="rgb24"), round(shown[i].rotation / 90)) for i in chosen]
    return np.stack(frames), starts[chosen], count / total * rate

"""

_SIZED = """\
side = processor.image_processor.patch_size * processor.image_processor.merge_size


def sized(pictures, least, most):
    # The size of qwen-vl-utils: sides of whole tokens, and a number of pixels between two bounds.
    height, width = pictures[0].shape[:2]
    sides = [max(side, round(each / side) * side) for each in (height, width)]
    if sides[0] * sides[1] > most:
        beta = math.sqrt(height * width / most)
        sides = [math.floor(each / beta / side) * side for each in (height, width)]
    elif sides[0] * sides[1] < least:
        beta = math.sqrt(least / (height * width))
        sides = [math.ceil(each * beta / side) * side for each in (height, width)]
    shown = [Image.fromarray(np.ascontiguousarray(each)) for each in pictures]
    return np.stack([np.asarray(each.resize(sides[::-1], Image.Resampling.BICUBIC)) for each in shown])

"""

_CAP = (
    "    caps, cap = processor.video_processor, own['longest_edge']",
    "    cap = caps.max_video_tokens * side**2 if caps.cap_pixels_per_frame else cap",
)


def frames_code(media: Mapping[str, Any]) -> str:
    """Code of `frames_of`."""
    if "fps" not in media and "frame_rule" not in media:
        return _MIDDLES.format(**media)
    if "fps" not in media:
        return _EVENLY.format(count=round(media["num_frames"] / 2) * 2)
    least = -(-media.get("min_frames", 4) // 2) * 2
    most = media["max_frames"] // 2 * 2 if "max_frames" in media else "min(768, total) // 2 * 2"
    wanted = f"min(max(total / rate * {media['fps']}, {least}), {most}, total)"
    return _EVENLY.format(count=f"int({wanted} // 2) * 2")


def sizes_pictures(media: Mapping[str, Any]) -> bool:
    """Whether a key says how large pictures are shown."""
    return bool({"min_image_pixels", "max_image_pixels"} & media.keys())


def sizes_frames(media: Mapping[str, Any]) -> bool:
    """Whether a key says how large frames are shown."""
    return bool({"min_frame_pixels", "max_frame_pixels", "total_pixels"} & media.keys())


def sizing_code(media: Mapping[str, Any]) -> str:
    """Code of `sized`, if a key needs it."""
    return _SIZED if sizes_pictures(media) or sizes_frames(media) else ""


def picture_lines(media: Mapping[str, Any]) -> list[str]:
    """Lines that size the picture in `media`."""
    if not sizes_pictures(media):
        return []
    least = media.get("min_image_pixels", 'own["shortest_edge"]')
    most = media.get("max_image_pixels", 'own["longest_edge"]')
    return [
        "    own = processor.image_processor.size",
        f'    media["images"] = [Image.fromarray(sized([np.asarray(media["images"][0])], {least}, {most})[0])]',
        '    media["images_kwargs"] = {"do_resize": False}',
    ]


def frame_lines(media: Mapping[str, Any], *, per_clip: bool) -> list[str]:
    """Lines that size `frames`; `per_clip` as in `OwnSizes`."""
    if not sizes_frames(media):
        return []
    own_least, own_most = 'own["shortest_edge"]', 'own["longest_edge"]'
    if per_clip:
        own_least, own_most = f"{own_least} // count", f"min({own_most} // count, cap)"
    least, most = media.get("min_frame_pixels", own_least), media.get("max_frame_pixels", own_most)
    total = media.get("total_pixels", "128_000 * side * side * 0.9")
    return [
        "    own, count = processor.video_processor.size, -(-len(frames) // 2) * 2",
        *(_CAP if "cap" in str(most) else ()),
        f"    least, most = {least}, {most}",
        f"    limit = max(min(768 * side**2, {total} / count * 2), int(least * 1.05))",
        "    frames = sized(frames, least, min(most, limit))",
    ]


def in_words(media: Mapping[str, Any]) -> str:
    """How clips and pictures are shown, for a list."""
    words = f"{media['num_frames']} frames"
    if "fps" in media:
        bounds = (("at least", media.get("min_frames", 4)), ("at most", media.get("max_frames", 768)))
        words = ", ".join([f"{media['fps']:g} frames a second", *(f"{word} {bound}" for word, bound in bounds)])
    if "fps" in media or "frame_rule" in media:
        words += ", chosen as qwen-vl-utils does"
    pixels = {key: media[key] for key in media if key.endswith("_pixels") and key != "max_pixels"}
    return ", ".join([words, *(f"{key.replace('_', ' ')} {value}" for key, value in pixels.items())])
