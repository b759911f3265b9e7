"""Trains the recipes of published systems at tiny scale for several seeds, and holds their end to their start.

    python tools/campaigns/recipe_campaign.py --recipes mm_eureka metis_rise --seeds 0 1 --output-dir runs

Each recipe and seed is one run of `experiment=NAME` (`mm_eureka-seed0` and so on) in the output folder. A run that was
stopped continues, and a finished one only reports. For each recipe the report has the headline metric of each stage on
each held-out set, gains of stages over others, the rows that data stages kept and dropped, and the time of each run.
Gains are paired by question, pooled over seeds, and their 95 % intervals resample questions with their answers of all
seeds; a second interval, of a paired t over seeds, says what other seeds would give. Writes recipe-campaign-NAME.json
and .md for each recipe, and exits with 1 if the first gain of a recipe is not above 0 on each set that its stages have.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from seed_runs import (
    BASE,
    evaluated,
    gain_line,
    gain_over_seeds,
    percentages,
    pooled,
    pooled_gain,
    task_of,
    train,
    usage,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The stages of a recipe to compare.

    Attributes:
        start: The stage that stands for the published system's base model.
        pairs: Stages whose gain over another is reported; the first is the recipe's end over its start.
        experiment: The experiment, where the recipe's name is none.
    """

    start: str
    pairs: Sequence[tuple[str, str]]
    experiment: str | None = None


R1_OMNI = (("reason", "pretrain"), ("reason", "cold_start"), ("reason", "labels"), ("cold_start", "pretrain"))
RECIPES: Mapping[str, Recipe] = {
    "visualthinker_r1_zero": Recipe(
        start="pretrain", pairs=(("reason", "pretrain"), ("labels", "pretrain"), ("reason", "labels"))
    ),
    "mm_eureka": Recipe(start="pretrain", pairs=(("reason", "pretrain"),)),
    "metis_rise": Recipe(
        start="pretrain", pairs=(("cold_start", "pretrain"), ("reason", "pretrain"), ("cold_start", "reason"))
    ),
    "rl_with_cold_start": Recipe(
        start="pretrain", pairs=(("reason", "pretrain"), ("cold_start", "pretrain"), ("reason", "cold_start"))
    ),
    "revisual_r1": Recipe(
        start="pretrain",
        pairs=(
            ("text", "pretrain"),
            ("cold_start", "pretrain"),
            ("pictures", "cold_start"),
            ("text", "pictures"),
            ("text", "cold_start"),
        ),
    ),
    "lmm_r1": Recipe(start="pretrain", pairs=(("pictures", "pretrain"), ("text", "pretrain"), ("pictures", "text"))),
    "vision_r1": Recipe(
        start="pretrain", pairs=(("reason", "pretrain"), ("cold_start", "pretrain"), ("reason", "cold_start"))
    ),
    "r1_omni": Recipe(start="pretrain", pairs=R1_OMNI),
    "r1_omni_files": Recipe(start="pretrain", pairs=R1_OMNI, experiment="r1_omni/files"),
}


def main() -> int:
    """Runs the campaign and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output-dir", type=Path, default=Path("runs"))
    parser.add_argument("--overrides", nargs="*", default=[], help="more overrides of `mmrl train`")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    met = []
    for name in options.recipes:
        folders = {seed: options.output_dir / f"{name}-seed{seed}" for seed in options.seeds}
        for seed, folder in folders.items():
            train(RECIPES[name].experiment or name, seed, folder, options.overrides)
        content = figures(RECIPES[name], folders)
        report = "\n".join([f"## {name}", "", *report_lines(content)])
        print(report, flush=True)
        file = options.output_dir / f"recipe-campaign-{name}"
        file.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        file.with_suffix(".md").write_text(report + "\n", encoding="utf-8")
        met += [gain["low"] > 0 for gain in content["gains"] if gain["pair"] == list(RECIPES[name].pairs[0])]
    return 0 if met and all(met) else 1


def figures(recipe: Recipe, folders: Mapping[int, Path]) -> dict[str, Any]:
    """All figures of the runs of a recipe, as plain values; headline metrics are in percent, gains are fractions."""
    first, seeds = next(iter(folders.values())), list(folders)
    stages = [BASE, *_stages(first)]
    answers = {stage: {name: pooled(folders, stage, name) for name in evaluated(first, stage)} for stage in stages}
    results, gains = [], []
    for stage, sets in answers.items():
        for name, judged in sets.items():
            task = task_of(judged)
            values = percentages(judged, seeds, task, task.headline)
            stated = 100 * task.metrics(judged)["valid_format"]
            results.append({"stage": stage, "set": name, "metric": task.headline, "values": values, "format": stated})
    for own, before in recipe.pairs:
        for name in [each for each in answers[own] if each in answers[before]]:
            after, earlier = answers[own][name], answers[before][name]
            task = task_of([*after, *earlier])
            over_seeds = gain_over_seeds(after, earlier, seeds, task)
            found = {"over_seeds": None if over_seeds is None else asdict(over_seeds)}
            gains.append({"pair": [own, before], "set": name, **asdict(pooled_gain(after, earlier, task)), **found})
    return {
        "start": recipe.start,
        "seeds": seeds,
        "results": results,
        "gains": gains,
        "data": {str(seed): data_counts(folder) for seed, folder in folders.items()},
        "time": {str(seed): usage(folder) for seed, folder in folders.items()},
    }


def data_counts(folder: Path) -> dict[str, dict[str, int]]:
    """The rows that each artifact `STAGE/NAME` of a data stage has, and the rows that it lacks by reason."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    found = {}
    for stage, entry in manifest["stages"].items():
        for name, artifact in entry["result"]["artifacts"].items():
            seal = json.loads((folder / artifact["path"] / "mmrl.json").read_text(encoding="utf-8"))
            facts = seal.get("counts")
            if facts is not None:
                found[f"{stage}/{name}"] = facts
    return found


def report_lines(content: Mapping[str, Any]) -> list[str]:
    """The report of one recipe in Markdown."""
    seeds = content["seeds"]
    lines = [
        f"| stage | set | metric | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | valid format |",
        "|---" * (len(seeds) + 5) + "|",
    ]
    for each in content["results"]:
        values = each["values"]
        cells = " | ".join(f"{value:.1f}" for value in [*values, sum(values) / len(values), each["format"]])
        stage = f"{each['stage']} (start)" if each["stage"] == content["start"] else each["stage"]
        lines.append(f"| {stage} | {each['set']} | {each['metric']} | {cells} |")
    lines.append("")
    for gain in content["gains"]:
        own, before = gain["pair"]
        lines.append(f"{gain_line(own, before, gain, gain['over_seeds'])} ({gain['set']})")
    for seed in seeds:
        lines += ["", f"seed {seed}:"]
        for artifact, counts in content["data"][str(seed)].items():
            lines.append(f"- {artifact}: {', '.join(f'{key} {value}' for key, value in counts.items())}")
        time = content["time"][str(seed)]
        lines.append(
            f"- {time['seconds']:.0f} s, {time['cpu_seconds']:.0f} s of processor time" if time else "- time unknown"
        )
    return lines


def _stages(folder: Path) -> list[str]:
    """Names of the stages of a run, in order."""
    return [each.name.partition("-")[2] for each in sorted((folder / "stages").iterdir()) if each.is_dir()]


if __name__ == "__main__":
    sys.exit(main())
