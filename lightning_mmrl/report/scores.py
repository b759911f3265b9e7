"""Sections about what the model can do: stages with intervals and gains, confusion matrices, and what it looks at."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from lightning_mmrl.errors import DataError
from lightning_mmrl.evaluation.intervals import ClusterBootstrap, caution_of
from lightning_mmrl.evaluation.records import Judgement
from lightning_mmrl.evaluation.tasks.closed_labels import ClosedLabels
from lightning_mmrl.report.markup import Html, bar, joined, number, table, tag
from lightning_mmrl.report.modality import modality_words
from lightning_mmrl.report.run_files import Evaluated, RunFiles

MOST_LABELS = 24
"""Labels of a confusion matrix; a larger one is not drawn."""
MOST_ANSWER_BYTES = 64 * 2**20
"""Size of a file of predictions; a confusion matrix of a larger one is not drawn."""
RECALL = "recall/"
UNREAD = "unparsed"


def stages_section(runs: Sequence[RunFiles]) -> Html:
    """The table of stages and sets for each kind of task, and the paired gains."""
    found = [(run, each) for run in runs for each in run.evaluated if _whole(run, each) == each.name]
    if not found:
        return tag("p", "No stage was evaluated.", class_="missing")
    parts: list[object] = []
    for headline in dict.fromkeys(each.headline for _, each in found):
        rows = [(run, each) for run, each in found if each.headline == headline]
        places = {name: place for place, name in enumerate(dict.fromkeys((each.stage, each.name) for _, each in rows))}
        rows.sort(key=lambda row: places[row[1].stage, row[1].name])
        parts.append(_scores(rows, len(runs) > 1))
        gains = [(run, gain) for run in runs for gain in run.gains if gain["headline"] == headline]
        if gains:
            parts.append(_gains(gains, headline, len(runs) > 1))
    if len(runs) > 1:
        parts.append(_against(runs))
    parts.append(_explained([each for _, each in found]))
    return joined(parts)


def _scores(rows: Sequence[tuple[RunFiles, Evaluated]], several: bool) -> Html:
    headline = rows[0][1].headline
    others = [
        name
        for name in dict.fromkeys(name for _, each in rows for name in each.metrics)
        if name != headline and not name.startswith(RECALL) and not name.endswith("_counted_wrong")
    ]
    head = ["stage", *(["run"] if several else []), "set", headline, "", "95 %", "samples", *others]
    cells = []
    for run, each in rows:
        own = each.intervals.get(headline)
        value = each.metrics.get(headline)
        drawn = "" if value is None else bar(value, own)
        count = f"{each.num_samples:,}" + (f" + {each.num_left_out:,} left out" if each.num_left_out else "")
        cells.append(
            [
                each.stage,
                *([run.name] if several else []),
                each.name,
                percent(value),
                drawn,
                interval(own),
                count,
                *(_with_interval(each, name) for name in others),
            ]
        )
    label = f"{headline} by stage and set"
    return joined([tag("h3", f"{headline}, in %"), table(head, cells, label=label, texts=3 if several else 2)])


def _whole(run: RunFiles, each: Evaluated) -> str:
    """The name of the set that an evaluation without pictures or without sound is of; otherwise its own name."""
    name, _, variant = each.name.rpartition("-")
    return name if variant in ablations(run) and any(one.name == name for one in run.evaluated) else each.name


def ablations(run: RunFiles) -> Sequence[str]:
    """The ways in which a set was also evaluated, such as `silent`; its results are named `<set>-silent`."""
    found = run.settings.get("evaluation", {}).get("ablations")
    return [str(each) for each in found] if isinstance(found, list) else []


def _with_interval(each: Evaluated, name: str) -> str:
    value, own = percent(each.metrics.get(name)), each.intervals.get(name)
    return value if own is None else f"{value} {interval(own)}"


def _gains(gains: Sequence[tuple[RunFiles, Mapping]], headline: str, several: bool) -> Html:
    head = ["stage", *(["run"] if several else []), "over", "set", "gain", "95 %", ""]
    cells = []
    for run, gain in gains:
        difference = gain["difference"]
        unlike = f" ({gain['num_unpaired']} unlike samples aside)" if gain["num_unpaired"] else ""
        gained = f"{100 * difference['estimate']:+.1f}"
        where = [gain["stage"], *([run.name] if several else []), gain["over"], f"{gain['name']}{unlike}"]
        sign = _sign(difference["low"], difference["high"])
        cells.append([*where, gained, interval(difference, "+"), sign])
    title = f"Gain in {headline} over the stage it started from, same samples, in points"
    return joined([tag("h3", title), table(head, cells, label=title, texts=4 if several else 3)])


def _against(runs: Sequence[RunFiles]) -> Html:
    """The second run minus the first, on the same samples, for sets with a closed set of labels."""
    first, second = ({(each.stage, each.name): each for each in run.evaluated} for run in runs)
    cells, unlike = [], 0
    for key in first.keys() & second.keys() if first else ():
        labels = _labels(first[key])
        before, after = (read_answers(each[key], run.missing) for each, run in zip((first, second), runs, strict=True))
        if not labels or labels != _labels(second[key]) or before is None or after is None:
            unlike += 1
            continue
        task = ClosedLabels(labels=_with_answered(labels, [*before, *after]))
        try:
            own = ClusterBootstrap().paired_difference(after, before, task)
        except DataError:  # other samples, or other truths
            unlike += 1
            continue
        cells.append([*key, f"{100 * own.estimate:+.1f}", interval(asdict(own), "+"), _sign(own.low, own.high)])
    order = list(first)
    cells.sort(key=lambda row: order.index((row[0], row[1])))
    title = f"{runs[1].name} minus {runs[0].name}: UAR on the same samples, in points"
    parts = [tag("h3", title), table(["stage", "set", "difference", "95 %", ""], cells, label=title, texts=2)]
    if unlike:
        note = f"{unlike} pairs are not compared: other samples, other labels, or no closed set of labels."
        parts.append(tag("p", note, class_="note"))
    return joined(parts)


def _sign(low: float, high: float) -> Html:
    clear = "more" if low > 0 else "less" if high < 0 else "not clear"
    return tag("span", clear, class_=f"sign {clear[:4].strip()}")


def _explained(found: Sequence[Evaluated]) -> Html:
    shown = [each for one in found for each in one.intervals.values()]
    units = sorted({str(each["unit"]) for each in shown})
    resampled = f" that resamples each {' or '.join(units)}" if units else ""
    cautions = dict.fromkeys(caution_of(each["unit"], each["reliable"]) for each in shown)
    told = [f"Some intervals: {caution}." for caution in cautions if caution]
    words = [
        f"Intervals are of a bootstrap{resampled}. A gain is clear if its interval leaves out zero. ",
        "All shares are in percent.",
    ]
    return tag("p", " ".join(["".join(words), *told]), class_="note")


def modality_section(runs: Sequence[RunFiles]) -> Html | None:
    """The headline with and without pictures or sound, if a stage was evaluated so."""
    cells = []
    for run in runs:
        known = {(each.stage, each.name): each for each in run.evaluated}
        for (stage, name), each in known.items():
            variants = {kind: known.get((stage, f"{name}-{kind}")) for kind in ablations(run)}
            if not any(variants.values()):
                continue
            for kind, one in {"everything": each, **variants}.items():
                value = None if one is None else one.metrics.get(one.headline)
                if one is None or value is None:
                    continue
                own = one.intervals.get(one.headline)
                title = f"{run.name}: {stage}" if len(runs) > 1 else stage
                drawn = bar(value, own)
                lost = "" if one is each else f"{100 * (value - each.metrics[each.headline]):+.1f}"
                cells.append([title, name, kind, drawn, percent(value), interval(own), lost])
    words = modality_words(runs)
    if not cells:
        return words
    head = ["stage", "set", "input", "headline", "%", "95 %", "against everything"]
    note = (
        "silent: without sound; blank: without pictures; text_only: without both; shuffled: with those of another "
        "sample. A model that does not use a channel loses nothing without it."
    )
    drawn = [tag("p", note, class_="note"), table(head, cells, label="Scores by modality", texts=3)]
    return joined(drawn if words is None else [*drawn, words])


def confusion_section(runs: Sequence[RunFiles]) -> Html | None:
    """Confusion matrices of all stages, one set after another; None if no set has a closed set of labels."""
    parts = []
    for run in runs:
        closed = [each for each in run.evaluated if _labels(each)]
        for place, name in enumerate(dict.fromkeys(each.name for each in closed)):
            drawn = joined(_matrix(each, run.missing) for each in closed if each.name == name)
            title = f"{run.name}: {name}" if len(runs) > 1 else name
            opened = "open" if place == 0 else None
            parts.append(tag("details", tag("summary", title), tag("div", drawn, class_="side"), open=opened))
    return joined(parts) if parts else None


def _labels(each: Evaluated) -> list[str]:
    names = [name for name in each.metrics if name.startswith(RECALL)]
    return [name.removeprefix(RECALL) for name in names if not name.endswith("_counted_wrong")]


def _matrix(each: Evaluated, missing: list[str]) -> Html:
    labels, title = _labels(each), f"{each.stage} on {each.name}"
    answers = read_answers(each, missing)
    if answers is None:
        return tag("p", f"{title}: the answers cannot be read.", class_="missing")
    counts = Counter((one.truth, one.predicted) for one in answers)
    named = _with_answered(labels, answers)
    if len(named) > MOST_LABELS:
        return tag("p", f"{title}: {len(named)} labels are too many to draw.", class_="missing")
    columns = [*named, *([UNREAD] if any(predicted is None for _, predicted in counts) else [])]
    rows = []
    for truth in labels:
        whole = sum(count for (true, _), count in counts.items() if true == truth)
        cells: list[object] = [truth]
        for column in columns:
            count = counts[truth, None if column == UNREAD else column]
            share = count / whole if whole else 0.0
            cells.append(tag("span", number(count), class_=f"heat h{round(10 * share)}", title=f"{share:.0%}"))
        rows.append([*cells, percent(each.metrics.get(RECALL + truth))])
    grid = table(["truth", *columns, "recall"], rows, label=f"Confusion matrix: {title}")
    return tag("figure", tag("figcaption", title), grid, class_="matrix")


def _with_answered(labels: Sequence[str], answers: Sequence[Judgement]) -> list[str]:
    """Labels, which have a recall if they occur in the set, and those that only occur as answers."""
    return [*labels, *sorted({one.predicted for one in answers if one.predicted is not None} - set(labels))]


def read_answers(each: Evaluated, missing: list[str]) -> list[Judgement] | None:
    """The judged answers of a stage to a set; None, with a note, if they cannot be read."""
    path = each.folder / f"{each.name}.jsonl"
    try:
        if path.stat().st_size > MOST_ANSWER_BYTES:
            missing.append(f"{path} is too large for a confusion matrix ({path.stat().st_size:,} bytes).")
            return None
        with path.open(encoding="utf-8") as lines:
            return [Judgement.from_json(line) for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        missing.append(f"{path} cannot be read ({type(error).__name__}).")
    except DataError as error:
        missing.append(f"{path}: {error}.")
    return None


def percent(value: float | None) -> str:
    """A share in percent, without the sign."""
    return "-" if value is None else f"{100 * value:.1f}"


def interval(found: Mapping | None, sign: str = "") -> str:
    """An interval in percent or points."""
    if found is None:
        return "-"
    mark = " (not reliable)" if found.get("reliable") is False else ""
    return f"[{100 * found['low']:{sign}.1f}, {100 * found['high']:{sign}.1f}]{mark}"
