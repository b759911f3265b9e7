"""The examples in docstrings are tests."""

import doctest
import importlib
import pkgutil

import pytest

FOLDERS = ("ops", "algorithms", "rewards", "prompts")


def modules() -> list[str]:
    packages = [importlib.import_module(f"lightning_mmrl.{folder}") for folder in FOLDERS]
    found = [info for package in packages for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return ["lightning_mmrl.types.records", *(info.name for info in found if not info.ispkg)]


@pytest.mark.parametrize("name", modules())
def test_examples_hold(name, capsys):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0, capsys.readouterr().out


def test_examples_are_found_under_the_import_hook():
    assert doctest.testmod(importlib.import_module("lightning_mmrl.ops.groups")).attempted >= 5
