"""Critics that cannot work are refused, before torch where that is possible, and what merely looks odd is not."""

import re

import pytest
from omegaconf import OmegaConf

from lightning_mmrl.app.run import check_all_targets
from lightning_mmrl.config.compose import compose_tree
from lightning_mmrl.config.validate import validated
from lightning_mmrl.errors import ConfigError

CRITIC = "stages.reason.algorithm.critic"
REFUSED = {
    f"{CRITIC}.learning_rate=0": f"{CRITIC}.learning_rate is 0.0; it must be above 0 and finite",
    f"{CRITIC}.learning_rate=-1e-6": "learning_rate is -1e-06; it must be above 0",
    f"{CRITIC}.learning_rate=inf": "learning_rate is inf; it must be above 0 and finite",
    f"{CRITIC}.max_grad_norm=nan": "max_grad_norm is nan; it must be above 0",
    f"{CRITIC}.value_clip=0": "value_clip is 0.0; it must be above 0 and finite, or null",
    f"{CRITIC}.value_clip=-0.2": "value_clip is -0.2; it must be above 0",
    f"{CRITIC}.gamma=0": "gamma is 0.0; it must be above 0 and at most 1",
    f"{CRITIC}.gamma=1.01": "gamma is 1.01; it must be above 0 and at most 1",
    f"{CRITIC}.gae_lambda=-0.5": "gae_lambda is -0.5; it must be from 0 to 1",
    f"{CRITIC}.gae_lambda=nan": "gae_lambda is nan; it must be from 0 to 1",
    f"{CRITIC}.whiten=maybe": "whiten",
    f"{CRITIC}.lambda=1": f"{CRITIC}.lambda: unknown key",
    "stages.reason.algorithm.group_size=0": "group_size is 0; it must be at least 1",
    "stages.reason.algorithm.phases={x: {after: 9, group_size: 0}}": "x.group_size is 0; it must be null or at least 1",
    "stages.reason.algorithm.advantage={_target_: lightning_mmrl.algorithms.advantages.leave_one_out.LeaveOneOut}": (
        "stages.reason.algorithm has both an advantage and a critic; set one of them to null"
    ),
}
TAKEN = (
    "stages.reason.algorithm.group_size=1",
    "stages.reason.algorithm.phases={x: {after: 9, group_size: 1}}",
    f"{CRITIC}.value_clip=null",
    f"{CRITIC}.max_grad_norm=inf",
    f"{CRITIC}.gae_lambda=0",
    f"{CRITIC}=null",
)


@pytest.fixture(scope="module")
def trees():
    found = {name: compose_tree([f"algorithm@stages.reason={name}"]) for name in ("grpo", "ppo")}
    for tree in found.values():
        OmegaConf.set_struct(tree, False)
    return found


@pytest.fixture
def changed(trees):
    """The configuration with another value."""
    return lambda name, override: validated(OmegaConf.merge(trees[name], OmegaConf.from_dotlist([override])))


@pytest.mark.parametrize("override", REFUSED)
def test_a_bad_value_is_refused_in_one_sentence(changed, override):
    with pytest.raises(ConfigError, match=re.escape(REFUSED[override])) as caught:
        changed("ppo", override)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("override", TAKEN)
def test_a_value_that_can_work_is_taken(changed, override):
    assert changed("ppo", override).stages["reason"].algorithm


def test_a_module_without_a_critic_refuses_one(changed):
    config = changed("grpo", f"{CRITIC}={{gamma: 0.9}}")
    with pytest.raises(
        ConfigError, match=r"critic is set, and stages\.reason\.module trains none; .* algorithm@stages"
    ):
        check_all_targets(config)


def test_groups_that_are_compared_have_two_completions_at_least(changed):
    with pytest.raises(
        ConfigError, match="group_size is 1; it must be at least 2, so that completions can be compared"
    ):
        changed("grpo", "stages.reason.algorithm.group_size=1")
