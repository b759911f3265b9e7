"""Reads MAFW: five folds of single-labeled clips, in lists of names and nouns (Liu et al. 2022)."""

from collections.abc import Iterator
from pathlib import Path

from lightning_mmrl.data.formats.csv_text import csv_text
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.prepare.lists import read_folds
from lightning_mmrl.data.prepare.rows import VIDEO_SUFFIXES, MediaFiles, Originals, PrepareRequest, number_key
from lightning_mmrl.data.schema import Problem


def read(request: PrepareRequest) -> Originals:
    """Reads the lists of the folds; a clip is found by its number, with or without leading zeros."""
    files = MediaFiles(request.root, request.clips, VIDEO_SUFFIXES, number_key)
    parts, problems = read_folds(request, files, _endings, _lines, number_key)
    return Originals(
        parts=parts,
        problems=[*files.problems, *problems],
        labels=request.labels,
        counted={"clips in the folder": len(files.paths)},
    )


def _endings(fold: int, split: str) -> tuple[str]:
    return (f"single/no_caption/set_{fold}/{split}.txt",)


def _lines(path: Path, problems: list[Problem]) -> Iterator[tuple[int, str, str]]:
    for line, text in enumerate(csv_text(path).splitlines(), 1):
        fields = text.split()
        if len(fields) == 2:
            yield line, fields[0], fields[1].casefold()
        elif fields:
            reason = (
                f"{quoted(text)} is no line of a clip and a label, such as 03747.mp4 anger; download the list again"
            )
            problems.append(Problem(file=str(path), line=line, group="not a line of the list", reason=reason))
