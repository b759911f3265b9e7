"""`mmrl data from-csv`: makes a dataset from a folder of clips and a CSV of labels."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.cli.data_options import add_guard, guard_of, label_set
from lightning_mmrl.errors import ConfigError
from lightning_mmrl.prompts.template import DEFAULT_QUESTION

if TYPE_CHECKING:
    from lightning_mmrl.data.formats.from_csv import Conversion

MAX_NAMES = 5
PURPOSES = ("file", "label", "speaker", "split", "start", "end", "reasoning", "id")


def add_from_csv(commands: Any) -> None:
    """Adds the subcommand to `mmrl data`."""
    parser = commands.add_parser(
        "from-csv",
        help="turn a folder of clips and a CSV of labels into a dataset",
        description="Decode each clip that the CSV names and write train, validation, test and cold_start manifests, "
        "labels.json and rejected.csv. Speakers never cross splits.",
    )
    parser.add_argument("csv", type=Path, metavar="CSV", help="one row per clip, with a header line")
    parser.add_argument("--media-root", type=Path, required=True, metavar="DIR", help="folder of the clips")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the dataset, new or not")
    for purpose in PURPOSES:
        parser.add_argument(f"--{purpose}-column", metavar="NAME", help=f"name of the {purpose} column")
    parser.add_argument(
        "--encoding",
        metavar="NAME",
        help="encoding of the CSV, such as cp1252 (default: as its first bytes say, or UTF-8)",
    )
    parser.add_argument("--suffix", default="", metavar=".EXT", help="appended to file names without one")
    parser.add_argument("--labels", metavar="A,B", help="the label set (default: all labels in the CSV)")
    parser.add_argument("--question", default=DEFAULT_QUESTION, help="question of every sample (default: %(default)s)")
    for name in ("validation", "test"):
        words = f"share of the {name} split (default %(default)s)"
        parser.add_argument(f"--{name}", type=float, default=0.15, metavar="P", help=words)
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits (default 0)")
    parser.add_argument("--ignore-speakers", action="store_true", help="allow one speaker in several splits")
    parser.add_argument(
        "--copy", action="store_true", help="copy clips that are not in --out into it, instead of hard-linking them"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier conversion")
    parser.add_argument("--show", type=int, default=20, metavar="N", help="bad rows to print (default %(default)s)")
    add_guard(parser)
    parser.set_defaults(call=_from_csv)


def _from_csv(options: argparse.Namespace) -> int:
    shares = {"validation": options.validation, "test": options.test}
    if min(shares.values()) < 0 or not sum(shares.values()) < 1:
        raise ConfigError(
            f"--validation {options.validation} and --test {options.test} must be at least 0 and leave a rest"
        )
    guard, labels = guard_of(options), label_set(options.labels)
    # Loaded here, so that argument errors do not load the decoders.
    from lightning_mmrl.data.formats.from_csv import CsvSettings, convert_csv
    from lightning_mmrl.training.console import ConsoleProgress

    settings = CsvSettings(
        columns={purpose: getattr(options, f"{purpose}_column") for purpose in PURPOSES},
        encoding=options.encoding,
        suffix=options.suffix,
        labels=labels,
        question=options.question,
        shares=shares,
        seed=options.seed,
        by_speaker=not options.ignore_speakers,
        copy=options.copy,
        overwrite=options.overwrite,
    )
    with ConsoleProgress() as console:
        conversion = convert_csv(
            options.csv,
            options.media_root,
            options.out,
            settings=settings,
            guard=guard,
            on_progress=lambda done, total: console.update("decoding files", done, total),
        )
    _print_conversion(conversion, options.show)
    return 0


def _print_conversion(conversion: "Conversion", num_shown: int) -> None:
    from lightning_mmrl.cli.data_tables import print_problems, print_report, warning_lines
    from lightning_mmrl.data.formats.from_csv import MANIFESTS
    from lightning_mmrl.data.inspection import take_inventory
    from lightning_mmrl.data.report import summarize
    from lightning_mmrl.training.console import report_console

    out = conversion.directory
    console = report_console()
    print_problems(console, conversion.problems, num_shown)
    manifests = [out / f"{name}.jsonl" for name in MANIFESTS]
    print_report(summarize(take_inventory([path for path in manifests if path.is_file()], out)), num_shown)
    lines = [*conversion.notes, *warning_lines(conversion.warnings, num_shown)]
    for kinds, paths in conversion.taken_as.items():
        shown = ", ".join(paths[:MAX_NAMES]) + (", ..." if len(paths) > MAX_NAMES else "")
        lines.append(f"files taken as {' and '.join(kinds)}: {len(paths)} ({shown})")
    if any("video" in kinds for kinds in conversion.taken_as):
        lines.append(f"clips without sound: {conversion.num_without_sound} (their lines have no <audio> tag)")
    lines += [
        f"samples with a written reasoning: {conversion.num_reasonings}"
        + ("" if conversion.num_reasonings else " (all lines of cold_start.jsonl have the same short thought)"),
        f"rows left out: {len(conversion.problems)} (all named in {out / 'rejected.csv'})",
        "next:",
        f"  mmrl data validate {shlex.quote(str(out))}/*.jsonl --media-root {shlex.quote(str(out))}",
        f"  mmrl train experiment=own_clips data.root={shlex.quote(str(out))}{_overrides(conversion)}",
    ]
    for line in lines:
        console.print(line, soft_wrap=True)


def _overrides(conversion: "Conversion") -> str:
    """Returns further overrides for the suggested training, so that it uses no split without clips."""
    found = [name for name in ("validation", "train") if conversion.sizes.get(name)]
    validation = "" if conversion.sizes.get("validation") else " data.validation=null"
    test = "" if conversion.sizes.get("test") or not found else f" evaluation.sets.test={found[0]}.jsonl"
    return validation + test
