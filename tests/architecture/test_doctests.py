"""The examples in docstrings are tests."""

import doctest
import importlib
from pathlib import Path

import pytest

import lightning_mmrl

ROOT = Path(str(lightning_mmrl.__file__)).parent


def modules():
    """The names of all modules that have an example."""
    found = [path.relative_to(ROOT.parent) for path in ROOT.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")]
    return sorted(".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in found)


@pytest.mark.parametrize("name", modules())
def test_examples_hold(name, capsys):
    failed, attempted = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert failed == 0, capsys.readouterr().out
    assert attempted > 0


def test_examples_are_found_under_the_import_hook():
    assert doctest.testmod(importlib.import_module("lightning_mmrl.ops.groups")).attempted >= 5
