from collections import Counter

import omni
import pytest

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.rollout import drafts
from lightning_mmrl.rollout.drafts import Draft, DraftStore, Tally, reckoned_pass_tokens
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.settings.speculation import SpeculationSettings

EAGER = {"max_draft": 4, "pass_tokens": 1e9}


def store_of(**settings):
    return DraftStore(SpeculationSettings(**{**EAGER, **settings}), 1.0)


def sample(store, rows):
    """A rollout of rows (prompt, tokens)."""
    store.begin([name for name, _ in rows])
    for row, (_, tokens) in enumerate(rows):
        store.note(row, tokens)


def proposed(store, name, tokens, room=99):
    store.begin([name])
    store.note(0, tokens)
    return store.propose([0], [room])[0]


def test_a_completion_of_the_same_prompt_is_drafted_to_its_end():
    store = store_of()
    sample(store, [("a", [5, 6, 7, 8, 9])])
    assert proposed(store, "a", [5]) == Draft([6, 7, 8, 9], ["earlier"] * 4)


def test_completions_of_other_prompts_are_told_apart_by_their_source():
    store = store_of()
    sample(store, [("a", [5, 6, 7, 8])])
    assert proposed(store, "b", [5, 6]) == Draft([7, 8], ["recent"] * 2)


def test_a_sibling_that_is_ahead_and_the_row_itself():
    store = store_of()
    store.begin(["a", "a", "b"])
    store.note(0, [5, 6, 7])
    store.note(1, [5])
    store.note(2, [3, 4, 3, 4, 3])
    ahead, own = store.propose([1, 2], [9, 9])
    assert ahead == Draft([6, 7], ["sibling"] * 2)
    assert own.tokens[:2] == [4, 3]
    assert set(own.sources) == {"own"}


def test_nothing_is_drafted_of_what_is_not_known_or_does_not_fit():
    store = store_of()
    assert proposed(store, "a", [5]) == Draft([], [])
    sample(store, [("a", [5, 6, 7, 8, 9])])
    assert proposed(store, "a", [5], room=2).tokens == [6, 7]
    assert proposed(store, "a", [5], room=0).tokens == []
    assert proposed(store_of(max_draft=1), "a", [5]).tokens == []


@pytest.mark.parametrize(("pass_tokens", "length"), [(0.75, 0), (1.0, 1), (2.1, 2), (4.0, 3)])
def test_a_draft_ends_where_it_does_not_pay(pass_tokens, length):
    """Contexts that were seen twice give 2 / 3, hence 0.67, 0.44 and 0.30; the least are 0.71, 0.63, 0.4 and 0.25."""
    store = store_of(pass_tokens=pass_tokens)
    sample(store, [("a", [5, 6, 7, 8]), ("b", [5, 6, 7, 8])])
    assert len(proposed(store, "c", [5]).tokens) == length


def test_many_rows_share_a_pass_so_that_a_draft_must_be_surer():
    store = store_of(pass_tokens=4.0)
    sample(store, [("a", [5, 6]), ("b", [5, 6])])
    names = [f"c{number}" for number in range(20)]
    store.begin(names)
    for row in range(20):
        store.note(row, [5])
    assert store.propose([0], [9])[0].tokens == [6]
    assert all(not each.tokens for each in store.propose(range(20), [9] * 20))


def test_the_likeliest_follower_counts_and_old_ones_fade():
    store = store_of(max_draft=1)
    sample(store, [(f"a{number}", [5, 6]) for number in range(60)])
    assert proposed(store, "b", [5]).tokens == [6]
    sample(store, [(f"c{number}", [5, 7]) for number in range(40)])
    assert proposed(store, "b", [5]).tokens == [7]


def test_a_context_with_many_followers_promises_little():
    store = store_of(max_draft=1)
    sample(store, [("a", [5, 100 + number]) for number in range(63)])
    store.begin(["b"])
    store.note(0, [5])
    assert store._likeliest(0, store._contexts[0])[0].probability < 0.05
    sample(store, [("a", [5, 200 + number]) for number in range(63)])


def test_the_number_of_contexts_is_bounded_and_the_newest_stay():
    store = store_of(max_contexts=40, max_draft=1)
    for number in range(200):
        sample(store, [("a", [number, number + 1000, number + 2000])])
        assert sum(map(len, (store._long, store._short, store._of_prompt))) <= 40
    assert proposed(store, "a", [199, 1199]).tokens == [2199]
    assert proposed(store, "a", [3, 1003]).tokens == []


def test_drafts_that_do_not_pay_rest_longer_and_longer():
    store, begun = store_of(pass_tokens=10.0), []
    for _ in range(60):
        begun.append(store.begin(["a"]))
        tally = Tally(passes=20, longest=20, tokens=20, rest=20, fed=40)
        store.end([[1, 2]], tally if begun[-1] else None)
    drafted = [number for number, drafts_ in enumerate(begun) if drafts_]
    assert drafted == [1, 3, 6, 11, 20, 37, 54]


def test_drafts_that_pay_go_on_and_a_rest_ends_with_what_was_sampled_last():
    store = store_of(pass_tokens=10.0, max_draft=2)
    assert not store.begin(["a"])
    store.end([[5, 6, 7]], None)
    for _ in range(3):
        assert store.begin(["a"])
        store.note(0, [5])
        assert store.propose([0], [9])[0].tokens
        store.end([[5, 6, 7]], Tally(passes=10, longest=20, tokens=20, rest=20, fed=25))


def test_the_fixed_part_of_a_pass_is_given_or_reckoned_from_the_sizes(tmp_path):
    encoder, policy = omni.load(omni.build(tmp_path / "omni"))
    text = policy.model.model
    found = sum(each.numel() for each in text.parameters()) - text.get_input_embeddings().weight.numel()
    assert policy.num_weights_per_token == found + policy.head.weight.numel()
    reckoned = reckoned_pass_tokens(policy.text_config.num_hidden_layers, policy.num_weights_per_token)
    for settings, most_rows in (({}, int(reckoned)), ({"pass_tokens": 5.5}, 5)):
        drafter = omni.engine(encoder, policy, speculation=SpeculationSettings(max_draft=2, **settings)).drafter
        assert drafter.most_rows == most_rows


def test_the_gain_is_that_of_passes_and_their_tokens():
    """5 steps of 10 + 4 tokens; then 15 passes of 10 + 1 tokens become 8 uneven ones with 25 tokens, 12 drafted."""
    tally = Tally(steps=5, passes=13, longest=20, tokens=35, rest=15, fed=25, drafted=Counter(own=2, recent=10))
    saved = 15 * 11 - (1 + drafts.UNEVEN) * (8 * 10 + 25) - 12 * drafts.GUESS
    assert store_of(pass_tokens=10.0)._gain(tally) == pytest.approx(saved / (20 * 10 + 35))


def test_a_rollout_that_ends_before_drafts_begin_gains_nothing():
    assert store_of()._gain(Tally(steps=20, passes=20, longest=20, tokens=90)) == 0.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_draft": -1}, "max_draft is -1; it must be at least 0"),
        ({"pass_tokens": 0.0}, "pass_tokens is 0.0; it must be above 0"),
        ({"max_contexts": 1}, "max_contexts is 1; it must be at least 2"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        check_rules(SpeculationSettings(**settings), "rollout.speculation")


def test_a_tally_has_one_number_for_each_source():
    tally = Tally(passes=2, longest=4, drafted=Counter(own=3, recent=1), accepted=Counter(own=2))
    assert tally.counts() == {"passes": 2, "longest": 4, "drafted/own": 3, "drafted/recent": 1, "accepted/own": 2}
