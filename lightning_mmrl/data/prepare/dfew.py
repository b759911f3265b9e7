"""Reads DFEW: five folds of single-labeled clips, in lists of numbers (Jiang et al. 2020)."""

from collections.abc import Iterator
from pathlib import Path

from lightning_mmrl.data.prepare.lists import read_folds, read_table
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


def _endings(fold: int, split: str) -> tuple[str, str]:
    return f"{split}(single-labeled)/set_{fold}.csv", f"single_{split}set_{fold}.csv"


def _lines(path: Path, problems: list[Problem]) -> Iterator[tuple[int, str, str]]:
    for line, cells in read_table(path, ("video_name", "label"), problems):
        yield line, cells["video_name"].removesuffix(".mp4") + ".mp4", cells["label"]
