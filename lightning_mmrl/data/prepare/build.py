"""Prepares a published set at the start of a training: `data.build` with the folder of the originals."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from lightning_mmrl.data.formats.publish import RECORD
from lightning_mmrl.data.media.examine import Guard
from lightning_mmrl.data.prepare.card import SetCard, read_card
from lightning_mmrl.data.prepare.writer import Preparation, PrepareSettings, asked_for, prepare_set
from lightning_mmrl.errors import ConfigError, DataError
from lightning_mmrl.settings.data import MediaSettings
from lightning_mmrl.suggestions import shown

_NUM_SHOWN = 3


def prepare_originals(
    directory: Path,
    *,
    name: str,
    originals: str,
    settings: PrepareSettings,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Prepares a set as `mmrl data prepare NAME ORIGINALS --out DIRECTORY` does; a prepared set is kept.

    Args:
        directory: Folder of the prepared set.
        name: Name of the set, such as dfew.
        originals: Folder of the originals.
        settings: As the flags of the command.
        workers: Processes that open files.
        on_progress: Called with the number of opened files and of all files.

    Raises:
        ConfigError: There is no such set, an option is none of the set's, or `settings.overwrite` is true.
        DataError: The published protocol is not met and `settings.allow_missing` is false, the originals cannot be
            read, or the folder was prepared with other settings.
    """
    if settings.overwrite:
        raise ConfigError(
            f"build.settings.overwrite is true, and each start of a run would prepare {name} again; remove it, and use "
            f"`mmrl data prepare {name} --overwrite` for this"
        )
    card = read_card(name)
    clips = None if settings.clips is None else Path(settings.clips)
    settings = replace(settings, options=card.chosen(settings.options), clips=clips)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(directory.parent / f".{directory.name}.lock"):
        if (directory / RECORD).is_file():
            _check_kept(directory, card, Path(originals), settings)
            return directory
        guard = Guard(settings=MediaSettings(), num_workers=max(workers, 1))
        report = on_progress or (lambda done, total: None)
        made = prepare_set(card, Path(originals), directory, settings=settings, guard=guard, on_progress=report)
    if not made.written:
        raise DataError(_refusal(made, card, Path(originals)))
    return directory


def _check_kept(directory: Path, card: SetCard, originals: Path, settings: PrepareSettings) -> None:
    """Refuses a folder that was prepared from other originals, with other settings, or without all files.

    A fact that an earlier version did not record counts as the default.
    """
    path = directory / RECORD
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; remove {directory}, to prepare it again") from error
    wanted: Mapping[str, Any] = json.loads(json.dumps(asked_for(card, originals.resolve(), settings)))
    usual: Mapping[str, Any] = json.loads(json.dumps(asked_for(card, originals.resolve(), PrepareSettings())))
    known = {**usual, **(record if isinstance(record, dict) else {})}
    for key, value in wanted.items():
        if known[key] != value:
            raise DataError(
                f"{directory} was prepared with {key} {shown(known[key])}, not {shown(value)}; remove it, to prepare "
                "it again, give another root, or set build=null to use it as it is"
            )
    if not settings.allow_missing and not known.get("published_protocol_met", True):
        raise DataError(
            f"{directory} was prepared with allow_missing, and does not meet the published protocol of {card.name}; "
            f"complete {originals} and remove {directory}, or set build.settings.allow_missing=true"
        )


def _refusal(made: Preparation, card: SetCard, originals: Path) -> str:
    differing = [str(each) for each in made.counts if each.differs and each.needed]
    found = [*differing, *(str(problem) for problem in made.problems)]
    more = f"; and {len(found) - _NUM_SHOWN} more" if len(found) > _NUM_SHOWN else ""
    return (
        f"the published protocol of {card.name} is not met in {originals}: {'; '.join(found[:_NUM_SHOWN])}{more}. "
        f"`mmrl data prepare {card.name} {originals} --out {made.directory}` names all; complete the originals, or "
        "set build.settings.allow_missing=true"
    )
