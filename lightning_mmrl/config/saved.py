"""Reads the configuration of a run from the run's folder."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lightning_mmrl.config.compose import compose_tree
from lightning_mmrl.config.validate import validated
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.renamed import renamed
from lightning_mmrl.settings.run import RunSettings

FILE = "config.yaml"


def run_folder(path: Path) -> Path | None:
    """Returns the folder of the run that a path belongs to: the nearest parent with `config.yaml` and `stages`."""
    for folder in path.absolute().parents:
        if (folder / FILE).is_file() and (folder / "stages").is_dir():
            return folder
    return None


def saved_config(run: Path, overrides: list[str]) -> RunSettings:
    """Returns the resolved configuration in a run's folder, with further overrides applied.

    Raises:
        ConfigError: The folder has no configuration, its configuration is damaged or of another version, or an
            override is refused.
    """
    path = run / FILE
    if not path.is_file():
        raise ConfigError(f"{path} does not exist; name the folder of a run")
    try:
        composed = OmegaConf.to_container(compose_tree(overrides, path.stem, root=run))
        return validated(DictConfig(_present(composed)))
    except ConfigError as error:
        raise ConfigError(f"{error} (on top of {path})") from error


def _present(tree: Any, key: str = "") -> Any:
    """Renames the keys in a tree of an earlier version to their present names."""
    if not isinstance(tree, dict):
        return tree
    named = {}
    for name, value in tree.items():
        place = f"{key}.{name}"
        named[(renamed(place) or place).rpartition(".")[2] if "." not in str(name) else name] = _present(value, place)
    return named
