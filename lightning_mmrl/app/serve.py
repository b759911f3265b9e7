"""The command of a vLLM server that fits a configuration."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import torch

from lightning_mmrl.app.assembly import Assembly, quiet_libraries
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry import targets
from lightning_mmrl.rollout.vllm.flags import require_same_scheme
from lightning_mmrl.rollout.vllm.keys import VARIABLE, Key, serving_key
from lightning_mmrl.rollout.vllm.settings import ENVIRONMENT, VLLMSettings, flags, server_arguments, write_model
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.sample import SampleSettings
from lightning_mmrl.training.console import ConsoleProgress

OPEN_DOORS = ("VLLM_ALLOW_INSECURE_SERIALIZATION", "VLLM_API_KEY")
"""Variables that a server does not inherit. With the first, a server unpickles what clients send. The second is a
further key, which no trainer sends."""


def server_command(config: RunSettings, more: Mapping[str, str]) -> tuple[list[str], dict[str, str], Key]:
    """Writes the model's folder; returns arguments and environment of a server process, and the key that it asks for.

    Args:
        config: The configuration of the run.
        more: Further flags of vLLM (`serving_flags`).

    Raises:
        ConfigError: A part of the configuration is refused.
        StageError: The model cannot be loaded.
    """
    quiet_libraries()
    parts = Assembly(config=config, console=ConsoleProgress())
    settings: VLLMSettings = targets.build(config.rollout["settings"], "rollout.settings")
    assert settings.server is not None
    require_same_scheme(settings.server.url, more)
    key = serving_key(more.get("--host", urlsplit(settings.server.url).hostname or ""), settings.server.key_file)
    checkpoint = parts.base_checkpoint()
    encoder = parts.encoder(checkpoint)
    folder = Path(config.output_dir).absolute() / "served" / checkpoint.name
    write_model(encoder, folder)
    arguments = settings.arguments(getattr(torch, served_dtype(config)), list(encoder.banned_token_ids()))
    command = [sys.executable, "-m", "lightning_mmrl.rollout.vllm.launch", "--model", str(folder)]
    command += flags({**arguments, **server_arguments(settings.server)})
    command += [part for name, value in more.items() for part in (name, value) if part]
    own = {name: value for name, value in os.environ.items() if name not in OPEN_DOORS}
    # Only the development mode takes weights. The key is passed in the environment: all users can read arguments.
    environment = {**ENVIRONMENT, **own, "VLLM_SERVER_DEV_MODE": "1", VARIABLE: key.value}
    return command, environment, key


def served_dtype(config: RunSettings) -> str:
    """The type in which a server computes: as the stages do that sample with it.

    Raises:
        ConfigError: Two of these stages compute in different types.
    """
    found: dict[str, str] = {}
    for name in config.order:
        stage = config.stages[name]
        if stage.sampling is not None and not (isinstance(stage, SampleSettings) and stage.rollout is not None):
            found.setdefault(stage.trainer.computes(config.model.dtype), name)
    if len(found) > 1:
        (first, one), (second, other), *_ = found.items()
        raise ConfigError(
            f"stages.{one}.trainer.precision is {config.stages[one].trainer.precision}, which computes in {first}, and "
            f"stages.{other}.trainer.precision is {config.stages[other].trainer.precision}, which computes in "
            f"{second}; one server has one type: give both stages the same precision"
        )
    return next(iter(found), config.trainer.computes(config.model.dtype))
