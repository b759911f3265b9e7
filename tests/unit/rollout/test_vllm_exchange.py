"""The folder that weights go through: what the server takes them from."""

import os
import pickle

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.vllm import exchange
from lightning_mmrl.rollout.vllm.exchange import HostBuffer, opened, stored_weights, write_files

OWNER = os.getuid()


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "weights"
    made.mkdir(mode=0o700)
    write_files([("a", torch.ones(2))], made, HostBuffer([8]))
    return made


def read(folder, owner=OWNER):
    with opened(folder, owner) as held:
        return {name: tensor.tolist() for name, tensor in stored_weights(held)}


def test_what_the_trainer_wrote_is_read(folder):
    assert read(folder) == {"a": [1.0, 1.0]}


class Allocations(TorchDispatchMode):
    """Counts tensors whose memory is new, each by its address at the time."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {each.untyped_storage().data_ptr() for each in tree_leaves(args) if isinstance(each, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() not in given:
                self.sizes.append(each.untyped_storage().nbytes())
        return result


TIED = torch.arange(6.0)
MIXED = [
    ("matrix", torch.arange(12.0).view(3, 4).t()),  # does not lie row by row
    ("half", torch.arange(5.0).bfloat16()),
    ("whole", torch.tensor(7)),
    ("tied", TIED),
    ("other name", TIED),
    ("empty", torch.ones(0)),
]


@pytest.mark.parametrize(("limit", "files"), [(2**30, 1), (160, 2), (1, 6)])
def test_a_buffer_is_allocated_once_and_every_push_passes_through_it(tmp_path, monkeypatch, limit, files):
    monkeypatch.setattr(exchange, "FILE_BYTES", limit)
    buffer = HostBuffer([each.nbytes for _, each in MIXED])
    for push in range(3):
        folder = tmp_path / str(push)
        folder.mkdir()
        changed = [(name, tensor + push) for name, tensor in MIXED]
        with Allocations() as made:
            write_files(changed, folder, buffer)
        assert made.sizes == ([] if push else [buffer.num_bytes])
        assert len(list(folder.iterdir())) == files
        found = dict(stored_weights(folder))
        assert found.keys() == dict(MIXED).keys()
        for name, tensor in changed:
            assert torch.equal(found[name], tensor)
            assert found[name].dtype == tensor.dtype


def test_control_a_copy_of_each_weight_is_an_allocation():
    with Allocations() as made:
        for _, tensor in MIXED[:3]:
            tensor.to("cpu", copy=True)
    assert len(made.sizes) == 3


def test_weights_of_cuda_pass_through_pinned_memory_and_are_awaited_once_for_each_file(tmp_path, monkeypatch):
    """On the stand-in, which has no pinned memory: what is asked for is noted."""
    asked, waits = [], []

    def allocated(num_bytes, *, pinned):
        asked.append((num_bytes, pinned))
        return torch.empty(num_bytes, dtype=torch.uint8)

    monkeypatch.setattr(exchange, "_allocated", allocated)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: True)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(1))
    weights = [(name, torch.arange(4.0)) for name in "abc"]
    monkeypatch.setattr(exchange, "FILE_BYTES", 128)  # two of them, aligned
    buffer = HostBuffer([16, 16, 16])
    for push in range(2):
        (tmp_path / str(push)).mkdir()
        write_files(weights, tmp_path / str(push), buffer)
    assert asked == [(128, True)]
    assert len(waits) == 2 * 2


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o720, 0o702, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(folder, mode):
    folder.chmod(mode)
    with pytest.raises(RolloutError, match=f"has mode {mode:03o}, so other users can write to it"):
        read(folder)


def test_a_folder_of_another_user_is_refused(folder):
    with pytest.raises(RolloutError, match=f"belongs to user {OWNER}, and the trainer wrote as {OWNER + 1}"):
        read(folder, OWNER + 1)


def test_a_link_a_file_and_a_folder_that_is_not_there_are_refused(folder, tmp_path):
    link, file = tmp_path / "link", tmp_path / "file"
    link.symlink_to(folder)
    file.write_text("")
    for path in (link, file, tmp_path / "none", "nu\0ll"):
        with pytest.raises(RolloutError, match=r"is no folder that the server can read .*that both sides see"):
            read(path)


def test_a_folder_that_is_put_in_its_place_meanwhile_is_not_read(folder, tmp_path):
    with opened(folder, OWNER) as held:
        folder.rename(tmp_path / "away")
        folder.mkdir()
        save_file({"evil": torch.zeros(1)}, folder / "0.safetensors")
        assert [name for name, _ in stored_weights(held)] == ["a"]


class Payload:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark):
        self._mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self._mark),)


def test_a_pickle_never_runs(folder, tmp_path):
    mark = tmp_path / "mark"
    for name in ("model.bin", "model.pt", "model.ckpt", "0.pkl"):
        (folder / name).write_bytes(pickle.dumps(Payload(mark)))
    assert read(folder) == {"a": [1.0, 1.0]}
    (folder / "z.safetensors").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(SafetensorError):
        read(folder)
    assert not mark.exists()
