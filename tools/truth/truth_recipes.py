"""The clips of tools/truth/frame_truth.py: containers x codecs x edits."""

from collections.abc import Mapping

from truth_clips import Recipe

_B = {"bf": "2", "g": "25"}
_NO_B = {"bf": "0", "g": "25"}
_HEVC = {"g": "25", "x265-params": "log-level=0"}
_VPX = {"g": "25", "cpu-used": "8"}
_AV1 = {"g": "25", "preset": "8", "crf": "20"}
_FRAGMENTS = {"movflags": "frag_keyframe+empty_moov"}


def _clips(
    file: str, codecs: str, options: Mapping[str, str], edits: str = "plain", muxing: Mapping[str, str] | None = None
) -> list[Recipe]:
    """One recipe per alternative of `edits`; `file` is "container.suffix", `codecs` "video+sound"."""
    container, suffix = file.split(".")
    video, sound = codecs.split("+")
    return [
        Recipe(
            container=container,
            suffix=suffix,
            video=video,
            sound=sound,
            edits=frozenset(words.split()) - {"plain"},
            options=options,
            muxing=muxing or {},
        )
        for words in edits.split("|")
    ]


RECIPES: tuple[Recipe, ...] = (
    *_clips("mp4.mp4", "libx264+aac", _B, "plain|silent|vfr|turned|late_sound|late_picture|offset|cut|gap"),
    *_clips("mp4.mp4", "libx264+aac", _B, "cut silent|late_picture silent|offset silent"),
    *_clips("mp4.mp4", "libx264+aac", _NO_B, "plain|silent|vfr|turned|late_sound|late_picture|offset|cut|gap"),
    *_clips("mp4.mp4", "libx264+aac", {**_NO_B, "x264-params": "intra-refresh=1"}),
    *_clips("mp4.mp4", "libx264+aac", {**_NO_B, "tune": "zerolatency", "x264-params": "slices=4"}),
    *_clips("mp4.mp4", "libx264+aac", {"bf": "3", "g": "25", "x264-params": "open-gop=1"}),
    *_clips("mp4.mp4", "libx264+aac", {"bf": "3", "g": "25", "flags": "+ildct+ilme"}),
    *_clips("mp4.mp4", "libx264+aac", {"bf": "8", "g": "250", "x264-params": "b-pyramid=normal:ref=8"}, "plain|vfr"),
    *_clips(
        "mp4.mp4", "libx264+aac", {"bf": "3", "g": "12", "x264-params": "b-pyramid=strict"}, "plain|vfr|late_picture"
    ),
    *_clips("mp4.mp4", "libx264+aac", _NO_B, muxing=_FRAGMENTS),
    *_clips("mp4.mp4", "libx264+aac", _B, muxing=_FRAGMENTS),
    *_clips("mp4.mp4", "libx264+aac", _B, muxing={"movflags": "faststart"}),
    *_clips("mp4.mp4", "libx264+aac", _B, muxing={"use_editlist": "0"}),
    *_clips("mp4.mp4", "libx264+libopus", _B),
    *_clips("mp4.mp4", "libx264+libmp3lame", _B),
    *_clips("mp4.mp4", "mpeg4+aac", _B, "plain|cut|late_sound"),
    *_clips("mp4.mp4", "mpeg4+aac", _NO_B),
    *_clips("mp4.mp4", "libx265+aac", _HEVC, "plain|cut"),
    *_clips("mp4.mp4", "libsvtav1+aac", _AV1),
    *_clips("mp4.mp4", "libvpx-vp9+aac", _VPX),
    *_clips("mp4.mp4", "mjpeg+aac", {}),
    *_clips("mov.mov", "libx264+aac", _B, "plain|turned|late_sound|cut"),
    *_clips("mov.mov", "prores_ks+pcm_s16le", {}),
    *_clips("mov.mov", "mjpeg+pcm_s16le", {}, "late_picture"),
    *_clips("3gp.3gp", "h263+aac", {}),
    *_clips("matroska.mkv", "libx264+aac", _B, "plain|vfr|turned|late_sound|late_picture|offset|gap|cut"),
    *_clips("matroska.mkv", "mpeg4+libmp3lame", _B),
    *_clips("matroska.mkv", "ffv1+flac", {}),
    *_clips("matroska.mkv", "mpeg2video+ac3", _B),
    *_clips("matroska.mkv", "libx265+libopus", _HEVC),
    *_clips("webm.webm", "libvpx+libopus", _VPX, "plain|late_sound|vfr"),
    *_clips("webm.webm", "libvpx-vp9+libopus", _VPX, "plain|late_picture"),
    *_clips("webm.webm", "libsvtav1+libopus", _AV1),
    *_clips("avi.avi", "libx264+libmp3lame", _B),
    *_clips("avi.avi", "mpeg4+libmp3lame", _B, "plain|silent"),
    *_clips("avi.avi", "mpeg4+pcm_s16le", _NO_B),
    *_clips("avi.avi", "mjpeg+pcm_s16le", {}),
    # Moved until nothing lies before zero, it would begin with an empty frame.
    *_clips("avi.avi", "msmpeg4+libmp3lame", {}, muxing={"avoid_negative_ts": "disabled"}),
    *_clips("mpegts.ts", "libx264+aac", _B, "plain|silent|late_sound|late_picture|offset|gap|vfr|cut"),
    *_clips("mpegts.ts", "mpeg2video+mp2", _B),
    *_clips("mpegts.ts", "libx265+ac3", _HEVC),
    *_clips("mpeg.mpg", "mpeg1video+mp2", _B, "plain|late_sound"),
    *_clips("vob.mpg", "mpeg2video+mp2", _B, "plain|silent"),
    *_clips("asf.wmv", "wmv2+wmav2", {}, "plain|late_sound|silent"),
    *_clips("asf.wmv", "msmpeg4+libmp3lame", {}),
    *_clips("flv.flv", "libx264+aac", _B, "plain|late_sound|vfr|cut"),
    *_clips("flv.flv", "flv+libmp3lame", {}),
    *_clips("nut.nut", "mpeg4+libmp3lame", _B),
    *_clips("mxf.mxf", "mpeg2video+pcm_s16le", _B, "silent"),
    *_clips("ivf.ivf", "libvpx+none", _VPX, "silent"),
    *_clips("h264.h264", "libx264+none", _B, "silent"),
    *_clips("hevc.hevc", "libx265+none", _HEVC, "silent"),
    *_clips("m4v.m4v", "mpeg4+none", _B, "silent"),
    *_clips("mpeg2video.m2v", "mpeg2video+none", _B, "silent"),
    *(
        recipe
        for name in ("gif", "png", "webp", "avif")
        for recipe in _clips(f"picture.{name}", f"{name}+none", {}, "vfr silent")
    ),
)
