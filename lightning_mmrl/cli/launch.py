"""Finds the processes that torchrun or SLURM started, or starts them on this machine."""

import os
from collections.abc import Callable, Mapping, Sequence

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.run import RunSettings

SIGNALS = "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1"
"""Signals that torchrun passes on to the ranks."""


def on_all_ranks(
    task: Callable[[RunSettings], None], config: RunSettings, command: str, arguments: Sequence[str]
) -> int:
    """Runs a task on every rank that the configuration asks for, and starts the ranks if no launcher did.

    Args:
        task: The work of one rank.
        config: The number of ranks is `trainer.devices` x `trainer.num_nodes`.
        command: The subcommand that each started rank runs; the subcommand calls this function again.
        arguments: The arguments of that subcommand.

    Returns:
        The exit code.

    Raises:
        ConfigError: The launcher started a different number of processes than configured, several nodes are configured
            without a launcher, or `--multirun` is given with several devices.
    """
    trainer = config.trainer
    world_size = trainer.devices * trainer.num_nodes
    launcher, started = started_processes(os.environ, world_size)
    if started is not None and started != world_size:
        raise ConfigError(
            f"{launcher} started {started} processes, and trainer.devices x trainer.num_nodes is {trainer.devices} x "
            f"{trainer.num_nodes}; one process per device is needed"
        )
    if started is not None or world_size == 1:
        task(config)
        return 0
    if trainer.num_nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes is {trainer.num_nodes}, and nobody started a process for each device; "
            "use torchrun or srun on every node, docs/recipes.md has the commands"
        )
    if {"--multirun", "-m"} & set(arguments):
        raise ConfigError(f"--multirun starts no processes for trainer.devices={trainer.devices}; run the jobs singly")
    return _started_here(trainer.devices, command, arguments)


def started_processes(environ: Mapping[str, str], world_size: int) -> tuple[str, int | None]:
    """Returns the launcher of this process and the number of processes it started; ("", None) without a launcher.

    With a world size of 1, SLURM's variables are ignored, because a job script may run several single-device commands.

    >>> started_processes({"SLURM_NTASKS": "8", "SLURM_PROCID": "3", "SLURM_STEP_ID": "0"}, 8)
    ('SLURM', 8)
    """
    if "TORCHELASTIC_RUN_ID" in environ:
        return "torchrun", int(environ["WORLD_SIZE"])
    if world_size > 1 and {"SLURM_NTASKS", "SLURM_PROCID", "SLURM_STEP_ID"} <= environ.keys():
        return "SLURM", int(environ["SLURM_NTASKS"])
    return "", None


def _started_here(num_processes: int, command: str, arguments: Sequence[str]) -> int:
    """Starts the processes by torchrun, waits for them, and returns the exit code of the first that failed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    options = ["--standalone", f"--nproc-per-node={num_processes}", f"--signals-to-handle={SIGNALS}"]
    try:
        torchrun([*options, "-m", "lightning_mmrl.cli.main", command, *arguments])
    except SignalException as interrupted:
        return 128 + int(interrupted.sigval)
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    return 0
