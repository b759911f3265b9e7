# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# vllm is an extra that the type checker's environment does not have.
"""Rollouts with vLLM 0.32 in this process; with `vllm_worker`, the only file that imports vllm.

The engine gets what the trainer's towers get: token ids and media as the family's encoder made them, with the places
of their placeholders. Nothing is decoded, resized or tokenized a second time, so nothing can come out differently; what
remains to differ is the model, and that is compared (`rollout.canary`).

Weights come from the policy alone: the engine is built with random ones, and `generate` pushes the policy's before it
samples for the first time. After every push the prefix, multimodal and encoder caches are emptied, in the scheduler and
in the worker: encoder outputs of old weights would stay in use otherwise (trl issue 7198), and emptying the worker's
alone ends in "Encoder cache miss".
"""

import importlib.util
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rollout.canary import Canary
from lightning_mmrl.rollout.engine_inputs import EnginePrompt, content_hash, engine_prompts, named_for_vllm
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.rollout.weights import pushed_weights
from lightning_mmrl.types.batches import PromptBatch, Rollout
from lightning_mmrl.types.records import Completion

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine shares this process and its weights
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # threads that are bound stay so for the trainer
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
"""Set before vllm is imported, unless the user has set them."""


def installed() -> bool:
    """Whether vllm, in any of its builds, can be imported."""
    return importlib.util.find_spec("vllm") is not None


@contextmanager
def _generators_kept() -> Iterator[None]:
    """Leaves the process's generators as they were: the trainer draws from them as if there were no engine."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  the generator that all libraries share
    device = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(device):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002  the generator that all libraries share


@dataclass(frozen=True, slots=True, kw_only=True)
class VLLMSettings:
    """How the engine shares its device.

    Attributes:
        gpu_memory_utilization: Share of a GPU's memory for the engine's weights, activations and cache.
        kv_cache_gib: Size of the key-value cache in GiB; None: what the share leaves, and on a CPU a quarter.
        max_model_len: Longest prompt with its completion, in tokens; None: as long as the model's positions go.
        max_num_seqs: Completions sampled at a time.
        enforce_eager: Run the model without CUDA graphs; on a CPU it always is.
        sleep_level: What `rest` gives back until the next rollout: 0 nothing, 1 weights and cache.
    """

    gpu_memory_utilization: float = 0.3
    kv_cache_gib: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int = 256
    enforce_eager: bool = False
    sleep_level: int = 1


class VLLMEngine:
    """Samples with vLLM in this process, on the device that trains.

    Args:
        policy: Whose weights are sampled from.
        encoder: The encoder of its family, which made the prompts.
        max_new_tokens: Longest completion; one that reaches it without an end is truncated.
        prefill: Opening of the assistant turn that the prompt already holds; prepended to the text that rewards see.
        poll: Called before every step; what it raises ends the rollout.
        top_p: 1; vLLM's log-probabilities are of what it leaves.
        settings: How the engine shares its device.
        canary: Compares the engine with the policy; None: never.

    Raises:
        ValueError: `top_p` is not 1.
        RolloutError: vllm is not installed, or the engine cannot be loaded.
    """

    reads_features = False

    def __init__(
        self,
        policy: Policy,
        *,
        encoder: Any,
        max_new_tokens: int,
        top_p: float = 1.0,
        prefill: str = "",
        poll: Callable[[], None] = lambda: None,
        settings: VLLMSettings | None = None,
        canary: Canary | None = None,
    ) -> None:
        if top_p != 1:
            raise ValueError(f"top_p is {top_p}; with vLLM it must be 1, which keeps all tokens")
        self.policy = policy
        self.version: int | None = None
        self._encoder = encoder
        self._max_new_tokens = max_new_tokens
        self._prefill = prefill
        self._poll = poll
        self._settings = settings or VLLMSettings()
        self._canary = canary
        self._trainer = HFEngine.of(policy, encoder=encoder, max_new_tokens=max_new_tokens, poll=poll)
        self._pushes, self._unproven = 0, False
        self._joined = torch.distributed.is_initialized()
        self._number = 0
        self._sleeps = self._settings.sleep_level > 0 and torch.cuda.is_available()
        self._asleep: set[str] = set()
        self._llm = self._load()

    @_generators_kept()
    def _load(self) -> Any:
        """The engine with random weights."""
        _prepare_environment()
        with TemporaryDirectory(prefix="mmrl-vllm-") as folder, _threads_kept(), _loading():
            import vllm

            from lightning_mmrl.rollout.vllm_worker import take_given_positions

            self._write_model(Path(folder))
            llm = vllm.LLM(**self._arguments(folder))
            llm.collective_rpc(take_given_positions)
            return llm

    def _write_model(self, folder: Path) -> None:
        """What vLLM reads of a model beside its weights."""
        encoder = self._encoder
        encoder.parts.engine_config(encoder.config).save_pretrained(folder)
        encoder.processor.save_pretrained(folder)

    def _arguments(self, folder: str) -> dict[str, Any]:
        settings, policy = self._settings, self.policy
        on_cpu = not torch.cuda.is_available()
        cache_gib = settings.kv_cache_gib or (0.25 if on_cpu else None)
        parameter = next(policy.model.parameters())
        ranks = {"distributed_executor_backend": "external_launcher"} if self._joined else {}
        return {
            "model": folder,
            "load_format": "dummy",
            "dtype": str(parameter.dtype).removeprefix("torch."),
            "logprobs_mode": "processed_logprobs",
            "logits_processors": ["lightning_mmrl.rollout.vllm_worker:BannedTokens"],
            "additional_config": {"banned_token_ids": policy.banned_ids.tolist()},
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "kv_cache_memory_bytes": int(cache_gib * 2**30) if cache_gib else None,
            "max_model_len": settings.max_model_len,
            "max_num_seqs": settings.max_num_seqs,
            "enforce_eager": settings.enforce_eager or on_cpu,
            "enable_sleep_mode": self._sleeps,
            "mm_processor_cache_gb": 0,  # media come processed
            "mm_device_do_normalize": False,  # and pixels normalized: vLLM would do it once more
            "skip_mm_profiling": True,
            # A seeded request whose prompt is cut turns its generator back, which a CPU's cannot.
            "enable_chunked_prefill": False if on_cpu else None,
            **ranks,
        }

    def rest(self) -> None:
        """Gives weights and cache back to the device; they return with the next push or rollout. Nothing on a CPU."""
        if self._sleeps and not self._asleep:
            self._llm.sleep(level=1)
            self._asleep = {"weights", "kv_cache"}

    def _wake(self, *parts: str) -> None:
        """Brings back what `rest` gave back: weights before a push, the cache behind it, for a lower peak."""
        wanted = [part for part in parts if part in self._asleep]
        if wanted:
            self._llm.wake_up(tags=wanted)
            self._asleep -= set(wanted)

    def close(self) -> None:
        """Frees the engine's memory. A process group that it made goes with it; one that was there before stays."""
        from vllm.distributed import cleanup_dist_env_and_memory, destroy_model_parallel

        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        destroy_model_parallel()
        if not self._joined:
            cleanup_dist_env_and_memory()

    @_generators_kept()
    def load_weights(self, policy: nn.Module, version: int) -> Mapping[str, float]:
        """Streams the policy's weights into the engine, one tensor at a time, and empties its caches.

        Raises:
            RolloutError: A weight has no place in the engine's model, or not the shape of its place, or one is missing;
                the engine cannot be used any more.
        """
        from lightning_mmrl.rollout.vllm_worker import reload

        start, names = time.perf_counter(), []
        self._wake("weights")

        def noted() -> Iterator[tuple[str, Tensor]]:
            for name, tensor in pushed_weights(cast(Policy, policy), self._encoder.parts.engine_prefix):
                names.append(f"{name} {tuple(tensor.shape)}")
                yield name, tensor

        try:
            (missing,) = self._llm.collective_rpc(reload, args=(noted(),))
        except (ValueError, RuntimeError, AssertionError, KeyError) as error:
            last = names[-1] if names else "the first weight"
            raise RolloutError(f"vLLM does not take the policy's weights at {last}: {_first_line(error)}") from error
        if missing:
            raise RolloutError(f"the policy has no {', '.join(sorted(missing)[:5])}, which vLLM's model needs")
        self._empty_caches()
        self.version = version
        self._pushes += 1
        self._unproven = self._canary is not None and self._canary.due(self._pushes)
        return {"pushed_tensors": float(len(names)), "push_s": time.perf_counter() - start}

    def _empty_caches(self) -> None:
        """Forgets everything that was computed with other weights."""
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()

    @_generators_kept()
    def generate(
        self,
        prompts: PromptBatch,
        *,
        group_size: int,
        seeds: Sequence[Sequence[int]],
        greedy: bool = False,
        max_new_tokens: int | None = None,
    ) -> Rollout:
        """Samples N = B * G completions; each prompt's media enter the towers once.

        Greedy rows have no noise and no temperature: where the policy's is not 1, their log-probabilities are NaN.

        Raises:
            RolloutError: The engine does not sample from the policy.
        """
        if self.version is None:
            self.load_weights(self.policy, 0)
        if self._unproven and self._canary is not None:
            self._unproven = False
            self._canary.check(self, self._trainer, self.policy, prompts)
        limit = self._max_new_tokens if max_new_tokens is None else max_new_tokens
        inputs = [self._engine_input(prompt) for prompt in engine_prompts(prompts, self.policy.media.backbone)]
        rows = [
            (inputs[index], self._sampling(limit, None if greedy else seed))
            for index, group in enumerate(seeds)
            for seed in group[:group_size]
        ]
        return self._rollout(self._run(rows), prompts, group_size, greedy)

    @_generators_kept()
    def first_logprobs(self, prompts: PromptBatch) -> list[dict[int, float]]:
        """The likeliest first tokens of each prompt, by id, and their log-probabilities at temperature 1."""
        params = self._sampling(1, None, logprobs=20)
        outputs = self._run(
            [(self._engine_input(each), params) for each in engine_prompts(prompts, self.policy.media.backbone)]
        )
        return [{token: value.logprob for token, value in output.logprobs[0].items()} for output in outputs]

    def _sampling(self, limit: int, seed: int | None, logprobs: int = 0) -> Any:
        from vllm import SamplingParams

        return SamplingParams(
            temperature=0.0 if seed is None else self.policy.temperature,
            seed=None if seed is None else seed % 2**63,
            max_tokens=limit,
            stop_token_ids=list(self._encoder.eos_token_ids),
            ignore_eos=True,  # of the tokenizer; the policy's own are above
            logprobs=logprobs,
            detokenize=False,
        )

    def _run(self, rows: Sequence[tuple[Any, Any]]) -> list[Any]:
        """The completed outputs of all rows, in their order; nothing is left in the engine if it is cut short."""
        engine, done = self._llm.llm_engine, {}
        self._wake("weights", "kv_cache")
        names = [f"{self._number + place}" for place in range(len(rows))]
        self._number += len(rows)
        try:
            for name, (prompt, params) in zip(names, rows, strict=True):
                engine.add_request(name, prompt, params)
            while engine.has_unfinished_requests():
                self._poll()
                done |= {output.request_id: output for output in engine.step() if output.finished}
        except BaseException as error:
            engine.abort_request([name for name in names if name not in done])
            if isinstance(error, RuntimeError | ValueError | KeyError):
                raise RolloutError(f"vLLM failed while it sampled: {_first_line(error)}") from error
            raise
        return [done[name].outputs[0] for name in names]

    def _engine_input(self, prompt: EnginePrompt) -> Any:
        from transformers import BatchFeature
        from vllm.inputs.engine import mm_input, tokens_input
        from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange

        from lightning_mmrl.rollout.vllm_worker import POSITIONS

        if not prompt.spans:
            return tokens_input(prompt.token_ids)
        tensors = BatchFeature(named_for_vllm(prompt.tensors))
        fields = self._llm.renderer.get_mm_processor()._get_mm_fields_config(tensors, {})
        items = MultiModalKwargsItems.from_hf_inputs(tensors, fields)
        hashes = {
            kind: [content_hash({name: field.data for name, field in item.items()}) for item in items[kind]]
            for kind in items
        }
        positions = MultiModalFieldConfig.batched("", keep_on_cpu=True).build_elems(POSITIONS, prompt.positions[None])
        for item in (item for kind in items for item in items[kind]):
            item[POSITIONS] = positions[0]
        places = {
            kind: [PlaceholderRange(offset=span.offset, length=len(span.mask), is_embed=span.mask) for span in spans]
            for kind, spans in prompt.spans.items()
        }
        return mm_input(prompt.token_ids, items, hashes, places)

    def _rollout(self, outputs: Sequence[Any], prompts: PromptBatch, group_size: int, greedy: bool) -> Rollout:
        device = prompts.input_ids.device
        shape = (len(outputs), max(len(output.token_ids) for output in outputs))
        tokens = torch.full(shape, self._encoder.pad_token_id, device=device)
        logprobs, mask = torch.zeros(shape, device=device), torch.zeros(shape, dtype=torch.bool, device=device)
        known = not greedy or self.policy.temperature == 1
        for row, output in enumerate(outputs):
            length = len(output.token_ids)
            tokens[row, :length] = torch.tensor(output.token_ids, device=device)
            values = [step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)]
            logprobs[row, :length] = torch.tensor(values if known else [float("nan")] * length, device=device)
            mask[row, :length] = True
        return Rollout(
            completion_ids=tokens,
            completion_mask=mask,
            sampler_logprobs=logprobs,
            completions=tuple(self._completion(output) for output in outputs),
            group_size=group_size,
            policy_version=self.version or 0,
        )

    def _completion(self, output: Any) -> Completion:
        text = self._prefill + self._encoder.decode(output.token_ids)
        return Completion(text=text, num_tokens=len(output.token_ids), truncated=output.finish_reason == "length")


def _prepare_environment() -> None:
    if not installed():
        raise RolloutError("rollout is vllm, which is not installed; run uv pip install -e '.[vllm]'")
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Lets threads be set again: vLLM's CPU worker replaces the function that does it with one that does nothing."""
    set_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(num_threads)


@contextmanager
def _loading() -> Iterator[None]:
    """Turns what vLLM raises into one sentence."""
    try:
        yield
    except (RuntimeError, ValueError, MemoryError, ImportError) as error:
        raise RolloutError(
            f"vLLM cannot load the model: {_first_line(error)}; lower rollout.settings.gpu_memory_utilization, "
            "kv_cache_gib or max_model_len if memory is short"
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")
