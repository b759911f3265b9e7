"""The folder that weights go through: what the server takes them from."""

import os
import pickle

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.vllm.exchange import opened, stored_weights, write_files

OWNER = os.getuid()


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "weights"
    made.mkdir(mode=0o700)
    write_files([("a", torch.ones(2))], made)
    return made


def read(folder, owner=OWNER):
    with opened(folder, owner) as held:
        return {name: tensor.tolist() for name, tensor in stored_weights(held)}


def test_what_the_trainer_wrote_is_read(folder):
    assert read(folder) == {"a": [1.0, 1.0]}


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
