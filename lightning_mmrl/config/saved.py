"""The configuration that a run was made with, from its folder."""

from pathlib import Path

from lightning_mmrl.config.composing import composing, without_hydra
from lightning_mmrl.config.hydra_errors import explained
from lightning_mmrl.config.schema import RootConfig
from lightning_mmrl.config.validate import validated
from lightning_mmrl.errors import ConfigError

FILE = "config.yaml"


def run_folder(path: Path) -> Path | None:
    """The folder of the run that a file or folder belongs to: the nearest one above it with a `config.yaml`."""
    for folder in path.absolute().parents:
        if (folder / FILE).is_file() and (folder / "stages").is_dir():
            return folder
    return None


def saved_config(run: Path, overrides: list[str]) -> RootConfig:
    """The resolved configuration in a run's folder, with further overrides on top.

    Raises:
        ConfigError: There is none, it is damaged or of another version, or an override is refused.
    """
    path = run / FILE
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; name the folder of a run")
    try:
        with composing(run) as composer:
            composed = without_hydra(composer.compose(overrides, path.stem))
    except PermissionError:
        raise  # no override is at fault
    except Exception as error:  # Hydra raises plain exceptions too, such as for model=null
        raise _placed(explained(error, overrides), path) from error
    try:
        return validated(composed)
    except ConfigError as error:
        raise _placed(error, path) from error


def _placed(error: ConfigError, path: Path) -> ConfigError:
    return ConfigError(f"{error} (on top of {path})")
