"""Finds the configs and turns Hydra's complaints into one clear sentence."""

from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

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
    if isinstance(error.__cause__, ConfigKeyError | ConfigAttributeError):
        return ConfigError(_unknown_key(error.__cause__))
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{error.override!r} is not an override; write KEY=VALUE, and quote values with special characters"
        )
    return ConfigError(first_line(error))


def _unknown_key(cause: ConfigKeyError | ConfigAttributeError) -> str:
    """Names the nearest key that stands beside the unknown one."""
    key = str(cause.full_key)
    if _in_schema(key):
        return f"{key}: is not set in this composition; add it by +{key}=..."
    beside = cause.parent_node
    known = [str(name) for name in beside] if isinstance(beside, DictConfig) else []
    addition = f", or add a parameter of the _target_ by +{key}=..." if "_target_" in known else ""
    return f"{key}: unknown key{did_you_mean(key.rsplit('.', 1)[-1], known)}{addition}"


def _missing_option(error: MissingConfigException, message: str) -> str:
    options = list(error.options or [])
    wanted = str(error.missing_cfg_file or "")
    if options:
        group, _, name = wanted.rpartition("/")
        return f"{group}={name}: no such option{did_you_mean(name, options)}"
    return first_line(error)


def _in_schema(key: str) -> bool:
    """True if the last part of a dotted key is a field of the schema."""
    kind: Any = RootConfig
    parts = key.split(".")
    for number, name in enumerate(parts, start=1):
        if get_origin(kind) is dict:
            kind = get_args(kind)[1]
            if number == len(parts):
                return False
            continue
        fields = next((get_type_hints(each) for each in (kind, *get_args(kind)) if is_dataclass(each)), {})
        if name not in fields:
            return False
        kind = fields[name]
    return True
