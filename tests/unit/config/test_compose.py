"""What a configuration is refused for: one sentence with the key, the value and the nearest valid choice."""

import re

import pytest
from omegaconf import OmegaConf

from lightning_mmrl.config.compose import compose, compose_tree, configs_dir
from lightning_mmrl.config.validate import stage_specs, validated
from lightning_mmrl.errors import ConfigError

LIST = "must be a list, such as"

SPELLING = {
    "sede=1": "sede: unknown key; did you mean 'seed'?",
    "+sede=1": "sede: unknown key; did you mean 'seed'?",
    "modle=tiny_omni": "modle: unknown key; did you mean 'model'?",
    "stages.raeson.num_steps=1": "stages.raeson: unknown key; did you mean 'reason'?",
    "stages.base.num_steps=1": "stages.base: unknown key; known are cold_start, reason",
    "stages.reason.optimzer.lr=1": "stages.reason.optimzer: unknown key; did you mean 'optimizer'?",
    "+stages.reason.algoritm.group_size=4": "stages.reason.algoritm: unknown key; did you mean 'algorithm'?",
    "stages.reason.optimizer.lrr=1": "did you mean 'lr'?, or add a parameter of the _target_ by +stages.",
    "data.media.max_pixels=9": "data.media.max_pixels: is not set in this composition; add it by +data.",
    "+seed=1": "An item is already at 'seed'",
    "model=tiny_omi": "model=tiny_omi: no such option; did you mean 'tiny_omni'?",
    "trainer=gpuu": "trainer=gpuu: no such option; known are auto, cpu",
    "experiment=quickstat": "experiment=quickstat: no such option; did you mean 'quickstart'?",
    "data=emotions_jsonl": "data.root: has no value; set it, for example data.root=...",
    "run_name=???": "run_name: has no value",
    "foo": "'foo' is not an override; write KEY=VALUE",
    "a=[1": "'a=[1' is not an override; write KEY=VALUE",
}

VALUES = {
    # types
    "seed=abc": "seed: Value 'abc' of type 'str' could not be converted to Integer",
    "stages.reason.num_steps=2.5": "stages.reason.num_steps: Value '2.5' of type 'float' could not be converted",
    "stages.reason.num_steps=null": "stages.reason.num_steps: Incompatible value 'None'",
    "stages.reason=null": "stages.reason: field 'stages.reason' is not Optional",
    "stages.reason.data=5": "stages.reason.data is 5; it must be a group of keys",
    "order=reason": f"order is reason; it {LIST} order=[reason]",
    "data.labels=happy": f"data.labels is happy; it {LIST} data.labels=[happy]",
    "seed=${nothing}": "seed: Interpolation key 'nothing' not found",
    # targets
    "stages.reason.module._target_=os.system": "module._target_ is 'os.system'; it must start with one of",
    "stages.reason.optimizer=5": "stages.reason.optimizer is 5; it must be a node with a _target_",
    "stages.reason.rewards.parts.label=null": "rewards.parts.label is None; it must be a node with a _target_",
    "model.family.encoder=null": "model.family.encoder is None; it must be a node with a _target_",
    # order
    "order=[]": "order is empty; name at least one stage",
    "order=[cold_start,raeson]": "order[1]: unknown stage 'raeson'; stages defines cold_start, reason",
    "order=[reason,reason]": "order[1]: stage 'reason' appears twice",
    "stages.cold_start.start_from=reason": "stages.cold_start.start_from is 'reason'; choose one of base, previous",
    # values
    "run_name=a/b": "run_name is a/b; it must be letters, digits",
    "run_name=..": "run_name is ..; it must be",
    "model.dtype=float16": "model.dtype is float16; it must be one of float32, bfloat16, float64",
    "data.media.num_frames=1": "data.media.num_frames is 1; it must be at least 2",
    "data.labels=[]": "labels is empty",
    "prompt.suffix='<video>'": "prompt.suffix holds the media tag <video>",
    "trainer.devices=0": "trainer.devices is 0; it must be at least 1",
    "evaluation.batch_size=0": "evaluation.batch_size is 0; it must be at least 1",
    "evaluation.num_resamples=0": "evaluation.num_resamples is 0; it must be at least 1",
    "evaluation.ablations=[slient]": "evaluation.ablations is slient; it must be among silent, blank",
    "evaluation.ablation_stages=some": "evaluation.ablation_stages is some; it must be last or all",
    "stages.reason.kind=ppo": "stages.reason.kind is ppo; it must be one of sft, rl",
    "stages.reason.num_steps=0": "stages.reason.num_steps is 0; it must be at least 1",
    "stages.reason.data.batch_size=0": "stages.reason.data.batch_size is 0; it must be at least 1",
    "stages.reason.data.limit=0": "stages.reason.data.limit is 0; it must be at least 1",
    "stages.reason.max_grad_norm=nan": "stages.reason.max_grad_norm is nan; it must be above 0",
    "stages.cold_start.data.modality_dropout.silent=1.5": "modality_dropout is 1.5 + 0.0; it must be probabilities",
    "stages.cold_start.data.modality_dropout={silent: 0.6, blank: 0.6}": "modality_dropout is 0.6 + 0.6; it must be",
    "stages.reason.validate_every=999": "validate_every is 999; it must be null or between 1 and num_steps 250",
    "stages.reason.validate_every=0": "validate_every is 0; it must be null or between 1 and num_steps 250",
    "stages.reason.algorithm=null": "stages.reason.algorithm: is missing; an rl stage needs it",
    "stages.reason.algorithm.group_size=1": "stages.reason.algorithm.group_size is 1; it must be at least 2",
    "stages.reason.algorithm.update.num_minibatches=5": "num_minibatches is 5; it must be a divisor of data.batch_size",
    "stages.reason.algorithm.update.num_minibatches=0": "num_minibatches is 0; it must be a divisor",
    "stages.reason.algorithm.update.num_epochs=0": "algorithm.update.num_epochs is 0; it must be at least 1",
    "stages.reason.sampling.temperature=0": "stages.reason.sampling.temperature is 0.0; it must be above 0",
    "stages.reason.sampling.max_new_tokens=0": "stages.reason.sampling.max_new_tokens is 0; it must be at least 1",
    "stages.reason.rewards.weights.style=1": "stages.reason.rewards: parts and weights differ in style",
}


@pytest.fixture(scope="module")
def tree():
    """The composition without overrides; composing takes Hydra a while."""
    tree = compose_tree([])
    OmegaConf.set_struct(tree, False)
    return tree


@pytest.fixture(scope="module")
def changed(tree):
    """A configuration with other values."""
    return lambda *overrides: validated(OmegaConf.merge(tree, OmegaConf.from_dotlist(list(overrides))))


@pytest.mark.parametrize("override", SPELLING)
def test_a_bad_override_is_refused_in_one_sentence(override):
    with pytest.raises(ConfigError, match=re.escape(SPELLING[override])) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", VALUES)
def test_a_bad_value_is_refused_in_one_sentence(override, changed):
    with pytest.raises(ConfigError, match=re.escape(VALUES[override])) as caught:
        changed(override)
    assert "\n" not in str(caught.value)


def test_a_key_that_hydra_let_pass_is_refused_with_its_full_path(changed):
    with pytest.raises(ConfigError, match=r"^stages\.reason\.sampling\.tempurature: .*did you mean 'temperature'"):
        changed("stages.reason.sampling.tempurature=1")


def test_stages_that_do_not_run_are_not_checked(changed):
    config = changed("order=[cold_start]", "stages.reason.algorithm.group_size=1")
    assert config.order == ["cold_start"]


def test_values_arrive_typed_and_interpolated():
    config = compose(
        ["seed=3", "output_dir=/x", "stages.reason.optimizer.lr=1e-3", "+stages.reason.optimizer.fused=true"]
    )
    assert config.model.build["seed"] == 3
    assert config.data.media.cache_dir == "/x/cache"
    assert config.stages["reason"].optimizer["lr"] == 1e-3
    assert config.stages["reason"].optimizer["fused"] is True
    assert config.stages["reason"].algorithm.group_size == 8
    assert config.stages["cold_start"].algorithm is None


def test_a_users_folder_adds_options_to_the_groups(tmp_path):
    (tmp_path / "experiment").mkdir()
    content = "# @package _global_\nrun_name: mine\nstages: {reason: {num_steps: 7, validate_every: 7}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(content)
    config = compose(["experiment=mine"], config_dir=tmp_path)
    assert (config.run_name, config.stages["reason"].num_steps) == ("mine", 7)
    with pytest.raises(ConfigError, match=r"experiment=mime: no such option; did you mean 'mine'?"):
        compose(["experiment=mime"], config_dir=tmp_path)


def test_the_shipped_configs_are_found():
    assert (configs_dir() / "train.yaml").is_file()


@pytest.fixture
def digests(changed):
    return lambda *overrides: {spec.name: spec.digest for spec in stage_specs(changed(*overrides))}


PLAIN = {"cold_start", "reason"}


@pytest.mark.parametrize(
    ("override", "moved"),
    [
        ("stages.reason.num_steps=300", {"reason"}),
        ("stages.reason.optimizer.lr=1", {"reason"}),
        ("stages.cold_start.num_steps=300", PLAIN),  # the second stage starts from the first
        ("seed=1", PLAIN),
        ("prompt.suffix=now", PLAIN),
        ("data.media.num_frames=8", PLAIN),
        ("model.dtype=bfloat16", PLAIN),
        ("trainer.precision=bf16-true", PLAIN),
        ("run_name=other", set()),
        ("tracking.uri=null", set()),
        ("evaluation.batch_size=8", set()),
        ("data.media.decode_workers=1", set()),
    ],
)
def test_a_digest_is_of_what_decides_the_outcome_and_of_nothing_else(override, moved, digests):
    before, after = digests(), digests(override)
    assert {name for name in before if before[name] != after[name]} == moved


def test_a_stage_on_another_base_does_not_depend_on_the_one_before(digests):
    before = digests("stages.reason.start_from=base")
    after = digests("stages.reason.start_from=base", "stages.cold_start.num_steps=300")
    assert before["reason"] == after["reason"]
    assert before["cold_start"] != after["cold_start"]


def test_a_stage_that_moves_in_the_order_is_another_stage(digests):
    assert digests()["reason"] != digests("order=[reason]")["reason"]
    assert digests()["cold_start"] == digests("order=[cold_start]")["cold_start"]


def test_the_tree_is_the_one_hydra_prints():
    tree = compose_tree(["seed=5"])
    assert OmegaConf.select(tree, "seed") == 5
    assert "hydra" not in tree
