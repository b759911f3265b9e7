"""Composes a configuration without Hydra's runtime: for tools and tests."""

from pathlib import Path

from omegaconf import DictConfig

from lightning_mmrl.config.composing import composed
from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.config.hydra_errors import explained
from lightning_mmrl.config.schema import RootConfig
from lightning_mmrl.config.validate import validated

__all__ = ["compose", "compose_tree", "configs_dir", "explained"]


def compose(overrides: list[str], config_name: str = "train", config_dir: Path | None = None) -> RootConfig:
    """Composes and validates a configuration.

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
    try:
        return composed(overrides, config_name, config_dir)
    except Exception as error:
        # Nothing of ours runs in there: whatever Hydra raises, also beside its own errors, is about the overrides.
        raise explained(error, [*([f"--config-dir={config_dir}"] if config_dir else []), *overrides]) from error
