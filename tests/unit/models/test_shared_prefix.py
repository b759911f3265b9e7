"""Layout of packed rows: what lies where, who attends to whom, and which models are refused."""

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from lightning_mmrl.models.families.qwen2 import Qwen2
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.shared_prefix import pack, present_tokens, sharing_pays, sharing_refusal
from lightning_mmrl.types.batches import MediaInputs, PromptBatch, ScoringBatch
from lightning_mmrl.types.records import Sample

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 48,
}


def model(**settings):
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, **settings))


def batch(widths, lengths):
    """Prompts of the given widths, left-padded, whose tokens and positions count up from 100 times their number."""
    width, length, group_size = max(widths), max(map(max, lengths)), len(lengths[0])
    ids = torch.zeros(len(widths), width, dtype=torch.long)
    for row, own in enumerate(widths):
        ids[row, width - own :] = 100 * row + torch.arange(own)
    mask = torch.arange(width) >= width - torch.tensor(widths)[:, None]
    samples = tuple(Sample(id=str(row), messages=(), solution="") for row in range(len(widths)))
    prompts = PromptBatch(
        samples=samples,
        input_ids=ids,
        prompt_mask=mask,
        position_ids=ids.expand(3, -1, -1).clone(),
        next_position=torch.tensor([100 * row + own for row, own in enumerate(widths)]),
        media=MediaInputs(tensors={}, counts={}),
    )
    flat = torch.tensor(lengths).flatten()
    tokens = 1000 + torch.arange(len(flat) * length).view(len(flat), length)
    return ScoringBatch(
        prompts=prompts,
        completion_ids=tokens,
        completion_mask=torch.arange(length) < flat[:, None],
        group_size=group_size,
    )


def visible(row, num_tokens):
    """Boolean matrix [T, T]: which keys each token attends to, by the tiles."""
    allowed = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    for tile in row.layout.tiles:
        for block in range(len(tile.queries)):
            real = slice(None) if tile.filler is None else ~tile.filler[block]
            queries, keys = tile.queries[block][real], tile.keys[block]
            keys = keys[real] if tile.causal else keys
            seen = torch.ones(len(queries), len(keys), dtype=torch.bool)
            allowed[queries[:, None], keys[None]] |= seen.tril() if tile.causal else seen
    return allowed


def expected_visible(positions, owners):
    """Token q sees token k if k is not later and lies in q's prompt or in q's own completion."""
    prompt, own = owners.unbind(1)
    same_prompt = prompt[:, None] == prompt[None]
    return same_prompt & ((own[None] < 0) | (own[:, None] == own[None])) & (positions[:, None] >= positions[None])


@pytest.mark.parametrize(
    ("widths", "lengths"),
    [([5, 3], [[2, 4], [3, 1]]), ([5, 3], [[0, 4, 2], [3, 1, 1]]), ([4], [[3, 3, 3]]), ([70, 9], [[90, 70], [2, 1]])],
)
def test_a_row_of_groups_that_share(widths, lengths):
    row = pack(batch(widths, lengths))
    assert row.source is None
    owners = [(i, -1) for i, width in enumerate(widths) for _ in range(width)]
    owners += [(i, j) for i, group in enumerate(lengths) for j, length in enumerate(group) for _ in range(length)]
    assert row.position_ids.shape == (3, len(owners))
    assert torch.equal(visible(row, len(owners)), expected_visible(row.position_ids[0], torch.tensor(owners)))


def test_a_row_with_a_group_that_copies_its_prompt():
    given = batch([2, 6], [[40, 30], [1, 2]])
    row = pack(given)
    present = present_tokens(given.completion_mask)
    sources = torch.cat([given.prompts.input_ids[given.prompts.prompt_mask], given.completion_ids[present]])
    tokens = sources[row.source].tolist()
    first, second = given.completion_ids[0, :40].tolist(), given.completion_ids[1, :30].tolist()
    shared = [*range(100, 106), *given.completion_ids[2, :1].tolist(), *given.completion_ids[3, :2].tolist()]
    assert tokens == [0, 1, *first, 0, 1, *second, *shared]
    owners = [(0, 0)] * 42 + [(1, 0)] * 32 + [(2, -1)] * 6 + [(2, 0)] + [(2, 1)] * 2
    assert torch.equal(visible(row, len(tokens)), expected_visible(row.position_ids[0], torch.tensor(owners)))


@pytest.mark.parametrize(("widths", "lengths"), [([5, 3], [[2, 4], [3, 1]]), ([2, 6], [[40, 0], [1, 2]])])
def test_each_scored_token_is_predicted_by_the_token_before_it(widths, lengths):
    given = batch(widths, lengths)
    row = pack(given)
    found = row.position_ids[0, row.predicts]
    steps = torch.arange(given.completion_mask.shape[1])
    owner = torch.arange(len(given.completion_mask)) // given.group_size
    expected = (given.prompts.next_position[owner, None] + steps)[given.completion_mask] - 1
    assert torch.equal(found, expected)


def test_tokens_before_the_last_scored_one_are_present_though_not_scored():
    mask = torch.tensor([[False, True, False, True, False], [False] * 5])
    assert present_tokens(mask).tolist() == [[True, True, True, True, False], [False] * 5]


def test_sharing_pays_by_the_ratio_of_tokens():
    assert sharing_pays(100, [50, 50])
    assert not sharing_pays(100, [50])
    assert not sharing_pays(100, [50, 0])
    assert not sharing_pays(100, [])
    # rho = (2 * 100 + 1000) / (100 + 1000) = 1.09, then (2 * 100 + 900) / 1000 = 1.1
    assert not sharing_pays(100, [500, 500])
    assert sharing_pays(100, [450, 450])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "layers of type sliding_attention"),
        ({"attention_dropout": 0.1}, "dropout of 0.1"),
    ],
)
def test_models_that_cannot_share_exactly_say_why_and_copy(settings, reason):
    policy = Policy(Qwen2(model(**settings)), banned_token_ids=[])
    assert policy.sharing_refusal is not None
    assert reason in policy.sharing_refusal
    assert policy.text_config._attn_implementation == "sdpa"
    given = batch([5, 3], [[2, 4], [3, 1]])
    policy.eval()
    with torch.no_grad():
        ids = {"input_ids": given.prompts.input_ids % 48}
        prompts = type(given.prompts)(**{**{n: getattr(given.prompts, n) for n in given.prompts.__slots__}, **ids})
        scored = policy(
            ScoringBatch(
                prompts=prompts,
                completion_ids=given.completion_ids % 48,
                completion_mask=given.completion_mask,
                group_size=2,
            )
        ).logprobs
    assert torch.equal(scored != 0, given.completion_mask)


def test_dropout_modules_and_experts_are_refused():
    dense = model().model
    assert sharing_refusal(dense) is None
    dense.layers[0].mlp.act_fn = torch.nn.Dropout(0.2)
    assert "dropout of 0.2" in (sharing_refusal(dense) or "")
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 16}
    mixture = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **experts))
    assert "mixture-of-experts" in (sharing_refusal(mixture.model) or "")


def test_the_stock_forward_of_a_shared_model_is_unchanged():
    torch.manual_seed(0)
    stock = model().eval()
    ids = torch.randint(48, (2, 7))
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    with torch.no_grad():
        before = stock(input_ids=ids, attention_mask=mask).logits[mask.bool()]
        policy = Policy(Qwen2(stock), banned_token_ids=[])
        assert policy.sharing_refusal is None
        after = policy.eval().model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
