"""What an engine in the process costs the trainer's threads on a CPU: a matrix product and a training step beside it.

    .venv-vllm/bin/python tools/vllm_threads.py                  two processes: as it is here, and as vLLM leaves it

Each process times the same work before it loads the engine and after, so the ratio is of one process. vLLM's CPU worker
binds its threads to cores and has torch take one of them, for the whole process; here it does neither.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the tiny models and their prompts

REPEATS = 15
SIZE = 1536


def main() -> int:
    """Runs the two processes, or one of them, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["kept", "left"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        measure(options.only)
        return 0
    print(f"{os.cpu_count()} cores; medians of {REPEATS}, before and with the engine")
    for name in ("kept", "left"):
        own = {"VLLM_CPU_OMP_THREADS_BIND": "auto"} if name == "left" else {}
        subprocess.run([sys.executable, __file__, "--only", name], env={**os.environ, **own}, check=True)
    return 0


def measure(name: str) -> None:
    """Times the work before and after an engine is loaded."""
    import families
    import torch

    from lightning_mmrl.rollout.vllm import process
    from lightning_mmrl.rollout.vllm.engine import VLLMEngine

    torch.set_num_threads(os.cpu_count() or 1)
    if name == "left":
        process._threads_kept = nullcontext
    square = torch.randn(SIZE, SIZE)
    layer = torch.nn.Linear(SIZE, SIZE)

    def step() -> None:
        layer(square).square().mean().backward()

    work = {"product": lambda: square @ square, "step": step}
    before = {each: median(work[each]) for each in work}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = families.build("qwen2_5_omni", Path(folder) / "model")
        encoder, policy = families.load("qwen2_5_omni", checkpoint, torch.float32)
        engine = VLLMEngine(policy, encoder=encoder, max_new_tokens=4)
        engine.load_weights(policy, 0)
        after = {each: median(work[each]) for each in work}
        engine.close()
    what = {"kept": "as it is here", "left": "as vLLM leaves it"}[name]
    for each in work:
        print(
            f"{what:<18} {each:<8} {1000 * before[each]:6.1f} ms, then {1000 * after[each]:6.1f} ms: "
            f"{after[each] / before[each]:.2f} times as long",
            flush=True,
        )


def median(work) -> float:
    """Seconds of one call, the middle of many."""
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[REPEATS // 2]


if __name__ == "__main__":
    sys.exit(main())
