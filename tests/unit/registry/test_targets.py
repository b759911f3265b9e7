import re

import pytest

from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.registry.targets import build, check_targets, optional

SCHEDULE = "lightning_mmrl.algorithms.schedules.WarmupConstant"


def node(target=SCHEDULE, **keys):
    return {"_target_": target, **keys}


def test_a_node_is_built_with_its_keys_and_more():
    assert build(node(warmup_steps=2), "a").warmup_steps == 2
    assert build(node(), "a", warmup_steps=3).warmup_steps == 3
    assert build(node(warmup_steps=4, _partial_=True), "a")().warmup_steps == 4


def test_a_null_node_takes_the_default():
    assert optional(None, "a", "default") == "default"
    assert optional(node(warmup_steps=2), "a", "default").warmup_steps == 2


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (
            node(warmup_stesp=1),
            r"a\.b\.warmup_stesp: .*WarmupConstant has no such parameter; did you mean 'warmup_steps'",
        ),
        (
            node(SCHEDULE + "s"),
            rf"a\.b\._target_ is '{SCHEDULE}s', which is nothing that can be built; the nearest one is '{SCHEDULE}'$",
        ),
        (node("lightning_mmrl.config"), r"a\.b\._target_ is 'lightning_mmrl.config', which is nothing"),
        (node("lightning_mmrl.curriculum.manifest.os.system", command="x"), r"a\.b\._target_ is .* which is nothing"),
        (node("torch.optim.adam.torch.load", f="x"), r"a\.b\._target_ is .* which is nothing that can be built"),
        (node(["os.system"]), r"a\.b\._target_ is .* which is nothing that can be built"),
        ({"deep": {"er": node(x=1)}}, r"a\.b\.deep\.er\.x: .* has no such parameter; known are warmup_steps"),
        ({"list": [node(warmup_steps=1), node(x=1)]}, r"a\.b\.list\[1\]\.x: .* has no such parameter"),
        (node(warmup_steps=node(x=1)), r"a\.b\.warmup_steps\.x: .* has no such parameter"),
    ],
)
def test_a_bad_target_is_named_with_its_key(bad, sentence):
    with pytest.raises(ConfigError, match=sentence):
        check_targets(bad, "a.b")
    with pytest.raises(ConfigError, match=sentence):
        build(bad, "a.b")


TINY = "lightning_mmrl.models.tiny.build_tiny_omni"


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        (node(warmup_steps="abc"), "a.warmup_steps is abc; it must be a whole number"),
        (node(warmup_steps=2.5), "a.warmup_steps is 2.5; it must be a whole number"),
        (node(warmup_steps=True), "a.warmup_steps is True; it must be a whole number"),
        (node(warmup_steps=None), "a.warmup_steps is None; it must be a whole number"),
        (node(warmup_steps={"b": 1}), "a.warmup_steps is {'b': 1}; it must be a whole number"),
        (node(TINY, text=None), "a.text is None; it must be a value"),
        (node("torch.optim.AdamW", lr="fast"), "a.lr is fast; it must be a number"),
        (node("torch.optim.AdamW", foreach="yes"), "a.foreach is yes; it must be true or false or null"),
    ],
)
def test_a_value_of_another_type_than_the_parameter_is_refused(bad, sentence):
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        check_targets(bad, "a")


def test_values_that_an_annotation_allows_pass():
    check_targets(node("torch.optim.AdamW", lr=1, foreach=None, betas=[0.9, 0.99], _partial_=True), "a")
    check_targets(node(TINY, text=["a"], seed=0), "a")


def test_reserved_keys_and_plain_values_pass():
    check_targets(node(warmup_steps=1, _partial_=True, _convert_="all"), "a")
    check_targets({"x": 1, "y": [1, "z"]}, "a")


@pytest.mark.parametrize("bad", [node("os.system", command="x"), {"x": [node("builtins.eval")]}])
def test_a_target_that_is_not_registered_is_never_called(bad):
    with pytest.raises(ConfigError, match="which is nothing that can be built"):
        build(bad, "a")


def test_what_a_target_refuses_is_one_sentence_with_the_key(tmp_path):
    label = "lightning_mmrl.rewards.label_answer.LabelAnswer"
    with pytest.raises(ConfigError, match=r"^a.b: .*missing .*labels"):
        build(node(label), "a.b")
    with pytest.raises(ConfigError, match=r"^a.b: .*labels is empty"):
        build(node(label, labels=[]), "a.b")
    with pytest.raises(DataError, match="synthetic emotion setting seed is -1"):
        build(node("lightning_mmrl.data.synthetic.settings.EmotionSetSettings", seed=-1), "a")
    (tmp_path / "tiny").write_text("")
    with pytest.raises(ConfigError, match=r"^a: .*exists"):
        build(node("lightning_mmrl.models.tiny.build_tiny_omni", text=["a"]), "a", directory=tmp_path / "tiny")
