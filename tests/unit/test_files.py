"""A write that the disk refuses leaves what was there, nothing half-written, and one sentence."""

import errno
import logging
import os

import pytest

from lightning_mmrl.errors import DiskError, OutOfMemoryError, StageError
from lightning_mmrl.files import dispensable, folder_beside, read_json, take_missing, write_pieces, write_whole, writing


@pytest.mark.parametrize("content", [b"", b"{", b'"\xff"', b"[" * 100_000, b'{"a":' * 100_000])
def test_json_of_strangers_is_read_or_refused_by_its_name(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(b'{"a": [1]}')
    assert read_json(path, "restore it") == {"a": [1]}
    path.write_bytes(content)
    with pytest.raises(StageError, match=rf"{path} is damaged \(.*\); restore it"):
        read_json(path, "restore it")
    path.unlink()
    with pytest.raises(StageError, match=rf"{path} cannot be read \(No such file or directory\); restore it"):
        read_json(path, "restore it")


def refusing(code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("shared", [False, True])
def test_a_refused_write_leaves_what_was_there(tmp_path, monkeypatch, call, code, shared):
    path = tmp_path / "manifest.json"
    write_whole(path, "old")
    monkeypatch.setattr(os, call, refusing(code))
    with pytest.raises(DiskError, match=r"manifest.json: .*disk.*; ") as caught:
        write_whole(path, "new", shared=shared)
    assert isinstance(caught.value, OSError)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_is_cut_off_leaves_what_was_there(tmp_path):
    """A name that leads to a full disk."""
    path = tmp_path / "manifest.json"
    write_whole(path, "old")
    (tmp_path / "manifest.json.tmp").symlink_to("/dev/full")
    with pytest.raises(DiskError, match="no space is left on the disk"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_piece_that_cannot_be_made_leaves_what_was_there(tmp_path):
    path = tmp_path / "train.jsonl"
    write_pieces(path, iter([b"one\n", b"two\n"]))

    def pieces():
        yield b"three\n" * 100_000
        raise StageError("no fourth line")

    with pytest.raises(StageError, match="no fourth line"):
        write_pieces(path, pieces())
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("train.jsonl", "one\ntwo\n")]


def test_a_file_that_a_killed_process_left_is_replaced(tmp_path):
    (tmp_path / "a.json.tmp").write_text("cut o")
    write_whole(tmp_path / "a.json", b"new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.json", "new")]


def test_files_have_the_mode_that_others_have(tmp_path):
    """The manifest and the seal of a handoff are for whoever may read the folder."""
    (tmp_path / "plain").write_text("")
    write_whole(tmp_path / "whole", "")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_failed_folder_gives_its_space_back(tmp_path):
    def export():
        with folder_beside(tmp_path / "handoff") as folder:
            (folder / "model.safetensors").write_bytes(bytes(9))
            raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        export()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_user_beside_the_target_stays(tmp_path):
    (tmp_path / "shared.tmp").mkdir()
    (tmp_path / "shared.tmp" / "notes").write_text("mine")
    with folder_beside(tmp_path / "shared") as folder:
        os.replace(folder, tmp_path / "shared")
    assert (tmp_path / "shared.tmp" / "notes").read_text() == "mine"


def test_a_folder_that_a_killed_process_left_is_emptied(tmp_path):
    (tmp_path / ".handoff.mmrl-partial").mkdir()
    (tmp_path / ".handoff.mmrl-partial" / "model.safetensors").write_text("cut o")
    with folder_beside(tmp_path / "handoff") as folder:
        assert list(folder.iterdir()) == []


def test_an_error_that_is_no_disk_s_stays(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("a")
    with pytest.raises(MemoryError), writing(tmp_path):
        raise MemoryError
    with pytest.raises(OutOfMemoryError), writing(tmp_path):
        raise OutOfMemoryError("x")


def test_what_can_be_done_without_is_said_once_and_counted(tmp_path, caplog):
    for number in range(4):
        with caplog.at_level(logging.WARNING), dispensable("rollout tables", tmp_path):
            if number != 2:
                raise OSError(errno.ENOSPC, "x")
    assert caplog.messages == [
        f"rollout tables cannot be written to {tmp_path} (no space is left on the disk); the run goes on without them"
    ]
    assert take_missing() == [f"3 rollout tables are missing in {tmp_path} (no space is left on the disk)"]
    assert take_missing() == []


def test_a_mistake_of_the_program_is_no_refusal(tmp_path):
    with pytest.raises(ZeroDivisionError), dispensable("rollout tables", tmp_path):
        _ = 1 / 0
    assert take_missing() == []
