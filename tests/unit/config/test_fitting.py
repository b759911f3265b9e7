"""`num_steps` alone can be set: what else counts steps is fitted to it, in a sentence each."""

import pytest

from lightning_mmrl.config.compose import compose_tree
from lightning_mmrl.config.validate import validated

REASON = "stages.reason."
LONGER = f"++{REASON}algorithm.phases={{longer: {{after: 100}}, short: {{after: 150}}}}"


def fitted(*overrides):
    said = []
    return validated(compose_tree(list(overrides)), said.append).stages["reason"], said


@pytest.mark.parametrize("num_steps", [1, 2, 20, 49])
def test_validations_beyond_the_last_step_become_one_at_it(num_steps):
    stage, said = fitted(f"{REASON}num_steps={num_steps}", f"{REASON}schedule.warmup_steps=0")
    assert stage.validate_every == num_steps
    assert said == [
        f"stages.reason.validate_every is 50, and the stage has {num_steps} steps: its last validates",
    ]


def test_a_cooldown_is_as_long_as_the_stage_can_have():
    stop = f"++{REASON}stop_when={{metric: validation/uar, at_least: 0.5}}"
    stage, said = fitted(f"{REASON}num_steps=60", f"{REASON}cooldown_steps=60", stop)
    assert stage.cooldown_steps == 59
    assert said == ["stages.reason.cooldown_steps is 60, and the stage has 60 steps: taken as the most"]


def test_phases_that_never_begin_are_left_out():
    stage, said = fitted(f"{REASON}num_steps=120", LONGER)
    assert list(stage.algorithm.phases) == ["longer"]
    assert said == ["stages.reason.algorithm.phases.short begins after step 150 of 120: it never does"]


def test_a_warm_up_that_outlasts_the_stage_is_said_and_stays():
    stage, said = fitted(f"{REASON}num_steps=60", f"{REASON}schedule.warmup_steps=61")
    assert stage.schedule["warmup_steps"] == 61
    assert said == ["stages.reason.schedule.warmup_steps is 61, and the stage has 60: optimizer.lr is never reached"]


def test_what_fits_is_left_alone_and_nothing_is_said():
    stage, said = fitted(LONGER)
    assert (stage.num_steps, stage.validate_every, list(stage.algorithm.phases)) == (250, 50, ["longer", "short"])
    assert said == []
