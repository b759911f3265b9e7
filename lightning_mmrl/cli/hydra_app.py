"""Runs a function on a validated configuration and reads Hydra's flags, such as `--cfg` and `--multirun`."""

import argparse
import io
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from string import Template
from typing import NoReturn, TypeVar

from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lightning_mmrl.config.composing import SEARCH, Composer, composing, without_hydra
from lightning_mmrl.config.folders import COMPARE, configs_dir
from lightning_mmrl.config.validate import validated
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry.own_code import FLAG, opened, split_prefixes
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.suggestions import first_line
from lightning_mmrl.types.redaction import redact
from lightning_mmrl.types.text import printable

T = TypeVar("T")

VALUED_FLAGS = (
    *("--config-dir", "--config-name", "--config-path", "--cfg", "--package", FLAG),
    *("-cd", "-cn", "-cp", "-c", "-p"),
)
"""Flags whose value is the next argument."""
INFO = ("all", "config", "defaults", "defaults-tree", "searchpath")


def run_with_config(task: Callable[[RunSettings], T], program: str, arguments: Sequence[str]) -> list[T]:
    """Composes `train.yaml` with the overrides in `arguments`, validates it and calls the task.

    Returns:
        The results of the task: one, or one for each job of `--multirun`; none if a flag only shows something.

    Raises:
        ConfigError: The configuration is refused.
    """
    flags = _parser(program).parse_intermixed_args(arguments)
    if flags.config_path is not None:
        raise ConfigError(
            "--config-path is refused; leave it out, and use --config-dir for a folder of your own configs"
        )
    with opened(split_prefixes(flags.allow_targets)):
        with composing(configs_dir(), flags.config_dir) as composer:
            trees = _trees(flags, composer)
        configs = [
            validated(without_hydra(tree), lambda line: print(printable(line), file=sys.stderr)) for tree in trees
        ]
        return [task(config) for config in configs]


def take_flags(
    arguments: Sequence[str], *, valued: Sequence[str] = (), switches: Sequence[str] = ()
) -> tuple[dict[str, str], list[str]]:
    """Separates a command's own flags (`--flag VALUE`, `--flag=VALUE`, `--switch`) from Hydra's arguments.

    Returns:
        The given flags with their values, and all other arguments.

    Raises:
        ConfigError: A flag has no value, or two.
    """
    found: dict[str, str] = {}
    others: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, equals, value = argument.partition("=")
        if name in valued:
            given = value if equals else next(rest, "")
            if not given:
                raise ConfigError(f"{name} has no value; write {name} NAME")
            if found.setdefault(name, given) != given:
                raise ConfigError(f"{name} is given twice, as {found[name]} and as {given}; give it once")
        elif argument in switches:
            found[argument] = ""
        else:
            others.append(argument)
    return found, others


class _Parser(argparse.ArgumentParser):
    """A parser that raises a ConfigError of one sentence, where argparse would end the process."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; {self.prog} --help lists the flags")


def _parser(program: str) -> argparse.ArgumentParser:
    """Makes a parser of `--allow-targets` and Hydra's flags, but without flags that can run code named in a file."""
    parser = _Parser(prog=program, add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    parser.add_argument("--multirun", "-m", action="store_true")
    parser.add_argument("--config-dir", "-cd", type=Path)
    parser.add_argument("--config-name", "-cn", default="train")
    parser.add_argument("--config-path", "-cp")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=INFO)
    parser.add_argument(FLAG, action="append", default=[])
    return parser


def _trees(flags: argparse.Namespace, composer: Composer) -> list[DictConfig]:
    """Returns the composed configurations to run; none if a flag, such as `--cfg`, only shows something."""
    if flags.help:
        template = composer.compose([], "train").hydra.help.template
        groups = composer.hydra.format_config_groups(lambda name: name.partition("/")[0] not in ("hydra", COMPARE))
        print(Template(template).substitute(APP_CONFIG_GROUPS=groups))
        return []
    if flags.cfg is not None:
        _show_config(flags, composer.compose(flags.overrides, flags.config_name))
        return []
    if flags.info is not None:
        composer.compose(flags.overrides, flags.config_name)  # refuses faulty overrides, which `show_info` accepts
        print(redact(_info(flags, composer)), end="")
        return []
    return composer.jobs(flags.overrides, flags.config_name, sweep=flags.multirun)


def _info(flags: argparse.Namespace, composer: Composer) -> str:
    """Returns the text that Hydra prints for `--info`, and undoes the logging that Hydra sets up for it."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        with redirect_stdout(io.StringIO()) as shown:
            composer.hydra.show_info(flags.info, flags.config_name, [SEARCH, *flags.overrides])
        return shown.getvalue()
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


def _show_config(flags: argparse.Namespace, tree: DictConfig) -> None:
    OmegaConf.set_readonly(tree.hydra, None)
    whole = without_hydra(tree) if flags.cfg == "job" else tree
    if flags.cfg == "hydra":
        whole = OmegaConf.masked_copy(tree, "hydra")
    package = None if flags.package == "_global_" else flags.package
    part = whole if package is None else OmegaConf.select(whole, package)
    if part is None:
        raise ConfigError(f"--package {package}: there is no such part of the configuration")
    if not isinstance(part, Container):
        print(redact(part))
        return
    if package is not None:
        print(f"# @package {package}")
    if flags.resolve:
        try:
            OmegaConf.resolve(part)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{first_line(error)}; correct the ${{...}} there, or leave out --resolve") from error
    print(redact(OmegaConf.to_yaml(part)), end="")
