"""Keys of rewards: a component that is null is left out, with its weight."""

import pytest

from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.algorithm import RewardSettings

KEY = "stages.reason.rewards"


def test_a_component_that_is_null_is_left_out_with_its_weight():
    both = compose([]).stages["reason"].rewards
    one = compose([f"{KEY}.components.format=null"]).stages["reason"].rewards
    assert set(both.components) == set(both.weights) == {"format", "label"}
    assert set(one.components) == set(one.weights) == {"label"}
    assert one.components["label"] == both.components["label"]


def test_a_weight_of_nothing_is_still_refused():
    with pytest.raises(ConfigError, match=r"weights\.typo: weighs no component"):
        compose([f"{KEY}.components.format=null", f"+{KEY}.weights.typo=1.0"])


def test_the_component_that_passes_may_not_be_left_out():
    with pytest.raises(ConfigError, match="pass_component"):
        compose([f"{KEY}.components.label=null"])


def test_settings_keep_what_is_there():
    found = RewardSettings(components={"a": {"_target_": "x"}, "b": None}, weights={"a": 1.0, "b": 2.0})
    assert (found.components, found.weights) == ({"a": {"_target_": "x"}}, {"a": 1.0})
