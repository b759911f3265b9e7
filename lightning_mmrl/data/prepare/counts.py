"""Compares the clips that a user has with the published counts of a set."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lightning_mmrl.data.prepare.card import SetCard
from lightning_mmrl.data.prepare.rows import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A count of the user's clips beside the published one; `needed` says whether the protocol needs it."""

    name: str
    found: int
    published: int | None
    needed: bool

    @property
    def differs(self) -> bool:
        return self.published is not None and self.found != self.published

    def __str__(self) -> str:
        if self.published is None:
            return f"{self.name}: {self.found:,} (no published count is known: not compared)"
        if not self.differs:
            return f"{self.name}: {self.found:,}, as published"
        difference = self.found - self.published
        word = "more" if difference > 0 else "fewer"
        return f"{self.name}: {self.found:,}, published {self.published:,} ({abs(difference):,} {word})"


def compared(card: SetCard, subsets: Iterable[str], rows: Iterable[Row], counted: Mapping[str, int]) -> list[Compared]:
    """Every published count of the subsets and every count of the user's clips, each once.

    Args:
        card: The set.
        subsets: Its subsets that the user asked for.
        rows: The usable clips; one that stands in several splits or folds counts once.
        counted: Counts that no row shows.
    """
    found: dict[str, set[str]] = {}
    for row in rows:
        for name in row.counted_as:
            found.setdefault(name, set()).add(row.name)
        if row.speaker_counted_as is not None and row.speaker is not None:
            found.setdefault(row.speaker_counted_as, set()).add(row.speaker)
    have = {**{name: len(members) for name, members in found.items()}, **counted}
    needed = {name: number for subset in subsets for name, number in card.subsets[subset].counts.items()}
    also = {name: number for subset in subsets for name, number in card.subsets[subset].also.items()}
    return [
        Compared(name=name, found=have.get(name, 0), published=published.get(name), needed=published is needed)
        for published in (needed, also, dict.fromkeys(name for name in have if name not in needed | also))
        for name in published
    ]
