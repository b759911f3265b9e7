"""The canary in half precision: rounding passes, real faults do not, and what lies between is a doubt."""

import copy
from dataclasses import replace

import families
import omni
import pytest
import torch

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rollout.canary import Canary
from lightning_mmrl.types.batches import ScoringBatch

CANARY = Canary(num_prompts=16, max_new_tokens=16)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A policy of float32 weights that computes in bfloat16, as under the precision bf16-mixed, and prompts."""
    folder = families.build("qwen2", tmp_path_factory.mktemp("qwen2") / "base")
    encoder, backbone = families.parts("qwen2", folder, torch.float32)
    omni.spread(backbone.model)
    with torch.no_grad():
        for name, parameter in backbone.text_model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                parameter.mul_(3.0)  # attention is as sharp as a trained model's, so that positions matter
    policy = Policy(backbone, banned_token_ids=encoder.banned_token_ids(), compute_dtype=torch.bfloat16)
    return encoder, policy, families.prompts("qwen2", encoder)


@pytest.fixture(autouse=True)
def autocast():
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        yield


def rounded(policy):
    """The weights as an engine gets them."""
    return copy.deepcopy(policy).to(torch.bfloat16)


class Engine:
    """Samples with a policy of its own, from prompts that `change` makes, with `offsets` on its log-probabilities."""

    def __init__(self, encoder, policy, change=lambda prompts: prompts, offsets=lambda values: 0.0):
        self.engine, self.change, self.offsets = omni.engine(encoder, policy, max_new_tokens=16), change, offsets

    def generate(self, prompts, **how):
        rollout = self.engine.generate(self.change(prompts), **how)
        logprobs = rollout.sampler_logprobs + self.offsets(rollout.sampler_logprobs)
        return replace(rollout, sampler_logprobs=logprobs.where(rollout.completion_mask, 0.0))


def check(trained, engine, canary=CANARY):
    encoder, policy, prompts = trained
    trainer = omni.engine(encoder, policy, max_new_tokens=16)
    return canary.check(engine, trainer, policy, prompts)


def exact(trained, offsets):
    """An engine whose log-probabilities are the trainer's own, and then moved."""
    encoder, policy, _ = trained

    class Exact(Engine):
        def generate(self, prompts, **how):
            rollout = self.engine.generate(prompts, **how)
            ids, mask = rollout.completion_ids, rollout.completion_mask
            with torch.no_grad():
                batch = ScoringBatch(prompts=prompts, completion_ids=ids, completion_mask=mask, group_size=1)
                scored = policy.eval()(batch).logprobs
            return replace(rollout, sampler_logprobs=(scored + offsets(scored)).where(mask, 0.0))

    return Exact(encoder, policy)


def test_an_engine_of_rounded_weights_passes(trained):
    encoder, policy, _ = trained
    found = check(trained, Engine(encoder, rounded(policy)))
    assert found.doubt is None
    assert 0 < found.median < found.high <= found.largest
    # The control: by the bounds of float32 weights the same differences would end the run.
    with pytest.raises(RolloutError, match="from the trainer's, for sample"):
        check(trained, Engine(encoder, rounded(policy)), replace(CANARY, tolerance=1e-4))


def test_a_changed_layer_ends_the_run_at_once(trained):
    encoder, policy, _ = trained
    stale = rounded(policy)
    with torch.no_grad():
        for parameter in stale._backbone.text_model.layers[1].parameters():
            parameter.mul_(0.5)
    with pytest.raises(RolloutError, match=r"from the trainer's, for sample p\d \(text\) above all; over \d+ tokens"):
        check(trained, Engine(encoder, stale))


def test_shifted_positions_end_the_run_at_once(trained):
    """As after a preemption of which the length was wrong: the completion goes on three places too low."""
    encoder, policy, _ = trained

    def shifted(prompts):
        return replace(prompts, next_position=prompts.next_position - 3)

    with pytest.raises(RolloutError, match="from the trainer's, for sample"):
        check(trained, Engine(encoder, rounded(policy), shifted))


def test_one_wild_token_is_no_fault(trained):
    """The maximum over bfloat16 tokens once decided, and 0.5 nats ended the run."""

    def one(values):
        offsets = torch.zeros_like(values)
        offsets[0, 0] = 5.0
        return offsets

    found = check(trained, exact(trained, one))
    assert found.doubt is None
    assert found.largest == pytest.approx(5.0, abs=1e-5)


@pytest.mark.parametrize(("offset", "doubtful"), [(0.049, False), (0.051, True), (0.149, True)])
def test_a_median_above_its_bound_is_a_doubt(trained, offset, doubtful):
    found = check(trained, exact(trained, lambda values: torch.full_like(values, offset)))
    assert found.median == pytest.approx(offset, abs=1e-5)
    assert (found.doubt is not None) == doubtful


def test_a_high_quantile_alone_is_a_doubt(trained):
    """A few tokens: those of one sample, such as one whose medium did not arrive."""

    def some(values):
        offsets = torch.zeros_like(values)
        offsets[-1] = 0.6
        return offsets

    found = check(trained, exact(trained, some))
    assert found.median < 1e-5
    assert "for sample p2 (text) above all" in found.doubt
    assert "and the 99th percentile 0.6, where at most 0.05 and 0.5 are usual" in found.doubt


@pytest.mark.parametrize("offset", [0.151, torch.nan, torch.inf])
def test_three_times_the_bound_is_gross(trained, offset):
    with pytest.raises(RolloutError, match="from the trainer's, for sample"):
        check(trained, exact(trained, lambda values: torch.full_like(values, offset)))


def test_one_log_probability_that_is_no_number_is_gross(trained):
    def one(values):
        offsets = torch.zeros_like(values)
        offsets[0, 0] = torch.nan
        return offsets

    with pytest.raises(RolloutError, match="up to inf nats from the trainer's, for sample p0"):
        check(trained, exact(trained, one))


def test_the_bounds_are_of_the_type_of_the_passes(trained):
    """Not of the weights, which are float32 here."""
    _, policy, _ = trained
    assert {each.dtype for each in policy.parameters()} == {torch.float32}
    assert CANARY.bounds(policy.compute_dtype).high == 0.5
    assert CANARY.bounds(torch.float32).high == 1e-4


def test_a_patience_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"rollout\.canary\.patience is 0; it must be at least 1"):
        Canary(patience=0)
