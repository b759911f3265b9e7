"""Rollouts with vLLM, which has a copy of the policy's weights that is checked against the policy.

vLLM gets the same inputs as the trainer's towers: token ids and media from the family's encoder, with the places of
their placeholders. Nothing is decoded, resized or tokenized a second time, so only the model itself can differ, and
`rollout.canary` compares it.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import cast

import torch
import torch.distributed as dist
from torch import nn

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.rollout.canary import Canary, Comparison
from lightning_mmrl.rollout.engine_inputs import engine_prompts
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.rollout.sampling import refuse_broken
from lightning_mmrl.rollout.vllm.host import Host, Sampled, SamplingRequest
from lightning_mmrl.rollout.vllm.process import ProcessHost
from lightning_mmrl.rollout.vllm.settings import VLLMSettings
from lightning_mmrl.rollout.weights import PolicyWeights
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.types.batches import PromptBatch, Rollout
from lightning_mmrl.types.records import Completion

_log = logging.getLogger(__name__)


class VLLMEngine:
    """Samples with vLLM in this process or on a server; the first push loads the model or connects to the server.

    Args:
        policy: The policy whose weights are pushed, at the latest before the first sampling.
        encoder: The encoder of the policy's family, which made the prompts.
        sampling: Maximum length, at which a completion without an end is truncated. Top-p must be 1, since vLLM would
            give log-probabilities that are renormalized over the remaining tokens.
        template: Gives the opening of the assistant turn, which is part of the prompt; rewards see it before the text.
        poll: Called repeatedly while vLLM samples; an error that it raises ends the rollout.
        settings: Where vLLM runs, and how it shares its device.
        canary: Compares the engine with the policy; None: never.

    Raises:
        ValueError: `top_p` is not 1.
    """

    reads_features = False

    def __init__(
        self,
        policy: Policy,
        *,
        encoder: PromptEncoder,
        sampling: SamplingSettings,
        template: PromptTemplate | None = None,
        poll: Callable[[], None] = lambda: None,
        settings: VLLMSettings | None = None,
        canary: Canary | None = None,
    ) -> None:
        if sampling.top_p != 1:
            raise ValueError(f"top_p is {sampling.top_p}; with vLLM it must be 1, which keeps all tokens")
        self.policy = policy
        self.version: int | None = None
        self._encoder = encoder
        self._sampling = sampling
        self._template = template or PromptTemplate()
        self._poll = poll
        self._canary = canary
        self._trainer = HFEngine.of(policy, encoder=encoder, sampling=sampling, poll=poll)
        self._settings = settings or VLLMSettings()
        self._num_pushes, self._proven_restores = 0, 0
        self._push_is_unproven, self._num_doubts = False, 0

    @cached_property
    def _host(self) -> Host:
        """Created at the first push: vLLM needs all ranks at once, and rank 0 builds stages before the others."""
        if self._settings.server is None:
            return ProcessHost(self.policy, self._encoder, self._settings)
        from lightning_mmrl.rollout.vllm.server import ServerHost  # its HTTP library comes with vllm

        return ServerHost(self._settings.server, self._encoder)

    def sleep(self) -> None:
        """Gives device memory back until the next push or rollout; a CPU and a server keep theirs."""
        if "_host" in vars(self):
            self._host.sleep()

    def close(self) -> None:
        """Frees the engine's memory, or leaves the server."""
        if "_host" in vars(self):
            self._host.close()

    def load_weights(self, policy: nn.Module, version: int) -> None:
        """Streams the policy's weights to vLLM, one tensor at a time, empties its caches, and arms the canary.

        Raises:
            RolloutError: vllm is not installed, its model cannot be loaded, or no server answers. Or a weight is
                missing, unknown to vLLM's model or of another shape there; then the engine cannot be used any more.
        """
        self._host.push(PolicyWeights(cast(Policy, policy), self._encoder.engine_prefix), version)
        self.version = version
        self._num_pushes += 1
        due = self._canary is not None and self._canary.due(self._num_pushes)
        self._push_is_unproven = due or self._num_doubts > 0

    def generate(
        self,
        prompts: PromptBatch,
        *,
        group_size: int,
        seeds: Sequence[Sequence[int]],
        greedy: bool = False,
        max_new_tokens: int | None = None,
    ) -> Rollout:
        """Samples N = B * G completions; each prompt's media enter vLLM's towers once.

        Greedy rows have no noise and no temperature: if the policy's temperature is not 1, their log-probabilities are
        NaN. In other rows a log-probability that is not finite stays as it is, and the stage decides with all ranks.

        Raises:
            RolloutError: The engine does not sample from the policy, vLLM fails, or a greedy row is not finite.
        """
        if self.version is None:
            self.load_weights(self.policy, 0)
        limit = self._sampling.max_new_tokens if max_new_tokens is None else max_new_tokens
        rows = [(None,) * group_size if greedy else tuple(group[:group_size]) for group in seeds]
        sampled = self._proven_samples(prompts, self._requests(prompts, rows, max_tokens=limit))
        rollout = self._rollout([row for group in sampled for row in group], prompts, group_size)
        if greedy:
            refuse_broken(rollout.sampler_logprobs, prompts, group_size)
        if greedy and self.policy.temperature != 1:
            unknown = rollout.sampler_logprobs.masked_fill(rollout.completion_mask, torch.nan)
            return replace(rollout, sampler_logprobs=unknown)
        return rollout

    def _proven_samples(self, prompts: PromptBatch, requests: Sequence[SamplingRequest]) -> list[list[Sampled]]:
        """Completions of all requests; the canary is checked here, and nowhere else.

        If a comparison is due after a push, it is made before the first sampling. If the server was restarted during a
        sampling, and was given the weights again, a comparison is made before the samples are returned.
        """
        sampled: list[list[Sampled]] | None = None
        while True:
            restored = self._host.num_restores > self._proven_restores
            if self._canary is not None and (self._push_is_unproven or restored):
                self._push_is_unproven, self._proven_restores = False, self._host.num_restores
                self._note(self._canary.check(self, self._trainer, self.policy, prompts), self._canary.patience)
            elif sampled is None:
                sampled = self._host.sample(requests, self._poll)
            else:
                return sampled

    def _note(self, found: Comparison, patience: int) -> None:
        """Warns of a doubt, and counts how many comparisons in a row had one, on this rank or on another.

        All ranks count alike, since a comparison scores with weights that they gather together.
        """
        if found.doubt is not None:
            _log.warning("%s", found.doubt)
        doubtful = found.doubt is not None
        if dist.is_initialized() and dist.get_world_size() > 1:
            flag = torch.tensor(doubtful, dtype=torch.int32, device=self.policy.banned_ids.device)
            dist.all_reduce(flag, dist.ReduceOp.MAX)
            doubtful = bool(flag)
        self._num_doubts = self._num_doubts + 1 if doubtful else 0
        if self._num_doubts >= patience:
            raise RolloutError(
                f"{found.doubt or 'the engine of another rank is in doubt'}; so it was in {self._num_doubts} "
                "comparisons in a row (rollout.canary.patience)"
            )

    def first_logprobs(self, prompts: PromptBatch) -> list[Mapping[int, float]]:
        """The likeliest first tokens of each prompt, by id, and their log-probabilities at temperature 1."""
        rows = [(None,)] * len(prompts.samples)
        sampled = self._host.sample(self._requests(prompts, rows, max_tokens=1, num_logprobs=20), self._poll)
        return [group[0].logprobs[0] for group in sampled]

    def _requests(
        self, prompts: PromptBatch, rows: Sequence[tuple[int | None, ...]], **limits: int
    ) -> list[SamplingRequest]:
        return [
            SamplingRequest(
                prompt=prompt,
                seeds=seeds,
                temperature=self.policy.temperature,
                stop_token_ids=tuple(self._encoder.eos_token_ids),
                **limits,
            )
            for prompt, seeds in zip(engine_prompts(prompts, self.policy.media.backbone), rows, strict=True)
        ]

    def _rollout(self, rows: Sequence[Sampled], prompts: PromptBatch, group_size: int) -> Rollout:
        device = prompts.input_ids.device
        shape = (len(rows), max(len(row.token_ids) for row in rows))
        tokens = torch.full(shape, self._encoder.pad_token_id, device=device)
        logprobs, mask = torch.zeros(shape, device=device), torch.zeros(shape, dtype=torch.bool, device=device)
        for place, row in enumerate(rows):
            length = len(row.token_ids)
            tokens[place, :length] = torch.tensor(row.token_ids, device=device)
            values = [step[token] for step, token in zip(row.logprobs, row.token_ids, strict=True)]
            logprobs[place, :length] = torch.tensor(values, device=device)
            mask[place, :length] = True
        return Rollout(
            completion_ids=tokens,
            completion_mask=mask,
            sampler_logprobs=logprobs,
            completions=tuple(
                Completion(
                    text=self._template.complete(self._encoder.decode(row.token_ids)),
                    num_tokens=len(row.token_ids),
                    truncated=row.truncated,
                )
                for row in rows
            ),
            group_size=group_size,
            policy_version=torch.full((len(rows),), self.version or 0, device=device),
        )
