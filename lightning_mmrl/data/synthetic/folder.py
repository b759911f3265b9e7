"""Creates dataset folders atomically: files go to a hidden sibling folder, which is renamed at the end."""

import json
import math
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
from lightning_mmrl.files import file_digest
from lightning_mmrl.machine import refusal
from lightning_mmrl.workers.own_packages import own_packages
from lightning_mmrl.workers.serving import begin

RECORD = "dataset.json"
"""File that is written last; a folder without it is not a complete generated set."""

Progress = Callable[[int, int], None]
"""Called with (number of finished items, number of all items)."""

Item = TypeVar("Item")
Result = TypeVar("Result")

_ITEMS_PER_JOB = 16
_OLD = "-old"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that determines a generated set.

    Attributes:
        name: Name of the set in error messages.
        settings: Settings that JSON can represent.
        generator_version: Version of the generator; it increases whenever the same settings would give other bytes.
    """

    name: str
    settings: Mapping[str, Any]
    generator_version: int


def check_numbers(what: str, *, seed: int, scale: float, workers: int = 1, largest_scale: float = math.inf) -> None:
    """Refuses a seed, a scale or a number of workers that no generator takes.

    Raises:
        DataError: A number is out of range; the message begins with `what`.
    """
    most = "finite" if largest_scale == math.inf else f"at most {largest_scale}"
    for key, valid, value, rule in (
        ("seed", seed >= 0, seed, "0 or more"),
        ("scale", 0 < scale < math.inf and scale <= largest_scale, scale, f"more than 0 and {most}"),
        ("workers", workers >= 1, workers, "at least 1"),
    ):
        if not valid:
            raise DataError(f"{what}: {key} is {value}; it must be {rule}")


def make_folder(directory: Path, recipe: Recipe, write: Callable[[Path], None], *, overwrite: bool) -> Path:
    """Let `write` fill a hidden sibling folder, which is renamed at the end; an existing complete set is kept.

    Raises:
        DataError: The directory holds other files or a set of another recipe, or cannot be written.
    """
    directory = Path(directory).absolute()
    if _is_complete(directory, recipe, overwrite):
        return directory
    try:
        with _alone(directory):
            if _is_complete(directory, recipe, overwrite):
                return directory  # another process finished it while this one waited for the lock
            partial = directory.parent / f".{directory.name}.partial-{secrets.token_hex(4)}"
            partial.mkdir()
            try:
                write(partial)
                old = partial.with_name(f"{partial.name}{_OLD}")
                if is_replaced := directory.exists():  # an older set is moved aside and then deleted
                    directory.rename(old)
                partial.rename(directory)
                if is_replaced:
                    shutil.rmtree(old)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except Exception as error:
        found = refusal(error)  # encoders report a full disk with their own exceptions
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
    """Apply `function` to chunks of consecutive items and return its results in order.

    Args:
        function: Must be picklable if there is more than one worker.
        items: Items to cut into chunks; the chunks do not depend on `workers`.
        workers: Number of spawned processes; 1 uses this process.
        on_progress: Called with the number of finished items.

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


def _is_complete(directory: Path, recipe: Recipe, overwrite: bool) -> bool:
    """Return whether the set exists already; refuse a directory that another program or recipe filled."""
    if not directory.exists() or (directory.is_dir() and not any(directory.iterdir())):
        return False
    record_path = directory / RECORD
    if not record_path.is_file():
        raise DataError(f"{directory} exists and holds no {RECORD}; give a new or empty directory")
    if overwrite:
        return False
    fix = "give another directory or overwrite=True"
    try:
        record = json.loads(record_path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {record_path}: {error}; {fix}") from error
    difference = _first_difference(
        record.get("settings"), json.loads(json.dumps(recipe.settings)), "settings"
    ) or _first_difference(record.get("generator_version"), recipe.generator_version, "generator_version")
    if difference:
        raise DataError(f"{directory} was generated with other settings: {difference}; {fix}")
    for name, expected in record["manifests"].items():
        if not (directory / name).is_file() or file_digest(directory / name) != expected:
            raise DataError(f"{directory / name} is missing or was changed after it was generated; {fix}")
    return True


def _first_difference(found: Any, wanted: Any, key: str) -> str:
    """Describe the first setting that differs, e.g. "settings.seed is 0, not 1"; "" if none does."""
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys())
        differences = (_first_difference(found.get(name), wanted.get(name), f"{key}.{name}") for name in keys)
        return next(filter(None, differences), "")
    return "" if found == wanted else f"{key} is {json.dumps(found)}, not {json.dumps(wanted)}"


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one process at a time generate a set, and clean up after killed processes."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        problem = f"{directory} cannot be made, as {directory.parent} is no folder"
        raise DataError(f"{problem}; give a writable directory") from error
    with FileLock(directory.parent / f".{directory.name}.lock"):
        # If the process that created one of these folders were alive, it would hold the lock.
        for abandoned in directory.parent.glob(f".{escape(directory.name)}.partial-*"):
            if abandoned.name.endswith(_OLD) and (abandoned / RECORD).is_file() and not directory.exists():
                abandoned.rename(directory)  # a complete set that was about to be replaced
            else:
                shutil.rmtree(abandoned, ignore_errors=True)
        yield


@contextmanager
def _spawned(workers: int) -> Iterator[Executor]:
    """Yield a process pool that drops its waiting jobs when one fails."""
    # Workers end themselves when the main process is killed, see `begin`.
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
