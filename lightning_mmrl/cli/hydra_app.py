"""Runs a function on a validated configuration, with Hydra's own flags (`--cfg`, `--config-dir`, `--multirun`)."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO, TypeVar

import hydra
from omegaconf import DictConfig

from lightning_mmrl.config.complaints import explained
from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.config.schema import RootConfig
from lightning_mmrl.config.validate import validated
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.types.redaction import redact
from lightning_mmrl.types.text import printable

T = TypeVar("T")

VALUED_FLAGS = (
    "--config-dir",
    "--config-name",
    "--config-path",
    "--cfg",
    "--package",
    "-cd",
    "-cn",
    "-cp",
    "-c",
    "-p",
)
"""Hydra's flags that take the next argument for their value."""


def run_with_config(task: Callable[[RootConfig], T], program: str, arguments: Sequence[str]) -> list[T]:
    """Composes `train.yaml` with the overrides in `arguments`, validates it and calls the task.

    Returns:
        What the task returned, for every job of `--multirun`; it is one without that flag.

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
        with redirect_stdout(_Redacted(sys.stdout)), redirect_stderr(_Redacted(sys.stderr)):
            app()
    except Exception as error:
        # The app only composes: whatever Hydra raises, also beside its own errors, is about the arguments.
        raise explained(error, arguments) from error
    finally:
        sys.argv = argv
        if {"--multirun", "-m"} & set(arguments):
            _redact_file(Path("multirun.yaml"))  # Hydra's record of the sweep, with all overrides
    # Outside of Hydra's job, which would print its own report of an error; --multirun gives several.
    return [task(validated(composed, lambda line: print(printable(line), file=sys.stderr))) for composed in jobs]


def _redact_file(path: Path) -> None:
    if path.is_file():
        path.write_text(redact(path.read_text(encoding="utf-8")), encoding="utf-8")


class _Redacted(io.TextIOBase):
    """An output while Hydra prints or logs a configuration (`--cfg`, `--info`): credentials are left out."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def write(self, text: str) -> int:
        self._output.write(redact(text))
        return len(text)

    def flush(self) -> None:
        self._output.flush()


def take_flags(
    arguments: Sequence[str], *, valued: Sequence[str] = (), switches: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Takes a command's own flags (`--flag VALUE`, `--flag=VALUE`, `--switch`) out of its arguments.

    Returns:
        The flags that were given with their values, and the arguments that are Hydra's.

    Raises:
        ConfigError: A flag has no value.
    """
    found: dict[str, str] = {}
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in valued:
            found[name] = value if equals else next(rest, "")
            if not found[name]:
                raise ConfigError(f"{name} has no value; write {name} NAME")
        elif argument in switches:
            found[argument] = ""
        else:
            others.append(argument)
    return found, others


def _flags_first(arguments: Sequence[str]) -> list[str]:
    """Moves flags with a value before the overrides: Hydra refuses them in between."""
    flags: list[str] = []
    overrides: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in VALUED_FLAGS:
            flags += [argument, next(rest, "")]
        elif argument.startswith("-"):
            flags.append(argument)
        else:
            overrides.append(argument)
    return [*flags, *overrides]
