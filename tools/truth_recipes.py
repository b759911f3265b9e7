"""The clips of tools/frame_truth.py: containers x codecs x edits."""

from truth_clips import Recipe

_B = {"bf": "2", "g": "25"}
_NO_B = {"bf": "0", "g": "25"}


def _of(container: str, suffix: str, video: str = "libx264", sound: str = "aac", *edits: str, **more) -> Recipe:
    return Recipe(container=container, suffix=suffix, video=video, sound=sound, edits=frozenset(edits), **more)


def _edits(container: str, suffix: str, video: str, sound: str, *all_edits: str, **more) -> list[Recipe]:
    return [_of(container, suffix, video, sound, *edit.split(), **more) for edit in all_edits]


RECIPES: tuple[Recipe, ...] = (
    *_edits(
        "mp4",
        "mp4",
        "libx264",
        "aac",
        "",
        "silent",
        "vfr",
        "turned",
        "late_sound",
        "late_picture",
        "offset",
        options=_B,
    ),
    *_edits(
        "mp4", "mp4", "libx264", "aac", "cut", "gap", "cut silent", "late_picture silent", "offset silent", options=_B
    ),
    *_edits("mp4", "mp4", "libx264", "aac", "", "silent", "vfr", "turned", "late_sound", "cut", options=_NO_B),
    *_edits("mp4", "mp4", "libx264", "aac", "late_picture", "offset", "gap", options=_NO_B),
    _of("mp4", "mp4", options={**_NO_B, "x264-params": "intra-refresh=1"}),
    _of("mp4", "mp4", options={**_NO_B, "tune": "zerolatency", "x264-params": "slices=4"}),
    _of("mp4", "mp4", options={"bf": "0", "g": "250"}, muxing={"movflags": "frag_keyframe+empty_moov"}),
    _of("mp4", "mp4", options={"bf": "3", "g": "25", "x264-params": "open-gop=1"}),
    _of("mp4", "mp4", options={"bf": "3", "g": "25", "flags": "+ildct+ilme"}),
    _of("mp4", "mp4", options=_B, muxing={"movflags": "frag_keyframe+empty_moov"}),
    _of("mp4", "mp4", options=_B, muxing={"movflags": "faststart"}),
    _of("mp4", "mp4", options=_B, muxing={"use_editlist": "0"}),
    _of("mp4", "mp4", "libx264", "libopus", options=_B),
    _of("mp4", "mp4", "libx264", "libmp3lame", options=_B),
    *_edits("mp4", "mp4", "mpeg4", "aac", "", "cut", "late_sound", options=_B),
    _of("mp4", "mp4", "mpeg4", "aac", options=_NO_B),
    *_edits("mp4", "mp4", "libx265", "aac", "", "cut", options={"g": "25", "x265-params": "log-level=0"}),
    _of("mp4", "mp4", "libsvtav1", "aac", options={"g": "25", "preset": "8", "crf": "20"}),
    _of("mp4", "mp4", "libvpx-vp9", "aac", options={"g": "25", "cpu-used": "8"}),
    _of("mp4", "mp4", "mjpeg", "aac"),
    *_edits("mov", "mov", "libx264", "aac", "", "turned", "late_sound", options=_B),
    _of("mov", "mov", "prores_ks", "pcm_s16le"),
    _of("mov", "mov", "mjpeg", "pcm_s16le", "late_picture"),
    _of("3gp", "3gp", "h263", "aac"),
    *_edits(
        "matroska",
        "mkv",
        "libx264",
        "aac",
        "",
        "vfr",
        "turned",
        "late_sound",
        "late_picture",
        "offset",
        "gap",
        options=_B,
    ),
    _of("matroska", "mkv", "mpeg4", "libmp3lame", options=_B),
    _of("matroska", "mkv", "ffv1", "flac"),
    _of("matroska", "mkv", "mpeg2video", "ac3", options=_B),
    _of("matroska", "mkv", "libx265", "libopus", options={"g": "25", "x265-params": "log-level=0"}),
    *_edits("webm", "webm", "libvpx", "libopus", "", "late_sound", "vfr", options={"g": "25", "cpu-used": "8"}),
    *_edits("webm", "webm", "libvpx-vp9", "libopus", "", "late_picture", options={"g": "25", "cpu-used": "8"}),
    _of("webm", "webm", "libsvtav1", "libopus", options={"g": "25", "preset": "8", "crf": "20"}),
    *_edits("avi", "avi", "libx264", "libmp3lame", "", options=_B),
    *_edits("avi", "avi", "mpeg4", "libmp3lame", "", "silent", options=_B),
    _of("avi", "avi", "mpeg4", "pcm_s16le", options=_NO_B),
    _of("avi", "avi", "mjpeg", "pcm_s16le"),
    _of("avi", "avi", "msmpeg4", "libmp3lame", muxing={"avoid_negative_ts": "disabled"}),
    *_edits(
        "mpegts", "ts", "libx264", "aac", "", "silent", "late_sound", "late_picture", "offset", "gap", "vfr", options=_B
    ),
    _of("mpegts", "ts", "mpeg2video", "mp2", options=_B),
    _of("mpegts", "ts", "libx265", "ac3", options={"g": "25", "x265-params": "log-level=0"}),
    *_edits("mpeg", "mpg", "mpeg1video", "mp2", "", "late_sound", options=_B),
    *_edits("vob", "mpg", "mpeg2video", "mp2", "", "silent", options=_B),
    *_edits("asf", "wmv", "wmv2", "wmav2", "", "late_sound", "silent"),
    _of("asf", "wmv", "msmpeg4", "libmp3lame"),
    *_edits("flv", "flv", "libx264", "aac", "", "late_sound", "vfr", options=_B),
    _of("flv", "flv", "flv", "libmp3lame"),
    _of("nut", "nut", "mpeg4", "libmp3lame", options=_B),
    *(_of("picture", suffix, suffix, "none", "silent", "vfr") for suffix in ("gif", "png", "webp", "avif")),
)
