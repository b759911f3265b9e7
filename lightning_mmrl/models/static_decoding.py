"""Decoding in steps that find their tensors where they were, so that CUDA can replay one (`rollout.cuda_graphs`).

A step has the shapes of its bucket: a number of rows and a room for each row's own tokens. Hidden columns of the room
get a weight of exactly zero. Rows that have ended fill a bucket up, and what is sampled for them counts nothing. Rows
start at N and are halved as they end, the room starts at `OWN_TOKENS` and doubles. A decoding of C tokens thus passes
through at most 1 + log2(N / FEWEST_ROWS) + log2(C / OWN_TOKENS) buckets, rounded up, and never returns to one.

The graphs live as long as the decoding. Prompts of other lengths would need graphs over padded prompts, for which half
precision has no fast kernel; and between rollouts the memory belongs to training.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_mmrl.models.captured import CapturedStep
from lightning_mmrl.models.decode_cache import Bucket, PromptKeys, room_for
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.prefill import prefill
from lightning_mmrl.models.shared_prefix import layout_arguments
from lightning_mmrl.ops.decode_attention import attend_in_parts, attend_padded, is_half
from lightning_mmrl.ops.tiled_attention import PartialAttention, merge
from lightning_mmrl.types.batches import PromptBatch

FEWEST_ROWS = 8
"""Rows below which a batch is not halved: a step over fewer rows takes as long, since it reads all weights."""


class StaticDecoding:
    """Token-by-token decoding of N = B * G rows by a step that a device can replay; implements `Decoding`.

    Attributes:
        states: The state that predicts the next token of each row [R, D]; a step writes over it.
    """

    def __init__(self, policy: Policy, prompts: PromptBatch, group_size: int, *, max_tokens: int | None = None) -> None:
        self._policy = policy
        states, buckets = prefill(policy, prompts)
        self._cache = StaticCache(
            buckets, [prompt for prompt in range(len(states)) for _ in range(group_size)], max_tokens=max_tokens
        )
        self._position = prompts.next_position.repeat_interleave(group_size)
        self._tokens = torch.zeros_like(self._position)
        self.states = states.repeat_interleave(group_size, dim=0)
        self._step = CapturedStep(states.device)

    def advance(self, tokens: Int[Tensor, " R"]) -> None:
        """Appends one token to each row."""
        if self._cache.make_room():
            self._step.moved()
        self._tokens.copy_(tokens)
        self._step.run(self._compute)
        self._cache.num_own += 1

    def _compute(self) -> None:
        """One decoder pass over the tokens; everything that it reads and writes is an attribute."""
        self._cache.begin_step()
        positions = self._position.expand(3, 1, -1)
        attention = layout_arguments(self._cache, self._tokens.device)
        self.states.copy_(self._policy.text_states(self._tokens[None], positions, attention=attention)[0])
        self._position.add_(1)
        self._cache.end_step()

    def extend(self, tokens: Int[Tensor, " T"], widths: Sequence[int]) -> Float[Tensor, "T D"]:
        """Is not possible: the number of drafts decides the shapes of a pass."""
        raise NotImplementedError("start the decoding with drafts")

    def retain(self, counts: Sequence[int], *, finite: bool) -> None:
        """Has nothing to keep or forget."""
        raise NotImplementedError("start the decoding with drafts")

    def smaller(self, running: Sequence[int]) -> list[int] | None:
        """Half of the rows, or a half of these, and so on, as long as all running ones are among them."""
        rows, size = len(self.states), len(self.states)
        while size > FEWEST_ROWS and 2 * len(running) <= size:
            size = (size + 1) // 2
        if size == rows:
            return None
        ended = sorted(set(range(rows)) - set(running))
        return sorted([*running, *ended[: size - len(running)]])

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Continues with some of the rows, in a bucket of their number."""
        there = rows.to(self.states.device, non_blocking=True)
        self._cache.keep(rows.tolist(), there)
        self._position, self._tokens, self.states = (
            tensor.index_select(0, there) for tensor in (self._position, self._tokens, self.states)
        )
        self._step.moved()


class StaticCache:
    """Keys and values of prompts and of rows' own tokens; the device counts the own tokens.

    Args:
        buckets: The prompts.
        owner: The prompt of each row.
        max_tokens: Own tokens that a row gets at most, if it is known.

    Attributes:
        num_own: Own tokens of each row, as the host counts them.
    """

    def __init__(self, buckets: list[Bucket], owner: Sequence[int], *, max_tokens: int | None) -> None:
        self._max_tokens, self.num_own = max_tokens, 0
        self._prompts, self._num_rows = PromptKeys(buckets, owner), len(owner)
        like = buckets[0].layers[0]
        shape = 2, self._num_rows, like.shape[2], room_for(1, max_tokens), like.shape[4]
        self._own = [like.new_zeros(shape) for _ in buckets[0].layers]  # [2, R, K, C, d] by layer
        self._column = torch.zeros(1, dtype=torch.long, device=like.device)  # where the next keys go
        self._num_common = 0  # columns that all steps of this room see
        self._prompts.arrange([1] * self._num_rows, like.device)

    def make_room(self) -> bool:
        """Makes room for one more token of each row, and says whether tensors have moved."""
        room = self._own[0].shape[3]
        if self.num_own < room:
            return False
        more, self._num_common = room_for(self.num_own + 1, self._max_tokens) - room, self.num_own
        for number, own in enumerate(self._own):  # one after the other, so that memory holds one twice
            self._own[number] = torch.nn.functional.pad(own, (0, 0, 0, more))
        return True

    def begin_step(self) -> None:
        """Shows the column of the new token."""
        columns = torch.arange(self._own[0].shape[3], device=self._column.device)
        precision = torch.promote_types(self._own[0].dtype, torch.float32)
        shown = torch.zeros(columns.shape, dtype=precision, device=columns.device)
        self._bias = shown.masked_fill(columns > self._column, -torch.inf).expand(self._num_rows, 1, 1, -1)

    def end_step(self) -> None:
        """Counts the new token."""
        self._column.add_(1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Float[Tensor, "R H d"]:
        """Attention of each new token to its row's own tokens up to itself, and to the row's prompt."""
        own = self._own[layer]
        own.index_copy_(3, self._column, torch.stack([key, value]).unsqueeze(3))
        blocks = query.unsqueeze(2)
        if is_half(query.dtype):
            common, rest = own.tensor_split([self._num_common], dim=3)
            part = attend_in_parts(blocks, common, rest, self._bias[..., self._num_common :], scale)
        else:
            part = attend_padded(blocks, own[0], own[1], self._bias, scale)
        to_own = PartialAttention(part.output.squeeze(2), part.logsumexp.squeeze(2))
        return merge(to_own, self._prompts.attend(layer, query, scale)).output.to(query.dtype)

    def keep(self, rows: list[int], there: Int[Tensor, " K"]) -> None:
        """Continues with some of the rows, given on host and device."""
        self._num_rows = len(rows)
        self._own = [own.index_select(1, there) for own in self._own]
        self._prompts.keep(rows)
        self._prompts.arrange([1] * len(rows), there.device)
