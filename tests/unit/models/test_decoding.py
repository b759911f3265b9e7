"""Decoding over shared prompts against transformers' cache, step by step in float64, and what either holds."""

from dataclasses import replace

import families
import omni
import pytest
import torch

from lightning_mmrl.models import prefill
from lightning_mmrl.models.decoding import SharedDecoding, StockDecoding, start_decoding
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.settings.model import ModelSettings

EXACT = 1e-9
STEPS = 7
CONTENTS = ("<video><audio>Which emotion?", "angry", "<audio>user", "<video>angry", "Which emotion? " * 40)
"""Prompts of so different length that one call cannot serve them all, with and without media."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    encoder, policy = omni.load(omni.build(tmp_path_factory.mktemp("omni")))
    families.exact(policy.model)
    return encoder, policy.eval()


@pytest.fixture(scope="module")
def prompts(model):
    return omni.prompts(model[0], CONTENTS)


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def tokens_for(num_rows, step):
    return torch.randint(20, 200, (num_rows,), generator=torch.Generator().manual_seed(step))


def walk(running, num_rows, kept=None):
    """The states after each of some given tokens; `kept` says which rows stay before some of the steps."""
    rows, states = torch.arange(num_rows), [running.states]
    for step in range(STEPS):
        if kept and step in kept:
            running.keep(kept[step])
            rows = rows[kept[step]]
            assert torch.equal(running.states, states[-1][kept[step]])
        running.advance(tokens_for(num_rows, step)[rows])
        states.append(running.states)
    return states


def walk_in_passes(running, num_rows):
    """The states of passes in which rows get and keep different numbers of tokens."""
    states = []
    for number in range(STEPS):
        widths = [1 + (row + number) % 3 for row in range(num_rows)]
        states.append(running.extend(tokens_for(sum(widths), number), widths))
        running.retain([1 + (row + number) % 3 // 2 for row in range(num_rows)], finite=True)
    return states


def largest_error(ours, others):
    return max(float((one - other).abs().max()) for one, other in zip(ours, others, strict=True))


ENDINGS = {
    "all stay": {1: {}, 3: {}},
    "rows go": {1: {2: [0, 2, 3, 4], 4: [1, 3]}, 3: {2: [0, 1, 3, 5, 6, 8, 12], 4: [1, 2, 6]}},
    "all but one prompt go": {1: {1: [0, 1, 3], 3: [1]}, 3: {1: [3, 4, 5, 12, 13, 14], 3: [0, 1, 2]}},
    "rows change places": {1: {0: [4, 1, 0, 2], 5: [2, 0]}, 3: {0: [14, 2, 1, 0, 7, 3], 5: [4, 0]}},
}


@pytest.mark.parametrize("endings", ENDINGS, ids=str)
@pytest.mark.parametrize("group_size", [1, 3])
def test_shared_prompts_give_the_states_of_transformers_cache(model, prompts, group_size, endings):
    _, policy = model
    kept = {step: torch.tensor(rows) for step, rows in ENDINGS[endings][group_size].items()}
    num_rows = group_size * len(CONTENTS)
    ours = walk(SharedDecoding(policy, prompts, group_size), num_rows, kept)
    stock = walk(StockDecoding(policy, prompts, group_size), num_rows, kept)
    assert stock[-1].std() > 0.5
    assert largest_error(ours, stock) < EXACT


HALVES = {"groups": (4, False), "rows alone": (1, False), "drafts": (4, True)}


@pytest.mark.parametrize("how", HALVES)
def test_bfloat16_is_as_close_to_float64_as_transformers_cache_is(tmp_path, how):
    """With padded prompts, whose keys lie in two parts in half precision."""
    folder, (group_size, drafts) = omni.build(tmp_path), HALVES[how]
    walks, walked = {}, walk_in_passes if drafts else walk
    for dtype in (torch.float64, torch.bfloat16):
        encoder, policy = omni.load(folder, dtype=dtype)
        batch = omni.prompts(encoder, CONTENTS)
        for kind in (SharedDecoding, StockDecoding):
            running = kind(policy.eval(), batch, group_size, drafts=drafts)
            walks[dtype, kind] = torch.cat(walked(running, group_size * len(CONTENTS))).double()
            if kind is SharedDecoding:
                divided = {bucket.divided for bucket in running._cache._prompts.buckets}
                assert divided == {dtype == torch.bfloat16, False}
    truth = walks[torch.float64, StockDecoding]
    errors = [(walks[torch.bfloat16, kind] - truth).square().mean().sqrt() for kind in (SharedDecoding, StockDecoding)]
    # Both are rounding noise; its root mean square over some 10,000 values is known to a few per cent.
    assert 0 < errors[0] <= 1.1 * errors[1]


def test_control_the_next_position_off_by_one(model, prompts):
    _, policy = model
    shifted = replace(prompts, next_position=prompts.next_position + 1)
    right = walk(SharedDecoding(policy, prompts, 2), 10)
    assert largest_error(walk(SharedDecoding(policy, shifted, 2), 10), right) > 0.01


def test_control_rows_of_a_neighbour(model, prompts):
    _, policy = model
    kept = {3: torch.tensor([0, 1, 4])}
    other = {3: torch.tensor([0, 1, 5])}
    right, wrong = (walk(SharedDecoding(policy, prompts, 2), 10, rows)[4:] for rows in (kept, other))
    assert largest_error(wrong, right) > 0.1
    assert largest_error([states[:2] for states in wrong], [states[:2] for states in right]) == 0


def test_long_prefills_are_cut_between_prompts(model, prompts, monkeypatch):
    _, policy = model
    whole = walk(SharedDecoding(policy, prompts, 2), 10)
    monkeypatch.setattr(prefill, "PREFILL_TOKENS", int(prompts.prompt_mask[0].sum()) + 20)
    passes = []
    hook = policy.model.model.layers[0].register_forward_pre_hook(lambda _, args: passes.append(args[0].shape[1]))
    cut = SharedDecoding(policy, prompts, 2)
    hook.remove()
    assert len(passes) > 2
    assert sum(passes) == int(prompts.prompt_mask.sum())
    assert largest_error(walk(cut, 10), whole) < EXACT


def held(running):
    """Shapes of all keys and values: of prompts and of rows."""
    cache = running._cache
    prompts = [layer.shape for bucket in cache._prompts.buckets for layer in bucket.layers]
    return prompts, [own.shape for own in cache._own]


def test_prompt_keys_are_held_once_and_own_keys_grow(model, prompts):
    _, policy = model
    lengths, layers = prompts.prompt_mask.sum(-1).tolist(), len(policy.model.model.layers)
    running = SharedDecoding(policy, prompts, 4)
    of_prompts, of_rows = held(running)
    assert sum(shape[1] for shape in of_prompts) == layers * len(lengths)
    held_tokens = sum(shape[1] * shape[3] for shape in of_prompts)
    assert layers * sum(lengths) <= held_tokens <= layers * sum(lengths) * 4 / 3
    assert of_rows == []
    rooms = []
    for step in range(70):
        running.advance(tokens_for(20, step))
        assert held(running)[0] == of_prompts
        [room] = {(shape[1], shape[3]) for shape in held(running)[1]}
        rooms.append(room)
    assert rooms == [(20, 32)] * 32 + [(20, 64)] * 32 + [(20, 128)] * 6


def test_rows_alone_keep_their_keys_behind_their_prompt(model, prompts):
    _, policy = model
    running = SharedDecoding(policy, prompts, 1)
    before = held(running)[0]
    for step in range(40):
        running.advance(tokens_for(5, step))
    after, own = held(running)
    assert own == []
    assert [shape[3] for shape in after] == [shape[3] + 64 for shape in before]


def test_room_is_no_larger_than_the_most_tokens(model, prompts):
    _, policy = model
    running = SharedDecoding(policy, prompts, 4, max_tokens=40)
    rooms = []
    for step in range(39):
        running.advance(tokens_for(20, step))
        [room] = {shape[3] for shape in held(running)[1]}
        rooms.append(room)
    assert rooms == [32] * 32 + [40] * 7
    alone, longest = SharedDecoding(policy, prompts, 1, max_tokens=40), [shape[3] for shape in held(running)[0]]
    for step in range(39):
        alone.advance(tokens_for(5, step))
    assert [shape[3] for shape in held(alone)[0]] == [length + 40 for length in longest]


def test_keys_of_prompts_that_ended_are_dropped(model, prompts):
    _, policy = model
    running = SharedDecoding(policy, prompts, 2)
    running.advance(tokens_for(10, 0))
    running.keep(torch.tensor([8, 9]))
    of_prompts, of_rows = held(running)
    longest = int(prompts.prompt_mask.sum(-1).max())
    assert {(shape[1], shape[3]) for shape in of_prompts} == {(1, longest)}
    assert {shape[1] for shape in of_rows} == {2}


@pytest.mark.parametrize(
    ("lengths", "groups"),
    [
        ([100, 75, 74], [[0, 1], [2]]),
        ([10, 64, 3], [[0, 1, 2]]),
        ([65, 64, 48], [[0, 1], [2]]),
        ([3000], [[0]]),
        ([400, 300, 400, 200, 199], [[0, 1, 2], [3, 4]]),
    ],
)
def test_one_call_serves_prompts_of_similar_length(lengths, groups):
    assert prefill._similar(lengths) == groups


def test_models_that_cannot_share_decode_through_transformers_cache(model, prompts):
    _, policy = model
    unshared = Policy(policy._backbone, banned_token_ids=[], settings=ModelSettings(sharing=False)).eval()
    assert isinstance(start_decoding(policy, prompts, 2), SharedDecoding)
    assert isinstance(start_decoding(unshared, prompts, 2), StockDecoding)


def test_gradient_checkpointing_does_not_drop_the_prompt(model, prompts):
    """Under checkpointing transformers' layers drop a cache while they train; a policy that samples is in eval mode."""
    _, policy = model
    expected = walk(SharedDecoding(policy, prompts, 2), 10)
    policy.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        for kind in (SharedDecoding, StockDecoding):
            assert largest_error(walk(kind(policy, prompts, 2), 10), expected) < EXACT
        policy.train()
        assert largest_error(walk(SharedDecoding(policy, prompts, 2), 10), expected) < EXACT
    finally:
        policy.eval()
        policy.model.gradient_checkpointing_disable()


def test_the_towers_run_once_for_each_prompt_with_media(model, prompts):
    _, policy = model
    policy.media.take_counters()
    sizes = []
    towers = policy._backbone.towers
    hooks = [tower.register_forward_hook(lambda *_: sizes.append(1)) for tower in towers]
    walk(SharedDecoding(policy, prompts, 8), 40)
    for hook in hooks:
        hook.remove()
    assert policy.media.take_counters()["tower_prompts"] == 3
    assert len(sizes) == len(towers) == 2
