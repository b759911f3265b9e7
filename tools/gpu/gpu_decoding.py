"""Step 4: decoding of 32 prompts with 8 rows each: time of a step, kernels, dispatches, and agreement with scoring.

Then the same with steps that are captured and replayed (`rollout.cuda_graphs`): the time of a replay, and whether the
tokens are those of the same steps without a capture.
"""

import time
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from gpu_record import Record, Setup
from gpu_worlds import PAD, policy_of, spread, text_prompts
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from lightning_mmrl.models import captured
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.rollout.hf import HFEngine
from lightning_mmrl.settings.algorithm import SamplingSettings
from lightning_mmrl.types.batches import PromptBatch, Rollout, ScoringBatch

STEPS, WARM = 64, 8
PROFILED = 8
"""Steps under the profiler, at the end: it would need a minute to read the events of all 64 steps of a large model."""
REPLAYED = (2, WARM, 32)
"""Steps at which the clock is read with captures: the first replay, and the span of replays that is timed. The step
after it begins another bucket."""
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
    profiler: profile | None = None
    marks: tuple[int, ...] = (0, 1, WARM, STEPS - PROFILED - 1)
    step: int = 0
    moments: dict[int, float] = field(default_factory=dict)

    def __call__(self) -> None:
        """Marks the beginning of a step."""
        if self.step in self.marks:
            self.setup.wait()
            self.moments[self.step] = time.perf_counter()
        if self.profiler is not None and self.step == STEPS - PROFILED - 1:
            self.profiler.start()
        if self.profiler is not None and self.step == STEPS - 1:
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
    profiler = profile(activities=activities)
    clock = Clock(setup, profiler)
    start = time.perf_counter()
    rollout = sample(policy, prompts, group, clock)
    record.figure("rows", len(lengths) * group)
    record.figure("prefill_seconds", clock.moments[0] - start)
    first, last = WARM, STEPS - PROFILED - 1
    record.figure("ms_per_step", 1e3 * (clock.moments[last] - clock.moments[first]) / (last - first))
    _count(setup, record, profiler)
    record.expect(bool(rollout.completion_mask.all()), "a row ended before its last step, or is not finite")
    compare(record, policy, prompts, rollout, BOUNDS[dtype])
    compare_captured(setup, record, policy, prompts, group)


def compare_captured(setup: Setup, record: Record, policy: Policy, prompts: PromptBatch, group: int) -> None:
    """Samples with captured steps and with the same steps uncaptured, compares the tokens, and times both."""
    ways, rollouts = ["static"], {}
    if setup.device.type in captured.CAPTURES:
        ways.append("captured")
    else:
        record.skip("captured steps", "a CPU captures none, and computes the same steps as they are")
    for way in ways:
        clock = Clock(setup, marks=(0, *REPLAYED))
        with patch.dict(captured.CAPTURES, clear=way == "static"):
            rollouts[way] = sample(policy, prompts, group, clock, graphs=True)
        first, last = REPLAYED[1:]
        record.figure(f"ms_per_{way}_step", 1e3 * (clock.moments[last] - clock.moments[first]) / (last - first))
        record.figure(f"seconds_of_the_first_two_{way}_steps", clock.moments[REPLAYED[0]] - clock.moments[0])
    equal = [torch.equal(each.completion_ids, rollouts["static"].completion_ids) for each in rollouts.values()]
    record.expect(all(equal), "captured steps sample other tokens than the same steps without a capture")
    found = Record()
    compare(found, policy, prompts, rollouts[ways[-1]], BOUNDS[next(policy.parameters()).dtype])
    for failure in found.failures:
        record.expect(False, f"with steps that can be captured, {failure}")


def sample(policy: Policy, prompts: PromptBatch, group: int, clock: Clock, *, graphs: bool = False) -> Rollout:
    """Completions of the full length: these models have no token that ends one."""
    engine = HFEngine(
        policy,
        decode=lambda ids: "",
        eos_token_ids=(),
        pad_token_id=PAD,
        sampling=SamplingSettings(max_new_tokens=STEPS),
        poll=clock,
    )
    engine.cuda_graphs = graphs
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
