"""Step 5: a frozen vision tower on the clips of a microbatch and on those of a whole evaluation batch."""

import time
from typing import Any

import torch
from gpu_record import GIB, Record, Setup
from gpu_worlds import Sizes, clip_prompts, policy_of, spread
from torch import Tensor

from lightning_mmrl.models.families.media_keys import VIDEO_GRID, VIDEO_PIXELS, VIDEO_SCALE
from lightning_mmrl.models.families.qwen_vision import normalized
from lightning_mmrl.models.policy import Policy

GRID, CLIPS = (4, 52, 92), (17, 64)
"""Eight frames of 720p, two to a patch; 17 such clips have 325k patches, 64 have 1.2 million."""
TOY_GRID, TOY_CLIPS = (2, 8, 8), (3, 11)
MOST_GROWTH = 1.5
"""Most growth of the working memory from the smaller to the larger number of clips, whose ratio is 3.8."""
CHANGE = 0.05
"""Relative root-mean-square difference of a clip's features alone and among others, in bfloat16.

Kernels for other sizes add in another order, over 32 blocks that each round to 2**-8. Windows that leak give about 1.
"""


def run(setup: Setup, record: Record) -> None:
    """Encodes fewer and more clips, and compares the last clip with itself alone."""
    normalize(setup, record)
    dtype = setup.choose(toy=torch.float32, large=torch.bfloat16)
    policy = spread(setup, policy_of(setup, dtype=dtype, sizes=Sizes(layers=1)))
    policy.freeze(["vision"])
    grid, counts = setup.choose(toy=(TOY_GRID, TOY_CLIPS), large=(GRID, CLIPS))
    policy.media.encode(clip_prompts(setup, policy, 1, grid))  # a warm-up
    working = [encode(setup, record, policy, count, grid) for count in counts]
    if not setup.on_gpu:
        record.skip("memory of the towers", "a CPU keeps no count of its tensors")
        return
    growth = working[1] / max(working[0], 1 / GIB)
    record.figure("working_memory_growth", growth)
    record.expect(
        growth <= MOST_GROWTH,
        f"the working memory of the tower grows {growth:.1f} times with {counts[1] / counts[0]:.1f} times the patches",
    )


def normalize(setup: Setup, record: Record) -> None:
    """Compares the normalized patches of the device with the host's, which are the processor's, to the last bit."""
    colors = torch.tensor([[[0.4815, 0.4578, 0.4082], [0.2686, 0.2613, 0.2758]]]) * 255
    pixels = torch.arange(256, dtype=torch.uint8).repeat(1024, 1)[:, torch.randperm(256)].repeat(1, 6)
    tensors = {VIDEO_PIXELS: pixels, VIDEO_GRID: torch.tensor([[1, 32, 32]]), VIDEO_SCALE: colors}
    there = normalized({key: tensor.to(setup.device) for key, tensor in tensors.items()})[VIDEO_PIXELS]
    same = torch.equal(there.cpu(), normalized(tensors)[VIDEO_PIXELS])
    record.expect(same, "the device normalizes bytes of pictures to other numbers than the host")


def encode(setup: Setup, record: Record, policy: Policy, count: int, grid: tuple[int, int, int]) -> float:
    """Notes time and memory of some clips; returns the working memory in GiB, without inputs and outputs."""
    prompts = clip_prompts(setup, policy, count, grid)
    patches = count * grid[0] * grid[1] * grid[2]
    visual: Any = policy.model.get_submodule("model.visual")
    calls: list[int] = []
    handle = visual.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(_rows(args, kwargs)), with_kwargs=True
    )
    setup.wait()
    before = _allocated(setup)
    start = time.perf_counter()
    features = policy.media.encode(prompts).media.tensors["video"]
    setup.wait()
    handle.remove()
    record.figure(f"patches_{patches}_seconds", time.perf_counter() - start)
    record.figure(f"patches_{patches}_most_at_once", max(calls))
    peak = torch.cuda.max_memory_allocated() if setup.on_gpu else 0
    if setup.on_gpu:
        record.figure(f"patches_{patches}_peak_gib", peak / GIB)
    record.expect(bool(features.isfinite().all()), f"features of {patches} patches are not finite")
    last = len(features) // count
    alone = policy.media.encode(prompts.select([count - 1])).media.tensors["video"]
    change = _change(features[-last:], alone)
    record.figure(f"patches_{patches}_change_alone", change)
    record.expect(change <= CHANGE, f"the last of {count} clips has other features alone: {change:.3f} relative")
    return (peak - before - features.nbytes) / GIB


def _allocated(setup: Setup) -> int:
    if not setup.on_gpu:
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return len(args[0] if args else kwargs["hidden_states"])


def _change(found: Tensor, wanted: Tensor) -> float:
    difference = (found.float() - wanted.float()).square().mean().sqrt()
    return float(difference / wanted.float().square().mean().sqrt())
