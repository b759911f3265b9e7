import errno
import hashlib
import os
from dataclasses import replace

import pytest
import torch

from lightning_mmrl.data.media import cache
from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.opened import of_path
from lightning_mmrl.errors import DataError, DiskError
from lightning_mmrl.files import take_missing
from lightning_mmrl.settings.data import FRAME_KEYS, MediaSettings
from lightning_mmrl.types.records import MediaRef

KEY = "ab" * 32
media_key = of_path(cache.media_key)
REF = MediaRef(kind="video", path="a.mp4")


@pytest.fixture
def clip(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"content")
    return tmp_path / "a.mp4"


def test_what_is_put_is_there_for_any_cache_of_the_folder(tmp_path):
    tensors = {"pixels": torch.randn(3, 2), "grid": torch.tensor([[1, 2, 3]])}
    assert KEY not in MediaCache(tmp_path)
    MediaCache(tmp_path).put(KEY, tensors)
    assert KEY in MediaCache(tmp_path)
    found = MediaCache(tmp_path).get(KEY)
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert found["grid"].dtype == torch.int64


def test_a_put_that_fails_leaves_nothing(tmp_path):
    cache = MediaCache(tmp_path)
    with pytest.raises(ValueError, match="contiguous"):
        cache.put(KEY, {"pixels": torch.randn(3, 2).t()})
    assert KEY not in cache
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("spoil", [lambda path: path.unlink(), lambda path: os.truncate(path, 10)])
def test_a_missing_or_damaged_entry_is_named(spoil, tmp_path):
    cache = MediaCache(tmp_path)
    cache.put(KEY, {"pixels": torch.ones(2)})
    [path] = tmp_path.rglob("*.safetensors")
    spoil(path)
    with pytest.raises(DataError, match=rf"{path.name} cannot be read .*; delete it and run again"):
        cache.get(KEY)


def test_the_key_is_of_all_that_decides_the_result(clip, tmp_path):
    def key(path=clip, ref=REF, settings=None, encoder="e"):
        return media_key(path, ref, settings or MediaSettings(), encoder)

    other = tmp_path / "other.mp4"
    other.write_bytes(b"Content")
    keys = {
        key(),
        key(path=other),
        key(ref=replace(REF, kind="audio")),
        key(ref=replace(REF, start_s=1.0)),
        key(ref=replace(REF, end_s=1.0)),
        key(settings=MediaSettings(num_frames=5)),
        key(settings=MediaSettings(max_pixels=8000)),
        key(encoder="f"),
        *(key(settings=MediaSettings(**{name: 4})) for name in FRAME_KEYS if name != "frame_rule"),
        key(settings=MediaSettings(frame_rule="qwen_vl_utils")),
    }
    assert len(keys) == 8 + len(FRAME_KEYS)


def test_the_key_is_as_before_where_no_key_of_frames_is_set(clip, monkeypatch):
    """Media that were cached before there were such keys are found."""
    monkeypatch.setattr(cache, "_hashes", {})
    known = ("max_bytes", "max_duration_s", "max_pixels", "num_frames", "sample_rate_hz")
    how = list(zip(known, (268_435_456, 600.0, 16_777_216, 8, 16_000), strict=True))
    content = hashlib.sha256(clip.read_bytes()).hexdigest()
    text = f"{content}/video/None/None/{how}/2/e"
    assert media_key(clip, REF, MediaSettings(), "e") == hashlib.sha256(text.encode()).hexdigest()


def test_the_key_is_of_the_content_and_not_of_the_name(clip, tmp_path):
    before = media_key(clip, REF, MediaSettings(), "e")
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    assert media_key(copy, replace(REF, path="copy.mp4"), MediaSettings(), "e") == before
    clip.write_bytes(b"other content")
    assert media_key(clip, REF, MediaSettings(), "e") != before


@pytest.fixture
def refusing(tmp_path):
    """A cache, and nothing known to be missing before."""
    take_missing()
    yield MediaCache(tmp_path / "cache")
    take_missing()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_what_the_disk_refuses_is_held_in_memory(refusing, monkeypatch, tmp_path, code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", refuse)
    tensors = {"pixels": torch.randn(3, 2)}
    refusing.put(KEY, tensors)
    assert KEY in refusing
    assert torch.equal(refusing.get(KEY)["pixels"], tensors["pixels"])
    assert KEY not in MediaCache(tmp_path / "cache")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    (missing,) = take_missing()
    assert missing.startswith(f"1 entries of the media cache are missing in {tmp_path / 'cache'} (")


def test_no_more_is_held_than_a_bound(refusing, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(cache, "MOST_HELD_BYTES", 3000)
    for number in range(2):
        refusing.put(f"{number}" * 64, {"pixels": torch.zeros(300)})
    with pytest.raises(DiskError, match=r"no space is left on the disk; .*, or set data.media.cache_dir"):
        refusing.put(KEY, {"pixels": torch.zeros(300)})
