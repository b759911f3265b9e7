"""A file that names other files is no medium: it could read what lies outside of media_root."""

import io
import struct
from pathlib import Path

import av
import numpy as np
import pytest
from clips import tone, write_grey, write_wav

from lightning_mmrl.data.media import containers, video
from lightning_mmrl.data.media.audio import decode_audio
from lightning_mmrl.data.media.boxes import is_plain_mp4
from lightning_mmrl.data.media.guard import DecodeTask, decode
from lightning_mmrl.data.media.opened import open_media
from lightning_mmrl.data.media.video import decode_video
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
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


OWN = TIMES[:5]


def tailed(head):
    """A list, and after it a broadcast of our own, so that a reader of either finds what it looks for."""

    def write(path, secret):
        own = write_grey(path.with_suffix(".ts"), OWN)
        path.write_bytes(head.format(secret).encode() + own.read_bytes())

    return write


def with_mp3(path, secret):
    sound = path.with_suffix(".mp3")
    with av.open(str(sound), "w") as output:
        stream = output.add_stream("libmp3lame", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(440, 1.0, 16_000)[None], "fltp", "mono")
        frame.rate = 16_000
        output.mux([*stream.encode(frame), *stream.encode(None)])
    path.write_bytes(HLS.format(secret).encode() + sound.read_bytes())


def with_mp4(path, secret):
    """Passes for MP4 in a program that reads sizes: the letters of the list are the size of a box of 591 MB."""
    own = write_grey(path.with_suffix(".own.mp4"), OWN)
    with path.open("wb") as file:
        file.write(HLS.format(secret).encode())
        file.seek(int.from_bytes(b"#EXT", "big"))
        file.write(own.read_bytes())


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1.0,\n{}\n#EXT-X-ENDLIST\n"
DASH = "<?xml version='1.0'?><MPD profiles='urn:mpeg:dash:profile:isoff-on-demand:2011'><BaseURL>{}</BaseURL></MPD>"
LISTS = {
    "hls with a broadcast": tailed(HLS),
    "hls after a mark of byte order": tailed("\ufeff" + HLS),
    "hls with mp3": with_mp3,
    "hls with mp4": with_mp4,
    "concat with a broadcast": tailed("ffconcat version 1.0\nfile {}\n"),
    "dash with a broadcast": tailed(DASH),
    "session with a broadcast": tailed("v=0\no=- 0 0 IN IP4 127.0.0.1\ns={}\nc=IN IP4 127.0.0.1\nt=0 0\n"),
    "smil with a broadcast": tailed("<smil><body><video src='{}'/></body></smil>\n"),
    "old reference with a broadcast": tailed("[Reference]\nRef1=file://{}\n"),
}


@pytest.mark.parametrize("kind", ["video", "audio"])
@pytest.mark.parametrize("write", LISTS.values(), ids=LISTS)
def test_a_list_that_goes_on_as_a_medium_never_leads_to_another_file(write, kind, secret, tmp_path):
    (tmp_path / "set").mkdir()
    path = tmp_path / "set" / "clip.mp4"
    write(path, secret)
    settings = MediaSettings(max_bytes=10**9)  # the largest is a hole on disk
    with pytest.raises(MediaError, match=r"clip\.mp4: "):
        decode(DecodeTask(path=path, ref=MediaRef(kind=kind, path="clip.mp4"), settings=settings))


def test_a_list_that_nothing_tells_from_a_medium_leads_nowhere(secret, tmp_path):
    """After an empty tag, as sounds begin with it, our own look at the first letters finds no list."""
    path = tmp_path / "clip.mp4"
    tailed("ID3\x04\0\0\0\0\0\0" + HLS)(path, secret)
    found = decode(DecodeTask(path=path, ref=MediaRef(kind="video", path="clip.mp4"), settings=MediaSettings()))
    assert found.duration_s == pytest.approx(0.5, abs=0.05)  # its own five frames, and not ten


@pytest.mark.parametrize(
    "name", ["http:x.mp4", "pipe:0", "concat:a.ts|b.ts", "subfile,,start,0,end,0,,:a.mp4", "a%03d.mp4", "file:a.mp4"]
)
def test_a_name_is_only_a_name(name, tmp_path, monkeypatch):
    """Also one that FFmpeg would take for a protocol or a pattern, given as it stands in the current folder."""
    monkeypatch.chdir(tmp_path)
    write_grey(tmp_path / "own.mp4", OWN).rename(tmp_path / name)
    for other in ("a.mp4", "a001.mp4"):
        write_grey(tmp_path / other, TIMES)
    for decoder in (video.decode_pyav, decode_video):
        found = decoder(Path(name), MediaRef(kind="video", path=name), MediaSettings())
        assert found.duration_s == pytest.approx(0.5, abs=0.01)  # ten frames last twice as long


def _elsewhere(content):
    """Says of the data of a track that they lie in another file."""
    at = content.index(b"url ") + 4
    return content[:at] + bytes(4) + content[at + 4 :]


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        (lambda content: content, True),
        (lambda content: content + struct.pack(">I4s", 8, b"free"), True),
        (_elsewhere, False),
        (lambda content: HLS.encode() + content, False),
        (lambda content: content + HLS.encode(), False),
        (lambda content: content[:-20], False),
        (lambda content: struct.pack(">I4s", 8, b"free") + content, False),
        (lambda content: content + struct.pack(">I4s", 8, b"MPD "), False),
        (lambda content: content + content[content.index(b"moov") - 4 :], False),
        (lambda content: struct.pack(">I4s", 8000, b"ftyp") + bytes(7992) + content, False),
        (lambda content: b"", False),
    ],
)
def test_decord_gets_nothing_but_plain_mp4(change, plain, tmp_path):
    path = write_grey(tmp_path / "a.mp4", TIMES)
    path.write_bytes(change(path.read_bytes()))
    with open_media(path) as file:
        assert is_plain_mp4(file) is plain


def transport_stream(sounds, numbers):
    """An MPEG-TS clip of noise with frames at `numbers` / 25 s, too large for FFmpeg to look through at the start."""
    file, noise = io.BytesIO(), np.random.default_rng(0)
    with av.open(file, "w", format="mpegts") as container:
        picture = container.add_stream("mpeg2video", rate=25)
        picture.width = picture.height = 256
        picture.pix_fmt, picture.bit_rate = "yuv420p", 40_000_000
        tracks = [container.add_stream("mp2", rate=16000, layout="mono") for _ in range(sounds)]
        for number in numbers:
            frame = av.VideoFrame.from_ndarray(noise.integers(0, 255, (256, 256, 3), dtype=np.uint8), format="rgb24")
            frame.pts = number
            container.mux(picture.encode(frame))
            for track in tracks:
                sound = av.AudioFrame.from_ndarray(np.zeros((1, 640), np.int16), format="s16", layout="mono")
                sound.rate, sound.pts = 16000, 640 * number
                container.mux(track.encode(sound))
        for track in (picture, *tracks):
            container.mux(track.encode(None))
    return file.getvalue()


def test_tracks_that_begin_within_a_file_do_not_disturb_those_that_are_read(tmp_path):
    path = tmp_path / "clip.ts"
    parts = [(1, range(100)), (4, range(100, 105)), (1, range(105, 205))]
    path.write_bytes(b"".join(transport_stream(sounds, numbers) for sounds, numbers in parts))
    with av.open(str(path)) as container:
        assert len(container.streams) == 2
        with pytest.raises(IndexError):  # PyAV by itself
            list(container.demux(container.streams.video[0]))
    with av.open(str(path)) as container:
        packets = [packet for packet in containers.packets_of(container, container.streams.video[0]) if packet.size]
        assert len(packets) == 205
    clip = decode(DecodeTask(path=path, ref=MediaRef(kind="video", path="clip.ts"), settings=MediaSettings()))
    assert clip.frames.shape[1:3] == (256, 256)
    sound = decode(DecodeTask(path=path, ref=MediaRef(kind="audio", path="clip.ts"), settings=MediaSettings()))
    assert sound.waveform.shape[-1] >= 4 * 16000
