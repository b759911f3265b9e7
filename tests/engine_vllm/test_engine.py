"""vLLM samples from the policy: the same tokens and log-probabilities as the trainer, for every family and medium."""

import families
import omni
import pytest
import torch

from lightning_mmrl.rollout.weights import PolicyWeights
from lightning_mmrl.training.rng import restore_rng, rng_state

FAMILIES = list(families.FAMILIES)
BOUND = 1e-4
PUSHES = 20


@pytest.fixture(scope="module", params=FAMILIES)
def world(request, tmp_path_factory):
    from vllm_worlds import world

    made = world(request.param, tmp_path_factory.mktemp("model") / "model", temperature=0.8)
    yield made
    made.engine.close()


def test_engine_and_trainer_are_one_policy_before_and_after_pushes_with_trainable_towers(world):
    gaps, agree = [], []
    for version in range(PUSHES + 1):
        if version:
            world.move(version)
            world.engine.load_weights(world.policy, version)
        rollout = world.rollout()
        assert set(rollout.policy_version.tolist()) == {version}
        gaps.append(world.gap(rollout))
        agree.append(world.greedy() == world.own_greedy())
    assert max(gaps) < BOUND
    assert all(agree)


def test_weights_that_were_not_pushed_show(world):
    world.engine.load_weights(world.policy, 100)
    world.move(100)
    assert world.gap(world.rollout()) > 100 * BOUND
    world.engine.load_weights(world.policy, 101)
    assert world.gap(world.rollout()) < BOUND


def test_every_trainable_tensor_arrives_and_none_is_invented(world):
    """Each alone is changed and pushed: the engine's distribution follows, and is the trainer's again."""
    pushed = [name for name, _ in PolicyWeights(world.policy).items()]
    assert sorted(pushed) == sorted(world.policy.model.state_dict())
    world.engine.load_weights(world.policy, 200)
    parameters = dict(world.policy.model.named_parameters())
    groups = {name.split(".layers.")[0].split(".blocks.")[0] for name in parameters}
    before, arrived = world.engine.first_logprobs(world.batch), set()
    for group in sorted(groups):
        with torch.no_grad():
            for name, parameter in parameters.items():
                if name.startswith(group):
                    parameter.mul_(1.1).add_(0.01)
        world.engine.load_weights(world.policy, 201)
        after = world.engine.first_logprobs(world.batch)
        if after != before:
            arrived.add(group)
        assert world.gap(world.rollout()) < BOUND
        before = after
    # The thinker has two embeddings of sound markers that neither forward pass reads.
    assert groups - arrived <= {"audio_tower.audio_bos_eos_token.weight"}


def test_the_seed_of_a_row_alone_decides_its_noise(world):
    first, second = world.rollout(group_size=3), world.rollout(group_size=3)
    assert torch.equal(first.completion_ids, second.completion_ids)
    assert len({tuple(row) for row in first.completion_ids.tolist()}) > len(world.batch.samples)
    last = world.batch.select([len(world.batch.samples) - 1])
    seeds = [[100 * (len(world.batch.samples) - 1) + sample for sample in range(3)]]
    alone = world.engine.generate(last, group_size=3, seeds=seeds)
    width = alone.completion_ids.shape[1]
    assert torch.equal(alone.completion_ids, first.completion_ids[-3:, :width])


def test_no_banned_token_is_sampled_and_none_counts(world):
    """The head is made to prefer a banned id by far; trainer and engine leave it out of what they normalize by."""
    banned = int(world.policy.banned_ids[0])
    head = world.policy.head.weight
    before = head.detach().clone()
    with torch.no_grad():
        head[banned] = 50 * head.detach().mean(0)
    world.engine.load_weights(world.policy, 300)
    rollout = world.rollout(group_size=4)
    gap = world.gap(rollout)
    with torch.no_grad():
        head.copy_(before)
    assert not torch.isin(rollout.completion_ids[rollout.completion_mask], world.policy.banned_ids).any()
    assert gap < BOUND
    world.engine.load_weights(world.policy, 301)


def test_completions_end_at_the_limit_or_at_an_end_token(world):
    rollout = world.rollout(group_size=8, max_new_tokens=3)
    ends = set(world.encoder.eos_token_ids)
    for row, completion in enumerate(rollout.completions):
        ids = rollout.completion_ids[row][rollout.completion_mask[row]].tolist()
        assert completion.num_tokens == len(ids) <= 3
        assert completion.truncated == (ids[-1] not in ends)
        assert not ends & set(ids[:-1])


def test_only_finished_completions_are_assembled(world, monkeypatch):
    """Their number does not depend on how long they are; every step of a completion used to make one."""
    engine, given = world.engine._host._llm.llm_engine, []
    step = engine.step

    def counted():
        outputs = step()
        given.append(len(outputs))
        return outputs

    monkeypatch.setattr(engine, "step", counted)
    rollout = world.rollout(group_size=4)
    assert len(given) >= rollout.completion_ids.shape[1] > 1
    assert sum(given) == len(rollout.completion_ids)


def test_sampling_and_pushing_leave_the_process_as_it_was(world):
    host, weights = world.engine._host, PolicyWeights(world.policy, world.encoder.engine_prefix)
    requests = world.engine._requests(world.batch, [(1, 2)] * len(world.batch.samples), max_tokens=4)
    # vLLM alone: the checks of shapes that tests switch on draw from the generators as well.
    threads, state = torch.get_num_threads(), rng_state()
    host.push(weights, 400)
    host.sample(requests, lambda: None)
    after = rng_state()
    restore_rng(state)
    assert torch.equal(after["torch"], state["torch"])
    assert after["python"] == state["python"]
    assert torch.equal(after["numpy"][1], state["numpy"][1])
    assert torch.get_num_threads() == threads
    torch.set_num_threads(threads + 1)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)


@pytest.mark.parametrize("frames", [4, 41])
def test_positions_are_those_that_vllm_itself_gives_a_clip(world, frames):
    """A long clip of small frames goes further in time than its frames are wide: text goes on after the last time."""
    from vllm_worlds import own_positions

    if "video" not in world.encoder.media_kinds:
        assert world.encoder.media_kinds == frozenset()
        return
    clip = omni.noise_video(0, num_frames=frames, duration_s=frames / 2)
    prompt, own = own_positions(world, clip)
    assert torch.equal(own, prompt.positions)


def test_a_clip_with_its_sound_within_it(world):
    from vllm_worlds import interleaved

    if world.name != "qwen2_5_omni":
        assert "audio" not in world.encoder.media_kinds
        return
    batch = interleaved(world)
    assert world.gap(world.rollout(batch), batch) < BOUND
    assert world.greedy(batch) == world.own_greedy(batch)
