"""Trains SmolLM2-135M in three orders for several seeds and holds the pooled gain of RL over its start against zero.

    python tools/campaigns/smollm2_campaign.py --seeds 0 1 2

Each seed is one run of `experiment=smollm2_orders` (`smollm2-seed0` and so on): SFT alone is its stage `cold_start`,
SFT then RL `reason`, and RL alone `reason_first`. All seeds use the same questions. A run that was stopped continues,
and a finished one only reports. Accuracies are on the test set. Gains are paired by question, pooled over seeds, and
their intervals resample questions with their answers of all seeds, with a paired t over seeds beside them. Writes
smollm2-campaign.json and .md to the output folder, and exits with 1 if the pooled gain of `reason` over `cold_start`,
or that of `reason_first` over the base, is not above 0.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from seed_runs import gain_line, gain_over_seeds, percentages, pooled, pooled_gain, train

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
        train("smollm2_orders", seed, folder, options.overrides)
    answers = {order: pooled(folders, stage) for order, stage in ORDERS.items()}
    gains = {pair: pooled_gain(answers[pair[0]], answers[pair[1]], TASK) for pair in GAINS}
    found = {pair: gain_over_seeds(answers[pair[0]], answers[pair[1]], options.seeds, TASK) for pair in GAINS}
    over_seeds = {pair: None if each is None else asdict(each) for pair, each in found.items()}
    lines = [gain_line(*pair, asdict(gain), over_seeds[pair]) for pair, gain in gains.items()]
    report = "\n".join([*_accuracies(answers, options.seeds), "", *lines])
    print(report)
    content = [
        {"order": order, "over": over, **asdict(gain), "over_seeds": over_seeds[order, over]}
        for (order, over), gain in gains.items()
    ]
    (options.output_dir / "smollm2-campaign.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (options.output_dir / "smollm2-campaign.md").write_text(report + "\n", encoding="utf-8")
    return 0 if all(gains[pair].low > 0 for pair in GAINS[:2]) else 1


def _accuracies(answers: Mapping[str, Sequence[Judgement]], seeds: Sequence[int]) -> list[str]:
    lines = [
        f"| order | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | answers |",
        "|---" * (len(seeds) + 3) + "|",
    ]
    for order, judged in answers.items():
        values = percentages(judged, seeds, TASK, "accuracy")
        cells = " | ".join(f"{value:.1f}" for value in values)
        stated = 100 * TASK.metrics(judged)["valid_format"]
        lines.append(f"| {order} | {cells} | {sum(values) / len(values):.1f} | {stated:.1f} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
