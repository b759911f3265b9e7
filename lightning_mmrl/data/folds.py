"""Makes folds of a dataset: each speaker is tested in one fold, and is in no training manifest of that fold."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning_mmrl.data.formats.lines import json_object
from lightning_mmrl.data.formats.splits import assign_splits
from lightning_mmrl.data.synthetic.conflicts import CONFLICTS
from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.files import file_digest, folder_beside, read_json, write_json, write_whole

RECORD, TRAIN, TEST = "folds.json", "train.jsonl", "test.jsonl"
LABELS = "labels.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldSettings:
    """How folds are made.

    Attributes:
        num_folds: Number of folds.
        seed: Seed that breaks ties, and with the manifests decides the folds.
        pool: Manifests whose clips are dealt to the folds; every clip is tested once.
        ignore_speakers: True to deal single clips where their speakers are unknown or do not matter.

    Raises:
        ConfigError: There are fewer than two folds, or no manifest.
    """

    num_folds: int = 5
    seed: int = 0
    pool: Sequence[str] = (TRAIN, TEST)
    ignore_speakers: bool = False

    def __post_init__(self) -> None:
        if self.num_folds < 2:
            raise ConfigError(f"the number of folds is {self.num_folds}; it must be at least 2")
        if not self.pool or len(set(self.pool)) < len(self.pool):
            raise ConfigError(f"the pool is {', '.join(self.pool) or 'empty'}; name each manifest of the pool once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a manifest as it is written, with what the folds depend on; `place` is for messages."""

    text: str
    id: str
    speaker: str | None
    label: str
    place: str


def make_folds(directory: Path, out: Path, *, media_root: Path | None, settings: FoldSettings) -> dict[str, Any]:
    """Writes `out/fold_1` and so on, each a dataset of its own, and `folds.json`; media stay where they are.

    The clips of the pool are dealt to the folds by speaker, with the labels spread as evenly as the speakers allow
    (`assign_splits`). `test.jsonl` of a fold has its clips, and `train.jsonl` all other clips of the pool. Any other
    manifest of the folder is copied to each fold without the speakers and ids that this fold tests, so that nothing
    that a stage or a validation reads is of a tested speaker; of `CONFLICTS`, which is only tested, these alone are
    copied. Folds that were made of the same files with the same settings are kept.

    Args:
        directory: Folder of the dataset: its manifests, and `labels.json` if it has one.
        out: Folder of the folds.
        media_root: Folder that paths of media are relative to; None for `directory`.
        settings: How the folds are made.

    Returns:
        The content of `folds.json`.

    Raises:
        DataError: A manifest is missing or a line is unusable, there are fewer speakers than folds, or `out` holds
            other files.
    """
    names = sorted(path.name for path in directory.glob("*.jsonl"))
    missing = [name for name in settings.pool if name not in names]
    if missing:
        raise DataError(f"{directory / missing[0]} does not exist; name the manifests whose clips are dealt to folds")
    made = {
        "source": str(directory.resolve()),
        "media_root": str((media_root or directory).resolve()),
        **asdict(settings) | {"pool": list(settings.pool)},
        "manifests": {name: file_digest(directory / name)[:16] for name in names},
    }
    if out.exists():
        found = read_json(out / RECORD, f"name a new folder, or remove {out}")
        if {key: found.get(key) for key in made} != made:
            raise DataError(
                f"{out} has folds of other files or settings ({_changed(found, made)}); name a new folder, or remove it"
            )
        return found
    lines = {name: list(_lines(directory / name)) for name in names}
    pool = _pooled([line for name in settings.pool for line in lines[name]], settings)
    folds = assign_splits(
        [_group(line, settings) for line in pool],
        [line.label for line in pool],
        shares={f"fold_{number}": 1 for number in range(1, settings.num_folds + 1)},
        seed=settings.seed,
    )
    others = {name: each for name, each in lines.items() if name not in settings.pool}
    content: dict[str, Any] = {**made, "folds": {}}
    with folder_beside(out) as partial:
        for name in sorted(set(folds)):
            tested = [line for line, fold in zip(pool, folds, strict=True) if fold == name]
            trained = [line for line, fold in zip(pool, folds, strict=True) if fold != name]
            kept = {
                other: _of_tested(each, tested) if other == CONFLICTS else _without(each, tested, settings)
                for other, each in others.items()
            }
            for manifest, each in {TRAIN: trained, TEST: tested, **kept}.items():
                write_whole(partial / name / manifest, "".join(f"{line.text}\n" for line in each))
            if (directory / LABELS).is_file():
                write_whole(partial / name / LABELS, (directory / LABELS).read_bytes())
            left_out = {other: len(others[other]) - len(each) for other, each in kept.items()}
            content["folds"][name] = {"train": _counts(trained), "test": _counts(tested), "left_out": left_out}
        write_json(partial / RECORD, content)
        out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, out)
    return content


def _lines(path: Path) -> Iterator[Line]:
    for number, text in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not text.strip():
            continue
        place = f"{path}:{number}"
        try:
            row = json_object(text)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        name, speaker, label = row.get("id"), row.get("speaker"), row.get("solution")
        if not isinstance(name, str) or not isinstance(speaker, str | None):
            raise DataError(f"{place} has the id {name!r} and the speaker {speaker!r}; folds need texts, write both")
        yield Line(text=text, id=name, speaker=speaker, label=json.dumps(label, sort_keys=True), place=place)


def _pooled(lines: Sequence[Line], settings: FoldSettings) -> list[Line]:
    """The clips of the pool, each once.

    Raises:
        DataError: Two lines with one id differ, or a clip has no speaker or no solution.
    """
    found: dict[str, Line] = {}
    for line in lines:
        first = found.setdefault(line.id, line)
        if first.text != line.text:
            raise DataError(f"{line.place} has the id {line.id!r} of another line, {first.place}; give each its own id")
        if line.label == "null":
            raise DataError(f"{line.place} has no solution, which each fold tests; add it, or leave the line out")
        if line.speaker is None and not settings.ignore_speakers:
            raise DataError(
                f"{line.place} has no speaker, so that a fold could test whom it has trained on; add the column "
                "`speaker`, or give --ignore-speakers to deal single clips"
            )
    return list(found.values())


def _group(line: Line, settings: FoldSettings) -> str:
    return f"clip {line.id}" if settings.ignore_speakers else f"speaker {line.speaker}"


def _without(lines: Sequence[Line], tested: Sequence[Line], settings: FoldSettings) -> list[Line]:
    """The lines of another manifest that are of no tested clip and no tested speaker."""
    ids = {line.id for line in tested}
    speakers = set() if settings.ignore_speakers else {line.speaker for line in tested}
    return [line for line in lines if line.id not in ids and line.speaker not in speakers]


def _of_tested(lines: Sequence[Line], tested: Sequence[Line]) -> list[Line]:
    """The lines of another manifest that are of a tested speaker."""
    speakers = {line.speaker for line in tested}
    return [line for line in lines if line.speaker in speakers]


def _counts(lines: Sequence[Line]) -> dict[str, Any]:
    labels = Counter(json.loads(line.label) if line.label.startswith('"') else line.label for line in lines)
    speakers = {line.speaker for line in lines if line.speaker is not None}
    return {"clips": len(lines), "speakers": len(speakers), "labels": dict(sorted(labels.items()))}


def _changed(found: Any, made: Mapping[str, Any]) -> str:
    return ", ".join(key for key in made if not isinstance(found, dict) or found.get(key) != made[key])
