"""Runs cases of `rank_cases` in several processes that talk over the loopback interface.

The processes are forked from one that has imported everything, which takes longer than most cases.
"""

import json
import multiprocessing
import os
import socket
import time
import warnings
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

import torch

TESTS = Path(__file__).parent


def free_port():
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(rank, world_size, port):
    """Variables that torchrun sets for a process of one node."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def start_forks():
    """Starts the process that all ranks are forked from, which has its own search path."""
    path = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    environ = {"PYTHONPATH": os.pathsep.join(part for part in path if part), "OMP_NUM_THREADS": "1"}
    with mock.patch.dict(os.environ, environ):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["rank_cases"])
        forkserver.ensure_running()
    return context


def run_rank(environ, log, plan, folder):
    """The inside of a rank."""
    import rank_cases

    with log.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.environ.update(environ)
    warnings.simplefilter("ignore")
    rank_cases.main(plan, folder)


def launch(cases, folder, *, timeout_s, world_size=2):
    """Runs cases one after the other in every rank and returns, by the name of the case, what each rank found.

    Raises:
        TimeoutError: The ranks were not done in time; they are killed.
        RuntimeError: A rank failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "cases.json"
    plan.write_text(json.dumps(cases), encoding="utf-8")
    port, context = free_port(), start_forks()
    logs = [folder / f"rank{rank}.log" for rank in range(world_size)]
    ranks = [
        context.Process(target=run_rank, args=(environment(rank, world_size, port), log, plan, folder))
        for rank, log in enumerate(logs)
    ]
    try:
        for rank in ranks:
            rank.start()
        wait(ranks, logs, time.monotonic() + timeout_s)
    finally:
        for rank in ranks:
            if rank.is_alive():
                rank.kill()
                rank.join()
    names = [case["name"] for case in cases]
    return {
        name: [torch.load(folder / f"{name}.rank{rank}.pt", weights_only=True) for rank in range(world_size)]
        for name in names
    }


def wait(ranks, logs, deadline):
    """Waits for all ranks, for none longer than until the deadline, and for no other once one has failed."""
    while True:
        codes = [rank.exitcode for rank in ranks]
        if all(code == 0 for code in codes):
            return
        tails = "\n".join(f"{log.name}: {log.read_text(errors='replace')[-3000:]}" for log in logs if log.exists())
        if any(code not in (None, 0) for code in codes):
            raise RuntimeError(f"exit codes {codes}\n{tails}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"still running: {codes}\n{tails}")
        time.sleep(0.05)
