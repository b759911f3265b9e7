"""Rollouts with drafts against rollouts without, in float64: the same tokens, masks and log-probabilities."""

import json

import adapted
import drafters
import families
import omni
import pytest
import torch

from lightning_mmrl.models import decode_cache
from lightning_mmrl.models.decoding import SharedDecoding, StockDecoding
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rollout.sampling import group_seeds
from lightning_mmrl.rollout.speculation import FEW_STATES, Speculation
from lightning_mmrl.settings.model import ModelSettings
from lightning_mmrl.settings.speculation import SpeculationSettings

LENGTH = 14
EXACT = 1e-9
QUALITIES = {"empty": None, "garbage": 0.0, "half right": 0.7, "perfect": 1.0}


@pytest.fixture(scope="module", params=families.each())
def family(request, tmp_path_factory):
    return loaded(request.param, tmp_path_factory.mktemp(request.param))


def loaded(name, folder):
    """Encoder, policy, the same policy with a copy of each prompt, and prompts."""
    encoder, policy = families.load(name, families.build(name, folder), temperature=0.8)
    families.enliven(policy.model)
    banned = encoder.banned_token_ids()
    unshared = Policy(policy._backbone, banned_token_ids=banned, temperature=0.8, settings=ModelSettings(sharing=False))
    return encoder, policy, unshared, omni.prompts(encoder, (*families.FAMILIES[name].contents, "Which emotion? " * 30))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The same of one family that reads all media."""
    return loaded("qwen2_5_omni", tmp_path_factory.mktemp("omni"))


def rollout_of(family, policy, drafter=None, *, group_size=3, **how):
    """A rollout, with some drafter."""
    encoder, *_, prompts = family
    settings = {"max_new_tokens": LENGTH, "eos_token_ids": families.frequent_ends(encoder, policy), **how}
    greedy = settings.pop("greedy", False)
    running = omni.engine(encoder, policy, **settings)
    running.drafter = drafter
    seeds = group_seeds(0, 1, [sample.id for sample in prompts.samples], group_size)
    return running.generate(prompts, group_size=group_size, seeds=seeds, greedy=greedy)


def sampled(rollout):
    return [row[mask].tolist() for row, mask in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]


def told(rollout, quality, policy):
    """A drafter of some quality; wrong tokens are any, banned ones and ends among them."""
    if quality is None:
        return drafters.Told(sampled(rollout), 0.0, [0], longest=0)
    return drafters.Told(sampled(rollout), quality, range(len(policy.banned)))


def assert_same(found, expected):
    assert torch.equal(found.completion_ids, expected.completion_ids)
    assert torch.equal(found.completion_mask, expected.completion_mask)
    torch.testing.assert_close(found.sampler_logprobs, expected.sampler_logprobs, rtol=0, atol=EXACT)
    assert found.completions == expected.completions


SAMPLINGS = {"sampled": {}, "nucleus": {"top_p": 0.9}, "greedy": {"greedy": True}, "alone": {"group_size": 1}}


@pytest.mark.parametrize("sharing", [True, False], ids=["shared", "copied"])
@pytest.mark.parametrize("how", SAMPLINGS, ids=str)
def test_no_draft_changes_a_token(family, how, sharing):
    _, policy, unshared, _ = family
    policy = policy if sharing else unshared
    expected = rollout_of(family, policy, **SAMPLINGS[how])
    assert len({completion.num_tokens for completion in expected.completions}) > 2
    passes = {}
    for name, quality in QUALITIES.items():
        found = rollout_of(family, policy, told(expected, quality, policy), **SAMPLINGS[how])
        assert_same(found, expected)
        passes[name] = found.decoding["passes"]
        assert found.decoding["longest"] == expected.completion_mask.shape[1]
    assert passes["empty"] == expected.completion_mask.shape[1]
    assert passes["perfect"] < passes["half right"] < passes["empty"]


@pytest.mark.parametrize("sharing", [True, False], ids=["shared", "copied"])
def test_drafts_of_the_store_change_no_token_and_save_passes(one, sharing):
    """Over several iterations with the same prompts; a store that starts empty in between is one after a resume."""
    encoder, policy, unshared, prompts = one
    policy = policy if sharing else unshared
    drafting = SpeculationSettings(max_draft=5, pass_tokens=1000.0)
    settings = {"max_new_tokens": LENGTH, "eos_token_ids": families.frequent_ends(encoder, policy)}
    plain = omni.engine(encoder, policy, **settings)
    store, resumed = (omni.engine(encoder, policy, speculation=drafting, **settings) for _ in range(2))
    passes = []
    for iteration in (1, 1, 1, 2, 3):
        seeds = group_seeds(0, iteration, [sample.id for sample in prompts.samples], 3)
        expected = plain.generate(prompts, group_size=3, seeds=seeds)
        found = store.generate(prompts, group_size=3, seeds=seeds)
        assert_same(found, expected)
        passes.append(found.decoding.get("passes"))
        if iteration > 1:
            assert_same(resumed.generate(prompts, group_size=3, seeds=seeds), expected)
    width = expected.completion_mask.shape[1]
    assert passes[0] is None  # nothing is known yet
    assert passes[2] < width / 2  # it has seen these completions


def test_drafts_with_an_adapter(tmp_path):
    encoder, policy = adapted.load("qwen2_5_omni", families.build("qwen2_5_omni", tmp_path), spread=True)
    family = encoder, policy, None, omni.prompts(encoder)
    expected = rollout_of(family, policy)
    assert_same(rollout_of(family, policy, told(expected, 0.7, policy)), expected)


@pytest.mark.parametrize("window", [4, 9])
def test_drafts_with_sliding_windows(tmp_path, window):
    """Such a layer looks at order in the row: after a wrong draft, the row's tokens must stand side by side again."""
    folder = families.build("qwen2", tmp_path)
    config = folder / "config.json"
    sliding = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 1, "layer_types": None}
    config.write_text(json.dumps(json.loads(config.read_text()) | sliding))
    encoder, policy = families.load("qwen2", folder, temperature=0.8)
    families.enliven(policy.model)
    assert "sliding_attention" in policy.sharing_refusal
    family = encoder, policy, None, omni.prompts(encoder, families.FAMILIES["qwen2"].contents)
    expected = rollout_of(family, policy, max_new_tokens=30, eos_token_ids=encoder.banned_token_ids()[:1])
    for quality in (0.5, 0.9):
        drafter = told(expected, quality, policy)
        how = {"max_new_tokens": 30, "eos_token_ids": encoder.banned_token_ids()[:1]}
        assert_same(rollout_of(family, policy, drafter, **how), expected)


@pytest.mark.parametrize("sharing", [True, False], ids=["shared", "copied"])
def test_a_draft_that_breaks_the_model_leaves_no_trace(one, sharing):
    """A token whose embedding is infinite, in a draft: its keys are hidden by a weight of zero, and 0 * inf is NaN."""
    _, policy, unshared, _ = one
    policy = policy if sharing else unshared
    expected = rollout_of(one, policy)
    used = {token for row in sampled(expected) for token in row}
    broken = next(token for token in range(100, len(policy.banned)) if token not in used)
    weight = policy._backbone.text_model.get_input_embeddings().weight
    before = weight[broken].clone()
    with torch.no_grad():
        weight[broken] = torch.inf
    try:
        drafter = drafters.Told(sampled(expected), 0.8, [broken])
        found = rollout_of(one, policy, drafter)
    finally:
        with torch.no_grad():
            weight[broken] = before
    assert_same(found, expected)
    assert found.decoding["accepted/told"] > 0


@pytest.mark.parametrize("sharing", [True, False], ids=["shared", "copied"])
@pytest.mark.parametrize("group_size", [1, 3])
def test_drafts_begin_when_few_rows_are_left(one, sharing, group_size):
    """Rows that have ended by then stay as they are, those that go on are continued, and no earlier pass has drafts."""
    _, policy, unshared, _ = one
    policy = policy if sharing else unshared
    expected = rollout_of(one, policy, group_size=group_size)
    lengths = expected.completion_mask.sum(-1)
    passes = {}
    for most_rows in (0, len(lengths) // 2, len(lengths)):
        drafter = drafters.Told(sampled(expected), 1.0, [0], most_rows=most_rows)
        found = rollout_of(one, policy, drafter, group_size=group_size)
        assert_same(found, expected)
        assert all(len(asked) <= most_rows for asked in drafter.asked)
        passes[most_rows] = found.decoding["passes"]
    none, few, all_ = passes.values()
    assert all_ < few < none == lengths.max()


@pytest.mark.parametrize("sharing", [True, False], ids=["shared", "copied"])
def test_long_drafts_need_no_more_distributions_at_a_time_than_the_first_step(one, sharing, monkeypatch):
    """A distribution is as wide as the vocabulary, which is most of the memory of a pass in a real model."""
    _, policy, unshared, _ = one
    policy = policy if sharing else unshared
    expected = rollout_of(one, policy)
    num_rows, together, fed = len(expected.completion_mask), [], []
    assert num_rows < FEW_STATES
    next_logprobs, extend = policy.next_logprobs, SharedDecoding.extend if sharing else StockDecoding.extend

    def seen(hidden):
        together.append(len(hidden))
        return next_logprobs(hidden)

    def widened(self, tokens, widths):
        fed.append(len(tokens))
        return extend(self, tokens, widths)

    monkeypatch.setattr(policy, "next_logprobs", seen)
    monkeypatch.setattr(SharedDecoding if sharing else StockDecoding, "extend", widened)
    found = rollout_of(one, policy, drafters.Told(sampled(expected), 1.0, [0], longest=LENGTH))
    assert_same(found, expected)
    assert max(fed) > FEW_STATES >= max(together)


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_drafts_end_with_the_longest_completion(one, limit):
    encoder, policy, _, _ = one
    how = {"max_new_tokens": limit, "eos_token_ids": encoder.banned_token_ids()[:1]}
    expected = rollout_of(one, policy, **how)
    found = rollout_of(one, policy, told(expected, 1.0, policy), **how)
    assert_same(found, expected)
    assert found.decoding["passes"] <= limit


def wrong(one, monkeypatch, owner, name, replacement):
    """Whether rollouts with drafts have other tokens after a change of the code, and the right ones before it."""
    _, policy, unshared, _ = one
    changed = []
    for each in (policy, unshared):
        expected = rollout_of(one, each)
        assert_same(rollout_of(one, each, told(expected, 0.7, each)), expected)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, replacement)
            found = rollout_of(one, each, Unchecked(sampled(expected), 0.7, range(len(each.banned))))
        changed.append(sampled(found) != sampled(expected))
    return changed


class Unchecked(drafters.Told):
    """Its answers may turn out not to be the completions."""

    def end(self, rows, tally):
        pass


def test_control_the_noise_of_another_position(one, monkeypatch):
    def of_the_first(self, at):
        firsts = torch.tensor(self._lengths, device=at.device)[at[0]]
        return self._sheet.noise[at[0], firsts.clamp(max=self._sheet.noise.shape[1] - 1)]

    assert wrong(one, monkeypatch, Speculation, "_noise", of_the_first) == [True, True]


@pytest.mark.parametrize("kind", [SharedDecoding, StockDecoding])
def test_control_wrong_drafts_are_kept(one, monkeypatch, kind):
    retain = kind.retain
    keep_all = wrong(
        one, monkeypatch, kind, "retain", lambda self, counts, **how: retain(self, self._spans.widths, **how)
    )
    assert keep_all == [kind is SharedDecoding, kind is StockDecoding]


def test_control_rows_see_what_comes_after_their_last_token(one, monkeypatch):
    attend = decode_cache._Ragged.attend

    def unmasked(self, *tensors):
        self._bias = torch.zeros_like(self._bias)
        return attend(self, *tensors)

    assert wrong(one, monkeypatch, decode_cache._Ragged, "attend", unmasked) == [True, False]


@pytest.mark.parametrize("kind", [SharedDecoding, StockDecoding])
def test_control_positions_of_rows_that_advance_alike(one, monkeypatch, kind):
    retain = kind.retain

    def alike(self, counts, **how):
        retain(self, counts, **how)
        self._position = self._position + max(counts) - torch.tensor(counts)

    assert wrong(one, monkeypatch, kind, "retain", alike) == [kind is SharedDecoding, kind is StockDecoding]
