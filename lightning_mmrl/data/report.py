"""Summarizes an inventory: the content of each split, problems, and samples that two splits wrongly share."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lightning_mmrl.data.inspection import Inventory, MediaKey
from lightning_mmrl.data.label_findings import label_findings
from lightning_mmrl.data.media.examine import MediaFacts
from lightning_mmrl.data.schema import Entry, Problem
from lightning_mmrl.types.records import Sample

TRAINING_SPLITS = frozenset({"base", "cold_start", "pretrain", "rl", "sft", "train", "training"})
"""Names of splits used for training; these may share clips with each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Durations:
    """Statistics of the durations of some media, in seconds."""

    minimum: float
    median: float
    maximum: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFigures:
    """Figures of all media of one kind in a split; mappings count files by value, the most frequent first."""

    kind: str
    num_files: int
    durations: Durations | None
    frame_rates: Mapping[str, int]
    sizes: Mapping[str, int]
    sample_rates_hz: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitFigures:
    """Figures of the usable samples of a split."""

    name: str
    num_samples: int
    num_bad: int
    labels: Mapping[str, int]
    num_unlabeled: int
    num_speakers: int
    num_without_speaker: int
    media: tuple[MediaFigures, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A finding about all splits, with a count and an example; a severe one makes evaluation results unreliable."""

    what: str
    num: int
    example: str
    severe: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The report of `mmrl data validate` and `mmrl data stats`.

    `num_samples` counts each usable sample once, even if several manifests contain it. `warnings` are sentences about
    labels, followed by sentences from decoders.
    """

    splits: tuple[SplitFigures, ...]
    problems: tuple[Problem, ...]
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]
    decoded: bool
    num_samples: int

    @property
    def sound(self) -> bool:
        """True if every line is usable and no split leaks into another."""
        return not self.problems and not any(finding.severe for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """The report as plain values, with all problems."""
        counts = {group: len(problems) for group, problems in by_group(self.problems).items()}
        return {"sound": self.sound, "problems_by_group": counts, **asdict(self)}


def by_group(problems: Iterable[Problem]) -> dict[str, list[Problem]]:
    """Groups problems by the sort of fault, the most frequent first."""
    groups: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        groups[problem.group].append(problem)
    return dict(sorted(groups.items(), key=lambda item: -len(item[1])))


def summarize(inventory: Inventory) -> Report:
    """Computes the report of an inventory."""
    rows = []
    for path in inventory.manifests:
        groups: dict[str, list[Entry]] = defaultdict(list)
        for entry in inventory.entries:
            if entry.file == str(path):
                # A line may name another split than its manifest.
                split = entry.sample.split
                groups[path.stem if split in (None, path.stem) else f"{path.stem} ({split})"].append(entry)
        num_bad = sum(problem.file == str(path) for problem in inventory.problems)
        for name, entries in (groups or {path.stem: []}).items():
            rows.append(_split(name, entries, num_bad, inventory))
            num_bad = 0  # the split of a bad line is unknown, so bad lines count for the first split only
    # Two lines are the same sample if their ids and media are equal; without media, if their ids and questions are.
    distinct: dict[Hashable, Sample] = {}
    for entry in inventory.entries:
        media = inventory.media[entry.file, entry.line]
        distinct.setdefault((entry.sample.id, media or _question(entry.sample)), entry.sample)
    decoder_warnings = dict.fromkeys(warning for facts in inventory.facts.values() for warning in facts.warnings)
    return Report(
        splits=tuple(rows),
        problems=inventory.problems,
        findings=tuple(_findings(inventory)),
        warnings=(*_label_warnings(rows, distinct.values()), *decoder_warnings),
        decoded=bool(inventory.facts),
        num_samples=len(distinct),
    )


def _label_warnings(splits: Sequence[SplitFigures], samples: Iterable[Sample]) -> Iterable[str]:
    """Yields warnings about suspicious labels, and about splits with a single class if there are several classes."""
    labels = Counter(sample.solution for sample in samples if sample.solution is not None)
    yield from label_findings(labels)
    if len(labels) > 1:
        for split in splits:
            if len(split.labels) == 1:
                yield from (f"{split.name}: {finding}" for finding in label_findings(split.labels))


def _split(name: str, entries: list[Entry], num_bad: int, inventory: Inventory) -> SplitFigures:
    samples = [entry.sample for entry in entries]
    labels = Counter(sample.solution for sample in samples if sample.solution is not None)
    keys = dict.fromkeys(key for entry in entries for key in inventory.media[entry.file, entry.line])
    kinds = [kind for kind in ("video", "audio", "image") if any(key[0] == kind for key in keys)]
    return SplitFigures(
        name=name,
        num_samples=len(samples),
        num_bad=num_bad,
        labels=dict(sorted(labels.items())),
        num_unlabeled=sum(sample.solution is None for sample in samples),
        num_speakers=len({sample.speaker for sample in samples} - {None}),
        num_without_speaker=sum(sample.speaker is None for sample in samples),
        media=tuple(_media(kind, [key for key in keys if key[0] == kind], inventory.facts) for kind in kinds),
    )


def _media(kind: str, keys: list[MediaKey], facts: Mapping[MediaKey, MediaFacts]) -> MediaFigures:
    found = [facts[key] for key in keys if key in facts]
    seconds = [each.duration_s for each in found if each.duration_s is not None]
    if not facts:  # without decoding, only the length of a span is known
        seconds = [end - (start or 0.0) for _, _, start, end in keys if end is not None]
    durations = None
    if seconds:
        durations = Durations(minimum=min(seconds), median=median(seconds), maximum=max(seconds), total=sum(seconds))
    return MediaFigures(
        kind=kind,
        num_files=len(keys),
        durations=durations,
        frame_rates=_counted(f"{each.frame_rate:.4g}" for each in found if each.frame_rate),
        sizes=_counted(f"{each.size[0]}x{each.size[1]}" for each in found if each.size),
        sample_rates_hz=_counted(str(each.sample_rate_hz) for each in found if each.sample_rate_hz),
    )


def _counted(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _findings(inventory: Inventory) -> Iterable[Finding]:
    ids: dict[Hashable, list[Entry]] = defaultdict(list)
    media: dict[Hashable, list[Entry]] = defaultdict(list)
    speakers: dict[Hashable, list[Entry]] = defaultdict(list)
    for entry in inventory.entries:
        ids[entry.sample.id].append(entry)
        speakers[entry.sample.speaker].append(entry)
        for key in dict.fromkeys(_identity(key, inventory) for key in inventory.media[entry.file, entry.line]):
            media[key].append(entry)
    speakers.pop(None, None)
    yield from _shared(media, "the same clip in several splits", severe=True)
    yield from _shared(ids, "the same id in several splits", severe=True)
    yield from _shared(speakers, "the same speaker in several splits", severe=False)
    yield from _repeated(inventory)
    yield from _untrained(inventory)


def _identity(key: MediaKey, inventory: Inventory) -> Hashable:
    """Content and span, which identify a medium; before decoding, the file is used in place of its content."""
    _, path, start, end = key
    return (inventory.facts[key].content if key in inventory.facts else path, start, end)


def _shared(groups: Mapping[Hashable, list[Entry]], what: str, severe: bool) -> Iterable[Finding]:
    """Yields a finding if groups have lines in several splits; lines in training splits only are no fault."""
    shared = []
    for entries in groups.values():
        splits = {_split_name(entry) for entry in entries}
        if len(splits) > 1 and splits - TRAINING_SPLITS:
            first = entries[0]
            other = next(each for each in entries if _split_name(each) != _split_name(first))
            shared.append(f"{_place(first)} and {_place(other)}")
    if shared:
        yield Finding(what=what, num=len(shared), example=shared[0], severe=severe)


def _repeated(inventory: Inventory) -> Iterable[Finding]:
    """Yields a finding if lines of one manifest have equal questions and media but different ids."""
    groups: dict[Hashable, list[Entry]] = defaultdict(list)
    for entry in inventory.entries:
        if entry.sample.media:
            media = tuple((key[0], _identity(key, inventory)) for key in inventory.media[entry.file, entry.line])
            groups[entry.file, _question(entry.sample), media].append(entry)
    repeated = [entries for entries in groups.values() if len(entries) > 1]
    if repeated:
        example = f"{_place(repeated[0][0])} and {_place(repeated[0][1])}"
        yield Finding(what="the same clip under several ids", num=len(repeated), example=example, severe=False)


def _untrained(inventory: Inventory) -> Iterable[Finding]:
    """Yields a finding if some labels occur in no training split, while other labels do."""
    splits: dict[str, list[Entry]] = defaultdict(list)
    for entry in inventory.entries:
        if entry.sample.solution is not None:
            splits[entry.sample.solution].append(entry)
    names = {label: {_split_name(entry) for entry in entries} for label, entries in splits.items()}
    missing = [label for label, found in names.items() if not found & TRAINING_SPLITS]
    if missing and len(missing) < len(names):
        example = f"{missing[0][:40]!r} at {_place(splits[missing[0]][0])}"
        yield Finding(what="a label in no training split", num=len(missing), example=example, severe=False)


def _question(sample: Sample) -> str:
    return "\n".join(message.content for message in sample.messages if message.role == "user")


def _split_name(entry: Entry) -> str:
    return entry.sample.split or Path(entry.file).stem


def _place(entry: Entry) -> str:
    return f"{entry.place.removeprefix(entry.file.removesuffix(Path(entry.file).name))} ({entry.sample.id[:40]})"
