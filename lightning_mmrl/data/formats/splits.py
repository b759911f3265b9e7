"""Assigns clips to splits: groups stay whole, labels spread as evenly as the groups allow."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

from lightning_mmrl.errors import DataError

_ROUNDS = 20
_LACKING = 10.0
_MAX_EXCHANGED = 200


def assign_splits(groups: Sequence[str], labels: Sequence[str], *, shares: Mapping[str, float], seed: int) -> list[str]:
    """The split of each clip.

    Large groups are placed first, each where it brings the label counts closest to their targets; then single groups
    move, or pairs of few groups change places, as long as that gets closer. No split is left without a group.

    Args:
        groups: The group of each clip, such as its speaker; a group never crosses splits.
        labels: The label of each clip.
        shares: Split name to its part of the clips, in any unit; a share of 0 gets nothing.
        seed: Decides between equals.

    Raises:
        DataError: There are fewer groups than splits.

    >>> assign_splits(["a", "a", "b", "b"], ["x", "y", "x", "y"], shares={"train": 1, "test": 1}, seed=0)
    ['train', 'train', 'test', 'test']
    """
    shares = {name: share for name, share in shares.items() if share > 0}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for group, label in zip(groups, labels, strict=True):
        counts[group][label] += 1
    if len(counts) < len(shares):
        found = "1 group" if len(counts) == 1 else f"{len(counts)} groups"
        raise DataError(
            f"{found} of clips cannot fill the splits {', '.join(shares)}; name more speakers, "
            "give a split column, or use --ignore-speakers"
        )
    plan = _Plan(counts, shares, Counter(labels))
    order = sorted(counts)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -counts[group].total())
    for group in order:
        plan.place(group, plan.best(group))
    plan.fill_empty(order)
    plan.improve(order)
    if len(order) <= _MAX_EXCHANGED:
        plan.exchange(order)
    return [plan.chosen[group] for group in groups]


class _Plan:
    """An assignment of groups, and how far its label counts are from their targets."""

    def __init__(self, counts: Mapping[str, Counter[str]], shares: Mapping[str, float], totals: Counter[str]) -> None:
        whole = sum(shares.values())
        self._counts = counts
        self._targets = {
            (name, label): share / whole * number for name, share in shares.items() for label, number in totals.items()
        }
        self._have: Counter[tuple[str, str]] = Counter()
        self._names = list(shares)
        self._largest = max(shares, key=lambda name: shares[name])
        self._sizes: Counter[str] = Counter()
        self.chosen: dict[str, str] = {}

    def place(self, group: str, name: str) -> None:
        """Puts a group into a split, out of the one where it was."""
        before = self.chosen.get(group)
        for label, number in self._counts[group].items():
            if before is not None:
                self._have[before, label] -= number
            self._have[name, label] += number
        self._sizes.update([name])
        self._sizes.subtract([] if before is None else [before])
        self.chosen[group] = name

    def best(self, group: str) -> str:
        """The split whose counts a new group brings closest to their targets."""
        return min(self._names, key=lambda name: self._change(group, name, 1))

    def fill_empty(self, order: Sequence[str]) -> None:
        """Gives an empty split the smallest group of the split with the most groups."""
        for name in self._names:
            if not self._sizes[name]:
                donor = max(self._names, key=lambda each: self._sizes[each])
                self.place(next(group for group in reversed(order) if self.chosen[group] == donor), name)

    def improve(self, order: Sequence[str]) -> None:
        """Moves single groups while that gets the counts closer, and leaves no split empty."""
        for _ in range(_ROUNDS):
            moved = False
            for group in order:
                here = self.chosen[group]
                if self._sizes[here] == 1:
                    continue
                leaving = self._change(group, here, -1)
                there = min(
                    (name for name in self._names if name != here),
                    key=lambda name: self._change(group, name, 1),
                    default=here,
                )
                if there != here and leaving + self._change(group, there, 1) < -1e-9:
                    self.place(group, there)
                    moved = True
            if not moved:
                return

    def exchange(self, order: Sequence[str]) -> None:
        """Lets two groups of different splits change places while that gets the counts closer."""
        for one, other in combinations(order, 2):
            here, there = self.chosen[one], self.chosen[other]
            if here == there:
                continue
            before = self._total()
            self.place(one, there)
            self.place(other, here)
            if self._total() >= before - 1e-9:
                self.place(one, here)
                self.place(other, there)

    def _total(self) -> float:
        return sum(self._distance(name, label, self._have[name, label]) for name, label in self._targets)

    def _change(self, group: str, name: str, sign: int) -> float:
        """How the distance to the targets changes when a group comes (1) or goes (-1)."""
        change = 0.0
        for label, number in self._counts[group].items():
            have = self._have[name, label]
            change += self._distance(name, label, have + sign * number) - self._distance(name, label, have)
        return change

    def _distance(self, name: str, label: str, have: int) -> float:
        """Squared and relative to the target; a label that the largest split lacks cannot be learned."""
        target = self._targets[name, label]
        return (have - target) ** 2 / target + (_LACKING if have == 0 and name == self._largest else 0.0)
