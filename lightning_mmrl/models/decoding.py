"""Token-by-token decoding of N = B * G rows over B prompts; each prompt is computed once.

`SharedDecoding` also keeps it once, and so does `StaticDecoding`, whose steps can be replayed. `StockDecoding`, for
models whose completions cannot share a prompt, copies it.
"""

from collections.abc import Sequence
from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from lightning_mmrl.models.decode_cache import SharedCache
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.prefill import prefill
from lightning_mmrl.models.shared_prefix import layout_arguments
from lightning_mmrl.models.spans import Spans, last_kept, spans_of
from lightning_mmrl.models.static_decoding import StaticDecoding
from lightning_mmrl.models.stock_decoding import StockDecoding, running_alone
from lightning_mmrl.types.batches import PromptBatch


class Decoding(Protocol):
    """Rows that are decoded together; rows that ended can be left out.

    `extend` appends several tokens to each row, some of them drafts, and `retain` then forgets those that are wrong.
    """

    @property
    def states(self) -> Float[Tensor, "R D"]:
        """The state that predicts the next token of each row."""
        ...

    def advance(self, tokens: Int[Tensor, " R"]) -> None:
        """Appends one token to each row."""
        ...

    def extend(self, tokens: Int[Tensor, " T"], widths: Sequence[int]) -> Float[Tensor, "T D"]:
        """Appends `widths[r]` tokens, one at least, to each row r in one pass; returns the state after each token.

        Tokens and states lie row by row. `retain` must follow.
        """
        ...

    def retain(self, counts: Sequence[int], *, finite: bool) -> None:
        """Keeps the first `counts[r]` tokens that `extend` appended to row r; the others leave no trace.

        `finite` is False if one of the states that `extend` returned is not finite.
        """
        ...

    def smaller(self, running: Sequence[int]) -> list[int] | None:
        """The rows to keep while `running` go on, all of these among them; None: it does not pay to drop any."""
        ...

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Continues with some of the rows, in the given order; `rows` are on the host."""
        ...


def start_decoding(
    policy: Policy,
    prompts: PromptBatch,
    group_size: int,
    *,
    drafts: bool = False,
    static: bool = False,
    max_tokens: int | None = None,
) -> Decoding:
    """Prefills each of B prompts once, for G rows per prompt in prompt order; call it without gradients.

    Only with `drafts` may rows be extended by several tokens. `static` steps can be replayed; they take no drafts, and
    prompts must be shared. No row gets more than `max_tokens`, if it is given.
    """
    if static:
        assert policy.sharing_refusal is None, policy.sharing_refusal
        assert not drafts, "the number of drafts decides the shapes of a pass"
        return StaticDecoding(policy, prompts, group_size, max_tokens=max_tokens)
    if policy.sharing_refusal is None:
        return SharedDecoding(policy, prompts, group_size, drafts=drafts, max_tokens=max_tokens)
    return StockDecoding(policy, prompts, group_size, drafts=drafts)


class SharedDecoding:
    """Decoding on one packed row per step: no padding, and each prompt's keys are read once for all its rows."""

    def __init__(
        self,
        policy: Policy,
        prompts: PromptBatch,
        group_size: int,
        *,
        drafts: bool = False,
        max_tokens: int | None = None,
    ) -> None:
        self._policy = policy
        states, buckets = prefill(policy, prompts)
        self._cache = SharedCache(buckets, len(states), group_size, drafts=drafts, max_tokens=max_tokens)
        self._spans: Spans | None = None
        self._position = prompts.next_position.repeat_interleave(group_size)
        self.states = states.repeat_interleave(group_size, dim=0)

    def advance(self, tokens: Int[Tensor, " R"]) -> None:
        """Appends one token to each row, in one decoder pass over R tokens."""
        widths = [1] * len(tokens)
        self.states = self.extend(tokens, widths)
        self._position = self._position + 1
        self._cache.retain(widths)

    def extend(self, tokens: Int[Tensor, " T"], widths: Sequence[int]) -> Float[Tensor, "T D"]:
        """Appends several tokens to each row, in one decoder pass over T tokens; rows need no padding."""
        spans = self._spans = spans_of(widths, self._spans, tokens.device)
        self._cache.begin_step(spans)
        positions = spans.positions(self._position).expand(3, 1, -1)
        attention = layout_arguments(self._cache, tokens.device)
        self._appended = self._policy.text_states(tokens[None], positions, attention=attention)[0]
        return self._appended

    def retain(self, counts: Sequence[int], *, finite: bool) -> None:
        """Keeps the first of the appended tokens; the keys of the others are overwritten later."""
        assert self._spans is not None
        self.states, kept = last_kept(self.states, self._appended, self._spans, counts)
        self._position = self._position + kept
        self._cache.retain(counts, finite=finite)

    def smaller(self, running: Sequence[int]) -> list[int] | None:
        """The running rows alone, once a quarter has ended."""
        return running_alone(running, len(self.states))

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Drops the own keys of rows that ended, and prompts that no row needs."""
        there = rows.to(self.states.device, non_blocking=True)
        self._cache.keep(rows.tolist(), there)
        self._position, self.states = self._position[there], self.states[there]
