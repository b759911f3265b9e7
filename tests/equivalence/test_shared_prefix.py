"""Shared-prefix scoring equals a copy of the prompt for each completion, in values and gradients; controls fail.

Every family's batch holds all modalities it reads, prompts of different length, completions of different length, one
completion that is left out, and a text prompt whose completions are so long that its group does not share.
"""

from dataclasses import replace

import families
import omni
import pytest
import torch
from transformers import DynamicCache

from lightning_mmrl.models import policy as policy_module
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.shared_prefix import sharing_pays
from lightning_mmrl.ops.tiled_attention import Tile
from lightning_mmrl.types.batches import ScoringBatch

GROUP = 4
LONGEST = 240
EXACT = 1e-9
MODES = [(frozen, checkpointing) for frozen in (False, True) for checkpointing in (False, True)]


@pytest.fixture(scope="module", params=families.each())
def family(request, tmp_path_factory):
    return request.param, families.build(request.param, tmp_path_factory.mktemp(request.param))


def load(family, dtype, *, spread=True):
    """The batch, and two policies over the same weights: one shares prompts, one copies them."""
    name, folder = family
    encoder, shared = families.load(name, folder, dtype=dtype, temperature=0.8)
    if spread:
        omni.spread(shared.model)
    copied = Policy(shared._backbone, banned_token_ids=encoder.banned_token_ids(), temperature=0.8, sharing=False)
    assert shared.sharing_refusal is None
    return scoring_batch(name, encoder), shared, copied


def scoring_batch(name, encoder):
    prompts = families.prompts(name, encoder)
    num_rows = GROUP * len(prompts.samples)
    tokens, _ = omni.ragged_completions(encoder, num_rows, width=LONGEST)
    lengths = torch.randint(1, 7, (num_rows,), generator=torch.Generator().manual_seed(3))
    lengths[1] = 0
    text = next(index for index, sample in enumerate(prompts.samples) if "<" not in sample.messages[0].content)
    lengths[text * GROUP : (text + 1) * GROUP] = torch.tensor([LONGEST, LONGEST - 1, 0, 2])
    mask = torch.arange(LONGEST) < lengths[:, None]
    return ScoringBatch(prompts=prompts, completion_ids=tokens, completion_mask=mask, group_size=GROUP)


def gradients(policy, batch):
    policy.zero_grad()
    logprobs = policy(batch).logprobs
    weights = torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(2), dtype=logprobs.dtype)
    (logprobs * weights).sum().backward()
    found = {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}
    return logprobs.detach(), found


def assert_equal(ours, expected, *, values, relative):
    torch.testing.assert_close(ours[0], expected[0], rtol=0, atol=values)
    assert ours[1].keys() == expected[1].keys()
    scale = max(gradient.norm() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        # Gradients that vanish by symmetry (key biases) are compared with the largest one's scale.
        error = (ours[1][name] - gradient).norm() / max(gradient.norm(), 1e-6 * scale)
        assert error < relative, f"{name}: {error}"


def prepare(policy, *, frozen, checkpointing):
    if frozen:
        policy.freeze([group for group in policy._backbone.parameter_groups if group != "text"])
    if checkpointing:
        policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@pytest.mark.parametrize(("frozen", "checkpointing"), MODES)
def test_float64_values_and_gradients(family, frozen, checkpointing):
    batch, shared, copied = load(family, torch.float64)
    prepare(shared, frozen=frozen, checkpointing=checkpointing)
    expected, ours = gradients(copied, batch), gradients(shared, batch)
    assert expected[0].std() > 0.5  # the model must be far from uniform for agreement to mean anything
    assert_equal(ours, expected, values=EXACT, relative=1e-6)


@pytest.mark.parametrize(("frozen", "checkpointing"), [(False, True), (True, False)])
def test_float32_values_and_gradients(family, frozen, checkpointing):
    batch, shared, copied = load(family, torch.float32, spread=False)
    prepare(shared, frozen=frozen, checkpointing=checkpointing)
    assert_equal(gradients(shared, batch), gradients(copied, batch), values=1e-5, relative=1e-4)


@torch.no_grad()
def test_bfloat16_is_as_close_to_float64_as_copies_are(family):
    batch, shared, copied = load(family, torch.bfloat16, spread=False)
    _, exact, _ = load(family, torch.float64, spread=False)
    truth = exact(batch).logprobs[batch.completion_mask]
    errors = [
        (policy(batch).logprobs[batch.completion_mask] - truth).square().mean().sqrt() for policy in (shared, copied)
    ]
    # Both are rounding noise; the root mean square of some 500 errors is itself known to about 3 %.
    assert errors[0] <= 1.1 * errors[1]


def one_group(batch, row):
    rows = slice(row * GROUP, (row + 1) * GROUP)
    return ScoringBatch(
        prompts=batch.prompts.select([row]),
        completion_ids=batch.completion_ids[rows],
        completion_mask=batch.completion_mask[rows],
        group_size=GROUP,
    )


@torch.no_grad()
def test_copies_equal_the_stock_model_row_by_row(family):
    batch, _, copied = load(family, torch.float64)
    expected = families.stock_logprobs(family[0], copied, batch)
    torch.testing.assert_close(copied(batch).logprobs, expected, rtol=0, atol=EXACT)


@torch.no_grad()
def test_the_batch_has_groups_that_share_and_groups_that_do_not(family):
    batch, _, _ = load(family, torch.float64)
    lengths = batch.completion_mask.sum(-1).view(-1, GROUP).tolist()
    widths = batch.prompts.prompt_mask.sum(-1).tolist()
    assert {sharing_pays(width, row) for width, row in zip(widths, lengths, strict=True)} == {True, False}


@torch.no_grad()
def test_groups_do_not_depend_on_each_other(family):
    batch, shared, _ = load(family, torch.float64)
    together = shared(batch).logprobs
    alone = torch.cat([shared(one_group(batch, row)).logprobs for row in range(len(batch.prompts.samples))])
    torch.testing.assert_close(alone, together, rtol=0, atol=EXACT)


def _error(family, monkeypatch, spoil):
    batch, shared, _ = load(family, torch.float64)
    with torch.no_grad():
        right, real = shared(batch).logprobs, policy_module.pack
        monkeypatch.setattr(policy_module, "pack", lambda given: spoil(real(given)))
        return (shared(batch).logprobs - right).abs().max()


def _with_tiles(row, tiles):
    return replace(row, layout=replace(row.layout, tiles=tuple(tiles)))


def test_control_a_leak_between_siblings(family, monkeypatch):
    def leak(row):
        """Completions of a group see all that lies before them in the group's tail."""
        branches = [tile for tile in row.layout.tiles if not tile.causal]
        inside = torch.cat([tile.queries.flatten() for tile in branches])
        own = [t for t in row.layout.tiles if t.causal and not torch.isin(t.queries, inside).any()]
        tails = [replace(tile, keys=tile.queries, causal=True, key_start=tile.query_start) for tile in branches]
        mixed = [t for t in row.layout.tiles if t.causal and torch.isin(t.queries, inside).any()]
        rest = [_without(tile, inside) for tile in mixed]
        return _with_tiles(row, [*own, *(tile for tile in rest if tile is not None), *tails, *branches])

    assert _error(family, monkeypatch, leak) > 0.1


def _without(tile, tokens):
    blocks = ~torch.isin(tile.queries, tokens).any(-1)
    if not blocks.any():
        return None
    filler = None if tile.filler is None else tile.filler[blocks]
    return Tile(queries=tile.queries[blocks], keys=tile.queries[blocks], causal=True, filler=filler)


def test_control_a_leak_between_groups(family, monkeypatch):
    def leak(row):
        """Completions see their prompt without its first token and with the first one of the next prompt."""
        return _with_tiles(
            row, [t if t.causal else replace(t, keys=t.keys + 1, key_start=None) for t in row.layout.tiles]
        )

    assert _error(family, monkeypatch, leak) > 0.01


def test_control_no_prompt(family, monkeypatch):
    error = _error(family, monkeypatch, lambda row: _with_tiles(row, [t for t in row.layout.tiles if t.causal]))
    assert error > 0.1


def test_control_one_dimensional_positions(family, monkeypatch):
    if not families.FAMILIES[family[0]].contents[0].startswith("<"):
        pytest.skip("a text model has one axis of positions")

    def flat(row):
        return replace(row, position_ids=row.position_ids[:1].cummax(-1).values.expand(3, -1))

    assert _error(family, monkeypatch, flat) > 0.1


def test_control_an_off_by_one_in_the_gather(family, monkeypatch):
    assert _error(family, monkeypatch, lambda row: replace(row, predicts=(row.predicts - 1).clamp(min=0))) > 0.1


@pytest.mark.parametrize("checkpointing", [False, True])
def test_control_a_gradient_through_a_key_value_cache_is_wrong_under_checkpointing(tmp_path, checkpointing):
    """Stock layers drop the cache while they checkpoint: completions then do not see their prompt at all."""
    encoder, policy = families.load("qwen2", families.build("qwen2", tmp_path))
    omni.spread(policy.model)
    prepare(policy, frozen=False, checkpointing=checkpointing)
    batch = scoring_batch("qwen2", encoder)
    batch = one_group(batch, 0)
    expected = policy(batch).logprobs
    prompts, cache = batch.prompts, DynamicCache(config=policy.text_config)
    keep = prompts.prompt_mask.long()
    attention = {"attention_mask": keep, "past_key_values": cache, "use_cache": True}
    last = policy.text_states(prompts.input_ids, prompts.position_ids, attention=attention)[:, -1:]
    steps = torch.arange(batch.completion_ids.shape[1] - 1)
    positions = (prompts.next_position[0] + steps).expand(3, GROUP, -1)
    if not checkpointing:
        cache.batch_repeat_interleave(GROUP)
    mask = torch.cat([keep.expand(GROUP, -1), torch.ones(GROUP, len(steps), dtype=torch.long)], 1)
    attention = {"attention_mask": None if checkpointing else mask, "past_key_values": cache, "use_cache": True}
    tail = policy.text_states(batch.completion_ids[:, :-1], positions, attention=attention)
    states = torch.cat([last.expand(GROUP, -1, -1), tail], 1)
    found = policy.next_logprobs(states[batch.completion_mask])
    found = found.gather(-1, batch.completion_ids[batch.completion_mask][:, None]).squeeze(-1)
    error = (found - expected[batch.completion_mask]).abs().max()
    assert error > 0.5 if checkpointing else error < EXACT
