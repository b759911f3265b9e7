"""`mmrl tracking status | flush`: what waits for the tracking server, and its delivery; torch is not loaded."""

import argparse
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from lightning_mmrl.curriculum.manifest import FILE as MANIFEST
from lightning_mmrl.curriculum.manifest import tracked_runs
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.tracking.leftovers import SPOOL, Leftover, leftovers, read_store
from lightning_mmrl.types.redaction import redact, redact_addresses, remember
from lightning_mmrl.types.text import printable

EXIT_LEFT = 1

EXAMPLES = """\
During an outage of the tracking server a run keeps what it logs in OUTPUT_DIR/spool and delivers it later by itself.
What the server refuses twice is kept there as well. Any later mmrl train, evaluate or plan of the run delivers both.

credentials come from --tracking-uri, or from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or from
MLFLOW_TRACKING_TOKEN; none are stored.
The exit code of flush is 0 if nothing is left, 1 if something is, 2 if the server cannot be used.

examples:
  mmrl tracking status                      # all runs in runs/
  mmrl tracking flush runs/quickstart       # one run
  mmrl tracking flush /scratch/runs --tracking-uri http://me:password@host:5000
"""


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(arguments)
    output_dir, runs = _place(options.run)
    spools = sorted(path for path in (output_dir / SPOOL).glob("*") if path.is_dir())
    if options.action == "status":
        return _status(output_dir, spools, runs)
    return _flush(spools, runs, options.tracking_uri)


def _place(folder: Path) -> tuple[Path, Collection[str] | None]:
    """The output_dir that a folder is, or that it is a run of; and the tracked runs of that run.

    Raises:
        ConfigError: It does not exist.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} does not exist; name the folder of a run, or an output_dir with several")
    if (folder / MANIFEST).is_file() or (folder / "config.yaml").is_file():
        return folder.absolute().parent, tracked_runs(folder)
    return folder, None


def _status(output_dir: Path, spools: Sequence[Path], runs: Collection[str] | None) -> int:
    names = _run_names(output_dir)
    found = False
    for spool in spools:
        rows = leftovers(spool, runs)
        found = found or bool(rows)
        if rows:
            store = read_store(spool)
            print(f"{store['uri'] if store else 'a server that was not noted'}: {spool}")
        for row in rows:
            print(f"  {_described(row, names.get(row.run_id))}")
    if not found:
        print("nothing waits: the tracking server has everything")
    return 0


def _described(left: Leftover, name: str | None) -> str:
    parts = [f"{left.pending} entries undelivered ({left.pending_points} points)"] if left.pending else []
    if left.rejected:
        why = printable(redact(left.reason or "no reason noted"))
        parts.append(f"{left.rejected} refused ({left.rejected_points} points), the last because: {why}")
    return f"{name or 'a run that is not in this folder'} (MLflow run {left.run_id}): {'; '.join(parts)}"


def _flush(spools: Sequence[Path], runs: Collection[str] | None, tracking_uri: str | None) -> int:
    waiting = [spool for spool in spools if leftovers(spool, runs)]
    if not waiting:
        print("nothing waits: the tracking server has everything")
        return 0
    # Loaded here: MLflow takes seconds.
    from lightning_mmrl.tracking.flushing import flush_store

    given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    remember(given or "")
    rest: list[Leftover] = []
    for spool in waiting:
        uri, experiment = _store_of(spool, given)
        print(f"{redact(uri)}:")
        rest += flush_store(spool, uri, experiment, runs=runs, say=lambda line: print(f"  {printable(line)}"))
    if rest:
        print(f"{sum(left.pending + left.rejected for left in rest)} entries are left; mmrl tracking status says more")
    return EXIT_LEFT if rest else 0


def _store_of(spool: Path, given: str | None) -> tuple[str, str]:
    """The address of a spool's store, with the credentials that were given for it, and its experiment.

    Raises:
        ConfigError: The spool does not say, and no address was given.
    """
    store = read_store(spool)
    if store is None:
        if given is None:
            raise ConfigError(f"{spool} does not say which server it is for; give --tracking-uri")
        return given, "lightning_mmrl"
    is_same = given is not None and redact_addresses(given).rstrip("/") == store["uri"].rstrip("/")
    return (given if given is not None and is_same else store["uri"]), store["experiment"]


def _run_names(output_dir: Path) -> dict[str, str]:
    """Run folder by the ids of its tracked runs."""
    folders = [path.parent for path in output_dir.glob(f"*/{MANIFEST}")]
    return {run_id: str(folder) for folder in folders for run_id in tracked_runs(folder)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmrl tracking",
        description="Show or deliver what waits for the tracking server.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("status", "flush"), help="show what waits, or deliver it")
    parser.add_argument(
        "run", nargs="?", type=Path, default=Path("runs"), metavar="RUN",
        help="folder of a run, or an output_dir with several (default: runs)",
    )  # fmt: skip
    parser.add_argument("--tracking-uri", metavar="URI", help="the server, with its credentials")
    return parser
