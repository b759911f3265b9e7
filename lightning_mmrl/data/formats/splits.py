"""Assigns clips to splits: groups stay together, and labels are spread as evenly as the groups allow."""

import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations

from lightning_mmrl.errors import DataError

_ROUNDS = 20
_LACKING = 10.0
_MAX_EXCHANGED = 200


def assign_splits(groups: Sequence[str], labels: Sequence[str], *, shares: Mapping[str, float], seed: int) -> list[str]:
    """Returns the split of each clip.

    Large groups are placed first, each in the split where it brings the label counts closest to their targets. Then
    single groups are moved, and pairs are swapped if there are few groups, as long as this brings the counts closer. No
    split is left without a group.

    Args:
        groups: The group of each clip, such as its speaker; a group stays in one split.
        labels: The label of each clip.
        shares: Share of the clips by split, in any unit; a split with share 0 gets no clips.
        seed: Seed that breaks ties.

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
    """An assignment of groups to splits, and the distance of its label counts from their targets."""

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
        """Moves a group into a split."""
        before = self.chosen.get(group)
        for label, number in self._counts[group].items():
            if before is not None:
                self._have[before, label] -= number
            self._have[name, label] += number
        self._sizes.update([name])
        self._sizes.subtract([] if before is None else [before])
        self.chosen[group] = name

    def best(self, group: str) -> str:
        """The split whose label counts get closest to their targets if a new group joins it."""
        return min(self._names, key=lambda name: self._change(group, name, 1))

    def fill_empty(self, order: Sequence[str]) -> None:
        """Moves the smallest group of the split with the most groups into each empty split."""
        for name in self._names:
            if not self._sizes[name]:
                donor = max(self._names, key=lambda each: self._sizes[each])
                self.place(next(group for group in reversed(order) if self.chosen[group] == donor), name)

    def improve(self, order: Sequence[str]) -> None:
        """Moves single groups as long as that brings the counts closer to their targets; empties no split."""
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
        """Swaps two groups of different splits if that brings the counts closer to their targets."""
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
        """Change of the distance to the targets when a group joins (1) or leaves (-1) a split."""
        change = 0.0
        for label, number in self._counts[group].items():
            have = self._have[name, label]
            change += self._distance(name, label, have + sign * number) - self._distance(name, label, have)
        return change

    def _distance(self, name: str, label: str, have: int) -> float:
        """Squared distance relative to the target, plus a penalty if the largest split lacks the label.

        The largest split is usually for training, and a label that it lacks cannot be learned.
        """
        target = self._targets[name, label]
        return (have - target) ** 2 / target + (_LACKING if have == 0 and name == self._largest else 0.0)
