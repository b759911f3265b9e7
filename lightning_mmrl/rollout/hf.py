"""Rollouts on the policy's own weights: one prefill per prompt, its cache shared by G completions."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rollout.sampling import sample_tokens, uniform_noise
from lightning_mmrl.types.batches import PromptBatch, Rollout
from lightning_mmrl.types.records import Completion


class HFEngine:
    """Samples with a policy in this process; there is nothing to push, `load_weights` only counts versions.

    Args:
        policy: The policy to sample from.
        decode: Turns token ids into text, without special tokens.
        eos_token_ids: Any of them ends a completion and counts as its last token.
        pad_token_id: Fills rows after their end.
        max_new_tokens: Longest completion; one that reaches it without an end is truncated.
        prefill: Opening of the assistant turn that the prompt already holds; prepended to the text that rewards see.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        decode: Callable[[Sequence[int]], str],
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        max_new_tokens: int,
        prefill: str = "",
    ) -> None:
        self.policy = policy
        self.version = 0
        self._decode = decode
        self._eos = torch.tensor(list(eos_token_ids))
        self._pad = pad_token_id
        self._max_new_tokens = max_new_tokens
        self._prefill = prefill

    def load_weights(self, policy: nn.Module, version: int) -> Mapping[str, float]:
        """Notes the version; the weights are the policy's own."""
        self.version = version
        return {"pushed_tensors": 0.0}

    @torch.no_grad()
    def generate(
        self, prompts: PromptBatch, *, group_size: int, seeds: Sequence[Sequence[int]], greedy: bool = False
    ) -> Rollout:
        """Samples N = B * G completions; the prompt and its media are computed once for each of the B prompts."""
        training = self.policy.training
        self.policy.eval()
        try:
            noise = uniform_noise([seed for group in seeds for seed in group], self._max_new_tokens)
            state = _Decoding(self.policy, prompts, group_size)
            tokens, logprobs, mask = self._decode_loop(state, noise.to(prompts.input_ids.device), greedy)
        finally:
            self.policy.train(training)
        return Rollout(
            completion_ids=tokens,
            completion_mask=mask,
            sampler_logprobs=logprobs,
            completions=self._completions(tokens, mask),
            group_size=group_size,
            policy_version=self.version,
        )

    def _decode_loop(
        self, state: "_Decoding", noise: Float[Tensor, "N C"], greedy: bool
    ) -> tuple[Int[Tensor, "N C"], Float[Tensor, "N C"], Bool[Tensor, "N C"]]:
        eos = self._eos.to(noise.device)
        running = torch.ones(len(noise), dtype=torch.bool, device=noise.device)
        columns: list[tuple[Tensor, Tensor, Tensor]] = []
        for step in range(self._max_new_tokens):
            distribution = state.next_logprobs()
            tokens = distribution.argmax(-1) if greedy else sample_tokens(distribution, noise[:, step])
            chosen = distribution.gather(-1, tokens[:, None]).squeeze(-1)
            columns.append((tokens.where(running, self._pad), chosen.where(running, 0.0), running))
            running = running & ~torch.isin(tokens, eos)
            if not running.any() or step + 1 == self._max_new_tokens:
                break
            state.advance(columns[-1][0])
        tokens, logprobs, mask = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
        return tokens, logprobs, mask

    def _completions(self, tokens: Int[Tensor, "N C"], mask: Bool[Tensor, "N C"]) -> tuple[Completion, ...]:
        eos = set(self._eos.tolist())
        completions = []
        for row, length in zip(tokens.tolist(), mask.sum(-1).tolist(), strict=True):
            ids = row[:length]
            text = self._prefill + self._decode(ids)
            completions.append(Completion(text=text, num_tokens=length, truncated=ids[-1] not in eos))
        return tuple(completions)


class _Decoding:
    """The cache and positions of N rows while they are decoded together."""

    def __init__(self, policy: Policy, prompts: PromptBatch, group_size: int) -> None:
        self._policy = policy
        cache = policy.new_cache()
        embeddings, mask = policy.prompt_embeddings(prompts), prompts.prompt_mask.long()
        hidden = policy.hidden_states(embeddings, mask, prompts.position_ids, cache)[:, -1]
        cache.batch_repeat_interleave(group_size)
        self._cache = cache
        self._hidden = hidden.repeat_interleave(group_size, dim=0)
        self._mask = mask.repeat_interleave(group_size, dim=0)
        self._position = prompts.next_position.repeat_interleave(group_size)

    def next_logprobs(self) -> Float[Tensor, "N V"]:
        return self._policy.next_logprobs(self._hidden)

    def advance(self, tokens: Int[Tensor, " N"]) -> None:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
        embeddings = self._policy.text_embeddings(tokens[:, None])
        positions = self._position[None, :, None].expand(3, -1, -1)
        self._hidden = self._policy.hidden_states(embeddings, self._mask, positions, self._cache)[:, -1]
        self._position = self._position + 1
