"""Step 3: one microbatch of three groups, scored and differentiated, with and without activation checkpointing."""

import math
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from bench_flops import useful_flops
from gpu_record import Record, Setup, peak_of, seconds_of
from gpu_worlds import policy_of, scoring_of, text_prompts
from torch import Tensor

from lightning_mmrl.algorithms.losses.aggregation import TokenMean
from lightning_mmrl.algorithms.losses.ppo_clip import PPOClip
from lightning_mmrl.models.parallelize import recompute_activations
from lightning_mmrl.models.policy import Policy
from lightning_mmrl.types.batches import LossInputs, ScoringBatch

PROMPTS, COMPLETIONS = (3000, 2950, 2900), (200, 190, 198, 180, 200, 170, 195, 160)
TOY_PROMPTS, TOY_COMPLETIONS = (60, 58, 55), (10, 9, 8, 10)
"""Ragged, so that tiles have fillers."""
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second by the makers' data sheets, by a part of the device's name."""
WAITS = "called a synchronizing CUDA operation"
LOSS_TOLERANCE, NORM_TOLERANCE = 1e-3, 2e-2
"""Relative differences with recomputed activations: kernels add gradients in bfloat16 in an order that may change."""


def run(setup: Setup, record: Record) -> None:
    """Measures without and then with recomputed activations; both must give the same loss and gradient."""
    policy = policy_of(setup, dtype=setup.choose(toy=torch.float32, large=torch.bfloat16))
    lengths, completions = setup.choose(toy=(TOY_PROMPTS, TOY_COMPLETIONS), large=(PROMPTS, COMPLETIONS))
    batch = scoring_of(setup, policy, text_prompts(setup, policy, lengths), (completions,) * len(lengths))
    tokens = sum(lengths) + len(lengths) * sum(completions)
    record.figure("tokens", tokens)
    outcomes = []
    for name in ("kept", "recomputed"):
        if name == "recomputed":
            recompute_activations(policy)
        try:
            with peak_of(setup, record, f"{name}_peak_gib"):
                outcomes.append(measure(setup, record, policy, batch, name))
        except torch.OutOfMemoryError:
            if name == "recomputed":
                raise
            policy.zero_grad()
            torch.cuda.empty_cache()
            record.skip("a microbatch that keeps its activations", "it does not fit this device")
    for name, tolerance, values in zip(
        ("loss", "gradient norm"), (LOSS_TOLERANCE, NORM_TOLERANCE), zip(*outcomes, strict=True), strict=True
    ):
        first, last = values[0], values[-1]
        record.expect(
            abs(first - last) <= tolerance * abs(first), f"recomputation changes the {name}: {first} to {last}"
        )
    if setup.on_gpu and len(outcomes) == 2:
        kept, recomputed = (record.figures[f"{name}_peak_gib"] for name in ("kept", "recomputed"))
        record.expect(recomputed < kept, f"recomputation does not lower the peak: {kept:.1f} to {recomputed:.1f} GiB")


def measure(setup: Setup, record: Record, policy: Policy, batch: ScoringBatch, name: str) -> tuple[float, float]:
    """Notes time, utilisation and waits; returns the loss and the norm of the gradient."""

    def step() -> Tensor:
        policy.zero_grad()
        loss = loss_of(policy, batch)
        loss.backward()
        return loss.detach()

    seconds = seconds_of(setup, step, repeats=2)
    record.figure(f"{name}_seconds", seconds)
    rate = _flops(policy, batch) / seconds
    record.figure(f"{name}_useful_tflops", rate / 1e12)
    _utilisation(setup, record, rate, name)
    if setup.on_gpu:
        _waits(record, step, name)
    else:
        record.skip(f"{name}: waits of the host for the device", "a CPU has none")
    loss = float(step())
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in policy.parameters() if p.grad is not None]))
    finite = math.isfinite(loss) and 0 < norm < math.inf
    record.expect(finite, f"{name}: the loss is {loss} and the norm of its gradient {norm}")
    return loss, norm


def loss_of(policy: Policy, batch: ScoringBatch) -> Tensor:
    """The clipped loss, token by token, for advantages that differ by completion."""
    logprobs, mask = policy(batch).logprobs, batch.completion_mask
    advantages = torch.linspace(-1, 1, len(mask), device=mask.device)[:, None].expand_as(mask)
    inputs = LossInputs(logprobs=logprobs, old_logprobs=logprobs.detach(), advantages=advantages, completion_mask=mask)
    aggregation = TokenMean()
    return aggregation.reduce(PPOClip()(inputs).token_losses, mask, aggregation.denominator(mask))


def _flops(policy: Policy, batch: ScoringBatch) -> float:
    """Operations of one forward and backward pass with nothing computed twice; completions at their mean length."""
    group = batch.group_size
    mean = round(int(batch.completion_mask.sum()) / len(batch.completion_mask))
    shape = {"tokens": mean, "group_size": group, "num_patches": 0}
    lengths = batch.prompts.prompt_mask.sum(-1).tolist()
    return sum(useful_flops(policy.model, prompt_length=length, **shape) for length in lengths)


def _utilisation(setup: Setup, record: Record, rate: float, name: str) -> None:
    if not setup.on_gpu:
        record.skip(f"{name}: utilisation", "the peak of a CPU is unknown")
        return
    device = torch.cuda.get_device_name()
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in device), None)
    if peak is None:
        record.skip(f"{name}: utilisation", f"the peak of {device} is unknown")
        return
    record.figure(f"{name}_mfu", rate / peak)


def _waits(record: Record, step: Callable[[], Tensor], name: str) -> None:
    """Counts where the host waits for the device; the three busiest lines are named."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(f"{Path(each.filename).name}:{each.lineno}" for each in caught if WAITS in str(each.message))
    record.figure(f"{name}_waits", sum(places.values()))
    busiest = ", ".join(f"{place} {count}" for place, count in places.most_common(3))
    record.figure(f"{name}_waits_most_at", busiest or "nowhere")
