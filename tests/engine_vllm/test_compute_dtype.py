"""Float32 weights that compute in bfloat16, as under bf16-mixed: engine, push and canary are of the passes' type."""

import pytest
import torch

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.canary import Canary


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from vllm_worlds import world

    canary = Canary(every=1, num_prompts=6)
    folder = tmp_path_factory.mktemp("model") / "model"
    made = world("qwen2_5_omni", folder, compute_dtype=torch.bfloat16, canary=canary)
    yield made
    made.engine.close()


@pytest.fixture(autouse=True)
def autocast():
    """As Lightning runs a step: without the cache of cast weights, which would hold those of the step before."""
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        yield


def weights(worker):
    return {each.dtype for each in worker.model_runner.get_model().parameters()}


def test_the_engine_is_of_the_type_of_the_passes_and_follows_in_it(world):
    for version in range(3):
        world.move(version)
        world.engine.load_weights(world.policy, version)
        assert world.gap(world.rollout()) < 0.5
    assert world.engine._num_doubts == 0
    assert world.engine._host._llm.collective_rpc(weights) == [{torch.bfloat16}]
    assert {each.dtype for each in world.policy.parameters()} == {torch.float32}


def test_a_layer_that_stays_behind_is_found_at_once(world):
    world.engine.load_weights(world.policy, 10)
    with torch.no_grad():
        for parameter in world.policy.model.model.layers[1].parameters():
            parameter.mul_(-1.0)
    with pytest.raises(RolloutError, match="from the trainer's, for sample"):
        world.rollout()
