"""Every key is declared once, with its documentation and its rule, and defaults keep their rules."""

import ast
import inspect
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import get_args, get_type_hints

import pytest
from omegaconf import OmegaConf

import lightning_mmrl.settings
from lightning_mmrl.registry.kinds import kind_named, kind_names
from lightning_mmrl.settings.compare import CompareSettings
from lightning_mmrl.settings.rollout import RolloutSettings
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.settings.run import RunSettings
from lightning_mmrl.settings.setting import REQUIRED
from lightning_mmrl.settings.speculation import SpeculationSettings
from lightning_mmrl.settings.stage import DataStageSettings

OF_OTHER_USE = ("lessons", "renamed", "rules", "setting")
MODULES = [
    import_module(f"lightning_mmrl.settings.{module.name}")
    for module in iter_modules(lightning_mmrl.settings.__path__)
    if module.name not in OF_OTHER_USE
]


def sections(kind=RunSettings):
    """All settings classes of a run, or of another file of keys."""
    yield kind
    for annotation in get_type_hints(kind).values():
        for inner in (annotation, *get_args(annotation)):
            if is_dataclass(inner):
                yield from sections(inner)


KINDS = [DataStageSettings, *(kind_named(name, "kind").settings for name in kind_names())]
# The node of an engine has other keys for each engine, so no class of a run holds these.
OF_AN_ENGINE = (RolloutSettings, SpeculationSettings)
SECTIONS = sorted(
    {
        *sections(),
        *sections(CompareSettings),
        *(each for kind in KINDS for each in sections(kind)),
        *OF_AN_ENGINE,
    },
    key=lambda kind: kind.__name__,
)


def documented(source):
    """Each field of the classes in a source, with what stands directly below it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            for place, statement in enumerate(node.body):
                if isinstance(statement, ast.AnnAssign):
                    below = node.body[place + 1] if place + 1 < len(node.body) else None
                    text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and below.value.value
                    yield f"{node.name}.{statement.target.id}", text or ""


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_key_is_documented(module):
    found = dict(documented(inspect.getsource(module)))
    assert found
    assert {name for name, text in found.items() if len(text) < 10} == set()


def test_a_key_without_documentation_would_show():
    assert dict(documented("class A:\n    x: int = 1\n    y: int = 2\n    'why'\n")) == {"A.x": "", "A.y": "why"}


def test_all_classes_of_the_modules_are_sections_of_a_run_or_of_a_comparison():
    declared = {
        each for module in MODULES for each in vars(module).values() if isinstance(each, type) and is_dataclass(each)
    }
    bases = {base for kind in declared for base in kind.__mro__[1:]}
    assert declared - bases == set(SECTIONS) - bases


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_defaults_keep_their_rules(kind):
    required = [each.name for each in fields(kind) if each.default == REQUIRED or each.default is MISSING]
    check_rules(kind(), leave_out=required)


@pytest.mark.parametrize("kind", SECTIONS, ids=lambda kind: kind.__name__)
def test_a_section_is_a_schema_of_omegaconf(kind):
    tree = OmegaConf.structured(kind)
    assert set(tree) == {each.name for each in fields(kind)}
    assert not OmegaConf.is_readonly(tree)
