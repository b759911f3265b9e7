"""An engine that replays given answers, for tests and for scoring answers from elsewhere."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from lightning_mmrl.types.batches import PromptBatch, Rollout
from lightning_mmrl.types.records import Completion


class ScriptedEngine:
    """Answers every prompt with the texts that `script` gives for it; sampler log-probabilities are zero.

    Args:
        script: Maps a sample id to the texts of its completions, of which the first `group_size` are used.
        encode: Turns a text into token ids that end with the end-of-sequence token.
        pad_token_id: Token that fills shorter rows.
    """

    reads_features = True

    def __init__(
        self, script: Mapping[str, Sequence[str]], *, encode: Callable[[str], list[int]], pad_token_id: int
    ) -> None:
        self.version = 0
        self._script = script
        self._encode = encode
        self._pad = pad_token_id

    def load_weights(self, policy: nn.Module, version: int) -> None:
        """Notes the version."""
        self.version = version

    def sleep(self) -> None:
        """Does nothing, because there is no device memory to give back."""

    def close(self) -> None:
        """Does nothing, because there is nothing to free."""

    def generate(
        self,
        prompts: PromptBatch,
        *,
        group_size: int,
        seeds: Sequence[Sequence[int]],
        greedy: bool = False,
        max_new_tokens: int | None = None,
    ) -> Rollout:
        """The scripted completions of each prompt, in order and at full length."""
        texts = [text for sample in prompts.samples for text in self._script[sample.id][:group_size]]
        rows = [self._encode(text) for text in texts]
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [self._pad] * (width - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return Rollout(
            completion_ids=ids,
            completion_mask=torch.arange(width) < lengths[:, None],
            sampler_logprobs=torch.zeros(ids.shape),
            completions=tuple(
                Completion(text=text, num_tokens=len(row), truncated=False)
                for text, row in zip(texts, rows, strict=True)
            ),
            group_size=group_size,
            policy_version=torch.full((len(ids),), self.version),
        )
