"""Kinds of stages from a module of the user's own: one that cannot serve is refused in one sentence."""

import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import pytest

from lightning_mmrl.app.data_kinds import SelectingKind
from lightning_mmrl.config.stage_schemas import key_type
from lightning_mmrl.config.validate import _stage_schema
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.protocols.plain import StageKind
from lightning_mmrl.registry.kinds import kind_named, kind_names, kind_of
from lightning_mmrl.registry.own_code import opened
from lightning_mmrl.settings.sample import SampleSettings
from lightning_mmrl.settings.sft import SftSettings
from lightning_mmrl.settings.stage import DataStageSettings, NodeSettings, StageSettings
from lightning_mmrl.types.records import Edge

NAME = "own_code.made_here"


def chosen(stage, samples):
    return {}


GOOD = SelectingKind(settings=DataStageSettings, select=chosen)
MEMBERS = ("settings", "supervised", "inputs", "outputs", "describe", "check", "preflight", "build")


def changed_kind(**others):
    """A kind with other members than `GOOD`; None leaves one out."""
    members = {name: getattr(GOOD, name) for name in MEMBERS} | others
    return SimpleNamespace(**{name: member for name, member in members.items() if member is not None})


@pytest.fixture
def module(monkeypatch):
    """A module of the user's own, still empty, as the command line opens it."""
    made = ModuleType(NAME)
    import own_code

    monkeypatch.setitem(sys.modules, NAME, made)
    monkeypatch.setattr(own_code, "made_here", made, raising=False)
    with opened(["own_code"]):
        yield made


def sentence_of(call, *arguments):
    with pytest.raises(ConfigError) as refused:
        call(*arguments)
    said = str(refused.value)
    assert "\n" not in said
    assert said.startswith("stages.cut.kind")
    return said


def test_a_kind_that_can_serve_is_taken(module):
    module.KIND = changed_kind()
    assert kind_of(DataStageSettings(kind=NAME), "stages.cut") is module.KIND
    assert NAME not in kind_names()


def test_a_module_without_a_kind_is_refused(module):
    sentence = f"stages.cut.kind is '{NAME}', which is no module with a KIND; name the module that defines it"
    assert sentence_of(kind_named, NAME, "stages.cut.kind") == sentence
    assert "is 'own_code.rewards.Brevity', which is no module" in sentence_of(
        kind_named, "own_code.rewards.Brevity", "stages.cut.kind"
    )


@pytest.mark.parametrize("name", MEMBERS)
def test_a_kind_that_lacks_a_member_is_refused_by_its_name(module, name):
    module.KIND = changed_kind(**{name: None})
    assert f": the KIND of '{NAME}' lacks {name}; add" in sentence_of(kind_named, NAME, "stages.cut.kind")


class Undecorated(NodeSettings):
    """Forgets the decorator."""

    share: float = 0.5


@dataclass
class WithoutBase:
    """Forgets the base."""

    kind: str = NAME


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ({"settings": WithoutBase}, "they must be a class derived from NodeSettings"),
        ({"settings": DataStageSettings(kind=NAME)}, "they must be a class derived from NodeSettings"),
        ({"settings": Undecorated}, "the settings class Undecorated, which is no dataclass; put @dataclass above it"),
        (
            {"describe": "words"},
            "has a describe that cannot be called as describe(stage) ('words' is not a callable object)",
        ),
        ({"check": lambda stage: None}, "has a check that cannot be called as check(path, stage, config) ("),
        ({"build": lambda spec: None}, "cannot be called as build(spec, inputs, directory, run, parts) ("),
    ],
)
def test_members_of_a_wrong_form_are_refused(module, others, sentence):
    module.KIND = changed_kind(**others)
    assert sentence in sentence_of(kind_named, NAME, "stages.cut.kind")


def test_a_class_in_place_of_an_object_is_refused(module):
    module.KIND = SelectingKind
    assert "is a class; write KIND = SelectingKind()" in sentence_of(kind_named, NAME, "stages.cut.kind")


def test_settings_that_cannot_hold_keys_are_refused(module):
    @dataclass
    class Odd(NodeSettings):
        share: set[int] = field(default_factory=set)

    module.KIND = changed_kind(settings=Odd)
    said = sentence_of(_stage_schema, {"kind": NAME}, "stages.cut")
    assert f"stages.cut.kind is '{NAME}', whose settings class Odd cannot hold keys (" in said


def raising(stage):
    return {}["own"]


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        (
            {"outputs": lambda stage: {"own": "samples"}},
            "makes 'own' of the type 'samples'; choose one of weights, table",
        ),
        ({"outputs": lambda stage: {"own": ["table"]}}, "makes 'own' of the type \"['table']\""),
        (
            {"outputs": lambda stage: {"Own": "table", "own": "manifest"}},
            "makes 'Own' and 'own', two outputs of one name",
        ),
        (
            {"outputs": lambda stage: [("own", "table"), ("own", "table")]},
            "by outputs(stage), gives [('own', 'table'), ",
        ),
        ({"outputs": lambda stage: {"../own": "table"}}, "makes '../own', which is no name of a folder"),
        ({"outputs": lambda stage: {"own": "weights"}}, "weights alone are named 'handoff'"),
        ({"outputs": lambda stage: {"handoff": "table"}}, "weights alone are named 'handoff'"),
        (
            {"outputs": lambda stage: {"handoff": "weights"}},
            "has the settings class DataStageSettings and makes handoff",
        ),
        ({"outputs": raising}, "by outputs(stage), raised KeyError: 'own'; correct it"),
        (
            {"inputs": lambda stage: {"table": "draw"}},
            "has the input 'table' of draw; it must be an Edge(stage, artifact)",
        ),
        ({"inputs": lambda stage: None}, "by inputs(stage), gives None; it must map names to values"),
    ],
)
def test_inputs_and_outputs_of_a_wrong_form_are_refused(module, others, sentence):
    module.KIND = changed_kind(**others)
    assert sentence in sentence_of(kind_of, DataStageSettings(kind=NAME), "stages.cut")


def test_a_kind_that_trains_must_make_weights(module):
    module.KIND = changed_kind(settings=StageSettings)
    said = sentence_of(kind_of, StageSettings(kind=NAME), "stages.cut")
    assert "has the settings class StageSettings and makes kept; a kind whose settings derive" in said
    module.KIND = changed_kind(settings=StageSettings, outputs=lambda stage: {"handoff": "weights"})
    assert kind_of(StageSettings(kind=NAME), "stages.cut") is module.KIND


def test_an_error_of_the_program_in_a_kind_keeps_its_sentence(module):
    def refusing(stage):
        raise ConfigError("stages.cut.kind: an own sentence")

    module.KIND = changed_kind(inputs=refusing)
    assert sentence_of(kind_of, DataStageSettings(kind=NAME), "stages.cut") == "stages.cut.kind: an own sentence"


def test_an_edge_is_of_data_unless_it_says_more():
    assert Edge("draw", "own").type == "manifest"


def test_every_file_is_a_kind_with_its_own_keys():
    assert {"bridge", "dpo", "filter", "rl", "route", "sample", "sft"} <= set(kind_names())
    for name in kind_names():
        kind = kind_named(name, "stages.a.kind")
        assert isinstance(kind, StageKind)
        assert issubclass(kind.settings, NodeSettings)
    assert kind_named("sample", "").settings is SampleSettings
    assert kind_named("rl", "").settings is StageSettings
    assert kind_named("sft", "").settings is SftSettings


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("sampel", "stages.a.kind is 'sampel', which is no choice; did you mean 'sample'?"),
        ("", "stages.a.kind is '', which is no choice; known are .*filter, .*rl, route, sample, sft"),
        (
            "own_code.kinds",
            "stages.a.kind is 'own_code.kinds', which runs code that is not opened; if it is",
        ),
        ("os.path", "stages.a.kind is 'os.path', which runs code that is not opened$"),
        ("lightning_mmrl.app.kinds.sft", "which runs code that is not opened$"),
        (".sft", "which runs code that is not opened"),
    ],
)
def test_another_name_is_refused(name, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        kind_named(name, "stages.a.kind")
    assert "\n" not in str(caught.value)


def test_each_stage_has_the_keys_of_its_kind():
    tree = {"stages": {"draw": {"kind": "sample"}, "reason": {"kind": "rl"}, "unknown": {"kind": "???"}}}
    assert key_type("stages.draw.num_completions", tree) is int
    assert key_type("stages.draw.keep.max_per_prompt", tree) is int
    assert key_type("stages.draw.num_steps", tree) is None
    assert key_type("stages.reason.num_steps", tree) == key_type("stages.unknown.num_steps", tree) == int | None
    assert key_type("stages.reason.num_completions", tree) is None
    assert key_type("seed", tree) is int
