"""Step 7: vLLM on the device that trains: parity, pushes, rest, preemption, and the memory that it gives back."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from bench_models import World, model_folder
from gpu_decoding import gaps_found
from gpu_record import GIB, Record, Setup

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rollout.vllm.engine import VLLMEngine
from lightning_mmrl.rollout.vllm.settings import VLLMSettings
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.types.batches import PromptBatch, ScoringBatch

PROMPT, TOKENS = 126, 150
FEW, MANY = 2, 16
"""Rows of a prompt that fit the cache together, and rows that do not."""
CACHE_TOKENS = 1024
"""Room for keys: many rows start in it, and grow out of it."""
CYCLES = 3
BOUNDS = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (0.02, 0.1)}
"""As in step 4: both sides round as often."""
SMALL_MOVE = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """An engine, the policy that it copies, and a prompt."""

    engine: VLLMEngine
    policy: Policy
    prompts: PromptBatch

    def sampled_gaps(self, rows: int, tokens: int) -> torch.Tensor:
        """Differences in nats between the engine's log-probabilities and the policy's, token by token."""
        rollout = self.engine.generate(self.prompts, group_size=rows, seeds=[list(range(rows))], max_new_tokens=tokens)
        batch = ScoringBatch(
            prompts=self.prompts,
            completion_ids=rollout.completion_ids,
            completion_mask=rollout.completion_mask,
            group_size=rows,
        )
        with torch.no_grad():
            gaps = (self.policy(batch).logprobs - rollout.sampler_logprobs).abs()
        return gaps[rollout.completion_mask].float()


def run(setup: Setup, record: Record) -> None:
    """Loads, compares, pushes three times, forces preemption, and closes."""
    dtype = setup.choose(toy=torch.float32, large=torch.bfloat16)
    made = build(setup, dtype)
    before = _free(setup, record, "before_load")
    made.engine.load_weights(made.policy, 0)
    loaded = _free(setup, record, "loaded")
    gaps_found(record, made.sampled_gaps(FEW, 32), BOUNDS[dtype])
    for cycle in range(1, CYCLES + 1):
        made.engine.sleep()
        _free(setup, record, f"resting_{cycle}")
        _move(made.policy, cycle)
        made.engine.load_weights(made.policy, cycle)
        most = float(made.sampled_gaps(FEW, 16).quantile(0.99))
        record.figure(f"cycle_{cycle}_logprob_gap_p99_nats", most)
        record.expect(most <= BOUNDS[dtype][1], f"after push {cycle} the engine differs by {most:.3g} nats")
    with counted_preemptions() as times:
        most = float(made.sampled_gaps(MANY, TOKENS).quantile(0.99))
    record.figure("preemptions", len(times))
    record.figure("preempted_logprob_gap_p99_nats", most)
    record.expect(len(times) > 0, f"{MANY} rows of {PROMPT + TOKENS} tokens preempt nothing in {CACHE_TOKENS} places")
    record.expect(most <= BOUNDS[dtype][1], f"with preemption the engine differs by {most:.3g} nats")
    made.engine.close()
    after = _free(setup, record, "closed")
    weights = sum(parameter.nbytes for parameter in made.policy.parameters())
    if setup.on_gpu:
        kept = (before - after) / GIB
        record.expect(after - loaded >= weights, f"closing leaves {kept:.2f} GiB less than before loading")
    else:
        record.skip("memory that the engine gives back", "a CPU has no count of it")


def build(setup: Setup, dtype: torch.dtype) -> Engine:
    """A policy with the processor of the tiny model, at the sizes of the scale, and an engine with a small cache."""
    shape = setup.choose(toy="tiny", large="3b")
    world = World(model_folder(setup.folder), shape=shape, device=str(setup.device), dtype=dtype)
    encoder = world.encoder if shape == "tiny" else replace(world.encoder, config=world.released_config())
    policy = world.policy(banned=encoder.banned_token_ids()).to(setup.device).eval()
    text: Any = policy.text_config
    width = text.hidden_size // text.num_attention_heads
    per_token = 2 * text.num_hidden_layers * text.num_key_value_heads * width * dtype.itemsize
    settings = VLLMSettings(
        kv_cache_gib=CACHE_TOKENS * per_token / GIB,
        max_model_len=PROMPT + TOKENS + 16,
        max_num_seqs=MANY,
        enforce_eager=True,
    )
    sampling = SamplingSettings(max_new_tokens=TOKENS)
    engine = VLLMEngine(policy, encoder=encoder, sampling=sampling, settings=settings)
    return Engine(engine=engine, policy=policy, prompts=world.prompts(PROMPT))


def _move(policy: Policy, seed: int) -> None:
    """Changes all weights a little, as training would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(SMALL_MOVE * torch.randn_like(parameter))


@contextmanager
def counted_preemptions() -> Iterator[list[str]]:
    """Collects the requests that vLLM's scheduler puts back into its queue."""
    from vllm.v1.core.sched.scheduler import Scheduler

    times: list[str] = []
    preempt = Scheduler._preempt_request

    def counting(self: Any, request: Any, *rest: Any, **how: Any) -> Any:
        times.append(request.request_id)
        return preempt(self, request, *rest, **how)

    with patch.object(Scheduler, "_preempt_request", counting):
        yield times


def _free(setup: Setup, record: Record, moment: str) -> int:
    if not setup.on_gpu:
        return 0
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    record.figure(f"free_{moment}_gib", free / GIB)
    return free
