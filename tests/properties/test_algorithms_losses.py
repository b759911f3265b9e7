import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.algorithms.losses.aggregation import ConstantLength, SequenceMean, TokenMean
from lightning_mmrl.algorithms.losses.cispo import CISPO
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.algorithms.losses.ratios import CompletionRatio, SequenceRatio
from lightning_mmrl.types.batches import LossInputs

AGGREGATIONS = [TokenMean(), SequenceMean(), ConstantLength(max_tokens=9)]
LOSSES = [
    PPOClip(),
    PPOClip(dual_clip=3.0),
    PPOClip(ratio=SequenceRatio()),
    PPOClip(ratio=CompletionRatio()),
    CISPO(),
]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=["token", "dual", "sequence", "completion", "cispo"])
every_aggregation = pytest.mark.parametrize("aggregation", AGGREGATIONS, ids=repr)


@st.composite
def loss_inputs(draw):
    rows, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    noise = torch.randn(3, rows, width, generator=generator, dtype=torch.float64)
    return LossInputs(
        logprobs=noise[0].requires_grad_(),
        old_logprobs=noise[1],
        advantages=noise[2],
        completion_mask=torch.arange(width) < torch.tensor(lengths)[:, None],
    )


def part(inputs: LossInputs, rows: slice) -> LossInputs:
    return LossInputs(
        logprobs=inputs.logprobs[rows],
        old_logprobs=inputs.old_logprobs[rows],
        advantages=inputs.advantages[rows],
        completion_mask=inputs.completion_mask[rows],
    )


def reduced(inputs: LossInputs, aggregation, denominator, loss=LOSSES[0]) -> torch.Tensor:
    return aggregation.reduce(loss(inputs).token_losses, inputs.completion_mask, denominator)


@every_loss
@every_aggregation
@given(loss_inputs(), st.integers(0, 6))
def test_microbatches_add_up_to_the_step(aggregation, loss, inputs, cut):
    whole_denominator = aggregation.denominator(inputs.completion_mask)
    parts = [part(inputs, slice(0, cut)), part(inputs, slice(cut, None))]
    denominator = torch.stack([aggregation.denominator(piece.completion_mask) for piece in parts]).sum()
    assert denominator == whole_denominator
    total = torch.stack([reduced(piece, aggregation, denominator, loss) for piece in parts]).sum()
    whole = reduced(inputs, aggregation, whole_denominator, loss)
    torch.testing.assert_close(total, whole)
    gradients = [torch.autograd.grad(loss, inputs.logprobs)[0] for loss in (total, whole)]
    torch.testing.assert_close(*gradients)


@every_loss
@every_aggregation
@given(loss_inputs(), st.integers(1, 3))
def test_right_padding_changes_nothing(aggregation, loss, inputs, extra):
    garbage = torch.full((len(inputs.advantages), extra), torch.nan, dtype=torch.float64)
    padded = LossInputs(
        logprobs=torch.cat([inputs.logprobs, garbage], 1),
        old_logprobs=torch.cat([inputs.old_logprobs, garbage], 1),
        advantages=torch.cat([inputs.advantages, garbage], 1),
        completion_mask=torch.cat([inputs.completion_mask, torch.zeros_like(garbage).bool()], 1),
    )
    losses = [
        reduced(case, aggregation, aggregation.denominator(case.completion_mask), loss) for case in (inputs, padded)
    ]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, inputs.logprobs)[0] for loss in losses]
    torch.testing.assert_close(*gradients)


@given(loss_inputs(), st.floats(0, 1), st.floats(0, 2))
def test_on_policy_the_loss_and_its_gradient_are_minus_the_advantage(inputs, low, high):
    on_policy = LossInputs(
        logprobs=inputs.logprobs,
        old_logprobs=inputs.logprobs.detach(),
        advantages=inputs.advantages,
        completion_mask=inputs.completion_mask,
    )
    output = PPOClip(clip_low=low, clip_high=high)(on_policy)
    (gradient,) = torch.autograd.grad(output.token_losses.sum(), inputs.logprobs)
    expected = torch.where(inputs.completion_mask, -inputs.advantages, 0.0)
    torch.testing.assert_close(output.token_losses, expected)
    torch.testing.assert_close(gradient, expected)
    assert not output.clipped.any()


@given(loss_inputs())
def test_the_clipped_loss_is_never_below_the_unclipped_one(inputs):
    unclipped = PPOClip(clip_low=1.0, clip_high=1e9)(inputs).token_losses
    clipped = PPOClip()(inputs)
    assert (clipped.token_losses >= unclipped).all()
    assert torch.equal(clipped.clipped, clipped.token_losses > unclipped)


@given(loss_inputs())
def test_clipped_tokens_have_no_gradient(inputs):
    output = PPOClip()(inputs)
    (gradient,) = torch.autograd.grad(output.token_losses.sum(), inputs.logprobs)
    assert torch.equal(gradient != 0, inputs.completion_mask & ~output.clipped)


@given(loss_inputs(), st.floats(1.3, 4))
def test_dual_clip_and_ratio_cap_are_one_function(inputs, bound):
    found = [PPOClip(**{name: bound})(inputs) for name in ("dual_clip", "ratio_cap")]
    torch.testing.assert_close(found[0].token_losses, found[1].token_losses)
    assert torch.equal(found[0].clipped, found[1].clipped)
    gradients = [torch.autograd.grad(output.token_losses.sum(), inputs.logprobs)[0] for output in found]
    torch.testing.assert_close(*gradients)
    assert torch.equal(gradients[0] != 0, inputs.completion_mask & ~found[0].clipped)
    largest = bound * inputs.advantages.abs()
    assert (found[0].token_losses <= largest + 1e-9)[inputs.completion_mask & (inputs.advantages < 0)].all()


@given(loss_inputs())
def test_cispo_clips_no_token(inputs):
    output = CISPO(weight_high=1.5)(inputs)
    (gradient,) = torch.autograd.grad(output.token_losses.sum(), inputs.logprobs)
    weights = (inputs.logprobs - inputs.old_logprobs).detach().exp().clamp(max=1.5)
    expected = torch.where(inputs.completion_mask, -weights * inputs.advantages, 0.0)
    torch.testing.assert_close(gradient, expected)
