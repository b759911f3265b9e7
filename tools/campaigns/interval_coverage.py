"""Simulates how often bootstrap intervals of WAR, of UAR and of paired differences hold the truth.

    python tools/campaigns/interval_coverage.py --output-dir /elsewhere/coverage

Two models answer clips of seven labels, whose shares in a test set are those of SHARES. The logit of the chance that an
answer is right is the label's, plus a normal effect of the speaker, which both models share in part. So answers to
clips of one speaker are correlated, and those of the two models are too. Speakers have unequal numbers of clips (gamma,
by the coefficient of variation), and their own mixtures of labels (Dirichlet) unless these are equal. The truth is the
metric over infinitely many speakers, by Gauss-Hermite quadrature.

Three ways of making an interval run on the same data: `speakers`, which `ClusterBootstrap` uses, and two controls:
`plain`, the percentiles of 2.5 and 97.5 % over speakers, and `clips`, which resamples clips as if they were
independent, in one of four simulations.

Each batch of simulations is one line of coverage.jsonl in the output folder; a command that was stopped goes on with
the missing ones. Writes coverage.json and coverage.md, and exits with 1 unless `speakers` holds the truth in 93 to 97 %
of the simulations of every setting with a bound and for every metric, while `clips` holds the WAR in less than 90 % of
each, and `plain` some metric in less than 93 % of each with 25 speakers of unequal size.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from lightning_mmrl.evaluation.intervals import ClusterBootstrap, effective_number, tail_of
from lightning_mmrl.settings.run import EvaluationSettings
from lightning_mmrl.tracking.jsonl import read_lines

LEVEL = 0.95
BOUNDS = (0.93, 0.97)
BATCH = 100
SHARES = np.array([0.26, 0.22, 0.18, 0.14, 0.10, 0.06, 0.04])
"""Shares of the labels in a test set, with rare ones as in sets of clips from films."""
EASE = np.linspace(0.6, -0.9, len(SHARES))
"""Logits by which a label is easier than the mean one; the frequent ones are."""
BETTER = 0.4
"""Logits by which the second model is better."""
SHARED, OWN = 0.8, 0.5
"""The speaker's effect on the second model: 0.8 times that on the first one, and one of its own, half as large."""
SAME_DRAW = 0.6
"""Share of clips on which both models succeed or fail together as far as their chances allow."""
METRICS = ("WAR", "UAR", "WAR difference", "UAR difference")
WAYS = ("speakers", "plain", "clips")
CLIPS_EVERY = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A test set: `accuracy` is that of a mean label for a mean speaker, `spread` is in logits.

    Attributes:
        name: Name in the report.
        speakers: Number of speakers.
        clips: Mean number of clips of a speaker.
        variation: Coefficient of variation of the numbers of clips.
        accuracy: Chance of the first model for a speaker without an effect and a label of mean ease.
        spread: Standard deviation of the speakers' effects; in logits, 0.6 is an intraclass correlation of 0.1, and 0.8
            of 0.16.
        mixture: Concentration of the labels' mixtures of single speakers; None: each label's share is the same for all.
        bounded: Whether the exit code depends on it.
    """

    name: str
    speakers: int
    clips: int
    variation: float
    accuracy: float
    spread: float
    mixture: float | None
    bounded: bool = True


SHAPES: Sequence[Mapping[str, Any]] = (
    {"name": "equal", "clips": 14, "variation": 0.0, "accuracy": 0.5, "spread": 0.5, "mixture": None},
    {"name": "unequal", "clips": 14, "variation": 0.6, "accuracy": 0.6, "spread": 0.6, "mixture": 8.0},
    {"name": "accurate", "clips": 14, "variation": 0.6, "accuracy": 0.8, "spread": 0.8, "mixture": 8.0},
    {"name": "very unequal", "clips": 40, "variation": 1.0, "accuracy": 0.6, "spread": 0.6, "mixture": 8.0},
)
CEILING = {"name": "near the ceiling", "clips": 14, "variation": 0.6, "accuracy": 0.92, "spread": 0.8, "mixture": 8.0}
SETTINGS = (
    *(Setting(speakers=number, **shape) for number in (25, 100) for shape in SHAPES),
    *(Setting(speakers=number, **CEILING, bounded=False) for number in (25, 100)),
    *(Setting(speakers=number, **SHAPES[1], bounded=False) for number in (6, 10)),
)


def main() -> int:
    """Runs what is missing and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="results, outside of the checkout")
    parser.add_argument("--simulations", type=int, default=4000, help="of each setting")
    parser.add_argument("--resamples", type=int, default=2000, help="of each interval")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    file = options.output_dir / "coverage.jsonl"
    bootstrap = ClusterBootstrap(settings=EvaluationSettings(num_resamples=options.resamples), level=LEVEL)
    done = read_lines(file) if file.is_file() else []
    known = {(line["setting"], line["batch"]) for line in done if line["resamples"] == options.resamples}
    for setting, batch in missing(known, options.simulations):
        started = time.monotonic()
        counted = misses(setting, batch, bootstrap)
        line = {"setting": key(setting), "batch": batch, "resamples": options.resamples, "simulations": BATCH}
        done.append({**line, "seconds": round(time.monotonic() - started, 2), "misses": counted})
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(done[-1]) + "\n")
    rows = [summary(setting, done, options.resamples, options.simulations) for setting in SETTINGS]
    report = "\n".join(report_lines(rows))
    print(report)
    (options.output_dir / "coverage.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    (options.output_dir / "coverage.md").write_text(report + "\n", encoding="utf-8")
    return 0 if all(row["met"] for row in rows) else 1


def key(setting: Setting) -> str:
    """Name of a setting among all."""
    return f"{setting.speakers} speakers, {setting.name}"


def missing(known: set[tuple[str, int]], simulations: int) -> Iterator[tuple[Setting, int]]:
    """The batches that are still to run."""
    for setting in SETTINGS:
        for batch in range(-(-simulations // BATCH)):
            if (key(setting), batch) not in known:
                yield setting, batch


def misses(setting: Setting, batch: int, bootstrap: ClusterBootstrap, size: int = BATCH) -> dict[str, dict[str, Any]]:
    """How many intervals of a batch lie above and below the truth, of how many, and their widths, by way and metric."""
    generator = np.random.default_rng([SETTINGS.index(setting), batch])
    cells = simulated(setting, size, generator)  # [B, S, K, 4]
    truth = expected(setting)
    counted = {way: {name: {"of": 0, "above": 0, "below": 0, "width": 0.0} for name in METRICS} for way in WAYS}
    sums = sums_of(cells)
    resampled = bootstrap.resampled(np.moveaxis(sums, 0, 1))  # [R, B, 3 K]
    for index in range(size):
        by_speaker, plain = metrics_of(resampled[:, index]), (1 - LEVEL) / 2
        tail = tail_of(effective_number(cells[index].sum((-1, -2))), LEVEL)
        ends = {way: np.quantile(by_speaker, [a, 1 - a], axis=0) for way, a in (("speakers", tail), ("plain", plain))}
        if index % CLIPS_EVERY == 0:
            by_clip = metrics_of(sums_of(clips_resampled(cells[index], len(resampled), generator)))
            ends["clips"] = np.quantile(by_clip, [plain, 1 - plain], axis=0)
        for way, (low, high) in ends.items():
            for place, name in enumerate(METRICS):
                found = counted[way][name]
                found["of"] += 1
                found["above"] += int(truth[place] < low[place])
                found["below"] += int(truth[place] > high[place])
                found["width"] += float(high[place] - low[place])
    return counted


def simulated(setting: Setting, size: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Counts of clips by data set, speaker, label and outcome, [B, S, K, 4]: both right, one, the other, none."""
    shape = (size, setting.speakers)
    clips = np.full(shape, setting.clips)
    if setting.variation:
        form = 1 / setting.variation**2
        rate = generator.gamma(form, setting.clips / form, shape)
        clips = 1 + generator.poisson(np.maximum(rate - 1, 0))
    shares = np.broadcast_to(SHARES, (*shape, len(SHARES)))
    if setting.mixture is not None:
        shares = generator.dirichlet(setting.mixture * SHARES, shape)
    counts = generator.multinomial(clips, shares)
    effect, own = (generator.normal(0, setting.spread, shape)[..., None] for _ in range(2))
    base = logit(setting.accuracy) + EASE
    first, second = expit(base + effect), expit(base + BETTER + SHARED * effect + OWN * own)
    both = SAME_DRAW * np.minimum(first, second) + (1 - SAME_DRAW) * first * second
    outcomes = np.stack([both, first - both, second - both, 1 - first - second + both], axis=-1)
    return generator.multinomial(counts, np.clip(outcomes, 0, 1))


def expected(setting: Setting) -> NDArray[np.float64]:
    """The true value of each of METRICS: over infinitely many speakers."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    scales = setting.spread, setting.spread * np.hypot(SHARED, OWN)
    base = logit(setting.accuracy) + EASE
    first, second = (
        (expit(base[:, None] + shift + scale * nodes) * weights).sum(-1) / weights.sum()
        for shift, scale in zip((0.0, BETTER), scales, strict=True)
    )
    return np.array([first @ SHARES, first.mean(), (second - first) @ SHARES, (second - first).mean()])


def sums_of(cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """Clips and right answers of both models by label, [..., K, 4] to [..., 3 K]."""
    parts = [cells.sum(-1), cells[..., 0] + cells[..., 1], cells[..., 0] + cells[..., 2]]
    return np.concatenate(parts, axis=-1).astype(np.float64)


def clips_resampled(cells: NDArray[np.int64], num_resamples: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Counts of a data set whose clips are resampled, whoever speaks, [S, K, 4] to [R, K, 4]."""
    pooled = cells.sum(0)
    drawn = generator.multinomial(pooled.sum(), pooled.ravel() / pooled.sum(), size=num_resamples)
    return drawn.reshape(num_resamples, *pooled.shape)


def metrics_of(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """METRICS of sums, [..., 3 K] to [..., 4]; a label without clips is left out of its UAR."""
    clips, *right = np.split(sums, 3, axis=-1)
    present = clips > 0
    war = [each.sum(-1) / clips.sum(-1) for each in right]
    recalls = [np.where(present, each / np.maximum(clips, 1), 0.0) for each in right]
    uar = [each.sum(-1) / present.sum(-1) for each in recalls]
    return np.stack([war[0], uar[0], war[1] - war[0], uar[1] - uar[0]], axis=-1)


def summary(setting: Setting, lines: Sequence[Mapping[str, Any]], resamples: int, simulations: int) -> dict[str, Any]:
    """Coverage and mean width of a setting by way and metric, and whether it is as it has to be."""
    batches = -(-simulations // BATCH)
    own = [
        line
        for line in lines
        if line["setting"] == key(setting) and line["resamples"] == resamples and line["batch"] < batches
    ]
    total = sum(line["simulations"] for line in own)
    coverage: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    width: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for way in WAYS:
        for name in METRICS:
            found = [line["misses"][way][name] for line in own]
            number = sum(each["of"] for each in found)
            coverage[way][name] = 1 - sum(each["above"] + each["below"] for each in found) / number
            width[way][name] = sum(each["width"] for each in found) / number
    kept = all(BOUNDS[0] <= value <= BOUNDS[1] for value in coverage["speakers"].values())
    controls = coverage["clips"]["WAR"] < 0.9
    if setting.speakers == 25 and setting.variation:
        controls = controls and min(coverage["plain"].values()) < BOUNDS[0]
    return {
        "setting": key(setting),
        "bounded": setting.bounded,
        "simulations": total,
        "coverage": coverage,
        "width": width,
        "met": (kept and controls) or not setting.bounded,
    }


def report_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The report in Markdown: coverage in %, with the mean width in points."""
    lines = [f"| setting | intervals | {' | '.join(METRICS)} |", "|---" * (len(METRICS) + 2) + "|"]
    for row in rows:
        for way in WAYS:
            cells = (
                f"{100 * row['coverage'][way][name]:.1f} ({100 * row['width'][way][name]:.1f})" for name in METRICS
            )
            bound = "" if row["bounded"] else ", no bound"
            lines.append(f"| {row['setting']}{bound} | {way} | {' | '.join(cells)} |")
    worst = min(100 * value for row in rows if row["bounded"] for value in row["coverage"]["speakers"].values())
    best = max(100 * value for row in rows if row["bounded"] for value in row["coverage"]["speakers"].values())
    simulations = min(row["simulations"] for row in rows)
    return [*lines, "", f"`speakers` with a bound: {worst:.1f} to {best:.1f} %, from {simulations:,} simulations each."]


if __name__ == "__main__":
    sys.exit(main())
