"""Weights that are not the model's, and a model that does not fit, end the run in one sentence."""

import families
import pytest
import torch

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.vllm import process
from lightning_mmrl.rollout.vllm.engine import VLLMEngine
from lightning_mmrl.rollout.vllm.settings import VLLMSettings
from lightning_mmrl.rollout.weights import PolicyWeights
from lightning_mmrl.settings.algorithm import SamplingSettings


@pytest.fixture
def world(tmp_path):
    """An engine of its own: one that was refused a push cannot take another."""
    from vllm_worlds import world

    made = world("qwen2_5_omni", tmp_path / "model")
    yield made
    made.engine.close()


NAME = "thinker.model.layers.0.mlp.up_proj.weight"


def _without(weights):
    return ((name, tensor) for name, tensor in weights if not name.endswith("layers.0.mlp.down_proj.weight"))


def _cut(weights):
    return ((name, tensor[:, :-1] if name == NAME else tensor) for name, tensor in weights)


def _more(weights):
    yield from weights
    yield "thinker.model.layers.7.mlp.up_proj.weight", torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without, r"has no language_model.model.layers.0.mlp.down_proj.weight, which vLLM's model needs"),
        (_cut, r"at thinker.model.layers.0.mlp.up_proj.weight \(192, 63\)"),
        (_more, r"at thinker.model.layers.7.mlp.up_proj.weight \(2, 2\): There is no module"),
    ],
)
def test_weights_that_are_not_those_of_the_model_are_refused(world, monkeypatch, change, message):
    items = PolicyWeights.items
    monkeypatch.setattr(PolicyWeights, "items", lambda weights: change(items(weights)))
    with pytest.raises(RolloutError, match=message):
        world.engine.load_weights(world.policy, 1)


CACHE = "rollout.settings.kv_cache_gib"


def test_a_model_that_does_not_fit_is_one_sentence_and_leaves_no_trace(tmp_path, monkeypatch):
    checkpoint = families.build("qwen2", tmp_path / "model")
    encoder, policy = families.load("qwen2", checkpoint, torch.float32)
    settings = VLLMSettings(kv_cache_gib=0.0001)
    engine = VLLMEngine(policy, encoder=encoder, sampling=SamplingSettings(max_new_tokens=4), settings=settings)
    with pytest.raises(RolloutError, match=rf"^{CACHE} is 0.0001, .*; raise {CACHE} to at least "):
        engine.load_weights(policy, 0)
    # Where our own figures are too low, vLLM refuses, and the message points the same way.
    with monkeypatch.context() as patch:
        patch.setattr(process, "check_cache", lambda *_: None)
        with pytest.raises(RolloutError, match=rf"^vLLM cannot load the model: .*; raise {CACHE}, or lower"):
            engine.load_weights(policy, 0)
    engine.close()
    # An engine of the same process takes an existing process group for the group of the trainer's ranks.
    assert not torch.distributed.is_initialized()
    fitting = VLLMEngine(policy, encoder=encoder, sampling=SamplingSettings(max_new_tokens=4))
    fitting.load_weights(policy, 0)
    assert fitting.version == 0
    fitting.close()
    assert not torch.distributed.is_initialized()
