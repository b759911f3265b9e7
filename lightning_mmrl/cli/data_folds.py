"""`mmrl data folds DIR`: deals the clips of a dataset to folds, whole speakers at a time."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_mmrl.data.folds import RECORD, TEST, TRAIN, FoldSettings, make_folds


def add_folds(commands: Any) -> None:
    """Adds the subcommand to `mmrl data`."""
    parser = commands.add_parser(
        "folds",
        help="deal the clips of a dataset to folds that share no speaker",
        description="Write a folder for each fold, with the manifests of DIR: each clip of the pool is tested in one "
        "fold and trained on in the others, no speaker is in both, and labels are spread evenly. All other manifests "
        "of DIR are copied without the speakers that the fold tests. Media stay where they are. For mmrl folds.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="folder of the manifests")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the folds, a new one")
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="number of folds (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed that breaks ties (default 0)")
    parser.add_argument(
        "--pool",
        nargs="+",
        default=[TRAIN, TEST],
        metavar="MANIFEST",
        help="manifests whose clips are dealt to folds (default: %(default)s)",
    )
    parser.add_argument("--media-root", type=Path, metavar="DIR", help="folder of the media (default: DIR)")
    parser.add_argument(
        "--ignore-speakers", action="store_true", help="deal single clips, where nobody knows their speakers"
    )
    parser.set_defaults(call=_folds)


def _folds(options: argparse.Namespace) -> int:
    settings = FoldSettings(
        num_folds=options.folds, seed=options.seed, pool=options.pool, ignore_speakers=options.ignore_speakers
    )
    made = make_folds(options.directory, options.out, media_root=options.media_root, settings=settings)
    print_folds(made, options.out)
    print(f"next:\n  mmrl folds {options.out} experiment=own_clips")
    return 0


def print_folds(made: Mapping[str, Any], out: Path) -> None:
    """Prints how many clips and speakers each fold tests and trains on, and how the labels are spread."""
    for name, fold in made["folds"].items():
        parts = [
            f"{part} {each['clips']:,} clips of {each['speakers']:,} speakers"
            for part, each in (("train", fold["train"]), ("test", fold["test"]))
        ]
        labels = ", ".join(f"{label} {number:,}" for label, number in fold["test"]["labels"].items())
        left_out = ", ".join(f"{number:,} of {other}" for other, number in fold["left_out"].items() if number)
        print(f"{name}: {'; '.join(parts)} (test: {labels})" + (f"; left out: {left_out}" if left_out else ""))
    print(f"folds in {out}, counts in {out / RECORD}", flush=True)
