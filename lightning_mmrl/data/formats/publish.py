"""Writes a converted dataset: all files go to a temporary folder first, and then move into place together."""

import csv
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lightning_mmrl.data.schema import Problem
from lightning_mmrl.errors import DataError
from lightning_mmrl.files import write_json

MEDIA_FOLDER = "media"
RECORD = "dataset.json"
MADE_BY = "mmrl data from-csv"
_PARTIAL, _LOCK = ".partial-", ".lock"


class Publication:
    """The folder of a dataset, and the paths of its clips in the manifests.

    Clips below the dataset's folder stay where they are. Others get hard links in `media/`, so that the folder holds
    every file that its manifests name, and no symbolic link leads out of the folder.

    Args:
        directory: The dataset's folder, new or existing.
        media_root: Folder of the clips; None if manifests name clips below a folder of their own, which stay there.
        copy: True to copy clips instead of linking them, for example from another file system.
        overwrite: True to replace the files of an earlier dataset.
        made_by: The command that makes the dataset; only what the same command made is replaced.
        folders: Folders of the dataset beside its files.

    Raises:
        DataError: The folder already holds files with the names of the dataset's files.
    """

    def __init__(
        self,
        directory: Path,
        media_root: Path | None,
        *,
        copy: bool,
        overwrite: bool,
        made_by: str = MADE_BY,
        folders: Sequence[str] = (),
    ) -> None:
        self._directory, self._copy, self._made_by = directory, copy, made_by
        root, target = (media_root or directory).resolve(), directory.resolve()
        self._inside = root.is_relative_to(target)
        below = root.relative_to(target).as_posix() if self._inside else MEDIA_FOLDER
        self.prefix = "" if below == "." else f"{below}/"
        names = [*(f"{name}.jsonl" for name in ("train", "validation", "test", "cold_start")), "labels.json"]
        self._names = [*names, "rejected.csv", RECORD, *folders, *([] if self._inside else [MEDIA_FOLDER])]
        if directory.exists() and not directory.is_dir():
            raise DataError(f"{directory} is no folder; name another one by --out")
        found = next((name for name in self._names if (directory / name).exists()), None)
        if found is not None:
            try:
                ours = json.loads((directory / RECORD).read_text(encoding="utf-8")).get("made_by") == made_by
            except (OSError, ValueError, AttributeError):
                ours = False
            if not ours:
                old = directory / found
                raise DataError(f"{old} exists and is no earlier conversion; name another folder by --out")
        if found is not None and not overwrite:
            raise DataError(f"{directory / found} exists; give --overwrite, or name another folder by --out")

    def publish(
        self,
        *,
        manifests: Mapping[str, Sequence[Mapping[str, Any]]],
        labels: Sequence[str],
        problems: Sequence[Problem],
        clips: Mapping[str, Path],
        record: Mapping[str, Any],
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """Writes all files; a manifest may lie in a folder of the dataset, and `texts` are further files by name.

        Raises:
            DataError: The folder cannot be written, or the clips cannot be linked.
        """
        is_new = not self._directory.exists()
        aside = self._directory / f"{_PARTIAL}{secrets.token_hex(4)}"
        try:
            for abandoned in self._directory.glob(f"{_PARTIAL}*"):
                # A running conversion holds the lock of its folder; a killed one does not.
                with suppress(Timeout), FileLock(abandoned / _LOCK, timeout=0):
                    shutil.rmtree(abandoned, ignore_errors=True)
            aside.mkdir(parents=True)
            try:
                with FileLock(aside / _LOCK):
                    _write(aside, manifests, labels, problems, {"made_by": self._made_by, **record})
                    for name, text in (texts or {}).items():
                        (aside / name).parent.mkdir(parents=True, exist_ok=True)
                        (aside / name).write_text(text, encoding="utf-8")
                    if not self._inside:
                        self._bring(clips, aside / MEDIA_FOLDER)
                    self._move(aside)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
                if is_new and not any(self._directory.iterdir()):
                    self._directory.rmdir()
        except OSError as error:
            raise DataError(
                f"{self._directory} cannot be written ({error.strerror or error}); choose another --out"
            ) from error

    def _bring(self, clips: Mapping[str, Path], folder: Path) -> None:
        for path, real in clips.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if self._copy:
                shutil.copyfile(real, target)
                continue
            try:
                os.link(real, target)
            except OSError as error:
                raise DataError(
                    f"{real} cannot be linked into {self._directory} ({error.strerror}); choose an --out that contains "
                    "the clips or lies on their file system, or give --copy"
                ) from error

    def _move(self, aside: Path) -> None:
        """Replaces the files; the record is removed first and written last, so it exists only in a complete set."""
        (self._directory / RECORD).unlink(missing_ok=True)
        for name in self._names:
            new, place = aside / name, self._directory / name
            if place.is_dir():
                place.rename(aside / f"old-{name}")
            else:
                place.unlink(missing_ok=True)
            if new.exists():
                os.replace(new, place)


def _write(
    folder: Path,
    manifests: Mapping[str, Sequence[Mapping[str, Any]]],
    labels: Sequence[str],
    problems: Sequence[Problem],
    record: Mapping[str, Any],
) -> None:
    digests = {}
    for name, rows in manifests.items():
        if not rows:
            continue  # readers refuse an empty manifest
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
        digests[f"{name}.jsonl"] = hashlib.sha256(text.encode()).hexdigest()
    with (folder / "rejected.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "line", "group", "reason"))
        writer.writerows((problem.file, problem.line, problem.group, problem.reason) for problem in problems)
    write_json(folder / "labels.json", {"labels": list(labels)}, ascii_only=False)
    sizes = {name: len(rows) for name, rows in manifests.items()}
    write_json(
        folder / RECORD,
        {**record, "sizes": sizes, "num_rejected": len(problems), "manifests": digests},
        ascii_only=False,
    )
