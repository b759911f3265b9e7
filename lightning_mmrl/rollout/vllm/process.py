# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# vllm is an extra that the type checker's environment does not have.
"""Runs vLLM in this process, on the device that trains.

The model is built with random weights, and the first push replaces all of them. Every push empties the prefix,
multimodal and encoder caches in the scheduler and in the worker. Otherwise encoder outputs of old weights would stay in
use (trl issue 7198); if only the worker's caches were empty, vLLM would fail with "Encoder cache miss".
"""

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from lightning_mmrl.errors import RolloutError
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.protocols.tensors import PromptEncoder
from lightning_mmrl.rollout.engine_inputs import EnginePrompt
from lightning_mmrl.rollout.vllm.host import Sampled, SamplingRequest, require_loaded
from lightning_mmrl.rollout.vllm.media import media_items
from lightning_mmrl.rollout.vllm.memory import advice, check_cache, check_share, chosen_share, engine_size
from lightning_mmrl.rollout.vllm.settings import VLLMSettings, first_line, prepare_environment, write_model
from lightning_mmrl.rollout.weights import PolicyWeights, pushed_bytes


@contextmanager
def _apart() -> Iterator[None]:
    """Keeps engine and trainer apart: random generators are restored, and no autocast reaches the engine.

    The engine draws from the generators that the trainer draws from. It also loads and samples within the trainer's
    step, which may be under autocast; it chooses the types of its operations itself.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  the generator that all libraries share
    device = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    kind = "cuda" if device else "cpu"
    with torch.random.fork_rng(device), torch.autocast(kind, enabled=False):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002  the generator that all libraries share


class ProcessHost:
    """Implements `Host` with an LLM in this process; with several ranks, each rank has its own LLM.

    Raises:
        RolloutError: vllm is not installed, or the model cannot be loaded.
    """

    num_restores = 0

    def __init__(self, policy: Policy, encoder: PromptEncoder, settings: VLLMSettings) -> None:
        self._joined = dist.is_initialized()
        self._weight_bytes = pushed_bytes(policy)
        share = _require_memory(policy, encoder, self._weight_bytes, settings)
        self._number, self._cache_gib = 0, settings.cache_gib
        self._sleeps = settings.sleep_level > 0 and torch.cuda.is_available()
        self._asleep: set[str] = set()
        arguments = settings.arguments(policy.compute_dtype, policy.banned_ids.tolist())
        arguments |= {} if share is None else {"gpu_memory_utilization": share}
        self._llm = self._load(encoder, {**arguments, "enable_sleep_mode": self._sleeps})

    @_apart()
    def _load(self, encoder: PromptEncoder, arguments: dict[str, Any]) -> Any:
        # The engine shares this process and its weights; its log lines would mix with the console's.
        prepare_environment(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR")
        if self._joined:
            arguments["distributed_executor_backend"] = "external_launcher"
            # vLLM's launcher reads these variables, and not every cluster sets them. The current device is asked for,
            # since the weights may be on the CPU at this time.
            own = torch.cuda.current_device() if torch.cuda.is_available() else 0
            os.environ.update(RANK=str(dist.get_rank()), LOCAL_RANK=str(own))
        with TemporaryDirectory(prefix="mmrl-vllm-") as folder, _threads_kept():
            try:
                import vllm

                from lightning_mmrl.rollout.vllm.worker import take_given_positions

                write_model(encoder, Path(folder))
                llm = vllm.LLM(model=folder, **arguments)
                llm.collective_rpc(take_given_positions)
                return llm
            except (RuntimeError, ValueError, AssertionError, MemoryError, ImportError) as error:
                with suppress(ImportError):  # a broken vllm
                    self._leave_groups()
                mend = advice(error, self._cache_gib)
                raise RolloutError(f"vLLM cannot load the model: {first_line(error)}{mend}") from error

    def _leave_groups(self) -> None:
        """Ends the process groups that vLLM made; the group of the trainer's ranks stays."""
        from vllm.distributed import cleanup_dist_env_and_memory

        with _default_group_kept() if self._joined else nullcontext():
            cleanup_dist_env_and_memory()

    def close(self) -> None:
        """Frees the memory of the model and its cache."""
        with _default_group_kept() if self._joined else nullcontext():
            self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        self._leave_groups()

    def sleep(self) -> None:
        """Gives the memory of weights and cache back until the next push or sampling; does nothing on a CPU.

        Raises:
            RolloutError: The device got less memory back than the weights take.
        """
        if self._sleeps and not self._asleep:
            before, _ = torch.cuda.mem_get_info()
            self._llm.sleep(level=1)
            self._asleep = {"weights", "kv_cache"}
            after, _ = torch.cuda.mem_get_info()
            if after - before < self._weight_bytes:
                raise RolloutError(
                    f"vLLM gave {(after - before) / 2**30:.2f} GiB of the device back after a rollout, and its weights "
                    f"alone take {self._weight_bytes / 2**30:.2f}; set rollout.settings.sleep_level=0 to do without"
                )

    def _wake(self, *parts: str) -> None:
        """Takes back the memory that `sleep` freed: weights before a push, the cache after it, for a lower peak."""
        wanted = [part for part in parts if part in self._asleep]
        if wanted:
            self._llm.wake_up(tags=wanted)
            self._asleep -= set(wanted)

    @_apart()
    def push(self, weights: PolicyWeights, version: int) -> None:
        """Streams weights into the model and empties its caches; after a refusal the model is unusable."""
        from lightning_mmrl.rollout.vllm.worker import reload

        self._wake("weights")
        (report,) = self._llm.collective_rpc(reload, args=(weights.items(),))
        require_loaded(report)
        self._empty_caches()

    def _empty_caches(self) -> None:
        self._llm.reset_prefix_cache()
        self._llm.reset_mm_cache()
        self._llm.llm_engine.reset_encoder_cache()

    @_apart()
    def sample(self, requests: Sequence[SamplingRequest], poll: Callable[[], None]) -> list[list[Sampled]]:
        """Samples each completion as a request with its own seed; the prefix cache shares the prompt."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        # Nothing reads completions that are not finished: `poll` alone ends a rollout early.
        final = RequestOutputKind.FINAL_ONLY
        rows = [
            (prompt, SamplingParams(**request.sampling(seed, output_kind=final)))
            for request in requests
            for prompt in (self._engine_input(request.prompt),)
            for seed in request.seeds
        ]
        outputs = iter(self._run(rows, poll))
        return [[next(outputs) for _ in request.seeds] for request in requests]

    def _run(self, rows: Sequence[tuple[Any, Any]], poll: Callable[[], None]) -> list[Sampled]:
        """The completions of all rows, in order; an error leaves no request in the engine."""
        engine, done = self._llm.llm_engine, {}
        self._wake("weights", "kv_cache")
        names = [f"{self._number + place}" for place in range(len(rows))]
        self._number += len(rows)
        try:
            for name, (prompt, params) in zip(names, rows, strict=True):
                engine.add_request(name, prompt, params)
            while engine.has_unfinished_requests():
                poll()
                done |= {output.request_id: output for output in engine.step()}
        except BaseException as error:
            engine.abort_request([name for name in names if name not in done])
            if isinstance(error, RuntimeError | ValueError | KeyError):
                raise RolloutError(f"vLLM failed while it sampled: {first_line(error)}") from error
            raise
        return [
            Sampled(
                token_ids=list(output.token_ids),
                logprobs=[{token: value.logprob for token, value in step.items()} for step in output.logprobs],
                truncated=output.finish_reason == "length",
            )
            for output in (done[name].outputs[0] for name in names)
        ]

    def _engine_input(self, prompt: EnginePrompt) -> Any:
        from vllm.inputs.engine import mm_input, tokens_input
        from vllm.multimodal.inputs import PlaceholderRange

        if not prompt.spans:
            return tokens_input(prompt.token_ids)
        items, hashes = media_items(prompt, self._llm.renderer.get_mm_processor())
        places = {
            kind: [PlaceholderRange(offset=span.offset, length=len(span.mask), is_embed=span.mask) for span in spans]
            for kind, spans in prompt.spans.items()
        }
        return mm_input(prompt.token_ids, items, hashes, places)


def _require_memory(policy: Policy, encoder: PromptEncoder, weights: int, settings: VLLMSettings) -> float | None:
    """Checks that the engine's memory suffices before anything is loaded; returns its share of a GPU."""
    size = engine_size(
        encoder.config.get_text_config(),
        weights=weights,
        itemsize=policy.compute_dtype.itemsize,
        max_model_len=settings.max_model_len,
    )
    check_cache(size, settings.cache_gib)
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    share = chosen_share(size, settings.gpu_memory_utilization, free=free, total=total)
    check_share(size, share, settings.cache_gib, free=free, total=total)
    return share


@contextmanager
def _default_group_kept() -> Iterator[None]:
    """Keeps vLLM from ending the default process group, which vLLM would mistake for its own."""
    destroy = dist.destroy_process_group

    def destroy_others(group: Any = None) -> None:
        if group is not None:
            destroy(group)

    dist.destroy_process_group = destroy_others
    try:
        yield
    finally:
        dist.destroy_process_group = destroy


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Restores `torch.set_num_threads`, which vLLM's CPU worker replaces with a function that does nothing."""
    set_threads, num_threads = torch.set_num_threads, torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads = set_threads
        torch.set_num_threads(num_threads)
