"""Guesses the next tokens of completions from completions that were sampled before."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol
from zlib import crc32

from lightning_mmrl.settings.speculation import SpeculationSettings

LONG, SHORT, OF_PROMPT = 8, 3, 3
"""Numbers of tokens in the contexts of all prompts, and in those of a single prompt."""

START = 1
"""The context before the first token of a completion."""

ENOUGH = 64
"""Rows that are counted while more are sampled; the others have much the same contexts, and counting takes time."""

BITS = 20
"""Bits of a token in a context, which is one integer; tokens that differ only above them are taken for each other."""

SURE = 0.9
"""Probability at which no other context is asked."""

MAX_COUNT = 64
"""Occurrences of a context at which its counts are halved, so that old ones fade."""

LEAST_GAIN = 0.03
"""Share of the cost of a rollout that drafts must save."""

LONGEST_REST = 16
"""Rollouts in a row without drafts at most."""

GUESS = 0.25
"""Cost of guessing and judging one token, in tokens of a pass: measured at 1.1 M parameters, and less in larger models.
"""

UNEVEN = 0.25
"""Share by which a pass takes longer if its rows differ in their numbers of tokens: measured with 8, 64 and 256 rows at
1.1 M parameters, with two tokens of a row on average."""

EARLIER, RECENT, SIBLING, OWN = "earlier", "recent", "sibling", "own"
"""Sources of drafts: completions of the same prompt in earlier rollouts, completions of any prompt, the other
completions of the prompt in this rollout, and the completion itself."""


TOKENS_OF_READING, WEIGHTS_OF_A_LAYER = 18.0, 6.5e6
"""The fixed part of a pass: reading the weights, in tokens, and the overhead of a layer, in weights that a token could
meet meanwhile. Fitted to three models on one thread of a CPU in float32 (`reckoned_pass_tokens` has their sizes), whose
fixed parts cost 36 to 52, 16 to 25 and 21 tokens."""


def reckoned_pass_tokens(num_layers: int, num_weights: int) -> float:
    """How many tokens cost as much as the fixed part of a pass: the fewer, the larger the model.

    Args:
        num_layers: Layers of the decoder.
        num_weights: Weights of the decoder and the head that each token is multiplied with.

    >>> [round(reckoned_pass_tokens(*sizes)) for sizes in ((3, 714_368), (4, 4_198_656), (30, 134_515_008))]
    [45, 24, 19]
    """
    return TOKENS_OF_READING + WEIGHTS_OF_A_LAYER * num_layers / num_weights


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
        steps: Passes before drafts began, the one over the prompts included; each decided a token of every row.
        passes: All passes.
        longest: Tokens of the longest completion: the number of passes without drafts.
        tokens: Tokens of all completions.
        rest: Tokens that were decided after the steps.
        fed: Tokens of rows that had not ended, in the passes after the steps; wrong drafts are among them.
        drafted: Drafted tokens, by source.
        accepted: Drafted tokens that were right, by source.

    >>> Tally(passes=3, longest=5, drafted=Counter(own=4)).counts()
    {'passes': 3, 'longest': 5, 'drafted/own': 4}
    """

    steps: int = 0
    passes: int = 0
    longest: int = 0
    tokens: int = 0
    rest: int = 0
    fed: int = 0
    drafted: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)

    def counts(self) -> dict[str, int]:
        """The numbers that metrics are made of, in one mapping."""
        both = {"drafted": self.drafted, "accepted": self.accepted}
        by_source = {f"{name}/{source}": count for name, each in both.items() for source, count in each.items()}
        return {"passes": self.passes, "longest": self.longest, **by_source}


class Drafter(Protocol):
    """Guesses tokens; whatever it guesses, the same tokens are sampled.

    Attributes:
        most_rows: Rows in the batch up to which tokens are guessed; while there are more, it is not asked.
    """

    most_rows: int

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


class _Followers:
    """Tokens that followed a context.

    Attributes:
        likeliest: The token that followed most often, of several the last.
        probability: An estimate of its probability, as if one more token had followed that differs.
        origin: Rollout and row that had it last.
    """

    __slots__ = ("_counts", "_total", "likeliest", "origin", "probability")

    def __init__(self, token: int, origin: tuple[int, int]) -> None:
        self.likeliest, self.probability, self.origin = token, 0.5, origin
        self._counts, self._total = {token: 1}, 1

    def add(self, token: int, origin: tuple[int, int]) -> None:
        counts = self._counts
        count = counts[token] = counts.get(token, 0) + 1
        self._total += 1
        if count >= counts[self.likeliest]:
            self.likeliest, self.origin = token, origin
        self.probability = counts[self.likeliest] / (self._total + 1)
        if self._total >= MAX_COUNT:
            self._total //= 2
            halves = {each: number // 2 for each, number in counts.items() if number > 1}
            self._counts = {self.likeliest: 1, **halves}


class _Table:
    """Followers of a bounded number of contexts: of two halves, the older one is dropped when the newer one is full."""

    def __init__(self, size: int, order: int) -> None:
        self.mask = (1 << BITS * order) - 1
        self._half = max(1, size // 2)
        self._newer: dict[int, _Followers] = {}
        self._older: dict[int, _Followers] = {}

    def __len__(self) -> int:
        return len(self._newer) + len(self._older)

    def add(self, context: int, token: int, origin: tuple[int, int]) -> None:
        found = self._newer.get(context)
        if found is not None:
            found.add(token, origin)
            return
        found = self._older.pop(context, None)
        if found is None:
            found = _Followers(token, origin)
        else:
            found.add(token, origin)
        self._newer[context] = found
        if len(self._newer) >= self._half:
            self._older, self._newer = self._newer, {}

    def find(self, context: int) -> _Followers | None:
        return self._newer.get(context) or self._older.get(context)


class DraftStore:
    """Counts which tokens followed which contexts, and drafts the likeliest ones as far as that pays.

    A drafted token costs a token of a pass and `GUESS` of another. Accepted, it saves its row a pass of one token; the
    fixed part of that costs `pass_tokens` tokens and is shared by the R rows. A draft therefore goes on while its
    tokens are all accepted with a probability of at least (1 + GUESS) R / (R + pass_tokens). Nothing is drafted while
    R is above `pass_tokens`: the fixed part is then less than half of a pass.

    If by this reckoning the drafts of a rollout saved less than `LEAST_GAIN`, the next rollouts have none: one, then
    two, then four and so on. Only the last of them is counted, so that nothing is spent on the others. The reckoning
    is one of counts, not of seconds: it gives the same drafts on every machine and in every repetition.

    Args:
        settings: Its bounds.
        pass_tokens: See `SpeculationSettings`, for settings that leave it open.

    >>> store = DraftStore(SpeculationSettings(max_draft=2), 64.0)
    >>> for number in range(4):
    ...     drafts = store.begin(["a"])
    ...     store.note(0, [5, 6, 7])
    >>> store.begin(["b"])
    False
    >>> store.note(0, [5])
    >>> store.propose([0], [9])
    [Draft(tokens=[6, 7], sources=['recent', 'recent'])]
    """

    def __init__(self, settings: SpeculationSettings, pass_tokens: float) -> None:
        self._settings = settings
        self._pass_tokens = pass_tokens if settings.pass_tokens is None else settings.pass_tokens
        self.most_rows = int(self._pass_tokens)
        self._long, self._short, self._of_prompt = (
            _Table(settings.max_contexts // 3, order) for order in (LONG, SHORT, OF_PROMPT)
        )
        self._rollout = 0
        self._rest, self._next_rest = 1, 1  # rollouts without drafts: still to come, and after the next failure
        self._names: list[int] = []
        self._contexts: list[int] = []  # the last tokens of each row

    def begin(self, names: Sequence[str]) -> bool:
        """Forgets the rows of the last rollout; what followed their contexts stays."""
        self._rollout += 1
        self._names = [crc32(name.encode()) << BITS * LONG for name in names]
        self._contexts = [START] * len(names)
        self._every = max(1, len(names) // ENOUGH)
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
        """The share of the cost of a rollout that its drafts saved; guessing and uneven rows cost too."""
        fixed = self._pass_tokens
        without = fixed * (tally.longest - tally.steps) + tally.rest
        passes = fixed * (tally.passes - tally.steps) + tally.fed
        saved = without - (1 + UNEVEN) * passes - GUESS * tally.drafted.total()
        return saved / (fixed * tally.longest + tally.tokens)

    def note(self, row: int, tokens: Sequence[int]) -> None:
        """Counts the tokens as followers of the contexts that they end."""
        context, name, origin = self._contexts[row], self._names[row], (self._rollout, row)
        counts = row % self._every == 0
        for token in tokens:
            if counts:
                self._long.add(context, token, origin)
                self._short.add(context & self._short.mask, token, origin)
                self._of_prompt.add(context & self._of_prompt.mask | name, token, origin)
            context = _followed(context, token)
        self._contexts[row] = context

    def propose(self, rows: Sequence[int], rooms: Sequence[int]) -> list[Draft]:
        """The likeliest tokens of each row, each given the ones before it."""
        least = (1 + GUESS) * len(rows) / (len(rows) + self._pass_tokens)
        self._every = max(1, len(rows) // ENOUGH)
        limits = [min(room, self._settings.max_draft) for room in rooms]
        return [self._draft(row, limit, least) for row, limit in zip(rows, limits, strict=True)]

    def _draft(self, row: int, limit: int, least: float) -> Draft:
        context, chance, tokens, sources = self._contexts[row], 1.0, list[int](), list[str]()
        while len(tokens) < limit:
            best = self._likeliest(row, context)
            if best is None:
                break
            chance *= best[0].probability
            if chance < least:
                break
            token = best[0].likeliest
            tokens.append(token)
            sources.append(self._source(row, *best))
            context = _followed(context, token)
        return Draft(tokens, sources)

    def _likeliest(self, row: int, context: int) -> tuple[_Followers, bool] | None:
        """The followers with the likeliest token, and whether they are of the row's prompt alone."""
        best, of_prompt = self._long.find(context), False
        if best is not None and best.probability >= SURE:
            return best, False
        found = self._of_prompt.find(context & self._of_prompt.mask | self._names[row])
        if found is not None and (best is None or found.probability >= best.probability):
            best, of_prompt = found, True
        found = self._short.find(context & self._short.mask)
        if found is not None and (best is None or found.probability > best.probability):
            best, of_prompt = found, False
        return None if best is None else (best, of_prompt)

    def _source(self, row: int, found: _Followers, of_prompt: bool) -> str:
        rollout, other = found.origin
        if rollout != self._rollout:
            return EARLIER if of_prompt else RECENT
        if other == row:
            return OWN
        return SIBLING if self._names[other] == self._names[row] else RECENT


def _followed(context: int, token: int) -> int:
    """The context after one more token."""
    return (context << BITS | (token + 2) & (1 << BITS) - 1) & _WHOLE


_WHOLE = (1 << BITS * LONG) - 1
