"""Composes a configuration without Hydra's runtime: for tools and tests."""

from pathlib import Path

from omegaconf import DictConfig

from lightning_mmrl.config.composing import composing, without_hydra
from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.config.validate import validated
from lightning_mmrl.settings.run import RunSettings


def compose(overrides: list[str], config_name: str = "train", config_dir: Path | None = None) -> RunSettings:
    """Composes and validates a configuration.

    Args:
        overrides: Hydra overrides.
        config_name: Primary config.
        config_dir: A user's own config folder, searched as well.

    Raises:
        ConfigError: The composition is refused.
    """
    return validated(compose_tree(overrides, config_name, config_dir))


def compose_tree(
    overrides: list[str], config_name: str = "train", config_dir: Path | None = None, root: Path | None = None
) -> DictConfig:
    """Composes the untyped tree that `compose` validates; if `root` is given, from the configs of that folder."""
    with composing(root or configs_dir(), config_dir) as composer:
        return without_hydra(composer.compose(overrides, config_name))
