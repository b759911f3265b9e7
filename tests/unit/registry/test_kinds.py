"""Kinds of stages are files of `app/kinds`, or modules that the command line opened."""

import pytest

from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.config.stage_schemas import key_type
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.protocols.plain import StageKind
from lightning_mmrl.registry.kinds import kind_named, kind_names
from lightning_mmrl.registry.own_code import opened
from lightning_mmrl.settings.sample import SampleSettings
from lightning_mmrl.settings.stage import NodeSettings, StageSettings

TAKE = (
    "order=[cold_start,take,reason]",
    "+stages.take={kind: own_code.kinds, num: 3, data: {manifest: train.jsonl, batch_size: 1}}",
    "stages.reason.data.manifest=null",
    "+stages.reason.data.sources.taken={stage: take, artifact: taken}",
)


def test_every_file_is_a_kind_with_its_own_keys():
    assert kind_names() == ["rl", "sample", "sft"]
    for name in kind_names():
        kind = kind_named(name, "stages.a.kind")
        assert isinstance(kind, StageKind)
        assert issubclass(kind.settings, NodeSettings)
    assert kind_named("sample", "").settings is SampleSettings
    assert kind_named("rl", "").settings is kind_named("sft", "").settings is StageSettings


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("sampel", "stages.a.kind is 'sampel', which is no choice; did you mean 'sample'?"),
        ("dpo", "stages.a.kind is 'dpo', which is no choice; known are rl, sample, sft"),
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


def test_a_module_of_the_users_own_is_used_once_opened():
    with pytest.raises(ConfigError, match=r"stages.take.kind is 'own_code.kinds', .* add --allow-targets own_code$"):
        compose(TAKE)
    with opened(["own_code"]):
        config = compose(TAKE)
        specs = stage_specs(config)
        with pytest.raises(ConfigError, match=r"stages.take.nmu: unknown key; did you mean 'num'?"):
            compose([*TAKE, "+stages.take.nmu=1"])
        with pytest.raises(ConfigError, match=r"stages.take.num is 0; it must be at least 1"):
            compose([*TAKE, "stages.take.num=0"])
    assert [spec.outputs for spec in specs][1] == {"taken": "manifest"}
    assert specs[1].content["stage.num"] == 3
    assert "take" not in config.trained


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("own_code.kindz", "cannot be imported"),
        ("own_code.rewards", "cannot be imported"),
        ("own_code.broken", "stages.a.kind: 'own_code.broken.KIND' cannot be loaded"),
    ],
)
def test_a_module_without_a_kind_is_refused(name, sentence):
    with opened(["own_code"]), pytest.raises(ConfigError, match=sentence):
        kind_named(name, "stages.a.kind")


def test_something_else_of_that_name_is_no_kind(monkeypatch):
    import own_code.rewards

    monkeypatch.setattr(own_code.rewards, "KIND", own_code.rewards.letters, raising=False)
    with (
        opened(["own_code"]),
        pytest.raises(ConfigError, match=r"is 'own_code.rewards', whose KIND is no kind of stage"),
    ):
        kind_named("own_code.rewards", "stages.a.kind")


def test_each_stage_has_the_keys_of_its_kind():
    tree = {"stages": {"draw": {"kind": "sample"}, "reason": {"kind": "rl"}, "unknown": {"kind": "???"}}}
    assert key_type("stages.draw.num_completions", tree) is int
    assert key_type("stages.draw.keep.max_per_prompt", tree) is int
    assert key_type("stages.draw.num_steps", tree) is None
    assert key_type("stages.reason.num_steps", tree) is key_type("stages.unknown.num_steps", tree) is int
    assert key_type("stages.reason.num_completions", tree) is None
    assert key_type("seed", tree) is int
