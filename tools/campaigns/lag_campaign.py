"""Trains the quickstart's RL stage with and without a lag, for several seeds, and compares them in pairs.

    python tools/campaigns/lag_campaign.py --output-dir /elsewhere/lag --seeds 0 1 2 3 4 5

Each seed has one pretraining and cold start (`cold-seed0` and so on), from which three RL stages start: without a lag
(`lag0`), with `rollout.lag=1` and a correction (`lag1`), and the control (`uncorrected`): a lag of 4, a learning rate
ten times as high (`--control-lr`), and a correction whose bounds leave every weight at 1 within 1e-6, so that nothing
is corrected. A stopped run continues, and a finished one only reports.

The differences of the headline on the test set are paired by seed and question; their intervals resample questions with
their answers of all seeds, with a paired t over seeds beside them. The overlap is the share of the engine's time in
which the trainer did not wait for it. Writes lag-campaign.json and .md to the output folder. Exits with 1 unless the
lower end of `lag1` over `lag0` is at least -5 points, and `uncorrected` is worse than `lag0`, with the upper end of the
difference below 0.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from math import fsum
from pathlib import Path

from seed_runs import gain_line, gain_over_seeds, percentages, pooled, pooled_gain, task_of, train

CORRECTION = "lightning_mmrl.algorithms.corrections.importance.ImportanceCorrection"
KEY = "+stages.reason.algorithm.correction"
LEAST = -0.05
"""The lower end that `lag1` over `lag0` may have."""


def main() -> int:
    """Runs the campaign and returns the exit code."""
    options = _options()
    arms = {
        "lag0": [],
        "lag1": ["rollout.lag=1", f"{KEY}._target_={CORRECTION}"],
        "uncorrected": [
            "rollout.lag=4",
            f"{KEY}._target_={CORRECTION}",
            f"{KEY}.cap=1.000001",
            f"{KEY}.floor=0.999999",
            f"stages.reason.optimizer.lr={options.control_lr:g}",
        ],
    }
    places = [f"data.root={options.output_dir}/data", f"data.media.cache_dir={options.output_dir}/cache"]
    shared = [*places, "evaluation.ablations=[]", *options.overrides]
    for seed in options.seeds:
        cold = options.output_dir / f"cold-seed{seed}"
        train("quickstart", seed, cold, [*shared, "order=[pretrain,cold_start]"])
        start = [f"model.checkpoint={cold}/stages/01-cold_start/handoff", "model.build=null", "order=[reason]"]
        for name, own in arms.items():
            folder = options.output_dir / f"{name}-seed{seed}"
            train("quickstart", seed, folder, [*shared, *start, *own])
    folders = {name: {seed: options.output_dir / f"{name}-seed{seed}" for seed in options.seeds} for name in arms}
    answers = {name: pooled(found, "reason") for name, found in folders.items()}
    task = task_of([each for judged in answers.values() for each in judged])
    gains = {name: pooled_gain(answers[name], answers["lag0"], task) for name in ("lag1", "uncorrected")}
    lines = [f"| arm | {' | '.join(f'seed {seed}' for seed in options.seeds)} | mean | overlap |"]
    lines.append("|---" * (len(options.seeds) + 3) + "|")
    for name, judged in answers.items():
        values = percentages(judged, options.seeds, task, task.headline)
        cells = " | ".join(f"{value:.1f}" for value in values)
        lines.append(f"| {name} | {cells} | {fsum(values) / len(values):.1f} | {_told(overlap(folders[name]))} |")
    found = {name: gain_over_seeds(answers[name], answers["lag0"], options.seeds, task) for name in gains}
    over_seeds = {name: None if each is None else asdict(each) for name, each in found.items()}
    lines += ["", *(gain_line(name, "lag0", asdict(gain), over_seeds[name]) for name, gain in gains.items())]
    report = "\n".join(lines)
    print(report)
    content = {
        name: asdict(gain) | {"over_seeds": over_seeds[name], "overlap": overlap(folders[name])}
        for name, gain in gains.items()
    }
    (options.output_dir / "lag-campaign.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (options.output_dir / "lag-campaign.md").write_text(report + "\n", encoding="utf-8")
    return 0 if gains["lag1"].low >= LEAST and gains["uncorrected"].high < 0 else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--output-dir", type=Path, required=True, help="runs and results, outside of the checkout")
    parser.add_argument("--control-lr", type=float, default=1.5e-3, help="learning rate of the control")
    parser.add_argument("--overrides", nargs="*", default=[], help="more overrides of `mmrl train`")
    options = parser.parse_args()
    options.output_dir = options.output_dir.absolute()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    return options


def overlap(folders: Mapping[int, Path]) -> float | None:
    """The share of the engine's time in which the trainer did something else; None without an engine process."""
    engine_s = beside_s = 0.0
    for folder in folders.values():
        for line in next(folder.glob("stages/*-reason/metrics.jsonl")).read_text(encoding="utf-8").splitlines():
            metrics = json.loads(line)["metrics"]
            sampled_s = metrics.get("reason/time/beside/engine_s", 0.0)
            engine_s += sampled_s
            beside_s += max(0.0, sampled_s - metrics.get("reason/time/await_rollout_s", 0.0))
    return beside_s / engine_s if engine_s else None


def _told(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


if __name__ == "__main__":
    sys.exit(main())
