"""Corrections that cannot work are refused by key and value before anything is loaded, and so is top-p without one."""

import re

import pytest

from lightning_mmrl.algorithms.corrections.importance import ImportanceCorrection
from lightning_mmrl.app.preflight import rehearse
from lightning_mmrl.app.stages import build_algorithm
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.registry.targets import build

KEY, TOP_P = "stages.reason.algorithm.correction", "stages.reason.sampling.top_p"
TARGET = "lightning_mmrl.algorithms.corrections.importance.ImportanceCorrection"
ON = f"{KEY}={{_target_: {TARGET}}}"
EARLY = {
    (f"{KEY}=token",): f"{KEY} is token; it must be null or a node with a _target_",
    (f"{KEY}={{level: token}}",): f"{KEY} is {{'level': 'token'}}; it must be null or a node with a _target_",
    (f"{TOP_P}=0.9",): f"{TOP_P} is 0.9; it must be 1, since without {KEY} the policy's probabilities",
    (f"{TOP_P}=0", ON): f"{TOP_P} is 0.0; it must be above 0 and at most 1",
    (f"{TOP_P}=1.1", ON): f"{TOP_P} is 1.1; it must be above 0 and at most 1",
    (f"{TOP_P}=nan", ON): f"{TOP_P} is nan; it must be above 0 and at most 1",
}
LATE = {
    "level: batch": f"{KEY}: level is 'batch'; it must be one of token, sequence",
    "mode: clip": f"{KEY}: mode is 'clip'; it must be one of truncate, mask",
    "cap: 1.0": f"{KEY}: cap is 1.0; weights are 1 where engine and policy agree, so it must be above 1",
    "cap: many": f"{KEY}.cap is many; it must be a number",
    "floor: 1.0": f"{KEY}: floor is 1.0; it must be at least 0 and below 1",
    "caps: 2": f"{KEY}.caps: {TARGET} has no such parameter",
}


def algorithm(config):
    stage = config.stages["reason"]
    return build_algorithm(stage, build({**stage.module, "_partial_": True}, "module"), "stages.reason")


@pytest.mark.parametrize("overrides", EARLY, ids=str)
def test_what_cannot_work_is_refused_in_one_sentence(changed, overrides):
    with pytest.raises(ConfigError, match=re.escape(EARLY[overrides])) as caught:
        changed(*overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", LATE)
def test_a_value_that_the_correction_refuses_is_named_before_anything_is_loaded(changed, values):
    config = changed(f"{KEY}={{_target_: {TARGET}, {values}}}")
    with pytest.raises(ConfigError, match=re.escape(LATE[values])):
        rehearse(config)


def test_another_part_is_no_correction(changed):
    with pytest.raises(ConfigError, match=re.escape(f"{KEY}._target_ is ") + ".*PPOClip', which is no correction"):
        changed(f"{KEY}={{_target_: lightning_mmrl.algorithms.losses.ppo_clip.PPOClip}}")


def test_nothing_is_corrected_unless_it_is_asked_for(changed):
    assert algorithm(changed()).correction is None
    config = changed(f"{KEY}={{_target_: {TARGET}, level: sequence, mode: mask, cap: .inf}}", f"{TOP_P}=0.9")
    rehearse(config)
    assert algorithm(config).correction == ImportanceCorrection(level="sequence", mode="mask", cap=float("inf"))
    assert config.stages["reason"].sampling.top_p == 0.9
