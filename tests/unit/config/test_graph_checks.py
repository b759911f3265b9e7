"""Decode steps that cannot be captured are refused by key, value and fix."""

import re

import pytest

from lightning_mmrl.errors import ConfigError

GRAPHS = "rollout.cuda_graphs"
REFUSED = {
    (f"{GRAPHS}=1",): f"{GRAPHS} is 1; it must be true or false",
    (f"{GRAPHS}=true", "rollout.speculation.max_draft=4"): (
        f"rollout.speculation.max_draft is 4; it must be 0 with {GRAPHS}=true"
    ),
    (f"{GRAPHS}=true", "model.sharing=false"): f"model.sharing is false; it must be true with {GRAPHS}=true",
    (f"{GRAPHS}=true", "trainer.strategy=fsdp2", "trainer.devices=2"): (
        f"trainer.strategy is fsdp2; it must be auto or ddp with {GRAPHS}=true"
    ),
}


@pytest.mark.parametrize("overrides", REFUSED, ids=str)
def test_steps_that_cannot_be_captured_are_refused_in_one_sentence(changed, overrides):
    with pytest.raises(ConfigError, match=re.escape(REFUSED[overrides])) as caught:
        changed(*overrides)
    assert "\n" not in str(caught.value)


def test_graphs_are_off_unless_they_are_asked_for(changed):
    assert changed().rollout["cuda_graphs"] is False
    assert changed(f"{GRAPHS}=true").rollout["cuda_graphs"] is True
