"""Converts a folder of clips and a CSV of labels to a dataset: canonical manifests, labels.json, rejected.csv."""

import mimetypes
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from lightning_mmrl.data.formats.clip_files import ClipFolder
from lightning_mmrl.data.formats.csv_clips import Clip, decoded, found, label_problem, labelled, once, target_of
from lightning_mmrl.data.formats.label_csv import CsvRow, read_label_csv
from lightning_mmrl.data.formats.publish import Publication
from lightning_mmrl.data.formats.splits import assign_splits
from lightning_mmrl.data.formats.turns import TURN_COLUMNS
from lightning_mmrl.data.label_findings import label_findings
from lightning_mmrl.data.media.examine import Guard
from lightning_mmrl.data.schema import COLUMN_OF, Problem, label_matcher
from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.prompts.template import DEFAULT_QUESTION, question_about
from lightning_mmrl.types.records import MediaKind

SPLITS = ("train", "validation", "test")
MANIFESTS = (*SPLITS, "cold_start")

_RESERVED = TURN_COLUMNS | frozenset(
    {"images", "videos", "audios", "image", "video", "audio", "solution", "labels"}
    | {"speaker", "split", "start", "end", "id"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvSettings:
    """Settings of a conversion.

    Attributes:
        columns: Column names by purpose, for columns without a usual name; see `read_label_csv`.
        encoding: Encoding of the CSV; with None, the byte order mark decides, and without a mark UTF-8 is used.
        suffix: Appended to file names without a suffix, such as ".mp4".
        labels: The label set; None for all labels in the CSV.
        question: The question of every sample.
        shares: Shares of validation and test, for splits that the CSV does not assign.
        seed: Seed of the split assignment.
        by_speaker: True if all clips of a speaker go to one split.
        copy: True to copy clips from outside the dataset's folder, where hard links are impossible.
        overwrite: True to replace the files of an earlier conversion.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    encoding: str | None = None
    suffix: str = ""
    labels: Sequence[str] | None = None
    question: str = DEFAULT_QUESTION
    shares: Mapping[str, float] = field(default_factory=lambda: {"validation": 0.15, "test": 0.15})
    seed: int = 0
    by_speaker: bool = True
    copy: bool = False
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """The result of a conversion: the folder, the number of clips in each split, and the rows that were left out.

    `taken_as` maps kinds of media to the paths of the files that hold them, the most frequent kinds first. `notes` say
    how the CSV was understood, and `warnings` tell a person to check something.
    """

    directory: Path
    sizes: Mapping[str, int]
    num_without_sound: int
    num_reasonings: int
    labels: tuple[str, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    taken_as: Mapping[tuple[MediaKind, ...], tuple[str, ...]]


def convert_csv(
    csv_file: Path,
    media_root: Path,
    directory: Path,
    *,
    settings: CsvSettings,
    guard: Guard,
    on_progress: Callable[[int, int], None],
) -> Conversion:
    """Writes train, validation, test and cold_start manifests into `directory`; all files appear at the end.

    Raises:
        DataError: The CSV cannot be read, none of its rows is usable, or the directory already holds files.
    """
    if not media_root.is_dir():
        raise DataError(f"media root {media_root} is no folder; name the folder of the clips")
    publication = Publication(directory, media_root, copy=settings.copy, overwrite=settings.overwrite)
    _check_settings(settings)
    table = read_label_csv(csv_file, settings.columns, encoding=settings.encoding)
    problems, notes = list(table.problems), list(table.notes)

    def reject(row: CsvRow, group: str, reason: str) -> None:
        problems.append(Problem(file=str(csv_file), line=row.line, group=group, reason=reason))

    taken = next((name for row in table.rows for name in row.extras if name in _RESERVED), None)
    if taken is not None:
        raise DataError(f"{csv_file}:1: column {taken!r} would hide the manifest's own; rename or remove it")
    clips = found(table.rows, ClipFolder(media_root, settings.suffix), reject)
    clips, labels = labelled(clips, settings.labels, reject, notes)
    clips = decoded(once(clips, reject), media_root, guard, reject, on_progress)
    problems.sort(key=lambda problem: problem.line)
    # The rows left out so far may be the cause of an error.
    left_out = f"; rows left out: {len(problems)}, the first: {problems[0]}" if problems else ""
    if not clips:
        raise DataError(f"{csv_file}: none of its rows is usable{left_out}")
    try:
        splits = _assigned(clips, settings, notes)
    except DataError as error:
        raise DataError(f"{csv_file}: {error}{left_out}") from error
    labels = labels or tuple(sorted({clip.row.label for clip in clips}))
    try:
        label_matcher(labels)
    except ConfigError as error:
        raise DataError(f"{csv_file}: {error}; or give the set by --labels") from error
    notes += _unlike_names(clips)
    of_files = dict.fromkeys(warning for clip in clips for track in clip.tracks for warning in track.warnings)
    warnings = [*label_findings(Counter(clip.row.label for clip in clips)), *of_files]
    rows = _rows(clips, splits, publication.prefix, settings.question)
    manifests = {name: [row for row in rows if row["split"] == name] for name in SPLITS}
    publication.publish(
        manifests={**manifests, "cold_start": _cold_start(rows, clips)},
        labels=labels,
        problems=problems,
        clips={clip.path: clip.real for clip in clips},
        record={"source": csv_file.name, "seed": settings.seed, "columns": dict(table.columns), "warnings": warnings},
    )
    files: dict[tuple[MediaKind, ...], dict[str, None]] = {}
    for clip in clips:
        files.setdefault(clip.kinds, {})[clip.path] = None
    return Conversion(
        directory=directory,
        sizes=Counter(splits),
        num_without_sound=sum(clip.kinds == ("video",) for clip in clips),
        num_reasonings=sum(clip.row.reasoning is not None for clip in clips),
        labels=labels,
        problems=tuple(problems),
        notes=tuple(notes),
        warnings=tuple(warnings),
        taken_as={kinds: tuple(paths) for kinds, paths in sorted(files.items(), key=lambda item: -len(item[1]))},
    )


def _check_settings(settings: CsvSettings) -> None:
    """Refuses bad settings before the long work of decoding starts."""
    question_about((), settings.question)
    problem = next(filter(None, map(label_problem, settings.labels or ())), None)
    if problem is not None:
        raise ConfigError(f"--labels: {problem}")


def _assigned(clips: Sequence[Clip], settings: CsvSettings, notes: list[str]) -> list[str]:
    """Returns the split of each clip.

    If the CSV names no splits, all are drawn at random. If it does, a clip without one is for training, and a split
    that the CSV lacks is drawn from the training clips.
    """
    given = [clip.row.split for clip in clips]
    missing = [name for name in SPLITS[1:] if name not in given and settings.shares.get(name, 0.0) > 0]
    groups = _groups(clips, settings.by_speaker)
    if any(given):
        # Clips without a split are for training; splits that the CSV lacks are drawn from the training clips.
        pool = [index for index, name in enumerate(given) if name in (None, "train")]
        settled = {groups[index] for index, name in enumerate(given) if name not in (None, "train")}
        pool = [index for index in pool if groups[index] not in settled] if missing else []
        if missing:
            notes.append(f"the CSV names no {' and no '.join(missing)} split: drawn from its training clips")
    else:
        pool, missing = list(range(len(clips))), [name for name in SPLITS[1:] if settings.shares.get(name, 0.0) > 0]
    chosen = [name or "train" for name in given]
    if pool and missing:
        shares = {name: settings.shares[name] for name in missing}
        drawn = assign_splits(
            [groups[index] for index in pool],
            [clips[index].row.label for index in pool],
            shares={"train": 1.0 - sum(shares.values()), **shares},
            seed=settings.seed,
        )
        for index, name in zip(pool, drawn, strict=True):
            chosen[index] = name
    return chosen


def _groups(clips: Sequence[Clip], by_speaker: bool) -> list[str]:
    """A group name for each clip: clips of one speaker, or with the same content, must go to the same split."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = name = parent[parent[name]]
        return name

    for clip in clips:
        content = f"content {clip.tracks[0].content}"
        if by_speaker and clip.row.speaker is not None:
            parent[root(content)] = root(f"speaker {clip.row.speaker}")
    return [root(f"content {clip.tracks[0].content}") for clip in clips]


def _unlike_names(clips: Sequence[Clip]) -> list[str]:
    """Notes about files whose content is of another kind than their names suggest; the content decides."""
    notes = []
    for path, kinds in dict.fromkeys((clip.path, clip.kinds) for clip in clips):
        named = (mimetypes.guess_type(path)[0] or "").partition("/")[0]
        # A file named as a video may also hold sound; one named as a sound or a picture may hold nothing else.
        as_named = named in kinds if named == "video" else kinds == (named,)
        if named in get_args(MediaKind) and not as_named:
            notes.append(f"{path}: taken as {' and '.join(kinds)}, though its name says {named}")
    return notes


def _rows(clips: Sequence[Clip], splits: Sequence[str], prefix: str, question: str) -> list[dict[str, Any]]:
    """One manifest row per clip, without an assistant turn."""
    names = [clip.row.id or PurePosixPath(clip.path).with_suffix("").as_posix() for clip in clips]
    times = Counter(names)
    rows = []
    for clip, split, name in zip(clips, splits, names, strict=True):
        row: dict[str, Any] = {
            "id": name if times[name] == 1 else f"{name}-line{clip.row.line}",
            "messages": [{"role": "user", "content": question_about(clip.kinds, question)}],
            **{COLUMN_OF[kind]: [prefix + clip.path] for kind in clip.kinds},
            "solution": clip.row.label,
            "speaker": clip.row.speaker,
            "split": split,
            "start": clip.row.start_s,
            "end": clip.row.end_s,
            **clip.row.extras,
        }
        rows.append({key: value for key, value in row.items() if value is not None})
    return rows


def _cold_start(rows: Sequence[dict[str, Any]], clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """Training rows with a target: the rows with a reasoning; if there are none, all rows with `PLAIN_THOUGHT`."""
    training = [(row, clip.row) for row, clip in zip(rows, clips, strict=True) if row["split"] == "train"]
    reasoned = [(row, source) for row, source in training if source.reasoning is not None]
    return [
        {**row, "messages": [*row["messages"], {"role": "assistant", "content": target_of(source)}]}
        for row, source in reasoned or training
    ]
