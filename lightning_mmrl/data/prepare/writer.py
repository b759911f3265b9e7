"""Prepares a published set: reads its originals, finds the media, compares counts, and writes manifests and configs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_mmrl.data.formats.publish import Publication
from lightning_mmrl.data.label_findings import label_findings
from lightning_mmrl.data.media.examine import Guard
from lightning_mmrl.data.prepare.card import SetCard
from lightning_mmrl.data.prepare.configs import config_texts
from lightning_mmrl.data.prepare.counts import Compared, compared
from lightning_mmrl.data.prepare.kinds import AUDIO_ONLY, VIDEO_ONLY, MediaKinds, Progress
from lightning_mmrl.data.prepare.manifests import manifest_rows, with_validation
from lightning_mmrl.data.prepare.rows import HARMLESS, Originals, Parts, PrepareRequest, Row
from lightning_mmrl.data.schema import Problem
from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.prompts.template import question_about
from lightning_mmrl.suggestions import did_you_mean

FOLDERS = ("configs", AUDIO_ONLY, VIDEO_ONLY, *(f"fold_{number}" for number in range(6)))
"""Folders that a prepared set may have; an earlier one's are removed with it."""


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
        question: The question of every sample; None for the set's own.
        allow_missing: True to write the set even if its published protocol cannot be met.
        overwrite: True to replace an earlier preparation.

    Raises:
        ConfigError: `validation` is no share.
    """

    subsets: Sequence[str] = ()
    options: Mapping[str, str | None] = field(default_factory=dict)
    clips: Path | None = None
    copies: Sequence[str] = ()
    validation: float = 0.0
    seed: int = 0
    question: str | None = None
    allow_missing: bool = False
    overwrite: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation is {self.validation}; it must be at least 0 and less than 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """The result: what was written, what was left out, and how the counts compare with the published ones.

    Attributes:
        directory: The folder of the set.
        media_root: The folder that the paths of media are relative to.
        labels: The label set; None for an open vocabulary.
        written: False if the published protocol cannot be met and the user did not accept that.
        met: True if the published protocol is met.
        sizes: Samples by manifest, such as "fold_1/train".
        problems: Faults of lists and files, each named.
        counts: Counts beside the published ones.
        notes: What a person should know.
    """

    directory: Path
    media_root: Path
    labels: Sequence[str] | None
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
    question_about((), settings.question or "")
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
    parts = without_repetitions(originals.parts, card.by_speaker, problems)
    if not any(row for splits in parts.values() for rows in splits.values() for row in rows):
        raise DataError(_no_clips(request, originals))
    files = MediaKinds(request, guard, on_progress, problems)
    copies = files.open_rows(
        [row for splits in parts.values() for rows in splits.values() for row in rows], settings.copies
    )
    question = settings.question or originals.question
    manifests = {}
    for folder, splits in parts.items():
        drawn = with_validation(splits, settings.validation, settings.seed)
        for copy in copies:
            prefix = "".join(f"{name}/" for name in (folder, copy) if name)
            manifests |= {f"{prefix}{name}": rows for name, rows in manifest_rows(drawn, copy, files, question).items()}
    notes = [*originals.notes, *files.notes]
    if originals.labels is not None:
        of_clips = {row.name: row.label for row in files.used if row.label is not None}
        notes += label_findings(Counter(of_clips.values()))
    counts = compared(card, request.subsets, files.used, originals.counted)
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
            record={**asked_for(card, request.root, settings), **_found(card, counts, notes, met=met)},
            texts=config_texts(card, request, directory, sizes, originals.labels),
        )
    return Preparation(
        directory=directory,
        media_root=request.root,
        labels=originals.labels,
        written=met or settings.allow_missing,
        met=met,
        sizes=sizes,
        problems=problems,
        counts=counts,
        notes=notes,
    )


def _request(card: SetCard, root: Path, settings: PrepareSettings) -> PrepareRequest:
    for folder in (root, settings.clips or root):
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; name the folder of the originals: {card.layout}")
    clips = (settings.clips or root).resolve()
    if not clips.is_relative_to(root.resolve()):
        raise DataError(f"--clips {settings.clips} is not within {root}; name a folder in it")
    subsets = {name: card.subsets[name].labels for name in _subsets(card, settings)}
    return PrepareRequest(
        root=root.resolve(), clips=clips, subsets=subsets, options=settings.options, seed=settings.seed
    )


def _no_clips(request: PrepareRequest, originals: Originals) -> str:
    first = f"; the first of {len(originals.problems)} problems: {originals.problems[0]}" if originals.problems else ""
    return f"{request.clips} holds no clip of {' or '.join(request.subsets)}; see --help for the files it needs{first}"


def without_repetitions(parts: Parts, by_speaker: bool, problems: list[Problem]) -> Parts:
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
                    group = "repeated clip" if earlier[0] == split else "in two splits"
                    problems.append(
                        row.problem(group, f"{row.name} stands in {earlier[1].where} already; keep one of the lines")
                    )
                elif by_speaker and row.speaker and home.setdefault(row.speaker, split) != split:
                    reason = f"{row.speaker} is in {home[row.speaker]} and in {split}; keep a speaker in one split"
                    problems.append(row.problem("speaker in two splits", reason))
                else:
                    chosen.append(row)
    return kept


def asked_for(card: SetCard, root: Path, settings: PrepareSettings) -> dict[str, Any]:
    """Sources and settings of a preparation, for its record."""
    return {
        "source": card.name,
        "originals": str(root),
        "subsets": list(_subsets(card, settings)),
        "options": dict(settings.options),
        "clips": None if settings.clips is None else str(settings.clips.resolve()),
        "copies": list(settings.copies),
        "validation": settings.validation,
        "seed": settings.seed,
        "question": settings.question,
    }


def _found(card: SetCard, counts: Sequence[Compared], notes: Sequence[str], *, met: bool) -> dict[str, Any]:
    return {
        "citation": card.citation,
        "license": card.license,
        "published_protocol_met": met,
        "counts": {each.name: {"found": each.found, "published": each.published} for each in counts},
        "warnings": list(notes),
    }


def _subsets(card: SetCard, settings: PrepareSettings) -> Sequence[str]:
    for name in settings.subsets:
        if name not in card.subsets:
            raise ConfigError(f"set {card.name} has no subset {name!r}{did_you_mean(name, list(card.subsets))}")
    return settings.subsets or [next(iter(card.subsets))]
