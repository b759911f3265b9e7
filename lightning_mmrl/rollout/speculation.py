"""Samples several tokens of a row in one pass, without changing any of them.

The token at a position is a function of the distribution there and of the position's own noise. The distribution
depends on the tokens before it alone. A pass over drafted tokens therefore yields the next tokens one after the other,
until one differs from its draft: this token is the right one, and what follows it is forgotten. This is speculative
decoding (arXiv:2211.17192) in which the verifying sample is the very one that step-by-step decoding takes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_mmrl.models.decoding import Decoding
from lightning_mmrl.ops.transfer import on_device, on_host
from lightning_mmrl.rollout.drafts import Draft, Drafter, Tally

NO_DRAFT = Draft([], [])

FEW_STATES = 32
"""States whose distributions may always be in memory together: 160 MB for a vocabulary of 151,936 tokens."""

Choose = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Maps states [T, D] and noise [T] to the tokens that they choose and the log-probabilities of these."""


class Sheet(NamedTuple):
    """The results of N rows, which are filled in.

    >>> Sheet(*(torch.zeros(1, 2) for _ in range(4))).noise.shape
    torch.Size([1, 2])
    """

    tokens: Int[Tensor, "N C"]
    logprobs: Float[Tensor, "N C"]
    mask: Bool[Tensor, "N C"]
    noise: Float[Tensor, "N C"]


class Speculation:
    """Fills the rest of a sheet pass by pass; rows that ended leave the batch once they are a quarter of it.

    Args:
        sheet: The results; its first columns may be filled already.
        choose: The sampler.
        drafter: Guesses; its rollout has begun.
        ends: Tokens that end a completion.
        poll: Called before every pass.
    """

    def __init__(
        self, sheet: Sheet, choose: Choose, drafter: Drafter, *, ends: set[int], poll: Callable[[], None]
    ) -> None:
        self._sheet, self._choose, self._drafter = sheet, choose, drafter
        self._ends, self._poll = ends, poll
        self._width = sheet.noise.shape[1]
        self._lengths = sheet.mask.sum(-1).tolist()
        self._pending = [0] * len(sheet.noise)  # the last token of each row, which no pass has seen yet
        self._drafted, self._accepted = list[str](), list[str]()  # the sources of drafted and of right tokens
        self.tally = Tally(steps=max(self._lengths), passes=max(self._lengths))

    def fill(self, decoding: Decoding, rows: list[int], running: list[bool]) -> Tally:
        """Decides tokens until every row has ended; `running` is updated for the `rows` of the batch."""
        for row, (tokens, length) in enumerate(zip(self._sheet.tokens.tolist(), self._lengths, strict=True)):
            self._drafter.note(row, tokens[:length])
        before, drafts, states = sum(self._lengths), [NO_DRAFT] * len(rows), decoding.states
        while any(running):
            self._poll()
            counts, finite = self._decide(rows, drafts, running, states)
            if self.tally.fed:
                decoding.retain(counts, finite=finite)
            self.tally.passes += 1
            if not any(running):
                break
            # A row that kept nothing had a draft that broke the model, and goes on without one.
            careful = [not count for count in counts]
            if 4 * sum(running) <= 3 * len(rows):
                kept = [place for place, runs in enumerate(running) if runs]
                decoding.keep(torch.tensor(kept))
                rows, careful = [rows[place] for place in kept], [careful[place] for place in kept]
                running = [True] * len(kept)
            drafts = self._drafts(rows, running, careful)
            fed = [
                token for row, draft in zip(rows, drafts, strict=True) for token in (self._pending[row], *draft.tokens)
            ]
            widths = [1 + len(draft.tokens) for draft in drafts]
            self.tally.fed += sum(width for width, runs in zip(widths, running, strict=True) if runs)
            states = decoding.extend(on_device(fed, states.device), widths)
        self.tally.drafted, self.tally.accepted = Counter(self._drafted), Counter(self._accepted)
        self.tally.longest, self.tally.tokens = max(self._lengths), sum(self._lengths)
        self.tally.rest = self.tally.tokens - before
        return self.tally

    def _drafts(self, rows: Sequence[int], running: Sequence[bool], careful: Sequence[bool]) -> list[Draft]:
        """A draft for each row that may have one."""
        asking = [place for place, runs in enumerate(running) if runs and not careful[place]]
        rooms = [self._width - self._lengths[rows[place]] - 1 for place in asking]
        drafts = [NO_DRAFT] * len(rows)
        for place, draft in zip(asking, self._drafter.propose([rows[place] for place in asking], rooms), strict=True):
            drafts[place] = draft
        return drafts

    def _decide(
        self, rows: Sequence[int], drafts: Sequence[Draft], running: list[bool], states: Float[Tensor, "T D"]
    ) -> tuple[list[int], bool]:
        """Decides the next tokens of each row, for which the host waits for the device once.

        Returns how many are decided, and whether everything that the model computed is finite: a state that is not
        gives no finite log-probability. Notes in `running` which rows ended.
        """
        sheet, device = self._sheet, states.device
        widths = [1 + len(draft.tokens) for draft in drafts]
        steps = [(row, step) for row, width in zip(rows, widths, strict=True) for step in range(width)]
        at = on_device([[row for row, _ in steps], [self._lengths[row] + step for row, step in steps]], device)
        chosen, values = self._chosen(states, self._noise(at))
        tokens, finite = (tensor.tolist() for tensor in on_host([chosen, values.isfinite()]))
        counts, decided = [], list[int]()
        for place, (row, draft, stop) in enumerate(zip(rows, drafts, accumulate(widths), strict=True)):
            start = stop - widths[place]
            count = self._judge(draft, tokens[start:stop], finite[start:stop]) if running[place] else 0
            counts.append(count)
            decided += range(start, start + count)
            if count:
                running[place] = self._advance(row, tokens[start : start + count], bool(finite[start + count - 1]))
        there = on_device(decided, device)
        found = tuple(at[:, there])
        sheet.tokens[found], sheet.logprobs[found] = chosen[there], values[there].to(sheet.logprobs)
        sheet.mask[found] = True
        return counts, all(finite)

    def _chosen(self, states: Float[Tensor, "T D"], noise: Float[Tensor, " T"]) -> tuple[Tensor, Tensor]:
        """The token after each state, and its log-probability.

        Distributions are as wide as the vocabulary. Those of a few states at a time are in memory together: no more
        than for the first token of all rows, or a small number.
        """
        most = max(len(self._sheet.noise), FEW_STATES)
        parts = [self._choose(*part) for part in zip(states.split(most), noise.split(most), strict=True)]
        if len(parts) == 1:
            return parts[0]
        return torch.cat([chosen for chosen, _ in parts]), torch.cat([values for _, values in parts])

    def _noise(self, at: Int[Tensor, "2 T"]) -> Float[Tensor, " T"]:
        """The noise of each place; a row that ended may have none left, and what is chosen for it is not used."""
        return self._sheet.noise[at[0], at[1].clamp(max=self._width - 1)]

    def _judge(self, draft: Draft, tokens: Sequence[int], finite: Sequence[bool]) -> int:
        """How many of the chosen tokens are decided: up to the first that ends the row or differs from the draft.

        None are if the distribution of one of them is not finite and there is a draft, which may be the reason.
        """
        count, right, drafted = 0, 0, len(draft.tokens)
        for count, token in enumerate(tokens, 1):
            if right < drafted and token == draft.tokens[right]:
                right += 1
            else:
                drafted = 0
            if not drafted or token in self._ends or not finite[count - 1]:
                break
        self._drafted += draft.sources
        if draft.tokens and not all(finite[:count]):
            return 0
        self._accepted += draft.sources[:right]
        return count

    def _advance(self, row: int, tokens: Sequence[int], finite: bool) -> bool:
        """Notes the next tokens of a row; returns whether it goes on."""
        self._drafter.note(row, tokens)
        self._lengths[row] += len(tokens)
        self._pending[row] = tokens[-1]
        return finite and tokens[-1] not in self._ends and self._lengths[row] < self._width
