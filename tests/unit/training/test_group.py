"""A run of one process, and what its cluster environment is."""

import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from lightning_mmrl.errors import StageError
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.training.group import RankGroup, cluster_environment, joined
from lightning_mmrl.training.interruption import Interrupted, Interruption
from lightning_mmrl.training.strategies import TrainerSettings


def test_a_process_by_itself_leads_and_waits_for_nobody():
    with joined(TrainerSettings(), Interruption()) as group:
        assert (group.rank, group.world_size, group.leads, group.ranks) == (0, 1, True, ALONE)
        assert group.broadcast("mine") == "mine"
        with group.first():
            passed = True
    assert passed


class Told(RankGroup):
    """A rank that hears what rank 0 says of its own way through a block."""

    def __init__(self, rank, said=""):
        super().__init__()
        self.rank, self.said = rank, said

    def broadcast(self, item):
        if self.rank == 0:
            self.said = item
        return self.said


def test_rank_0_says_how_it_went():
    group = Told(0)
    with group.first():
        assert group.said == ""
    with pytest.raises(ValueError, match="bad clip"), group.first():
        raise ValueError("bad clip")
    assert group.said == "ValueError('bad clip')"


def test_another_rank_ends_if_rank_0_failed():
    passed = []
    with pytest.raises(StageError, match="rank 1 ends because rank 0 failed: bad clip"), Told(1, "bad clip").first():
        passed.append("inside")
    assert not passed


def test_another_rank_is_interrupted_if_both_were():
    group = Told(1, "Interrupted('SIGTERM')")
    group.interruption.pending = 15
    with pytest.raises(Interrupted, match="SIGTERM"), group.first():
        pass


@pytest.mark.parametrize(
    ("environ", "devices", "kind"),
    [
        ({}, 1, LightningEnvironment),
        ({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}, 1, LightningEnvironment),
        ({"SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "8", "SLURM_PROCID": "0"}, 8, SLURMEnvironment),
        ({"TORCHELASTIC_RUN_ID": "1", "RANK": "0", "SLURM_NTASKS": "2"}, 8, TorchElasticEnvironment),
    ],
)
def test_ranks_are_read_from_whoever_started_them(monkeypatch, environ, devices, kind):
    for name in ("TORCHELASTIC_RUN_ID", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert type(cluster_environment(TrainerSettings(devices=devices))) is kind
