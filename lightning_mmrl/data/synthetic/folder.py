"""Datasets that appear whole: written beside their place, renamed at the end, recognized and never written twice."""

import hashlib
import json
import multiprocessing
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from lightning_mmrl.errors import DataError
from lightning_mmrl.machine import refusal
from lightning_mmrl.workers.own_packages import own_packages
from lightning_mmrl.workers.serving import begin

RECORD = "dataset.json"
"""Written last; a folder without it is not a generated set."""

Progress = Callable[[int, int], None]
"""Called with (items done, items in all)."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_ITEMS_PER_JOB = 16
_OLD = "-old"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a generated set follows from.

    `name` is how errors call it, `settings` must read back from JSON as they are, and `generator_version` is raised
    whenever the same settings would give other bytes.
    """

    name: str
    settings: Mapping[str, Any]
    generator_version: int


def make_folder(directory: Path, recipe: Recipe, write: Callable[[Path], None], *, overwrite: bool) -> Path:
    """Let `write` fill a hidden sibling that takes the final name at the very end; a complete set is returned as it is.

    Raises:
        DataError: the directory holds something else, was made by another recipe, or cannot be written.
    """
    directory = Path(directory).absolute()
    if _is_complete(directory, recipe, overwrite):
        return directory
    try:
        with _alone(directory), _partial_sibling(directory) as partial:
            if _is_complete(directory, recipe, overwrite):
                return directory  # by another process, which this one waited for
            write(partial)
            _move_into_place(partial, directory)
    except Exception as error:
        found = refusal(error)  # encoders have errors of their own
        if found is None or found.memory:
            raise
        raise DataError(
            f"cannot write the generated {recipe.name} set {directory}: {found.problem}; "
            "give a writable directory with free space"
        ) from error
    return directory


def run_in_processes(
    function: Callable[[Sequence[Item]], Result],
    items: Sequence[Item],
    *,
    workers: int,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Results of `function` for runs of neighbouring items, in order, whatever the number of processes.

    Args:
        function: Picklable if there is more than one worker.
        items: What is cut into its arguments.
        workers: Number of spawned processes; 1 is this process.
        on_progress: Hears how many items are done.

    Raises:
        DataError: A process died.
    """
    report = on_progress or (lambda done, total: None)
    jobs = [items[start : start + _ITEMS_PER_JOB] for start in range(0, len(items), _ITEMS_PER_JOB)]
    results: list[Result] = []
    if workers == 1:
        for job in jobs:
            results.append(function(job))
            report(min(len(results) * _ITEMS_PER_JOB, len(items)), len(items))
        return results
    with _spawned(min(workers, len(jobs))) as pool:
        sizes: dict[Future[Result], int] = {pool.submit(function, job): len(job) for job in jobs}
        done = 0
        for future in as_completed(sizes):
            future.result()
            done += sizes[future]
            report(done, len(items))
        return [future.result() for future in sizes]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a manifest, one JSON object per line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="ascii")


def sha256(path: Path) -> str:
    """Return the hash of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_complete(directory: Path, recipe: Recipe, overwrite: bool) -> bool:
    """Say whether the set is there already; refuse to touch anything that is not this generator's."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    record_path = directory / RECORD
    if not record_path.is_file():
        raise DataError(f"{directory} exists and holds no {RECORD}; give a new or empty directory")
    if overwrite:
        return False
    record = _read_record(record_path)
    fix = "give another directory or overwrite=True"
    difference = _first_difference(
        record.get("settings"), json.loads(json.dumps(recipe.settings)), "settings"
    ) or _first_difference(record.get("generator_version"), recipe.generator_version, "generator_version")
    if difference:
        raise DataError(f"{directory} was generated with other settings: {difference}; {fix}")
    for name, expected in record["manifests"].items():
        if not (directory / name).is_file() or sha256(directory / name) != expected:
            raise DataError(f"{directory / name} is missing or was changed after it was generated; {fix}")
    return True


def _read_record(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; give another directory or overwrite=True") from error


def _first_difference(found: Any, wanted: Any, key: str) -> str:
    """Describe the first setting that differs, e.g. "settings.seed is 0, not 1"; "" where none does."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        differences = (_first_difference(found.get(name), wanted.get(name), f"{key}.{name}") for name in keys)
        return next(filter(None, differences), "")
    return "" if found == wanted else f"{key} is {json.dumps(found)}, not {json.dumps(wanted)}"


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Have one process at a time generate a set, and remove what killed ones left of it."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        problem = f"{directory} cannot be made, as {directory.parent} is no folder"
        raise DataError(f"{problem}; give a writable directory") from error
    with FileLock(directory.parent / f".{directory.name}.lock"):
        # Whoever began them does not hold the lock: it is dead.
        for abandoned in directory.parent.glob(f".{escape(directory.name)}.partial-*"):
            _recover(abandoned, directory)
        yield


def _recover(abandoned: Path, directory: Path) -> None:
    """Remove what a killed process left, or give its name back to a set that was about to be replaced."""
    if abandoned.name.endswith(_OLD) and (abandoned / RECORD).is_file() and not directory.exists():
        abandoned.rename(directory)
    else:
        shutil.rmtree(abandoned, ignore_errors=True)


@contextmanager
def _partial_sibling(directory: Path) -> Iterator[Path]:
    """Give a new directory beside the target and remove what is left of it, whatever happens."""
    partial = directory.parent / f".{directory.name}.partial-{secrets.token_hex(4)}"
    partial.mkdir()
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_into_place(partial: Path, directory: Path) -> None:
    """Rename the finished set to its name; an older set moves into the partial directory's place and is deleted."""
    if not directory.exists():
        partial.rename(directory)
        return
    old = partial.with_name(f"{partial.name}{_OLD}")
    directory.rename(old)
    partial.rename(directory)
    shutil.rmtree(old)


@contextmanager
def _spawned(workers: int) -> Iterator[Executor]:
    """Give a pool that drops its waiting jobs when one fails."""
    # A killed run does not end its workers: they see to it themselves.
    context, packages = multiprocessing.get_context("spawn"), own_packages()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=begin, initargs=(packages,))
    try:
        yield pool
    except BrokenProcessPool as error:
        raise DataError(
            'a drawing process ended abruptly; guard the script with if __name__ == "__main__" or give workers=1'
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
