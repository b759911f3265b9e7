"""Rollouts on the policy's own weights: one prefill per prompt, its cache shared by G completions."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_mmrl.models.decoding import Decoding, start_decoding
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
            decoding = start_decoding(self.policy, prompts, group_size)
            tokens, logprobs, mask = self._decode_loop(decoding, noise.to(prompts.input_ids.device), greedy)
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
        self, decoding: Decoding, noise: Float[Tensor, "N C"], greedy: bool
    ) -> tuple[Int[Tensor, "N C"], Float[Tensor, "N C"], Bool[Tensor, "N C"]]:
        """Samples until every row has ended; rows that ended leave the batch once they are a quarter of it."""
        eos = self._eos.to(noise.device)
        rows = torch.arange(len(noise), device=noise.device)
        running = torch.ones_like(rows, dtype=torch.bool)
        tokens = torch.full(noise.shape, self._pad, device=noise.device)
        logprobs = noise.new_zeros(noise.shape, dtype=torch.float32)
        mask = torch.zeros(noise.shape, dtype=torch.bool, device=noise.device)
        for step in range(self._max_new_tokens):
            distribution = self.policy.next_logprobs(decoding.states)
            chosen = distribution.argmax(-1) if greedy else sample_tokens(distribution, noise[rows, step])
            values = distribution.gather(-1, chosen[:, None]).squeeze(-1)
            logprobs = logprobs.to(values.dtype)
            live = rows[running]
            tokens[live, step], logprobs[live, step], mask[live, step] = chosen[running], values[running], True
            running = running & ~torch.isin(chosen, eos)
            num_running = int(running.sum())
            if num_running == 0 or step + 1 == self._max_new_tokens:
                break
            if 4 * num_running <= 3 * len(rows):
                decoding.keep(running.nonzero().flatten())
                rows, chosen, running = rows[running], chosen[running], running[running]
            decoding.advance(chosen)
        width = int(mask.any(0).sum())
        return tokens[:, :width], logprobs[:, :width], mask[:, :width]

    def _completions(self, tokens: Int[Tensor, "N C"], mask: Bool[Tensor, "N C"]) -> tuple[Completion, ...]:
        eos = set(self._eos.tolist())
        completions = []
        for row, length in zip(tokens.tolist(), mask.sum(-1).tolist(), strict=True):
            ids = row[:length]
            text = self._prefill + self._decode(ids)
            completions.append(Completion(text=text, num_tokens=length, truncated=ids[-1] not in eos))
        return tuple(completions)
