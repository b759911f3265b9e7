import math

import pytest
import torch

from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.types.batches import LossInputs


def token(ratio: float, advantage: float, **clips: float) -> tuple[float, bool, float]:
    """Loss, clip flag and gradient by the log-probability of a single token."""
    return moved(math.log(ratio), advantage, **clips)


def moved(log_ratio: float, advantage: float, **clips: float) -> tuple[float, bool, float]:
    logprobs = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    inputs = LossInputs(
        logprobs=logprobs,
        old_logprobs=torch.zeros(1, 1, dtype=torch.float64),
        advantages=torch.tensor([[advantage]], dtype=torch.float64),
        completion_mask=torch.ones(1, 1, dtype=torch.bool),
    )
    output = PPOClip(**clips)(inputs)
    output.token_losses.sum().backward()
    return output.token_losses.item(), output.clipped.item(), logprobs.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        # With clips at 0.9 and 1.3: a raised good token and a lowered bad one stop at their clip; the others do not.
        (1.1, 2.0, -2.2, False, -2.2),
        (1.5, 2.0, -2.6, True, 0.0),
        (0.5, 2.0, -1.0, False, -1.0),
        (1.5, -2.0, 3.0, False, 3.0),
        (0.95, -2.0, 1.9, False, 1.9),
        (0.5, -2.0, 1.8, True, 0.0),
        (1.5, 0.0, 0.0, False, 0.0),
    ],
)
def test_the_clip_stops_only_what_went_too_far(ratio, advantage, loss, clipped, gradient):
    found = token(ratio, advantage, clip_low=0.1, clip_high=0.3)
    assert found[0] == pytest.approx(loss)
    assert found[1] is clipped
    assert found[2] == pytest.approx(gradient)


def test_the_default_clips_are_at_a_fifth():
    assert token(1.5, 1.0)[0] == pytest.approx(-1.2)
    assert token(0.5, -1.0)[0] == pytest.approx(0.8)


further_bounds = pytest.mark.parametrize("name", ["dual_clip", "ratio_cap"])


@further_bounds
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        # At 1.5 like the clip of a raised good token, which is then beyond both; below zero it is the only one.
        (2.0, 1.0, -1.5, True, 0.0),
        (2.0, -2.0, 3.0, True, 0.0),
        (1.25, -2.0, 2.5, False, 2.5),
        (0.5, -2.0, 1.8, True, 0.0),
        (0.5, 0.5, -0.25, False, -0.25),
        (2.0, 0.0, 0.0, False, 0.0),
    ],
)
def test_a_further_bound_stops_a_bad_token_that_was_raised(name, ratio, advantage, loss, clipped, gradient):
    found = token(ratio, advantage, clip_low=0.1, clip_high=0.5, **{name: 1.5})
    assert found == (pytest.approx(loss), clipped, pytest.approx(gradient))


@further_bounds
def test_a_token_exactly_at_a_further_bound_is_not_beyond_it(name):
    bound = torch.tensor(0.7, dtype=torch.float64).exp().item()
    loss, clipped, _ = moved(0.7, -1.0, **{name: bound})
    assert (loss, clipped) == (bound, False)


@further_bounds
@pytest.mark.parametrize(("bound", "high"), [(1.0, 0.0), (1.25, 0.5), (0.5, 0.2), (math.nan, 0.2)])
def test_a_further_bound_that_another_makes_void_is_refused(name, bound, high):
    with pytest.raises(ValueError, match=f"{name} is {bound}; it bounds ratios that clip_high does not"):
        PPOClip(clip_high=high, **{name: bound})


def test_clips_may_be_at_their_limits():
    assert token(1.5, 1.0, clip_low=0.0, clip_high=0.0) == (-1.0, True, 0.0)
    assert token(1e-6, -1.0, clip_low=1.0)[0] == pytest.approx(1e-6)


def test_a_runaway_ratio_stays_finite():
    inputs = LossInputs(
        logprobs=torch.tensor([[0.0, -1000.0, -math.inf]], requires_grad=True),
        old_logprobs=torch.tensor([[-1000.0, 0.0, 0.0]]),
        advantages=-torch.ones(1, 3),
        completion_mask=torch.ones(1, 3, dtype=torch.bool),
    )
    losses = PPOClip()(inputs).token_losses
    losses.sum().backward()
    assert losses.tolist()[0] == pytest.approx([math.exp(20.0), 0.8, 0.8])
    assert inputs.logprobs.grad.isfinite().all()


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["logprobs", "old_logprobs"])
def test_masked_garbage_reaches_neither_loss_nor_gradient(garbage, field):
    values = {"logprobs": torch.tensor([[-1.0, -1.0]]), "old_logprobs": torch.tensor([[-1.1, -1.1]])}
    values[field][0, 1] = garbage
    values["logprobs"].requires_grad_()
    inputs = LossInputs(**values, advantages=torch.ones(1, 2), completion_mask=torch.tensor([[True, False]]))
    output = PPOClip()(inputs)
    output.token_losses.sum().backward()
    assert output.token_losses[0, 0].item() == pytest.approx(-math.exp(0.1))
    assert output.token_losses[0, 1].item() == 0
    assert inputs.logprobs.grad[0].tolist() == pytest.approx([-math.exp(0.1), 0.0])


def test_a_masked_token_is_never_clipped():
    inputs = LossInputs(
        logprobs=torch.tensor([[0.0, 0.0]]),
        old_logprobs=torch.tensor([[-3.0, -3.0]]),
        advantages=torch.ones(1, 2),
        completion_mask=torch.tensor([[True, False]]),
    )
    output = PPOClip()(inputs)
    assert output.clipped.tolist() == [[True, False]]
    assert output.token_losses[0, 1] == 0


@pytest.mark.parametrize("clips", [{"clip_low": -0.1}, {"clip_low": 1.5}, {"clip_high": -0.1}, {"clip_high": math.nan}])
def test_impossible_clips_are_refused(clips):
    with pytest.raises(ValueError, match=next(iter(clips))):
        PPOClip(**clips)
