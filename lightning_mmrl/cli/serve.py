"""`mmrl serve`: starts a vLLM server; a run with `rollout=vllm_server` pushes weights to it and samples from it."""

import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from lightning_mmrl.cli.hydra_app import run_with_config, take_flags
from lightning_mmrl.rollout.vllm.flags import SWITCHES, VALUED, passed_flags
from lightning_mmrl.rollout.vllm.keys import write_key
from lightning_mmrl.rollout.vllm.readiness import require_engine, require_server_node
from lightning_mmrl.settings.run import RunSettings

HELP = f"""\
usage: mmrl serve OVERRIDES [--allow-targets PREFIX] [-- FLAGS OF vllm serve]
       mmrl serve --new-key FILE

Starts a vLLM server for a run with rollout=vllm_server. It listens at rollout.settings.server.url, serves the model of
model.checkpoint, and has all options set that training needs. Its weights are random until the run pushes its own.
It serves one run at a time and ends with Ctrl-C. Its start takes minutes; call mmrl train when it answers. If the host
of the URL is a proxy in front of the machine, add -- --host 0.0.0.0.

Every request must show the server's key. Server and trainer read it from MMRL_SERVER_KEY, or else from the file that
rollout.settings.server.key_file names (mode 600; --new-key writes one). Without either, a server on the loopback
address uses ~/.mmrl/server.key and writes it if it is missing; a server that other machines can reach does not start.
Whoever has the key can replace the weights and run code on the server. Plain http shows the key to the network: in a
network that you do not trust, use an https URL and -- --ssl-certfile FILE --ssl-keyfile FILE.

--allow-targets lets the configuration use a model family of your own, as for mmrl train.

  mmrl serve experiment=quickstart rollout=vllm_server
  mmrl serve --new-key server.key
  mmrl serve rollout=vllm_server rollout.settings.server.url=http://node2:8000 \\
    rollout.settings.server.key_file=server.key -- --tensor-parallel-size 2

Flags after -- go to vLLM unchanged. These take a value:
{textwrap.indent(textwrap.fill(" ".join(VALUED), 110, break_on_hyphens=False), "  ")}
These are switches; each has a negative form --no-...:
{textwrap.indent(textwrap.fill(" ".join(SWITCHES), 110, break_on_hyphens=False), "  ")}
"""


def run(arguments: Sequence[str]) -> int:
    """Replaces this process by the server; returns an exit code only for help and keys."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP, end="")
        return 0
    own, flags = list(arguments), []
    if "--" in own:
        place = own.index("--")
        own, flags = own[:place], own[place + 1 :]
    taken, own = take_flags(own, valued=["--new-key"])
    if taken:
        write_key(Path(taken["--new-key"]))
        print(f"wrote {taken['--new-key']}; give it to server and trainer")
        return 0
    run_with_config(partial(serve, more=passed_flags(flags)), "mmrl serve", own)
    return 0


def serve(config: RunSettings, more: Mapping[str, str]) -> None:
    """Replaces this process by the server.

    Raises:
        ConfigError: The configuration has no server, vllm is not installed, or there is no key.
    """
    require_server_node(config)
    require_engine(config, connect=False)
    # Loaded here: a bad configuration is refused before torch is imported.
    from lightning_mmrl.app.serve import server_command

    command, environment, key = server_command(config, more)
    print(f"starting vllm serve with the key of {key.source}; its weights are random until a run pushes its own")
    sys.stdout.flush()
    os.execve(sys.executable, command, environment)
