"""Modes by purpose: what a run and its caches leave follows the umask; who may not read a file is told whose it is."""

import os
import shutil
import stat
import tempfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from lightning_mmrl.app.run_folder import locked
from lightning_mmrl.cli import main as entry
from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.saved import saved_config
from lightning_mmrl.curriculum.artifacts import SEAL, sealed, write_artifact
from lightning_mmrl.curriculum.handoff import REQUIRED, check_handoff
from lightning_mmrl.curriculum.manifest import Manifest
from lightning_mmrl.data.media import hashes
from lightning_mmrl.data.media.cache import MediaCache
from lightning_mmrl.data.media.hashes import HashIndex
from lightning_mmrl.data.media.opened import open_media
from lightning_mmrl.errors import DataError
from lightning_mmrl.files import write_json
from lightning_mmrl.machine import refusal
from lightning_mmrl.models.feature_cache import FeatureCache
from lightning_mmrl.settings.model import FeatureCacheSettings
from lightning_mmrl.tracking.journal import Entry, Journal
from lightning_mmrl.tracking.jsonl import append_lines
from lightning_mmrl.tracking.leftovers import note_store
from lightning_mmrl.training.state_store import StateStore

TENSORS = {"x": torch.zeros(2)}
ENTRY = Entry(run_id="run", operation="tags", payload={"a": "b"})


def export(folder):
    save_file(TENSORS, folder / "model.safetensors")
    for name in REQUIRED:
        (folder / name).write_text("{}")


def save_state(folder):
    store = StateStore(folder)
    save_file(TENSORS, store.begin(1) / "model.safetensors")
    store.commit(1, {})


def index_hash(folder):
    clip = folder.with_name("clip.mp4")
    clip.write_bytes(b"content")
    with open_media(clip) as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(hashes, "RACY_S", 0.0)
        HashIndex(folder / "hashes").sha256(file)


KEY = "ab" * 32
WRITERS = {
    "json": lambda folder: write_json(folder / "a.json", {}),
    "manifest": lambda folder: Manifest().write(folder),
    "media cache": lambda folder: MediaCache(folder).put(KEY, TENSORS),
    "content hashes": index_hash,
    "feature cache": lambda folder: FeatureCache(
        FeatureCacheSettings(directory=folder, max_bytes=2**20), towers="t"
    ).put("key", "bf16", TENSORS),
    "handoff and its seal": lambda folder: write_artifact(folder / "handoff", export, {}),
    "state": save_state,
    "journal": lambda folder: Journal(folder / "run.jsonl").append([ENTRY]),
    "refused entries": lambda folder: Journal(folder / "run.jsonl").keep_rejected([(ENTRY, "no")]),
    "metrics": lambda folder: append_lines(folder / "metrics.jsonl", [{}]),
    "store of a spool": lambda folder: note_store(folder, "http://host", "runs"),
}


@pytest.fixture(params=[0o022, 0o002, 0o027, 0o077], ids=lambda mask: f"{mask:03o}")
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_run_leaves_follows_the_umask(tmp_path, umask, writer):
    WRITERS[writer](tmp_path)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in files} == {oct(0o666 & ~umask)}


def test_a_sealed_handoff_holds_the_weights_that_were_looked_at(tmp_path):
    write_artifact(tmp_path / "handoff", export, {})
    assert {path.name for path in (tmp_path / "handoff").iterdir()} == {SEAL, "model.safetensors", *REQUIRED}


@pytest.fixture
def another_user():
    """Root becomes nobody for a while; another user is one that a mode of 000 holds off."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


@pytest.fixture
def open_folder():
    """A folder that everybody may enter; pytest's own are 0700."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def private():
    """A cache entry that only its owner may read, in a folder that everybody may enter; pytest's own are 0700."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    MediaCache(folder).put(KEY, TENSORS)
    path = folder / "ab" / f"{KEY}.media"
    path.chmod(0o000)
    yield path
    path.parent.chmod(0o755)
    shutil.rmtree(folder)


def test_a_cache_entry_of_another_user_is_not_called_damaged(private, another_user):
    with pytest.raises(DataError) as error:
        MediaCache(private.parents[1]).get(KEY)
    text = str(error.value)
    assert str(private) in text
    assert "has mode 0000" in text
    assert "g+r" in text
    assert "delete" not in text


def test_a_feature_cache_of_another_user_says_so_and_computes_anew(private, another_user, caplog, monkeypatch):
    cache = FeatureCache(FeatureCacheSettings(directory=private.parents[1], max_bytes=2**20), towers="t")
    monkeypatch.setattr(FeatureCache, "_path", lambda self, key, precision: private)
    assert cache.get("key", "bf16", {"x": 2}) is None
    assert "has mode 0000" in caplog.text


def test_whose_a_file_is_is_said(private, another_user):
    with pytest.raises(PermissionError) as error:
        private.read_bytes()
    assert f"{private} belongs to " in refusal(error.value).problem


def test_the_folder_that_bars_the_way_is_named(private, request):
    private.parent.chmod(0o000)
    request.getfixturevalue("another_user")
    with pytest.raises(PermissionError) as error:
        private.read_bytes()
    assert f"{private}: the folder {private.parent} belongs to " in refusal(error.value).problem


def save_config(folder):
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(asdict(compose(["experiment=quickstart"]))))


def save_handoff(folder):
    write_artifact(folder / "handoff", export, {})


def lock(folder):
    with locked(folder / ".lock"):
        pass


READERS = {
    "manifest.json": (lambda folder: Manifest().write(folder), Manifest.read),
    "config.yaml": (save_config, lambda folder: saved_config(folder, [])),
    "handoff/mmrl.json": (save_handoff, lambda folder: sealed(folder / "handoff")),
    "handoff/model.safetensors": (save_handoff, lambda folder: check_handoff(folder / "handoff")),
    "step-00000001/MANIFEST.json": (save_state, lambda folder: StateStore(folder).latest()),
    "step-00000001/model.safetensors": (save_state, lambda folder: StateStore(folder).latest()),
    ".lock": (lock, lock),
}


@pytest.mark.parametrize("name", READERS)
def test_any_file_that_may_not_be_read_ends_a_command_in_one_sentence(open_folder, request, monkeypatch, capsys, name):
    write, read = READERS[name]
    write(open_folder)
    read(open_folder)
    path = open_folder / name
    path.touch()  # a lock may be gone
    path.chmod(0o000)
    request.getfixturevalue("another_user")
    monkeypatch.setattr("lightning_mmrl.cli.plan.run", lambda arguments: read(open_folder))
    assert entry.main(["plan"]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert f"{path} belongs to " in text
    assert "has mode 0000" in text
    assert "nothing is damaged" in text
