"""The cost of an engine in the process for the trainer's threads on a CPU: a matrix product and a training step.

    .venv-vllm/bin/python tools/bench/vllm_threads.py        two processes: as it is here, and as vLLM leaves it

Each process times the same work before it loads the engine and after, so the ratio is of one process. In turn with that
it times the work with one thread, so that a measurement that could not find a thread less is seen for what it is.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "helpers"))  # the tiny models and their prompts

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

    set_threads = torch.set_num_threads  # vLLM replaces it
    set_threads(os.cpu_count() or 1)
    if name == "left":
        process._threads_kept = nullcontext
    square = torch.randn(SIZE, SIZE)
    layer = torch.nn.Linear(SIZE, SIZE)

    def step() -> None:
        layer(square).square().mean().backward()

    work = {"product": lambda: square @ square, "step": step}

    def times() -> dict[tuple[str, int], float]:
        """Seconds by kind of work and number of threads: as many as there are, and one."""
        found = torch.get_num_threads()
        counts = sorted({found, 1})
        seconds = {(each, count): [] for each in work for count in counts}
        for _ in range(REPEATS):
            for (each, count), kept in seconds.items():
                set_threads(count)
                work[each]()  # the threads' first work with this number
                kept.append(duration(work[each]))
        set_threads(found)
        return {key: statistics.median(kept) for key, kept in seconds.items()}

    before, threads = times(), [torch.get_num_threads()]
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = families.build("qwen2_5_omni", Path(folder) / "model")
        encoder, policy = families.load("qwen2_5_omni", checkpoint, torch.float32)
        engine = VLLMEngine(policy, encoder=encoder, max_new_tokens=4)
        engine.load_weights(policy, 0)
        threads.append(torch.get_num_threads())
        after = times()
        engine.close()
    what = {"kept": "as it is here", "left": "as vLLM leaves it"}[name]
    print(f"{what}: {threads[0]} threads, then {threads[1]}; cores {sorted(os.sched_getaffinity(0))}")
    for each in work:
        first, then, one = before[each, threads[0]], after[each, threads[1]], after[each, 1]
        print(
            f"    {each:<8} {1000 * first:6.1f} ms, then {1000 * then:6.1f} ms: {then / first:.2f} times as long; "
            f"with one thread {1000 * one:6.1f} ms: {one / first:.2f}",
            flush=True,
        )


def duration(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
