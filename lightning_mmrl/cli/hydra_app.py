"""Runs a function on a validated configuration, with Hydra's own flags (`--cfg`, `--config-dir`, `--multirun`)."""

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig

from lightning_mmrl.config.compose import configs_dir, explained
from lightning_mmrl.config.schema import RootConfig
from lightning_mmrl.config.validate import validated


def run_with_config(task: Callable[[RootConfig], Any], program: str, arguments: Sequence[str]) -> None:
    """Composes `train.yaml` with the overrides in `arguments`, validates it and calls the task.

    Raises:
        ConfigError: The configuration is refused, in one sentence.
    """
    # Without it Hydra prints its own report of an error and exits.
    os.environ["HYDRA_FULL_ERROR"] = "1"

    jobs: list[DictConfig] = []

    @hydra.main(version_base="1.3", config_path=str(configs_dir()), config_name="train")
    def app(composed: DictConfig) -> None:
        jobs.append(composed)

    argv = sys.argv
    sys.argv = [program, *_flags_first(arguments)]
    try:
        app()
    except HydraException as error:
        raise explained(error) from error
    finally:
        sys.argv = argv
    # Outside of Hydra's job, which would print its own report of an error; --multirun gives several.
    for composed in jobs:
        task(validated(composed))


def _flags_first(arguments: Sequence[str]) -> list[str]:
    """Moves flags with a value before the overrides: Hydra refuses them in between."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in (
            "--config-dir",
            "--config-name",
            "--config-path",
            "--cfg",
            "-cd",
            "-cn",
            "-cp",
            "-c",
            "--package",
            "-p",
        ):
            flags += [argument, next(rest, "")]
        elif argument.startswith("-"):
            flags.append(argument)
        else:
            overrides.append(argument)
    return [*flags, *overrides]
