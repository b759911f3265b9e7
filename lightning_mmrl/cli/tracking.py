"""`mmrl tracking status | flush`: shows or delivers entries that wait for the tracking server; torch is not loaded."""

import argparse
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path

from lightning_mmrl.curriculum.manifest import FILE as MANIFEST
from lightning_mmrl.curriculum.manifest import tracked_runs
from lightning_mmrl.errors import ConfigError, MmrlError
from lightning_mmrl.settings.run import TrackingSettings
from lightning_mmrl.tracking.leftovers import SPOOL, Leftover, damaged_lines, leftovers, read_store
from lightning_mmrl.types.redaction import redact, redact_addresses, remember
from lightning_mmrl.types.text import printable

EXIT_LEFT = 1
"""Exit code if `flush` left entries, or if a file holds unreadable lines."""

_SQLITE = "sqlite:///"
_CREDENTIALS = tuple(
    f"MLFLOW_TRACKING_{name}" for name in ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4", "CLIENT_CERT_PATH")
)

EXAMPLES = """\
During an outage of the tracking server a run keeps its entries in OUTPUT_DIR/spool and delivers them later by itself.
Entries that the server refuses twice stay there as well. Any later mmrl train or evaluate of the run delivers both.

Credentials come from --tracking-uri, or from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or from
MLFLOW_TRACKING_TOKEN; none are stored. They are sent only to a server that --tracking-uri or MLFLOW_TRACKING_URI names,
never to one that only a folder names.

exit codes:
  status   0, or 1 if a file holds damaged lines
  flush    0 if nothing is left, 1 if entries or damaged lines are left

examples:
  mmrl tracking status                      # all runs in runs/
  mmrl tracking flush runs/quickstart       # one run
  mmrl tracking flush /scratch/runs --tracking-uri http://me:password@host:5000
"""


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(arguments)
    folder: Path = options.run
    if not folder.is_dir():
        problem = "is no folder" if folder.exists() else "does not exist"
        raise ConfigError(f"{folder} {problem}; name the folder of a run, or an output_dir with several")
    is_run = (folder / MANIFEST).is_file() or (folder / "config.yaml").is_file()
    output_dir, runs = (folder.absolute().parent, tracked_runs(folder)) if is_run else (folder, None)
    spools = sorted(path for path in (output_dir / SPOOL).glob("*") if path.is_dir())
    if options.action == "status":
        return _status(output_dir, spools, runs)
    return _flush(spools, runs, options.tracking_uri)


def _status(output_dir: Path, spools: Sequence[Path], runs: Collection[str] | None) -> int:
    folders = [path.parent for path in output_dir.glob(f"*/{MANIFEST}")]
    names = {run_id: str(folder) for folder in folders for run_id in tracked_runs(folder)}
    found = False
    for spool in spools:
        rows = leftovers(spool, runs)
        found = found or bool(rows)
        if rows:
            store = read_store(spool)
            print(f"{store['uri'] if store else 'a server that was not noted'}: {spool}")
        for row in rows:
            parts = [f"{row.pending} entries undelivered ({row.pending_points} points)"] if row.pending else []
            if row.rejected:
                why = printable(redact(row.reason or "no reason noted"))
                parts.append(f"{row.rejected} refused ({row.rejected_points} points), the last because: {why}")
            name = names.get(row.run_id) or "a run that is not in this folder"
            print(f"  {name} (MLflow run {row.run_id}): {'; '.join(parts)}")
    damaged = _report_damage(spools, runs)
    if not found and not damaged:
        print("nothing waits: the tracking server has everything")
    return EXIT_LEFT if damaged else 0


def _report_damage(spools: Sequence[Path], runs: Collection[str] | None) -> bool:
    """Prints the files with lines that no flush can deliver; returns True if there are any."""
    found = {path: number for spool in spools for path, number in damaged_lines(spool, runs).items()}
    for path, number in found.items():
        print(
            f"mmrl tracking: {number} damaged lines in {path} cannot be read or delivered; look at them, then move the "
            "file away",
            file=sys.stderr,
        )
    return bool(found)


def _flush(spools: Sequence[Path], runs: Collection[str] | None, tracking_uri: str | None) -> int:
    remember(tracking_uri or "", os.environ.get("MLFLOW_TRACKING_URI", ""))
    rest: list[Leftover] = []
    waits = failed = False
    for spool in spools:
        try:
            if leftovers(spool, runs):
                # Loaded here, because MLflow takes seconds to load.
                from lightning_mmrl.tracking.flushing import flush_store

                waits = True
                uri, experiment = _store_of(spool, tracking_uri)
                print(f"{redact(uri)}:")
                rest += flush_store(spool, uri, experiment, runs=runs, say=lambda line: print(f"  {printable(line)}"))
            failed = _report_damage([spool], runs) or failed
        except (MmrlError, OSError) as error:  # the other spools may be for servers that answer
            failed = True
            print(f"mmrl tracking: {spool} is left as it is: {printable(redact(error))}", file=sys.stderr)
    if rest:
        print(f"{sum(left.pending + left.rejected for left in rest)} entries are left; mmrl tracking status says more")
    elif not waits and not failed:
        print("nothing waits: the tracking server has everything")
    return EXIT_LEFT if rest or failed else 0


def _store_of(spool: Path, tracking_uri: str | None) -> tuple[str, str]:
    """Returns the address of a spool's store, with the credentials that were given for it, and the experiment.

    A spool may come from somebody else: credentials from the environment never go to an address that only the spool
    names.

    Raises:
        ConfigError: Neither the spool nor the user names an address; or the two differ; or credentials would go to a
            server that the user did not name.
    """
    given = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    store = read_store(spool)
    if store is None:
        if given is None:
            raise ConfigError(f"{spool} does not say which server it is for; give --tracking-uri")
        return given, TrackingSettings.experiment
    stored = store["uri"]
    if given is not None and _plain(given) == _plain(stored):
        return given, store["experiment"]
    if tracking_uri is not None:
        raise ConfigError(
            f"--tracking-uri is {redact(tracking_uri)}, but the entries in {spool} are for {redact(stored)}; "
            "give that address, or name the folder of another run"
        )
    if not stored.startswith("sqlite:"):
        file = Path("~/.mlflow/credentials").expanduser()  # MLflow would send the contents to any server
        names = [*(name for name in _CREDENTIALS if os.environ.get(name)), *([str(file)] if file.exists() else [])]
        if names:
            raise ConfigError(
                f"the entries in {spool} are for {redact(stored)}, which neither --tracking-uri nor "
                f"MLFLOW_TRACKING_URI names; this server would get your {' and '.join(names)}; if that is your server, "
                f"give --tracking-uri {redact(stored)}"
            )
    return stored, store["experiment"]


def _plain(uri: str) -> str:
    """Returns an address in the form that is compared: without credentials; a database with its absolute path."""
    name = uri.removeprefix(_SQLITE)
    return redact_addresses(uri).rstrip("/") if name == uri else f"{_SQLITE}{Path(name).resolve()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmrl tracking",
        description="Show or deliver entries that wait for the tracking server.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("status", "flush"), help="show the waiting entries, or deliver them")
    parser.add_argument(
        "run", nargs="?", type=Path, default=Path("runs"), metavar="RUN",
        help="folder of a run, or an output_dir with several (default: runs)",
    )  # fmt: skip
    parser.add_argument("--tracking-uri", metavar="URI", help="the server, with its credentials")
    return parser
