"""States of strangers: their pickles run nothing, and a state that is not whole ends in a sentence."""

import os
import pickle
import runpy
import warnings
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata
from torch.distributed.checkpoint.state_dict_saver import save

from lightning_mmrl.errors import StageError
from lightning_mmrl.training.checkpoint_io import SnapshotIO
from lightning_mmrl.training.shards import REST, read_whole, stored_tensors

WEIGHT = torch.arange(8.0).reshape(4, 2)


@pytest.fixture
def state(tmp_path):
    folder = tmp_path / "checkpoint"
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.ones(4, 2, dtype=torch.bfloat16)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        save({"state_dict": {"a": WEIGHT}, "optimizer_states.0": {"a": moments}}, checkpoint_id=folder, no_dist=True)
    torch.save({"optimizer_states": [[{"params": ["a"], "lr": 0.1}]], "global_step": 3}, folder / REST)
    return folder


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def evil_file(folder: Path) -> Path:
    """A pickle in torch's own format that touches `marker` when it is unpickled."""
    torch.save(Calls(os.system, f"touch {folder / 'marker'}"), folder / "evil.pt")
    return folder / "evil.pt"


PAYLOADS = {
    "a command": lambda to: Calls(os.system, f"touch {to / 'marker'}"),
    "eval": lambda to: Calls(eval, f"open({str(to / 'marker')!r}, 'w')"),
    "exec": lambda to: Calls(exec, f"open({str(to / 'marker')!r}, 'w')"),
    "a call that makes a call": lambda to: Calls(partial(os.system, f"touch {to / 'marker'}")),
    "a method": lambda to: Calls(Path.touch, to / "marker"),
    "torch.load": lambda to: Calls(partial(torch.load, evil_file(to), weights_only=False)),
    "a pickle in a pickle": lambda to: Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {to / 'marker'}"))),
    "a script": lambda to: Calls(runpy.run_path, str(script(to))),
}


def script(folder: Path) -> Path:
    path = folder / "evil.py"
    path.write_text(f"open({str(folder / 'marker')!r}, 'w')")
    return path


def all_of(state):
    return [read_whole(state), list(stored_tensors(state))]


def test_a_state_is_read_as_it_was_written(state):
    whole, tensors = all_of(state)
    assert torch.equal(whole["state_dict"]["a"], WEIGHT)
    assert whole["optimizer_states"][0]["state"][0]["exp_avg"].dtype == torch.bfloat16
    assert sorted(name for name, _ in tensors) == ["a", "a exp_avg", "a step"]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_pickle_of_an_index_runs(state, payload, tmp_path):
    (state / ".metadata").write_bytes(pickle.dumps(PAYLOADS[payload](tmp_path)))
    with pytest.raises(StageError, match=r"\.metadata is not the index of a state \(it names .*; restore the state"):
        all_of(state)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_no_pickle_within_an_index_runs(state, payload, tmp_path):
    index = pickle.loads((state / ".metadata").read_bytes())
    index.storage_meta.modules = [PAYLOADS[payload](tmp_path)]
    (state / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(StageError, match="is not the index of a state"):
        all_of(state)
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("where", ["rest", "part", "file"])
def test_no_pickle_in_another_file_of_a_state_runs(state, payload, where, tmp_path):
    """Torch reads these with `weights_only`; here the refusal is one sentence."""
    place = state / (REST if where == "rest" else "__0_0.distcp")
    torch.save(PAYLOADS[payload](tmp_path), place)
    read = partial(SnapshotIO().load_checkpoint, place) if where == "file" else partial(all_of, state)
    with pytest.raises(StageError, match="restore the state"):
        read()
    assert not (tmp_path / "marker").exists()


def test_a_part_that_is_no_tensor_is_not_unpickled(state, tmp_path):
    """Torch reads parts that are declared as bytes without any restriction."""
    index = pickle.loads((state / ".metadata").read_bytes())
    index.state_dict_metadata["state_dict.a"] = BytesStorageMetadata()
    (state / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(StageError, match=r"it names torch\.distributed\.checkpoint\.metadata\.BytesStorageMetadata"):
        all_of(state)


def changed(state, change):
    index = pickle.loads((state / ".metadata").read_bytes())
    change(index)
    (state / ".metadata").write_bytes(pickle.dumps(index))


def elsewhere(index):
    for part in index.storage_data.values():
        part.relative_path = "../secret"


def larger(index):
    index.state_dict_metadata["state_dict.a"].size = torch.Size([2**40, 2])


def negative(index):
    index.state_dict_metadata["state_dict.a"].size = torch.Size([-4, 2])


def without_parts(index):
    index.storage_data = {}


def without_tensors(index):
    index.state_dict_metadata = None


def with_a_strange_path(index):
    index.planner_data["state_dict.a"] = (0, ["a"])


@pytest.mark.parametrize(
    "change",
    [elsewhere, larger, negative, without_parts, without_tensors, with_a_strange_path],
    ids=lambda f: f.__name__,
)
def test_an_index_that_no_save_writes_is_refused(state, change, tmp_path):
    (tmp_path / "secret").write_bytes((state / "__0_0.distcp").read_bytes())
    changed(state, change)
    with pytest.raises(StageError, match="is not the index of a state"):
        all_of(state)


def test_a_part_may_not_be_a_link(state, tmp_path):
    part = state / "__0_0.distcp"
    part.rename(tmp_path / "secret")
    part.symlink_to(tmp_path / "secret")
    with pytest.raises(StageError, match=r"a part lies in '__0_0\.distcp', which is no file of the state"):
        all_of(state)


@pytest.mark.parametrize(
    "content", [b"", b"\x80\x04", b"not a pickle", b"\x80\x04]q\x00h\x00a.", pickle.dumps({"a": 1})]
)
def test_a_damaged_index_is_one_sentence(state, content):
    (state / ".metadata").write_bytes(content)
    with pytest.raises(StageError, match="is not the index of a state"):
        all_of(state)


def test_a_pickle_sets_nothing_of_a_class_that_others_use(state):
    """BUILD sets attributes of whatever lies on its stack, a class too."""
    build = b"\x80\x02ctorch.distributed.checkpoint.metadata\nMetadata\nN}X\x05\x00\x00\x00extraK\x01s\x86b."
    (state / ".metadata").write_bytes(build)
    with pytest.raises(StageError, match="is not the index of a state"):
        all_of(state)
    assert "extra" not in vars(Metadata)
