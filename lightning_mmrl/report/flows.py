"""Sections about where time, tokens and prompts went, and how long and how good the sampled answers were."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_mmrl.report.graph import in_words
from lightning_mmrl.report.markup import Html, bar, duration, folded, joined, number, table, tag
from lightning_mmrl.report.ribbons import ribbons
from lightning_mmrl.report.rollouts import StageRollouts
from lightning_mmrl.report.run_files import RunFiles
from lightning_mmrl.types.costs import StageCosts

BINS = 20
SMALL = 0.005
"""Share of the time below which a phase has no row of its own."""


def costs_section(runs: Sequence[RunFiles]) -> Html:
    """Time by phase and tokens by kind of every finished stage."""
    several = len(runs) > 1
    totals, phases = [], []
    for run in runs:
        for stage in run.stages:
            if stage.result is None:
                continue
            title = f"{run.name}: {stage.name}" if several else stage.name
            costs = stage.result.costs
            spans = stage.result.seconds
            own, after = spans.get("train", spans.get("run")), spans.get("evaluate")
            known = ["-" if span is None else duration(span) for span in (own, after)]
            tokens = "-" if costs is None else in_words({k: n for k, n in costs.tokens.items() if n}) or "-"
            mfu = None if costs is None else costs.mfu()
            totals.append([title, *known, tokens, "-" if mfu is None else f"{mfu:.1%}"])
            if costs is not None:
                phases += [[title, *row] for row in _phases(costs)]
    if not totals:
        return tag("p", "No stage is known to be finished, so no costs are known.", class_="missing")
    head = ["stage", "training or run", "evaluation", "tokens", "MFU"]
    parts = [table(head, totals, label="Time and tokens by stage")]
    if phases:
        parts += [
            tag("h3", "Time by phase"),
            table(["stage", "phase", "share", "time", "%"], phases, label="Time by phase", texts=2),
        ]
    else:
        parts.append(tag("p", "The run has not recorded its phases.", class_="missing"))
    return joined(parts)


def _phases(costs: StageCosts) -> list[list[object]]:
    total = costs.total_s
    kept = {phase: seconds for phase, seconds in costs.seconds.items() if total and seconds / total >= SMALL}
    rest = total - sum(kept.values())
    rows = kept | ({"shorter phases": rest} if total and rest > 1e-9 * total else {})
    return [
        [phase, bar(seconds, most=total), duration(seconds), f"{100 * seconds / total:.1f}"]
        for phase, seconds in rows.items()
    ]


def routing_section(runs: Sequence[RunFiles]) -> Html | None:
    """Samples that each artifact of data keeps, where prompts were routed, and what was left out by reason."""
    parts: list[object] = []
    for run in runs:
        for stage in run.stages:
            kept = {name: counts["kept"] for name, counts in stage.counts.items() if "kept" in counts}
            routed = _routed(stage.routing)
            if not routed and not kept:
                continue
            title = f"{run.name}: {stage.name}" if len(runs) > 1 else stage.name
            pictures = [ribbons(f"{title}, {name.replace('_', ' ')}", counts) for name, counts in routed]
            tables = [*routed, *stage.counts.items()]
            parts += [
                tag("h3", f"{title} ({stage.kind})"),
                tag("div", *(each for each in pictures if each is not None), class_="side"),
                _flow("samples kept in", kept) if kept else "",
                folded(
                    "As tables, with what each artifact left out",
                    tag("div", *(_flow(name, counts) for name, counts in tables if counts), class_="side"),
                ),
            ]
    return joined(parts) if parts else None


def _routed(routing: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Mapping[str, int]]]:
    """Counts of a stage that sorts prompts, by what was counted; counts of several experts stand apart."""
    found = []
    for name, values in routing.items():
        nested = {f"{name} {key}": each for key, each in values.items() if isinstance(each, Mapping)}
        plain = {key: each for key, each in values.items() if isinstance(each, int)}
        found += [(key, counts) for key, counts in {name: plain, **nested}.items() if counts]
    return found


def _flow(title: str, counts: Mapping[str, int]) -> Html:
    most = max(counts.values(), default=0)
    rows = [[name.replace("_", " "), bar(count, most=most), number(count)] for name, count in counts.items()]
    shown = title.replace("_", " ")
    return tag("div", table([shown, "", "number"], rows, label=shown))


def distribution_section(runs: Sequence[RunFiles], found: Sequence[Sequence[StageRollouts]]) -> Html | None:
    """Histograms of lengths and rewards of each stage that samples: first third of the groups against the last."""
    parts: list[object] = []
    for run, stages in zip(runs, found, strict=True):
        for each in stages:
            title = f"{run.name}: {each.stage}" if len(runs) > 1 else each.stage
            third = max(1, len(each.rows) // 3)
            early, late = each.rows[:third], each.rows[-third:]
            note = f"{len(each.rows):,} of {each.total:,} groups counted"
            parts += [tag("h3", title), tag("p", f"{note}; first third and last third.", class_="note")]
            shown = []
            for name, values in (("Reward", _rewards), ("Length, in tokens", _lengths)):
                pair = values(early), values(late)
                if any(pair):
                    shown.append(_histograms(name, *pair))
            parts.append(tag("div", *shown, class_="side"))
    return joined(parts) if parts else None


def _rewards(rows: Sequence[tuple]) -> list[float]:
    return [score.total for _, row in rows for score in row.scores if score.valid]


def _lengths(rows: Sequence[tuple]) -> list[float]:
    return [float(completion.num_tokens) for _, row in rows for completion in row.completions]


def _histograms(title: str, early: Sequence[float], late: Sequence[float]) -> Html:
    low, high = min([*early, *late]), max([*early, *late])
    drawn = [
        tag("div", tag("p", name, class_="note"), _histogram(values, low, high))
        for name, values in (("first third", early), ("last third", late))
    ]
    ends = tag("p", tag("span", number(low)), tag("span", number(high)), class_="ends")
    rows = [[name, *_quantiles(values)] for name, values in (("first third", early), ("last third", late))]
    head = ["groups", "answers", "lowest", "quarter", "median", "three quarters", "highest", "mean"]
    return tag("figure", tag("figcaption", title), *drawn, ends, table(head, rows, label=title), class_="histogram")


def _histogram(values: Sequence[float], low: float, high: float) -> Html:
    counts = [0] * BINS
    for value in values:
        counts[min(BINS - 1, int(BINS * (value - low) / (high - low))) if high > low else 0] += 1
    most = max(counts, default=0) or 1
    rects = "".join(
        f'<rect class="fill" x="{5 * place + 0.5:g}" y="{30 - 30 * count / most:.2f}" width="4" '
        f'height="{30 * count / most:.2f}"/>'
        for place, count in enumerate(counts)
        if count
    )
    return Html(
        f'<svg class="columns" viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true">{rects}</svg>'
    )


def _quantiles(values: Sequence[float]) -> list[str]:
    ordered = sorted(values)
    if not ordered:
        return ["0", *["-"] * 6]
    marks = [ordered[round(share * (len(ordered) - 1))] for share in (0, 0.25, 0.5, 0.75, 1)]
    return [number(len(ordered)), *map(number, marks), number(sum(ordered) / len(ordered))]
