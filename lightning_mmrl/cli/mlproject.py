"""The entry points of `MLproject`: turns parameters of `mlflow run` into a call of the `mmrl` command."""

import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType

from lightning_mmrl.cli.main import EXIT_BAD_INPUT, main
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.training.interruption import Interruption
from lightning_mmrl.types.text import printable

PARAMETERS = {
    "quickstart": ("overrides",),
    "train": ("overrides",),
    "evaluate": ("checkpoint", "overrides"),
    "validate_data": ("manifest", "media_root"),
}

WHICH_STAGES = ("--from-stage", "--only-stage", "--allow-changes")
"""Flags of `mmrl train` that parameters may hold, since they only choose stages."""


def run(arguments: Sequence[str]) -> int:
    """Runs an entry point and returns its exit code.

    Args:
        arguments: Name of the entry point, then the values of its parameters in the order of `PARAMETERS`.
    """
    try:
        command = mmrl_arguments(arguments)
    except ConfigError as error:
        print(f"mlflow run: {printable(str(error))}", file=sys.stderr)
        return EXIT_BAD_INPUT
    _interrupt_on_sigterm()
    return main(command)


def mmrl_arguments(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of `mmrl` for an entry point, given the values of its parameters.

    >>> mmrl_arguments(["quickstart", "seed=1 order=[pretrain,reason]"])
    ['train', 'experiment=quickstart', 'seed=1', 'order=[pretrain,reason]']

    Raises:
        ConfigError: There are more values than parameters, the overrides have an open quote, or a value is a flag that
            parameters may not hold.
    """
    entry_point, *values = arguments
    names = PARAMETERS[entry_point]
    if len(values) > len(names):
        # MLflow appends a parameter that MLproject does not declare as `--name value`.
        unknown = values[len(names)].removeprefix("--")
        known = " and ".join(names)
        raise ConfigError(
            f"-P {unknown}=...: {entry_point} has no such parameter, it takes {known}; configuration keys go into one "
            f"string: -P overrides={shlex.quote(f'{unknown}=... KEY=VALUE')}"
        )
    given = dict(zip(names, values, strict=True))
    overrides = split_overrides(given.get("overrides", ""))
    # A parameter may come from a file or a form, which must not permit foreign code.
    checked = [("overrides", each) for each in overrides if each.partition("=")[0] not in WHICH_STAGES]
    for name, value in [*({**given, "overrides": ""}).items(), *checked]:
        if value.startswith("-"):
            raise ConfigError(
                f"-P {name}: {value!r} is a flag, and parameters take no other than {', '.join(WHICH_STAGES)}; "
                "call mmrl itself with it"
            )
    if entry_point == "quickstart":
        return ["train", "experiment=quickstart", *overrides]
    if entry_point == "validate_data":
        return ["data", "validate", given["manifest"], "--media-root", given["media_root"]]
    if entry_point == "evaluate":
        return ["evaluate", given["checkpoint"], *overrides]
    return ["train", *overrides]


def split_overrides(text: str) -> list[str]:
    """Splits one string into overrides by a shell's rules for quotes; nothing is expanded or run.

    >>> split_overrides("seed=1 'run_name=a b' 'prompt.system=it costs $5; really'")
    ['seed=1', 'run_name=a b', 'prompt.system=it costs $5; really']

    Raises:
        ConfigError: A quote is not closed.
    """
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"overrides={text!r}: {error}; close the quote, or escape it with a backslash") from error


def _interrupt_on_sigterm() -> None:
    """Makes SIGTERM an interruption like Ctrl-C, so that tracked runs end as KILLED.

    On Ctrl-C `mlflow run` also sends a SIGTERM, which must not interrupt the closing of the runs.
    """
    interrupted = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if number == signal.SIGINT or not (interrupted or Interruption.received):
            interrupted = True
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    signal.signal(signal.SIGTERM, interrupt)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
