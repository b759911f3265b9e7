"""An RL stage whose rollouts are vLLM's: weights are pushed after each update, and engine and trainer stay one."""

import one_step
import pytest
import torch
from algorithms import changed

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.rollout.canary import Canary
from lightning_mmrl.stages.grpo import GRPOModule

STEPS = 4
BOUND = 1e-4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from vllm_worlds import world

    made = world("qwen2_5_omni", tmp_path_factory.mktemp("model") / "model", canary=Canary(every=1))
    yield made
    made.engine.close()


def train(world, folder, monkeypatch):
    """Reports of a stage that trains everything, and the versions that its rollouts were sampled with."""
    versions, generate = [], world.engine.generate

    def noting(*args, **kwargs):
        rollout = generate(*args, **kwargs)
        versions.extend(set(rollout.policy_version.tolist()))
        return rollout

    monkeypatch.setattr(world.engine, "generate", noting)
    algorithm = changed(GRPOModule.default_algorithm, group_size=4)
    module = GRPOModule(
        world.policy, world.engine, one_step.rewards(), **one_step.settings(folder), algorithm=algorithm
    )
    return one_step.reports(module, world.batch, folder, STEPS), versions


def test_rollouts_follow_every_update(world, tmp_path, monkeypatch):
    reports, versions = train(world, tmp_path, monkeypatch)
    assert len(reports) == STEPS
    for report in reports:
        assert report["train/grad_norm"] > 0
        assert report["mismatch/weight_mean"] == pytest.approx(1.0, abs=BOUND)
        assert report["mismatch/logprob_gap_max"] < BOUND
        # The canary scores prompts as well; that is in no count of the iteration.
        assert report["media/tower_prompts"] == len(world.batch.samples) - 1  # one is of text alone
    assert sorted(set(versions)) == list(range(STEPS))


def test_an_engine_without_the_push_drifts_away_from_the_policy(world, tmp_path, monkeypatch):
    """The negative control: the first iteration is right, and then the statistics say how far it is off."""
    monkeypatch.setattr(world.engine, "_canary", None)
    world.engine.load_weights(world.policy, 0)
    monkeypatch.setattr(world.engine, "load_weights", lambda policy, version: None)
    first, *later = [report["mismatch/logprob_gap_max"] for report in train(world, tmp_path, monkeypatch)[0]]
    assert first < BOUND
    assert min(later) > 10 * BOUND


def test_device_memory_is_given_back_and_returns_in_parts(world, monkeypatch):
    """The order on a GPU, where weights return before the push and the cache after it; a CPU keeps its memory."""
    host, calls, free = world.engine._host, [], iter([0, 2**30, 0, 1000])
    empty, step = host._empty_caches, host._llm.llm_engine.step
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (next(free), 2**40))
    monkeypatch.setattr(host, "_sleeps", True)
    monkeypatch.setattr(host._llm, "sleep", lambda level: calls.append(f"sleep {level}"))
    monkeypatch.setattr(host._llm, "wake_up", lambda tags: calls.append(f"wake {tags}"))
    monkeypatch.setattr(host, "_empty_caches", lambda: calls.append("pushed") or empty())
    monkeypatch.setattr(host._llm.llm_engine, "step", lambda: calls.append("step") or step())
    world.engine.sleep()
    world.engine.sleep()
    world.engine.load_weights(world.policy, 50)
    world.rollout()
    assert calls[:5] == ["sleep 1", "wake ['weights']", "pushed", "wake ['kv_cache']", "step"]
    assert set(calls[5:]) <= {"step"}
    with pytest.raises(RolloutError, match=r"gave 0.00 GiB of the device back .*set rollout.settings.sleep_level=0"):
        world.engine.sleep()
