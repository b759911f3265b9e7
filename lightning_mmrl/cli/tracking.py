"""`mmrl tracking status | flush`: what waits for the tracking server, and its delivery; torch is not loaded."""

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

_SQLITE = "sqlite:///"
_CREDENTIALS = tuple(
    f"MLFLOW_TRACKING_{name}" for name in ("USERNAME", "PASSWORD", "TOKEN", "AUTH", "AWS_SIGV4", "CLIENT_CERT_PATH")
)

EXAMPLES = """\
During an outage of the tracking server a run keeps what it logs in OUTPUT_DIR/spool and delivers it later by itself.
What the server refuses twice is kept there as well. Any later mmrl train or evaluate of the run delivers both.

credentials come from --tracking-uri, or from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or from
MLFLOW_TRACKING_TOKEN; none are stored. They are sent to the server that --tracking-uri or MLFLOW_TRACKING_URI names,
and to no other that a folder names.
The exit code of flush is 0 if nothing is left, 1 if something is.

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
        problem = "is no folder" if folder.exists() else "does not exist"
        raise ConfigError(f"{folder} {problem}; name the folder of a run, or an output_dir with several")
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
        for path, number in damaged_lines(spool).items():
            found = True
            print(f"  {number} damaged lines in {path} are kept; nothing can be read of them")
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
    remember(tracking_uri or "", os.environ.get("MLFLOW_TRACKING_URI", ""))
    rest: list[Leftover] = []
    waits = failed = False
    for spool in spools:
        try:
            if not leftovers(spool, runs):
                continue
            waits = True
            rest += _flush_spool(spool, runs, tracking_uri)
        except (MmrlError, OSError) as error:  # the other spools may be for servers that answer
            failed = True
            print(f"mmrl tracking: {spool} is left as it is: {printable(redact(error))}", file=sys.stderr)
    if rest:
        print(f"{sum(left.pending + left.rejected for left in rest)} entries are left; mmrl tracking status says more")
    elif not waits and not failed:
        print("nothing waits: the tracking server has everything")
    return EXIT_LEFT if rest or failed else 0


def _flush_spool(spool: Path, runs: Collection[str] | None, tracking_uri: str | None) -> list[Leftover]:
    # Loaded here: MLflow takes seconds.
    from lightning_mmrl.tracking.flushing import flush_store

    uri, experiment = _store_of(spool, tracking_uri)
    print(f"{redact(uri)}:")
    return flush_store(spool, uri, experiment, runs=runs, say=lambda line: print(f"  {printable(line)}"))


def _store_of(spool: Path, tracking_uri: str | None) -> tuple[str, str]:
    """The address of a spool's store, with the credentials that were given for it, and its experiment.

    A folder may come from somebody else: credentials of the environment go to no address that only the folder names.

    Raises:
        ConfigError: The spool does not say, and no address was given; or it says another one than was given; or there
            are credentials for a server that nobody named.
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
            f"--tracking-uri is {redact(tracking_uri)}, but what waits in {spool} is for {redact(stored)}; "
            "give that address, or name the folder of another run"
        )
    if not stored.startswith("sqlite:") and (names := _credentials()):
        raise ConfigError(
            f"what waits in {spool} is for {redact(stored)}, which neither --tracking-uri nor MLFLOW_TRACKING_URI "
            f"names, and would get your {' and '.join(names)}; if that is your server, give "
            f"--tracking-uri {redact(stored)}"
        )
    return stored, store["experiment"]


def _plain(uri: str) -> str:
    """An address to compare: without credentials, and a database with its whole path."""
    name = uri.removeprefix(_SQLITE)
    return redact_addresses(uri).rstrip("/") if name == uri else f"{_SQLITE}{Path(name).resolve()}"


def _credentials() -> list[str]:
    """Where MLflow finds credentials that it sends to any server."""
    file = Path("~/.mlflow/credentials").expanduser()
    return [*(name for name in _CREDENTIALS if os.environ.get(name)), *([str(file)] if file.exists() else [])]


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
