"""The part of the page that says whether a model looks and listens, and what it follows where both contradict."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_mmrl.errors import MmrlError
from lightning_mmrl.evaluation.modality import MODALITY, statements
from lightning_mmrl.files import read_json
from lightning_mmrl.report.markup import Html, bar, joined, table, tag
from lightning_mmrl.report.run_files import RunFiles

_WRITE_AGAIN = "evaluate the stage again"
_SHARES = {
    "follows_picture": "follows the picture",
    "follows_sound": "follows the sound",
    "neither": "neither",
    "unparseable": "unparsed",
    "names_followed": "of those that follow one: thought names its cue",
    "names_both": "thought names both cues",
}


def modality_words(runs: Sequence[RunFiles]) -> Html | None:
    """What the modality reports of all stages say, and the shares of answers to conflicts; None without a report."""
    said: list[list[object]] = []
    shares: list[list[object]] = []
    for run in runs:
        for stage, path in _reports(run).items():
            title = f"{run.name}: {stage}" if len(runs) > 1 else stage
            try:
                report = read_json(path, _WRITE_AGAIN)
                own = [[title, name, sentence] for name, sentence in statements(report)]
                found = [row for name, each in report["conflicts"].items() for row in _shares(title, name, each)]
            except MmrlError as error:
                run.missing.append(f"{error}.")
            except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
                run.missing.append(f"{path} is damaged ({type(error).__name__}); {_WRITE_AGAIN}.")
            else:
                said += own
                shares += found
    parts = []
    if said:
        parts.append(table(["stage", "set", "finding"], said, label="Findings by modality", texts=3))
    if shares:
        parts.append(tag("h3", "Where picture and sound contradict each other, in % of answers"))
        head = ["stage", "set", "answer", "", "%", "95 %", "by chance"]
        parts.append(table(head, shares, label="Answers to conflicts", texts=3))
    return joined(parts) if parts else None


def _reports(run: RunFiles) -> dict[str, Path]:
    """The files of the reports by stage, as far as they lie in the run's folder: a run may come from anybody."""
    found = {each.stage: each.folder / MODALITY for each in run.evaluated}
    inside = run.folder.resolve()
    return {stage: path for stage, path in found.items() if path.is_file() and path.resolve().is_relative_to(inside)}


def _shares(title: str, name: str, conflicts: Mapping[str, Any]) -> list[list[object]]:
    rows: list[list[object]] = []
    for key, words in _SHARES.items():
        interval = conflicts["shares"].get(key)
        if interval is None:
            continue
        value, low, high = (float(interval[part]) for part in ("estimate", "low", "high"))
        chance = conflicts["by_chance"].get(key.removeprefix("follows_"))
        by_chance = "" if chance is None else f"{100 * float(chance):.1f}"
        drawn = bar(value, interval)
        cells = [f"{100 * value:.1f}", f"[{100 * low:.1f}, {100 * high:.1f}]", by_chance]
        rows.append([title, name, words, drawn, *cells])
    return rows
