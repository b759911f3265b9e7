"""Runs cases of `rank_cases` in several processes that talk over the loopback interface."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

TESTS = Path(__file__).parent


def free_port():
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(rank, world_size, port):
    """What torchrun tells a process of one node."""
    path = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(part for part in path if part),
    }


def launch(cases, folder, *, timeout_s, world_size=2):
    """Runs cases one after the other in every rank and returns, by the name of the case, what each rank found.

    Raises:
        TimeoutError: The ranks were not done in time; they are killed.
        RuntimeError: A rank failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plan = folder / "cases.json"
    plan.write_text(json.dumps(cases), encoding="utf-8")
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "rank_cases", str(plan), str(folder)]
    logs = [folder / f"rank{rank}.log" for rank in range(world_size)]
    children = []
    try:
        for rank, log in enumerate(logs):
            with log.open("wb") as stream:
                environ = environment(rank, world_size, port)
                children.append(subprocess.Popen(command, env=environ, stdout=stream, stderr=subprocess.STDOUT))
        wait(children, logs, time.monotonic() + timeout_s)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait()
    names = [case["name"] for case in cases]
    return {
        name: [torch.load(folder / f"{name}.rank{rank}.pt", weights_only=True) for rank in range(world_size)]
        for name in names
    }


def wait(children, logs, deadline):
    """Waits for all children, for none longer than until the deadline, and for no other once one has failed."""
    while True:
        codes = [child.poll() for child in children]
        if all(code == 0 for code in codes):
            return
        tails = "\n".join(f"{log.name}: {log.read_text(errors='replace')[-3000:]}" for log in logs)
        if any(code not in (None, 0) for code in codes):
            raise RuntimeError(f"exit codes {codes}\n{tails}")
        if time.monotonic() > deadline:
            raise TimeoutError(f"still running: {codes}\n{tails}")
        time.sleep(0.05)
