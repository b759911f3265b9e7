"""`mmrl data synth`: generates the video-audio emotion set."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_mmrl.errors import ConfigError


def run(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="mmrl data", description="Make and inspect datasets.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    synth = commands.add_parser("synth", help="generate the emotion set: mp4 clips with sound, and their manifests")
    synth.add_argument("directory", type=Path, help="where the set goes; it appears when it is complete")
    synth.add_argument("--seed", type=int, default=0, help="everything follows from it (default 0)")
    synth.add_argument("--scale", type=float, default=1.0, help="multiplies the size of every split (default 1.0)")
    synth.add_argument("--workers", type=int, default=2, help="rendering processes (default 2)")
    synth.add_argument("--overwrite", action="store_true", help="replace a set made with other settings")
    options = parser.parse_args(arguments)
    return _synth(options)


def _synth(options: argparse.Namespace) -> int:
    # Loaded here: argument errors need no numpy.
    from lightning_mmrl.data.synthetic.emotions import synthesize_emotions
    from lightning_mmrl.data.synthetic.settings import EmotionSetSettings
    from lightning_mmrl.training.console import ConsoleProgress

    if options.workers < 1:
        raise ConfigError(f"--workers is {options.workers}; it must be at least 1")
    with ConsoleProgress() as console:
        folder = synthesize_emotions(
            options.directory,
            settings=EmotionSetSettings(seed=options.seed, scale=options.scale),
            workers=options.workers,
            overwrite=options.overwrite,
            on_progress=lambda done, total: console.update("generating clips", done, total),
        )
    print(folder)
    return 0
