"""Runs every preset of configs/algorithm for some iterations of `mmrl train` on the tiny model, end to end.

    python tools/campaigns/preset_campaign.py                        20 iterations of each preset
    python tools/campaigns/preset_campaign.py --presets dapo gspo

All start from one base (trained first, three minutes, once) and draw the same prompts. A run passes if its process ends
with 0, each iteration is there, every logged figure is finite, some group had a signal and the weights were updated.
Finished presets are kept in --work; the same command goes on with those that are missing.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from quick_runs import shared_arguments, start_training, trained_base

PRESETS = sorted(path.stem for path in Path(__file__).parents[2].glob("configs/algorithm/*.yaml"))
LIMIT_S = 1200
STAGE = "reason"
BATCH_SIZE = 16
OWN: Mapping[str, Sequence[str]] = {
    # Its second phase begins after 100 iterations, with 8,192 tokens.
    "vision_r1_ptst": (
        "stages.reason.algorithm.phases.longer.after=10",
        "stages.reason.algorithm.phases.longer.max_new_tokens=32",
    ),
}
"""Lengths for a short run of a tiny model, in place of a preset's own."""


def main() -> int:
    """Runs what is missing and returns the exit code: 1 if a preset failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=PRESETS, metavar="PRESET")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--work", type=Path, default=Path("runs/preset-campaign"), help="runs and results")
    parser.add_argument("--data-root", type=Path, default=Path("data/emotions"), help="made if it is not there")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    base = trained_base(options.work, options.data_root)
    results = []
    for number, name in enumerate(options.presets, 1):
        path = options.work / f"{name}.json"
        if not path.exists():
            print(f"{time.strftime('%H:%M:%S')} {number}/{len(options.presets)} {name}", file=sys.stderr, flush=True)
            result = _run(name, options, base)
            path.with_suffix(".json" if result["verdict"] == "passes" else ".failed").write_text(json.dumps(result))
            results.append(result)
        else:
            results.append(json.loads(path.read_text()))
    report = "\n".join(_table(results))
    print(report)
    (options.work / "report.md").write_text(report + "\n")
    return 0 if all(result["verdict"] == "passes" for result in results) else 1


def _run(name: str, options: argparse.Namespace, base: Path) -> dict[str, Any]:
    """One preset from the command line; a run that is started again continues."""
    stage = [f"num_steps={options.iterations}", f"data.batch_size={BATCH_SIZE}", f"validate_every={options.iterations}"]
    arguments = ["curriculum=rl_only", f"stage@stages.{STAGE}=tiny/reason", "trainer=cpu", "tracking=none"]
    arguments += [f"run_name={name}", f"model.checkpoint={base}", "model.build=null", "evaluation.max_new_tokens=24"]
    arguments += [f"algorithm@stages.{STAGE}={name}"]
    arguments += [f"stages.{STAGE}.{each}" for each in stage]
    arguments += [
        "data.limit=64",
        "data.validation_limit=16",
        "evaluation.limit=16",
        "evaluation.ablations=[]",
        *OWN.get(name, ()),
    ]
    start = time.monotonic()
    log = options.work / f"{name}.log"
    code = start_training([*arguments, *shared_arguments(options.work, options.data_root)], log).wait(LIMIT_S)
    metrics = next((options.work / name).glob(f"stages/*{STAGE}/metrics.jsonl"), None)
    rows = [json.loads(line)["metrics"] for line in metrics.read_text().splitlines()] if metrics is not None else []
    return {"preset": name, "seconds": time.monotonic() - start, **_judged(code, rows, options.iterations)}


def _judged(code: int, rows: Sequence[Mapping[str, Any]], iterations: int) -> dict[str, Any]:
    found = {key: [row[key] for row in rows if key in row] for key in {key for row in rows for key in row}}

    def series(key: str) -> list[float]:
        return found.get(f"{STAGE}/{key}", [])

    rewards, signal = series("rollout/reward_mean"), series("rollout/groups_with_signal")
    values = [value for column in found.values() for value in column if isinstance(value, float)]
    faults = {
        f"exit code {code}": code != 0,
        f"{len(rewards)} iterations": len(rewards) != iterations,
        "a figure is not finite": not all(map(math.isfinite, values)),
        "no group had a signal": not any(signal),
        "nothing was updated": not any(series("train/grad_norm")),
    }
    edge = max(1, len(rewards) // 4)
    return {
        "verdict": "; ".join(name for name, wrong in faults.items() if wrong) or "passes",
        "rewards": [fmean(rewards[:edge] or [math.nan]), fmean(rewards[-edge:] or [math.nan])],
        "signal": fmean(signal or [math.nan]),
        "clip_fraction": fmean(series("train/clip_fraction") or [math.nan]),
        "ratio_max": max(series("train/ratio_max"), default=math.nan),
        "reference_kl": (series("train/reference_kl") or [None])[-1],
    }


def _table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| preset | verdict | reward, first to last quarter | groups with a signal | ratio, most | clipped | KL | s |"
    ]
    lines.append("|---" * 8 + "|")
    for result in results:
        first, last = result["rewards"]
        kl = "-" if result["reference_kl"] is None else f"{result['reference_kl']:.1e}"
        lines.append(
            f"| `{result['preset']}` | {result['verdict']} | {first:.2f} to {last:.2f} | {result['signal']:.2f} | "
            f"{result['ratio_max']:.2f} | {result['clip_fraction']:.3f} | {kl} | {result['seconds']:.0f} |"
        )
    return [*lines, f"{sum(result['verdict'] == 'passes' for result in results)} of {len(results)} presets pass"]


if __name__ == "__main__":
    sys.exit(main())
