"""Every preset written out again from its paper, in plain loops over single tokens, and compared with what a step does.

A preset without a formula here fails: what is shipped under a paper's name is proven.
"""

import math
from dataclasses import replace

import pytest
import torch
from step_cases import PRESETS, ROW_BY_ROW, Table, drawn, experience_of, preset, taken

from lightning_mmrl.protocols.ranks import ALONE
from lightning_mmrl.stages.advantages import shared_advantages

SIZES = (2, 4, 8)
SEEDS = range(3)
MAX_TOKENS = 24  # the completion limit of the quickstart


def mean(values):
    return math.fsum(values) / len(values)


def deviation(values):
    center = mean(values)
    return math.sqrt(math.fsum((value - center) ** 2 for value in values) / (len(values) - 1))


def z_score(group, everyone, eps=1e-4):
    return [(reward - mean(group)) / (deviation(group) + eps) for reward in group]


def sharper_z_score(group, everyone):
    return z_score(group, everyone, eps=1e-6)


def centered(group, everyone):
    return [reward - mean(group) for reward in group]


def leave_one_out(group, everyone):
    return [reward - mean(group[:place] + group[place + 1 :]) for place, reward in enumerate(group)]


def normalized_leave_one_out(group, everyone):
    """Over the deviation among all completions with a sibling, as MM-Eureka and LMM-R1 release it."""
    compared = [each for each in everyone if len(each) > 1]
    spread = deviation([value for each in compared for value in leave_one_out(each, everyone)])
    return [value / (spread + 1e-8) for value in leave_one_out(group, everyone)]


def reinforce_baseline(group, everyone):
    differences = [reward - mean(each) for each in everyone for reward in each]
    spread = deviation(differences)
    return [(reward - mean(group) - mean(differences)) / (spread + 1e-4) for reward in group]


def clipped(low, high, most=math.inf):
    """`most` bounds ratios where the advantage is negative: there a cap of the ratio and a dual clip are the same."""

    def loss(ratio, advantage, logprob):
        bounded = min(max(ratio.item(), 1 - low), 1 + high)
        if advantage < 0 and ratio.item() > most:
            return -most * advantage + 0 * ratio
        # Within the bounds both terms are the ratio times the advantage, whose gradient counts once.
        return -bounded * advantage if bounded * advantage < ratio.item() * advantage else -ratio * advantage

    return loss


def weighted(ratio, advantage, logprob):
    return -min(ratio.item(), 5.0) * advantage * logprob


def token_ratios(new, old):
    return [(a - b).exp() for a, b in zip(new, old, strict=True)]


def sequence_ratios(new, old):
    logs = [a - b for a, b in zip(new, old, strict=True)]
    return [(sum(logs) / len(logs)).exp()] * len(logs)


def product_ratios(new, old):
    return [(sum(new) - sum(old)).exp()] * len(new)


PAPERS = {
    "grpo": (z_score, token_ratios, clipped(0.2, 0.2), "completion", {}),
    "hpt": (z_score, token_ratios, clipped(0.2, 0.2), "completion", {}),
    "grpo_token_mean": (z_score, token_ratios, clipped(0.2, 0.2), "token", {}),
    "dr_grpo": (centered, token_ratios, clipped(0.2, 0.2), "constant", {}),
    "dapo": (z_score, token_ratios, clipped(0.2, 0.28), "token", {"drop_truncated": True}),
    "gspo": (z_score, sequence_ratios, clipped(3e-4, 4e-4), "completion", {}),
    "cispo": (z_score, token_ratios, weighted, "token", {}),
    "rloo": (leave_one_out, token_ratios, clipped(0.2, 0.2), "completion", {}),
    "rloo_token_mean": (leave_one_out, token_ratios, clipped(0.2, 0.2), "token", {}),
    "rloo_sequence": (leave_one_out, product_ratios, clipped(0.2, 0.2), "completion", {"k1_in_reward": 0.05}),
    "mm_eureka_v2": (z_score, token_ratios, clipped(0.2, 0.2, 3.0), "completion", {}),
    "revisual_mm": (z_score, token_ratios, clipped(0.2, 0.25, 3.0), "token", {}),
    "revisual_filter_only": (z_score, token_ratios, clipped(0.2, 0.25, 3.0), "token", {}),
    "revisual_subsample_only": (z_score, token_ratios, clipped(0.2, 0.25, 3.0), "token", {}),
    "revisual_text": (z_score, token_ratios, clipped(0.2, 0.25, 3.0), "token", {"k3_in_loss": 1e-2}),
    "reinforce_pp": (reinforce_baseline, token_ratios, clipped(0.2, 0.2), "token", {"k2_in_loss": 1e-5}),
    "r1_omni": (z_score, token_ratios, clipped(0.2, 0.2), "completion", {"k3_in_loss": 0.04}),
    "visualthinker": (z_score, token_ratios, clipped(0.2, 0.2), "completion", {"k3_in_loss": 0.04}),
    "rlcs": (sharper_z_score, token_ratios, clipped(0.2, 0.3, most=3.0), "token", {"k3_in_loss": 0.01}),
    "metis_rise_rl": (z_score, token_ratios, clipped(0.2, 0.28), "completion", {}),
    "mm_eureka_v1": (normalized_leave_one_out, token_ratios, clipped(0.2, 0.2), "completion", {}),
    "vision_r1_ptst": (z_score, token_ratios, clipped(0.2, 0.2), "token", {"k3_in_loss": 0.01}),
}
SAME_FORMULA = [
    {"grpo", "hpt"},  # tests/equivalence/test_router.py tells what its router adds
    {"r1_omni", "visualthinker"},
    {"revisual_mm", "revisual_filter_only"},  # tests/properties/test_pad_halves.py tells these three apart
    {"revisual_mm", "revisual_subsample_only"},
    {"revisual_filter_only", "revisual_subsample_only"},
]
STATISTICS_OF_THE_BATCH = (reinforce_baseline, normalized_leave_one_out)


def written_out(name, table, *, on_policy=False, entropy=0.0):
    """Loss and its gradients by each log-probability and entropy."""
    estimate, ratios_of, loss_of, divided_by, terms = PAPERS[name]
    new = [[value.clone().requires_grad_() for value in row] for row in table.logprobs]
    entropies = [[value.clone().requires_grad_() for value in row] for row in table.entropy]
    lengths = table.mask.sum(-1).tolist()
    groups, members = [], []
    for prompt, valid in enumerate(table.valid.tolist()):
        rows = [prompt * table.size + place for place in range(table.size) if valid[place]]
        rewards = [table.rewards.flatten()[row].item() for row in rows]
        for place, row in enumerate(rows):
            drift = [(table.old[row, c] - table.reference[row, c]).item() for c in range(lengths[row])]
            rewards[place] -= terms.get("k1_in_reward", 0.0) * sum(drift)
        groups.append(rewards)
        members.append(rows)
    completions = []
    for rows, rewards in zip(members, groups, strict=True):
        same = len(rewards) < 2 or len(set(rewards)) == 1
        advantages = [0.0] * len(rows) if same else estimate(rewards, groups)
        for row, advantage in zip(rows, advantages, strict=True):
            if terms.get("drop_truncated") and table.truncated.flatten()[row]:
                continue
            logprobs = new[row][: lengths[row]]
            old = [p.detach() if on_policy else q for p, q in zip(logprobs, table.old[row], strict=False)]
            losses = [loss_of(ratio, advantage, p) for ratio, p in zip(ratios_of(logprobs, old), logprobs, strict=True)]
            for c in range(lengths[row]):
                distance = logprobs[c] - table.reference[row, c]
                excess = (-distance).exp() - 1 + distance
                losses[c] = losses[c] + terms.get("k2_in_loss", 0.0) * distance**2 / 2 - entropy * entropies[row][c]
                losses[c] = losses[c] + terms.get("k3_in_loss", 0.0) * excess
            completions.append(losses)
    if divided_by == "completion":
        loss = sum(sum(losses) / len(losses) for losses in completions) / len(completions)
    else:
        count = sum(map(len, completions)) if divided_by == "token" else MAX_TOKENS * len(completions)
        loss = sum(map(sum, completions)) / count
    (loss + 0 * new[0][0]).backward()
    return loss.item(), gradient(new), gradient(entropies)


def gradient(rows):
    return torch.tensor(
        [[0.0 if value.grad is None else value.grad.item() for value in row] for row in rows], dtype=torch.float64
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_paper(name, size):
    """Also in microbatches of single completions; negative control: no other paper's formula fits."""
    for seed in SEEDS:
        table = drawn(seed, size, moved=0.4 if seed else 1.5)
        loss, by_logprobs, _ = written_out(name, table)
        totals, found, _ = taken(preset(name), table)
        assert totals["loss"].item() == pytest.approx(loss, rel=1e-9, abs=1e-12)
        torch.testing.assert_close(found, by_logprobs, rtol=1e-9, atol=1e-12)
        assert by_logprobs.abs().max() > 1e-4
        pieces, apart, _ = taken(preset(name), table, budget=ROW_BY_ROW)
        assert pieces["loss"].item() == pytest.approx(loss, rel=1e-9, abs=1e-12)
        torch.testing.assert_close(apart, by_logprobs, rtol=1e-9, atol=1e-12)


def test_no_preset_fits_the_formula_of_another():
    table = drawn(0, 4, moved=1.5)
    gradients = {name: written_out(name, table)[1] for name in PAPERS}
    for name in PRESETS:
        found = taken(preset(name), table)[1]
        for other, wrong in gradients.items():
            if other != name and {name, other} not in SAME_FORMULA:
                assert (found - wrong).abs().max() > 1e-6, (name, other)


def test_the_dual_clip_of_a_preset_decides_gradients(monkeypatch):
    tables = [drawn(seed, 8, moved=1.5) for seed in SEEDS]
    found = [taken(preset("rlcs"), table)[1] for table in tables]
    estimate, ratios_of, _, divided_by, terms = PAPERS["rlcs"]
    monkeypatch.setitem(PAPERS, "rlcs", (estimate, ratios_of, clipped(0.2, 0.3), divided_by, terms))
    without = [written_out("rlcs", table)[1] for table in tables]
    assert max((one - other).abs().max() for one, other in zip(found, without, strict=True)) > 1e-4


@pytest.mark.parametrize("name", PRESETS)
def test_at_ratio_one_the_gradient_is_that_of_reinforce(name):
    """The first update of a rollout: all ratios are exactly 1, nothing is clipped, whatever the ratio and the clip."""
    table = drawn(3, 4)
    totals, found, _ = taken(preset(name), table, on_policy=True)
    _, expected, _ = written_out(name, table, on_policy=True)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert totals["ratio"].item() == totals["tokens"].item()
    assert totals["ratio_max"].item() == 1.0
    assert totals["clipped"].item() == totals["kl"].item() == 0
    estimate, _, _, divided_by, terms = PAPERS[name]
    if not terms and divided_by == "token":
        counted = (table.mask & table.valid.reshape(-1, 1)).double()
        plain = torch.zeros_like(found)
        groups = [group[valid].tolist() for group, valid in zip(table.rewards, table.valid, strict=True)]
        for prompt, group in enumerate(groups):
            advantages = estimate(group, groups) if len(set(group)) > 1 else [0.0] * len(group)
            rows = prompt * 4 + table.valid[prompt].nonzero().flatten()
            for row, advantage in zip(rows.tolist(), advantages, strict=True):
                plain[row] = -advantage * counted[row] / counted.sum()
        torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo"])
def test_an_entropy_bonus_is_reduced_as_the_loss_is(name):
    table = drawn(1, 4)
    loss, by_logprobs, by_entropy = written_out(name, table, entropy=0.03)
    totals, found, found_by_entropy = taken(preset(name), table, entropy_coefficient=0.03)
    assert totals["loss"].item() == pytest.approx(loss, rel=1e-9)
    torch.testing.assert_close(found, by_logprobs, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found_by_entropy, by_entropy, rtol=1e-9, atol=1e-12)
    assert by_entropy.abs().max() > 1e-5
    assert taken(preset(name), table)[2] is None


@pytest.mark.parametrize("name", [name for name in PRESETS if not PAPERS[name][4]])
def test_a_constant_group_moves_nothing(name):
    """Exactly: its rewards are 0.1, which is no float."""
    table = drawn(2, 8)
    _, found, _ = taken(preset(name), table)
    assert not found[8:16].any()
    assert found[:8].any()


class Other:
    """One of two ranks; the other one is asked for what it has."""

    world_size, lockstep = 2, False

    def __init__(self, rank, parts):
        self.rank, self._parts = rank, parts

    def gather(self, item):
        return self._parts


@pytest.mark.parametrize("name", PRESETS)
def test_two_ranks_have_the_advantages_of_one_process(name):
    """Bit for bit; negative control: statistics of the batch need the completions of all ranks."""
    table, estimator = drawn(4, 4, num_prompts=6), preset(name).advantage
    scores = experience_of(table).scores
    whole = shared_advantages(estimator, scores.rewards, scores.valid, ALONE)
    for rows in ([0, 1, 2], [3, 4, 5]), ([0, 3, 4], [1, 2, 5]):
        shares = [experience_of(table.select(own)).scores for own in rows]
        parts = [(tuple(own), share.rewards, share.valid) for own, share in zip(rows, shares, strict=True)]
        found = [
            shared_advantages(estimator, share.rewards, share.valid, Other(rank, parts), own)
            for rank, (own, share) in enumerate(zip(rows, shares, strict=True))
        ]
        order = torch.tensor([*rows[0], *rows[1]]).argsort()
        assert torch.equal(torch.cat(found)[order], whole)
        alone = torch.cat([shared_advantages(estimator, share.rewards, share.valid, ALONE) for share in shares])
        assert torch.equal(alone[order], whole) == (PAPERS[name][0] not in STATISTICS_OF_THE_BATCH)


TIMES = torch.tensor(
    [[1.0, 2.0, 0.0, 1.0], [3.0, 0.0, 1.0, 1.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 2.0, 4.0]]
)


@pytest.mark.parametrize("name", ["revisual_mm", "mm_eureka_v2", "dr_grpo", "reinforce_pp"])
def test_a_completion_that_counts_twice_is_one_that_is_there_twice(name):
    """By tokens, completions and constant; with a divergence; control: weights that are not in the denominator."""
    table, algorithm = drawn(5, 4), preset(name)
    scores = experience_of(table).scores
    advantages = shared_advantages(algorithm.advantage, scores.rewards, scores.valid, ALONE)
    weights = TIMES.double()
    fixed = replace(algorithm, advantage=lambda rewards, valid: advantages)
    kept = replace(table, valid=table.valid & (weights > 0))
    totals, found, _ = taken(fixed, kept, weights=weights, budget=ROW_BY_ROW)
    slots = [(prompt, place) for prompt in range(5) for place in range(4) for _ in range(int(TIMES[prompt, place]))]
    rows = [prompt * 4 + place for prompt, place in slots]
    copies = Table(
        **{part: getattr(table, part)[rows] for part in ("logprobs", "old", "reference", "entropy", "mask")},
        **{part: getattr(table, part).flatten()[rows][:, None] for part in ("rewards", "valid", "truncated")},
    )
    doubled = replace(algorithm, advantage=lambda rewards, valid: advantages.flatten()[rows][:, None])
    expected, by_copies, _ = taken(doubled, copies)
    assert totals["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-12)
    together = torch.zeros_like(found).index_add(0, torch.tensor(rows), by_copies)
    torch.testing.assert_close(found, together, rtol=1e-12, atol=1e-14)
    assert (taken(fixed, kept)[1] - together).abs().max() > 1e-3
    unbalanced = taken(fixed, kept, weights=2 * weights)[1]
    torch.testing.assert_close(unbalanced, found, rtol=1e-12, atol=1e-14)


def test_the_bonus_of_the_text_stage_waits_and_then_fades():
    entropy = preset("revisual_text").entropy
    assert [entropy.coefficient_at(step, 200) for step in (0, 19)] == [0.0, 0.0]
    assert [entropy.coefficient_at(step, 200) for step in (20, 21, 120)] == pytest.approx(
        [0.02, 0.02 * 0.985, 0.02 * 0.985**100]
    )
