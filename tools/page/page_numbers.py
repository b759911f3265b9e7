"""Compares what a page shows with the files of its run, which this module reads without the report's own readers."""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from headless import Opened

TABLES = """
() => Object.fromEntries([...document.querySelectorAll("[role=region][aria-label]")].map((box) => [
  box.getAttribute("aria-label"),
  [...box.querySelectorAll("tr")].map((row) => [...row.children].map((cell) => cell.textContent.trim())),
]))
"""
ANSWERS = """
() => [...document.querySelectorAll("#browser .group")].map((group) =>
  [...group.querySelectorAll(".answer")].map((each) => [
    each.querySelector("pre").textContent,
    [...each.querySelectorAll(".badges span")].map((badge) => badge.textContent),
  ]))
"""
NUM_GROUPS = 20
"""Groups whose answers are compared, evenly chosen from all tables."""


def differences(watched: Opened, run: Path) -> Iterator[tuple[str, str | None]]:
    """Yields what was compared, with the difference if there is one."""
    tables = watched.page.evaluate(TABLES)
    places = _evaluations(run)
    for stage, folder in places.items():
        entries = json.loads((folder / "evaluation.json").read_text())
        for name, entry in entries.items():
            yield from _scores(tables, stage, name, entry)
            yield from _matrix(tables, stage, name, folder / f"{name}.jsonl", entry)
    yield from _gains(tables, json.loads((run / "comparison.json").read_text()))
    yield from _curves(tables, run)
    yield from _answers(watched, run, places)


def _evaluations(run: Path) -> dict[str, Path]:
    folders = [run / "base" / "evaluation", *sorted(run.glob("stages/[0-9][0-9]-*/evaluation"))]
    found = [each for each in folders if (each / "evaluation.json").is_file() and ".replaced-" not in str(each)]
    return {each.parent.name.partition("-")[2] or "base": each for each in found}


def _equal(what: str, shown: object, expected: object) -> tuple[str, str | None]:
    return what, None if shown == expected else f"{what}: the page has {shown!r}, the file {expected!r}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _span(each: Mapping[str, float], sign: str = "") -> str:
    return f"[{100 * each['low']:{sign}.1f}, {100 * each['high']:{sign}.1f}]"


def _scores(tables: dict, stage: str, name: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    headline = entry.get("task", {}).get("headline", "uar")
    rows = tables.get(f"{headline} by stage and set", [])
    for row in rows[1:]:
        if row[:2] != [stage, name]:
            continue
        own = entry["intervals"].get(headline)
        yield _equal(f"{headline} of {stage} on {name}", row[2], _percent(entry["metrics"][headline]))
        yield _equal(f"interval of {stage} on {name}", row[4], "-" if own is None else _span(own))
        yield _equal(f"samples of {stage} on {name}", row[5].split(" ")[0], f"{entry['num_samples']:,}")
        for title, cell in zip(rows[0][6:], row[6:], strict=True):
            value, own = entry["metrics"].get(title), entry["intervals"].get(title)
            known = "-" if value is None else _percent(value)
            yield _equal(f"{title} of {stage} on {name}", cell, f"{known} {_span(own)}" if own else known)


def _matrix(
    tables: dict, stage: str, name: str, answers: Path, entry: Mapping[str, Any]
) -> Iterator[tuple[str, str | None]]:
    rows = tables.get(f"Confusion matrix: {stage} on {name}")
    if rows is None:
        return
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    counts = Counter((each["truth"], each["predicted"] or "unparsed") for each in lines)
    shown = {
        (row[0], column): int(cell.replace(",", ""))
        for row in rows[1:]
        for column, cell in zip(rows[0][1:-1], row[1:-1], strict=True)
    }
    what = f"confusion matrix of {stage} on {name}"
    yield _equal(what, {key: count for key, count in shown.items() if count}, dict(counts))
    for row in rows[1:]:
        yield _equal(f"recall of {row[0]}, {stage} on {name}", row[-1], _percent(entry["metrics"][f"recall/{row[0]}"]))


def _gains(tables: dict, comparison: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    for gain in comparison["gains"]:
        headline = gain.get("task", {}).get("headline", "uar")
        rows = tables[f"Gain in {headline} over the stage it started from, same samples, in points"]
        row = next(each for each in rows if each[:3] == [gain["stage"], gain["over"], gain["name"].split(" (")[0]])
        own = gain["difference"]
        expected = [f"{100 * own['estimate']:+.1f}", _span(own, "+")]
        yield _equal(f"gain of {gain['stage']} on {gain['name']}", row[3:5], expected)


def _curves(tables: dict, run: Path) -> Iterator[tuple[str, str | None]]:
    for path in sorted(run.glob("stages/[0-9][0-9]-*/metrics.jsonl")):
        stage = path.parent.name.partition("-")[2]
        last: dict[str, tuple[int, float]] = {}
        for line in path.read_text().splitlines():
            record = json.loads(line)
            for key, value in record["metrics"].items():
                name = key.removeprefix(f"{stage}/")
                if record["step"] >= last.get(name, (0, 0.0))[0]:
                    last[name] = (record["step"], value)
        for row in tables.get(f"metrics of {stage}", [])[1:]:
            value = last[row[0]][1]
            if row[5] != "-" and math.isfinite(value):
                yield _equal(f"last {row[0]} of {stage}", float(row[5].replace(",", "")), float(f"{value:.4g}"))


def _answers(watched: Opened, run: Path, places: Mapping[str, Path]) -> Iterator[tuple[str, str | None]]:
    lines = [json.loads(line) for each in _tables(run) for line in each.read_text().splitlines()]
    num_sampled = sum(len(line["responses"]) for line in lines)
    num_judged = sum(
        len((folder / f"{name}.jsonl").read_text().splitlines())
        for folder in places.values()
        for name in json.loads((folder / "evaluation.json").read_text())
    )
    told = watched.page.inner_text("#browser [aria-live]")
    yield _equal("answers in the browser", told.split(" of ")[-1], f"{num_sampled + num_judged} answers")
    for line in lines[:: max(1, len(lines) // NUM_GROUPS)]:
        yield from _group(watched, line)


def _tables(run: Path) -> list[Path]:
    return sorted(run.glob("stages/[0-9][0-9]-*/rollouts/*.jsonl"))


def _group(watched: Opened, line: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    """Finds a group by its id, opens it and compares its answers and their rewards."""
    page = watched.page
    page.fill("#browser input[type=search]", line["id"])
    page.evaluate("for (const group of document.querySelectorAll('#browser .group')) group.open = true")
    watched.until("[...document.querySelectorAll('#browser .group')].every((each) => each.childElementCount > 1)")
    groups = page.evaluate(ANSWERS)
    expected = [[each["text"], f"reward {each['reward']:g}" if each["valid"] else None] for each in line["responses"]]
    shown = [
        [[text, next((badge for badge in badges if badge.startswith("reward ")), None)] for text, badges in group]
        for group in groups
    ]
    yield f"the answers of {line['id']}", None if expected in shown else f"{line['id']}: no such group: {expected}"
