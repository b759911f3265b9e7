"""`mmrl cache stats | prune`: shows what a media cache holds, or deletes the entries that were used least recently."""

import argparse
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from lightning_mmrl.data.media.cache_folder import StoredFile, cached_files, removable, remove
from lightning_mmrl.errors import ConfigError

GB = 1e9
DAY_S = 86_400.0

EXAMPLES = """\
FOLDER is what data.media.cache_dir names: in most presets OUTPUT_DIR/cache. Runs may be using it: a run that misses an
entry decodes the file again. Files that no cache wrote are never deleted.

examples:
  mmrl cache stats runs/cache
  mmrl cache prune runs/cache --limit-gb 50             # the least recently used entries leave
  mmrl cache prune runs/cache --unused-days 30 --dry-run
"""


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    options = _parser().parse_args(arguments)
    files = cached_files(options.folder)
    if options.action == "stats":
        _show(files)
    else:
        _prune(files, options.limit_gb, options.unused_days, dry_run=options.dry_run)
    return 0


def _show(files: Sequence[StoredFile]) -> None:
    entries = [file for file in files if file.is_medium]
    manifests = [file for file in files if file.is_entry and not file.is_medium]
    rest = [file for file in files if not file.is_entry]
    earlier = [file for file in entries if file.is_earlier]
    print(f"entries      {len(entries):,}, {_size(entries)}")
    if entries:
        print(f"per entry    {sum(file.num_bytes for file in entries) / len(entries) / 1e6:,.2f} MB")
        times = [time.localtime(pick(file.used_s for file in entries)) for pick in (min, max)]
        print(f"last used    {' to '.join(time.strftime('%Y-%m-%d %H:%M', each) for each in times)}")
    if manifests:
        print(f"manifests    {len(manifests):,}, {_size(manifests)}: indexes of large manifests, and their checks")
    if earlier:
        print(f"no use       {len(earlier):,}, {_size(earlier)}: entries of an earlier version of mmrl")
    if rest:
        print(f"unfinished   {len(rest):,}, {_size(rest)}: being written, or left by a process that was killed")


def _prune(files: Sequence[StoredFile], limit_gb: float | None, unused_days: float | None, *, dry_run: bool) -> None:
    if limit_gb is None and unused_days is None:
        raise ConfigError("mmrl cache prune needs --limit-gb or --unused-days, which say what to delete")
    for flag, value in (("--limit-gb", limit_gb), ("--unused-days", unused_days)):
        if value is not None and not 0 <= value < float("inf"):
            raise ConfigError(f"{flag} is {value:g}; it must be a number from 0")
    now_s = time.time()
    leaving: dict[Path, StoredFile] = {}
    if unused_days is not None:
        old = removable(files, used_before_s=now_s - unused_days * DAY_S, all_older=True)
        leaving |= {file.path: file for file in old}
    if limit_gb is not None:
        kept = [file for file in files if file.path not in leaving]
        leaving |= {file.path: file for file in removable(kept, limit_bytes=limit_gb * GB, used_before_s=now_s)}
    if not dry_run:
        remove(leaving.values())
    kept = [file for file in files if file.path not in leaving]
    print(f"{'would delete' if dry_run else 'deleted':<13}{len(leaving):,} files, {_size(leaving.values())}")
    print(f"{'would keep' if dry_run else 'kept':<13}{len(kept):,} files, {_size(kept)}")


def _size(files: Collection[StoredFile]) -> str:
    return f"{sum(file.num_bytes for file in files) / GB:,.3f} GB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mmrl cache",
        description="Show what a media cache holds, or delete the entries that were used least recently.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("stats", "prune"), help="show sizes and times, or delete entries")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the cache")
    parser.add_argument("--limit-gb", type=float, metavar="GB", help="prune: gigabytes (10^9 bytes) that may stay")
    parser.add_argument("--unused-days", type=float, metavar="DAYS", help="prune: delete what was not used for so long")
    parser.add_argument("--dry-run", action="store_true", help="prune: show what would be deleted, and delete nothing")
    return parser
