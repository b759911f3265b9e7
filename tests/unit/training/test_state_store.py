"""States on disk: whole or not there, whatever happens while they are written."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap

import pytest

from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.settings.run import StateSettings
from lightning_mmrl.training import state_store
from lightning_mmrl.training.state_store import LATEST, MANIFEST, StateStore


def save(store, step, content="weights"):
    folder = store.begin(step)
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "shard").write_text(f"{content} {step}")
    (folder / "generators-00000.pt").write_text("generators")
    return store.commit(step, {"world_size": 1})


def content(state):
    return (state.folder / "checkpoint" / "shard").read_text()


def test_a_store_without_a_state_has_none(tmp_path):
    assert StateStore(tmp_path / "state").latest() is None


def test_the_newest_state_is_found_with_its_facts(tmp_path):
    store = StateStore(tmp_path / "state")
    save(store, 9)
    save(store, 10)
    found = store.latest()
    assert (found.step, content(found), dict(found.facts)) == (10, "weights 10", {"world_size": 1})
    assert (tmp_path / "state" / LATEST).read_text() == found.folder.name


def test_only_the_newest_states_are_kept(tmp_path):
    store = StateStore(tmp_path / "state", settings=StateSettings(keep=2))
    for step in (1, 2, 3, 4):
        save(store, step)
    assert [place.name for place in sorted((tmp_path / "state").glob("step-*"))] == ["step-00000003", "step-00000004"]


def test_a_state_of_a_step_that_is_saved_again_is_replaced(tmp_path):
    store = StateStore(tmp_path / "state")
    save(store, 3, "first")
    save(store, 3, "second")
    assert content(store.latest()) == "second 3"


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"state\.keep is 0; it must be at least 1"):
        StateStore(tmp_path, settings=StateSettings(keep=0))


@pytest.mark.parametrize("damage", ["cut", "flip", "remove", "manifest", "version"])
def test_a_damaged_state_is_passed_over_for_the_one_before(tmp_path, caplog, damage):
    store = StateStore(tmp_path / "state")
    save(store, 1)
    newest = save(store, 2)
    shard, manifest = newest / "checkpoint" / "shard", newest / MANIFEST
    if damage == "cut":
        shard.write_text("wei")
    elif damage == "flip":
        shard.write_text("weighty 2"[: len("weights 2")])
    elif damage == "remove":
        shard.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text()[:40])
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "version": 99}))
    assert content(store.latest()) == "weights 1"
    assert "step-00000002 is damaged and is passed over" in caplog.text


def test_without_any_whole_state_the_error_says_what_is_wrong_with_each(tmp_path):
    store = StateStore(tmp_path / "state")
    for step in (1, 2):
        (save(store, step) / "generators-00000.pt").write_text("gene")
    with pytest.raises(StageError, match=r"00002 \(generators-00000.pt has 4 bytes, 10 were written\); step-0000"):
        store.latest()


def test_what_was_left_half_written_is_ignored_and_removed(tmp_path):
    store = StateStore(tmp_path / "state")
    save(store, 1)
    (store.begin(2) / "checkpoint").write_text("half")
    assert store.latest().step == 1
    save(store, 3)
    assert not list((tmp_path / "state").glob("*.partial"))


@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_leaves_the_states_before(tmp_path, monkeypatch, call, code):
    store = StateStore(tmp_path / "state")
    save(store, 1)

    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(state_store.Path if call == "rename" else os, call, refuse)
        with pytest.raises(OSError, match=rf"{os.strerror(code)}|LATEST: "):
            save(store, 2)
    # A state is one from its rename on; `LATEST` and the removal of older ones come behind it.
    assert store.latest().step == (2 if call == "replace" else 1)
    save(store, 3)
    assert store.latest().step == 3


def test_what_a_state_rests_on_is_on_disk_before_the_state_is_complete(tmp_path):
    found = []

    def before():
        found.append(store.newest_step())
        if len(found) == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    store = StateStore(tmp_path / "state", before=before)
    save(store, 1)
    save(store, 2)
    with pytest.raises(OSError, match="Input/output"):
        save(store, 3)
    assert found == [None, 1, 2]
    assert store.latest().step == 2


DIES = """
    import os, signal, sys
    from pathlib import Path
    from lightning_mmrl.training import state_store

    left = int(sys.argv[2])
    def dying(function):
        def call(*args, **kwargs):
            global left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)
        return call

    for name in ("fsync", "replace", "open"):
        setattr(os, name, dying(getattr(os, name)))
    for name in ("rename", "mkdir", "write_text"):
        setattr(state_store.Path, name, dying(getattr(Path, name)))
    state_store.shutil.rmtree = dying(state_store.shutil.rmtree)
    store = state_store.StateStore(Path(sys.argv[1]), settings=state_store.StateSettings(keep=1))
    for step in (2, 3):
        folder = store.begin(step)
        (folder / "checkpoint").write_text(f"weights {step}")
        store.commit(step, {})
"""


def test_a_process_that_dies_at_any_call_to_the_disk_leaves_a_whole_state(tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(textwrap.dedent(DIES))
    steps = []
    for calls in range(0, 200, 3):
        folder = tmp_path / f"state-{calls}"
        store = StateStore(folder, settings=StateSettings(keep=1))
        save(store, 1)
        ended = subprocess.run([sys.executable, script, folder, str(calls)], timeout=60, check=False)
        steps.append(store.latest().step)
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
    assert steps == sorted(steps)
    assert set(steps) == {1, 2, 3}
    assert ended.returncode == 0


def test_a_state_that_the_check_refuses_is_passed_over_by_name(tmp_path, caplog):
    def check(state):
        if state.step > 2:
            raise ValueError("weights are not finite")

    store = StateStore(tmp_path / "state", settings=StateSettings(keep=9), check=check)
    for step in (1, 2, 3, 4):
        save(store, step)
    assert store.latest().step == 2
    assert [record.args[0].name for record in caplog.records] == ["step-00000004", "step-00000003"]
    assert "weights are not finite" in caplog.text


@pytest.mark.parametrize("keep", [1, 2])
def test_a_state_that_was_passed_over_takes_the_place_of_no_good_one(tmp_path, keep):
    """The stage goes on before it: it is gone with the next save, and what is kept is good."""
    store = StateStore(tmp_path / "state", settings=StateSettings(keep=keep))
    save(store, 10)
    save(StateStore(tmp_path / "state", settings=StateSettings(keep=9)), 20)
    (tmp_path / "state" / "step-00000020" / "checkpoint" / "shard").write_text("damaged")
    assert store.latest().step == 10
    save(store, 11)
    expected = ["step-00000010", "step-00000011"][-keep:]
    assert [place.name for place in sorted((tmp_path / "state").glob("step-*"))] == expected
    assert store.latest().step == 11


STRAY = ["generators-00009.pt", "checkpoint/.metadata", ".hidden", "folder/file", "extra.pt"]


@pytest.mark.parametrize("name", STRAY)
def test_a_file_that_was_not_written_with_a_state_makes_it_none(tmp_path, caplog, name):
    """Some files are read if they are there, such as the generators of one more rank."""
    store = StateStore(tmp_path)
    save(store, 1, "one")
    stray = save(store, 2, "two") / name
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("x")
    assert store.latest().step == 1
    assert f"{name} was not written with it" in caplog.text


def test_a_link_is_no_file_of_a_state(tmp_path, caplog):
    store = StateStore(tmp_path)
    save(store, 1, "one")
    path = save(store, 2, "two") / "generators-00000.pt"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert store.latest().step == 1
    assert f"{path.name} is missing" in caplog.text
