"""Generation of every family against `transformers.generate` on the same prompts: same tokens, same distribution.

The model on transformers' side is loaded apart and never sees this package's attention. It finds its own positions;
on these clips they are the same under both rules.
"""

from dataclasses import replace
from itertools import combinations

import families
import omni
import pytest
import torch
from torch.nn.functional import pad

from lightning_mmrl.models.decoding import StockDecoding, start_decoding
from lightning_mmrl.models.families.qwen_vision import normalized
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.rollout.sampling import group_seeds, nucleus
from lightning_mmrl.settings.model import ModelSettings

GROUP = 3
LENGTH = 10
TEMPERATURE = 0.8
TOP_P = 0.9
EXACT = 1e-9
FALSE_ALARM = 1e-4
"""Probability with which one chi-square test of a right sampler fails; seeds are fixed, so it does or does not."""


@pytest.fixture(scope="module", params=families.each())
def family(request, tmp_path_factory):
    """Name, encoder, policy, the same policy without sharing, and the stock model."""
    name = request.param
    folder = families.build(name, tmp_path_factory.mktemp(name))
    encoder, policy = families.load(name, folder, temperature=TEMPERATURE)
    stock = families.FAMILIES[name].backbone.from_checkpoint(folder, dtype=torch.float64).model.eval()
    families.exact(stock)
    for model in (policy.model, stock):
        families.enliven(model)
    banned = encoder.banned_token_ids()
    unshared = Policy(
        policy._backbone, banned_token_ids=banned, temperature=TEMPERATURE, settings=ModelSettings(sharing=False)
    )
    return name, encoder, policy, unshared, stock


@pytest.fixture(scope="module")
def prompts(family):
    """All kinds of media that the family reads, and a prompt several times as long as the others."""
    name, encoder, *_ = family
    return omni.prompts(encoder, (*families.FAMILIES[name].contents, "Which emotion? " * 30))


def engine(family, **how):
    _, encoder, policy, *_ = family
    settings = {"policy": policy, "max_new_tokens": LENGTH, **how}
    return omni.engine(encoder, **settings)


def trimmed(prompts, row):
    """One prompt without padding."""
    one = prompts.select([row])
    keep = one.prompt_mask[0]
    return replace(
        one,
        input_ids=one.input_ids[:, keep],
        prompt_mask=one.prompt_mask[:, keep],
        position_ids=one.position_ids[:, :, keep],
    )


def stock_generate(family, prompts, **how):
    """Generation by transformers of the prompts, padded on the left; no token ends a row unless told so."""
    name, encoder, _, _, stock = family
    banned = list(encoder.banned_token_ids())
    media = normalized(prompts.media.tensors)
    more = families.FAMILIES[name].stock_inputs(stock.config, prompts.input_ids, media)
    return stock.generate(
        input_ids=prompts.input_ids,
        attention_mask=prompts.prompt_mask.long(),
        **media,
        **{key: value for key, value in more.items() if value is not None},
        **{
            "suppress_tokens": banned,
            "eos_token_id": banned[:1],
            "pad_token_id": encoder.pad_token_id,
            "max_new_tokens": LENGTH,
            "return_dict_in_generate": True,
            "output_scores": True,
            **how,
        },
    )


def own_part(generated, prompts, ends):
    """Rows of token ids after the prompt, up to and including the first end."""
    rows = []
    for row in generated.sequences[:, prompts.input_ids.shape[1] :].tolist():
        stop = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        rows.append(row[:stop])
    return rows


def sampled(rollout):
    return [row[mask].tolist() for row, mask in zip(rollout.completion_ids, rollout.completion_mask, strict=True)]


def frequent_ends(family):
    """Every sixth token ends a row, so that rows end at many different steps."""
    return families.frequent_ends(*family[1:3])


def two_ends(answers):
    """The two sampled tokens that end these answers at the largest number of different steps."""

    def num_lengths(ends):
        return len({min(answer.index(end) for end in (*ends, answer[-1]) if end in answer) for answer in answers})

    return max(combinations(sorted({token for answer in answers for token in answer}), 2), key=num_lengths)


def test_greedy_tokens_equal_those_of_transformers(family, prompts):
    seeds = [[0]] * len(prompts.samples)
    endless = engine(family, eos_token_ids=family[1].banned_token_ids()[:1])
    ends = list(two_ends(sampled(endless.generate(prompts, group_size=1, seeds=seeds, greedy=True))))
    ours = sampled(engine(family, eos_token_ids=ends).generate(prompts, group_size=1, seeds=seeds, greedy=True))
    assert len({len(row) for row in ours}) > 1
    padded = stock_generate(family, prompts, do_sample=False, eos_token_id=ends)
    assert ours == own_part(padded, prompts, ends)
    for row, answer in enumerate(ours):
        one = trimmed(prompts, row)
        assert [answer] == own_part(stock_generate(family, one, do_sample=False, eos_token_id=ends), one, ends)


def test_shared_prompts_and_transformers_cache_choose_the_same_tokens(family, prompts):
    _, _, _, unshared, _ = family
    seeds = group_seeds(0, 1, [sample.id for sample in prompts.samples], GROUP)
    ends = frequent_ends(family)
    for greedy in (True, False):
        rollouts = [
            engine(family, eos_token_ids=ends, **how).generate(prompts, group_size=GROUP, seeds=seeds, greedy=greedy)
            for how in ({}, {"policy": unshared})
        ]
        assert sampled(rollouts[0]) == sampled(rollouts[1])
        torch.testing.assert_close(rollouts[0].sampler_logprobs, rollouts[1].sampler_logprobs, rtol=0, atol=EXACT)


def largest_gap(family, prompts, row, policy):
    """Between our processed distributions and transformers' along completions that transformers samples."""
    one = trimmed(prompts, row)
    torch.manual_seed(row)
    theirs = stock_generate(
        family, one, do_sample=True, temperature=TEMPERATURE, top_p=TOP_P, top_k=0, num_return_sequences=GROUP
    )
    tokens = theirs.sequences[:, one.input_ids.shape[1] :]
    gaps = []
    with torch.no_grad():
        running = start_decoding(policy, one, GROUP)
        for step, scores in enumerate(theirs.scores):
            ours = nucleus(policy.next_logprobs(running.states), TOP_P).softmax(-1)
            gaps.append(float((ours - scores.softmax(-1)).abs().max()))
            running.advance(tokens[:, step])
    assert len(gaps) == LENGTH
    return max(gaps)


def test_the_sampled_distribution_is_that_of_transformers(family, prompts):
    """Scores of transformers are kept in float32, hence the tolerance."""
    _, _, policy, unshared, _ = family
    policy.eval()
    for row in range(len(prompts.samples)):
        assert largest_gap(family, prompts, row, policy) < 1e-5
    assert largest_gap(family, prompts, 0, unshared) < 1e-5


def test_control_another_temperature_or_position_gives_another_distribution(family, prompts, monkeypatch):
    _, _, policy, *_ = family
    policy.eval()
    late = replace(prompts, next_position=prompts.next_position + 1)
    assert largest_gap(family, late, 0, policy) > 1e-3
    monkeypatch.setattr(policy, "temperature", 1.1 * TEMPERATURE)
    assert largest_gap(family, prompts, 0, policy) > 1e-3


NUM_DRAWS = 6000


@pytest.fixture(scope="module")
def two_tokens(tmp_path_factory):
    """A family with media, one prompt, and the probabilities of its first two tokens [V, V] by transformers."""
    name = "qwen2_5_vl"
    folder = families.build(name, tmp_path_factory.mktemp(name))
    encoder, policy = families.load(name, folder, temperature=TEMPERATURE)
    stock = families.FAMILIES[name].backbone.from_checkpoint(folder, dtype=torch.float64).model.eval()
    for model in (policy.model, stock):
        families.enliven(model)
    family = name, encoder, policy, None, stock
    prompt = omni.prompts(encoder, ["<image>angry"])
    how = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0, "max_new_tokens": 1}
    first = stock_generate(family, prompt, **how).scores[0][0].softmax(-1)
    support = first.nonzero().flatten()
    longer = prompt.select([0] * len(support))
    longer = replace(
        longer,
        input_ids=torch.cat([longer.input_ids, support[:, None]], dim=1),
        prompt_mask=pad(longer.prompt_mask, (0, 1), value=True),
        position_ids=pad(longer.position_ids, (0, 1)),  # the stock model finds its own
    )
    second = torch.zeros(len(first), len(first))
    second[support] = stock_generate(family, longer, **how).scores[0].softmax(-1)
    return family, prompt, first[:, None] * second


def p_value(pairs, probabilities):
    """Of a chi-square test that pairs of tokens were drawn by given probabilities; rare ones count as one."""
    expected = len(pairs) * probabilities.double()
    counts = torch.zeros_like(expected).index_put_(pairs.unbind(1), torch.ones(()).double(), accumulate=True)
    common = expected >= 5
    assert common.sum() > 20
    expected, counts = (torch.cat([table[common], table[~common].sum()[None]]) for table in (expected, counts))
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float(torch.special.gammaincc(torch.tensor((len(expected) - 1) / 2).double(), statistic / 2))


def draw(family, prompt):
    running = engine(family, max_new_tokens=2, top_p=TOP_P, eos_token_ids=family[1].banned_token_ids()[:1])
    seeds = group_seeds(0, 1, ["a"], NUM_DRAWS)
    return running.generate(prompt, group_size=NUM_DRAWS, seeds=seeds).completion_ids


def test_frequencies_of_sampled_tokens_follow_transformers_probabilities(two_tokens):
    family, prompt, probabilities = two_tokens
    assert p_value(draw(family, prompt), probabilities) > FALSE_ALARM


def test_control_frequencies_of_another_temperature(two_tokens, monkeypatch):
    family, prompt, probabilities = two_tokens
    monkeypatch.setattr(family[2], "temperature", 1.1 * TEMPERATURE)
    assert p_value(draw(family, prompt), probabilities) < FALSE_ALARM / 100


def test_control_frequencies_at_another_position(two_tokens):
    family, prompt, probabilities = two_tokens
    late = replace(prompt, next_position=prompt.next_position + 1)
    assert p_value(draw(family, late), probabilities) < FALSE_ALARM / 100


def rollout_of(family, prompts, rows, group_size=GROUP, seeds=None, **how):
    """Completions of some prompts, with the seeds that they have in every batch."""
    ids = [prompts.samples[row].id for row in rows]
    seeds = seeds or group_seeds(0, 1, ids, group_size)
    running = engine(family, eos_token_ids=frequent_ends(family), **how)
    rollout = running.generate(prompts.select(rows), group_size=group_size, seeds=seeds)
    answers = sampled(rollout)
    values = [row[mask] for row, mask in zip(rollout.sampler_logprobs, rollout.completion_mask, strict=True)]
    grouped = {}
    for place, name in enumerate(ids):
        members = range(place * group_size, (place + 1) * group_size)
        grouped[name] = [(answers[member], values[member]) for member in members]
    return grouped


def assert_same(found, expected):
    for name, rows in found.items():
        for (tokens, values), (other_tokens, other_values) in zip(rows, expected[name], strict=False):
            assert tokens == other_tokens
            torch.testing.assert_close(values, other_values, rtol=0, atol=EXACT)


def test_a_row_depends_on_its_prompt_and_seed_alone(family, prompts):
    every = list(range(len(prompts.samples)))
    together = rollout_of(family, prompts, every)
    assert len({len(tokens) for rows in together.values() for tokens, _ in rows}) > 2  # rows left the batch
    for rows in ([0], [every[-1], 0], every[::-1]):
        assert_same(rollout_of(family, prompts, rows), together)
    assert_same(rollout_of(family, prompts, every, group_size=1), together)
    assert_same(together, rollout_of(family, prompts, every[:2], group_size=8) | together)
    wide = rollout_of(family, prompts, every[:2], group_size=8)
    assert_same(wide, together)
    longer = rollout_of(family, prompts, every, max_new_tokens=LENGTH + 4)
    assert {name: [tokens[:LENGTH] for tokens, _ in rows] for name, rows in longer.items()} == {
        name: [tokens for tokens, _ in rows] for name, rows in together.items()
    }


def test_looking_less_often_for_rows_that_ended_changes_no_token(family, prompts, monkeypatch):
    """As on a GPU; rows then stay in the batch for longer, and a rollout ends some steps later."""
    passes = []
    layer = family[2]._backbone.text_model.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[:2].numel()))
    found = []
    for every in (1, 4, 8):
        monkeypatch.setattr(HFEngine, "look_every", {"cpu": every})
        passes.clear()
        seeds = group_seeds(0, 1, [sample.id for sample in prompts.samples], GROUP)
        ends = frequent_ends(family)
        rollout = engine(family, eos_token_ids=ends, max_new_tokens=3 * LENGTH).generate(
            prompts, group_size=GROUP, seeds=seeds
        )
        found.append((rollout, sum(passes)))
    hook.remove()
    (expected, least), *others = found
    assert len({completion.num_tokens for completion in expected.completions}) > 2
    for rollout, number in others:
        assert number > least
        assert torch.equal(rollout.completion_ids, expected.completion_ids)
        assert torch.equal(rollout.completion_mask, expected.completion_mask)
        torch.testing.assert_close(rollout.sampler_logprobs, expected.sampler_logprobs, rtol=0, atol=EXACT)
        assert rollout.completions == expected.completions


def test_control_exchanged_seeds(family, prompts):
    together = rollout_of(family, prompts, [0, 1])
    names = [sample.id for sample in prompts.samples]
    seeds = group_seeds(0, 1, [names[1], names[0]], GROUP)
    exchanged = rollout_of(family, prompts, [0, 1], seeds=seeds)
    assert all(exchanged[name] != together[name] for name in exchanged)


def test_control_rows_in_place_of_each_other(family, prompts):
    """The same noise for the wrong prompt."""
    names = [sample.id for sample in prompts.samples]
    seeds = group_seeds(0, 1, [names[1]], GROUP)
    assert [row for row, _ in rollout_of(family, prompts, [0], seeds=seeds)[names[0]]] != [
        row for row, _ in rollout_of(family, prompts, [1])[names[1]]
    ]


def test_every_prompt_enters_towers_and_decoder_once(family, prompts):
    _, _, policy, *_ = family
    entered = []
    layer = policy._backbone.text_model.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, args: entered.append(args[0].shape[:2].numel()))
    seeds = group_seeds(0, 1, [sample.id for sample in prompts.samples], GROUP)
    policy.media.take_counters()
    running = engine(family, eos_token_ids=frequent_ends(family), max_new_tokens=2 * LENGTH)
    mask = running.generate(prompts, group_size=GROUP, seeds=seeds).completion_mask
    hook.remove()
    with_media = sum("<" in sample.messages[0].content for sample in prompts.samples)
    assert policy.media.take_counters()["tower_prompts"] == with_media
    prefill, *steps = entered
    assert prefill == prompts.prompt_mask.sum()
    still_running = mask[:, 1:].sum(0).tolist()
    assert len(steps) == len(still_running)
    assert min(still_running) < len(mask) / 2
    # Rows that ended stay until they are a quarter of the batch.
    assert all(rows >= live > 0.75 * rows for rows, live in zip(steps, still_running, strict=True))


def test_without_sharing_every_prompt_is_prefilled_once_too(family, prompts):
    _, _, _, unshared, _ = family
    entered = []
    layer = unshared._backbone.text_model.layers[0]
    hook = layer.register_forward_pre_hook(lambda _, args: entered.append(tuple(args[0].shape[:2])))
    seeds = [[0] * GROUP] * len(prompts.samples)
    running = engine(family, policy=unshared, max_new_tokens=3, eos_token_ids=family[1].banned_token_ids()[:1])
    running.generate(prompts, group_size=GROUP, seeds=seeds)
    hook.remove()
    rows = GROUP * len(prompts.samples)
    assert isinstance(start_decoding(unshared, prompts.select([0]), 1), StockDecoding)
    assert entered == [tuple(prompts.input_ids.shape), (rows, 1), (rows, 1)]
