"""A folder of clips and a CSV of labels become a dataset: manifests in canonical form, labels.json, rejected.csv."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from lightning_mmrl.data.formats.label_csv import CsvRow, read_label_csv
from lightning_mmrl.data.formats.publish import Publication
from lightning_mmrl.data.formats.splits import assign_splits
from lightning_mmrl.data.media.examine import Guard, MediaFacts, examine_tracks, fault
from lightning_mmrl.data.schema import LineError, Problem, label_matcher, resolve_media
from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.prompts.template import media_tags
from lightning_mmrl.types.records import MediaRef

SPLITS = ("train", "validation", "test")
MANIFESTS = (*SPLITS, "cold_start")
PLAIN_THOUGHT = "The clip shows it."
"""Stands where nobody wrote a reasoning: the format needs a thought, and this one claims nothing."""

_COLUMNS = {"image": "images", "video": "videos", "audio": "audios"}
_RESERVED = frozenset(
    {"messages", "images", "videos", "audios", "image", "video", "audio", "solution", "labels"}
    | {"speaker", "split", "start", "end", "id"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CsvSettings:
    """How a CSV becomes a dataset.

    Attributes:
        columns: Column names by purpose where the usual ones do not fit.
        suffix: Appended to file names that have none, such as ".mp4".
        labels: The label set; None takes the labels that come.
        question: What every sample asks.
        shares: Parts of validation and test where the CSV assigns none.
        seed: Seed of the assignment.
        by_speaker: True if a speaker stays in one split.
        copy: True to copy clips that lie outside of the dataset's folder, where they cannot be linked.
        overwrite: True to replace what an earlier conversion wrote.
    """

    columns: Mapping[str, str | None] = field(default_factory=dict)
    suffix: str = ""
    labels: Sequence[str] | None = None
    question: str = "Which emotion?"
    shares: Mapping[str, float] = field(default_factory=lambda: {"validation": 0.15, "test": 0.15})
    seed: int = 0
    by_speaker: bool = True
    copy: bool = False
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A row whose clip was found: its path below the media root, and its tracks once it is decoded."""

    row: CsvRow
    real: Path
    path: str
    tracks: tuple[MediaFacts, ...] = ()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its tracks."""
        return tuple(track.kind for track in self.tracks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What became of a CSV: the files that were written, the clips of each split, the rows that were left out."""

    directory: Path
    sizes: Mapping[str, int]
    num_without_sound: int
    num_reasonings: int
    labels: tuple[str, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]


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
        DataError: The CSV cannot be read, nothing of it is usable, or the directory holds files already.
    """
    if not media_root.is_dir():
        raise DataError(f"media root {media_root} is no folder; name the folder of the clips")
    publication = Publication(directory, media_root, copy=settings.copy, overwrite=settings.overwrite)
    table = read_label_csv(csv_file, settings.columns)
    problems, notes = list(table.problems), []

    def reject(row: CsvRow, group: str, reason: str) -> None:
        problems.append(Problem(file=str(csv_file), line=row.line, group=group, reason=reason))

    _check_extras(csv_file, table.rows)
    clips = _found(table.rows, media_root, settings.suffix, reject)
    clips, labels = _labelled(clips, settings.labels, reject, notes)
    clips = _decoded(_once(clips, reject), guard, reject, on_progress)
    problems.sort(key=lambda problem: problem.line)
    if not clips:
        first = f"; the first: {problems[0]}" if problems else ""
        raise DataError(f"{csv_file}: none of its rows is usable{first}")
    splits = _assigned(clips, settings, notes)
    labels = labels or tuple(sorted({clip.row.label for clip in clips}))
    _check_labels(csv_file, labels)
    rows = _rows(clips, splits, publication.prefix, settings.question)
    publication.publish(
        manifests={**_manifests(rows), "cold_start": _cold_start(rows, clips)},
        labels=labels,
        problems=problems,
        clips={clip.path: clip.real for clip in clips},
        record={"source": csv_file.name, "seed": settings.seed, "columns": dict(table.columns)},
    )
    return Conversion(
        directory=directory,
        sizes=Counter(splits),
        num_without_sound=sum(clip.kinds == ("video",) for clip in clips),
        num_reasonings=sum(clip.row.reasoning is not None for clip in clips),
        labels=labels,
        problems=tuple(problems),
        notes=tuple(notes),
    )


Reject = Callable[[CsvRow, str, str], None]


def _check_extras(csv_file: Path, rows: Sequence[CsvRow]) -> None:
    taken = next((name for row in rows for name in row.extras if name in _RESERVED), None)
    if taken is not None:
        raise DataError(f"{csv_file}:1: column {taken!r} would hide the manifest's own; rename or remove it")


def _found(rows: Sequence[CsvRow], media_root: Path, suffix: str, reject: Reject) -> list[Clip]:
    clips = []
    root = media_root.resolve()
    for row in rows:
        name = row.file if PurePosixPath(row.file).suffix or not suffix else row.file + suffix
        try:
            real = resolve_media(name, media_root, f"row {row.line}")
        except LineError as error:
            reject(row, error.group, error.reason)
            continue
        problem = _reasoning_problem(row)
        if problem is None:
            clips.append(Clip(row=row, real=real, path=real.relative_to(root).as_posix()))
        else:
            reject(row, "reasoning", problem)
    return clips


def _reasoning_problem(row: CsvRow) -> str | None:
    """Why a target made of this row would break the format."""
    target = _target(row)
    if tags := media_tags(target):
        return f"the reasoning or label holds the media tag <{tags[0]}>; remove it"
    problem = scan(target).problem
    return None if problem is None else f"the reasoning or label breaks the answer format ({problem}); remove its tags"


def _labelled(
    clips: list[Clip], labels: Sequence[str] | None, reject: Reject, notes: list[str]
) -> tuple[list[Clip], tuple[str, ...]]:
    """Clips with their label in one spelling: that of the given set, or the most frequent one."""
    if labels is not None:
        matcher = label_matcher(tuple(labels))
        kept = []
        for clip in clips:
            label = matcher.match(clip.row.label)
            if label is None:
                known = ", ".join(labels)[:200]
                reject(clip.row, "label", f"label {clip.row.label[:80]!r} is none of {known}; correct it or --labels")
            else:
                kept.append(replace(clip, row=replace(clip.row, label=label)))
        return kept, tuple(labels)
    spellings: dict[str, Counter[str]] = {}
    for clip in clips:
        spellings.setdefault(clip.row.label.casefold(), Counter())[clip.row.label] += 1
    usual = {folded: counts.most_common(1)[0][0] for folded, counts in spellings.items()}
    for folded, counts in spellings.items():
        notes += [
            f"{number} rows spell the label {usual[folded]!r} as {other!r}; read as the same"
            for other, number in counts.items()
            if other != usual[folded]
        ]
    return [replace(clip, row=replace(clip.row, label=usual[clip.row.label.casefold()])) for clip in clips], ()


def _once(clips: Sequence[Clip], reject: Reject) -> list[Clip]:
    """Each clip and span once; a second row of it is left out, whatever its label says."""
    first: dict[tuple[Path, float | None, float | None], Clip] = {}
    for clip in clips:
        earlier = first.setdefault((clip.real, clip.row.start_s, clip.row.end_s), clip)
        if earlier is clip:
            continue
        conflict = "" if earlier.row.label == clip.row.label else f", with the other label {earlier.row.label!r}"
        reject(clip.row, "repeated clip", f"{clip.path} stands on line {earlier.row.line} already{conflict}")
    return list(first.values())


def _decoded(
    clips: Sequence[Clip], guard: Guard, reject: Reject, on_progress: Callable[[int, int], None]
) -> list[Clip]:
    media = [
        (clip.real, MediaRef(kind="video", path=clip.path, start_s=clip.row.start_s, end_s=clip.row.end_s))
        for clip in clips
    ]
    usable = []
    for clip, outcome in zip(clips, guard.run(examine_tracks, media, on_progress), strict=True):
        if outcome.error is None:
            usable.append(replace(clip, tracks=outcome.value))
        else:
            reject(clip.row, fault(outcome.error), outcome.error)
    return usable


def _assigned(clips: Sequence[Clip], settings: CsvSettings, notes: list[str]) -> list[str]:
    """The split of each clip: the CSV's own where it names one, and drawn for the rest."""
    given = [clip.row.split for clip in clips]
    missing = [name for name in SPLITS[1:] if name not in given and settings.shares.get(name, 0.0) > 0]
    groups = _groups(clips, settings.by_speaker)
    if any(given):
        # Clips without a split train; what the CSV leaves out is drawn from the training clips.
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
    """Clips that must stay together: those of one speaker, and those with the same content."""
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


def _check_labels(csv_file: Path, labels: tuple[str, ...]) -> None:
    try:
        label_matcher(labels)
    except ConfigError as error:
        raise DataError(f"{csv_file}: {error}; or give the set by --labels") from error


def _rows(clips: Sequence[Clip], splits: Sequence[str], prefix: str, question: str) -> list[dict[str, Any]]:
    """One manifest line per clip, without an assistant turn."""
    names = [clip.row.id or PurePosixPath(clip.path).with_suffix("").as_posix() for clip in clips]
    times = Counter(names)
    rows = []
    for clip, split, name in zip(clips, splits, names, strict=True):
        tags = "".join(f"<{kind}>" for kind in clip.kinds)
        row: dict[str, Any] = {
            "id": name if times[name] == 1 else f"{name}-line{clip.row.line}",
            "messages": [{"role": "user", "content": tags + question}],
            **{_COLUMNS[kind]: [prefix + clip.path] for kind in clip.kinds},
            "solution": clip.row.label,
            "speaker": clip.row.speaker,
            "split": split,
            "start": clip.row.start_s,
            "end": clip.row.end_s,
            **clip.row.extras,
        }
        rows.append({key: value for key, value in row.items() if value is not None})
    return rows


def _manifests(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    return {name: [row for row in rows if row["split"] == name] for name in SPLITS}


def _cold_start(rows: Sequence[dict[str, Any]], clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """Training lines with a target: those with a reasoning, or, if there is none at all, every one with a plain one."""
    training = [(row, clip.row) for row, clip in zip(rows, clips, strict=True) if row["split"] == "train"]
    reasoned = [(row, source) for row, source in training if source.reasoning is not None]
    return [
        {**row, "messages": [*row["messages"], {"role": "assistant", "content": _target(source)}]}
        for row, source in reasoned or training
    ]


def _target(row: CsvRow) -> str:
    return f"<think>{row.reasoning or PLAIN_THOUGHT}</think><answer>{row.label}</answer>"
