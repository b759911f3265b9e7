"""A file that names other files is no medium: it could read what lies outside of media_root."""

import av
import pytest
from clips import tone, write_grey, write_wav

from lightning_mmrl.data.media import containers
from lightning_mmrl.data.media.audio import decode_audio
from lightning_mmrl.data.media.guard import DecodeTask, decode
from lightning_mmrl.data.media.opened import open_media
from lightning_mmrl.data.media.video import decode_video
from lightning_mmrl.errors import MediaError
from lightning_mmrl.types.media import MediaSettings
from lightning_mmrl.types.records import MediaRef

TIMES = [index / 10 for index in range(10)]


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "outside").mkdir()
    return write_grey(tmp_path / "outside" / "secret.ts", TIMES)


def playlists(secret):
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1.0,\n{}\n#EXT-X-ENDLIST\n"
    return {
        "absolute.m3u8": hls.format(f"file://{secret}"),
        "relative.m3u8": hls.format("../outside/secret.ts"),
        "hidden.mp4": hls.format("../outside/secret.ts"),
        "list.ffconcat": f"ffconcat version 1.0\nfile {secret}\n",
        "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 9 RTP/AVP 96\n",
    }


@pytest.mark.parametrize("name", ["absolute.m3u8", "relative.m3u8", "hidden.mp4", "list.ffconcat", "session.sdp"])
@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_playlist_is_refused(tmp_path, secret, name, kind):
    path = tmp_path / "set" / name
    path.parent.mkdir()
    path.write_text(playlists(secret)[name])
    task = DecodeTask(path=path, ref=MediaRef(kind=kind, path=name), settings=MediaSettings())
    with pytest.raises(MediaError, match=f"{name}: (video|sound) cannot be decoded .*; re-encode or remove it"):
        decode(task)


def test_without_the_list_of_formats_a_playlist_reads_outside_of_its_folder(tmp_path, secret):
    """The danger is real: this is what FFmpeg does by itself."""
    path = tmp_path / "list.m3u8"
    path.write_text(playlists(secret)["absolute.m3u8"])
    with av.open(str(path)) as container:
        assert len(list(container.decode(video=0))) == len(TIMES)
    for decoder in (decode_video, decode_audio):
        with pytest.raises(MediaError, match="cannot be decoded"):
            decoder(path, MediaRef(kind="video", path="list.m3u8"), MediaSettings())


def test_usual_files_are_opened_again_and_again(tmp_path):
    paths = [write_grey(tmp_path / name, TIMES) for name in ("a.mp4", "a.mkv", "a.avi", "a.mov", "a.ts", "a.flv")]
    paths.append(write_grey(tmp_path / "a.webm", TIMES, codec="libvpx"))
    paths += [
        write_wav(tmp_path / f"a{suffix}", tone(440, 0.2, 16_000), 16_000)
        for suffix in (".wav", ".flac", ".ogg", ".aiff")
    ]
    for path in paths:
        with open_media(path) as file:
            for _ in range(2):
                with containers.open_container(file, MediaSettings()) as container:
                    assert container.streams.video or container.streams.audio
