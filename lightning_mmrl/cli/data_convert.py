"""`mmrl data convert` and `mmrl data show`: rewrite a source of any format as a manifest, or show its samples."""

import argparse
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.cli.data_options import add_guard, guard_of
from lightning_mmrl.errors import ConfigError, DataError

if TYPE_CHECKING:
    from lightning_mmrl.types.records import Sample

_NUM_FRAMES = 4


def add_conversions(commands: Any) -> None:
    """Adds the subcommands to `mmrl data`."""
    convert = commands.add_parser(
        "convert",
        help="rewrite a file of another format as a manifest",
        description="Read a source in any known format and write it as JSON lines. Media files stay where they are; "
        "media that lie in a table are written below the media root.",
    )
    show = commands.add_parser(
        "show",
        help="write a contact sheet: frames, waveform, question, solution",
        description="Write one HTML file with the samples of a source; it loads nothing else.",
    )
    for parser, what in ((convert, "manifest"), (show, "HTML file")):
        parser.add_argument("source", type=Path, metavar="SOURCE", help="a file, a folder of shards, or PATH#PART")
        add_source_options(parser)
        parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=f"the {what} to write")
        parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    convert.add_argument("--skip-bad", action="store_true", help="leave bad rows out; without it nothing is written")
    convert.add_argument("--show", type=int, default=20, metavar="N", help="bad rows to print (default %(default)s)")
    convert.set_defaults(call=_convert)
    show.add_argument("--num", type=int, default=24, metavar="N", help="samples to show (default %(default)s)")
    show.add_argument("--first", type=int, default=1, metavar="ROW", help="the first row to show (default 1)")
    add_guard(show)
    show.set_defaults(call=_show)


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that say how a source is read."""
    parser.add_argument(
        "--media-root", type=Path, required=True, metavar="DIR", help="folder that media paths are relative to"
    )
    parser.add_argument("--format", default=None, metavar="NAME", help="format of the source (default: as recognised)")


def check_source_options(options: argparse.Namespace) -> None:
    """Checks the options that say how a source is read.

    Raises:
        ConfigError: The media root is no folder, or there is no such format.
    """
    from lightning_mmrl.data.formats.readers.registry import FORMATS
    from lightning_mmrl.suggestions import did_you_mean

    if not options.media_root.is_dir():
        raise ConfigError(f"--media-root {options.media_root} is no folder; name the folder that paths are relative to")
    if options.format not in (None, *FORMATS):
        raise ConfigError(f"--format {options.format}: no such format{did_you_mean(options.format, FORMATS)}")


def _check_out(options: argparse.Namespace) -> None:
    check_source_options(options)
    if options.out.is_dir():
        raise ConfigError(f"--out {options.out} is a folder; name a file in it")
    if options.out.exists() and not options.overwrite:
        raise ConfigError(f"--out {options.out} exists; give --overwrite, or name another file")


def _convert(options: argparse.Namespace) -> int:
    _check_out(options)
    from lightning_mmrl.cli.data_tables import print_problems
    from lightning_mmrl.data.manifest_lines import write_manifest
    from lightning_mmrl.data.schema import Problem
    from lightning_mmrl.data.sources import Source
    from lightning_mmrl.training.console import report_console

    source, problems = Source(options.source, options.media_root, options.format), []
    if options.out.resolve() in {file.resolve() for file in source.files}:
        raise ConfigError(f"--out {options.out} is the source itself; name another file")

    def usable() -> "Iterator[Sample]":
        for item in source.scan():
            if isinstance(item, Problem):
                problems.append(item)
            else:
                yield item.sample
        if problems and not options.skip_bad:
            raise DataError(
                f"{options.source}: {len(problems)} bad row{'s' * (len(problems) > 1)}, so nothing is written; correct "
                "them, or give --skip-bad to leave them out"
            )

    console = report_console()
    try:
        number = write_manifest(options.out, usable())
    finally:
        print_problems(console, problems, options.show)
    for note in source.notes:
        console.print(note, soft_wrap=True)
    left_out = f", {len(problems)} left out" if problems else ""
    samples = f"{number} sample{'s' * (number != 1)}"
    console.print(f"{options.out}: {samples} of the format {source.reader.name}{left_out}", soft_wrap=True)
    return 1 if problems else 0


def _show(options: argparse.Namespace) -> int:
    for name in ("num", "first"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} is {getattr(options, name)}; it must be at least 1")
    guard = guard_of(options)
    _check_out(options)
    from dataclasses import replace

    from lightning_mmrl.data.sheet import contact_sheet
    from lightning_mmrl.data.sources import Source
    from lightning_mmrl.files import write_whole
    from lightning_mmrl.training.console import ConsoleProgress

    source = Source(options.source, options.media_root, options.format)
    start = options.first - 1
    items = list(islice(source.scan(), start, start + options.num))
    if not items:
        raise DataError(f"{options.source} has no row {options.first}; lower --first")
    with ConsoleProgress() as console:
        page = contact_sheet(
            items,
            options.media_root,
            replace(guard, settings=replace(guard.settings, num_frames=_NUM_FRAMES)),
            title=str(options.source),
            notes=source.notes,
            on_progress=lambda done, total: console.update("decoding media", done, total),
        )
    write_whole(options.out, page)
    print(f"{options.out}: {len(items)} rows of {options.source}")
    return 0
