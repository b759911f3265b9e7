"""Properties of every order of the data, whatever the sources, weights and labels."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lightning_mmrl.data.sampler import DrawSampler, ExhaustedError, Share, SourceRows, SourceTurns, variant_of
from lightning_mmrl.errors import ConfigError, StageError
from lightning_mmrl.settings.data import DropoutSettings, SourceSettings, StageDataSettings

sizes = st.integers(1, 20)
seeds = st.integers(0, 2**31)
weights = st.one_of(st.integers(1, 9).map(float), st.floats(0.01, 100.0))


@st.composite
def sources(draw, balanced=None, most=4):
    """One to four sources; either all with labels or none."""
    balanced = draw(st.booleans()) if balanced is None else balanced
    found = []
    for _ in range(draw(st.integers(1, most))):
        size = draw(sizes)
        labels = tuple(draw(st.lists(st.sampled_from("abc"), min_size=size, max_size=size))) if balanced else None
        found.append(SourceRows(num_samples=size, settings=SourceSettings(weight=draw(weights)), labels=labels))
    return tuple(found)


dropouts = st.sampled_from([DropoutSettings(), DropoutSettings(silent=0.3, blank=0.3)])


def sampler_of(rows, *, batch_size, dropout=None, **how):
    settings = StageDataSettings(batch_size=batch_size, modality_dropout=dropout or DropoutSettings())
    return DrawSampler(rows, settings=settings, **how)


def flat(batches):
    return [draw for batch in batches for draw in batch]


def turns(shares, num):
    order = SourceTurns(shares)
    return [order.next_source() for _ in range(num)]


def draws(num_samples, **how):
    sampler = sampler_of([SourceRows(num_samples=num_samples)], **how)
    batches = list(sampler)
    assert len(sampler) == len(batches) == how["num_batches"]
    assert all(len(batch) == how["batch_size"] for batch in batches)
    return flat(batches)


def by_source(found, rows):
    """The places of each source's draws in the order they come, counted within the source."""
    ends = [sum(each.num_samples for each in rows[: number + 1]) for number in range(len(rows))]
    places = [[] for _ in rows]
    for draw in found:
        number = next(number for number, end in enumerate(ends) if draw.index < end)
        places[number].append(draw.index - ends[number] + rows[number].num_samples)
    return places


def assert_passes_are_permutations(places, size):
    for start in range(0, len(places), size):
        one_pass = places[start : start + size]
        assert len(set(one_pass)) == len(one_pass)
        assert set(one_pass) <= set(range(size))


@given(num_samples=sizes, batch_size=sizes, num_batches=sizes, seed=seeds)
def test_every_pass_is_a_permutation(num_samples, batch_size, num_batches, seed):
    found = draws(num_samples, batch_size=batch_size, num_batches=num_batches, seed=seed)
    assert [draw.serial for draw in found] == list(range(batch_size * num_batches))
    assert_passes_are_permutations([draw.index for draw in found], num_samples)


RECORDED = [
    (5, 3, 4, 0, {}, [2, 4, 3, 0, 1, 1, 4, 3, 0, 2, 4, 2], "ffffffffffff"),
    (
        7,
        4,
        5,
        17,
        {"silent": 0.2, "blank": 0.3},
        [1, 0, 4, 2, 6, 5, 3, 6, 4, 2, 5, 1, 3, 0, 5, 4, 2, 1, 3, 6],
        "sbsffbfffssbffsffbff",
    ),
    (1, 2, 2, 3, {}, [0, 0, 0, 0], "ffff"),
    (3, 8, 2, 2**31, {}, [2, 0, 1, 2, 1, 0, 1, 2, 0, 1, 2, 0, 2, 0, 1, 1], "f" * 16),
]


@pytest.mark.parametrize(("num_samples", "batch_size", "num_batches", "seed", "dropout", "indices", "seen"), RECORDED)
def test_one_source_alone_draws_what_it_always_drew(num_samples, batch_size, num_batches, seed, dropout, indices, seen):
    found = draws(
        num_samples,
        batch_size=batch_size,
        num_batches=num_batches,
        seed=seed,
        dropout=DropoutSettings(**dropout),
    )
    assert [draw.index for draw in found] == indices
    assert "".join(draw.variant[0] for draw in found) == seen


def test_a_whole_stage_draws_what_it_always_drew():
    dropout = DropoutSettings(silent=0.1, blank=0.1)
    found = draws(1600, batch_size=16, num_batches=300, seed=1, dropout=dropout)
    text = repr([(draw.index, draw.serial, draw.variant) for draw in found])
    recorded = "48a67f084398b0984d622061499530029e15f2213ea9cd3927e398c74ceb2652"
    assert hashlib.sha256(text.encode()).hexdigest() == recorded


@given(rows=sources(), batch_size=sizes, seed=seeds)
def test_a_draw_does_not_depend_on_the_batch_size(rows, batch_size, seed):
    how = {"seed": seed, "dropout": DropoutSettings(silent=0.3, blank=0.3)}
    one = sampler_of(rows, batch_size=1, num_batches=3 * batch_size, **how)
    assert flat(sampler_of(rows, batch_size=batch_size, num_batches=3, **how)) == flat(one)


def test_iterating_again_gives_the_same_draws_and_another_seed_others():
    sampler = sampler_of([SourceRows(num_samples=50)], batch_size=10, num_batches=10, seed=3)
    assert list(sampler) == list(sampler)
    other = draws(50, batch_size=10, num_batches=10, seed=4)
    assert [draw.index for draw in flat(sampler)] != [draw.index for draw in other]


def test_passes_differ_from_each_other():
    found = [draw.index for draw in draws(50, batch_size=50, num_batches=2, seed=0)]
    assert found[:50] != found[50:]
    assert found[:50] != list(range(50))


@given(shares=st.lists(weights, min_size=1, max_size=6))
def test_after_any_number_of_turns_every_source_had_its_share(shares):
    total = sum(map(Fraction, shares))
    counts = Counter()
    for number, source in enumerate(turns(shares, 150), start=1):
        counts[source] += 1
        assert all(abs(counts[each] - number * Fraction(share) / total) < 1 for each, share in enumerate(shares))


@given(shares=st.lists(st.integers(1, 9), min_size=1, max_size=5), scale=st.sampled_from([0.5, 3.0, 2.0**-40]))
def test_a_round_holds_exactly_the_weights_in_any_unit(shares, scale):
    counts = Counter(turns([share * scale for share in shares], sum(shares)))
    assert [counts[each] for each in range(len(shares))] == shares


@given(rows=sources(balanced=False), seed=seeds)
def test_each_source_walks_its_own_permutations(rows, seed):
    found = flat(sampler_of(rows, batch_size=4, num_batches=20, seed=seed))
    for places, source in zip(by_source(found, rows), rows, strict=True):
        assert_passes_are_permutations(places, source.num_samples)


def test_sources_of_one_size_walk_differently():
    rows = [SourceRows(num_samples=30), SourceRows(num_samples=30)]
    first, second = by_source(flat(sampler_of(rows, batch_size=10, num_batches=6, seed=0)), rows)
    assert sorted(first) == sorted(second)
    assert first != second


@given(rows=sources(balanced=True), seed=seeds)
def test_balanced_labels_come_equally_often_and_each_walks_its_own_permutations(rows, seed):
    found = flat(sampler_of(rows, batch_size=6, num_batches=20, seed=seed))
    for places, source in zip(by_source(found, rows), rows, strict=True):
        names = sorted(set(source.labels))
        drawn = [source.labels[place] for place in places]
        for start in range(0, len(drawn), len(names)):
            assert max(Counter(drawn[start : start + len(names)]).values()) == 1
        for name in names:
            own = [place for place in range(source.num_samples) if source.labels[place] == name]
            walked = [own.index(place) for place in places if source.labels[place] == name]
            assert_passes_are_permutations(walked, len(own))


def test_the_order_of_labels_changes_from_round_to_round():
    labels = tuple("abc" * 4)
    rows = [SourceRows(num_samples=12, labels=labels)]
    drawn = [labels[draw.index] for draw in flat(sampler_of(rows, batch_size=3, num_batches=60, seed=0))]
    assert len({tuple(drawn[start : start + 3]) for start in range(0, 180, 3)}) == 6


@given(
    rows=sources(), batch_size=st.integers(1, 7), num_batches=sizes, seed=seeds, dropout=dropouts, cut=st.integers(0)
)
def test_a_resumed_order_is_the_rest_of_the_uninterrupted_one(rows, batch_size, num_batches, seed, dropout, cut):
    def sampler():
        return sampler_of(rows, batch_size=batch_size, num_batches=num_batches, seed=seed, dropout=dropout)

    whole, cut = list(sampler()), cut % (num_batches + 1)
    first = sampler()
    ahead = iter(first)
    seen = [next(ahead) for _ in range(cut)]
    first.advance(cut)
    list(ahead)  # a loader that reads ahead consumes nothing
    state = json.loads(json.dumps(first.state_dict()))
    resumed = sampler()
    resumed.load_state_dict(state)
    assert seen + list(resumed) == whole
    assert len(resumed) == num_batches
    assert resumed.state_dict() == state


def base(**changes):
    given = {**BASE, **changes}
    return sampler_of(given.pop("sources"), **given)


BASE = {
    "sources": (
        SourceRows(num_samples=3, settings=SourceSettings(weight=1.0), labels=("a", "b", "a")),
        SourceRows(num_samples=2, settings=SourceSettings(weight=1.0), labels=("a", "a")),
    ),
    "batch_size": 2,
    "num_batches": 5,
    "seed": 1,
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 2}, "seed was 1 and is 2"),
        ({"batch_size": 3}, "batch_size was 2 and is 3"),
        ({"sources": BASE["sources"][:1]}, r"num_samples was \[3, 2\] and is \[3\]"),
        ({"sources": BASE["sources"][::-1]}, r"num_samples was \[3, 2\] and is \[2, 3\]"),
        (
            {
                "sources": (
                    BASE["sources"][0],
                    SourceRows(num_samples=2, settings=SourceSettings(weight=2.0), labels=("a", "a")),
                )
            },
            r"weights was \[1.0, 1.0\] and is \[1.0, 2.0\]",
        ),
        (
            {"sources": tuple(replace(each, settings=SourceSettings()) for each in BASE["sources"])},
            r"weights was \[1.0, 1.0\] and is \[None, None\]",
        ),
        ({"sources": (BASE["sources"][0], replace(BASE["sources"][1], labels=("a", "b")))}, "labels was"),
        (
            {"sources": tuple(replace(each, labels=None) for each in BASE["sources"])},
            r"labels was .* is \[None, None\]",
        ),
        ({"dropout": DropoutSettings(blank=0.5)}, r"dropout was \[0.0, 0.0\] and is \[0.0, 0.5\]"),
        ({"num_batches": 2}, "after 3 batches: the stage has 2"),
    ],
)
def test_the_state_of_another_configuration_is_refused(change, named):
    old = base()
    old.advance(3)
    new = base(**change)
    before = list(new)
    with pytest.raises(StageError, match=f"cannot resume the order of the data.*{named}.*start the stage anew"):
        new.load_state_dict(old.state_dict())
    assert list(new) == before


def test_a_single_source_goes_on_from_a_state_of_an_earlier_version():
    """Its weight, by default 1 then, has no effect."""
    source = SourceRows(num_samples=5)
    old, new = (sampler_of([source], batch_size=2, num_batches=5, seed=1) for _ in range(2))
    old.advance(3)
    state = old.state_dict()
    assert state["configuration"]["weights"] == [1.0]
    new.load_state_dict(state)
    assert list(new) == list(sampler_of([source], batch_size=2, num_batches=5, seed=1))[3:]


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), seed=seeds, epochs=st.integers(1, 3))
def test_without_weights_an_epoch_is_one_pass_over_the_union(sizes, seed, epochs):
    rows = [SourceRows(num_samples=size) for size in sizes]
    total = sum(sizes)
    found = [draw.index for draw in flat(sampler_of(rows, batch_size=1, num_batches=epochs * total, seed=seed))]
    for start in range(0, epochs * total, total):
        assert sorted(found[start : start + total]) == list(range(total))


def test_a_weight_beside_none_is_refused():
    rows = [SourceRows(num_samples=2), SourceRows(num_samples=2, settings=SourceSettings(weight=2.0))]
    with pytest.raises(ConfigError, match=r"^sources\.0\.weight is null, and other sources have a weight"):
        sampler_of(rows, batch_size=1, num_batches=1, seed=0)


def test_a_longer_stage_goes_on_where_the_shorter_one_stopped():
    old, new = base(), base(num_batches=9)
    whole = list(new)
    old.advance(5)
    new.load_state_dict(old.state_dict())
    assert list(old) == []
    assert list(new) == whole[5:]


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"num_samples": 0}, "num_samples is 0; a source needs at least one sample"),
        ({"num_samples": 1, "settings": SourceSettings(weight=0.0)}, "weight is 0.0; it must be above 0"),
        ({"num_samples": 1, "settings": SourceSettings(weight=-1.0)}, "weight is -1.0"),
        ({"num_samples": 1, "settings": SourceSettings(weight=float("inf"))}, "weight is inf"),
        ({"num_samples": 1, "settings": SourceSettings(weight=float("nan"))}, "weight is nan"),
        ({"num_samples": 2, "labels": ("a",)}, "1 labels for 2 samples"),
    ],
)
def test_a_source_that_cannot_be_drawn_from_is_refused(how, reason):
    with pytest.raises((ValueError, ConfigError), match=reason):
        SourceRows(**how)


@given(rows=sources(balanced=False), seed=seeds)
def test_a_batch_may_be_larger_than_the_data(rows, seed):
    size = sum(each.num_samples for each in rows)
    assume(size < 30)
    [batch] = sampler_of(rows, batch_size=200, num_batches=1, seed=seed)
    assert len(batch) == 200
    assert {draw.index for draw in batch} <= set(range(size))


def test_dropout_has_its_frequencies():
    found = [variant_of(DropoutSettings(silent=0.2, blank=0.3), 0, serial) for serial in range(20_000)]
    # Five standard deviations of a frequency of 0.3 over 20 000 draws are 0.016.
    assert found.count("silent") / len(found) == pytest.approx(0.2, abs=0.016)  # tolerance: sampling error
    assert found.count("blank") / len(found) == pytest.approx(0.3, abs=0.016)  # tolerance: sampling error
    assert set(found) == {"full", "silent", "blank"}


@pytest.mark.parametrize(
    ("dropout", "expected"),
    [
        (DropoutSettings(), {"full"}),
        (DropoutSettings(silent=1.0), {"silent"}),
        (DropoutSettings(blank=1.0), {"blank"}),
        (DropoutSettings(silent=0.5, blank=0.5), {"silent", "blank"}),
    ],
)
def test_dropout_at_its_limits(dropout, expected):
    assert {variant_of(dropout, 1, serial) for serial in range(500)} == expected


def test_dropout_is_independent_of_the_order():
    found = draws(2, batch_size=2, num_batches=2000, seed=0, dropout=DropoutSettings(silent=0.5))
    silent = [draw.index for draw in found if draw.variant == "silent"]
    assert sum(silent) / len(silent) == pytest.approx(0.5, abs=0.06)  # tolerance: sampling error of 2000 draws


@given(world_size=st.integers(1, 4), per_rank=st.integers(1, 3), consumed=st.integers(0, 5))
def test_ranks_draw_together_what_one_process_draws(world_size, per_rank, consumed):
    """Batch by batch and in its order; also after resuming with the state of a run with another number of ranks."""

    def sampler(share=None):
        return sampler_of(
            [
                SourceRows(num_samples=7, settings=SourceSettings(weight=1.0)),
                SourceRows(num_samples=3, settings=SourceSettings(weight=0.5)),
            ],
            batch_size=12 * per_rank,
            num_batches=6,
            seed=3,
            share=share,
        )

    alone = sampler()
    alone.advance(consumed)
    ranks = [sampler(Share(rank=rank, world_size=world_size)) for rank in range(world_size)]
    for rank in ranks:
        rank.load_state_dict(alone.state_dict())
        assert rank.state_dict() == alone.state_dict()
    expected = list(alone)
    assert len(expected) == 6 - consumed
    for batch, parts in zip(expected, zip(*ranks, strict=True), strict=True):
        assert [draw for part in parts for draw in part] == batch
        assert {len(part) for part in parts} == {12 * per_rank // world_size}


def test_a_batch_that_ranks_cannot_share_evenly_is_refused():
    with pytest.raises(ConfigError, match="batch_size is 10, which 4 ranks cannot share evenly"):
        sampler_of([SourceRows(num_samples=7)], batch_size=10, num_batches=1, seed=0, share=Share(world_size=4))


@given(rows=sources(), seed=seeds, batch_size=st.integers(1, 5), data=st.data())
def test_the_order_does_not_depend_on_when_a_sample_is_found_unusable(rows, seed, batch_size, data):
    """Every source keeps a usable sample. The oracle knows all unusable ones at the start."""
    ends = [sum(each.num_samples for each in rows[: number + 1]) for number in range(len(rows))]
    kept = {end - 1 for end in ends}
    bad = data.draw(st.sets(st.integers(0, ends[-1] - 1))) - kept
    known = data.draw(st.sets(st.sampled_from(sorted(bad)))) if bad else set()
    how = {"batch_size": batch_size, "num_batches": 12, "seed": seed}
    expected = list(sampler_of(rows, rejected=bad, **how))
    found = sampler_of(rows, rejected=known, **how)
    batches = []
    while upcoming := found.upcoming(data.draw(st.integers(1, 4))):
        unusable = [draw.index for draw in upcoming[0] if draw.index in bad]
        if unusable:
            found.reject(unusable)
        else:
            found.mark_read()
            batches.append(upcoming[0])
    assert batches == expected
    assert not bad.intersection(draw.index for draw in flat(batches))
    cut = data.draw(st.integers(0, 12))
    resumed = sampler_of(rows, rejected=known, **how)
    resumed.reject(bad)
    resumed.load_state_dict({"consumed": cut, "configuration": found.state_dict()["configuration"]})
    assert list(resumed) == expected[cut:]


@given(seed=seeds)
def test_a_rejected_sample_takes_only_its_own_place_within_a_pass(seed):
    """What shuffling the usable ones anew would not do: the others keep their order."""
    how = {"batch_size": 10, "num_batches": 1, "seed": seed}
    whole = flat(sampler_of([SourceRows(num_samples=10)], **how))
    bad = whole[3].index
    left = flat(sampler_of([SourceRows(num_samples=10)], rejected={bad}, **how))
    assert [draw.index for draw in left][:9] == [draw.index for draw in whole if draw.index != bad]


def test_a_source_of_which_nothing_is_usable_is_named():
    rows = [SourceRows(num_samples=2), SourceRows(num_samples=3)]
    sampler = sampler_of(rows, batch_size=2, num_batches=3, seed=0)
    sampler.reject([2, 3, 4])
    with pytest.raises(ExhaustedError) as raised:
        sampler.upcoming(1)
    assert raised.value.source == 1


def test_a_label_without_a_usable_sample_gives_its_turns_to_the_others():
    rows = [SourceRows(num_samples=4, labels=("a", "b", "b", "c"))]
    sampler = sampler_of(rows, batch_size=6, num_batches=1, seed=0, rejected=[0])
    assert {draw.index for draw in flat(sampler)} == {1, 2, 3}
