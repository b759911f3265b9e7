"""Rows that the reader of a published set makes of the originals, and the media files that it looks into."""

import filecmp
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lightning_mmrl.data.formats.label_csv import CsvRow
from lightning_mmrl.data.schema import Problem
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import DEFAULT_QUESTION

VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mkv", ".mov", ".webm", ".mpg", ".mpeg"})
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".mp3", ".m4a", ".ogg"})

FILE_NAME, REPEATED_FILE = "file name", "repeated file"
HARMLESS = frozenset({FILE_NAME, REPEATED_FILE})
"""Sorts of faults that leave no clip out by themselves: a published count tells whether one is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A clip of a published set, as a line of a list or a file name describes it.

    Attributes:
        place: The list and its line, or the file and 0.
        name: Unique within a split; becomes the id.
        label: The label in our spelling; None for a clip that an option leaves out, which is counted all the same.
        clip: File of picture and sound, relative to the originals' folder; None if it is missing.
        sound: A further file with the clip's sound.
        picture: A further file with the clip's picture.
        speaker: The person who is seen and heard.
        reasoning: A written thought, which becomes a part of the cold start's target.
        preface: Text before the question, such as a subtitle.
        counted_as: Names of the counts that the clip belongs to.
        speaker_counted_as: Name of the count of speakers that its speaker belongs to.
        extras: Further columns of the manifest.
    """

    place: tuple[str, int]
    name: str
    label: str | None
    clip: str | None = None
    sound: str | None = None
    picture: str | None = None
    speaker: str | None = None
    reasoning: str | None = None
    preface: str = ""
    counted_as: Sequence[str] = ()
    speaker_counted_as: str | None = None
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """The list and its line, or the file."""
        return self.problem("", "").place

    @property
    def source(self) -> CsvRow:
        """The row as a row of a CSV, for the checks and the target of a cold start."""
        return CsvRow(line=self.place[1], file=self.name, label=str(self.label), reasoning=self.reasoning)

    def problem(self, group: str, reason: str) -> Problem:
        """A fault of this row."""
        return Problem(file=self.place[0], line=self.place[1], group=group, reason=reason)


Parts = dict[str, dict[str, list[Row]]]
"""Rows by folder of the dataset ("" for the dataset's own folder, "fold_1", ...) and by split."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Originals:
    """The content of the originals' folder: its rows, what is wrong, and counts that no row shows.

    `labels` is the label set that the options leave; None for an open vocabulary. `question` is what is asked unless
    the user asks something else.
    """

    parts: Parts
    problems: Sequence[Problem]
    labels: Sequence[str] | None
    counted: Mapping[str, int] = field(default_factory=dict)
    notes: Sequence[str] = ()
    question: str = DEFAULT_QUESTION


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareRequest:
    """The folder of the originals, the folder of the clips in it, subsets with their labels, options and seed."""

    root: Path
    clips: Path
    subsets: Mapping[str, Mapping[str, str]]
    options: Mapping[str, str | None]
    seed: int = 0

    @property
    def subset(self) -> tuple[str, Mapping[str, str]]:
        """The only subset, and its labels.

        Raises:
            DataError: There are several.
        """
        if len(self.subsets) > 1:
            raise DataError(f"--subset {' '.join(self.subsets)} names several; name one and use an --out for each")
        return next(iter(self.subsets.items()))

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of the subsets, each once."""
        return tuple(dict.fromkeys(label for labels in self.subsets.values() for label in labels.values()))


class Reader(Protocol):
    """Reads the originals of one set."""

    def __call__(self, request: PrepareRequest) -> Originals: ...


class MediaFiles:
    """The media files below a folder, found by a key of their names, such as a number without its zeros.

    Two files with one key are the same clip if their bytes are equal: the first one in the order of paths is used, and
    the other is a harmless problem. If the bytes differ, neither is used, since a guess could show the wrong clip.

    Args:
        root: Folder that paths are relative to.
        folder: Where to look, with all folders below it; links to folders are not followed.
        suffixes: The names' suffixes, in lower case.
        key: Key of a file by its path; None for a file that is no clip of the set.
    """

    def __init__(self, root: Path, folder: Path, suffixes: frozenset[str], key: Callable[[Path], str | None]) -> None:
        self.unlike: list[str] = []
        self.problems: list[Problem] = []
        found: dict[str, list[Path]] = {}
        for path in _walk(folder, suffixes):
            name = key(path)
            if name is None:
                self.unlike.append(path.relative_to(root).as_posix())
            else:
                found.setdefault(name, []).append(path)
        self.paths = {name: paths[0].relative_to(root).as_posix() for name, paths in found.items()}
        for name, (first, *others) in found.items():
            for other in others:
                self._settle(name, first, other, root)

    def _settle(self, name: str, first: Path, other: Path, root: Path) -> None:
        one, two = (path.relative_to(root).as_posix() for path in (first, other))
        group, reason = REPEATED_FILE, f"has the bytes of {one}, which is used; remove one of them"
        if not filecmp.cmp(first, other, shallow=False):
            self.paths.pop(name, None)
            group = "ambiguous file"
            reason = f"and {one} differ and have the name of one clip; say by --clips which folder holds the clips"
        self.problems.append(Problem(file=two, line=0, group=group, reason=reason))


def _walk(folder: Path, suffixes: frozenset[str]) -> Iterator[Path]:
    """Yields media files in the order of their paths; leaves out hidden files and those that macOS adds to archives."""
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield Path(parent, name)


def number_key(path: Path) -> str:
    """A file's name without suffix, and without leading zeros if it is a number.

    >>> number_key(Path("part_1/00012.mp4")), number_key(Path("00abc.mp4"))
    ('12', '00abc')
    """
    return str(int(path.stem)) if path.stem.isascii() and path.stem.isdecimal() else path.stem
