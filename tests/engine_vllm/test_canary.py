"""A fault between engine and trainer ends the run before anything is sampled, and is named."""

from dataclasses import replace

import numpy as np
import omni
import pytest
import torch

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.canary import Canary
from lightning_mmrl.rollout.vllm import engine as product
from lightning_mmrl.types.media import DecodedAudio


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    from vllm_worlds import world

    made = world("qwen2_5_omni", tmp_path_factory.mktemp("model") / "model", canary=Canary(every=1, num_prompts=6))
    yield made
    made.engine.close()


@pytest.fixture
def world(made):
    made.engine.load_weights(made.policy, 0)
    return made


def watched(monkeypatch):
    """The comparisons to come."""
    found, check = [], Canary.check

    def noting(*arguments):
        found.append(check(*arguments))
        return found[-1]

    monkeypatch.setattr(Canary, "check", noting)
    return found


def test_an_engine_that_follows_passes(world, monkeypatch):
    found = watched(monkeypatch)
    for version in range(3):
        world.move(version)
        world.engine.load_weights(world.policy, version)
        world.rollout()
    assert len(found) == 3
    assert max(each.largest for each in found) < 1e-4


def test_weights_that_stay_behind_are_found(world):
    world.move(10, size=0.05)
    with pytest.raises(RolloutError, match=r"log-probabilities are up to .* nats from the trainer's, for sample p\d"):
        world.rollout()


def test_a_push_that_leaves_the_caches_is_found(world, monkeypatch):
    """The negative control of emptying them: encoder outputs of old weights, or a scheduler that believes in them."""
    world.rollout()
    monkeypatch.setattr(world.engine._host, "_empty_caches", lambda: None)
    world.move(11, size=0.05)
    world.engine.load_weights(world.policy, 11)
    with pytest.raises(RolloutError, match=r"Encoder cache miss|from the trainer's"):
        world.rollout()
    monkeypatch.undo()
    world.engine.load_weights(world.policy, 12)
    world.rollout()


def test_stale_encoder_outputs_are_found_without_any_error_of_vllm(world, monkeypatch):
    """As in trl issue 7198: nothing is emptied, on either side, and nothing complains."""
    world.rollout()
    monkeypatch.setattr(world.engine._host, "_empty_caches", lambda: None)
    keep = {"reset_encoder_cache": lambda: None, "reset_mm_cache": lambda: None}
    (runner,) = world.engine._host._llm.collective_rpc(lambda worker: worker.model_runner)
    for name, nothing in keep.items():
        monkeypatch.setattr(runner, name, nothing)
    with torch.no_grad():
        for tower in world.policy.media.backbone.towers:
            for parameter in tower.parameters():
                parameter.mul_(1.3)
    world.engine.load_weights(world.policy, 13)
    with pytest.raises(RolloutError, match=r"from the trainer's, for sample p\d \((audio|video|image)"):
        world.rollout()


@pytest.mark.parametrize("kind", ["audio", "video", "image"])
def test_media_that_do_not_reach_the_model_are_found(world, monkeypatch, kind):
    """The features of one kind are lost on the way: both the numbers and the missing reaction show."""
    inputs, keys = product.engine_prompts, world.policy.media.backbone.tower_inputs

    def deafened(prompts, backbone):
        found = inputs(prompts, backbone)
        return [
            replace(each, tensors={k: torch.zeros_like(v) if k == keys[kind] else v for k, v in each.tensors.items()})
            for each in found
        ]

    monkeypatch.setattr(product, "engine_prompts", deafened)
    with pytest.raises(RolloutError, match=rf"from the trainer's, for sample p\d \(.*{kind}"):
        world.rollout()
    world.engine.load_weights(world.policy, 14)
    loose = replace(world.engine._canary, tolerance=100.0)
    monkeypatch.setattr(world.engine, "_canary", loose)
    with pytest.raises(RolloutError, match=f"the same probabilities with and without {kind} for sample"):
        world.rollout()


def test_a_silent_sound_passes(world, monkeypatch):
    """Nothing can be taken away from it, so that nothing changes says nothing."""
    silence = DecodedAudio(waveform=np.zeros(8000, dtype=np.float32), sample_rate_hz=16_000)
    monkeypatch.setattr(omni, "noise_audio", lambda *_: silence)
    found = watched(monkeypatch)
    world.rollout(omni.prompts(world.encoder, ["<audio>angry"]))
    (comparison,) = found
    assert comparison.largest < 1e-4


def test_log_probabilities_that_are_no_numbers_are_handed_to_the_stage_or_refused_by_name(world, monkeypatch):
    """Sampled ones: the stage skips the step on all ranks. A greedy answer has no such end."""
    monkeypatch.setattr(world.engine, "_canary", None)
    world.engine.load_weights(world.policy, 15)
    sample = world.engine._host.sample

    def broken(*arguments):
        (first, *rest) = sample(*arguments)
        values = [{token: float("nan") for token in step} for step in first[0].logprobs]
        return [[replace(first[0], logprobs=values), *first[1:]], *rest]

    monkeypatch.setattr(world.engine._host, "sample", broken)
    rollout = world.rollout()
    finite = rollout.sampler_logprobs.isfinite().all(-1)
    assert not finite[0]
    assert finite[1:].all()
    with pytest.raises(RolloutError, match="no finite probabilities for sample p0"):
        world.greedy()
