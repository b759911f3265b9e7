"""Prepares a published set: reads its originals, finds the media, compares counts, and writes manifests and configs."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_mmrl.data.formats.csv_clips import target_of, text_problem
from lightning_mmrl.data.formats.label_csv import CsvRow
from lightning_mmrl.data.formats.publish import Publication
from lightning_mmrl.data.formats.splits import assign_splits
from lightning_mmrl.data.label_findings import label_findings
from lightning_mmrl.data.media.examine import Guard, fault, held_kinds
from lightning_mmrl.data.prepare.card import SetCard
from lightning_mmrl.data.prepare.configs import config_texts
from lightning_mmrl.data.prepare.counts import Compared, compared
from lightning_mmrl.data.prepare.rows import HARMLESS, Originals, Parts, Request, Row
from lightning_mmrl.data.schema import COLUMN_OF, LineError, Problem, resolve_media
from lightning_mmrl.errors import DataError
from lightning_mmrl.prompts.template import DEFAULT_QUESTION, question_about
from lightning_mmrl.types.records import MediaKind, MediaRef

BOTH, AUDIO_ONLY, VIDEO_ONLY = "", "audio_only", "video_only"
FOLDERS = ("configs", AUDIO_ONLY, VIDEO_ONLY, *(f"fold_{number}" for number in range(6)))
"""Folders that a prepared set may have; an earlier one's are removed with it."""

Media = Mapping[MediaKind, str]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareSettings:
    """Settings of a preparation.

    Attributes:
        subsets: Names of subsets; none for the set's first one.
        options: Values of the set's own options.
        clips: Folder of the clips, within the originals' folder; None for all of it.
        copies: `AUDIO_ONLY`, `VIDEO_ONLY`, both or none: manifests whose rows use one medium of the same files.
        validation: Share of the training clips that becomes the validation split where the protocol has none.
        seed: Seed of drawn splits.
        question: The question of every sample.
        allow_missing: True to write the set even if its published protocol cannot be met.
        overwrite: True to replace an earlier preparation.
    """

    subsets: Sequence[str] = ()
    options: Mapping[str, str | None] = field(default_factory=dict)
    clips: Path | None = None
    copies: Sequence[str] = ()
    validation: float = 0.0
    seed: int = 0
    question: str = DEFAULT_QUESTION
    allow_missing: bool = False
    overwrite: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """The result: what was written, what was left out, and how the counts compare with the published ones.

    Attributes:
        directory: The folder of the set.
        written: False if the published protocol cannot be met and the user did not accept that.
        met: True if the published protocol is met.
        sizes: Samples by manifest, such as "fold_1/train".
        problems: Faults of lists and files, each named.
        counts: Counts beside the published ones.
        notes: What a person should know.
    """

    directory: Path
    written: bool
    met: bool
    sizes: Mapping[str, int]
    problems: Sequence[Problem]
    counts: Sequence[Compared]
    notes: Sequence[str]


def prepare_set(
    card: SetCard, root: Path, directory: Path, *, settings: PrepareSettings, guard: Guard, on_progress: Progress
) -> Preparation:
    """Writes the manifests of a set into `directory`; media stay in `root`, and all files appear at the end.

    Nothing is written if a published count or list cannot be met, unless `settings.allow_missing`.

    Raises:
        DataError: The originals cannot be read, hold no usable clip, or the folder already holds other files.
    """
    question_about((), settings.question)
    request = _request(card, root, settings)
    publication = Publication(
        directory,
        None,
        copy=False,
        overwrite=settings.overwrite,
        made_by=f"mmrl data prepare {card.name}",
        folders=FOLDERS,
    )
    originals = card.reader(request)
    problems = list(originals.problems)
    parts = _without_repetitions(originals.parts, card.by_speaker, problems)
    if not any(row for splits in parts.values() for rows in splits.values() for row in rows):
        raise DataError(_no_clips(request, originals))
    files = _Files(request, guard, on_progress, problems)
    manifests, used, notes = _manifests(parts, files, settings, problems, originals)
    counts = compared(card, request.subsets, used, originals.counted)
    met = not any(problem.group not in HARMLESS for problem in problems) and not any(
        each.differs and each.needed for each in counts
    )
    labels = list(originals.labels or ())
    sizes = {name: len(rows) for name, rows in manifests.items() if rows}
    if met or settings.allow_missing:
        publication.publish(
            manifests=manifests,
            labels=labels,
            problems=problems,
            clips={},
            record=_record(card, request, counts, notes, met=met),
            texts=config_texts(card, request, directory, sizes, originals.labels),
        )
    return Preparation(
        directory=directory,
        written=met or settings.allow_missing,
        met=met,
        sizes=sizes,
        problems=problems,
        counts=counts,
        notes=[*originals.notes, *notes],
    )


def _request(card: SetCard, root: Path, settings: PrepareSettings) -> Request:
    for folder in (root, settings.clips or root):
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; name the folder of the originals: {card.layout}")
    clips = (settings.clips or root).resolve()
    if not clips.is_relative_to(root.resolve()):
        raise DataError(f"--clips {settings.clips} is not within {root}; name a folder in it")
    names = list(settings.subsets) or [next(iter(card.subsets))]
    subsets = {name: card.subsets[name].labels for name in names}
    return Request(root=root.resolve(), clips=clips, subsets=subsets, options=settings.options, seed=settings.seed)


def _no_clips(request: Request, originals: Originals) -> str:
    first = f"; the first of {len(originals.problems)} problems: {originals.problems[0]}" if originals.problems else ""
    return f"{request.clips} holds no clip of {' or '.join(request.subsets)}; see --help for the files it needs{first}"


def _without_repetitions(parts: Parts, by_speaker: bool, problems: list[Problem]) -> Parts:
    """Drops a clip that stands twice in a split or in two splits of one fold; names speakers in two splits."""
    kept: Parts = {}
    for folder, splits in parts.items():
        first: dict[str, tuple[str, Row]] = {}
        home: dict[str, str] = {}
        for split, rows in splits.items():
            chosen = kept.setdefault(folder, {}).setdefault(split, [])
            for row in rows:
                earlier = first.setdefault(row.name, (split, row))
                if earlier[1] is not row:
                    where = f"{earlier[1].place[0]}:{earlier[1].place[1]}"
                    group = "repeated clip" if earlier[0] == split else "in two splits"
                    problems.append(row.problem(group, f"{row.name} stands in {where} already; keep one of the lines"))
                elif by_speaker and row.speaker and home.setdefault(row.speaker, split) != split:
                    reason = f"{row.speaker} is in {home[row.speaker]} and in {split}; keep a speaker in one split"
                    problems.append(row.problem("speaker in two splits", reason))
                else:
                    chosen.append(row)
    return kept


class _Files:
    """The kinds of media that files hold, each opened once; files that cannot be opened become problems."""

    def __init__(self, request: Request, guard: Guard, on_progress: Progress, problems: list[Problem]) -> None:
        self._root, self._guard, self._on_progress, self._problems = request.root, guard, on_progress, problems
        self._kinds: dict[str, Sequence[MediaKind]] = {}

    def look(self, paths: Iterable[str | None]) -> None:
        """Opens the files that are not known yet."""
        media: list[tuple[Path, MediaRef]] = []
        for path in dict.fromkeys(path for path in paths if path is not None and path not in self._kinds):
            self._kinds[path] = ()
            try:
                media.append((resolve_media(path, self._root, path), MediaRef(kind="video", path=path)))
            except LineError as error:
                self._problems.append(Problem(file=path, line=0, group=error.group, reason=error.reason))
        for (_, ref), outcome in zip(
            media, self._guard.run(held_kinds, media, self._root, self._on_progress), strict=True
        ):
            if outcome.error is None:
                self._kinds[ref.path] = outcome.value
            else:
                problem = Problem(file=ref.path, line=0, group=fault(outcome.error), reason=outcome.error)
                self._problems.append(problem)

    def opens(self, path: str) -> bool:
        return bool(self._kinds[path])

    def holds(self, path: str | None, kind: MediaKind) -> bool:
        return path is not None and kind in self._kinds.get(path, ())

    def media(self, row: Row, copy: str) -> Media | None:
        """The files of a row's media for a copy; None if it has none."""
        if copy == AUDIO_ONLY:
            path = next((path for path in (row.clip, row.sound) if self.holds(path, "audio")), None)
            return None if path is None else {"audio": path}
        path = next((path for path in (row.clip, row.picture) if self.holds(path, "video")), None)
        if copy == VIDEO_ONLY or path is None:
            return None if path is None else {"video": path}
        if row.clip is None:
            return None
        heard = next((path for path in (row.clip, row.sound) if self.holds(path, "audio")), None)
        return {"video": path} if heard is None else {"video": path, "audio": heard}


Manifests = dict[str, list[dict[str, Any]]]


def _manifests(
    parts: Parts, files: _Files, settings: PrepareSettings, problems: list[Problem], originals: Originals
) -> tuple[Manifests, list[Row], list[str]]:
    """The rows of all manifests, the rows that can be used, and notes.

    Raises:
        DataError: No clip has both picture and sound files, and no copy of one medium was asked for.
    """
    every = [row for splits in parts.values() for rows in splits.values() for row in rows]
    copies = [BOTH, *settings.copies]
    notes: list[str] = []
    if settings.copies and not any(row.clip for row in every):
        copies = list(settings.copies)
        notes.append(f"no file has picture and sound: only {' and '.join(copies)} is written")
    files.look(row.clip for row in every)
    files.look(row.sound for row in every if not files.holds(row.clip, "audio") and row.sound)
    files.look(row.picture for row in every if not files.holds(row.clip, "video") and VIDEO_ONLY in copies)
    used = [row for row in _distinct(every) if files.media(row, copies[0]) is not None]
    _name_missing([row for row in _distinct(every) if files.media(row, copies[0]) is None], copies[0], files, problems)
    if copies[0] == BOTH:
        mute = [row.name for row in used if "audio" not in (files.media(row, BOTH) or {})]
        notes += [f"clips without sound: {len(mute)} ({_some(mute)}); their lines have no <audio> tag"] if mute else []
    left_out = [row for row in used if row.label is None]
    notes += [f"clips that an option leaves out: {len(left_out)}"] if left_out else []
    manifests: Manifests = {}
    for folder, splits in parts.items():
        drawn = _with_validation(splits, settings)
        for copy in copies:
            prefix = "".join(f"{name}/" for name in (folder, copy) if name)
            made = {split: _lines(rows, split, copy, files, settings) for split, rows in drawn.items()}
            cold = _cold_start(drawn.get("train", []), made.get("train", []), problems if copy == copies[0] else [])
            manifests |= {f"{prefix}{split}": rows for split, rows in (made | {"cold_start": cold}).items()}
            short = sum(1 for rows in drawn.values() for row in rows if row.label is not None) - sum(
                map(len, made.values())
            )
            if copy != copies[0] and short > 0:
                notes.append(f"{prefix[:-1]}: {short} clips have no such medium and are left out")
    if originals.labels is not None:
        notes += label_findings(Counter(str(row.label) for row in used if row.label is not None))
    return manifests, used, notes


def _distinct(rows: Iterable[Row]) -> Iterator[Row]:
    seen: set[str] = set()
    for row in rows:
        if row.name not in seen:
            seen.add(row.name)
            yield row


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _name_missing(rows: Sequence[Row], copy: str, files: _Files, problems: list[Problem]) -> None:
    """Names rows without a file; a file that does not open has been named already."""
    what = {BOTH: "file with picture and sound", AUDIO_ONLY: "sound", VIDEO_ONLY: "picture"}[copy]
    for row in rows:
        own = row.clip or row.sound or row.picture
        if own is None or (row.clip is None and copy == BOTH):
            reason = f"clip {row.name} has no {what}; complete the download, or accept the loss by --allow-missing"
            problems.append(row.problem("missing file", reason))
        elif files.opens(own):
            reason = f"{own} holds no {'picture' if copy != AUDIO_ONLY else 'sound'}; download it again"
            problems.append(row.problem("no track", reason))


def _with_validation(splits: Mapping[str, list[Row]], settings: PrepareSettings) -> dict[str, list[Row]]:
    """Draws whole speakers of the training split for validation, if there is no such split and a share is set."""
    rows = splits.get("train", [])
    if not settings.validation or not rows or "validation" in splits:
        return dict(splits)
    chosen = assign_splits(
        [row.speaker or row.name for row in rows],
        [str(row.label) for row in rows],
        shares={"train": 1 - settings.validation, "validation": settings.validation},
        seed=settings.seed,
    )
    drawn = {
        name: [row for row, each in zip(rows, chosen, strict=True) if each == name] for name in ("train", "validation")
    }
    return {**drawn, **{split: others for split, others in splits.items() if split != "train"}}


def _lines(
    rows: Sequence[Row], split: str, copy: str, files: _Files, settings: PrepareSettings
) -> list[dict[str, Any]]:
    lines = []
    for row in rows:
        media = files.media(row, copy)
        if media is None or row.label is None:
            continue
        content = question_about(tuple(media), row.question or settings.question)
        line: dict[str, Any] = {
            "id": row.name,
            "messages": [{"role": "user", "content": content}],
            **{COLUMN_OF[kind]: [path] for kind, path in media.items()},
            "solution": row.label,
            "speaker": row.speaker,
            "split": split,
            **row.extras,
        }
        lines.append({key: value for key, value in line.items() if value is not None})
    return lines


def _cold_start(rows: Sequence[Row], lines: Sequence[dict[str, Any]], problems: list[Problem]) -> list[dict[str, Any]]:
    """Training lines with a target: those with a reasoning, or all with a plain thought if there is none."""
    of_line = {row.name: row for row in rows}
    made, plain = [], not any(row.reasoning for row in rows)
    for line in lines:
        row = of_line[line["id"]]
        if not plain and row.reasoning is None:
            continue
        source = CsvRow(line=row.place[1], file=row.name, label=str(row.label), reasoning=row.reasoning)
        problem = text_problem(source)
        if problem is None:
            target = {"role": "assistant", "content": target_of(source)}
            made.append({**line, "messages": [*line["messages"], target]})
        else:
            problems.append(row.problem(*problem))
    return made


def _record(
    card: SetCard, request: Request, counts: Sequence[Compared], notes: Sequence[str], *, met: bool
) -> dict[str, Any]:
    return {
        "source": card.name,
        "citation": card.citation,
        "license": card.license,
        "originals": str(request.root),
        "subsets": list(request.subsets),
        "options": dict(request.options),
        "seed": request.seed,
        "published_protocol_met": met,
        "counts": {each.name: {"found": each.found, "published": each.published} for each in counts},
        "warnings": list(notes),
    }
