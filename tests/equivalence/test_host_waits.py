"""Hot paths on a stand-in for a GPU that refuses to make the host wait: decoding, scoring, losses and gradients."""

from contextlib import contextmanager

import device_stand_in as stand_in
import omni
import pytest
import torch
from device_stand_in import DEVICE, Log, on_device

from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.models import decode_cache, decoding
from lightning_mmrl.models import policy as policy_module
from lightning_mmrl.models.decoding import start_decoding
from lightning_mmrl.ops import tiled_attention
from lightning_mmrl.ops.transfer import true_places
from lightning_mmrl.rollout.sampling import group_seeds, nucleus
from lightning_mmrl.types.batches import LossInputs, ScoringBatch

GROUP, WIDTH = 3, 40
DTYPES = (torch.bfloat16, torch.float32)


class WaitError(Exception):
    """The host waits."""


@contextmanager
def refusing(allowed=()):
    """Refuses every wait but those allowed, each of which may come once."""
    left = list(allowed)

    def refuse(reason, name):
        if reason not in left:
            raise WaitError(f"{name} {reason}")
        left.remove(reason)

    with stand_in.device_stand_in(Log(refuse)) as log:
        yield log
    assert not left, "a wait that is allowed did not come"


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def world(request, tmp_path_factory):
    """Encoder, policy and prompts of several lengths and media on the stand-in, with the outputs of the towers."""
    encoder, policy = omni.load(omni.build(tmp_path_factory.mktemp("omni")), dtype=request.param)
    contents = ("<video><audio>Which emotion?", "angry", "<audio>user", "Which emotion? " * 40, "Which emotion? " * 33)
    with stand_in.device_stand_in(Log()):
        on_device(policy)
        prompts = policy.media.encode(omni.prompts(encoder, contents).to(DEVICE))
    return encoder, policy.eval(), prompts


def scoring_batch(encoder, prompts):
    """Ragged completions; those of the last prompt are too long to share it, and one is left out."""
    num_rows = GROUP * len(prompts.samples)
    tokens, _ = omni.ragged_completions(encoder, num_rows, width=WIDTH)
    lengths = torch.randint(1, 7, (num_rows,), generator=torch.Generator().manual_seed(3))
    lengths[1], lengths[GROUP], lengths[GROUP + 1], lengths[GROUP + 2] = 0, WIDTH, 0, 0
    mask = torch.arange(WIDTH) < lengths[:, None]
    return ScoringBatch(
        prompts=prompts, completion_ids=tokens.to(DEVICE), completion_mask=mask.to(DEVICE), group_size=GROUP
    )


@pytest.mark.parametrize("group_size", [1, GROUP])
@torch.inference_mode()
def test_a_decode_step_waits_for_nothing(world, group_size):
    _, policy, prompts = world
    with stand_in.device_stand_in(Log()):
        running = start_decoding(policy, prompts, group_size, max_tokens=40)
        noise = torch.rand(group_size * len(prompts.samples), device=DEVICE, dtype=torch.float64)
        tokens = torch.zeros_like(noise, dtype=torch.long)
    with refusing():
        for _ in range(36):  # the room for own tokens grows once
            running.advance(tokens)
            distribution = nucleus(policy.next_logprobs(running.states), 0.9)
            assert distribution.shape[0] == len(noise)


def test_rows_leave_without_a_wait(world):
    _, policy, prompts = world
    with torch.inference_mode():
        with stand_in.device_stand_in(Log()):
            running = start_decoding(policy, prompts, GROUP)
            tokens = torch.zeros(GROUP * len(prompts.samples), dtype=torch.long, device=DEVICE)
        with refusing():
            running.advance(tokens)
            running.keep(torch.tensor([1, 2, 4, 9]))
            running.advance(tokens[:4])
            assert len(running.states) == 4


def test_a_pass_over_drafts_waits_for_nothing(world):
    _, policy, prompts = world
    num_rows = GROUP * len(prompts.samples)
    with torch.inference_mode():
        with stand_in.device_stand_in(Log()):
            running = start_decoding(policy, prompts, GROUP, drafts=True)
            tokens = torch.zeros(2 * num_rows, dtype=torch.long, device=DEVICE)
        with refusing():
            for number in range(3):
                widths = [1 + (row + number) % 3 for row in range(num_rows)]
                running.extend(tokens[: sum(widths)], widths)
                running.retain([(row + number) % 2 for row in range(num_rows)], finite=number != 1)
                assert len(running.states) == num_rows


def test_scoring_reads_lengths_and_checks_media_and_waits_for_nothing_else(world):
    """Both readings are one transfer each; the loss and the whole backward pass have none."""
    encoder, policy, prompts = world
    with stand_in.device_stand_in(Log()):
        batch = scoring_batch(encoder, prompts)
        mask = batch.completion_mask
        given = torch.ones(mask.shape, device=DEVICE)
    with refusing([stand_in.TO_HOST, stand_in.TO_HOST]):
        output = policy(batch)
    with refusing():
        inputs = LossInputs(
            logprobs=output.logprobs, old_logprobs=output.logprobs.detach(), advantages=given, completion_mask=mask
        )
        aggregation = TokenMean()
        losses = PPOClip()(inputs)
        aggregation.reduce(losses.token_losses, mask, aggregation.denominator(mask)).backward()
    assert any(parameter.grad is not None for parameter in policy.parameters())
    policy.zero_grad()


def waits_of(rollout_length, world, look_every, monkeypatch):
    """Of a whole rollout, in which no row ends early."""
    encoder, policy, prompts = world
    running = omni.engine(encoder, policy, max_new_tokens=rollout_length, eos_token_ids=encoder.banned_token_ids()[:1])
    monkeypatch.setattr(type(running), "look_every", {"cuda": look_every})
    seeds = group_seeds(0, 1, [each.id for each in prompts.samples], GROUP)
    log = Log()
    with stand_in.device_stand_in(log):
        running.generate(prompts, group_size=GROUP, seeds=seeds)
    return sum(log.waits.values())


def test_a_rollout_waits_at_every_eighth_step(world, monkeypatch):
    assert waits_of(33, world, 8, monkeypatch) - waits_of(17, world, 8, monkeypatch) == 2
    assert waits_of(33, world, 1, monkeypatch) - waits_of(17, world, 1, monkeypatch) == 16


CONTROLS = {
    stand_in.READS: lambda values: float(values.sum()),
    stand_in.TO_HOST: lambda values: values.tolist(),
    stand_in.TO_DEVICE: lambda values: torch.tensor([1.0], device=values.device),
    stand_in.SHAPE: lambda values: values.nonzero(),
    stand_in.MASK: lambda values: values[values > 0],
}


@pytest.mark.parametrize("world", [torch.bfloat16], indirect=True, ids=str)
@pytest.mark.parametrize("reason", stand_in.KINDS)
def test_control_each_kind_of_wait_in_a_decode_step_is_refused(world, monkeypatch, reason):
    _, policy, prompts = world
    real = decoding.SharedCache.attend

    def spoiled(self, layer, query, *tensors):
        CONTROLS[reason](query)
        return real(self, layer, query, *tensors)

    with torch.inference_mode():
        with stand_in.device_stand_in(Log()):
            running = start_decoding(policy, prompts, GROUP)
            tokens = torch.zeros(GROUP * len(prompts.samples), dtype=torch.long, device=DEVICE)
        monkeypatch.setattr(decoding.SharedCache, "attend", spoiled)
        with refusing(), pytest.raises(WaitError, match=reason):
            running.advance(tokens)


@pytest.mark.parametrize("world", [torch.bfloat16], indirect=True, ids=str)
def test_control_tiles_that_select_by_a_mask_are_refused(world, monkeypatch):
    encoder, policy, prompts = world
    with stand_in.device_stand_in(Log()):
        batch = scoring_batch(encoder, prompts)

    def by_mask(tile, values):
        return (
            (tile.queries.flatten(), values.flatten(0, 1))
            if tile.filler is None
            else (tile.queries[~tile.filler], values[~tile.filler])
        )

    monkeypatch.setattr(tiled_attention, "_tokens", by_mask)
    with refusing([stand_in.TO_HOST] * 2), pytest.raises(WaitError, match=stand_in.MASK):
        policy(batch)


@pytest.mark.parametrize("world", [torch.bfloat16], indirect=True, ids=str)
def test_control_a_scatter_by_a_mask_is_refused_in_the_backward_pass(world, monkeypatch):
    encoder, policy, prompts = world
    with stand_in.device_stand_in(Log()):
        batch = scoring_batch(encoder, prompts)

    def scattered(values, places, shape):
        return values.new_zeros(shape).masked_scatter(batch.completion_mask, values)

    monkeypatch.setattr(policy_module, "placed", scattered)
    with stand_in.device_stand_in(Log()):
        loss = policy(batch).logprobs.sum()
    with refusing(), pytest.raises(WaitError, match="masked_scatter_backward"):
        loss.backward()
    policy.zero_grad()


def converted_in_a_step(policy, prompts):
    """Shapes of tensors that a step converts to a wider type, and of the prompts' keys in buckets with padding."""
    log = Log()
    with torch.inference_mode():
        with stand_in.device_stand_in(Log()):
            running = start_decoding(policy, prompts, GROUP)
            tokens = torch.zeros(GROUP * len(prompts.samples), dtype=torch.long, device=DEVICE)
            running.advance(tokens)
        with stand_in.device_stand_in(log):
            running.advance(tokens)
    padded = [bucket for bucket in running._cache._prompts.buckets if bucket._bias is not None]
    return set(log.conversions), {layer.shape[1:] for bucket in padded for layer in bucket.layers if layer.numel()}


@pytest.mark.parametrize("world", [torch.bfloat16], indirect=True, ids=str)
def test_no_step_converts_the_keys_of_padded_prompts(world, monkeypatch):
    _, policy, prompts = world
    shapes, keys = converted_in_a_step(policy, prompts)
    assert len(keys) == 2
    assert not shapes & keys
    monkeypatch.setattr(decode_cache, "is_half", lambda dtype: False)
    shapes, keys = converted_in_a_step(policy, prompts)
    assert keys <= shapes  # the control: in one part, they are converted


def test_places_of_a_mask_are_found_without_a_wait():
    with stand_in.device_stand_in(Log()):
        mask = torch.tensor([[True, False], [True, True]]).to(DEVICE)
    with refusing():
        places = true_places(mask, 3)
    assert places.cpu().tolist() == [0, 2, 3]
