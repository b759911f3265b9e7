"""Gives the samples of a set the sound or the picture of each other, to see whether a model uses them."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from lightning_mmrl.types.records import MediaKind, Sample

SWAPPED: Mapping[str, tuple[MediaKind, ...]] = {
    "shuffled_sound": ("audio",),
    "shuffled_picture": ("video", "image"),
}
"""The variants that mix samples, and the kinds of media that they exchange."""
_SEED = 0
"""The same for all runs, so that stages and runs are compared on the same pairs."""


class Shuffle:
    """Gives each sample of a set a partner, by a permutation; implements `data.in_order.Partners`.

    A partner has another truth where that is possible, and as many media of the exchanged kinds, so that each medium
    is used once. A sample without such media keeps what it has, and so does one whose media no other sample matches.
    The permutation depends on the usable samples alone, not on the run.

    Args:
        samples: The samples of the set.
        truth_of: Gives the truth of a sample.
        variant: `shuffled_sound` or `shuffled_picture`.
    """

    def __init__(self, samples: Sequence[Sample], truth_of: Callable[[Sample], Hashable], variant: str) -> None:
        self._samples = samples
        self._truth_of = truth_of
        self._kinds = SWAPPED[variant]
        self._counts: dict[str, int] = {}

    def __call__(self, usable: Sequence[int]) -> dict[int, int]:
        """Maps each sample that has a partner to it."""
        alike: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
        truths = {}
        for index in usable:
            sample = self._samples[index]
            exchanged: tuple[str, ...] = tuple(ref.kind for ref in sample.media if ref.kind in self._kinds)
            alike[exchanged].append(index)
            truths[index] = self._truth_of(sample)
        found: dict[int, int] = {}
        for exchanged, own in alike.items():
            if exchanged and len(own) > 1:
                places = partners([truths[index] for index in own])
                found |= {index: own[place] for index, place in zip(own, places, strict=True)}
        same = sum(truths[index] == truths[partner] for index, partner in found.items())
        self._counts = {
            "num_shuffled": len(found),
            "num_same_truth": same,
            "num_unchanged": len(usable) - len(found),
        }
        return found

    def counted(self) -> dict[str, int]:
        """The numbers of samples of the last call, or nothing before it.

        `num_shuffled` samples have a partner, of which `num_same_truth` have one of the same truth. `num_unchanged`
        samples have none.
        """
        return dict(self._counts)


def partners(truths: Sequence[Hashable]) -> list[int]:
    """A seeded permutation of two or more places: none maps to itself, and as few as possible to the same truth.

    A random permutation is mended by exchanges. Let m be the number of places of a truth. A place with a partner of
    the same truth finds another place to exchange partners with, of another truth on both sides, while fewer than n of
    the n places have this truth on either side; so no such place is left if 2 m <= n, and 2 m - n else, which is the
    least that there can be.

    >>> truths = ["sad", "sad", "sad", "happy"]
    >>> found = partners(truths)
    >>> sorted(found), sum(truths[place] == truths[partner] for place, partner in enumerate(found))
    ([0, 1, 2, 3], 2)
    """
    found = [int(place) for place in np.random.default_rng(_SEED).permutation(len(truths))]
    for place, truth in enumerate(truths):
        if truths[found[place]] == truth:
            others = (each for each, own in enumerate(truths) if truth not in (own, truths[found[each]]))
            _exchange(found, place, next(others, place))
    for place, truth in enumerate(truths):
        if found[place] == place:  # only where this truth has the majority
            _exchange(found, place, next(each for each, own in enumerate(truths) if each != place and own == truth))
    return found


def swapped(sample: Sample, partner: Sample, variant: str) -> Sample:
    """The sample with the sound or the picture of its partner, which has as many of them in the same order."""
    kinds = SWAPPED[variant]
    theirs = iter([ref for ref in partner.media if ref.kind in kinds])
    return replace(sample, media=tuple(next(theirs) if ref.kind in kinds else ref for ref in sample.media))


def _exchange(found: list[int], one: int, other: int) -> None:
    found[one], found[other] = found[other], found[one]
