"""`mmrl data prepare SET`: makes a dataset from the originals of a published emotion set."""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_mmrl.cli.data_options import add_guard, guard_of
from lightning_mmrl.errors import ConfigError

if TYPE_CHECKING:
    from lightning_mmrl.data.prepare.card import SetCard
    from lightning_mmrl.data.prepare.writer import Preparation

EXIT_NOT_MET = 1
"""Exit code if the published protocol cannot be met, and the user did not accept that."""


def add_prepare(commands: Any) -> None:
    """Adds the subcommand to `mmrl data`."""
    parser = commands.add_parser(
        "prepare",
        help="turn the originals of a published emotion set into a dataset",
        description="Read a published set in its own folders and file names, compare its counts with the published "
        "ones, and write manifests for each split or fold, labels.json, rejected.csv and configs for --config-dir. "
        "Media stay where they are; every file is opened, and `mmrl data validate` decodes them. The exit code is 1 "
        "if the published protocol cannot be met, 2 for bad arguments.",
    )
    from lightning_mmrl.data.prepare.card import card_names, read_card

    sets = parser.add_subparsers(dest="set", required=True, metavar="SET")
    for name in card_names():
        _add_set(sets, read_card(name))


def _add_set(sets: Any, card: "SetCard") -> None:
    parser = sets.add_parser(
        card.name,
        help=card.title,
        description=f"{card.title}. Needs {card.layout}. Published in: {card.citation}. License: {card.license}.",
    )
    parser.add_argument("originals", type=Path, metavar="DIR", help="folder of the originals")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the dataset, new or not")
    names = list(card.subsets)
    described = "; ".join(f"{name}: {subset.help}" for name, subset in card.subsets.items())
    parser.add_argument(
        "--subset", nargs="+", choices=names, default=names[:1], help=f"{described} (default: {names[0]})"
    )
    for name, option in card.options.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            choices=option.choices or None,
            default=option.default,
            required=option.required,
            metavar="FILE" if option.is_path else None,
            help=option.help + (f" (default: {option.default})" if option.default else ""),
        )
    parser.add_argument("--clips", type=Path, metavar="DIR", help="look for clips in this folder of the originals only")
    for medium, other in (("audio", "picture"), ("video", "sound")):
        words = f"also write {medium}_only/: the same rows without {other}; nothing is encoded again"
        parser.add_argument(f"--{medium}-only", action="store_true", help=words)
    parser.add_argument(
        "--validation",
        type=float,
        default=0.0,
        metavar="P",
        help="share of the training clips for validation, where the protocol has no such split (default 0)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of drawn splits (default 0)")
    parser.add_argument(
        "--question", help="question of every sample (default: Which emotion? or, for sets of words, Which emotions?)"
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="write the set even if the published protocol cannot be met"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier preparation")
    parser.add_argument("--show", type=int, default=20, metavar="N", help="problems to print (default %(default)s)")
    add_guard(parser)
    parser.set_defaults(call=lambda options: _prepare(options, card))


def _prepare(options: argparse.Namespace, card: "SetCard") -> int:
    if not 0 <= options.validation < 1:
        raise ConfigError(f"--validation {options.validation} must be at least 0 and less than 1")
    guard = guard_of(options)
    # Loaded here, so that argument errors do not load the decoders.
    from lightning_mmrl.data.prepare.kinds import AUDIO_ONLY, VIDEO_ONLY
    from lightning_mmrl.data.prepare.writer import PrepareSettings, prepare_set
    from lightning_mmrl.training.console import ConsoleProgress

    flags = ((AUDIO_ONLY, options.audio_only), (VIDEO_ONLY, options.video_only))
    settings = PrepareSettings(
        subsets=list(dict.fromkeys(options.subset)),
        options={name: getattr(options, name) for name in card.options},
        clips=options.clips,
        copies=[name for name, given in flags if given],
        validation=options.validation,
        seed=options.seed,
        question=options.question,
        allow_missing=options.allow_missing,
        overwrite=options.overwrite,
    )
    with ConsoleProgress() as console:
        preparation = prepare_set(
            card,
            options.originals,
            options.out,
            settings=settings,
            guard=guard,
            on_progress=lambda done, total: console.update("opening files", done, total),
        )
    _print_preparation(preparation, card, options.show)
    return 0 if preparation.written else EXIT_NOT_MET


def _print_preparation(preparation: "Preparation", card: "SetCard", num_shown: int) -> None:
    from lightning_mmrl.cli.data_tables import print_problems
    from lightning_mmrl.training.console import report_console

    console, out = report_console(), preparation.directory
    print_problems(console, preparation.problems, num_shown)
    lines = [*map(str, preparation.counts), *preparation.notes]
    lines += [f"{name}.jsonl: {size:,} samples" for name, size in preparation.sizes.items()]
    if not preparation.met:
        lines.append(f"the published protocol is not met ({card.citation})")
    if preparation.written:
        lines += [
            f"problems: {len(preparation.problems)} (all named in {out / 'rejected.csv'})",
            f"license: {card.license}",
            *_next(preparation, card),
        ]
    else:
        lines.append("nothing was written; complete the originals, or give --allow-missing to write the set as it is")
    for line in lines:
        console.print(line, soft_wrap=True)


def _next(preparation: "Preparation", card: "SetCard") -> list[str]:
    """The commands that a user needs next: validation, and a training or an evaluation."""
    out, sizes = preparation.directory, preparation.sizes
    folder = next(iter(sizes)).rpartition("/")[0]
    splits = [name.rpartition("/")[2] for name in sizes if name.rpartition("/")[0] == folder]
    name = "_".join([card.name, *filter(None, folder.split("/"))])
    use = f"--config-dir {shlex.quote(str(out / 'configs'))}"
    if "train" not in splits:
        use += f" ... +data@datasets.{card.name}={name} "
        use += shlex.quote(f"+evaluation.sets.{card.name}={{manifest: test.jsonl, dataset: {card.name}}}")
    elif preparation.labels is None:
        use += f" ... data={name}"
    else:
        use += f" experiment=own_clips data={name} data.root={shlex.quote(str(out / folder))}"
        use += "" if "test" in splits else f" evaluation.sets.test={min(splits, key='validation'.__ne__)}.jsonl"
    manifests = shlex.quote(str(out / folder)) + "/*.jsonl"
    return [
        "next:",
        f"  mmrl data validate {manifests} --media-root {shlex.quote(str(preparation.media_root))}",
        f"  mmrl train {use}",
    ]
