"""Configurations that several unit tests start from."""

import pytest
from omegaconf import OmegaConf

from lightning_mmrl.config.compose import compose_tree
from lightning_mmrl.config.validate import validated


@pytest.fixture(scope="session")
def default_tree():
    """The composition without overrides, which takes keys of any name; made once, since composing takes a while."""
    tree = compose_tree([])
    OmegaConf.set_struct(tree, False)
    return tree


@pytest.fixture(scope="session")
def changed(default_tree):
    """A validated configuration with other values."""
    return lambda *overrides: validated(OmegaConf.merge(default_tree, OmegaConf.from_dotlist(list(overrides))))
