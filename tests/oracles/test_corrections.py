"""Importance corrections written out token by token, on what a step does; and what they make true on a small bandit."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from step_cases import ROW_BY_ROW, drawn, experience_of, preset, taken

from lightning_mmrl.algorithms.corrections.importance import ImportanceCorrection
from lightning_mmrl.algorithms.penalties.kl import KLPenalty
from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.stages.advantages import shared_advantages
from lightning_mmrl.stages.context import scalar_values
from lightning_mmrl.stages.mismatch import mismatch_stats

KINDS = list(itertools.product(("token", "sequence"), ("truncate", "mask")))
BETA, ENTROPY = 0.04, 0.03
each_kind = pytest.mark.parametrize(("level", "mode"), KINDS)


def ratios_of(table, row, level):
    """Policy over engine at each token of a completion."""
    each = [math.exp(table.old[row, c] - table.sampler[row, c]) for c in range(int(table.mask[row].sum()))]
    return each if level == "token" else [math.prod(each)] * len(each)


def bounded(ratio, mode, floor, cap):
    if mode == "truncate":
        return min(max(ratio, floor), cap)
    return ratio if floor <= ratio <= cap else 0.0


def counted_rows(table):
    return table.valid.flatten().nonzero().flatten().tolist()


def written_out(table, level, mode, *, floor, cap, divided_by):
    """Loss and gradient of a clipped loss with a divergence and an entropy bonus, which no weight multiplies."""
    _, scores = experience_of(table)
    advantages = shared_advantages(preset("grpo").advantage, scores.rewards, scores, ALONE).flatten()
    new = table.logprobs.clone().requires_grad_()
    completions = []
    for row in counted_rows(table):
        losses = []
        for c, ratio in enumerate(ratios_of(table, row, level)):
            moved = (new[row, c] - table.old[row, c]).exp()
            near = min(max(moved.item(), 0.8), 1.2) * advantages[row].item()
            policy = -near if near < (moved * advantages[row]).item() else -moved * advantages[row]
            distance = new[row, c] - table.reference[row, c]
            excess = (-distance).exp() - 1 + distance
            weight = bounded(ratio, mode, floor, cap)
            losses.append(weight * policy + BETA * excess - ENTROPY * table.entropy[row, c])
        completions.append(losses)
    if divided_by == "completion":
        loss = sum(sum(losses) / len(losses) for losses in completions) / len(completions)
    else:
        loss = sum(map(sum, completions)) / sum(map(len, completions))
    loss.backward()
    return loss.item(), new.grad


def corrected(name, **how):
    kl = KLPenalty(coefficient=BETA)
    return replace(preset(name), kl=kl, correction=ImportanceCorrection(**how) if how else None)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(("name", "divided_by"), [("grpo", "completion"), ("grpo_token_mean", "token")])
@each_kind
def test_a_step_is_the_formula(level, mode, name, divided_by, size):
    """Also in microbatches of single completions; what is masked stays in the denominator. Control: no other fits."""
    bounds = {"floor": 0.6, "cap": 1.4}
    others = [{"level": one, "mode": other, **bounds} for one, other in KINDS if (one, other) != (level, mode)]
    others += [{}, {"level": level, "mode": mode, "cap": 1.4}]
    errors = [0.0] * len(others)
    for seed in range(2):
        table = drawn(seed, size)
        loss, gradient = written_out(table, level, mode, divided_by=divided_by, **bounds)
        for budget in ({}, {"budget": ROW_BY_ROW}):
            algorithm = corrected(name, level=level, mode=mode, **bounds)
            totals, found, _ = taken(algorithm, table, entropy_coefficient=ENTROPY, **budget)
            assert totals["loss"].item() == pytest.approx(loss, rel=1e-9, abs=1e-12)
            torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-12)
        for place, other in enumerate(others):
            wrong = taken(corrected(name, **other), table, entropy_coefficient=ENTROPY)[1]
            errors[place] = max(errors[place], float((wrong - gradient).abs().max()))
    assert min(errors) > 1e-4, dict(zip(map(str, others), errors, strict=True))


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("correction", [None, *KINDS], ids=str)
def test_statistics_are_those_written_out_whatever_the_split(correction, size):
    level, mode = correction or ("token", "truncate")
    part = None if correction is None else ImportanceCorrection(level=level, mode=mode, cap=1.4, floor=0.6)
    algorithm = replace(preset("grpo"), correction=part)
    table = drawn(1, size)
    rows = counted_rows(table)
    ratios = [ratios_of(table, row, level) for row in rows]
    units = [each[0] for each in ratios] if level == "sequence" else [ratio for each in ratios for ratio in each]
    gaps = [
        (table.sampler[row, c] - table.old[row, c]).item() for row in rows for c in range(int(table.mask[row].sum()))
    ]
    outside = [ratio > 1.4 or ratio < 0.6 for ratio in units]
    expected = {
        "mismatch/weight_mean": math.fsum(units) / len(units),
        "mismatch/weight_max": max(units),
        "mismatch/clip_fraction": 0.0 if correction is None else sum(outside) / len(units),
        "mismatch/kl_k1": math.fsum(gaps) / len(gaps),
        "mismatch/kl_k3": math.fsum(math.exp(-gap) - 1 + gap for gap in gaps) / len(gaps),
        "mismatch/logprob_gap_max": max(map(abs, gaps)),
    }
    assert any(outside)
    assert not all(outside)
    for budget in ({}, {"budget": ROW_BY_ROW}):
        totals, _, _ = taken(algorithm, table, **budget)
        found = mismatch_stats([scalar_values(totals)])
        maxima = {name for name in found if name.endswith("_max")}  # kept in single precision
        for name, value in expected.items():
            assert found[name] == pytest.approx(value, rel=1e-6 if name in maxima else 1e-9), name
        assert found.keys() == expected.keys()


def test_statistics_of_several_steps_are_of_all_their_tokens():
    tables = [drawn(seed, 4) for seed in (1, 2)]
    steps = [scalar_values(taken(preset("grpo"), table)[0]) for table in tables]
    both, each = mismatch_stats(steps), [mismatch_stats([step]) for step in steps]
    tokens = [step["tokens"] for step in steps]
    assert tokens[0] != tokens[1]
    for name in ("mismatch/weight_mean", "mismatch/kl_k1", "mismatch/kl_k3"):
        mean = sum(one[name] * count for one, count in zip(each, tokens, strict=True)) / sum(tokens)
        assert both[name] == pytest.approx(mean, rel=1e-12)
    for name in ("mismatch/weight_max", "mismatch/logprob_gap_max"):
        assert both[name] == max(one[name] for one in each)
    assert mismatch_stats([]) == {}


class One:
    """One of two ranks; the other one has told what it adds up and what its largest values are."""

    rank, world_size, lockstep = 0, 2, False

    def __init__(self, other):
        self._other = other

    def sum(self, values):
        """Denominators are fixed by the test; statistics of both ranks."""
        return values if values.dim() == 0 else values + self._other["sums"]

    def gather(self, item):
        """Advantages are fixed by the test as well."""
        return [item, self._other["most"]] if isinstance(item, dict) else [item]


def test_statistics_of_ranks_are_of_all_their_tokens():
    """Sums are added and maxima compared; the largest values may be on either rank."""
    algorithm = replace(preset("grpo"), advantage=lambda rewards, valid: torch.ones_like(rewards))
    seen = []
    for seed in (1, 2):
        tables = [drawn(seed, 4), drawn(3 - seed, 4)]
        alone = [taken(algorithm, table)[0] for table in tables]
        names = [name for name in alone[0] if not name.endswith("_max")]
        other = {
            "sums": torch.stack([alone[0][name].double() for name in names]),
            "most": {name: float(value) for name, value in alone[0].items() if name.endswith("_max")},
        }
        together, _, _ = taken(algorithm, tables[1], ranks=One(other))
        steps = [scalar_values(each) for each in alone]
        found, expected = mismatch_stats([scalar_values(together)]), mismatch_stats(steps)
        assert found == pytest.approx(expected, rel=1e-9)
        seen.append((found["mismatch/weight_max"], mismatch_stats(steps[1:])["mismatch/weight_max"]))
    assert seen[0][0] == pytest.approx(seen[1][0])
    assert any(both != own for both, own in seen), "the largest is always this rank's own"


@each_kind
@pytest.mark.parametrize("on_policy", [False, True])
def test_an_engine_that_is_the_policy_changes_nothing(level, mode, on_policy):
    """Bit for bit; negative control: a shifted one does."""
    table = drawn(4, 4)
    table.sampler = table.logprobs if on_policy else table.old
    correction = ImportanceCorrection(level=level, mode=mode, cap=1.001, floor=0.999)
    plain, gradient, _ = taken(preset("grpo"), table, on_policy=on_policy)
    totals, found, _ = taken(replace(preset("grpo"), correction=correction), table, on_policy=on_policy)
    assert torch.equal(totals["loss"], plain["loss"])
    assert torch.equal(found, gradient)
    stats = mismatch_stats([scalar_values(totals)])
    assert stats == {name: 1.0 if "weight" in name else 0.0 for name in stats}
    assert len(stats) == 6
    table.sampler = table.sampler - 0.01
    shifted = taken(replace(preset("grpo"), correction=correction), table, on_policy=on_policy)[1]
    assert not torch.equal(shifted, gradient)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_cap_bounds_what_an_engine_can_add(level):
    """By tokens that it thought far less likely; unbounded, they decide the step."""
    table = drawn(4, 4)
    table.sampler = table.old - 3.0
    gradients = {}
    for cap in (1 + 1e-6, math.inf):
        correction = ImportanceCorrection(level=level, cap=cap)
        gradients[cap] = taken(replace(preset("grpo"), correction=correction), table)[1]
    plain = taken(preset("grpo"), table)[1]
    assert (gradients[1 + 1e-6].abs() <= (1 + 2e-6) * plain.abs()).all()
    torch.testing.assert_close(gradients[1 + 1e-6], plain, rtol=2e-6, atol=0)
    assert gradients[math.inf].abs().max() > 15 * plain.abs().max()


@each_kind
def test_no_gradient_flows_through_weights(level, mode):
    """On policy the old log-probabilities are the ones that are differentiated: the gradient is w times PPO's."""
    table = drawn(2, 4)
    correction = ImportanceCorrection(level=level, mode=mode, cap=1.4)
    plain, found = (
        taken(replace(preset("grpo"), correction=each), table, on_policy=True)[1] for each in (None, correction)
    )
    table.old = table.logprobs
    weights = torch.zeros_like(plain)
    for row in counted_rows(table):
        for c, ratio in enumerate(ratios_of(table, row, level)):
            weights[row, c] = bounded(ratio, mode, 0.0, 1.4)
    torch.testing.assert_close(found, weights * plain, rtol=1e-9, atol=1e-12)
    known = table.old.clone().requires_grad_()
    output = correction(known, table.sampler.clone().requires_grad_(), table.mask)
    assert not output.weights.requires_grad
    assert not output.ratios.requires_grad


def expectation(correction, length, *, engine):
    """Mean gradient of the step's loss by the policy's logits, over every completion that a sampler can draw."""
    generator = torch.Generator().manual_seed(length)
    shape = (1 + 3 + 9, 3)  # logits after every beginning of up to two tokens out of three
    logits, others, rewards = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    logprobs, sampler = logits.log_softmax(-1), others.log_softmax(-1)
    total = torch.zeros(shape, dtype=torch.float64)
    for tokens in itertools.product(range(3), repeat=length):
        states = [0, 1 + tokens[0], 4 + 3 * tokens[0] + tokens[-1]][:length]
        mask = torch.ones(1, length, dtype=torch.bool)
        own, theirs = logprobs[states, tokens][None], sampler[states, tokens][None]
        reward = rewards[states, tokens].prod()
        weights = 1.0 if correction is None else correction(own, theirs, mask).weights
        (gradient,) = torch.autograd.grad((own * reward * weights).sum(), logits, retain_graph=True)
        total += (theirs if engine else own).sum().exp().detach() * gradient
    return total


def test_unbounded_weights_of_completions_make_the_gradient_that_of_the_policys_own_samples():
    """Exactly, over all completions; of tokens too where there is one. Controls: no weight, of tokens, bounded."""
    whole, tokens = ImportanceCorrection(level="sequence", cap=math.inf), ImportanceCorrection(cap=math.inf)
    for length in (1, 2, 3):
        expected = expectation(None, length, engine=False)
        assert expected.abs().max() > 0.01
        found = expectation(whole, length, engine=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert (expectation(None, length, engine=True) - expected).abs().max() > 0.01
        of_tokens = (expectation(tokens, length, engine=True) - expected).abs().max()
        assert of_tokens < 1e-12 if length == 1 else of_tokens > 1e-3
    for mode in ("truncate", "mask"):
        bound = ImportanceCorrection(level="sequence", mode=mode, cap=1.1)
        assert (expectation(bound, 3, engine=True) - expected).abs().max() > 1e-3
