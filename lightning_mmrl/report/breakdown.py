"""What lies under the scores: further passes over a set, and right answers by subject, length and speaker."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_mmrl.report.markup import Html, bar, folded, joined, number, table
from lightning_mmrl.report.run_files import Evaluated, RunFiles, whole_of
from lightning_mmrl.report.scores import ablations, interval, percent

Row = list[object]
Found = Sequence[tuple[RunFiles, Evaluated]]
Rows = Iterator[tuple[RunFiles, Evaluated, Row]]


def breakdown_section(runs: Sequence[RunFiles]) -> Html | None:
    """Tables of what the evaluations of the runs hold beside their metrics; None if they hold nothing.

    A result may have: `thinking`, the gain over forced answers without a thought; `truncated`, a share; `aha`, the
    share of right and of wrong answers that reflect; `by_subject` and `by_length`, accuracies; and `speakers`, the
    spread of the headline. Results of variants that take no input away, such as `test-sampled`, have a table too.
    """
    found = [(run, each) for run in runs for each in run.evaluated]
    several = len(runs) > 1
    parts: list[object] = [
        *_tabled("Other ways to answer", ["metric", "", "%", "95 %"], _passes(found), several),
        *_tabled("With a thought against without", ["metric", "gain", "95 %", "tokens"], _thinking(found), several),
        *_tabled("Reflection and truncation", ["answers", "", "%", "of"], _words(found), several),
        *_tabled("Speakers", ["number", "lowest", "median", "highest", "deviation"], _speakers(found), several),
        *_tabled("Right answers by subject", ["subject", "", "%", "answers"], _subjects(found), several),
        *_tabled("Right answers by length", ["tokens", "", "%", "answers"], _lengths(found), several),
    ]
    return joined(parts) if parts else None


def _tabled(title: str, head: Sequence[str], rows: Rows, several: bool) -> Iterator[Html]:
    told = [[*([run.name] if several else []), each.stage, each.name, *row] for run, each, row in rows]
    if told:
        names = [*(["run"] if several else []), "stage", "set", *head]
        yield folded(f"{title} ({len(told)})", table(names, told, label=title, texts=len(names) - len(head) + 1))


def _passes(found: Found) -> Rows:
    for run, each in found:
        whole = whole_of(run, each.name)
        if whole == each.name or each.name.removeprefix(f"{whole}-") in ablations(run):
            continue
        for name, own in each.intervals.items():
            value = each.metrics.get(name)
            if value is not None and not name.endswith("_counted_wrong"):
                yield run, each, [name, bar(value, own), percent(value), interval(own)]


def _thinking(found: Found) -> Rows:
    for run, each in found:
        thinking = each.more.get("thinking")
        if thinking and thinking["difference"]:
            own = thinking["difference"]
            lengths = [thinking.get(key) for key in ("mean_tokens", "mean_tokens_no_think")]
            tokens = " against ".join("-" if length is None else f"{length:.1f}" for length in lengths)
            gained = f"{100 * own['estimate']:+.1f}"
            yield run, each, [thinking["headline"], gained, interval(own, "+"), tokens]


def _words(found: Found) -> Rows:
    for run, each in found:
        for kind, own in each.more.get("aha", {}).items():
            if own["rate"] is not None:
                title = f"{kind} ones that reflect"
                yield run, each, [title, bar(own["rate"]), percent(own["rate"]), number(own["num_samples"])]
        truncated = each.more.get("truncated")
        if truncated is not None:
            yield run, each, ["truncated", bar(truncated), percent(truncated), number(each.num_samples)]


def _speakers(found: Found) -> Rows:
    for run, each in found:
        own: Mapping[str, Any] | None = each.more.get("speakers")
        if own is not None:
            spread = [percent(own[key]) for key in ("min", "median", "max", "sd")]
            yield run, each, [number(own["num_speakers"]), *spread]


def _subjects(found: Found) -> Rows:
    for run, each in found:
        for subject, own in each.more.get("by_subject", {}).items():
            yield run, each, [subject, *_accuracy(own)]


def _lengths(found: Found) -> Rows:
    for run, each in found:
        for own in each.more.get("by_length", ()):
            yield run, each, [f"{own['at_least']} to {own['below'] - 1}", *_accuracy(own)]


def _accuracy(own: Mapping[str, Any]) -> Row:
    return [bar(own["accuracy"]), percent(own["accuracy"]), number(own["num_samples"])]
