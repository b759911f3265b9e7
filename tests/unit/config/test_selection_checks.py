"""Selections that cannot work are refused by key, value and rule, before anything is loaded."""

import pytest

from lightning_mmrl.app.preflight import preflight
from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError

STAGE = "stages.reason.algorithm"
BAND = "{_target_: lightning_mmrl.algorithms.selection.accuracy_band.AccuracyBand, low: 0.9, high: 0.1}"
LOSS = "{_target_: lightning_mmrl.algorithms.losses.ppo_clip.PPOClip}"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["max_samplings=0"], "max_samplings is 0; it must be at least 1"),
        (["max_samplings=3"], "max_samplings is 3, and nothing is selected; set .*select, or .*max_samplings=1"),
        (["select_after=2"], "select_after is 2, and nothing is selected"),
        (["select_after=-1"], "select_after is -1; it must be at least 0 and less than num_steps"),
        (["select=band"], "select is band; it must be null or a node with a _target_"),
        (["resample=0.5"], "resample is 0.5; it must be null or a node with a _target_"),
        (["max_samplings=many"], "max_samplings is many; it must be a whole number"),
        (["max_sampling=3"], "max_sampling: unknown key.*did you mean .*max_samplings"),
    ],
)
def test_a_selection_that_cannot_work_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose(["experiment=quickstart", *(f"++{STAGE}.{each}" for each in overrides)])


def test_values_that_do_not_fit_are_refused_before_anything_is_loaded():
    config = compose(["experiment=quickstart", f"{STAGE}.select={BAND}"])
    with pytest.raises(ConfigError, match=r"algorithm\.select: low is 0\.9 and high is 0\.1"):
        preflight(config)


@pytest.mark.parametrize(("part", "kind"), [("select", "selection"), ("resample", "resampling")])
def test_a_part_of_another_kind_is_refused(part, kind):
    with pytest.raises(ConfigError, match=rf"algorithm\.{part}\._target_ is .*PPOClip', which is no {kind}"):
        compose(["experiment=quickstart", f"{STAGE}.{part}={LOSS}"])


def test_a_critic_gives_no_advantages_to_draw_completions_by():
    pad = "{_target_: lightning_mmrl.algorithms.selection.pad.PaperPAD}"
    with pytest.raises(ConfigError, match="has both resample and a critic"):
        compose(["experiment=quickstart", "algorithm@stages.reason=ppo", f"{STAGE}.resample={pad}"])


@pytest.mark.parametrize(
    ("preset", "part"), [("ppo", "critic"), ("revisual_mm", "resample")], ids=["critic", "resample"]
)
def test_a_router_goes_without_a_critic_and_without_resample(preset, part):
    with pytest.raises(ConfigError, match=rf"algorithm\.{part} is set; it must be null: prompts that .*router sends"):
        compose(["experiment=quickstart", f"algorithm@stages.reason={preset}", f"{STAGE}.router={{}}"])


def test_a_refill_belongs_to_rl_stages():
    with pytest.raises(ConfigError, match=r"stages\.cold_start\.algorithm: belongs to rl stages"):
        compose(["experiment=quickstart", "++stages.cold_start.algorithm.max_samplings=3"])
