import errno
import hashlib
import logging
import multiprocessing
import os
import pickle
import random
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_mmrl.data.media import cache
from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.cache_folder import entry_path, stored_files
from lightning_mmrl.data.media.hashes import HashIndex
from lightning_mmrl.data.media.opened import of_path
from lightning_mmrl.errors import DiskError
from lightning_mmrl.files import take_missing
from lightning_mmrl.settings.data import FRAME_KEYS, MediaSettings
from lightning_mmrl.types.records import MediaRef

KEY = "ab" * 32
REF = MediaRef(kind="video", path="a.mp4")


@of_path
def media_key(file, ref, settings, encoder):
    return cache.media_key(file, ref, settings, encoder, HashIndex(file.path.with_name("hashes")))


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


def test_an_entry_that_is_gone_is_a_miss(tmp_path):
    cache = MediaCache(tmp_path)
    assert cache.get(KEY) is None
    cache.put(KEY, {"pixels": torch.ones(2)})
    assert KEY in cache
    [path] = tmp_path.rglob("*.media")
    path.unlink()
    assert cache.get(KEY) is None
    assert KEY not in cache


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: os.truncate(path, 10),
        lambda path: os.truncate(path, 40),
        flip,
        lambda path: path.write_bytes(b"x" * 99),
    ],
)
def test_a_damaged_entry_is_dropped_with_a_warning_and_stored_anew(spoil, tmp_path, caplog):
    """A crash of the machine may leave one; no sample may be left out for it."""
    cache = MediaCache(tmp_path)
    cache.put(KEY, {"pixels": torch.arange(99)})
    [path] = tmp_path.rglob("*.media")
    spoil(path)
    assert cache.get(KEY) is None
    assert f"{tmp_path} had a damaged entry" in caplog.text
    assert KEY not in cache
    cache.put(KEY, {"pixels": torch.arange(99)})
    assert torch.equal(cache.get(KEY)["pixels"], torch.arange(99))


def test_a_disk_that_cannot_be_read_is_no_damage(tmp_path, monkeypatch):
    cache = MediaCache(tmp_path)
    cache.put(KEY, {"pixels": torch.arange(99)})

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("lightning_mmrl.data.media.cache.unpacked", fail)
    with pytest.raises(DiskError, match="Input/output error"):
        cache.get(KEY)
    assert KEY in cache


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


def test_the_key_is_as_before_where_no_key_of_frames_is_set(clip):
    """Media that were cached before there were such keys are found."""
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
    """A cache on a disk that will refuse to write."""
    return MediaCache(tmp_path / "cache")


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


def key_of(number):
    return f"{number:064x}"


def filled(folder, num_bytes, used_s):
    """A cache with entries 1, 2, ..., each a file of the given size that was last used at a time."""
    for number, when in enumerate(used_s, start=1):
        path = entry_path(folder, key_of(number))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(num_bytes))
        os.utime(path, (when, when))


def left(folder):
    return {int(file.path.stem, 16) for file in stored_files(folder)}


def test_the_least_recently_used_entries_leave_for_a_new_one(tmp_path):
    now = time.time()
    filled(tmp_path, 1000, [now - 500, now - 900, now - 700, now - 600])
    cache = MediaCache(tmp_path, limit_gb=5000 / 1e9)
    cache.put(key_of(9), {"noise": torch.randint(0, 256, (1000,), dtype=torch.uint8)})
    # 7/8 of 5000 bytes hold the new entry of about 1100 bytes and three old ones.
    assert left(tmp_path) == {1, 3, 4, 9}
    cache.put(key_of(10), {"noise": torch.randint(0, 256, (1000,), dtype=torch.uint8)})
    assert left(tmp_path) == {1, 4, 9, 10}


def test_without_a_limit_nothing_leaves(tmp_path):
    filled(tmp_path, 1000, [1.0, 2.0])
    MediaCache(tmp_path).put(key_of(9), {"noise": torch.zeros(10)})
    assert left(tmp_path) == {1, 2, 9}


def test_a_read_renews_the_last_use_but_not_at_every_read(tmp_path):
    cache = MediaCache(tmp_path)
    cache.put(KEY, {"pixels": torch.zeros(2)})
    path = entry_path(tmp_path, KEY)
    for age_s, renewed in ((500, True), (30, False)):
        when = time.time() - age_s
        os.utime(path, (when, when))
        assert cache.get(KEY) is not None
        assert (path.stat().st_mtime > when + 1) == renewed


def test_what_is_in_use_stays_and_media_without_room_are_decoded_again(tmp_path, caplog):
    """A working set larger than the limit: nothing is evicted that is being worked on, and the limit holds."""
    cache = MediaCache(tmp_path, limit_gb=5000 / 1e9)
    with caplog.at_level(logging.WARNING):
        for number in range(20):
            cache.put(key_of(number), {"noise": torch.randint(0, 256, (1000,), dtype=torch.uint8)})
    assert left(tmp_path) == {0, 1, 2}
    assert cache.get(key_of(0)) is not None
    assert cache.get(key_of(7)) is None
    (record,) = caplog.records
    assert "is full of entries in use" in record.message
    assert "raise data.media.cache_limit_gb" in record.message


@pytest.mark.parametrize("recent_s", [0.0, 120.0])
def test_a_cache_that_is_too_small_for_what_is_read_again_says_once_how_large_it_must_be(
    tmp_path, caplog, monkeypatch, recent_s
):
    """Whether entries are evicted by each other or find no room."""
    monkeypatch.setattr(cache, "RECENT_S", recent_s)
    entry = {"noise": torch.randint(0, 256, (10**4,), dtype=torch.uint8)}
    small = MediaCache(tmp_path / "small", limit_gb=0.001)
    for passed in range(3):
        for number in range(120):
            if small.get(key_of(number)) is None:
                small.put(key_of(number), entry)
        told = [record.message for record in caplog.records if "too small" in record.message]
        assert len(told) == min(passed, 1)
    [message] = told
    assert "data.media.cache_limit_gb=0.001" in message
    assert message.endswith("set that key to at least 0.002.")  # 1.2 MB, of which seven eighths stay
    caplog.clear()
    enough = MediaCache(tmp_path / "enough", limit_gb=0.002)
    for _ in range(2):
        for number in range(120):
            if enough.get(key_of(number)) is None:
                enough.put(key_of(number), entry)
    assert [record.message for record in caplog.records] == []


def test_an_entry_that_was_damaged_is_no_sign_of_a_small_cache(tmp_path, caplog):
    found = MediaCache(tmp_path, limit_gb=1.0)
    for _ in range(2):
        found.put(key_of(1), {"noise": torch.zeros(1000)})
        next(tmp_path.rglob("*.media")).write_bytes(b"damaged")
        assert found.get(key_of(1)) is None
    assert "too small" not in caplog.text


def test_the_folder_is_not_counted_at_every_put(tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(cache, "stored_files", lambda folder: counted.append(1) or stored_files(folder))
    limited = MediaCache(tmp_path, limit_gb=1e6 / 1e9)
    for number in range(100):
        limited.put(key_of(number), {"noise": torch.randint(0, 256, (1000,), dtype=torch.uint8)})
    # About 110,000 bytes, counted again after every 128th of a million.
    assert 10 <= len(counted) <= 20
    assert len(left(tmp_path)) == 100


def fill_and_read(folder, seed):
    """Puts and gets entries of other processes too, in a folder with room for a few; whatever is found is right."""
    cache.RECENT_S = 0.0
    numbers, mine = random.Random(seed), MediaCache(Path(folder), limit_gb=30_000 / 1e9)
    hits = 0
    for _ in range(60):
        number = numbers.randrange(40)
        wanted = torch.full((1000,), number).mul_(torch.arange(1000)).to(torch.uint8)
        found = mine.get(key_of(number))
        if found is None:
            mine.put(key_of(number), {"pixels": wanted, "more": torch.randn(200, generator=torch.Generator())})
        else:
            hits += 1
            assert torch.equal(found["pixels"], wanted)
    return hits


def test_processes_that_write_read_and_evict_at_once_only_find_what_was_put(tmp_path):
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        hits = list(pool.map(fill_and_read, [tmp_path] * 3, range(3)))
    assert sum(hits) > 0
    assert sum(file.num_bytes for file in stored_files(tmp_path)) <= 30_000
    assert len(left(tmp_path)) < 40


def test_a_copy_in_another_process_shares_the_folder_and_holds_nothing(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    original = MediaCache(tmp_path, limit_gb=1.0)
    original.put(KEY, {"pixels": torch.zeros(2)})
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        original.put(key_of(1), {"pixels": torch.zeros(2)})
    copy = pickle.loads(pickle.dumps(original))
    assert KEY in copy
    assert key_of(1) in original
    assert key_of(1) not in copy
