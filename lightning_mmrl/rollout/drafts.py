"""Guesses the next tokens of completions from completions that were sampled before."""

from collections import Counter
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

LEAST_GAIN = 0.03
"""Share of the cost of a rollout that drafts must save."""

LONGEST_REST = 16
"""Rollouts in a row without drafts at most."""

GUESS = 0.03
"""Cost of guessing and judging one token, in tokens of a pass."""

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


@dataclass(slots=True)
class Tally:
    """Costs and yield of a rollout with drafts.

    Attributes:
        passes: Passes of the decoder, the one over the prompts included.
        longest: Tokens of the longest completion: the number of passes without drafts.
        tokens: Tokens of all completions.
        fed: Tokens that passes after the first one got, wrong drafts and ended rows among them.
        drafted: Drafted tokens, by source.
        accepted: Drafted tokens that were right, by source.

    >>> Tally(passes=3, longest=5, drafted=Counter(own=4)).counts()
    {'passes': 3, 'longest': 5, 'drafted/own': 4}
    """

    passes: int = 0
    longest: int = 0
    tokens: int = 0
    fed: int = 0
    drafted: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, int]:
        """The numbers that metrics are made of, in one mapping."""
        both = {"drafted": self.drafted, "accepted": self.accepted}
        by_source = {f"{name}/{source}": count for name, each in both.items() for source, count in each.items()}
        return {"passes": self.passes, "longest": self.longest, **by_source}


class Drafter(Protocol):
    """Guesses tokens; whatever it guesses, the same tokens are sampled."""

    def begin(self, names: Sequence[str]) -> bool:
        """A rollout begins; `names` are the prompts of its rows. Returns whether there will be drafts."""
        ...

    def propose(self, rows: Sequence[int], rooms: Sequence[int]) -> list[Draft]:
        """Guesses for some rows, given the tokens that were noted; a draft of row i has `rooms[i]` tokens at most."""
        ...

    def note(self, row: int, tokens: Sequence[int]) -> None:
        """The next tokens of a row are decided."""
        ...

    def end(self, rows: Sequence[Sequence[int]], tally: Tally | None) -> None:
        """The rollout is over, with these tokens in its rows; the tally is None if there were no drafts."""
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

    If by this reckoning the drafts of a rollout saved less than `LEAST_GAIN`, the next rollouts have none: one, then
    two, then four and so on. Only the last of them is counted, so that nothing is spent on the others.

    Args:
        settings: Its bounds.

    >>> store = DraftStore(SpeculationSettings(max_draft=2))
    >>> for number in range(4):
    ...     drafts = store.begin(["a"])
    ...     store.note(0, [5, 6, 7])
    >>> store.begin(["b"])
    False
    >>> store.note(0, [5])
    >>> store.propose([0], [9])
    [Draft(tokens=[6, 7], sources=['recent', 'recent'])]
    """

    def __init__(self, settings: SpeculationSettings) -> None:
        self._settings = settings
        self._table = _Table(settings.max_contexts)
        self._rollout = 0
        self._rest, self._next_rest = 1, 1  # rollouts without drafts: still to come, and after the next failure
        self._names: list[str] = []
        self._tokens: list[list[int]] = []

    def begin(self, names: Sequence[str]) -> bool:
        """Forgets the rows of the last rollout; what followed their contexts stays."""
        self._rollout += 1
        self._names, self._tokens = list(names), [[START] for _ in names]
        return self._rest == 0

    def end(self, rows: Sequence[Sequence[int]], tally: Tally | None) -> None:
        """Decides whether the next rollout has drafts."""
        if tally is None:
            self._rest -= 1
            if self._rest == 0:
                for row, tokens in enumerate(rows):
                    self.note(row, tokens)
        elif self._gain(tally) < LEAST_GAIN:
            self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest, LONGEST_REST)
        else:
            self._next_rest = 1

    def _gain(self, tally: Tally) -> float:
        """The share of the cost of a rollout that its drafts saved; guessing costs too."""
        fixed = self._settings.pass_tokens
        plain = fixed * tally.longest + tally.tokens
        return 1 - (fixed * tally.passes + (1 + GUESS) * tally.fed) / plain

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
