"""The stand-in for a GPU computes what the CPU computes, and sees every way in which the host waits for it."""

from contextlib import contextmanager

import device_stand_in as stand_in
import omni
import pytest
import torch
from device_stand_in import DEVICE, DeviceTensor, Log, on_device

from lightning_mmrl.rollout.sampling import group_seeds
from lightning_mmrl.types.batches import ScoringBatch

GROUP = 3


@contextmanager
def logged():
    log = Log()
    with stand_in.device_stand_in(log):
        yield log


def values():
    return torch.tensor([3.0, 1.0, 2.0]).to(DEVICE)


def mask():
    return torch.tensor([True, False, True]).to(DEVICE)


WAITS = {
    "item": (lambda: float(values()[0]), stand_in.READS),
    "bool": (lambda: bool(mask().any()), stand_in.READS),
    "number of a row": (lambda: values()[torch.ones((), dtype=torch.long, device=DEVICE)], stand_in.READS),
    "equal": (lambda: torch.equal(values(), values()), stand_in.READS),
    "tolist": (lambda: values().tolist(), stand_in.TO_HOST),
    "cpu": (lambda: values().cpu(), stand_in.TO_HOST),
    "copy": (lambda: torch.zeros(3).copy_(values()), stand_in.TO_HOST),
    "new": (lambda: torch.tensor([1, 2], device=DEVICE), stand_in.TO_DEVICE),
    "to": (lambda: torch.ones(2).to(DEVICE, torch.float64), stand_in.TO_DEVICE),
    "list": (lambda: values()[[0, 2]], stand_in.TO_DEVICE),
    "host's index": (lambda: values()[torch.tensor([0, 2])], stand_in.TO_DEVICE),
    "mask": (lambda: values()[mask()], stand_in.MASK),
    "written by a mask": (lambda: values().__setitem__(mask(), values()[:2]), stand_in.MASK),
    "nonzero": (lambda: mask().nonzero(), stand_in.SHAPE),
    "select": (lambda: values().masked_select(mask()), stand_in.SHAPE),
    "unique": (lambda: values().unique(), stand_in.SHAPE),
    "repeat": (lambda: values().repeat_interleave(torch.ones(3, dtype=torch.long, device=DEVICE)), stand_in.SHAPE),
    "scatter's gradient": (
        lambda: torch.zeros(3, device=DEVICE).masked_scatter(mask(), values().requires_grad_()).sum().backward(),
        stand_in.SHAPE,
    ),
}


MODES = [(name, mode) for name in WAITS for mode in (False, True) if not (mode and "gradient" in name)]


@pytest.mark.parametrize(("name", "inference"), MODES)
def test_every_wait_is_seen(name, inference):
    work, reason = WAITS[name]
    with logged() as log, torch.inference_mode(inference):
        work()
    # Making the operands copies them to the device, once for each.
    assert reason in {why for (why, operation), _ in log.waits.items() if operation != "to" or name == "to"}


def test_work_that_needs_no_wait_has_none():
    ready, chosen = torch.ones(3), torch.tensor([0, 2])
    with logged() as log:
        there, index = ready.to(DEVICE, non_blocking=True), chosen.to(DEVICE, non_blocking=True)
        assert there.device == DEVICE
        there.where(there > 0, 0.0).index_select(0, index)
        there[index], there[0] = 5.0, 6.0
        torch.zeros(3, device=DEVICE).masked_fill(there > 1, -torch.inf).repeat_interleave(2)
    assert not log.waits
    assert there.cpu().tolist() == [6.0, 1.0, 5.0]


def test_views_are_no_kernels():
    with logged() as log:
        there = torch.zeros(2, 3, device=DEVICE)
        there.T.unflatten(0, (1, 3)).narrow(1, 0, 2).unsqueeze(0).detach()
        assert dict(log.kernels) == {"zeros": 1}
        (there + 1).T.contiguous()
    assert sum(log.kernels.values()) == 3


def test_a_log_may_refuse():
    def refuse(reason, name):
        raise RuntimeError(f"{name} {reason}")

    with stand_in.device_stand_in(Log(refuse)), pytest.raises(RuntimeError, match="tolist copies to the host"):
        torch.zeros(1, device=DEVICE).tolist()


def trained(policy, prompts, tokens, mask):
    """Sampled rows, log-probabilities of given ones and a gradient."""
    seeds = group_seeds(0, 1, [each.id for each in prompts.samples], GROUP)
    rollout = omni.engine(trained.encoder, policy, max_new_tokens=5).generate(prompts, group_size=GROUP, seeds=seeds)
    batch = ScoringBatch(prompts=prompts, completion_ids=tokens, completion_mask=mask, group_size=GROUP)
    output = policy(batch)
    (output.logprobs**2).sum().backward()
    gradient = next(p.grad for name, p in policy.named_parameters() if "q_proj.weight" in name and p.grad is not None)
    return rollout.completion_ids, rollout.sampler_logprobs, output.logprobs.detach(), gradient


def test_sampling_and_training_give_the_values_of_the_cpu(tmp_path):
    trained.encoder, policy = omni.load(omni.build(tmp_path))
    prompts = omni.prompts(trained.encoder, ("<video><audio>Which emotion?", "angry", "Which emotion? " * 30))
    tokens, mask = omni.ragged_completions(trained.encoder, 3 * GROUP)
    expected = trained(policy, prompts, tokens, mask)
    policy.zero_grad()
    with logged() as log:
        on_device(policy)
        found = trained(policy, prompts.to(DEVICE), tokens.to(DEVICE), mask.to(DEVICE))
    assert all(isinstance(each, DeviceTensor) for each in found)
    assert log.kernels["index_add_"] > 0
    assert torch.equal(found[0].cpu(), expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-9, atol=1e-9)
