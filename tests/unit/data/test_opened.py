"""The file that was checked is the file that is read, though names lead elsewhere between a check and a read."""

import os
import shutil
import time

import pytest
from clips import tone, write_grey, write_wav

from lightning_mmrl.data.media import guard, video
from lightning_mmrl.data.media.audio import read_audio
from lightning_mmrl.data.media.cache import media_key
from lightning_mmrl.data.media.examine import examine, examine_tracks, held_kinds
from lightning_mmrl.data.media.guard import DecodeTask, decode
from lightning_mmrl.data.media.hashes import HashIndex
from lightning_mmrl.data.media.opened import open_media
from lightning_mmrl.data.media_files import resolve_media
from lightning_mmrl.errors import MediaError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.types.records import MediaRef

REF = MediaRef(kind="video", path="a.mp4")
TIMES = [index / 10 for index in range(10)]
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:1.0,\n{}\n#EXT-X-ENDLIST\n"


@pytest.fixture
def outside(tmp_path):
    """A clip of other pictures than all others here."""
    (tmp_path / "outside").mkdir()
    write_grey(tmp_path / "outside" / "a.ts", TIMES, size=96)
    return write_grey(tmp_path / "outside" / "a.mp4", TIMES, size=96)


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "set" / "clips").mkdir(parents=True)
    return write_grey(tmp_path / "set" / "clips" / "a.mp4", TIMES)


def task_of(clip, kind="video", **how):
    root = clip.parents[1]
    path = resolve_media("clips/a.mp4", root, "here")  # the check of a manifest
    return DecodeTask(
        path=path, ref=MediaRef(kind=kind, path="clips/a.mp4"), settings=MediaSettings(), root=root, **how
    )


def link(clip, outside):
    clip.unlink()
    clip.symlink_to(outside)


def relative_link(clip, outside):
    clip.unlink()
    clip.symlink_to("../../outside/a.mp4")


def chain_of_links(clip, outside):
    clip.unlink()
    (clip.parent / "b.mp4").symlink_to(outside)
    clip.symlink_to("b.mp4")


def linked_folder(clip, outside):
    shutil.rmtree(clip.parent)
    clip.parent.symlink_to(outside.parent)


def moved_folder(clip, outside):
    clip.parent.rename(clip.parents[2] / "moved")
    (clip.parents[2] / "moved" / "a.mp4").unlink()
    shutil.copy(outside, clip.parents[2] / "moved" / "a.mp4")
    clip.parent.symlink_to(clip.parents[2] / "moved")


def link_by_descriptor(clip, outside):
    clip.unlink()
    clip.symlink_to(f"/proc/{os.getpid()}/cwd/../../../../../../../../{outside}")


SWAPS = [link, relative_link, chain_of_links, linked_folder, moved_folder, link_by_descriptor]


@pytest.mark.parametrize("act", [decode, examine, examine_tracks, held_kinds])
@pytest.mark.parametrize("swap", SWAPS)
def test_a_name_that_leads_outside_after_the_check_is_refused(swap, act, clip, outside):
    task = task_of(clip)
    swap(clip, outside)
    with pytest.raises(MediaError, match=r"a\.mp4: leads out of media_root .*; copy the file below it"):
        act(task)


def pipe(clip):
    os.mkfifo(clip)


def device(clip):
    clip.symlink_to("/dev/zero")


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    ("put", "words"),
    [
        (pipe, "is no regular file"),
        (device, "is no regular file"),
        (os.mkdir, "is no regular file"),
        (str, "cannot be"),
    ],
)
def test_what_is_no_file_any_more_is_not_waited_for(put, words, clip):
    task = task_of(clip)
    clip.unlink()
    put(clip)
    with pytest.raises(MediaError, match=rf"a\.mp4: {words}"):
        decode(task)


def test_a_swap_between_two_readers_is_not_seen_by_the_second(clip, outside, monkeypatch):
    """A second decoder would open the name anew, and the FFmpeg of decord follows playlists."""
    by_decord = video._by_decord

    def swapped(file, *rest):
        other = clip.with_name("b.mp4")
        other.write_text(HLS.format(outside.with_suffix(".ts")))
        os.replace(other, clip)
        return by_decord(file, *rest)

    monkeypatch.setattr(video, "_by_decord", swapped)
    if video.HAS_DECORD:
        found = video.decode_video(clip, MediaRef(kind="video", path="a.mp4"), MediaSettings())
        assert found.frames.shape[1:3] == (64, 64)
    with pytest.raises(MediaError, match=r"it is a list that names other files"):
        decode(task_of(clip))


def test_the_file_must_be_the_one_that_the_cache_key_is_of(clip):
    with open_media(clip) as file:
        seen = file.identity
    assert decode(task_of(clip, seen=seen)).frames.shape[1:3] == (64, 64)
    write_grey(clip.with_name("b.mp4"), TIMES, size=96).replace(clip)
    with pytest.raises(MediaError, match=r"a\.mp4: it has changed since it was looked at; run again"):
        decode(task_of(clip, seen=seen))


def test_a_file_that_is_written_in_place_is_another_also_with_its_old_times(clip):
    """Its size is the same, too; and a hash of what it was is not taken for its own."""
    kept = clip.stat()
    with open_media(clip) as file:
        seen, before = file.identity, media_key(file, REF, MediaSettings(), "e", HashIndex(clip.parent / "hashes"))
    content = bytearray(clip.read_bytes())
    content[-1] ^= 1
    time.sleep(0.02)  # file systems tell times apart that are a tick of the kernel's clock apart, 10 ms at most
    clip.write_bytes(content)
    os.utime(clip, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert (clip.stat().st_mtime_ns, clip.stat().st_ino) == (kept.st_mtime_ns, kept.st_ino)
    with open_media(clip) as file:
        assert media_key(file, REF, MediaSettings(), "e", HashIndex(clip.parent / "hashes")) != before
    with pytest.raises(MediaError, match=r"a\.mp4: it has changed since it was looked at; run again"):
        decode(task_of(clip, seen=seen))


@pytest.mark.parametrize(("times", "ends"), [(1, "read"), (9, "refused")])
def test_a_file_that_is_written_to_is_read_again_and_at_last_refused(tmp_path, monkeypatch, times, ends):
    path = write_wav(tmp_path / "a.wav", tone(440, 0.2, 8000), 8000)
    writes = []

    def disturbed(file, *rest):
        if len(writes) < times:
            writes.append(os.utime(path, (0, len(writes))))
        return read_audio(file, *rest)

    monkeypatch.setitem(guard.READERS, "audio", disturbed)
    task = DecodeTask(path=path, ref=MediaRef(kind="audio", path="a.wav"), settings=MediaSettings())
    if ends == "read":
        assert decode(task).duration_s == pytest.approx(0.2)
    else:
        with pytest.raises(MediaError, match=r"a\.wav: it changes while it is read; run again when nothing writes"):
            decode(task)


def test_readers_do_not_move_each_other(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(200)))
    with open_media(tmp_path / "a") as file, file.reader() as first, file.reader() as second:
        first.seek(-10, os.SEEK_END)
        assert second.read(3) == bytes([0, 1, 2])
        assert first.read() == bytes(range(190, 200))
        assert (second.tell(), file.head(2), file.size) == (3, bytes([0, 1]), 200)
        with pytest.raises(OSError, match="seek"):
            second.seek(-1)


def test_links_within_the_root_and_a_root_that_is_a_link_are_followed(clip, tmp_path):
    (tmp_path / "alias").symlink_to(clip.parents[1])
    (clip.parent / "b.mp4").symlink_to("a.mp4")
    task = DecodeTask(
        path=tmp_path / "alias" / "clips" / "b.mp4",
        ref=MediaRef(kind="video", path="b"),
        settings=MediaSettings(),
        root=tmp_path / "alias",
    )
    assert decode(task).frames.shape[1:3] == (64, 64)
