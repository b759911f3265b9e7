"""Pushes and samples with vLLM again and again, and says whether the memory of the process grows.

    .venv-vllm/bin/python tools/bench/vllm_cycles.py         200 cycles of push and rollout on the tiny omni model

Every cycle changes all weights, pushes them and samples from prompts with every kind of medium. The slopes are those of
straight lines through the resident memory behind the first tenth of the cycles, and behind the first half, with their
standard errors.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))  # the tiny models and their prompts

import vllm_worlds  # noqa: E402  the path comes first


def main() -> int:
    """Runs the cycles and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=200, help="pushes and rollouts (default: 200)")
    parser.add_argument("--family", default="qwen2_5_omni", help="model family (default: qwen2_5_omni)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        world = vllm_worlds.world(options.family, Path(folder) / "model")
        resident, seconds = run(world, options.cycles)
        world.engine.close()
    kept = resident[len(resident) // 10 :]
    print(f"{len(resident)} cycles in {sum(seconds):.0f} s, {np.median(seconds):.2f} s each (median)")
    print(f"resident memory {kept[0]:.1f} to {kept[-1]:.1f} MiB, at most {max(kept):.1f}")
    for what, values in (("tenth", kept), ("half", resident[len(resident) // 2 :])):
        slope, error = line(values)
        print(f"behind the first {what}: slope {1024 * slope:+.1f} +- {1024 * error:.1f} KiB a cycle")
    print(f"peak of the process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    return 0


def run(world: "vllm_worlds.World", cycles: int) -> tuple[list[float], list[float]]:
    """Resident memory in MiB after every cycle, and its seconds."""
    process, resident, seconds = psutil.Process(), [], []
    for number in range(1, cycles + 1):
        start = time.perf_counter()
        world.move(number, size=0.001)
        world.engine.load_weights(world.policy, number)
        world.rollout(group_size=8)
        seconds.append(time.perf_counter() - start)
        resident.append(process.memory_info().rss / 2**20)
        print(
            f"{number}/{cycles}  {resident[-1]:.1f} MiB  ETA {np.mean(seconds) * (cycles - number):.0f} s", flush=True
        )
    return resident, seconds


def line(values: list[float]) -> tuple[float, float]:
    """Slope of a straight line through equally spaced values, and its standard error."""
    places = np.arange(len(values))
    (slope, _), covariance = np.polyfit(places, values, 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


if __name__ == "__main__":
    sys.exit(main())
