"""The costs of a finished stage as a table, a file, and metrics of its tracked run."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from lightning_mmrl.files import dispensable, write_json, write_whole
from lightning_mmrl.protocols.plain import TrackedRun
from lightning_mmrl.types.costs import StageCosts

FILE = "costs.json"
TABLE = "costs.md"
COLUMNS = ("phase", "time", "share", "waited", "tokens", "MFU")
SMALL = 0.005
"""Share of the time below which a phase has no row of its own."""


def note_costs(stage: str, costs: StageCosts | None, folder: Path, run: TrackedRun, step: int) -> None:
    """Writes the costs of a stage, if it has any, into its folder, and gives table and numbers to its tracked run."""
    if costs is None:
        return
    with dispensable(f"tables of costs ({FILE}, {TABLE})", folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FILE, asdict(costs))
        write_whole(folder / TABLE, markdown(costs))
        for name in (FILE, TABLE):
            run.log_artifact(folder / name)
    run.log_metrics({f"{stage}/cost/{name}": value for name, value in cost_metrics(costs).items()}, step)


def cost_metrics(costs: StageCosts) -> dict[str, float]:
    """The numbers of the table by name."""
    found = {f"seconds/{phase}": seconds for phase, seconds in costs.seconds.items()}
    found |= {"seconds/all": costs.total_s} | {f"tokens/{kind}": float(count) for kind, count in costs.tokens.items()}
    if len(costs.ranks) > 1:
        found |= {f"wait_share/rank_{number}": rank.wait_share for number, rank in enumerate(costs.ranks)}
    mfu = costs.mfu()
    return found if mfu is None else found | {"mfu": mfu}


def cost_rows(costs: StageCosts) -> Iterator[tuple[str, ...]]:
    """The rows of the table, in the order of `COLUMNS`: first all phases together, then each, the longest first.

    The times are means over the ranks. The first row says how much of its time each rank waited for others, and each
    further row how much of the whole time the ranks waited within that phase.
    """
    total, mfu = costs.total_s, costs.mfu()
    shares = [f"{rank.wait_share:.0%}" for rank in costs.ranks] if len(costs.ranks) > 1 else []
    tokens = ", ".join(f"{count:,} {kind}" for kind, count in costs.tokens.items() if count)
    waited = f"{', '.join(shares)} by rank" if shares else "-"
    yield "all", f"{total:.1f} s", "100%", waited, tokens, "-" if mfu is None else f"{mfu:.1%}"
    rest = 0.0
    for phase, seconds in costs.seconds.items():
        if not total or seconds / total < SMALL:
            rest += seconds
            continue
        waits = costs.waits.get(phase, 0.0)
        yield phase, f"{seconds:.1f} s", f"{seconds / total:.0%}", f"{waits / total:.0%}" if waits else "-", "", ""
    if total and rest:
        yield "shorter phases", f"{rest:.1f} s", f"{rest / total:.1%}", "-", "", ""


def markdown(costs: StageCosts) -> str:
    """The table as Markdown."""
    rows = [COLUMNS, ("---",) * len(COLUMNS), *cost_rows(costs)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)
