"""A lag that a stage, an engine or an algorithm cannot have is refused by key, value and fix."""

import re

import pytest

from lightning_mmrl.config.specs import stage_specs
from lightning_mmrl.errors import ConfigError

KEY, LAG = "stages.reason.algorithm", "rollout.lag"
ON = f"{KEY}.correction={{_target_: lightning_mmrl.algorithms.corrections.importance.ImportanceCorrection}}"
BAND = f"{KEY}.select={{_target_: lightning_mmrl.algorithms.selection.accuracy_band.AccuracyBand}}"
REFUSED = {
    (f"{LAG}=1",): f"{KEY}.correction is null, and rollout.lag above 0 needs one",
    (f"{LAG}=-1",): f"{LAG} is -1; it must be at least 0",
    (f"{LAG}=1.5",): f"{LAG} is 1.5; it must be an integer",
    (f"{LAG}=true",): f"{LAG} is True; it must be an integer",
    (
        f"{LAG}=1",
        ON,
        BAND,
        f"{KEY}.max_samplings=3",
    ): f"{KEY}.max_samplings is 3; it must be 1 with rollout.lag above 0",
    (
        f"{LAG}=1",
        ON,
        "trainer.strategy=fsdp2",
        "trainer.devices=2",
    ): "trainer.strategy is fsdp2; it must be auto or ddp",
    ("rollout._target_=lightning_mmrl.rollout.vllm.engine.VLLMEngine", f"{LAG}=2", ON): (
        f"{LAG} is 2, and only rollout=hf samples ahead"
    ),
    (f"{LAG}=1", ON, f"{KEY}.critic.gamma=1.0", f"{KEY}.advantage=null"): (
        f"{KEY}.critic is set; it must be null with {LAG} above 0"
    ),
}


@pytest.mark.parametrize("overrides", REFUSED, ids=str)
def test_what_cannot_be_sampled_ahead_is_refused_in_one_sentence(changed, overrides):
    with pytest.raises(ConfigError, match=re.escape(REFUSED[overrides])) as caught:
        changed(*overrides)
    assert "\n" not in str(caught.value)


def test_a_lag_makes_another_stage_and_no_lag_is_the_stage_of_before(changed):
    """So finished stages stay valid, and a changed lag trains the stage anew."""
    without, ahead = ({spec.name: spec.digest for spec in stage_specs(changed(ON, f"{LAG}={lag}"))} for lag in (0, 1))
    assert without["cold_start"] == ahead["cold_start"]
    assert without["reason"] != ahead["reason"]
    config = changed(ON)
    del config.rollout["lag"]
    assert {spec.name: spec.digest for spec in stage_specs(config)} == without
