"""Microbatches of whole groups, as full as a budget of tokens and attention pairs allows."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The limits of one microbatch: tokens bound its memory, attention pairs its time.

    >>> Budget(tokens=16_384)
    Budget(tokens=16384, pairs=inf)
    """

    tokens: int
    pairs: int | float = float("inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPart:
    """Completions of one prompt that are scored together: all of its group, unless the group had to be split.

    >>> GroupPart(prompt=2, completions=(0, 1)).completions
    (0, 1)
    """

    prompt: int
    completions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Load:
    tokens: int
    pairs: float

    def fits(self, budget: Budget) -> bool:
        return self.tokens <= budget.tokens and self.pairs <= budget.pairs

    def __add__(self, other: "_Load") -> "_Load":
        return _Load(self.tokens + other.tokens, self.pairs + other.pairs)


def pack_groups(
    prompt_lengths: Sequence[int], lengths: Sequence[Sequence[int]], budget: Budget, *, whole: bool = False
) -> list[tuple[GroupPart, ...]]:
    """Packs the completions of positive length into microbatches, each completion once, by first-fit decreasing.

    A group with a prompt of P tokens and completions of C_j tokens costs P + sum C_j tokens and
    P^2/2 + sum (P C_j + C_j^2/2) attention pairs, since the completions share the prompt. A group that exceeds the
    budget is split into as few parts as fit, and each part pays for the prompt again. A completion that exceeds the
    budget by itself gets a microbatch of its own. Groups without completions are left out.

    Args:
        prompt_lengths: Number of tokens of each of B prompts.
        lengths: Number of tokens of each of their completions, [B][G]; a completion with 0 tokens is left out.
        budget: Limits of one microbatch.
        whole: Whether groups are never split; one that exceeds the budget then gets a microbatch of its own.

    >>> for batch in pack_groups([10, 10, 4], [[5, 5], [5, 0], [1, 1]], Budget(tokens=26)):
    ...     print([(part.prompt, part.completions) for part in batch])
    [(0, (0, 1)), (2, (0, 1))]
    [(1, (0,))]
    """
    parts = []
    for prompt, (width, row) in enumerate(zip(prompt_lengths, lengths, strict=True)):
        for completions in [_present(row)] if whole and any(row) else _split(width, row, budget):
            load = _load(width, [row[index] for index in completions])
            parts.append((load, GroupPart(prompt=prompt, completions=completions)))
    bins: list[tuple[_Load, list[GroupPart]]] = []
    for load, part in sorted(parts, key=lambda item: (-item[0].tokens, item[1].prompt, item[1].completions)):
        for slot, (held, members) in enumerate(bins):
            if (held + load).fits(budget) and all(member.prompt != part.prompt for member in members):
                bins[slot] = (held + load, [*members, part])
                break
        else:
            bins.append((load, [part]))
    return [tuple(sorted(members, key=lambda part: part.prompt)) for _, members in bins]


def _load(prompt_length: int, lengths: Sequence[int]) -> _Load:
    pairs = prompt_length**2 / 2 + sum(prompt_length * length + length**2 / 2 for length in lengths)
    return _Load(prompt_length + sum(lengths), pairs)


def _present(lengths: Sequence[int]) -> tuple[int, ...]:
    return tuple(row for row, length in enumerate(lengths) if length)


def _split(prompt_length: int, lengths: Sequence[int], budget: Budget) -> list[tuple[int, ...]]:
    """Splits completions into as few parts as fit, of about equal load: longest first, each to the lightest part."""
    rows = sorted(_present(lengths), key=lambda row: -lengths[row])
    for num_parts in range(1, len(rows) + 1):
        parts: list[list[int]] = [[] for _ in range(num_parts)]
        for row in rows:
            min(parts, key=lambda part: sum(lengths[index] for index in part)).append(row)
        loads = [_load(prompt_length, [lengths[row] for row in part]) for part in parts]
        if num_parts == len(rows) or all(load.fits(budget) for load in loads):
            return [tuple(sorted(part)) for part in parts]
    return []
