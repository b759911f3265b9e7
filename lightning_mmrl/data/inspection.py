"""Takes an inventory of manifests: the usable lines, the problems of the other lines, and facts about the media."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lightning_mmrl.data.media.examine import Guard, MediaFacts, examine, fault
from lightning_mmrl.data.media_files import resolve_media
from lightning_mmrl.data.schema import Entry, Problem, label_matcher
from lightning_mmrl.data.sources import Source
from lightning_mmrl.types.records import MediaRef

MediaKey = tuple[str, str, float | None, float | None]
"""Kind, file and span; media with equal keys are decoded only once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """The content of some manifests.

    `media` maps the file and line of a usable sample to its media. `facts` is empty until the media are decoded.
    `notes` are sentences on how files of other formats were understood.
    """

    manifests: tuple[Path, ...]
    media_root: Path
    entries: tuple[Entry, ...]
    problems: tuple[Problem, ...]
    media: dict[tuple[str, int], tuple[MediaKey, ...]]
    facts: dict[MediaKey, MediaFacts] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def take_inventory(
    manifests: Sequence[Path],
    media_root: Path,
    labels: Sequence[str] | None = None,
    format: str | None = None,
) -> Inventory:
    """Reads all lines; if `labels` are given, any other solution is a problem.

    Raises:
        DataError: A manifest cannot be read, or its format cannot be told.
        ConfigError: Two labels are equal after normalization, or there is no such format.
    """
    entries: list[Entry] = []
    problems: list[Problem] = []
    notes: list[str] = []
    for path in manifests:
        before = len(entries) + len(problems)
        source = Source(path, media_root, format)
        for item in source.scan():
            if not isinstance(item, Entry):
                problems.append(item)
                continue
            solution = item.sample.solution
            if labels is None or solution is None or label_matcher(tuple(labels)).match(solution) is not None:
                entries.append(item)
                continue
            known = ", ".join(labels)[:200]
            reason = f"solution {solution[:80]!r} is none of the labels {known}; correct it or add the label"
            problems.append(item.problem("label", reason))
        if len(entries) + len(problems) == before:
            reason = "the manifest holds no samples; add a line or leave it out"
            problems.append(Problem(file=str(path), line=1, group="empty manifest", reason=reason))
        notes += source.notes
    media: dict[tuple[str, int], tuple[MediaKey, ...]] = {}
    for entry in entries:
        found = [(resolve_media(ref.path, media_root, entry.place), ref) for ref in entry.sample.media]
        media[entry.file, entry.line] = tuple((ref.kind, str(path), ref.start_s, ref.end_s) for path, ref in found)
    return Inventory(
        manifests=tuple(manifests),
        media_root=media_root,
        entries=tuple(entries),
        problems=tuple(problems),
        media=media,
        notes=tuple(notes),
    )


def decode_inventory(inventory: Inventory, guard: Guard, on_progress: Callable[[int, int], None]) -> Inventory:
    """Decodes each medium once, and moves lines with an unusable medium to the problems."""
    refs: dict[MediaKey, MediaRef] = {}
    for entry in inventory.entries:
        refs |= zip(inventory.media[entry.file, entry.line], entry.sample.media, strict=True)
    media = [(Path(key[1]), ref) for key, ref in refs.items()]
    outcomes = dict(zip(refs, guard.run(examine, media, inventory.media_root, on_progress), strict=True))
    entries, problems = [], list(inventory.problems)
    for entry in inventory.entries:
        reasons = (outcomes[key].error for key in inventory.media[entry.file, entry.line])
        reason = next((reason for reason in reasons if reason is not None), None)
        if reason is None:
            entries.append(entry)
        else:
            problems.append(entry.problem(fault(reason), reason))
    return replace(
        inventory,
        entries=tuple(entries),
        problems=tuple(problems),
        facts={key: outcome.value for key, outcome in outcomes.items() if outcome.error is None},
    )
