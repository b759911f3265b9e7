"""`mmrl serve`: a vLLM server that a run with `rollout=vllm_server` samples from and pushes its weights to."""

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
usage: mmrl serve OVERRIDES [-- FLAGS OF vllm serve]
       mmrl serve --new-key FILE

Starts a vLLM server for a run whose configuration has rollout=vllm_server, at rollout.settings.server.url: with the
model of model.checkpoint, random weights until the run pushes its own, and what training needs switched on. It takes
one run at a time, and ends with Ctrl-C. mmrl train starts when the server answers, which takes minutes. Its host and
port are those of the URL; where that names something that stands before the machine, add -- --host 0.0.0.0.

Every request must show the server's key. Both sides take it from MMRL_SERVER_KEY, or else from the file of mode 600
that rollout.settings.server.key_file names; --new-key writes one. Without either, a server on the loopback takes
~/.mmrl/server.key, which it writes if it is missing; one that other machines reach does not start. Whoever has the key
can replace the weights and run code on the server. Plain http shows it to the network: where you do not trust that, use
an https URL and -- --ssl-certfile FILE --ssl-keyfile FILE.

  mmrl serve experiment=quickstart rollout=vllm_server
  mmrl serve --new-key server.key
  mmrl serve rollout=vllm_server rollout.settings.server.url=http://node2:8000 \\
    rollout.settings.server.key_file=server.key -- --tensor-parallel-size 2

Flags that go to vLLM as they are:
{textwrap.indent(textwrap.fill(" ".join(VALUED), 110, break_on_hyphens=False), "  ")}
and, each also as --no-...:
{textwrap.indent(textwrap.fill(" ".join(SWITCHES), 110, break_on_hyphens=False), "  ")}
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
