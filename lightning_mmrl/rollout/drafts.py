"""Guesses the next tokens of completions from completions that were sampled before."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from lightning_mmrl.settings.speculation import SpeculationSettings

ORDERS = (2, 4, 8)
"""Lengths of the contexts of all prompts."""

PROMPT_ORDER = 3
"""Length of the contexts of one prompt."""

START = -1
"""Stands before the first token of a completion."""

MAX_COUNT = 64
"""Occurrences of a context at which its counts are halved, so that old ones fade."""

EARLIER, RECENT, SIBLING, OWN = "earlier", "recent", "sibling", "own"
"""Sources of drafts: completions of the same prompt in earlier rollouts, completions of any prompt, the other
completions of the prompt in this rollout, and the completion itself."""


class Draft(NamedTuple):
    """Guessed tokens of a row, and the source of each.

    >>> Draft([5, 6], ["own", "recent"]).tokens
    [5, 6]
    """

    tokens: list[int]
    sources: list[str]


class Drafter(Protocol):
    """Guesses tokens; whatever it guesses, the same tokens are sampled."""

    def begin(self, names: Sequence[str]) -> None:
        """A rollout begins; `names` are the prompts of its rows."""
        ...

    def propose(self, rows: Sequence[int], rooms: Sequence[int]) -> list[Draft]:
        """Guesses for some rows, given the tokens that were noted; a draft of row i has `rooms[i]` tokens at most."""
        ...

    def note(self, row: int, tokens: Sequence[int]) -> None:
        """The next tokens of a row are decided."""
        ...


@dataclass(slots=True)
class _Followers:
    """Tokens that followed a context; `origin` is the row, by rollout and number, that had the likeliest one last."""

    total: int = 0
    likeliest: int = START
    origin: tuple[int, int] = (0, 0)
    counts: dict[int, int] = field(default_factory=dict)

    def add(self, token: int, origin: tuple[int, int]) -> None:
        self.total += 1
        count = self.counts[token] = self.counts.get(token, 0) + 1
        if count >= self.counts.get(self.likeliest, 0):
            self.likeliest, self.origin = token, origin
        if self.total >= MAX_COUNT:
            self.counts = {each: number // 2 for each, number in self.counts.items() if number > 1}
            self.total = sum(self.counts.values())

    @property
    def probability(self) -> float:
        """An estimate of the probability of the likeliest token, as if one more token had followed that differs."""
        return self.counts[self.likeliest] / (self.total + 1)


class _Table:
    """Followers of a bounded number of contexts: of two halves, the older one is dropped when the newer one is full."""

    def __init__(self, size: int) -> None:
        self._half = size // 2
        self._newer: dict[tuple[object, ...], _Followers] = {}
        self._older: dict[tuple[object, ...], _Followers] = {}

    def __len__(self) -> int:
        return len(self._newer) + len(self._older)

    def add(self, context: tuple[object, ...], token: int, origin: tuple[int, int]) -> None:
        found = self._newer.get(context)
        if found is None:
            found = self._newer[context] = self._older.pop(context, None) or _Followers()
            if len(self._newer) >= self._half:
                self._older, self._newer = self._newer, {}
        found.add(token, origin)

    def find(self, context: tuple[object, ...]) -> _Followers | None:
        found = self._newer.get(context)
        return self._older.get(context) if found is None else found


class DraftStore:
    """Counts which tokens followed which contexts, and drafts the likeliest ones as far as that pays.

    A drafted token costs a token of a pass. Accepted, it saves its row a pass, whose fixed part costs `pass_tokens`
    tokens and is shared by the R rows. A draft therefore goes on while its tokens are all accepted with a probability
    of at least R / (R + pass_tokens).

    Args:
        settings: Its bounds.

    >>> store = DraftStore(SpeculationSettings(max_draft=2))
    >>> for number in range(4):
    ...     store.begin(["a"])
    ...     store.note(0, [5, 6, 7])
    >>> store.begin(["b"])
    >>> store.note(0, [5])
    >>> store.propose([0], [9])
    [Draft(tokens=[6, 7], sources=['recent', 'recent'])]
    """

    def __init__(self, settings: SpeculationSettings) -> None:
        self._settings = settings
        self._table = _Table(settings.max_contexts)
        self._rollout = 0
        self._names: list[str] = []
        self._tokens: list[list[int]] = []

    def begin(self, names: Sequence[str]) -> None:
        """Forgets the rows of the last rollout; what followed their contexts stays."""
        self._rollout += 1
        self._names, self._tokens = list(names), [[START] for _ in names]

    def note(self, row: int, tokens: Sequence[int]) -> None:
        """Counts the tokens as followers of the contexts that they end."""
        text, origin = self._tokens[row], (self._rollout, row)
        for token in tokens:
            for context in self._contexts(row, text):
                self._table.add(context, token, origin)
            text.append(token)

    def propose(self, rows: Sequence[int], rooms: Sequence[int]) -> list[Draft]:
        """The likeliest tokens of each row, each given the ones before it."""
        least = len(rows) / (len(rows) + self._settings.pass_tokens)
        limits = [min(room, self._settings.max_draft) for room in rooms]
        return [self._draft(row, limit, least) for row, limit in zip(rows, limits, strict=True)]

    def _draft(self, row: int, limit: int, least: float) -> Draft:
        text, sources = self._tokens[row][-ORDERS[-1] :], list[str]()
        start, chance = len(text), 1.0
        while len(sources) < limit:
            best, of_prompt = None, False
            for number, context in enumerate(self._contexts(row, text)):
                found = self._table.find(context)
                if found is not None and (best is None or found.probability > best.probability):
                    best, of_prompt = found, number == 0
            if best is None:
                break
            chance *= best.probability
            if chance < least:
                break
            text.append(best.likeliest)
            sources.append(self._source(row, best.origin, of_prompt))
        return Draft(text[start:], sources)

    def _source(self, row: int, origin: tuple[int, int], of_prompt: bool) -> str:
        rollout, other = origin
        if rollout != self._rollout:
            return EARLIER if of_prompt else RECENT
        if other == row:
            return OWN
        return SIBLING if self._names[other] == self._names[row] else RECENT

    def _contexts(self, row: int, text: Sequence[int]) -> Iterator[tuple[object, ...]]:
        """The keys of what came last: that of the prompt, then those of all prompts from short to long."""
        yield (self._names[row], *text[-PROMPT_ORDER:])
        for order in ORDERS:
            yield tuple(text[-order:])
            if len(text) <= order:
                return
