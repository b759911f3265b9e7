"""Turns the rows of a CSV into clips: files are found, labels checked, repeated clips dropped, media decoded."""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_mmrl.data.formats.clip_files import ClipFolder
from lightning_mmrl.data.formats.label_csv import CsvRow
from lightning_mmrl.data.formats.turns import quoted
from lightning_mmrl.data.media.examine import Guard, MediaFacts, examine_tracks, fault
from lightning_mmrl.data.schema import LineError, label_matcher
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.scanner import scan
from lightning_mmrl.prompts.template import control_token, control_token_refusal, media_tags
from lightning_mmrl.types.records import MediaKind, MediaRef

PLAIN_THOUGHT = "The clip shows it."
"""The thought for a clip without reasoning: the answer format requires a thought, and this one claims nothing."""

Reject = Callable[[CsvRow, str, str], None]
"""Called with a row that is left out, the sort of fault, and the reason with its fix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A row whose clip was found.

    Attributes:
        row: The row of the CSV.
        real: The file, with all links resolved.
        path: The file's path below the media root.
        tracks: The file's tracks, once it is decoded.
    """

    row: CsvRow
    real: Path
    path: str
    tracks: tuple[MediaFacts, ...] = ()

    @property
    def kinds(self) -> tuple[MediaKind, ...]:
        """The kinds of the file's tracks."""
        return tuple(track.kind for track in self.tracks)


def found(rows: Sequence[CsvRow], folder: ClipFolder, reject: Reject) -> list[Clip]:
    """The clips of the rows whose file exists and whose texts can be training targets."""
    clips = []
    for row in rows:
        try:
            real = folder.find(row.file)
        except LineError as error:
            reject(row, error.group, error.reason)
            continue
        problem = text_problem(row)
        if problem is None:
            clips.append(Clip(row=row, real=real, path=real.relative_to(folder.real).as_posix()))
        else:
            reject(row, *problem)
    return clips


def text_problem(row: CsvRow) -> tuple[str, str] | None:
    """The sort of fault and the reason, if the row's training target would break the answer format or end early."""
    target = target_of(row)
    if tags := media_tags(target):
        return "reasoning", f"the reasoning or label holds the media tag <{tags[0]}>; remove it"
    if token := control_token(target):
        return "control token", f"the reasoning or label holds {control_token_refusal(token)}"
    if problem := label_problem(row.label):
        return "label", problem
    if problem := scan(target).problem:
        return "reasoning", f"the reasoning or label breaks the answer format ({problem}); remove its tags"
    return None


def label_problem(label: str) -> str | None:
    """Returns the reason why no answer could be read as this label; None if an answer can be."""
    try:
        matcher = label_matcher((label,))
    except ConfigError as error:
        return str(error)
    if matcher.match(label) is None:
        return f"label {quoted(label)} is not read as an answer; reword it"
    return None


def labelled(
    clips: list[Clip], labels: Sequence[str] | None, reject: Reject, notes: list[str]
) -> tuple[list[Clip], tuple[str, ...]]:
    """Gives each label one spelling: the one in the given set, or else the most frequent one."""
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
    # The labels without differences of case, character width, accent encoding (NFKC) and spaces.
    folded = [" ".join(unicodedata.normalize("NFKC", clip.row.label).casefold().split()) for clip in clips]
    spellings: dict[str, Counter[str]] = {}
    for clip, word in zip(clips, folded, strict=True):
        spellings.setdefault(word, Counter())[clip.row.label] += 1
    usual = {word: counts.most_common(1)[0][0] for word, counts in spellings.items()}
    for word, counts in spellings.items():
        notes += [
            f"{number} rows spell the label {usual[word]!r} as {other!r}; read as the same"
            for other, number in counts.items()
            if other != usual[word]
        ]
    return [
        replace(clip, row=replace(clip.row, label=usual[word])) for clip, word in zip(clips, folded, strict=True)
    ], ()


def once(clips: Sequence[Clip], reject: Reject) -> list[Clip]:
    """Keeps the first row of each clip and span; further rows are left out, even if their labels differ."""
    first: dict[tuple[Path, float | None, float | None], Clip] = {}
    for clip in clips:
        earlier = first.setdefault((clip.real, clip.row.start_s, clip.row.end_s), clip)
        if earlier is clip:
            continue
        conflict = "" if earlier.row.label == clip.row.label else f", with the other label {earlier.row.label!r}"
        reject(clip.row, "repeated clip", f"{clip.path} stands on line {earlier.row.line} already{conflict}")
    return list(first.values())


def decoded(
    clips: Sequence[Clip], root: Path, guard: Guard, reject: Reject, on_progress: Callable[[int, int], None]
) -> list[Clip]:
    """The clips that can be decoded, with their tracks."""
    media = [
        (clip.real, MediaRef(kind="video", path=clip.path, start_s=clip.row.start_s, end_s=clip.row.end_s))
        for clip in clips
    ]
    usable = []
    for clip, outcome in zip(clips, guard.run(examine_tracks, media, root, on_progress), strict=True):
        if outcome.error is None:
            usable.append(replace(clip, tracks=outcome.value))
        else:
            reject(clip.row, fault(outcome.error), outcome.error)
    return usable


def target_of(row: CsvRow) -> str:
    """The training target that a supervised stage learns from a row."""
    return f"<think>{row.reasoning or PLAIN_THOUGHT}</think><answer>{row.label}</answer>"
