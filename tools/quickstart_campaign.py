"""Runs the quickstart for several seeds and holds its figures, line by line, against their bounds.

    python tools/quickstart_campaign.py --seeds 0 1 2

Each seed is a run of its own (`quickstart-seed0` and so on) on the same dataset; finished stages are not run again.
Writes `runs/quickstart-campaign.json` and exits with 1 if a bound is missed. Hyperparameters were chosen on validation.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHANCE = 100 / 7


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
    parser.add_argument("--overrides", nargs="*", default=[], help="more overrides of `mmrl train`")
    options = parser.parse_args()
    seconds = {seed: _train(seed, options.overrides) for seed in options.seeds}
    figures = {seed: _figures(Path("runs") / f"quickstart-seed{seed}") for seed in options.seeds}
    bounds = _bounds(figures)
    for bound in bounds:
        print(f"{'met   ' if bound.met else 'MISSED'}  {bound.name}: {bound.value:.1f} ({bound.rule})")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print("seconds per seed:", ", ".join(f"{seed}: {value:.0f}" for seed, value in seconds.items()))
    print(f"largest resident process: {memory:.2f} GiB")
    content = {"seeds": figures, "seconds": seconds, "memory_gib": memory}
    Path("runs/quickstart-campaign.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0 if all(bound.met for bound in bounds) else 1


def _train(seed: int, overrides: list[str]) -> float:
    command = [sys.executable, "-m", "lightning_mmrl.cli.main", "train", "experiment=quickstart"]
    started = time.monotonic()
    subprocess.run([*command, f"seed={seed}", f"run_name=quickstart-seed{seed}", *overrides], check=True)
    return time.monotonic() - started


def _figures(directory: Path) -> dict[str, Any]:
    """UAR and format in percent by stage and set, and the gains of GRPO with their intervals."""
    comparison = json.loads((directory / "comparison.json").read_text(encoding="utf-8"))
    sets = {
        f"{row['stage']}/{row['name']}": {
            "war": 100 * row["war"]["estimate"],
            "uar": 100 * row["uar"]["estimate"],
            "uar_low": 100 * row["uar"]["low"],
            "uar_high": 100 * row["uar"]["high"],
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


def _bounds(figures: dict[int, dict[str, Any]]) -> list[Bound]:
    ceiling = 100 * json.loads((Path("data/emotions") / "labels.json").read_text())["unimodal_ceiling"]["face"]
    gains = {seed: each["gains"]["reason/test"] for seed, each in figures.items()}
    mean = sum(gain["estimate"] for gain in gains.values()) / len(gains)
    bounds = [Bound(name="mean gain of GRPO in held-out UAR", value=mean, rule="at least 6", met=mean >= 6)]
    for seed, each in figures.items():
        low, full = gains[seed]["low"], each["sets"]["reason/test"]
        bounds += [
            Bound(name=f"seed {seed} lower end of the gain", value=low, rule="above 0", met=low > 0),
            _at_least(f"seed {seed} valid format", full["valid_format"], 95),
            _at_least(f"seed {seed} consistency", full["consistency"], 85),
        ]
        for variant in ("silent", "blank"):
            bounds += _ablation(f"seed {seed} {variant}", each["sets"][f"reason/test-{variant}"], full["uar"], ceiling)
    return bounds


def _ablation(name: str, found: dict[str, float], full: float, ceiling: float) -> list[Bound]:
    uar = found["uar"]
    return [
        _at_least(f"{name} valid format", found["valid_format"], 95),
        Bound(name=f"{name} UAR", value=uar, rule=f"above chance {CHANCE:.1f}", met=uar > CHANCE),
        Bound(name=f"{name} UAR", value=uar, rule=f"at most {ceiling + 3:.1f}", met=uar <= ceiling + 3),
        Bound(name=f"{name} UAR", value=uar, rule=f"at most {full - 10:.1f}, ten below full", met=uar <= full - 10),
    ]


def _at_least(name: str, value: float, bound: float) -> Bound:
    return Bound(name=name, value=value, rule=f"at least {bound:g}", met=value >= bound)


if __name__ == "__main__":
    sys.exit(main())
