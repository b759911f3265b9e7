"""Runs four curricula with GRPO and with RLOO for several seeds and holds the RL stages to their bounds.

    python tools/campaigns/curricula_campaign.py --seeds 0 1 2

Each seed is one run of `experiment=emotions_orders` (`orders-seed0` and so on), a tree of stages in which every
curriculum is a path; all seeds use the same dataset, and finished stages are not run again. Writes
`curricula-campaign.json` and `.md` to the output folder, and exits with 1 if a bound is missed.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

CHANCE = 100 / 7
PATHS = {
    "sft_only": ("cold_start",),
    "sft_then_rl, GRPO": ("cold_start", "grpo"),
    "sft_then_rl, RLOO": ("cold_start", "rloo"),
    "rl_only, GRPO": ("grpo_first",),
    "rl_only, RLOO": ("rloo_first",),
    "rl_then_sft, GRPO": ("grpo_first", "grpo_then_sft"),
    "rl_then_sft, RLOO": ("rloo_first", "rloo_then_sft"),
}
"""Curriculum to the stages of the tree it consists of, after `pretrain`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """A figure, the bound it is held to, and whether it is met."""

    name: str
    value: float
    rule: str
    met: bool


def main() -> int:
    """Runs the campaign and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    parser.add_argument("--data-root", type=Path, default=Path("data/emotions"))
    parser.add_argument("--parallel", type=int, default=1, help="seeds at a time; give each its threads by an override")
    parser.add_argument("--overrides", nargs="*", default=[], help="more overrides of `mmrl train`")
    options = parser.parse_args()
    with ThreadPoolExecutor(options.parallel) as pool:
        seconds = list(pool.map(lambda seed: _train(seed, options), options.seeds))
    figures = {seed: _figures(options.output_dir / f"orders-seed{seed}") for seed in options.seeds}
    ceiling = 100 * json.loads((options.data_root / "labels.json").read_text())["unimodal_ceiling"]["face"]
    bounds = [bound for stage in ("grpo", "rloo") for bound in _bounds(stage, figures, ceiling)]
    report = "\n".join([*_curricula_table(figures), "", *_gains_table(figures), "", *_verdicts(bounds)])
    print(report)
    print(
        "seconds per seed:", ", ".join(f"{seed}: {each:.0f}" for seed, each in zip(options.seeds, seconds, strict=True))
    )
    content = {"seeds": figures, "bounds": [asdict(bound) for bound in bounds]}
    (options.output_dir / "curricula-campaign.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (options.output_dir / "curricula-campaign.md").write_text(report + "\n", encoding="utf-8")
    return 0 if all(bound.met for bound in bounds) else 1


def _train(seed: int, options: argparse.Namespace) -> float:
    command = [sys.executable, "-m", "lightning_mmrl.cli.main", "train", "experiment=emotions_orders"]
    settings = [f"seed={seed}", f"run_name=orders-seed{seed}", f"output_dir={options.output_dir}"]
    started = time.monotonic()
    log = options.output_dir / f"orders-seed{seed}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        arguments = [*command, *settings, f"data.root={options.data_root}", *options.overrides]
        subprocess.run(arguments, check=True, stdout=file, stderr=subprocess.STDOUT)
    return time.monotonic() - started


def _figures(directory: Path) -> dict[str, Any]:
    """Percentages by `<stage>/<set>`, and the gains of each stage over the one it started from."""
    comparison = json.loads((directory / "comparison.json").read_text(encoding="utf-8"))
    sets = {
        f"{row['stage']}/{row['name']}": {
            **{
                f"uar{end}": 100 * row["uar"][key]
                for end, key in (("", "estimate"), ("_low", "low"), ("_high", "high"))
            },
            "valid_format": 100 * row["metrics"]["valid_format"],
            "consistency": 100 * row["metrics"]["consistency"],
        }
        for row in comparison["results"]
    }
    gains = {
        f"{row['stage']}/{row['name']}": {key: 100 * row["difference"][key] for key in ("estimate", "low", "high")}
        for row in comparison["gains"]
    }
    return {"sets": sets, "gains": gains}


def _curricula_table(figures: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Held-out and out-of-domain UAR at the end of every curriculum."""
    seeds = list(figures)
    lines = [
        f"| curriculum | {' | '.join(f'seed {seed}: test, ood' for seed in seeds)} | mean test | mean ood |",
        f"|---|{'---|' * (len(seeds) + 2)}",
    ]
    ends = {"pretrain alone (the base)": ("pretrain",), **PATHS}
    for name, path in ends.items():
        rows = [[figures[seed]["sets"][f"{path[-1]}/{which}"]["uar"] for which in ("test", "ood")] for seed in seeds]
        means = [sum(column) / len(seeds) for column in zip(*rows, strict=True)]
        cells = [f"{test:.1f}, {ood:.1f}" for test, ood in rows]
        lines.append(f"| {name} | {' | '.join(cells)} | {means[0]:.1f} | {means[1]:.1f} |")
    return lines


def _gains_table(figures: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """The gain of each stage over the one it started from, paired."""
    lines = [
        "| seed | stage | over the one it started from, test | out of domain | format | consistency |",
        "|---|---|---|---|---|---|",
    ]
    for seed, found in figures.items():
        for stage in [key.removesuffix("/test") for key in found["gains"] if key.endswith("/test")]:
            test, ood = (_interval(found["gains"][f"{stage}/{name}"]) for name in ("test", "ood"))
            full = found["sets"][f"{stage}/test"]
            lines.append(
                f"| {seed} | {stage} | {test} | {ood} | {full['valid_format']:.1f} | {full['consistency']:.1f} |"
            )
    return lines


def _interval(gain: Mapping[str, float]) -> str:
    return f"{gain['estimate']:+.1f} [{gain['low']:+.1f}, {gain['high']:+.1f}]"


def _verdicts(bounds: Sequence[Bound]) -> list[str]:
    missed = [f"- MISSED {bound.name}: {bound.value:.1f} ({bound.rule})" for bound in bounds if not bound.met]
    return [f"{len(bounds) - len(missed)} of {len(bounds)} bounds are met.", *missed]


def _bounds(stage: str, figures: Mapping[int, Mapping[str, Any]], ceiling: float) -> list[Bound]:
    gains = {seed: each["gains"][f"{stage}/test"] for seed, each in figures.items()}
    mean = sum(gain["estimate"] for gain in gains.values()) / len(gains)
    bounds = [Bound(name=f"{stage}: mean gain in held-out UAR", value=mean, rule="at least 6", met=mean >= 6)]
    for seed, each in figures.items():
        low, full = gains[seed]["low"], each["sets"][f"{stage}/test"]
        name = f"{stage}, seed {seed}"
        bounds += [
            Bound(name=f"{name}: lower end of the gain", value=low, rule="above 0", met=low > 0),
            _at_least(f"{name}: valid format", full["valid_format"], 95),
            _at_least(f"{name}: consistency", full["consistency"], 85),
        ]
        for variant in ("silent", "blank"):
            found = each["sets"][f"{stage}/test-{variant}"]
            bounds += _ablation(f"{name}, {variant}", found, full["uar"], ceiling)
    return bounds


def _ablation(name: str, found: Mapping[str, float], full: float, ceiling: float) -> list[Bound]:
    uar = found["uar"]
    return [
        _at_least(f"{name}: valid format", found["valid_format"], 95),
        Bound(name=f"{name}: UAR", value=uar, rule=f"above chance {CHANCE:.1f}", met=uar > CHANCE),
        Bound(name=f"{name}: UAR", value=uar, rule=f"at most {ceiling + 3:.1f}", met=uar <= ceiling + 3),
        Bound(name=f"{name}: UAR", value=uar, rule=f"at most {full - 10:.1f}, ten below full", met=uar <= full - 10),
    ]


def _at_least(name: str, value: float, bound: float) -> Bound:
    return Bound(name=name, value=value, rule=f"at least {bound:g}", met=value >= bound)


if __name__ == "__main__":
    sys.exit(main())
