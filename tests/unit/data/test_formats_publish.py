"""A conversion that was killed: the next one clears what it left, unless its process lives."""

import pytest
from filelock import FileLock

from lightning_mmrl.data.formats.publish import Publication


def publish(folder):
    made = Publication(folder, folder, copy=False, overwrite=True)
    made.publish(manifests={"train": [{"id": "a"}]}, labels=["happy"], problems=[], clips={}, record={})


@pytest.mark.parametrize("locked", [False, True], ids=["killed before its lock", "killed"])
def test_what_a_killed_conversion_left_is_removed(tmp_path, locked):
    (tmp_path / ".partial-0a1b2c3d" / "media").mkdir(parents=True)
    if locked:
        (tmp_path / ".partial-0a1b2c3d" / ".lock").touch()
    publish(tmp_path)
    assert not list(tmp_path.glob(".partial-*"))
    assert (tmp_path / "train.jsonl").is_file()


def test_what_a_living_conversion_writes_stays(tmp_path):
    (tmp_path / ".partial-0a1b2c3d").mkdir()
    with FileLock(tmp_path / ".partial-0a1b2c3d" / ".lock"):
        publish(tmp_path)
        assert [path.name for path in tmp_path.glob(".partial-*")] == [".partial-0a1b2c3d"]
