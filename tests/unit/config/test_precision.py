"""Which types of weights and of computation go together, and what `auto` stands for."""

import re

import pytest
import yaml

from lightning_mmrl.config.compose import compose
from lightning_mmrl.config.folders import configs_dir
from lightning_mmrl.errors import ConfigError

HALF = "model.dtype=bfloat16"
RELEASED = sorted(
    path.stem
    for path in (configs_dir() / "model").glob("*.yaml")
    if yaml.safe_load(path.read_text()).get("dtype") == "bfloat16"
)

REFUSED = {
    (HALF, "trainer.precision=32-true"): "stages.cold_start.trainer.precision is 32-true with model.dtype bfloat16, "
    "where rounding undoes small updates: 250 steps of AdamW at a learning rate of 1e-6 move 2 % of such weights; "
    "take bf16-mixed, which keeps float32 weights and moves all of them",
    (HALF, "stages.reason.trainer.precision=32-true"): "stages.reason.trainer.precision is 32-true with model.dtype",
    (HALF, "trainer.precision=64-true"): "trainer.precision is 64-true, which does not go with model.dtype bfloat16",
    (HALF, "trainer.precision=16-mixed"): "trainer.precision is 16-mixed, which does not go with model.dtype bfloat16",
    ("model.dtype=float64", "trainer.precision=bf16-mixed"): "precision is bf16-mixed, which does not go with model.dt",
    ("model.dtype=float64", "trainer.precision=16-mixed"): "float64 is never computed in half precision; take trainer",
    ("trainer.strategy=fsdp2", "trainer.precision=16-mixed"): "it must be one that fsdp2 runs: 32-true, 64-true, bf16-",
}


@pytest.mark.parametrize("overrides", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_sentence(overrides):
    with pytest.raises(ConfigError, match=re.escape(REFUSED[overrides])) as caught:
        compose(list(overrides))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "32-true"),
        (["model.dtype=float64"], "32-true"),
        ([HALF], "bf16-mixed"),
        ([HALF, "trainer.strategy=fsdp2"], "bf16-mixed"),
        ([HALF, "stages.cold_start.adapter={}", "stages.reason.adapter={}"], "bf16-mixed"),
        (["trainer.precision=bf16-mixed"], "bf16-mixed"),
        (["trainer.precision=64-true"], "64-true"),
    ],
)
def test_auto_follows_the_type_of_the_weights(overrides, expected):
    config = compose(overrides)
    assert {config.trainer.precision, *(stage.trainer.precision for stage in config.stages.values())} == {expected}


def test_every_released_preset_trains_float32_weights():
    assert len(RELEASED) >= 16
    for name in RELEASED:
        config = compose([f"model={name}"])
        assert all(stage.trainer.mixed for stage in config.trained.values()), name


def test_frozen_bfloat16_weights_may_be_computed_with_as_they_are():
    """Adapters are float32 themselves, and stages that sample train nothing."""
    adapters = [f"stages.{name}.adapter={{}}" for name in ("cold_start", "reason")]
    config = compose([HALF, "trainer.precision=32-true", *adapters])
    assert config.stages["reason"].trainer.precision == "32-true"
    drawn = compose([HALF, "experiment=own_answers", "stages.draw.trainer.precision=32-true"])
    assert drawn.stages["draw"].trainer.precision == "32-true"


def test_an_optimizer_of_the_users_own_may_round_as_it_likes(changed):
    """Whether it may run at all is asked elsewhere."""
    own = [f"stages.{name}.optimizer._target_=my_package.Rounding" for name in ("cold_start", "reason")]
    with pytest.raises(ConfigError, match="my_package") as caught:
        changed(HALF, "trainer.precision=32-true", *own)
    assert "rounding undoes" not in str(caught.value)
