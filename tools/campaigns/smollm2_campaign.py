"""Trains SmolLM2-135M in three orders for several seeds and holds the pooled gain of RL over its start against zero.

    python tools/campaigns/smollm2_campaign.py --seeds 0 1 2

Each seed is one run of `experiment=smollm2_orders` (`smollm2-seed0` and so on): SFT alone is its stage `cold_start`,
SFT then RL `reason`, and RL alone `reason_first`. All seeds use the same questions. A run that was stopped continues,
and a finished one only reports. Accuracies are on the test set. Gains are paired by question, pooled over seeds, and
their intervals resample questions with their answers of all seeds. Writes smollm2-campaign.json and .md to the output
folder, and exits with 1 if the pooled gain of `reason` over `cold_start`, or that of `reason_first` over the base, is
not above 0.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from lightning_mmrl.evaluation.intervals import ClusterBootstrap, Interval
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.mathematics import Mathematics
from lightning_mmrl.rewards.math_answer import MathAnswer

ORDERS: Mapping[str, str] = {
    "base": "base",
    "SFT": "cold_start",
    "SFT then RL": "reason",
    "RL": "reason_first",
}
"""Order to the stage of the tree that it ends with."""
GAINS = (("SFT then RL", "SFT"), ("RL", "base"), ("SFT then RL", "base"), ("SFT", "base"))
"""Pairs of orders; the first two are of RL over its start, and must be above 0."""
TASK = Mathematics(verifier=MathAnswer(reading="prose"))


def main() -> int:
    """Runs the campaign and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    parser.add_argument("--overrides", nargs="*", default=[], help="more overrides of `mmrl train`")
    options = parser.parse_args()
    folders = {seed: options.output_dir / f"smollm2-seed{seed}" for seed in options.seeds}
    for seed, folder in folders.items():
        _train(seed, folder, options.overrides)
    answers = {order: _pooled(folders, stage) for order, stage in ORDERS.items()}
    gains = {pair: pooled_gain(answers[pair[0]], answers[pair[1]]) for pair in GAINS}
    report = "\n".join([*_accuracies(answers, options.seeds), "", *_gains(gains)])
    print(report)
    content = [{"order": order, "over": over, **asdict(gain)} for (order, over), gain in gains.items()]
    (options.output_dir / "smollm2-campaign.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (options.output_dir / "smollm2-campaign.md").write_text(report + "\n", encoding="utf-8")
    return 0 if all(gains[pair].low > 0 for pair in GAINS[:2]) else 1


def pooled_gain(own: Sequence[Judgement], before: Sequence[Judgement]) -> Interval:
    """Accuracy of an order minus that of another, on the same questions and seeds; questions are resampled."""
    return ClusterBootstrap().paired_difference(own, before, TASK)


def _train(seed: int, folder: Path, overrides: Sequence[str]) -> None:
    where = [f"output_dir={folder.parent}", f"run_name={folder.name}", f"seed={seed}"]
    command = [sys.executable, "-m", "lightning_mmrl.cli.main", "train", "experiment=smollm2_orders"]
    code = subprocess.run([*command, *where, *overrides], check=False).returncode
    if code:
        sys.exit(f"smollm2_campaign: {folder.name} ended with exit code {code}; run the same command to continue")


def _pooled(folders: Mapping[int, Path], stage: str) -> list[Judgement]:
    """The judged test answers of a stage of all runs; the seed joins a question's id, which is its speaker."""
    found = []
    for seed, folder in folders.items():
        pattern = "base" if stage == "base" else f"stages/*-{stage}"
        [file] = folder.glob(f"{pattern}/evaluation/test.jsonl")
        lines = file.read_text(encoding="utf-8").splitlines()
        judged = [Judgement.from_json(line) for line in lines]
        found += [replace(each, sample_id=f"{seed}/{each.sample_id}", speaker=each.sample_id) for each in judged]
    return found


def _accuracies(answers: Mapping[str, Sequence[Judgement]], seeds: Sequence[int]) -> list[str]:
    lines = [
        f"| order | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | answers |",
        "|---" * (len(seeds) + 3) + "|",
    ]
    for order, judged in answers.items():
        parts = [[each for each in judged if each.sample_id.startswith(f"{seed}/")] for seed in seeds]
        values = [100 * TASK.metrics(part)["accuracy"] for part in parts]
        cells = " | ".join(f"{value:.1f}" for value in values)
        stated = 100 * TASK.metrics(judged)["valid_format"]
        lines.append(f"| {order} | {cells} | {sum(values) / len(values):.1f} | {stated:.1f} |")
    return lines


def _gains(gains: Mapping[tuple[str, str], Interval]) -> list[str]:
    return [
        f"- {order} over {over}: {100 * gain.estimate:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"
        for (order, over), gain in gains.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
