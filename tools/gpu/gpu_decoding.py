"""Step 4: decoding of 32 prompts with 8 rows each: time of a step, kernels, dispatches, and agreement with scoring."""

import time
from dataclasses import dataclass, field

import torch
from gpu_record import Record, Setup
from gpu_worlds import PAD, policy_of, spread, text_prompts
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.types.batches import PromptBatch, Rollout, ScoringBatch

STEPS, WARM = 64, 8
PROFILED = 8
"""Steps under the profiler, at the end: it would need a minute to read the events of all 64 steps of a large model."""
COMPARED = 4
"""Prompts whose samples are scored again."""
BOUNDS = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (0.02, 0.1)}
"""By dtype, the allowed difference in nats between sampling and scoring: of half of the tokens, and of 99 %.

Random weights give nearly uniform probabilities, and the difference is a rounding of the last states: 2**-8 relative in
bfloat16. A wrong position or mask gives tenths of a nat even here.
"""


@dataclass(slots=True)
class Clock:
    """Called by the engine before each token: it starts and ends the timed and the profiled steps."""

    setup: Setup
    profiler: profile
    step: int = 0
    moments: dict[int, float] = field(default_factory=dict)

    def __call__(self) -> None:
        """Marks the beginning of a step."""
        if self.step in (0, 1, WARM, STEPS - PROFILED - 1):
            self.setup.wait()
            self.moments[self.step] = time.perf_counter()
        if self.step == STEPS - PROFILED - 1:
            self.profiler.start()
        if self.step == STEPS - 1:
            self.setup.wait()
            self.profiler.stop()
        self.step += 1


def run(setup: Setup, record: Record) -> None:
    """Samples all rows once, then scores some of them."""
    dtype = setup.choose(toy=torch.float32, large=torch.bfloat16)
    policy = spread(setup, policy_of(setup, dtype=dtype))
    lengths = setup.choose(toy=[40 - row for row in range(8)], large=[3000 - 12 * row for row in range(32)])
    group = setup.choose(toy=4, large=8)
    prompts = text_prompts(setup, policy, lengths)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.on_gpu else [])]
    clock = Clock(setup, profile(activities=activities))
    start = time.perf_counter()
    rollout = sample(policy, prompts, group, clock)
    record.figure("rows", len(lengths) * group)
    record.figure("prefill_seconds", clock.moments[0] - start)
    first, last = WARM, STEPS - PROFILED - 1
    record.figure("ms_per_step", 1e3 * (clock.moments[last] - clock.moments[first]) / (last - first))
    _count(setup, record, clock.profiler)
    record.expect(bool(rollout.completion_mask.all()), "a row ended before its last step, or is not finite")
    compare(record, policy, prompts, rollout, BOUNDS[dtype])


def sample(policy: Policy, prompts: PromptBatch, group: int, clock: Clock) -> Rollout:
    """Completions of the full length: these models have no token that ends one."""
    engine = HFEngine(
        policy,
        decode=lambda ids: "",
        eos_token_ids=(),
        pad_token_id=PAD,
        sampling=SamplingSettings(max_new_tokens=STEPS),
        poll=clock,
    )
    seeds = [[1000 * prompt + row for row in range(group)] for prompt in range(len(prompts.samples))]
    return engine.generate(prompts, group_size=group, seeds=seeds)


def _count(setup: Setup, record: Record, profiler: profile) -> None:
    """Notes how many operations the host dispatched and how many kernels the device ran in a step."""
    averages = profiler.key_averages()
    dispatched = sum(each.count for each in averages if each.key.startswith("aten::"))
    record.figure("dispatches_per_step", dispatched / PROFILED)
    if not setup.on_gpu:
        record.skip("kernels per step", "a CPU runs no kernels")
        return
    on_device = [each for each in averages if each.device_type == DeviceType.CUDA]
    copies = sum(each.count for each in on_device if each.key.startswith(("Memcpy", "Memset")))
    kernels = [each for each in on_device if not each.key.startswith(("Memcpy", "Memset", "Profiler"))]
    record.figure("kernels_per_step", sum(each.count for each in kernels) / PROFILED)
    record.figure("copies_per_step", copies / PROFILED)
    busy = sum(each.self_device_time_total for each in kernels)
    record.figure("kernel_ms_per_step", busy / 1e3 / PROFILED)


@torch.no_grad()
def compare(
    record: Record, policy: Policy, prompts: PromptBatch, rollout: Rollout, bounds: tuple[float, float]
) -> None:
    """Compares the log-probabilities of sampling with those of scoring."""
    chosen = list(range(min(COMPARED, len(prompts.samples))))
    rows = slice(len(chosen) * rollout.group_size)
    batch = ScoringBatch(
        prompts=prompts.select(chosen),
        completion_ids=rollout.completion_ids[rows],
        completion_mask=rollout.completion_mask[rows],
        group_size=rollout.group_size,
    )
    gaps = (policy(batch).logprobs - rollout.sampler_logprobs[rows]).abs()[batch.completion_mask].float()
    gaps_found(record, gaps, bounds)


def gaps_found(record: Record, gaps: torch.Tensor, bounds: tuple[float, float]) -> None:
    """Notes median, 99th percentile and maximum of differences in nats, and holds the first two to their bounds."""
    half, most = (float(gaps.quantile(share)) for share in (0.5, 0.99))
    record.figure("logprob_gap_p50_nats", half)
    record.figure("logprob_gap_p99_nats", most)
    record.figure("logprob_gap_max_nats", float(gaps.max()))
    record.expect(half <= bounds[0], f"half of the log-probabilities differ by up to {half:.3g} nats from scoring")
    record.expect(most <= bounds[1], f"99 % of the log-probabilities differ by up to {most:.3g} nats from scoring")
