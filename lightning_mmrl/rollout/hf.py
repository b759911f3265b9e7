"""Samples rollouts with the policy's own weights; the G completions of a prompt share the cache of one prefill."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lightning_mmrl.errors import ConfigError
from lightning_mmrl.models.decoding import Decoding, start_decoding
from lightning_mmrl.models.parallelize import whole
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.ops.transfer import on_device, on_host
from lightning_mmrl.prompts.template import PromptTemplate
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.rollout.drafts import Drafter, DraftStore, Tally, reckoned_pass_tokens
from lightning_mmrl.rollout.sampling import nucleus, refuse_broken, sample_tokens, uniform_noise
from lightning_mmrl.rollout.speculation import Choose, Sheet, Speculation
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.settings.rules import check_rules
from lightning_mmrl.settings.speculation import SpeculationSettings
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
        speculation: Whether and how tokens are drafted, so that a pass may decide several of them.
        template: Gives the opening of the assistant turn, which is part of the prompt; rewards see it before the text.
        poll: Called before every pass; an error that it raises ends the rollout.

    Attributes:
        look_every: Decode steps from one look at which rows have ended to the next, by type of device. A look is free
            on a CPU, where a step is not. It lets a GPU run dry, since the host can start the next step only after it;
            up to seven steps with rows that have ended cost less.
        drafter: Guesses tokens; None samples token by token.
        cuda_graphs: Whether decode steps are those that CUDA captures and replays (`models.static_decoding`).

    Raises:
        ConfigError: A number is out of range.
    """

    reads_features = True
    look_every: ClassVar[Mapping[str, int]] = {"cpu": 1, "cuda": 8}

    def __init__(
        self,
        policy: Policy,
        *,
        decode: Callable[[Sequence[int]], str],
        eos_token_ids: Sequence[int],
        pad_token_id: int,
        sampling: SamplingSettings,
        speculation: SpeculationSettings | None = None,
        template: PromptTemplate | None = None,
        poll: Callable[[], None] = lambda: None,
    ) -> None:
        check_rules(sampling, "sampling")
        drafting = speculation or SpeculationSettings()
        check_rules(drafting, "rollout.speculation")
        self.policy = policy
        self.version = 0
        self._decode = decode
        self._eos = torch.tensor(list(eos_token_ids))
        self._pad = pad_token_id
        self._sampling = sampling
        self._template = template or PromptTemplate()
        self._poll = poll
        self.cuda_graphs = False
        self.drafter: Drafter | None = None
        if drafting.max_draft:
            sizes = policy.text_config.num_hidden_layers, policy.num_weights_per_token
            self.drafter = DraftStore(drafting, reckoned_pass_tokens(*sizes))

    @classmethod
    def of(cls, policy: Policy, *, encoder: PromptEncoder, cuda_graphs: bool = False, **settings: Any) -> "HFEngine":
        """An engine that ends, pads and decodes completions like an encoder.

        Args:
            policy: The policy to sample from.
            encoder: Knows tokens and texts.
            cuda_graphs: See the attribute. On a CPU the same steps are computed without a capture.
            settings: Further arguments.

        Raises:
            ConfigError: A number is out of range, or no graph can be captured of this policy, or with drafts.
        """
        engine = cls(
            policy,
            decode=encoder.decode,
            eos_token_ids=encoder.eos_token_ids,
            pad_token_id=encoder.pad_token_id,
            **settings,
        )
        if cuda_graphs and (policy.sharing_refusal is not None or engine.drafter is not None):
            reason = policy.sharing_refusal or "rollout.speculation.max_draft is above 0"
            raise ConfigError(
                "rollout.cuda_graphs is true, and only steps without drafts of completions that share their prompts "
                f"can be captured ({reason}); set rollout.cuda_graphs=false"
            )
        engine.cuda_graphs = cuda_graphs
        return engine

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
            sheet, tally = self.policy.enter(partial(self._decode_all, prompts, group_size, noise, greedy))
        finally:
            self.policy.train(training)
        if greedy:
            refuse_broken(sheet.logprobs, prompts, group_size)
        eos, completions = set(self._eos.tolist()), []
        tokens, lengths = (tensor.tolist() for tensor in on_host([sheet.tokens, sheet.mask.sum(-1)]))
        rows = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
        if self.drafter is not None:
            self.drafter.end(rows, tally)
        for ids in rows:
            text = self._template.complete(self._decode(ids))
            completions.append(Completion(text=text, num_tokens=len(ids), truncated=ids[-1] not in eos))
        return Rollout(
            completion_ids=sheet.tokens,
            completion_mask=sheet.mask,
            sampler_logprobs=sheet.logprobs,
            completions=tuple(completions),
            group_size=group_size,
            policy_version=torch.full((len(sheet.tokens),), self.version, device=sheet.tokens.device),
            decoding={} if tally is None else tally.counts(),
        )

    def _decode_all(
        self, prompts: PromptBatch, group_size: int, noise: Float[Tensor, "N C"], greedy: bool
    ) -> tuple[Sheet, Tally | None]:
        """Prefills and samples until every row has ended, at this rank's own pace."""
        noise, drafter = noise.to(prompts.input_ids.device, non_blocking=True), self.drafter
        if drafter is not None and not drafter.begin([each.id for each in prompts.samples for _ in range(group_size)]):
            drafter = None
        with whole(self.policy):
            decoding = start_decoding(
                self.policy,
                prompts,
                group_size,
                drafts=drafter is not None,
                static=self.cuda_graphs,
                max_tokens=noise.shape[1],
            )
            sheet = Sheet(
                tokens=torch.full(noise.shape, self._pad, device=noise.device),
                logprobs=torch.zeros_like(noise, dtype=torch.promote_types(decoding.states.dtype, torch.float32)),
                mask=torch.zeros(noise.shape, dtype=torch.bool, device=noise.device),
                noise=noise,
            )
            # The results are allocated outside of inference mode, because a loss may save them for its backward pass.
            with torch.inference_mode():
                tally = self._fill(sheet, decoding, drafter, greedy)
        width = int(sheet.mask.any(0).sum())
        return Sheet(*(tensor[:, :width] for tensor in sheet)), tally

    def _choose(
        self, states: Float[Tensor, "T D"], noise: Float[Tensor, " T"], *, greedy: bool
    ) -> tuple[Int[Tensor, " T"], Float[Tensor, " T"]]:
        """The token after each state, and its log-probability."""
        distribution = self.policy.next_logprobs(states)
        if self._sampling.top_p < 1 and not greedy:
            distribution = nucleus(distribution, self._sampling.top_p).log_softmax(-1)
        chosen = distribution.argmax(-1) if greedy else sample_tokens(distribution, noise)
        return chosen, distribution.gather(-1, chosen[:, None]).squeeze(-1)

    def _fill(self, sheet: Sheet, decoding: Decoding, drafter: Drafter | None, greedy: bool) -> Tally | None:
        """Samples with drafts or without; a tally comes of drafts."""
        choose = partial(self._choose, greedy=greedy)
        most = 0 if drafter is None else drafter.most_rows
        rows, running = self._fill_step_by_step(sheet, decoding, choose, until=most)
        if drafter is None:
            return None
        rest = Speculation(sheet, choose, drafter, ends=set(self._eos.tolist()), poll=self._poll)
        return rest.fill(decoding, rows.tolist(), running.tolist())

    def _fill_step_by_step(
        self, sheet: Sheet, decoding: Decoding, choose: Choose, *, until: int = 0
    ) -> tuple[Int[Tensor, " R"], Bool[Tensor, " R"]]:
        """Samples token by token; rows that ended leave the batch when the decoding gets faster without them.

        Ended rows may still be in the batch, whose tokens then count nothing. The host looks every few steps. It stops
        before a step of `until` rows or fewer, and returns the rows of the batch and which of them go on.
        """
        tokens, logprobs, mask, noise = sheet
        eos = self._eos.to(noise.device, non_blocking=True)
        rows = torch.arange(len(noise), device=noise.device)
        running = torch.ones_like(rows, dtype=torch.bool)
        num_steps = noise.shape[1]
        for step in range(num_steps):
            if len(rows) <= until:
                return rows, running
            self._poll()
            chosen, values = choose(decoding.states, noise[rows, step])
            tokens[rows, step] = chosen.where(running, self._pad)
            logprobs[rows, step], mask[rows, step] = values.where(running, 0.0), running
            running = running & (chosen[:, None] != eos).all(-1) & values.isfinite()
            if step + 1 == num_steps:
                break
            if (step + 1) % self.look_every[noise.device.type] == 0:
                places = [place for place, runs in enumerate(running.tolist()) if runs]
                if not places:
                    break
                fewer = decoding.smaller(places)
                if fewer is not None:
                    decoding.keep(torch.tensor(fewer))
                    kept = on_device(fewer, noise.device)
                    rows, chosen, running = rows[kept], chosen[kept], running[kept]
            decoding.advance(chosen)
        return rows, torch.zeros_like(running)
