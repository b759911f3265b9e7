"""Trains the tiny model on every generated task and holds the gain of RL over the cold start against zero.

    python tools/campaigns/task_campaign.py --seeds 0

Each task and seed is a run of its own (`task_tones-seed0` and so on), that is one reproducible experiment file; a
finished run is not trained again. Prints a table, writes OUTPUT_DIR/task-campaign.json, and exits with 1 if the 95 %
interval of a gain is not above 0. Accuracy is unweighted over labels, of which each held-out set has equally many.
Hyperparameters were chosen on validation.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

TASKS = ("geometry", "counting", "tones", "motion", "arithmetic")


def main() -> int:
    """Runs the campaign and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    parser.add_argument("--overrides", nargs="*", default=[], help="more overrides of `mmrl train`")
    options = parser.parse_args()
    rows = []
    for task in options.tasks:
        for seed in options.seeds:
            directory = options.output_dir / f"task_{task}-seed{seed}"
            _train(task, seed, directory, options.overrides)
            rows.append({"task": task, "seed": seed, "seconds": _seconds(directory), **_figures(directory)})
            print(_line(rows[-1]), flush=True)
    print("", HEADER, *map(_line, rows), sep="\n")
    report = options.output_dir / "task-campaign.json"
    report.write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")
    return 0 if all(row["gain"]["low"] > 0 for row in rows) else 1


def _train(task: str, seed: int, directory: Path, overrides: list[str]) -> None:
    if (directory / "comparison.json").is_file():
        return
    where = [f"output_dir={directory.parent}", f"run_name={directory.name}", f"seed={seed}"]
    command = [sys.executable, "-m", "lightning_mmrl.cli.main", "train", f"experiment=task_{task}", *where, *overrides]
    code = subprocess.run(command, check=False).returncode
    if code:
        sys.exit(f"task_campaign: {directory.name} ended with exit code {code}; mend it and run the same command again")


def _seconds(directory: Path) -> float:
    """Seconds of training and evaluation, in whichever process they passed."""
    stages = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["stages"]
    return sum(sum(stage["result"]["seconds"].values()) for stage in stages.values())


def _figures(directory: Path) -> dict[str, Any]:
    """Accuracies in percent with their number of samples, and the paired gain of RL with its interval."""
    comparison = json.loads((directory / "comparison.json").read_text(encoding="utf-8"))
    [gain] = [each for each in comparison["gains"] if (each["stage"], each["name"]) == ("reason", "test")]
    sets = {row["stage"]: row for row in comparison["results"] if row["name"] == "test"}
    return {
        "num_samples": sets["reason"]["num_samples"],
        "cold_start": 100 * sets["cold_start"]["uar"]["estimate"],
        "reason": 100 * sets["reason"]["uar"]["estimate"],
        "valid_format": 100 * sets["reason"]["metrics"]["valid_format"],
        "gain": {key: 100 * gain["difference"][key] for key in ("estimate", "low", "high")},
    }


HEADER = "task        seed  samples  cold start  after RL  gain  [95 % interval]  above 0  seconds"


def _line(row: dict[str, Any]) -> str:
    gain = row["gain"]
    interval = f"[{gain['low']:+.1f}, {gain['high']:+.1f}]"
    verdict = "yes" if gain["low"] > 0 else "NO"
    return (
        f"{row['task']:<10}  {row['seed']:>4}  {row['num_samples']:>7}  {row['cold_start']:>10.1f}  "
        f"{row['reason']:>8.1f}  {gain['estimate']:>+4.1f}  {interval:>15}  {verdict:>7}  {row['seconds']:>7.0f}"
    )


if __name__ == "__main__":
    sys.exit(main())
