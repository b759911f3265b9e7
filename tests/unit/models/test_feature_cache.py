"""The cache of tower outputs: what it finds is what was put, whatever happens to its files meanwhile."""

import errno
import logging
import multiprocessing
import os
import time
from pathlib import Path

import cached_features
import pytest
from cached_features import PRECISION, ROWS, features, same

from lightning_mmrl.files import take_missing
from lightning_mmrl.models import feature_cache
from lightning_mmrl.models.feature_cache import FeatureCache
from lightning_mmrl.settings.model import FeatureCacheSettings

LARGE = 2**30


def cache(directory, max_bytes=LARGE, towers="towers"):
    return FeatureCache(FeatureCacheSettings(directory=directory, max_bytes=max_bytes), towers=towers)


def entries(directory):
    return sorted(path for path in directory.rglob("*") if path.is_file())


def size_of_entry(directory):
    cache(directory).put("size", PRECISION, features())
    [path] = entries(directory)
    size = path.stat().st_size
    path.unlink()
    return size


def test_what_is_put_is_found_by_any_cache_of_the_folder(tmp_path):
    cache(tmp_path / "new").put("a", PRECISION, features())
    found = cache(tmp_path / "new").get("a", PRECISION, ROWS)
    assert same(found, features())
    found["image"].add_(1)  # nobody else's memory
    assert same(cache(tmp_path / "new").get("a", PRECISION, ROWS), features())


def test_media_towers_and_precision_each_have_their_own_entry(tmp_path):
    cache(tmp_path).put("a", PRECISION, features())
    assert cache(tmp_path).get("b", PRECISION, ROWS) is None
    assert cache(tmp_path).get("a", "autocast torch.bfloat16", ROWS) is None
    assert cache(tmp_path, towers="others").get("a", PRECISION, ROWS) is None


def test_features_that_are_not_finite_are_neither_stored_nor_found(tmp_path, monkeypatch):
    broken = features()
    broken["image"][0, 0] = float("nan")
    cache(tmp_path).put("a", PRECISION, broken)
    assert entries(tmp_path) == []
    with monkeypatch.context() as earlier:
        earlier.setattr(feature_cache, "all_finite", lambda tensors: True)
        cache(tmp_path).put("a", PRECISION, broken)
    assert len(entries(tmp_path)) == 1
    assert cache(tmp_path).get("a", PRECISION, ROWS) is None
    assert entries(tmp_path) == []


def test_every_damaged_byte_is_noticed(tmp_path):
    cache(tmp_path).put("a", PRECISION, features())
    [path] = entries(tmp_path)
    content = path.read_bytes()
    for place in range(len(content)):
        damaged = content[:place] + bytes([content[place] ^ 0x21]) + content[place + 1 :]
        found = feature_cache._opened(damaged, ROWS)
        # A blank of the header may become another blank: nothing that is read.
        assert found is None or same(found, features()), place
        assert feature_cache._opened(content[:place], ROWS) is None
    assert feature_cache._opened(content, ROWS) is not None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: os.truncate(path, 100),
        lambda path: os.truncate(path, 0),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"),
        lambda path: path.write_bytes(os.urandom(300)),
    ],
)
def test_a_damaged_entry_is_dropped_with_a_warning_and_stored_anew(spoil, tmp_path, caplog):
    cache(tmp_path).put("a", PRECISION, features())
    [path] = entries(tmp_path)
    spoil(path)
    assert cache(tmp_path).get("a", PRECISION, ROWS) is None
    assert f"Cached features {path} are damaged; they are dropped" in caplog.text
    assert not path.exists()
    cache(tmp_path).put("a", PRECISION, features())
    assert same(cache(tmp_path).get("a", PRECISION, ROWS), features())


def test_an_entry_with_other_rows_than_the_prompt_needs_is_not_used(tmp_path, caplog):
    cache(tmp_path).put("a", PRECISION, features())
    assert cache(tmp_path).get("a", PRECISION, {"image": 4, "audio": 3}) is None
    assert "damaged" in caplog.text


def test_what_was_read_least_recently_leaves_first(tmp_path):
    size = size_of_entry(tmp_path)
    store = cache(tmp_path, max_bytes=int(4.6 * size))  # seven eighths of it hold four entries
    for number in range(4):
        store.put(str(number), PRECISION, features(number))
        [os.utime(path, ns=(1, path.stat().st_mtime_ns - 10**9)) for path in entries(tmp_path)]
    assert same(store.get("0", PRECISION, ROWS), features(0))
    store.put("4", PRECISION, features(4))
    present = [number for number in range(5) if store.get(str(number), PRECISION, ROWS) is not None]
    assert present == [0, 2, 3, 4]


@pytest.mark.parametrize("capacity", [1.2, 3.0, 10.0, 100.0])
def test_the_bound_holds_after_every_entry(capacity, tmp_path):
    size = size_of_entry(tmp_path)
    stores = [cache(tmp_path, max_bytes=int(capacity * size)) for _ in range(2)]
    most = 0
    for number in range(int(1.5 * capacity) + 5):
        stores[number % 2].put(str(number), PRECISION, features(number))
        most = max(most, sum(path.stat().st_size for path in entries(tmp_path)))
    assert 0.5 * capacity * size < most <= capacity * size


def test_an_entry_larger_than_the_cache_is_not_stored(tmp_path, caplog):
    store = cache(tmp_path, max_bytes=100)
    for _ in range(2):
        store.put("a", PRECISION, features())
    assert entries(tmp_path) == []
    assert caplog.text.count("raise max_bytes") == 1


def test_files_of_dead_writers_are_removed_and_those_of_live_ones_are_not(tmp_path):
    size = size_of_entry(tmp_path)
    (tmp_path / "ab").mkdir()
    dead, alive = tmp_path / "ab" / "dead.tmp", tmp_path / "ab" / "alive.tmp"
    for path, age in ((dead, 2 * feature_cache.ABANDONED_S), (alive, feature_cache.ABANDONED_S / 2)):
        path.write_bytes(b"half")
        os.utime(path, (0, time.time() - age))
    store = cache(tmp_path, max_bytes=int(2.4 * size))
    for number in range(4):
        store.put(str(number), PRECISION, features(number))
    assert len(entries(tmp_path)) == 3  # two entries and a file that is being written
    assert alive.exists()
    assert not dead.exists()


@pytest.mark.parametrize("where", [(os, "replace"), (Path, "open")], ids=["rename", "open"])
def test_a_full_disk_is_warned_of_once_and_reading_goes_on(where, tmp_path, caplog, monkeypatch):
    store = cache(tmp_path)
    store.put("a", PRECISION, features())

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*where, full)
    for key in "bcd":
        store.put(key, PRECISION, features())
    monkeypatch.undo()
    [warning] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "no space is left on the disk; free some space there); the run goes on without" in warning.getMessage()
    assert len(entries(tmp_path)) == 1
    assert same(store.get("a", PRECISION, ROWS), features())
    store.put("e", PRECISION, features())
    assert len(entries(tmp_path)) == 1
    [missing] = take_missing()
    assert missing.startswith(f"4 entries of the feature cache are missing in {tmp_path} (")


def test_a_folder_that_cannot_be_made_or_read_costs_one_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    store = cache(tmp_path / "file" / "below")
    for key in "ab":
        store.put(key, PRECISION, features())
        assert store.get(key, PRECISION, ROWS) is None
    assert caplog.text.count("cannot be written") == 1
    assert caplog.text.count("cannot be read") == 1
    assert take_missing()[0].startswith("2 entries of the feature cache are missing in ")


def test_entries_that_vanish_while_others_are_counted_do_no_harm(tmp_path, monkeypatch):
    size = size_of_entry(tmp_path)
    store = cache(tmp_path, max_bytes=3 * size)
    for number in range(2):
        store.put(str(number), PRECISION, features(number))
    real, vanished = feature_cache.Path.stat, []

    def vanishing(path, **how):
        if path.suffix == ".safetensors" and not vanished:
            vanished.append(path)
            os.unlink(path)
        return real(path, **how)

    monkeypatch.setattr(feature_cache.Path, "stat", vanishing)
    store.put("2", PRECISION, features(2))
    monkeypatch.undo()
    assert len(vanished) == 1
    assert same(store.get("2", PRECISION, ROWS), features(2))


@pytest.mark.slow
def test_processes_that_write_read_and_evict_at_once_only_find_what_was_put(tmp_path):
    size = size_of_entry(tmp_path)
    max_bytes = 8 * size
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        results = pool.starmap(cached_features.hammer, [(tmp_path, max_bytes, seed) for seed in range(3)])
    assert [records for records, _ in results] == [[]] * 3
    assert min(hits for _, hits in results) > 20
    left = entries(tmp_path)
    assert (
        sum(path.stat().st_size for path in left) <= max_bytes + 3 * size
    )  # each may write one that the others do not see
    assert all(path.suffix == ".safetensors" for path in left)
