from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.data.formats.splits import assign_splits
from lightning_mmrl.errors import DataError

SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}

clips = st.lists(st.tuples(st.integers(0, 12), st.sampled_from("abc")), min_size=1, max_size=80)


@given(clips, st.integers(0, 3))
def test_a_group_stays_in_one_split_and_no_split_is_empty(pairs, seed):
    groups, labels = [f"g{group}" for group, _ in pairs], [label for _, label in pairs]
    if len(set(groups)) < 3:
        with pytest.raises(DataError, match=r"groups? of clips cannot fill the splits train, validation, test"):
            assign_splits(groups, labels, shares=SHARES, seed=seed)
        return
    chosen = assign_splits(groups, labels, shares=SHARES, seed=seed)
    assert len({(group, split) for group, split in zip(groups, chosen, strict=True)}) == len(set(groups))
    assert set(chosen) == set(SHARES)
    assert chosen == assign_splits(groups, labels, shares=SHARES, seed=seed)


def test_labels_spread_as_evenly_as_single_clips_allow():
    labels = list("aaaaaaaaaabbbbbbbbbbbbbbbbbbbb") * 10
    chosen = assign_splits([str(index) for index in range(300)], labels, shares=SHARES, seed=0)
    counts = Counter(zip(chosen, labels, strict=True))
    assert (counts["train", "a"], counts["validation", "a"], counts["test", "a"]) == (70, 15, 15)
    assert (counts["train", "b"], counts["validation", "b"], counts["test", "b"]) == (140, 30, 30)


def test_speakers_with_one_label_each_are_spread_by_label():
    groups = [f"{label}{speaker}" for label in "abcd" for speaker in range(10) for _ in range(5)]
    labels = [group[0] for group in groups]
    chosen = assign_splits(groups, labels, shares={"train": 0.8, "test": 0.2}, seed=1)
    counts = Counter(zip(chosen, labels, strict=True))
    assert {counts["test", label] for label in "abcd"} == {10}


def test_training_gets_every_label_where_one_speaker_has_it_alone():
    groups = [f"s{index // 3}" for index in range(18)]
    labels = ["rare" if group == "s4" else "ab"[index % 2] for index, group in enumerate(groups)]
    for seed in range(10):
        chosen = assign_splits(groups, labels, shares=SHARES, seed=seed)
        assert ("train", "rare") in set(zip(chosen, labels, strict=True))


def test_the_seed_decides_between_equals():
    groups = [str(index) for index in range(40)]
    chosen = [tuple(assign_splits(groups, ["a"] * 40, shares=SHARES, seed=seed)) for seed in range(3)]
    assert len(set(chosen)) == 3


def test_a_share_of_nothing_gets_nothing():
    chosen = assign_splits(["a", "b"], ["x", "x"], shares={"train": 0.9, "validation": 0.0, "test": 0.1}, seed=0)
    assert sorted(chosen) == ["test", "train"]
