"""Checks whether this machine and the run's server are ready for vLLM, before torch is loaded."""

from importlib.util import find_spec
from typing import Any

from lightning_mmrl.errors import ConfigError, RolloutError
from lightning_mmrl.rollout.vllm.keys import trainer_key
from lightning_mmrl.settings.run import RunSettings

PACKAGE = "lightning_mmrl.rollout.vllm"
"""Package of the engine that samples with vLLM."""


def samples_with_vllm(config: RunSettings) -> bool:
    """True if the run's engine is vLLM's."""
    return str(config.rollout["_target_"]).startswith(f"{PACKAGE}.")


def require_engine(config: RunSettings, *, connect: bool = True) -> None:
    """Refuses a run whose engine this machine cannot use.

    Args:
        config: The configuration of the run.
        connect: Also ask for the run's server, if it has one and a stage samples.

    Raises:
        ConfigError: The engine is vLLM's, and vllm is not installed, there is no key for its server, or the server does
            not answer.
        RolloutError: The server asks for another key, or for no key.
    """
    if not samples_with_vllm(config):
        return
    if find_spec("vllm") is None:
        raise ConfigError(
            "rollout is vllm, which is not installed; run uv pip install -e '.[vllm]' (on a CPU: make quickstart "
            "ROLLOUT=vllm has an environment of its own for it), or take rollout=hf"
        )
    server = _server(config)
    if not (connect and server and any(config.stages[name].sampling for name in config.order)):
        return
    from lightning_mmrl.rollout.vllm.client import PROBE_S, Client, KeyRefusedError  # its HTTP library comes with vllm

    url = str(server.get("url", ""))
    client = Client(url, trainer_key(url, server.get("key_file")), PROBE_S)
    try:
        client.require_guard()
    except KeyRefusedError:
        raise
    except RolloutError as error:
        raise ConfigError(
            f"rollout.settings.server.url is {url}, where no vLLM server answers ({error}); start it with mmrl serve "
            "and this run's overrides, or take rollout=hf"
        ) from error
    finally:
        client.close()


def require_server_node(config: RunSettings) -> None:
    """Refuses to serve for a run that samples by itself.

    Raises:
        ConfigError: `rollout` names no server.
    """
    if not samples_with_vllm(config) or not _server(config):
        raise ConfigError("the configuration has no rollout.settings.server to start; add rollout=vllm_server")


def _server(config: RunSettings) -> Any:
    """The node of the server, or None."""
    settings = config.rollout.get("settings")
    return settings.get("server") if isinstance(settings, dict) else None
