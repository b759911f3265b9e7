"""Partners of a shuffled set: a permutation, never the sample itself, of another truth wherever there is one."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mmrl.data.shuffling import Shuffle, partners, swapped
from lightning_mmrl.types.records import MediaRef, Sample


def sample(name, solution="sad", sounds=1, videos=1):
    refs = [MediaRef(kind="video", path=f"{name}{number}.mp4") for number in range(videos)]
    refs += [MediaRef(kind="audio", path=f"{name}{number}.wav", start_s=1.0) for number in range(sounds)]
    return Sample(id=name, messages=(), media=tuple(refs), solution=solution)


def shuffled(samples, variant="shuffled_sound", usable=None):
    shuffle = Shuffle(samples, lambda each: each.solution, variant)
    return shuffle(range(len(samples)) if usable is None else usable), shuffle.counted()


@given(st.lists(st.sampled_from("abcde"), min_size=2, max_size=40))
def test_partners_are_a_permutation_with_as_few_equal_truths_as_there_can_be(truths):
    found = partners(truths)
    assert sorted(found) == list(range(len(truths)))
    assert all(place != partner for place, partner in enumerate(found))
    [(_, most)] = Counter(truths).most_common(1)
    equal = sum(truths[place] == truths[partner] for place, partner in enumerate(found))
    assert equal == max(0, 2 * most - len(truths))


def test_one_truth_does_not_decide_the_truth_of_its_partner():
    """A shift by one label would make the sound tell the label as well as before."""
    truths = [label for label in "abcde" for _ in range(40)]
    found = partners(truths)
    for label in "abcde":
        assert len({truths[found[place]] for place, own in enumerate(truths) if own == label}) == 4


def test_the_same_samples_have_the_same_partners_in_every_run():
    samples = [sample(f"s{number}", "ab"[number % 2]) for number in range(20)]
    assert shuffled(samples) == shuffled(samples)
    assert shuffled(samples)[0] == shuffled([*samples, sample("late")], usable=range(20))[0]


def test_samples_without_a_match_keep_what_they_have_and_are_counted():
    samples = [sample("a", "x"), sample("b", "y"), sample("mute", "x", sounds=0), sample("two", "y", sounds=2)]
    found, counts = shuffled(samples)
    assert found == {0: 1, 1: 0}
    assert counts == {"num_shuffled": 2, "num_same_truth": 0, "num_unchanged": 2}


def test_a_set_of_one_truth_is_shuffled_and_says_so():
    found, counts = shuffled([sample(name) for name in "abc"])
    assert all(index != partner for index, partner in found.items())
    assert counts == {"num_shuffled": 3, "num_same_truth": 3, "num_unchanged": 0}


@pytest.mark.parametrize(("variant", "moved"), [("shuffled_sound", "audio"), ("shuffled_picture", "video")])
def test_only_the_media_of_the_variant_change_place(variant, moved):
    one, other = sample("one", sounds=2, videos=2), sample("other", sounds=2, videos=2)
    found = swapped(one, other, variant)
    for mine, theirs, got in zip(one.media, other.media, found.media, strict=True):
        assert got == (theirs if mine.kind == moved else mine)
    assert (found.id, found.solution) == (one.id, one.solution)
