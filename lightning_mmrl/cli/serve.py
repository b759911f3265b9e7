"""`mmrl serve`: a vLLM server that a run with `rollout=vllm_server` samples from and pushes its weights to."""

import os
import sys
from collections.abc import Sequence
from functools import partial

from lightning_mmrl.cli.hydra_app import run_with_config
from lightning_mmrl.config.rollout_checks import require_engine, require_server_node
from lightning_mmrl.config.schema import RootConfig

HELP = """\
usage: mmrl serve OVERRIDES [-- FLAGS OF vllm serve]

Starts a vLLM server for a run whose configuration has rollout=vllm_server, at rollout.settings.server.url: with the
model of model.checkpoint, random weights until the run pushes its own, and what training needs switched on. It takes
one run at a time, and ends with Ctrl-C. Anyone who reaches its port can replace its weights: keep it within a network
you trust. mmrl train starts when the server answers, which takes minutes. Its host and port are those of the URL; where
that names something that stands before the machine, add -- --host 0.0.0.0.

  mmrl serve experiment=quickstart rollout=vllm_server
  mmrl serve rollout=vllm_server rollout.settings.server.url=http://node2:8000 -- --tensor-parallel-size 2
"""


def run(arguments: Sequence[str]) -> int:
    """Becomes the server; returns an exit code only where it cannot."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return 0
    own, flags = list(arguments), []
    if "--" in own:
        place = own.index("--")
        own, flags = own[:place], own[place + 1 :]
    run_with_config(partial(serve, more=flags), "mmrl serve", own)
    return 0


def serve(config: RootConfig, more: Sequence[str]) -> None:
    """Replaces this process by the server.

    Raises:
        ConfigError: The configuration has no server, or vllm is not installed.
    """
    require_server_node(config)
    require_engine(config, connect=False)
    # Loaded here: a bad configuration is refused before torch is imported.
    from lightning_mmrl.config.serving import server_command

    command, environment = server_command(config)
    print("starting vllm serve; its weights are random until a run pushes its own", flush=True)
    os.execve(sys.executable, [*command, *more], {**os.environ, **environment})
