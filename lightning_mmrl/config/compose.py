"""Finds the configs and turns Hydra's complaints into one clear sentence."""

import difflib
import re
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig

from lightning_mmrl.config.schema import RootConfig
from lightning_mmrl.config.validate import did_you_mean, first_line, validated
from lightning_mmrl.errors import ConfigError

CONFIGS = "configs"


def configs_dir() -> Path:
    """The folder of the shipped configs: inside the package in a wheel, beside it in a checkout.

    Raises:
        ConfigError: Neither exists.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / CONFIGS, package.parent / CONFIGS):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(f"no configs folder in {package} or {package.parent}; install the package again")


def compose(overrides: list[str], config_name: str = "train", config_dir: Path | None = None) -> RootConfig:
    """Composes and validates a configuration without Hydra's runtime: for tools and tests.

    Args:
        overrides: Hydra overrides.
        config_name: Primary config.
        config_dir: A user's own config folder, searched as well.

    Raises:
        ConfigError: The composition is refused.
    """
    return validated(compose_tree(overrides, config_name, config_dir))


def compose_tree(overrides: list[str], config_name: str = "train", config_dir: Path | None = None) -> DictConfig:
    """As `compose`, but the untyped tree before validation."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    extra = [f"hydra.searchpath=[file://{config_dir.resolve()}]"] if config_dir else []
    with initialize_config_dir(config_dir=str(configs_dir()), version_base="1.3"):
        try:
            return hydra_compose(config_name=config_name, overrides=[*overrides, *extra])
        except HydraException as error:
            raise explained(error) from error


def explained(error: HydraException) -> ConfigError:
    """Hydra's error as one sentence with the key, the value and the nearest valid choice."""
    message = str(error)
    if isinstance(error, MissingConfigException):
        return ConfigError(_missing_option(error, message))
    unknown = re.search(r"Key '([^']+)' is not in struct\s+full_key: (\S+)", message)
    if unknown or (unknown := re.search(r"Could not override '(()[^']+)'", message)):
        return ConfigError(_unknown_key(unknown))
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{error.override!r} is not an override; write KEY=VALUE, and quote values with special characters"
        )
    return ConfigError(first_line(error))


def _unknown_key(match: re.Match[str]) -> str:
    key = match.group(2) or match.group(1)
    close = difflib.get_close_matches(key.rsplit(".", 1)[-1], _keys_everywhere(), n=1, cutoff=0.6)
    fix = f"did you mean {close[0]!r}?" if close else f"a new argument of a _target_ is added by +{key}=..."
    return f"{key}: unknown key; {fix}"


def _missing_option(error: MissingConfigException, message: str) -> str:
    options = list(error.options or [])
    wanted = str(error.missing_cfg_file or "")
    if options:
        group, _, name = wanted.rpartition("/")
        return f"{group}={name}: no such option{did_you_mean(name, options)}"
    return first_line(error)


def _keys_everywhere() -> set[str]:
    """All key names of the schema."""
    from dataclasses import is_dataclass
    from typing import get_args, get_type_hints

    found: set[str] = set()

    def walk(schema: type) -> None:
        for name, annotation in get_type_hints(schema).items():
            found.add(name)
            for kind in (annotation, *get_args(annotation)):
                if is_dataclass(kind) and isinstance(kind, type):
                    walk(kind)

    walk(RootConfig)
    return found
