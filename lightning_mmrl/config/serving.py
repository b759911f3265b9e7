"""The command of a vLLM server that fits a configuration."""

import os
import sys
from pathlib import Path

import torch

from lightning_mmrl.config import targets
from lightning_mmrl.config.assembly import Assembly, quiet_libraries
from lightning_mmrl.config.schema import RootConfig
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.rollout.vllm.settings import (
    ENVIRONMENT,
    VLLMSettings,
    flags,
    server_arguments,
    write_model,
)
from lightning_mmrl.training.console import ConsoleProgress


def server_command(config: RootConfig) -> tuple[list[str], dict[str, str]]:
    """Arguments of a process that serves, and what must stand in its environment; the model's folder is written.

    Raises:
        ConfigError: A part of the configuration is refused.
        StageError: The model cannot be loaded.
    """
    quiet_libraries()
    parts = Assembly(config=config, console=ConsoleProgress())
    settings: VLLMSettings = targets.build(config.rollout["settings"], "rollout.settings")
    assert settings.server is not None
    if not settings.server.url.startswith("http:"):
        raise ConfigError(
            f"rollout.settings.server.url is {settings.server.url}; mmrl serve speaks plain http: for https, "
            "start a server yourself"
        )
    checkpoint = parts.base_checkpoint()
    encoder = parts.encoder(checkpoint)
    folder = Path(config.output_dir).absolute() / "served" / checkpoint.name
    write_model(encoder, folder)
    arguments = settings.arguments(getattr(torch, config.model.dtype), list(encoder.banned_token_ids()))
    # `python -m` rather than the `vllm` command, which asks for a distribution of that name: the CPU build has another.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    environment = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    environment["VLLM_SERVER_DEV_MODE"] = "1"  # the development mode is what can take weights
    return [*command, *flags({**arguments, **server_arguments(settings.server)})], environment
