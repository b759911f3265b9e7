"""Finds and reads the lists of a published set: tables, and the lists of its cross-validation folds."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from lightning_mmrl.data.formats.csv_text import csv_text, delimiter_of
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.prepare.rows import MediaFiles, Parts, PrepareRequest, Row
from lightning_mmrl.data.schema import Problem
from lightning_mmrl.errors import DataError

NUM_FOLDS = 5
SPLITS = ("train", "test")


class Lists:
    """The .csv and .txt files below a folder, found by the end of their path, in whatever folder a user unpacked them.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._paths = [
            Path(parent, name)
            for parent, _, files in os.walk(root)
            for name in sorted(files)
            if name.endswith((".csv", ".txt")) and not name.startswith(".")
        ]

    def find(self, *endings: str) -> Path | None:
        """The list whose path has one of these endings; None if there is none.

        Raises:
            DataError: Several have it.
        """
        for ending in endings:
            found = sorted(path for path in self._paths if f"/{path.as_posix()}".endswith(f"/{ending}"))
            if len(found) > 1:
                raise DataError(f"{found[0]} and {found[1]} are two lists of one name; remove or rename one of them")
            if found:
                return found[0]
        return None

    def need(self, ending: str) -> Path:
        """The list whose path has this ending.

        Raises:
            DataError: There is none, or several have it.
        """
        path = self.find(ending)
        if path is None:
            raise DataError(
                f"{self._root} holds no {ending}; name the folder of the originals, or complete the download"
            )
        return path


def read_folds(
    request: PrepareRequest,
    files: MediaFiles,
    endings: Callable[[int, str], Sequence[str]],
    read: Callable[[Path, list[Problem]], Iterable[tuple[int, str, str]]],
    key: Callable[[Path], str],
) -> tuple[Parts, list[Problem]]:
    """Reads the lists of five folds, each with clips for training and for testing.

    A missing list, a label that is none of the set, a clip with two labels and a clip that two folds test are problems.

    Args:
        request: The originals.
        files: The clips that exist.
        endings: Possible ends of the path of a list, by the number of its fold and its split.
        read: Yields line, clip and label of each line of a list.
        key: Key of a clip's name, as in `files`.
    """
    subset, labels = request.subset
    lists, parts, problems = Lists(request.root), {}, []
    first: dict[str, Row] = {}
    tested: dict[str, Row] = {}
    for fold in range(1, NUM_FOLDS + 1):
        splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
        for split in SPLITS:
            names = endings(fold, split)
            path = lists.find(*names)
            if path is None:
                reason = "is not there; complete the download, or accept the loss of the fold by --allow-missing"
                problems.append(Problem(file=f"{request.root}/{names[0]}", line=0, group="missing list", reason=reason))
                continue
            for line, name, original in read(path, problems):
                clip = key(Path(name))
                label = labels.get(original)
                counted = (
                    f"{subset} clips of fold {fold}",
                    f"{subset} {label}",
                    *([f"{subset} tested"] * (split == "test")),
                )
                row = Row(
                    place=(str(path), line),
                    name=clip,
                    label=label,
                    clip=files.paths.get(clip),
                    counted_as=counted,
                )
                problem = _conflict(row, original, labels, first.setdefault(clip, row))
                other = tested.setdefault(clip, row) if split == "test" and problem is None else row
                if other.place[0] != row.place[0]:
                    problem = (
                        "tested twice",
                        f"{name} is tested in {other.where} too; a clip belongs to the test of one fold",
                    )
                if problem is None:
                    splits[split].append(row)
                else:
                    problems.append(row.problem(*problem))
        parts[f"fold_{fold}"] = {split: rows for split, rows in splits.items() if rows}
    return {fold: splits for fold, splits in parts.items() if splits}, problems


def _conflict(row: Row, original: str, labels: Iterable[str], first: Row) -> tuple[str, str] | None:
    if row.label is None:
        return (
            "label",
            f"label {quoted(original)} is none of {', '.join(labels)}; correct it or download the list again",
        )
    if first.label != row.label:
        return "label", f"label {row.label} contradicts {first.label} in {first.where}; correct one of them"
    return None


def read_table(path: Path, columns: Sequence[str], problems: list[Problem]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the rows of a CSV with the number of their lines; a row with too few or many fields is a problem.

    Raises:
        DataError: The file cannot be read or lacks one of the columns.
    """
    text = csv_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter_of(text)[0], strict=True)
    header: list[str] | None = None
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if header is None:
                header = [name.strip().casefold() for name in fields]
                if missing := [name for name in columns if name not in header]:
                    raise DataError(
                        f"{path}:{reader.line_num}: no column {quoted(missing[0])}; the header has "
                        f"{', '.join(map(quoted, fields[:8]))}: download the list again"
                    )
            elif len(fields) != len(header):
                reason = f"{len(fields)} fields but {len(header)} columns; download the list again or correct the row"
                problems.append(Problem(file=str(path), line=reader.line_num, group="not a CSV row", reason=reason))
            else:
                yield reader.line_num, {name: cell.strip() for name, cell in zip(header, fields, strict=True)}
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a CSV row ({error}); download the list again") from error
    if header is None:
        raise DataError(f"{path} is empty; download the list again")
