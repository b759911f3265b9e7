"""A key that was renamed is refused, and the message has the new one."""

import pytest

from lightning_mmrl.config.compose import compose
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.settings.renamed import RENAMED, renamed

NODE = "{_target_: lightning_mmrl.rewards.think_answer_format.ThinkAnswerFormat}"


@pytest.mark.parametrize(
    ("override", "now"),
    [
        ("stages.reason.algorithm.distill=null", "stages.reason.algorithm.resample"),
        ("+stages.reason.algorithm.distill=null", "stages.reason.algorithm.resample"),
        ("stages.reason.rewards.pass_part=label", "stages.reason.rewards.pass_component"),
        (f"+stages.reason.rewards.parts.mine={NODE}", "stages.reason.rewards.components"),
        ("stages.reason.rewards.parts.label.labels=[a,b]", "stages.reason.rewards.components"),
    ],
)
def test_the_message_has_the_new_name(override, now):
    with pytest.raises(ConfigError, match=rf"unknown key; it is called '{now}[a-z_.]*' now"):
        compose(["experiment=quickstart", override])


def test_the_new_names_are_taken():
    for new in RENAMED.values():
        assert renamed(f"stages.reason.{new}") is None
    config = compose(["experiment=quickstart", "stages.reason.algorithm.resample=null"])
    assert config.stages["reason"].rewards.pass_component == "label"


def test_a_key_that_only_ends_like_an_old_one_is_not_renamed():
    assert renamed("stages.reason.my_rewards.parts") is None
    assert renamed("stages.reason.rewards.parts_list") is None
