"""Measures the phases of an iteration on many small shapes, and fits a cost model on half of them.

    python tools/bench/bench_scaling.py measure FILE      # processor time, one thread; goes on where it was stopped
    python tools/bench/bench_scaling.py fit FILE          # coefficients, and errors on the other half
    python tools/bench/bench_scaling.py paper             # tokens/s of 3B and 7B on GPUs, computed

On a busy machine, measure a second time with `--again`. A line of the file is one shape: sizes of a random
Qwen2.5-VL, prompt and completion length, group size and number of prompts, and for each phase the smallest processor
time of several repeats. Towers are frozen, completions have their full length, and all groups of a shape are one
microbatch. `scaling_model` says which half of the shapes is fitted.
"""

import argparse
import gc
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import scaling_model
from scaling_model import Shape

REPEATS = 3


def main() -> None:
    """Runs a subcommand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "fit", "paper"))
    parser.add_argument("file", type=Path, nargs="?", help="measurements as JSON lines")
    parser.add_argument("--work", type=Path, default=Path("runs/bench"), help="models (default: runs/bench)")
    parser.add_argument("--again", action="store_true", help="measure every shape once more; the fastest counts")
    options = parser.parse_args()
    if options.what == "paper":
        import scaling_paper

        print(scaling_paper.tables())
        return
    if options.file is None:
        parser.error(f"{options.what} needs the file of the measurements")
    if options.what == "measure":
        measure_all(options.file, options.work, again=options.again)
    else:
        print(scaling_model.report(read(options.file)))


def read(path: Path) -> dict[Shape, dict[str, float]]:
    """The measured shapes and the seconds of their phases, the smallest where a shape was measured several times."""
    best: dict[Shape, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        found = json.loads(line)
        known = best.setdefault(Shape(**found["shape"]), dict(found["seconds"]))
        known.update({phase: min(seconds, known[phase]) for phase, seconds in found["seconds"].items()})
    return best


def measure_all(path: Path, work: Path, *, again: bool) -> None:
    """Appends a line for each shape that is not in the file yet, or for every shape."""
    import torch

    torch.set_num_threads(1)
    known = {} if again else read(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, shape in enumerate(scaling_model.SHAPES, start=1):
        if shape in known:
            continue
        began = time.monotonic()
        seconds = measured(shape, work)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"shape": shape.as_dict(), "seconds": seconds}) + "\n")
        spent = time.monotonic() - began
        print(f"{number} of {len(scaling_model.SHAPES)}: {shape}, {spent:.0f} s", file=sys.stderr, flush=True)


def measured(shape: Shape, work: Path) -> dict[str, float]:
    """The processor seconds of each phase, the smallest of all repeats, after one that does not count."""
    from bench_models import World, model_folder
    from bench_ours import engine_of

    from lightning_mmrl.stages.experience import encoded
    from lightning_mmrl.types.batches import ScoringBatch

    world = World(model_folder(work, shape.width, shape.layers))
    policy = world.policy(banned=world.unending)
    policy.freeze(["vision"])
    prompts = world.prompts(shape.prompt, tuple(range(shape.prompts)))
    ids, mask = world.completions(shape.completion, shape.prompts * shape.group)
    features, _ = encoded(policy, prompts, differentiable=False)
    batch = ScoringBatch(prompts=features, completion_ids=ids, completion_mask=mask, group_size=shape.group)
    engine = engine_of(world, policy, shape.completion)
    phases = _Phases(policy, engine, prompts, batch)
    best: dict[str, float] = {}
    for repeat in range(REPEATS + 1):
        for name, seconds in phases.once().items():
            best[name] = seconds if repeat < 2 else min(best[name], seconds)
    del phases, policy, engine, batch, features
    gc.collect()
    return best


class _Phases:
    """One iteration of a shape, phase by phase."""

    def __init__(self, policy: Any, engine: Any, prompts: Any, batch: Any) -> None:
        import torch

        self._policy, self._engine, self._prompts, self._batch = policy, engine, prompts, batch
        trained = [each for each in policy.parameters() if each.requires_grad]
        self._optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
        self._decodes_from: float | None = None
        policy.model.model.language_model.layers[0].register_forward_pre_hook(self._see, with_kwargs=True)

    def once(self) -> dict[str, float]:
        """Processor seconds of each phase."""
        import torch

        size, rows = self._batch.group_size, len(self._batch.completion_ids)
        with torch.no_grad():
            encode = _seconds(lambda: self._policy.media.encode(self._prompts))
            score = _seconds(lambda: self._policy(self._batch))
        self._decodes_from = None
        seeds = [[row for row in range(first, first + size)] for first in range(0, rows, size)]
        began = time.process_time()
        self._engine.generate(self._batch.prompts, group_size=size, seeds=seeds)
        ended = time.process_time()
        assert self._decodes_from is not None
        update = _seconds(lambda: self._policy(self._batch).logprobs.mean().backward())
        step = _seconds(self._optimizer.step)
        self._optimizer.zero_grad()
        return {
            "encode": encode,
            "prefill": self._decodes_from - began,
            "decode": ended - self._decodes_from,
            "score": score,
            "update": update,
            "step": step,
        }

    def _see(self, layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Notes when the decoder gets the first sampled tokens: no more than there are completions."""
        states = args[0] if args else kwargs["hidden_states"]
        if self._decodes_from is None and states.shape[0] * states.shape[1] <= len(self._batch.completion_ids):
            self._decodes_from = time.process_time()


def _seconds(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    main()
