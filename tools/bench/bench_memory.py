"""Measures the memory of stages on this CPU and compares it with the plan.

    python tools/bench/bench_memory.py                    # all cases
    python tools/bench/bench_memory.py --only tiny_text

Each case trains two steps of SFT and two of RL in a process of its own. Bytes of tensors are counted as operations make
and free them, and compared with the highest phase of the plan for the lengths that occurred; `process` is the most that
the process held, with Python, libraries and what the allocator keeps, and its children's own memory at the end.
Half of the answers get a reward. Nothing is evaluated or validated.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

HELPERS = Path(__file__).parents[2] / "tests" / "helpers"
COMMON = (
    "trainer=cpu",
    "tracking=none",
    "evaluation.sets={test: {manifest: test.jsonl}}",
    "evaluation.base=false",
    "evaluation.limit=2",
    "trainer.max_steps=2",
    "state.in_background=false",
    "stages.cold_start.validate_every=null",
    "stages.cold_start.stop_when=null",
    "stages.reason.validate_every=null",
    "stages.cold_start.evaluation_sets=[]",
    "stages.reason.evaluation_sets=[]",
    "stages.reason.rewards.num_workers=0",
)
CASES = {
    "tiny_text": ("experiment=task_arithmetic", "model=tiny_qwen2", "stages.reason.sampling.max_new_tokens=16"),
    "tiny_image": ("experiment=task_counting", "stages.reason.sampling.max_new_tokens=16"),
    "smollm2": ("experiment=smollm2", "stages.reason.sampling.max_new_tokens=12"),
    "smollm2_whole": (
        "experiment=smollm2",
        "stages.reason.sampling.max_new_tokens=12",
        "stages.reason.algorithm.update.tokens_per_microbatch=16384",
    ),
    "smollm2_again": (
        "experiment=smollm2",
        "stages.reason.sampling.max_new_tokens=12",
        "trainer.activation_checkpointing=true",
        "stages.reason.algorithm.update.tokens_per_microbatch=16384",
    ),
}
GIB = 2**30


@dataclass(slots=True, kw_only=True)
class Measured:
    """One stage: bytes of tensors at most, bytes of the process, the lengths of prompts and answers, and patches."""

    stage: str
    tensors: int = 0
    rss: int = 0
    prompts: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    patches: list[int] = field(default_factory=list)


def measure(case: str, folder: Path) -> list[dict[str, Any]]:
    """Trains the stages of a case in this process; returns the measured and the planned bytes of each."""
    from lightning_mmrl.app.run import run_curriculum
    from lightning_mmrl.config.compose import compose
    from lightning_mmrl.planning.memory import Lengths, estimate
    from lightning_mmrl.planning.shapes import read_shape
    from lightning_mmrl.training.console import ConsoleProgress

    config = compose([*CASES[case], *COMMON, f"output_dir={folder}", "data.root=" + str(folder / "data")])
    found: list[Measured] = []
    with _watched(list(config.trained), found), ConsoleProgress(quiet=True) as console:
        run_curriculum(config, console)
    shape = read_shape(config.model.checkpoint, config.model.known_sizes)
    assert shape is not None
    rows = []
    for each in found:
        per_token = shape.stacks["vision"].rows_per_token if "vision" in shape.stacks else 1
        lengths = Lengths(
            prompt=round(_mean(each.prompts)),
            answer=round(_mean(each.answers)),
            clip=round(_mean(each.patches) / per_token) if any(each.patches) else None,
        )
        planned = estimate(shape, config.trained[each.stage], config.model.dtype, 1, lengths)
        rows.append(
            {
                "case": case,
                "stage": each.stage,
                "measured": each.tensors,
                "planned": planned.peak,
                "phase": planned.phase,
                "parts": dict(planned.phases[planned.phase]),
                "rss": each.rss,
                **asdict(lengths),
            }
        )
    return rows


@contextmanager
def _watched(names: list[str], found: list[Measured]) -> Iterator[None]:
    """Counts tensors, and notes lengths, while a Trainer fits."""
    sys.path.insert(0, str(HELPERS))
    import lightning
    from live_bytes import LiveBytes  # pyright: ignore[reportMissingImports]  its path comes first

    from lightning_mmrl.models.encoders import MediaEncoder
    from lightning_mmrl.models.policy import Policy
    from lightning_mmrl.rewards.compose import WeightedReward
    from lightning_mmrl.types.batches import MediaInputs
    from lightning_mmrl.types.records import Score

    fit, forward, score = lightning.Trainer.fit, Policy.forward, WeightedReward.score
    run_towers = MediaEncoder.with_features
    turns = cycle((0.0, 1.0))

    def alternating(self: Any, sample: Any, completion: Any) -> Score:
        """Gives every group a signal, so that all of them are scored."""
        return Score(total=next(turns), components={name: 1.0 for name in self.components})

    def watched_fit(self: Any, model: Any, *arguments: Any, **more: Any) -> None:
        seen = Measured(stage=names[len(found)])
        found.append(seen)
        _reset_peak()
        with LiveBytes(list(model.parameters())) as live:
            fit(self, model, *arguments, **more)
        seen.tensors, seen.rss = live.peak, _peak()

    def watched_forward(self: Any, batch: Any, *arguments: Any, **more: Any) -> Any:
        found[-1].prompts += batch.prompts.prompt_mask.sum(1).tolist()
        found[-1].answers += batch.completion_mask.sum(1).tolist()
        return forward(self, batch, *arguments, **more)

    def watched_towers(self: Any, prompts: Any) -> Any:
        counts = prompts.media.counts if isinstance(prompts.media, MediaInputs) else {}
        pixels = [count for name, count in counts.items() if name.startswith("pixel_values")]
        if found:  # evaluations before the first stage are not measured
            found[-1].patches += [sum(own) for own in zip(*pixels, strict=True)]
        return run_towers(self, prompts)

    lightning.Trainer.fit, Policy.forward = watched_fit, watched_forward  # type: ignore[method-assign]
    MediaEncoder.with_features = watched_towers  # type: ignore[method-assign]
    WeightedReward.score = alternating  # type: ignore[method-assign]
    try:
        yield
    finally:
        lightning.Trainer.fit, Policy.forward = fit, forward  # type: ignore[method-assign]
        WeightedReward.score = score  # type: ignore[method-assign]
        MediaEncoder.with_features = run_towers  # type: ignore[method-assign]


def _mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)


def _reset_peak() -> None:
    """Makes the process's highest resident memory its present one."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return own + sum(each.memory_full_info().uss for each in psutil.Process().children(recursive=True))


def show(rows: list[dict[str, Any]]) -> None:
    """Prints a table of the figures."""
    print("| case | stage | prompt + answer | tensors, GiB | plan, GiB | plan / tensors | phase | process, GiB |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        ratio = row["planned"] / row["measured"]
        print(
            f"| {row['case']} | {row['stage']} | {row['prompt']} + {row['answer']} | {row['measured'] / GIB:.3f} | "
            f"{row['planned'] / GIB:.3f} | {ratio:.2f} | {row['phase']} | {row['rss'] / GIB:.2f} |"
        )


def main() -> None:
    """Runs the chosen cases, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child is not None:
        (case,) = chosen.only
        with TemporaryDirectory() as folder:
            chosen.child.write_text(json.dumps(measure(case, Path(folder))))
        return
    rows: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        for case in chosen.only:
            out = Path(folder) / f"{case}.json"
            subprocess.run([sys.executable, __file__, "--only", case, "--child", str(out)], check=True)
            rows += json.loads(out.read_text())
    show(rows)


if __name__ == "__main__":
    main()
