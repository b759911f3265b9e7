"""Content hashes are read from the index only for the very file that was hashed."""

import errno
import hashlib
import logging
import os
import time

import pytest

from lightning_mmrl.data.media import hashes
from lightning_mmrl.data.media.hashes import HashIndex
from lightning_mmrl.data.media.opened import MediaFile, open_media
from lightning_mmrl.files import take_missing


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """As in a new process, after any time of change."""
    monkeypatch.setattr(hashes, "_known", {})
    monkeypatch.setattr(hashes, "RACY_S", 0.0)


@pytest.fixture
def read(monkeypatch):
    """Names of the files whose content was read."""
    names, real = [], MediaFile.sha256
    monkeypatch.setattr(MediaFile, "sha256", lambda file: names.append(file.path.name) or real(file))
    return names


def hashed(path, folder):
    """The hash in a process that knows only the index."""
    hashes._known.clear()
    with open_media(path) as file:
        return HashIndex(folder / "index").sha256(file)


def test_a_restarted_run_reads_no_file_again(tmp_path, read):
    (tmp_path / "a.mp4").write_bytes(b"content")
    (tmp_path / "b \n\u00e9.mp4").write_bytes(b"other")
    for _ in range(3):
        assert hashed(tmp_path / "a.mp4", tmp_path) == hashlib.sha256(b"content").hexdigest()
        assert hashed(tmp_path / "b \n\u00e9.mp4", tmp_path) == hashlib.sha256(b"other").hexdigest()
    assert read == ["a.mp4", "b \n\u00e9.mp4"]
    assert len((tmp_path / "index").read_bytes().splitlines()) == 2


def test_a_changed_file_is_read_again_also_with_its_old_times(tmp_path, read):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"content")
    hashed(path, tmp_path)
    kept = path.stat()
    time.sleep(0.02)  # a tick of the clock by which file systems tell times apart is at most 10 ms
    path.write_bytes(b"Content")
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert hashed(path, tmp_path) == hashlib.sha256(b"Content").hexdigest()
    (tmp_path / "new").write_bytes(b"another")
    (tmp_path / "new").replace(path)
    assert hashed(path, tmp_path) == hashlib.sha256(b"another").hexdigest()
    assert len(read) == 3


def test_a_file_that_changed_just_now_is_not_indexed(tmp_path, monkeypatch, read):
    monkeypatch.setattr(hashes, "RACY_S", 2.0)
    path = tmp_path / "a.mp4"
    path.write_bytes(b"content")
    hashed(path, tmp_path)
    assert not (tmp_path / "index").exists()
    now_ns = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + 3 * 10**9)
    hashed(path, tmp_path)
    hashed(path, tmp_path)
    assert read == ["a.mp4", "a.mp4"]


def test_damaged_lines_are_left_out_and_told_once(tmp_path, caplog, read):
    for name in ("a", "b", "c"):
        (tmp_path / name).write_bytes(name.encode())
        hashed(tmp_path / name, tmp_path)
    lines = (tmp_path / "index").read_bytes().splitlines(keepends=True)
    place = lines[1].index(b" ") + 5
    wrong = bytes([lines[1][place] ^ 1])
    spoiled = lines[1][:place] + (wrong if wrong in b"0123456789abcdef" else b"0") + lines[1][place + 1 :]
    (tmp_path / "index").write_bytes(lines[0] + spoiled + lines[2][:-9])
    index = HashIndex(tmp_path / "index")
    hashes._known.clear()
    read.clear()
    with caplog.at_level(logging.WARNING):
        for name in ("a", "b", "c"):
            with open_media(tmp_path / name) as file:
                assert index.sha256(file) == hashlib.sha256(name.encode()).hexdigest()
    assert read == ["b", "c"]
    (record,) = caplog.records
    assert record.message.startswith("2 lines of")
    # The line that was cut does not spoil the ones after it.
    read.clear()
    for name in ("a", "b", "c"):
        assert hashed(tmp_path / name, tmp_path) == hashlib.sha256(name.encode()).hexdigest()
    assert read == []


def test_a_disk_that_refuses_the_index_costs_a_warning(tmp_path, caplog, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "a").write_bytes(b"a")
    monkeypatch.setattr(os, "write", refuse)
    with caplog.at_level(logging.WARNING):
        assert hashed(tmp_path / "a", tmp_path) == hashlib.sha256(b"a").hexdigest()
    (record,) = caplog.records
    assert "content hashes of media cannot be written" in record.message
    (missing,) = take_missing()
    assert "no space is left on the disk" in missing
