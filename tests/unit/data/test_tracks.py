"""Tracks that FFmpeg has no decoder for, and titles in any encoding, do not stand in the way of the others."""

import av
import numpy as np
import pytest

from lightning_mmrl.data.media.audio import decode_audio
from lightning_mmrl.data.media.video import decode_video
from lightning_mmrl.data.synthetic.video_file import write_clip
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef


@pytest.mark.parametrize(
    ("code", "lost", "sentence"),
    [
        (b"mp4a", "audio", r"clip\.mp4: no audio track; remove the <audio> tag"),
        (b"avc1", "video", r"clip\.mp4: no video track; remove the <video> tag"),
    ],
)
def test_a_track_of_an_unknown_codec_counts_as_none(code, lost, sentence, tmp_path):
    path, settings = tmp_path / "clip.mp4", MediaSettings(num_frames=2)
    frames = np.stack([np.full((64, 64, 3), level, dtype=np.uint8) for level in (40, 90, 140, 190)])
    write_clip(path, frames, 10, np.zeros(6_400, dtype=np.float32), 16_000)
    decoders = {"video": decode_video, "audio": decode_audio}
    whole = {kind: decode(path, MediaRef(kind=kind, path="clip.mp4"), settings) for kind, decode in decoders.items()}
    head, found, tail = path.read_bytes().rpartition(code)
    assert found
    path.write_bytes(head + b"zzzz" + tail.replace(b"esds", b"zzzz"))  # `esds` names the codec of mp4a again
    with pytest.raises(MediaError, match=sentence):
        decoders.pop(lost)(path, MediaRef(kind=lost, path="clip.mp4"), settings)
    for kind, decode in decoders.items():
        left = decode(path, MediaRef(kind=kind, path="clip.mp4"), settings)
        name = "frames" if kind == "video" else "waveform"
        np.testing.assert_array_equal(getattr(left, name), getattr(whole[kind], name))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "mp3"])
def test_a_title_in_another_encoding_does_not_stand_in_the_way(suffix, tmp_path):
    path, settings = tmp_path / f"clip.{suffix}", MediaSettings(num_frames=2)
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLE"
        sound = container.add_stream("libmp3lame" if suffix in ("avi", "mp3") else "aac", rate=16_000)
        sound.layout = "mono"
        block = av.AudioFrame.from_ndarray(np.full((1, 32_000), 0.2, dtype=np.float32), "fltp", "mono")
        block.rate = 16_000
        container.mux(sound.encode(block))
        container.mux(sound.encode(None))
    ref = MediaRef(kind="audio", path=path.name)
    whole = decode_audio(path, ref, settings)
    content = path.read_bytes()
    assert b"TITLE" in content
    path.write_bytes(content.replace(b"TITLE", "\u6807\u9898".encode("gbk") + b"\xff"))
    with pytest.raises(UnicodeDecodeError):  # what PyAV does by itself
        av.open(str(path))
    np.testing.assert_array_equal(decode_audio(path, ref, settings).waveform, whole.waveform)
