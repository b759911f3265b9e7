"""Which launcher starts the processes of a run; tests/integration/test_several_ranks.py starts torchrun itself."""

from types import SimpleNamespace

import pytest

from lightning_mmrl.cli.launch import on_all_ranks
from lightning_mmrl.errors import ConfigError

VARIABLES = ("TORCHELASTIC_RUN_ID", "WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID")
SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0"}


@pytest.fixture
def start(monkeypatch):
    """Starts a task in an environment and returns the exit code and the tasks that ran."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def run(environ, *, devices=1, num_nodes=1, arguments=()):
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        ran = []
        config = SimpleNamespace(trainer=SimpleNamespace(devices=devices, num_nodes=num_nodes))
        return on_all_ranks(ran.append, config, "train", arguments), len(ran)

    return run


def test_one_device_needs_no_launcher(start):
    assert start({}) == (0, 1)


def test_a_job_script_may_run_a_command_on_one_device(start):
    assert start(SLURM) == (0, 1)


@pytest.mark.parametrize("environ", [{"TORCHELASTIC_RUN_ID": "7", "WORLD_SIZE": "4"}, SLURM])
def test_a_started_process_is_one_of_the_ranks(start, environ):
    assert start(environ, devices=2, num_nodes=2) == (0, 1)


@pytest.mark.parametrize(
    ("environ", "devices", "message"),
    [
        ({"TORCHELASTIC_RUN_ID": "7", "WORLD_SIZE": "4"}, 1, "torchrun started 4 processes, and trainer.devices x"),
        (SLURM, 8, "SLURM started 4 processes, and trainer.devices x trainer.num_nodes is 8 x 1"),
    ],
)
def test_another_number_of_processes_is_refused(start, environ, devices, message):
    with pytest.raises(ConfigError, match=message):
        start(environ, devices=devices)


def test_other_nodes_are_not_started_from_here(start):
    with pytest.raises(ConfigError, match="use torchrun or srun on every node"):
        start({}, devices=8, num_nodes=2)


def test_a_sweep_starts_no_ranks(start):
    with pytest.raises(ConfigError, match="run the jobs singly"):
        start({}, devices=2, arguments=["--multirun", "seed=0,1"])
