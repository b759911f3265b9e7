"""Checks whether this machine and the run's server are ready for vLLM, before torch is loaded."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from lightning_mmrl.errors import ConfigError, RolloutError
from lightning_mmrl.rollout.vllm.keys import trainer_key
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.sample import SampleSettings

PACKAGE = "lightning_mmrl.rollout.vllm"
"""Package of the engine that samples with vLLM."""


def engines(config: RunSettings) -> dict[str, Any]:
    """Maps keys of the configuration to engines' nodes: the run's, and one for each stage that has its own engine."""
    stages = {name: config.stages[name] for name in config.order}
    own = {name: stage.rollout for name, stage in stages.items() if isinstance(stage, SampleSettings)}
    return {"rollout": config.rollout, **{f"stages.{name}.rollout": node for name, node in own.items() if node}}


def is_vllm(engine: Mapping[str, Any]) -> bool:
    """True if the node of an engine in the configuration names vLLM's engine."""
    return str(engine["_target_"]).startswith(f"{PACKAGE}.")


def require_engine(config: RunSettings, *, connect: bool = True, evaluates: bool = False) -> None:
    """Refuses a run whose engine this machine cannot use.

    Args:
        config: The configuration of the run.
        connect: Also ask for the run's server, if it has one and a stage samples.
        evaluates: True for an evaluation, which needs the run's engine alone.

    Raises:
        ConfigError: The engine is vLLM's, and vllm is not installed, there is no key for its server, or the server does
            not answer.
        RolloutError: The server asks for another key, or for no key.
    """
    needed = {"rollout": config.rollout} if evaluates else engines(config)
    for key, engine in needed.items():
        if not is_vllm(engine):
            continue
        if find_spec("vllm") is None:
            raise ConfigError(
                f"{key} is vllm, which is not installed; run uv pip install -e '.[vllm]' (on a CPU: make quickstart "
                "ROLLOUT=vllm has an environment of its own for it), or take rollout=hf"
            )
        server = _server(engine)
        if connect and server and (evaluates or any(config.stages[name].sampling for name in config.order)):
            _require_server(key, server)


def _require_server(key: str, server: Mapping[str, Any]) -> None:
    from lightning_mmrl.rollout.vllm.client import PROBE_S, Client, KeyRefusedError  # its HTTP library comes with vllm

    url = str(server.get("url", ""))
    client = Client(url, trainer_key(url, server.get("key_file")), PROBE_S)
    try:
        client.require_guard()
    except KeyRefusedError:
        raise
    except RolloutError as error:
        raise ConfigError(
            f"{key}.settings.server.url is {url}, where no vLLM server answers ({error}); start it with mmrl serve "
            "and this run's overrides, or take rollout=hf"
        ) from error
    finally:
        client.close()


def require_server_node(config: RunSettings) -> None:
    """Refuses to serve for a run that samples by itself.

    Raises:
        ConfigError: `rollout` names no server.
    """
    if not is_vllm(config.rollout) or not _server(config.rollout):
        raise ConfigError("the configuration has no rollout.settings.server to start; add rollout=vllm_server")


def _server(engine: Mapping[str, Any]) -> Any:
    """The node of an engine's server, or None."""
    settings = engine.get("settings")
    return settings.get("server") if isinstance(settings, dict) else None
