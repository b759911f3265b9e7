"""Samples rollouts with the policy's own weights; the G completions of a prompt share the cache of one prefill."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_mmrl.models.decoding import Decoding, start_decoding
from lightning_mmrl.models.parallelize import whole
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.rollout.sampling import nucleus, refuse_broken, sample_tokens, uniform_noise
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.types.batches import PromptBatch, Rollout
from lightning_mmrl.types.records import Completion


class HFEngine:
    """Samples with the policy itself, so no weights are pushed, and `load_weights` only notes the version.

    Args:
        policy: The policy to sample from.
        decode: Turns token ids into text, without special tokens.
        eos_token_ids: Tokens that end a completion; the one that ends it counts as its last token.
        pad_token_id: Token that fills rows after their end.
        sampling: Maximum length, at which a completion without an end is truncated, and top-p; the temperature is the
            policy's. With a top-p below 1 `sampler_logprobs` are renormalized over the remaining tokens, so a policy
            gradient on such rollouts needs a correction.
        template: Gives the opening of the assistant turn, which is part of the prompt; rewards see it before the text.
        poll: Called before every token; an error that it raises ends the rollout.

    Raises:
        ConfigError: A number is out of range.
    """

    reads_features = True

    def __init__(
        self,
        policy: Policy,
        *,
        decode: Callable[[Sequence[int]], str],
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        sampling: SamplingSettings,
        template: PromptTemplate | None = None,
        poll: Callable[[], None] = lambda: None,
    ) -> None:
        check_rules(sampling, "sampling")
        self.policy = policy
        self.version = 0
        self._decode = decode
        self._eos = torch.tensor(list(eos_token_ids))
        self._pad = pad_token_id
        self._sampling = sampling
        self._template = template or PromptTemplate()
        self._poll = poll

    @classmethod
    def of(cls, policy: Policy, *, encoder: PromptEncoder, **settings: Any) -> "HFEngine":
        """An engine that ends, pads and decodes completions like an encoder; `settings` are further arguments."""
        return cls(
            policy,
            decode=encoder.decode,
            eos_token_ids=encoder.eos_token_ids,
            pad_token_id=encoder.pad_token_id,
            **settings,
        )

    def load_weights(self, policy: nn.Module, version: int) -> None:
        """Notes the version; the weights are already the policy's."""
        self.version = version

    def sleep(self) -> None:
        """Does nothing, because the engine holds no device memory itself."""

    def close(self) -> None:
        """Does nothing, because the engine does not own the policy."""

    @torch.no_grad()
    def generate(
        self,
        prompts: PromptBatch,
        *,
        group_size: int,
        seeds: Sequence[Sequence[int]],
        greedy: bool = False,
        max_new_tokens: int | None = None,
    ) -> Rollout:
        """Samples N = B * G completions; the prompt and its media are computed once for each of the B prompts.

        A row whose distribution is not finite ends there, with NaN for its log-probability; the stage then decides
        together with all ranks.

        Raises:
            RolloutError: The distribution of a greedy row is not finite.
        """
        training = self.policy.training
        self.policy.eval()
        limit = self._sampling.max_new_tokens if max_new_tokens is None else max_new_tokens
        noise = uniform_noise([seed for group in seeds for seed in group], limit)
        try:
            tokens, logprobs, mask = self.policy.enter(partial(self._decode_all, prompts, group_size, noise, greedy))
        finally:
            self.policy.train(training)
        if greedy:
            refuse_broken(logprobs, prompts, group_size)
        eos, completions = set(self._eos.tolist()), []
        for row, length in zip(tokens.tolist(), mask.sum(-1).tolist(), strict=True):
            ids = row[:length]
            text = self._template.complete(self._decode(ids))
            completions.append(Completion(text=text, num_tokens=length, truncated=ids[-1] not in eos))
        return Rollout(
            completion_ids=tokens,
            completion_mask=mask,
            sampler_logprobs=logprobs,
            completions=tuple(completions),
            group_size=group_size,
            policy_version=torch.full((len(tokens),), self.version, device=tokens.device),
        )

    def _decode_all(
        self, prompts: PromptBatch, group_size: int, noise: Float[Tensor, "N C"], greedy: bool
    ) -> tuple[Int[Tensor, "N C"], Float[Tensor, "N C"], Bool[Tensor, "N C"]]:
        """Prefills and samples until every row has ended, at this rank's own pace."""
        noise = noise.to(prompts.input_ids.device)
        with whole(self.policy):
            decoding = start_decoding(self.policy, prompts, group_size)
            tokens = torch.full(noise.shape, self._pad, device=noise.device)
            mask = torch.zeros(noise.shape, dtype=torch.bool, device=noise.device)
            logprobs = torch.zeros_like(noise, dtype=torch.promote_types(decoding.states.dtype, torch.float32))
            # The results are allocated outside of inference mode, because a loss may save them for its backward pass.
            with torch.inference_mode():
                self._fill(tokens, logprobs, mask, decoding, noise, greedy)
        width = int(mask.any(0).sum())
        return tokens[:, :width], logprobs[:, :width], mask[:, :width]

    def _fill(
        self,
        tokens: Int[Tensor, "N C"],
        logprobs: Float[Tensor, "N C"],
        mask: Bool[Tensor, "N C"],
        decoding: Decoding,
        noise: Float[Tensor, "N C"],
        greedy: bool,
    ) -> None:
        """Samples token by token; rows that ended leave the batch once they are a quarter of it."""
        eos = self._eos.to(noise.device)
        rows = torch.arange(len(noise), device=noise.device)
        running = torch.ones_like(rows, dtype=torch.bool)
        num_steps = noise.shape[1]
        for step in range(num_steps):
            self._poll()
            distribution = self.policy.next_logprobs(decoding.states)
            if self._sampling.top_p < 1 and not greedy:
                distribution = nucleus(distribution, self._sampling.top_p).log_softmax(-1)
            chosen = distribution.argmax(-1) if greedy else sample_tokens(distribution, noise[rows, step])
            values = distribution.gather(-1, chosen[:, None]).squeeze(-1)
            tokens[rows, step] = chosen.where(running, self._pad)
            logprobs[rows, step], mask[rows, step] = values.where(running, 0.0), running
            running = running & (chosen[:, None] != eos).all(-1) & values.isfinite()
            num_running = int(running.sum())
            if num_running == 0 or step + 1 == num_steps:
                break
            if 4 * num_running <= 3 * len(rows):
                kept = running.nonzero().flatten()
                decoding.keep(kept)
                rows, chosen, running = rows[kept], chosen[kept], running[kept]
            decoding.advance(chosen)
