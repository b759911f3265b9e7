"""Options that `mmrl data` commands share; `mmrl predict` shares the bounds of decoding."""

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_mmrl.errors import ConfigError

if TYPE_CHECKING:  # importing it would load the decoders
    from lightning_mmrl.data.media.examine import Guard


def add_guard(parser: argparse.ArgumentParser) -> None:
    """Adds the bounds of decoding, with the names and defaults of the limits in `data.media`."""
    cores = os.cpu_count() or 2
    parser.add_argument("--workers", type=int, default=cores, metavar="N", help="decoding processes (default: cores)")
    add_decode_bounds(parser)
    parser.add_argument("--max-duration-s", type=float, metavar="S", help="longest medium (default 600)")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="refuse larger frames (default 16777216)")
    parser.add_argument("--max-bytes", type=int, metavar="N", help="largest file (default 268435456)")


def add_decode_bounds(parser: argparse.ArgumentParser) -> None:
    """Adds the options for the time and memory that decoding one medium may take."""
    parser.add_argument("--deadline", type=float, default=30.0, metavar="S", help="seconds per medium (default 30)")
    parser.add_argument("--memory-mb", type=int, default=1024, metavar="N", help="MiB per process (default 1024)")


def check_bounds(options: argparse.Namespace, names: Sequence[str]) -> None:
    """Requires positive bounds.

    Raises:
        ConfigError: A bound is not above 0.
    """
    for name in names:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise ConfigError(f"--{name.replace('_', '-')} is {value}; it must be above 0")


def guard_of(options: argparse.Namespace) -> "Guard":
    """Returns the bounds of decoding that the options give.

    Raises:
        ConfigError: A bound is not above 0.
    """
    check_bounds(options, ("workers", "deadline", "memory_mb", "max_duration_s", "max_pixels", "max_bytes"))
    from lightning_mmrl.data.media.examine import Guard
    from lightning_mmrl.settings.data import MediaSettings

    names = ("max_duration_s", "max_pixels", "max_bytes")
    limits = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return Guard(
        settings=MediaSettings(**limits),
        num_workers=options.workers,
        deadline_s=options.deadline,
        memory_mb=options.memory_mb,
    )


def label_set(text: str | None) -> Sequence[str] | None:
    """Returns the labels of a comma-separated list; None without a list.

    Raises:
        ConfigError: Two labels are equal after normalization, or one is blank.
    """
    if text is None:
        return None
    from lightning_mmrl.data.schema import label_matcher

    labels = tuple(label.strip() for label in text.split(","))
    try:
        label_matcher(labels)
    except ConfigError as error:
        raise ConfigError(f"--labels: {error}") from error
    return labels
