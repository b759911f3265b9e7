"""Token-by-token decoding through transformers' cache, for models whose completions cannot share a prompt."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.models.spans import Spans, last_kept, spans_of
from lightning_mmrl.types.batches import PromptBatch


class StockDecoding:
    """Decoding through transformers' cache, for models that cannot share prompts exactly: prefill once, then copies."""

    def __init__(self, policy: Policy, prompts: PromptBatch, group_size: int, *, drafts: bool = False) -> None:
        self._policy = policy
        # Without a configuration, sliding-window layers too keep every token: those after a wrong draft need them.
        self._cache = DynamicCache() if drafts else DynamicCache(config=policy.text_config)
        mask = prompts.prompt_mask.long()
        states = policy.text_states(
            prompts.input_ids,
            prompts.position_ids,
            features=policy.media.features(prompts),
            in_prompt=prompts.prompt_mask,
            attention={"attention_mask": mask, "past_key_values": self._cache, "use_cache": True},
        )[:, -1]
        self._cache.batch_repeat_interleave(group_size)
        self._mask = mask.repeat_interleave(group_size, dim=0)
        self._spans: Spans | None = None
        self._position = prompts.next_position.repeat_interleave(group_size)
        self.states = states.repeat_interleave(group_size, dim=0)

    def advance(self, tokens: Int[Tensor, " R"]) -> None:
        """Appends one token to each row, in one decoder pass over R rows of one token."""
        self.states = self.extend(tokens, [1] * len(tokens))
        self._position = self._position + 1

    def extend(self, tokens: Int[Tensor, " T"], widths: Sequence[int]) -> Float[Tensor, "T D"]:
        """Appends several tokens to each row, in one decoder pass; rows with fewer new tokens are padded."""
        spans = self._spans = spans_of(widths, self._spans, tokens.device)
        self._mask = torch.cat([self._mask, spans.present.to(self._mask)], dim=1)
        positions = spans.blocks(spans.positions(self._position)).expand(3, -1, -1)
        attention = {"attention_mask": self._mask, "past_key_values": self._cache, "use_cache": True}
        hidden = self._policy.text_states(spans.blocks(tokens), positions, attention=attention)
        self._appended = spans.tokens(hidden)
        return self._appended

    def retain(self, counts: Sequence[int], *, finite: bool) -> None:
        """Keeps the first of the appended tokens, and moves the rows so that their last tokens stand side by side."""
        assert self._spans is not None
        spans, states = self._spans, self._appended
        self.states, kept = last_kept(self.states, states, spans, counts)
        self._position = self._position + kept
        if set(counts) == {spans.width}:
            return
        end = self._mask.shape[1] - spans.width + kept
        columns = torch.arange(self._mask.shape[1], device=states.device)
        mask = self._mask * (columns < end[:, None])
        width = int(mask.sum(-1).max())
        source = end[:, None] + columns[:width] - width
        self._mask = mask.gather(1, source.clamp(min=0)) * (source >= 0)
        rows, source = torch.arange(len(end), device=states.device)[:, None], source.clamp(min=0)
        for layer in self._cache.layers:
            for name in ("keys", "values"):
                moved = getattr(layer, name).transpose(1, 2)[rows, source].transpose(1, 2)
                setattr(layer, name, moved)

    def smaller(self, running: Sequence[int]) -> list[int] | None:
        """The running rows alone, once a quarter has ended."""
        return running_alone(running, len(self.states))

    def keep(self, rows: Int[Tensor, " K"]) -> None:
        """Drops rows that ended from the cache."""
        rows = rows.to(self.states.device, non_blocking=True)
        self._cache.batch_select_indices(rows)
        self._mask, self._position, self.states = self._mask[rows], self._position[rows], self.states[rows]


def running_alone(running: Sequence[int], num_rows: int) -> list[int] | None:
    """The rows that go on, or None while more than three quarters do: then dropping the others does not pay.

    >>> running_alone([0, 2, 3], 4), running_alone([0, 1, 2, 3], 5)
    ([0, 2, 3], None)
    """
    return list(running) if 4 * len(running) <= 3 * num_rows else None
