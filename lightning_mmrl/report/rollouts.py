"""Chooses sampled groups from the rollout tables of a run, evenly and the same ones every time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.data.rollout_table import RolloutRow, iter_table
from lightning_mmrl.errors import MmrlError
from lightning_mmrl.report.markup import rounded, visible
from lightning_mmrl.report.run_files import RunFiles, StageFiles

MOST_READ = 20_000
"""Groups of a stage that are read: all of them are counted in distributions and shown in the browser."""
MOST_BYTES_READ = 100_000_000
"""Size of the groups of a stage that are read, as far as the mean size of its groups tells."""
MOST_CHARACTERS = 4000
"""Characters of a completion or a turn; the rest is counted."""
PLACES = ("rollouts", "artifacts/rollouts")
"""Folders of rollout tables in a stage's folder: of RL iterations, and of a stage that samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRollouts:
    """The groups of one stage: `total` in its tables, and those that were read, each with the name of its table."""

    stage: str
    total: int
    rows: tuple[tuple[str, RolloutRow], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A group in the browser: its row, and its values for the script."""

    row: RolloutRow
    values: dict[str, Any]


def spread(total: int, wanted: int) -> list[int]:
    """Returns up to `wanted` of `total` places, evenly spread, with the first and the last.

    >>> spread(10, 4), spread(3, 5), spread(5, 1)
    ([0, 3, 6, 9], [0, 1, 2], [0])
    """
    if total <= wanted:
        return list(range(total))
    if wanted <= 1:
        return [0][:wanted]
    return [round(place * (total - 1) / (wanted - 1)) for place in range(wanted)]


def read_rollouts(run: RunFiles) -> list[StageRollouts]:
    """Reads a part of the groups of each stage; a table that cannot be read is named in `run.missing`."""
    found = []
    for stage in run.stages:
        files = _tables(stage)
        if not files:
            continue
        counts = {path: _num_lines(path, run.missing) for path in files}
        total = sum(counts.values())
        size = sum(path.stat().st_size for path in files)
        wanted = min(MOST_READ, max(1, total * MOST_BYTES_READ // max(1, size)))
        rows = tuple(_chosen(counts, set(spread(total, wanted)), run.missing))
        if rows:
            found.append(StageRollouts(stage=stage.name, total=total, rows=rows))
    return found


def browser_groups(run: int, found: Sequence[StageRollouts]) -> list[Shown]:
    """The groups of run number `run` for the browser."""
    return [Shown(row=row, values=_group(run, each.stage, table, row)) for each in found for table, row in each.rows]


def _tables(stage: StageFiles) -> list[Path]:
    if stage.folder is None:
        return []
    home = stage.folder.resolve()
    found = [path for place in PLACES for path in sorted((stage.folder / place).glob("*.jsonl"))]
    return [path for path in found if path.is_file() and path.resolve().is_relative_to(home)]


def _num_lines(path: Path, missing: list[str]) -> int:
    """The lines of a file, also an unfinished last one."""
    lines, last = 0, b"\n"
    try:
        with path.open("rb") as file:
            while piece := file.read(2**20):
                lines, last = lines + piece.count(b"\n"), piece[-1:]
    except OSError as error:
        missing.append(f"{path} cannot be read ({error.strerror}).")
        return 0
    return lines + (last != b"\n")


def _chosen(counts: dict[Path, int], chosen: set[int], missing: list[str]) -> Iterator[tuple[str, RolloutRow]]:
    """The rows at the chosen places of all tables one after another."""
    start = 0
    for path, count in counts.items():
        rows = frozenset(place - start for place in range(start, start + count) if place in chosen)
        start += count
        if not count:
            missing.append(f"Rollout table {path} is empty.")
        if not rows:
            continue
        try:
            for row in iter_table(path, rows):
                yield path.stem, row
        except MmrlError as error:
            missing.append(f"{error}.")


def _group(run: int, stage: str, table: str, row: RolloutRow) -> dict[str, Any]:
    valid = [score.total for score in row.scores if score.valid]
    mean = sum(valid) / len(valid) if valid else None
    responses = [
        {
            "text": cut(completion.text),
            "tokens": completion.num_tokens,
            "truncated": completion.truncated,
            "right": right,
            "why": None if score.valid else visible(score.reason or "not scored"),
            "reward": rounded(score.total) if score.valid else None,
            "over": rounded(score.total - mean) if score.valid and mean is not None else None,
            "advantage": rounded(advantage),
            "components": {visible(name): rounded(value) for name, value in score.components.items()},
        }
        for completion, score, right, advantage in zip(
            row.completions, row.scores, row.right, row.advantages or [None] * len(row.scores), strict=True
        )
    ]
    return {
        "run": run,
        "kind": "sampled",
        "stage": stage,
        "table": table,
        "id": visible(row.sample.id),
        "label": None if row.sample.solution is None else cut(row.sample.solution),
        "version": row.policy_version,
        "turns": [[message.role, cut(message.content)] for message in row.sample.messages],
        "media": [{"name": f"{ref.kind}: {visible(ref.path)}"} for ref in row.sample.media],
        "mean": rounded(mean),
        "rate": rounded(row.pass_rate),
        "responses": responses,
    }


def cut(text: str) -> str:
    """A text as the page shows it, and how many characters more it has."""
    shown = visible(text[:MOST_CHARACTERS])
    more = len(text) - MOST_CHARACTERS
    return f"{shown} [{more:,} more characters]" if more > 0 else shown
